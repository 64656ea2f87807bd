"""HDR clips: EXR files in and out, a master that players show, and what is refused before anything is loaded."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from ltx_core.errors import LtxError
from ltx_core.types import VideoPixelShape
from ltx_media.color import ACESCCT, LOGC3, HDRColorSpace, Primaries, from_working_codes, rec709_light
from ltx_media.exr import exr_frames, read_exr, write_exr
from ltx_pipelines.cli.app import run as ltx
from ltx_pipelines.hdr_ic_lora import HDRICLoraPipeline
from ltx_pipelines.ic_lora import ICLoraPipeline
from ltx_pipelines.planning.plan import ReferenceCondition
from ltx_pipelines.running.conditions import wanted_image, wanted_reference
from ltx_pipelines.running.decoding import cut_frames
from ltx_pipelines.running.stage_inputs import StageInputs, join_tiles, references_of, tile_inputs, tile_stages
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.utils.media_io import normalize_source, write_video

SPACES = list(HDRColorSpace)
LINE = "generate a-bell --device cpu --hdr acescg -i light.exr 0 1 -o"


@pytest.fixture
def light() -> torch.Tensor:
    """Light ``[64, 64, 3]`` from deep shadow to eight times diffuse white."""
    return torch.linspace(0.01, 8, 64 * 64 * 3).reshape(64, 64, 3)


@pytest.mark.parametrize("space", SPACES)
def test_codes_become_what_the_color_space_says_and_the_same_light_for_the_master(
    light: torch.Tensor, space: HDRColorSpace
) -> None:
    codes = ACESCCT.working_from(light.permute(2, 0, 1)[None], Primaries.REC709)[0].permute(1, 2, 0)
    stored = from_working_codes(codes, ACESCCT, space)
    assert torch.allclose(rec709_light(stored, space), light, rtol=1e-3, atol=1e-3)
    assert (stored.max() <= 1) == (space is HDRColorSpace.ACESCCT)


def test_logc3_codes_of_an_adapter_become_light_too(light: torch.Tensor) -> None:
    stored = from_working_codes(LOGC3.compress(light), LOGC3, HDRColorSpace.SRGB_LINEAR)
    assert torch.allclose(stored, light, rtol=1e-3, atol=1e-3)


def test_pictures_enter_as_codes_whatever_they_are(here: Path, light: torch.Tensor) -> None:
    write_exr("light.exr", light, HDRColorSpace.SRGB_LINEAR)
    pipeline = TI2VidOneStagePipeline.from_pretrained(device="cpu")
    plan = pipeline.plan("a bell", images=["light.exr", ("photo.png", 8, 1.0, 0)], hdr="srgb_linear")
    assert plan.hdr == "SRGB_LINEAR"
    exr, png = (
        normalize_source(one.path, wanted_image(one, plan.shape, pipeline.ledger, plan)).video
        for one in plan.stages[0].streams["video"].conditions
    )
    expected = ACESCCT.working_from(read_exr("light.exr").permute(2, 0, 1)[None], Primaries.REC709)
    assert exr.shape == png.shape == (1, 3, 1, plan.shape.height, plan.shape.width)
    assert abs(exr.mean().item() - (expected * 2 - 1).mean().item()) < 0.02
    assert png.max() < 2 * 0.56 - 1, "diffuse white is code 0.55"


def test_a_clip_is_written_as_exr_files_and_as_a_master(here: Path, light: torch.Tensor) -> None:
    write_exr("light.exr", light, HDRColorSpace.ACESCG)
    assert ltx([*LINE.split(), "hdr.mp4"]) == 0
    files = exr_frames("hdr_exr")
    with av.open("hdr.mp4") as master:
        stream = master.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.codec_context.color_trc) == (
            "hevc",
            "yuv420p10le",
            18,
        )
        assert sum(1 for _ in master.decode(video=0)) == len(files) == 9
        assert master.streams.audio
    assert b"ACEScg" in files[0].read_bytes()[:600]
    assert ltx([*LINE.split(), "frames"]) == 0
    again = exr_frames("frames")
    assert all(torch.equal(read_exr(one), read_exr(two)) for one, two in zip(files, again, strict=True))
    assert ltx(["rerun", "hdr.mp4", "-o", "twice.mp4", "--device", "cpu"]) == 0
    assert torch.equal(read_exr(exr_frames("twice_exr")[4]), read_exr(files[4]))


def test_a_folder_of_exr_files_is_followed(here: Path, light: torch.Tensor) -> None:
    Path("shot").mkdir()
    for index in range(9):
        write_exr(f"shot/{index:03d}.exr", light, HDRColorSpace.SRGB_LINEAR)
    pipeline = ICLoraPipeline.from_pretrained(loras=["ic-lora.safetensors"], device="cpu")
    plan = pipeline.plan("a bell", video_conditioning=["shot"], hdr="SRGB_LINEAR", height=128, width=128)
    stage = plan.stages[0]
    (reference,) = (one for one in stage.streams["video"].conditions)
    clip = normalize_source(reference.path, wanted_reference(reference, stage.shape, plan)).video
    assert clip.shape[2] == 9 and clip.abs().max() <= 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("-i light.exr -o a.mp4", "light.exr is HDR and needs its colour space"),
        ("--hdr acescg -o a.gif", "output is a.gif"),
        ("--hdr acescg -i photo.png --camera 'pan left 4' -o a.mp4", "expected no camera in an HDR clip"),
        ("--hdr acescg --crf 3 -o a.mp4", "crf has no effect on an HDR clip"),
        ("--hdr rec2020 -o a.mp4", "hdr is 'rec2020'"),
        ("--hdr acescg -o taken.mp4", "taken_exr is there already"),
    ],
)
def test_what_cannot_be_is_refused_first(
    here: Path, light: torch.Tensor, line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_exr("light.exr", light, HDRColorSpace.SRGB_LINEAR)
    Path("taken_exr").mkdir()
    Path("taken_exr/frame_00000.exr").touch()
    assert ltx(["generate", "a-bell", "--device", "cpu", *shlex.split(line)]) != 0
    assert says in capsys.readouterr().err
    assert not Path("a.mp4").exists()


def test_other_tasks_refuse_it(here: Path) -> None:
    with pytest.raises(LtxError, match="hdr"):
        TI2VidOneStagePipeline.from_pretrained(device="cpu").plan("a bell", hdr="P3")


# An SDR clip made HDR -------------------------------------------------------------------------------------------------


def test_an_sdr_clip_becomes_hdr_by_its_adapter(hdr_adapter: Path) -> None:
    line = "hdr-ic-lora clip.mp4 --lora hdr-lora.safetensors --device cpu -q"
    assert ltx(shlex.split(f"{line} --text-embeddings scene-emb.safetensors -o light.mp4")) == 0
    files = exr_frames("light_exr")
    assert len(files) == 17 and read_exr(files[0]).shape == (64, 64, 3)
    with av.open("light.mp4") as master:
        assert not master.streams.audio
    assert ltx(shlex.split(f"{line} light -o same")) == 0, "the prompt that was encoded before"
    again = exr_frames("same")
    assert all(torch.equal(read_exr(one), read_exr(two)) for one, two in zip(files, again, strict=True))
    assert ltx(shlex.split("rerun light.mp4 -o twice --device cpu -q")) == 0
    assert torch.equal(read_exr(exr_frames("twice")[9]), read_exr(files[9]))


def test_its_plan(hdr_adapter: Path) -> None:
    write_video("odd.mp4", torch.zeros(1, 12, 100, 200, 3).unbind(0), 25.0)
    pipeline = HDRICLoraPipeline.from_pretrained(loras=["hdr-lora.safetensors"], device="cpu")
    given: dict[str, Any] = {"video_path": "odd.mp4", "text_embeddings": "scene-emb.safetensors"}
    plan, fine = pipeline.plan(**given), pipeline.plan(**given, high_quality_hdr=True)
    first, second = plan.stages
    assert (first.shape[1:], second.shape[1:]) == ((17, 64, 128, 25.0), (17, 128, 256, 25.0))
    assert (second.sigmas, second.tiles, second.apart) == ((0.909375, 0.725, 0.0), ((2, 1), (2, 2), (2, 6)), True)
    assert plan.shape[1:] == (12, 100, 200, 25.0) and plan.transfer == "logc3" and plan.hdr == "SRGB_LINEAR"
    assert (fine.stages[1].shape.frames, fine.stages[1].shape.fps, fine.shape) == (33, 50.0, plan.shape)
    (reference,) = second.streams["video"].conditions
    assert isinstance(reference, ReferenceCondition)
    half, whole = (wanted_reference(reference, stage.shape, plan) for stage in plan.stages)
    assert (half.shrink, half.color_space, whole.shrink) == (2, None, 1), "seen as SDR, at the scale of the stage"
    assert wanted_reference(reference, fine.stages[1].shape, fine).fps == 50.0, "each frame is seen twice"


def test_half_of_the_frames_made_are_kept() -> None:
    frames = torch.arange(33.0)[:, None, None, None].expand(-1, 2, 2, 3)
    kept = torch.cat(list(cut_frames(iter(frames.split(5)), VideoPixelShape(1, 15, 2, 1, 24.0), 2)))
    assert kept[:, 0, 0, 0].tolist() == list(range(0, 30, 2)) and kept.shape == (15, 2, 1, 3)


def test_tiles_that_are_made_apart_fit_together(hdr_adapter: Path) -> None:
    pipeline = HDRICLoraPipeline.from_pretrained(loras=["hdr-lora.safetensors"], device="cpu")
    write_video("wide.mp4", torch.zeros(1, 33, 256, 512, 3).unbind(0), 24.0)
    stage = pipeline.plan("light", video_path="wide.mp4").stages[1]
    (reference,) = references_of(stage)
    parts = tile_stages(stage, pipeline.ledger.scale_factors)
    video = torch.randn(1, 4, 5, 8, 16)
    inputs = StageInputs({"video": video}, references={replace(reference, downscale_factor=2): video[..., ::2, ::2]})
    cut = [tile_inputs(inputs, box) for box, _ in parts]
    assert len(parts) == 8 and {part.tiles for _, part in parts} == {None}
    for (_, part), begins in zip(parts, cut, strict=True):
        _, _, frames, height, width = begins.latents["video"].shape
        assert part.shape[1:4] == (8 * frames - 7, 32 * height, 32 * width)
        assert all(one.shape[2] == frames and one.shape[4] >= width / 2 for one in begins.references.values())
    joined = join_tiles([box for box, _ in parts], [begins.latents for begins in cut], video)
    assert torch.allclose(joined["video"], video, atol=1e-6)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--lora hdr-lora.safetensors", "expected text_embeddings"),
        ("light", "0 adapters are given, expected the one that makes clips HDR"),
        ("light --lora ic-lora.safetensors", "hdr_transform is None, expected logc3 or acescct"),
        ("light --lora hdr-lora.safetensors --text-embeddings scene-emb.safetensors", "expected text_embeddings"),
        ("--lora hdr-lora.safetensors --text-embeddings hdr-lora.safetensors", "which holds no video_context"),
        ("light --lora hdr-lora.safetensors -o a.gif", "output is a.gif"),
    ],
)
def test_what_makes_no_clip_hdr(hdr_adapter: Path, line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ltx(shlex.split(f"hdr-ic-lora clip.mp4 --device cpu {line}")) != 0
    assert says in capsys.readouterr().err
