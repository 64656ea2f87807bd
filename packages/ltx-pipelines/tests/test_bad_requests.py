"""Requests that cannot work: each is refused in one line that names the field, before any weight is read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.golden.case import TINY_CHECKPOINT

from ltx_core.loader.lora import is_lora
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_pipelines.cli.app import run
from ltx_pipelines.utils.media_io import write_png, write_video

SIZE = "-H 64 -W 64 -f 17 --no-snap"
IMAGE = f"distilled -p x {SIZE} --image"
# Line -> what its one line of error must say. {folder} holds the files made below.
REFUSED = {
    "distilled -p x -H 100 -W 64 -f 9 --no-snap": ("height is 100", "nearest valid: 128"),
    "ti2vid-one-stage -p x -H 64 -W 100 -f 9 --no-snap": ("width is 100", "nearest valid: 96"),
    "distilled -p x -H 64 -W 64 -f 12 --no-snap": ("frames is 12", "nearest valid: 9"),
    f"distilled -p x {SIZE} --frame-rate 0": ("frame_rate is 0", "positive"),
    f"distilled -p x {SIZE} --frame-rate -24": ("frame_rate is -24.0", "positive"),
    f"distilled {SIZE}": ("prompt is empty",),
    f"distilled -p x {SIZE} --seed 99999999999999999999": ("seed is 99999999999999999999", "64-bit"),
    f"ti2vid-one-stage -p x {SIZE} --steps 0": ("num_inference_steps is 0", "nearest valid: 1"),
    f"ti2vid-one-stage -p x {SIZE} --max-batch-size 0": ("max_batch_size is 0", "nearest valid: 1"),
    f"ti2vid-one-stage -p x {SIZE} --video-stg-blocks 99": ("stg_blocks", "99", "nearest valid: 1"),
    f"distilled -p x {SIZE} --sigmas 0.5 0.9 0": ("sigmas", "falling"),
    f"{IMAGE} {{folder}}/none.png": ("none.png", "No such file"),
    f"{IMAGE} {{folder}}/broken.png": ("broken.png", "cannot"),
    f"{IMAGE} {{folder}}/still.png 99": ("frame_idx is 99", "0 to 16", "nearest valid: 16"),
    f"{IMAGE} {{folder}}/still.png 0 1.5": ("image strength is 1.5", "nearest valid: 1"),
    f"{IMAGE} {{folder}}/still.png 0 1 99": ("image crf is 99", "0 to 51"),
    f"distilled -p x {SIZE} --num-generated-keyframes 2": ("generated_keyframes", "LTX-2.5"),
    f"distilled -p x {SIZE} --lora {{folder}}/none.safetensors": ("none.safetensors", "does not exist"),
    f"distilled -p x {SIZE} --lora {{folder}}/foreign.safetensors": (
        "foreign.safetensors",
        "names no module of this model",
    ),
    "distilled -p x -H 64 -W 64 --auto-duration 5 2": ("5.0 to 2.0", "min <= max"),
    "distilled -p x -H 64 -W 64 --auto-duration 1 5": ("duration head", "number of frames"),
    f"distilled -p x {SIZE} -m {{folder}}/none": ("none", "neither a file"),
    f"distilled -p x {SIZE} -m {{folder}}/weights.safetensors": ("weights.safetensors",),
    f"distilled -p x {SIZE} --spatial-upsampler-path {{folder}}/none": ("spatial_upsampler", "does not exist"),
    f"distilled -p x {SIZE} --quantization fp8-cats": ("quantization is 'fp8-cats'", "fp8-cast"),
    f"distilled -p x {SIZE} --policy resistent": ("policy is 'resistent'", "nearest valid: resident"),
    f"distilled -p x {SIZE} --device cuda:63": ("device is 'cuda:63'", "ltx doctor"),
    f"distilled -p x {SIZE} -o {{folder}}/clip.avi": ("clip.avi", "nearest valid: clip.mp4"),
    f"distilled -p x {SIZE} -o {{folder}}/still.png/clip.mp4": ("still.png", "cannot be written"),
    "t2a -p x -f 17 -o {folder}/sound.ogg": ("sound.ogg", "nearest valid: sound.wav"),
    "distilled -p x -H 64 -W 64 -f 9 -o {folder}/new.png": ("output is new.png", "nearest valid: new.mp4"),
    f"a2v -p x {SIZE}": ("audio_path is not given",),
    f"a2v -p x {SIZE} --audio-path {{folder}}/silent.mp4": ("silent.mp4", "no sound"),
    "retake -p x --video-path {folder}/silent.mp4 --start 0.5 --end 0.2": ("0.5 to 0.2", "start < end"),
    "retake -p x --video-path {folder}/silent.mp4 --start 90 --end 95": ("90", "0.7"),
    "retake -p x --video-path {folder}/silent.mp4 --start 0.5 --end 0.9": ("end_time is 0.9", "nearest valid: 0.708"),
    "v2a -p x --video-path {folder}/silent.mp4 -o a.gif --crf 10": ("crf is for .mp4", "not a.gif"),
    "v2a -p x --video-path {folder}/silent.mp4 --background blak": ("background is 'blak'", "nearest valid: black"),
    "retake -p x --video-path {folder}/still.txt --start 0 --end 1": ("still.txt",),
    "extend -p x --video-path {folder}/silent.mp4 --seconds -1": ("extend_seconds is -1", "more than 0"),
    "extend -p x --video-path {folder}/silent.mp4 --seconds 1 --direction up": ("direction is 'up'", "after"),
    f"ic-lora -p x {SIZE}": ("video_conditioning is empty",),
    "ic-lora -p x -H 128 -W 128 -f 17 --video-conditioning {folder}/silent.mp4 7": (
        "reference strength is 7",
        "1.0",
    ),
}
# Lines that are wrong whatever the files are: exit code 2.
MISSPELLED = {
    "distilled -p x --steps 5": ("--steps has no effect in `ltx distilled`",),
    "distilled -p x --heigth 64": ("--heigth", "--height"),
    "distilled -p x --image a.png first": ("'first' is not an integer", "FRAME"),
    "generate -p x --video v.mp4 --image a.png": ("--image", "no effect in v2a-one-stage"),
    "generate a -p b": ("given twice",),
    "generate x --transformer-path a --gemma-root b": ("split model",),
    "generate x --duration 2 -f 9": ("length is given twice",),
    "generate x --offload cpu --policy auto": ("--offload and --policy",),
    "generat x": ("did you mean generate?",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files that are wrong in one way each."""
    path = tmp_path_factory.mktemp("bad")
    write_png(path / "still.png", torch.zeros(64, 64, 3, dtype=torch.uint8))
    (path / "broken.png").write_bytes((path / "still.png").read_bytes()[:40])
    (path / "still.txt").write_text("not a clip")
    write_video(path / "silent.mp4", [torch.zeros(17, 64, 64, 3)], 24.0)
    save_file({"weight": torch.zeros(2)}, path / "weights.safetensors")
    names = ("lora_A", "lora_B")
    foreign = {f"diffusion_model.double_blocks.0.{name}.weight": torch.zeros(2, 2) for name in names}
    save_file(foreign, path / "foreign.safetensors")
    return path


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a tensor of any file but an adapter ends the test."""
    read = SafetensorsFile.read

    def refuse(self: SafetensorsFile, name: str) -> Any:
        assert is_lora(self.tensors), f"{name} of {self.path} was read"
        return read(self, name)

    monkeypatch.setattr(SafetensorsFile, "read", refuse)
    monkeypatch.setenv("LTX_MODEL", str(TINY_CHECKPOINT))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("line", REFUSED)
def test_refused_in_one_line(line: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = line.format(folder=folder).split()
    if "-o" not in arguments:
        arguments += ["-o", str(tmp_path / ("sound.wav" if arguments[0] == "t2a" else "clip.mp4"))]
    began = time.process_time()
    assert run([*arguments, "--quiet"]) == 1
    assert time.process_time() - began < 1
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("ltx: "), said
    for piece in REFUSED[line]:
        assert piece in said[0]
    assert "Traceback" not in said[0] and "internal error" not in said[0]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("line", MISSPELLED)
def test_wrong_lines(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    said = " ".join(capfd.readouterr().err.replace("│", " ").split())
    for piece in MISSPELLED[line]:
        assert piece in said
