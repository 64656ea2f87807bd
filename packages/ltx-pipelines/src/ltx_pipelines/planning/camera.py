"""Camera moves: by a published adapter where the model has one for the move, else by a warped picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ltx_core.errors import ConfigError
from ltx_media.camera import CameraPath, Move, parse_moves, path_of_moves
from ltx_media.camera.path import camera_path_from_json, read_camera_path
from ltx_pipelines.planning.plan import CameraCondition, Lora, StagePlan
from ltx_pipelines.planning.schema import UsageError
from ltx_pipelines.planning.stages import with_stream
from ltx_pipelines.request import Request

ADAPTER = "ltx-2-19b-lora-camera-control-{}.safetensors"
#: Published adapters, what the prompt says with each, and the moves it makes.
ADAPTERS = {
    "dolly-in": ("The camera pushes in.", ("dolly in", "dolly forward")),
    "dolly-out": ("The camera pulls back, revealing the surroundings.", ("dolly out", "dolly back")),
    "dolly-left": ("The camera slides to the left.", ("truck left",)),
    "dolly-right": ("The camera slides to the right.", ("truck right",)),
    "jib-up": ("The camera rises straight up.", ("pedestal up", "jib up")),
    "jib-down": ("The camera sinks straight down.", ("pedestal down", "jib down")),
}


def steer(
    request: Request, stages: Sequence[StagePlan], folder: Path, generation: tuple[int, ...]
) -> tuple[Request, list[StagePlan]]:
    """The request and the stages of a clip whose camera follows what the request says.

    Adapters lie in ``folder``, beside the checkpoint, and are for models of ``generation`` below 2.3.
    """
    if request.camera is None:
        if request.camera_depth or request.camera_plane:
            raise UsageError("camera_depth and camera_plane have no effect without camera, expected them left out")
        return request, list(stages)
    text = request.camera.strip()
    moves = () if text.startswith("{") or text.endswith(".json") else parse_moves(text)
    if (found := adapter_for(moves, folder)) is not None and generation < (2, 3):
        lora, words = found
        return replace(request, prompt=f"{request.prompt} {words}".strip()), [
            replace(stage, loras=(*stage.loras, lora)) for stage in stages
        ]
    condition = camera_condition(request, camera_path(text, moves, stages[-1].shown.duration))
    return request, [_with_camera(stage, condition) for stage in stages]


def adapter_for(moves: Sequence[Move], folder: Path) -> tuple[Lora, str] | None:
    """The published adapter of a single move with its words, where it lies in a folder."""
    made = [f"{move.kind} {move.direction}" for move in moves]
    for name, (words, able) in ADAPTERS.items():
        if len(made) == 1 and made[0] in able and (path := folder / ADAPTER.format(name)).is_file():
            return Lora(str(path)), words
    return None


def camera_path(text: str, moves: Sequence[Move], seconds: float) -> CameraPath:
    """The path that moves, JSON or the name of a JSON file describe."""
    if moves:
        return path_of_moves(moves, seconds)
    return camera_path_from_json(text) if text.startswith("{") else read_camera_path(text)


def camera_condition(request: Request, path: CameraPath) -> CameraCondition:
    """The first picture of a request seen along a path."""
    first = next((image for image in request.images if image.frame_idx == 0), None)
    if first is None:
        raise ConfigError("camera needs a picture at frame 0, from which the path starts; give one with --image")
    if path.moves_in_space and request.camera_depth is None and request.camera_plane is None:
        raise ConfigError("the camera changes its place, expected camera_depth or camera_plane: how far things are")
    return CameraCondition(
        first.path, path.to_json(), request.camera_depth, request.camera_plane, request.camera_release
    )


def _with_camera(stage: StagePlan, condition: CameraCondition) -> StagePlan:
    video = stage.streams["video"]
    return with_stream(stage, "video", replace(video, conditions=(*video.conditions, condition)))
