"""The cases of long clips, tiles and cameras: numbers computed from the formulas alone, at the tolerance each states.

``LTX_CASES_DIR`` points the same runner at other cases of the same kinds (a folder with ``long/`` in it).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ltx_core.components import joining, strength, windows
from ltx_core.errors import ConfigError
from ltx_core.model.common.tiling import box_slices, partition_of_unity, product, split_by_count
from ltx_media import metrics
from ltx_media.camera import geometry, path, warp
from tests.oracle_windows import OracleLedger, oracle_plan, stitched, windows_of

ROOT = Path(os.environ.get("LTX_CASES_DIR") or Path(__file__).parent / "data") / "long"
CASES = sorted(found.parent for found in ROOT.glob("*/case.json"))


class Case:
    def __init__(self, folder: Path) -> None:
        case = json.loads((folder / "case.json").read_text())
        self.name, self.operation, self.args = folder.name, case["operation"], case["args"]
        self.expect: Any = case.get("expect")
        self.atol, self.rtol = case["tolerance"]["atol"], case["tolerance"]["rtol"]
        stored = folder / "tensors.safetensors"
        self.tensors = load_file(stored) if stored.exists() else {}
        self.unchecked = {name for name in self.tensors if name.startswith("out.")}

    def given(self, name: str) -> Tensor:
        return self.tensors[f"in.{name}"]

    def check(self, name: str, got: Any) -> None:
        """Compare with ``out.<name>``."""
        want = self.tensors[f"out.{name}"]
        self.unchecked.discard(f"out.{name}")
        got = torch.as_tensor(got)
        assert got.shape == want.shape, f"{name}: {tuple(got.shape)}, expected {tuple(want.shape)}"
        error = (got.double() - want.double()).abs() - self.rtol * want.double().abs()
        assert float(error.max()) <= self.atol, f"{self.name}: {name} is off by {float(error.max()):.3g}"

    def same(self, got: Any, want: Any, where: str = "expect") -> None:
        """Compare numbers inside of nested lists and dictionaries; every expected one must be there."""
        if isinstance(want, dict):
            assert want.keys() <= got.keys(), f"{where}: {want.keys() - got.keys()} missing"
            for key in want:
                self.same(got[key], want[key], f"{where}.{key}")
        elif isinstance(want, list):
            assert len(got) == len(want), f"{where}: {len(got)} entries, expected {len(want)}"
            for index, (a, b) in enumerate(zip(got, want, strict=True)):
                self.same(a, b, f"{where}[{index}]")
        elif isinstance(want, float):
            assert math.isclose(got, want, abs_tol=self.atol, rel_tol=self.rtol), f"{where}: {got}, expected {want}"
        else:
            assert got == want, f"{where}: {got}, expected {want}"


def described(window: windows.Window) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(window).items()}


def plan_windows(case: Case) -> None:
    got = []
    for row in case.args:
        times = (Fraction(row[name]) for name in ("fps", "seconds", "window_seconds", "overlap_seconds"))
        try:
            plan = windows.plan_windows(*times, last=row["last"], align=row["align"])
        except ConfigError as error:
            assert "at least" in str(error)
            got.append({"error": "stride"})
            continue
        facts = {name: value for name, value in vars(plan).items() if name not in ("fps", "windows")}
        got.append({**facts, "frames": plan.frames, "windows": [described(window) for window in plan.windows]})
    case.same(got, case.expect)


def align_table(case: Case) -> None:
    got = []
    for rate in case.args["rates"]:
        fps = Fraction(rate)
        grid = windows.stride_grid(fps)
        counts = {str(frames): windows.audio_tokens(frames, fps) for frames in case.args["frame_counts"]}
        got.append(
            {
                "fps": rate,
                "grid_latents": grid,
                "grid_frames": 8 * grid,
                "grid_tokens": int(200 * grid / fps),
                "audio_tokens": counts,
                "decoded_seconds": {frames: windows.decoded_seconds(tokens) for frames, tokens in counts.items()},
            }
        )
    case.same(got, case.expect)


def window_positions(case: Case) -> None:
    for index, row in enumerate(case.args):
        fps = Fraction(row["fps"])
        window = windows.Window(tuple(row["latents"]), (0, 0), tuple(row["audio"]))
        for layout, name in (("absolute", "absolute"), ("kept", "rebased"), ("rebuilt", "rebuilt")):
            video, audio = windows.window_spans(window, fps, layout)
            case.check(f"video_{name}_{index}", torch.tensor(video, dtype=torch.float64))
            case.check(f"audio_{name}_{index}", torch.tensor(audio, dtype=torch.float64))
        anchors = windows.anchor_spans(row["anchor_latents"], fps)
        case.check(f"anchor_{index}", torch.tensor(anchors, dtype=torch.float64))


def adain(case: Case) -> None:
    latents, reference = case.given("latents"), case.given("reference")
    for factor in case.args["factors"]:
        got = joining.adain(latents, reference, factor, case.args["per_frame"])
        assert factor or got.equal(latents)
        case.check(f"factor_{factor}", got)


def stat_norm(case: Case) -> None:
    args = case.args
    for factor in args["factors"]:
        got = joining.match_percentiles(
            case.given("latents"),
            factor,
            args["percentile"],
            args["target_mean"],
            args["target_std"],
            args["clip_outliers"],
        )
        assert factor or got.equal(case.given("latents"))
        case.check(f"factor_{factor}", got)


def smoothstep_schedules(case: Case) -> None:
    over_sigma = []
    for row in case.args["over_sigma"]:
        schedule = strength.StrengthOverSigma(
            row["sigma_from"], row["sigma_to"], row["strength_from"], row["strength_to"], row["order"]
        )
        values = strength.strengths_along(schedule, row["sigmas"])
        levels = [(1 - s) * sigma for s, sigma in zip(values, row["sigmas"], strict=False)]
        over_sigma.append({"strength": values, "token_sigma": levels})
    overlap = [
        strength.strength_over_overlap(row["overlap"], row["first"], row["last"], row["order"])
        for row in case.args["over_overlap"]
    ]
    case.same({"over_sigma": over_sigma, "over_overlap": overlap}, case.expect)


def held_tokens(case: Case) -> None:
    sigmas, clean, noise, x0 = case.args["sigmas"], case.given("clean"), case.given("noise"), case.given("x0")
    for index, strengths in enumerate(case.args["strengths"]):
        masks = [torch.full_like(clean[..., :1], 1 - s) for s in strengths]
        x, known, states = torch.zeros_like(clean), clean, []
        before = torch.full_like(masks[0], -1)  # nothing is there yet: every token is built
        for step, mask in enumerate(masks):
            x = strength.rebuild_tokens(x, before, mask, known, noise, sigmas[step])
            states.append(x)
            known = mask * x0[step] + (1 - mask) * clean
            x = known + sigmas[step + 1] / sigmas[step] * (x - known)
            before = mask
        case.check(f"states_{index}", torch.stack(states))
        case.check(f"result_{index}", x)


def tile_layout(dims: list[int], tiles: list[list[int]]) -> list[list[Any]]:
    return [split_by_count(dim, count, overlap) for dim, (count, overlap) in zip(dims, tiles, strict=True)]


def tile_weights(case: Case) -> None:
    boxes = []
    for index, row in enumerate(case.args):
        axes = tile_layout(row["dims"], row["tiles_overlaps"])
        tiles = product(*axes)
        boxes.append([[[axis.start, axis.end] for axis in tile] for tile in tiles])
        spread = []
        for tile, weights in zip(
            tiles, partition_of_unity(axes, row["dims"], row["ramp"] == "smoothstep"), strict=True
        ):
            whole = torch.zeros(row["dims"], dtype=torch.float64)
            whole[box_slices(tile)] = weights
            spread.append(whole)
        case.check(f"weights_{index}", torch.stack(spread))
    case.same({"boxes": boxes}, case.expect)


def tiled_step(case: Case) -> None:
    args, clip = case.args, case.given("clip")
    axes = tile_layout(args["dims"], args["tiles_overlaps"])
    x0 = torch.zeros_like(clip)
    for tile, weights, bias in zip(
        product(*axes), partition_of_unity(axes, args["dims"]), case.given("bias"), strict=True
    ):
        box = (slice(None), *box_slices(tile))
        x0[box] += weights * (clip[box] + bias[:, None, None, None])
    mask, sigma, following = case.given("mask"), args["sigma"], args["sigma_next"]
    blended = x0 * mask + case.given("clean") * (1 - mask)
    case.check("x0", x0)
    case.check("blended", blended)
    case.check("euler", blended + following / sigma * (case.given("x") - blended))
    case.check("resample", (1 - following) * blended + following * case.given("noise"))


def join_latents(case: Case) -> None:
    args = case.args
    case.check(
        "joined",
        joining.join_latents(case.given("first"), case.given("second"), args["overlap"], args["drop"], args["ramp"]),
    )


def oracle_stitch(case: Case) -> None:
    plan = windows_of(case.args)
    found = {"windows": [described(window) for window in plan.windows]}
    case.same({**found, "frames": plan.frames, "requested_frames": plan.requested_frames}, case.expect)
    video, audio = case.given("video"), case.given("audio")
    firm = {"overlap_strength": case.args["strength"], "overlap_curve": "hold"}
    with pytest.MonkeyPatch.context() as patch:
        clip = oracle_plan(plan, video.shape[3:], tuple(case.args["sigmas"]), sound=True, **firm)
        made = stitched(clip, OracleLedger(video, audio), patch)
    for name in ("video", "audio"):
        case.check(name, made[name])


def crossfade(case: Case) -> None:
    first, second, overlap = case.given("first"), case.given("second"), case.args["overlap"]
    for fade in ("linear", "equal_power", "matched"):
        got = joining.crossfade(first, second, overlap, fade, case.args["rho"])
        assert got.shape[-1] == case.expect["samples"]
        case.check(fade, got)
    measured = joining.overlap_correlation(first[0, -overlap:], second[0, :overlap])
    assert math.isclose(measured, case.expect["correlation_channel_0"], abs_tol=1e-9)


def measure(case: Case) -> None:
    args = case.args
    drift = metrics.drift(case.given("latents"), args["windows"])
    case.same(
        {
            "seam_energy": metrics.seam_energy(case.given("frame"), args["seam_column"], neighbours=args["neighbours"]),
            "sound_jump": metrics.sound_jump(
                case.given("sound"), args["cut"], args["rate"], args["half_window_seconds"]
            ),
            "mean_slope": drift.mean_slope,
            "log_std_slope": drift.log_std_slope,
        },
        case.expect,
    )
    case.check("mean_drift", drift.mean)
    case.check("log_std_drift", drift.log_std)


def pose_of(values: dict[str, Any]) -> geometry.Pose:
    return geometry.Pose(tuple(values["position"]), tuple(values["rotation"]))


def rotation_homography(case: Case) -> None:
    args = case.args
    first = geometry.Intrinsics(args["width"], args["height"], args["fov"])
    found = []
    for move in args["moves"]:
        half = math.tan(math.radians(args["fov"]) / 2) / move["zoom"]
        second = first._replace(fov=math.degrees(2 * math.atan(half)))
        pose = geometry.Pose(rotation=(move["pan"], move["tilt"], move["roll"]))
        found.append(geometry.rotation_homography(geometry.Pose(), pose, first, second))
    check_homographies(case, found)


def plane_homography(case: Case) -> None:
    args = case.args
    first = geometry.Intrinsics(args["width"], args["height"], args["fov"])
    found = [
        geometry.plane_homography(
            geometry.Pose(),
            pose_of(row),
            (first, first._replace(fov=row["fov"])),
            tuple(args["normal"]),
            args["distance"],
        )
        for row in args["poses"]
    ]
    check_homographies(case, found)


def check_homographies(case: Case, found: list[np.ndarray]) -> None:
    case.check("homographies", np.stack(found))
    points = case.given("points").numpy()
    case.check("points", np.stack([geometry.map_pixels(homography, points) for homography in found]))


def depth_reprojection(case: Case) -> None:
    args = case.args
    first = geometry.Intrinsics(args["width"], args["height"], args["fov"])
    second = first._replace(fov=args["pose"]["fov"])
    seen = warp.reproject(
        case.given("image"), case.given("depth").numpy(), geometry.Pose(), pose_of(args["pose"]), (first, second)
    )
    for name, got in seen._asdict().items():
        case.check("warped" if name == "image" else name, got)


def orbit(case: Case) -> None:
    args = case.args
    camera, start = geometry.Intrinsics(args["width"], args["height"], args["fov"]), pose_of(args["start"])
    target = start.centre + args["radius"] * start.matrix[:, 2]
    poses = [
        geometry.orbit(start, args["radius"], a, e) for a, e in zip(args["azimuth"], args["elevation"], strict=True)
    ]
    case.check("target", target)
    case.check("positions", np.stack([pose.centre for pose in poses]))
    case.check("rotations", np.stack([pose.matrix for pose in poses]))
    case.check("target_pixels", np.stack([geometry.project(target, pose, camera)[0] for pose in poses]))


def camera_path(case: Case) -> None:
    for interpolation in ("linear", "smoothstep", "cubic"):
        text = json.dumps({"keys": case.args["keys"], "interpolation": interpolation})
        keys = path.camera_path_from_json(text).frames(case.args["frames"], case.args["fps"])
        case.check(interpolation, np.array([[*key.pose.position, *key.pose.rotation, key.fov] for key in keys]))


OPERATIONS: dict[str, Callable[[Case], None]] = {
    "plan_windows": plan_windows,
    "align_table": align_table,
    "window_positions": window_positions,
    "adain": adain,
    "stat_norm": stat_norm,
    "smoothstep_schedules": smoothstep_schedules,
    "held_tokens": held_tokens,
    "tile_weights": tile_weights,
    "tiled_step": tiled_step,
    "join_latents": join_latents,
    "oracle_stitch": oracle_stitch,
    "crossfade": crossfade,
    "metrics": measure,
    "rotation_homography": rotation_homography,
    "plane_homography": plane_homography,
    "depth_reprojection": depth_reprojection,
    "orbit": orbit,
    "camera_path": camera_path,
}


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_case(folder: Path) -> None:
    case = Case(folder)
    OPERATIONS[case.operation](case)
    assert not case.unchecked, f"{case.name}: nothing computed {sorted(case.unchecked)}"


def test_there_are_cases() -> None:
    assert len(CASES) >= 15
