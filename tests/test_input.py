"""Every kind of file in docs/input.md, made small, with the right answer."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ltx_core.errors import ConfigError, MediaError
from ltx_core.types import Audio, SpatioTemporalScaleFactors, VideoPixelShape
from ltx_media.audio import read_audio, write_wav
from ltx_media.color import HDRColorSpace
from ltx_media.containers import read_recipe
from ltx_media.exr import write_exr
from ltx_media.files import MACHINE
from ltx_media.images import decode_image, write_png
from ltx_media.pixels import Look
from ltx_media.source import Wanted, changes_of, normalize_source, sound_changes
from ltx_media.video import probe_video, read_frames, read_frames_at
from ltx_media.writer import write_video
from ltx_pipelines.cli.errors import exit_code
from ltx_pipelines.cli.progress import Reporter
from ltx_pipelines.cli.trust import Finder
from ltx_pipelines.extend import ExtendPipeline
from ltx_pipelines.ic_lora import ICLoraPipeline
from ltx_pipelines.ltx_video.media import read_media, wanted_media
from ltx_pipelines.planning.layout import PaddedSize
from ltx_pipelines.planning.plan import ModelFiles, Plan
from ltx_pipelines.retake import RetakePipeline
from ltx_pipelines.running.conditions import attention_mask
from ltx_pipelines.running.kept import kept_frames, kept_sound, what_is_kept
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.running.output import check_output
from ltx_pipelines.running.recipe import recipe_for
from ltx_pipelines.utils.model_ledger import ModelLedger
from ltx_pipelines.v2a_one_stage import V2AOneStagePipeline
from tests.golden.case import TINY_CHECKPOINT

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "input.md"
KINDS: dict[str, Callable[[Path], None]] = {}


def kind(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register the check of a row."""

    def keep(check: Callable[[Path], None]) -> Callable[[Path], None]:
        KINDS[name] = check
        return check

    return keep


def rows() -> list[str]:
    found = re.findall(r"^\| ([^|]+?) \| [^|]+ \|$", DOCUMENT.read_text(), re.MULTILINE)
    return [row for row in found if row != "kind"]


# Files ----------------------------------------------------------------------------------------------------------------


def raw(path: Path, planes: list[np.ndarray], times: list[int] | None = None, **options) -> Path:
    """A silent clip through PyAV alone: frames in `format`, frame i shown at `times[i]` ms (25 fps where not given)."""
    pixel_format, codec = options.pop("format", "yuv420p"), options.pop("codec", "libx264")
    width, height = options.pop("size", (64, 48))
    aspect, colors = options.pop("aspect", None), options.pop("colors", None)
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream(codec, rate=25 if times is None else 1000, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if colors:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace, context.color_range = colors
        for index, plane in enumerate(planes):
            frame = av.VideoFrame.from_ndarray(plane, format=pixel_format)
            frame.pts, frame.time_base = (40 * index if times is None else times[index]), Fraction(1, 1000)
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode())
    return path


def grey(level: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """yuv420p planes of one grey."""
    planes = np.full((size[1] * 3 // 2, size[0]), 128, np.uint8)
    planes[: size[1]] = level
    return planes


def ten_bits(code: float, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """yuv420p10le planes of one grey signal in [0, 1], limited range."""
    planes = np.full((size[1] * 3 // 2, size[0]), 512, np.uint16)
    planes[: size[1]] = round(code * 876 + 64)
    return planes


def levels(frames) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in frames]


def wanted(**more) -> Wanted:
    return Wanted(**{"height": 48, "width": 64, **more})


def changed(path: Path, **more) -> dict[str, str]:
    """What is changed of a file, by kind; the same is told from the header and by reading."""
    told = changes_of(probe_video(path), wanted(**more))
    assert normalize_source(path, wanted(**more)).changes == told
    return dict(told)


def refused(path: Path, read: Callable[[Path], object], *words: str) -> None:
    with pytest.raises(MediaError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def tone(seconds: float, rate: int = 16000, channels: int = 2) -> Audio:
    return Audio(torch.sin(torch.arange(round(seconds * rate)) * 0.2).expand(channels, -1) * 0.5, rate)


# Clips ----------------------------------------------------------------------------------------------------------------


@kind("turned by a phone")
def turned(folder: Path) -> None:
    path = folder / "a.mp4"
    picture = torch.zeros(48, 64, 3)
    picture[:24, :32, 0] = 1  # red at the top left
    write_video(path, picture.expand(3, -1, -1, -1), 25)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8
    data[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frame = next(read_frames(path))
    assert frame.shape == (64, 48, 3) and frame[8, 40, 0] > 200 and frame[8, 8, 0] < 50
    assert changed(path, height=64, width=48) == {"rotation": "turned upright by 90 degrees"}


@kind("pixels that are not square")
def not_square(folder: Path) -> None:
    path = raw(folder / "a.mp4", [grey(100)] * 2, aspect=Fraction(3, 2))
    assert (probe_video(path).width, probe_video(path).height) == (96, 48)
    assert next(read_frames(path)).shape == (48, 96, 3)
    assert changed(path, width=96) == {"pixels": "pixels 1.5 times as wide as high made square"}


@kind("frames of varying length")
def varying(folder: Path) -> None:
    for suffix in ("mp4", "mkv"):
        times = [0, 40, 80, 500, 540, 900]  # the colour changes at 0.5 s
        planes = [grey(60)] * 3 + [grey(200)] * 3
        path = raw(folder / f"a.{suffix}", planes, times)
        seen = levels(read_frames_at(path, 24, 21))
        assert next(index for index, level in enumerate(seen) if level > 128) == 12  # 0.500 s
        source = normalize_source(path, wanted(fps=24, frames=21))
        assert source.fps == 24 and (source.video[0, 0, :, 0, 0] > 0).tolist() == [False] * 12 + [True] * 9
        assert "frames of varying length sampled by time at 24 fps" in changed(path, fps=24)["rate"]


@kind("another frame rate")
def another_rate(folder: Path) -> None:
    path = folder / "a.mp4"
    write_video(path, torch.stack([torch.full((48, 64, 3), i / 60) for i in range(60)]), 30)
    source = normalize_source(path, wanted(fps=24, frames=48))
    exact = torch.tensor([int(k * 30 / 24 + 0.1) / 30 - 1 for k in range(48)])
    assert (source.video[0, 0, :, 0, 0] - exact).abs().max() < 0.02
    assert changed(path, fps=24) == {"rate": "30 fps sampled by time at 24 fps"}


@kind("starts later than 0")
def starts_later(folder: Path) -> None:
    path = folder / "a.mkv"
    with av.open(str(path), "w") as sink:
        video, sound = sink.add_stream("ffv1", rate=25), sink.add_stream("pcm_s16le", rate=16000, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for index in range(25):
            frame = av.VideoFrame.from_ndarray(grey(235 if index == 10 else 16), format="yuv420p")
            frame.pts, frame.time_base = 5000 + 40 * index, Fraction(1, 1000)
            sink.mux(video.encode(frame))
        click = np.zeros((1, 8000), np.int16)
        click[0, :400] = 20000
        frame = av.AudioFrame.from_ndarray(click, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 5400 * 16, Fraction(1, 16000)
        sink.mux([*video.encode(), *sound.encode(frame), *sound.encode()])
    assert levels(read_frames_at(path, 25)).index(255) == 10
    audio = read_audio(path)
    assert audio is not None
    assert int(audio.waveform[0, 0].nonzero()[0]) == pytest.approx(0.4 * 16000, abs=16)


@kind("no colour tags")
def no_tags(folder: Path) -> None:
    for height, green in ((720, 24), (480, 0)):
        planes = np.empty((height * 3 // 2, 64), np.uint8)
        planes[:height], planes[height : height * 5 // 4], planes[height * 5 // 4 :] = 81, 90, 240
        path = raw(folder / f"{height}.mp4", [planes], size=(64, height), codec="mpeg4", qscale="1")
        assert int(next(read_frames(path))[32, 32, 1]) == pytest.approx(green, abs=3)


@kind("full range")
def full_range(folder: Path) -> None:
    for colors, level in (((1, 1, 1, 2), 200), ((1, 1, 1, 1), round((200 - 16) / 219 * 255))):
        path = raw(folder / f"{colors[3]}.mp4", [grey(200)], colors=colors, crf="0")
        assert levels(read_frames(path)) == [pytest.approx(level, abs=1)]


@kind("HDR, PQ")
def pq(folder: Path) -> None:
    check_hdr(folder, 16, "PQ", {0.58069: 1.0, 0.50807: 0.4926, 0.0: 0.0, 0.75183: 1000 / 203})


@kind("HDR, HLG")
def hlg(folder: Path) -> None:
    check_hdr(folder, 18, "HLG", {0.75: 1.0, 0.5: (1 / 12) ** 1.2 * 1000 / 203, 0.0: 0.0, 1.0: 1000 / 203})


def check_hdr(folder: Path, transfer: int, name: str, light: dict[float, float]) -> None:
    """Grey signals are the light of the standard; tone mapping keeps what is dark and the order of highlights."""
    path = raw(
        folder / "a.mp4",
        [ten_bits(code) for code in light],
        format="yuv420p10le",
        codec="libx265",
        colors=(9, transfer, 9, 1),
        **{"x265-params": "log-level=none:lossless=1"},
    )
    kept = torch.stack(list(read_frames(path, look=Look(hdr=True))))
    assert kept[:, 0, 0] == pytest.approx(torch.tensor(list(light.values()))[:, None].expand(-1, 3), rel=0.01, abs=1e-3)
    shown = dict(zip(light.values(), levels(read_frames(path)), strict=True))
    assert shown[0.0] == 0 and shown[1.0] == pytest.approx(243, abs=2) and shown[1000 / 203] == 255
    middle = sorted(shown)[1]  # below the knee: the sRGB code of that light
    assert shown[middle] == pytest.approx(255 * (1.055 * middle ** (1 / 2.4) - 0.055), abs=2)
    assert changed(path) == {"colour": f"HDR ({name}) tone-mapped to SDR"}
    assert changed(path, color_space=HDRColorSpace.ACESCCT) == {}
    codes = normalize_source(path, wanted(color_space=HDRColorSpace.ACESCCT)).video
    assert codes[0, :, list(light.values()).index(1.0), 0, 0] == pytest.approx(
        0.5548 * 2 - 1, abs=0.003
    )  # ACEScct of 1


@kind("transparent")
def transparent(folder: Path) -> None:
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[..., 0], pixels[:, 32:, 3] = 250, 255  # red; the left half is transparent
    path = raw(folder / "a.mov", [pixels], format="rgba", codec="png")
    assert next(read_frames(path))[0, [0, 63]].tolist() == [[0, 0, 0], [250, 0, 0]]
    assert next(read_frames(path, look=Look("blue")))[0, [0, 63]].tolist() == [[0, 0, 255], [250, 0, 0]]
    assert changed(path, background="blue") == {"background": "transparent parts filled with blue"}
    with pytest.raises(ConfigError, match=r"^background is 'bleu'"):
        next(read_frames(path, look=Look("bleu")))


@kind("longer than wanted")
def longer(folder: Path) -> None:
    path = raw(folder / "a.mp4", [grey(16 + 5 * index) for index in range(30)])
    assert normalize_source(path, wanted(frames=25)).video.shape[2] == 25
    assert changed(path, frames=25) == {"length": "1.20 s cut to 1.00 s"}
    assert changed(path, frames=30) == changed(path, frames=99) == {}


@kind("another shape")
def another_shape(folder: Path) -> None:
    path = raw(folder / "a.mp4", [grey(100)])
    assert normalize_source(path, wanted(height=32, width=96)).video.shape == (1, 3, 1, 32, 96)
    assert changed(path, height=32, width=96) == {"size": "64 x 48 scaled and cropped to 96 x 32"}
    assert changed(path, height=96, width=128) == {"size": "64 x 48 scaled to 128 x 96"}


@kind("sides off the grid")
def off_the_grid(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (46, 50, 3), np.uint8)
    path = folder / "a.png"
    Image.fromarray(pixels).save(path)
    video = normalize_source(path, wanted(height=64, width=64, fit="mirror")).video[0, :, 0]
    got = ((video + 1) * 127.5).round().byte().permute(1, 2, 0)
    assert torch.equal(got[:46, :50], torch.from_numpy(pixels))
    assert torch.equal(got[46:, :50], torch.from_numpy(pixels).flip(0)[1:19])
    assert changed(path, height=64, width=64, fit="mirror") == {
        "size": "50 x 46 continued by its mirror image to 64 x 64"
    }


def cut(folder: Path, name: str, keep: float) -> Path:
    write = folder / name
    planes = [np.random.default_rng(index).integers(0, 256, (72, 64), np.uint8) for index in range(20)]
    raw(write, planes)
    data = write.read_bytes()
    write.write_bytes(data[: int(len(data) * keep)])
    return write


@kind("cut off, MP4")
def cut_mp4(folder: Path) -> None:
    for keep in (0.3, 0.9, 0.999):
        path = cut(folder, "a.mp4", keep)
        for read in (probe_video, read_audio, lambda path: next(read_frames(path))):
            refused(path, read, "bytes are missing at its end")


@kind("cut off, Matroska")
def cut_matroska(folder: Path) -> None:
    for keep in (0.3, 0.9, 0.999):
        refused(cut(folder, "a.mkv", keep), probe_video, "bytes are missing at its end")


@kind("sound only")
def sound_only(folder: Path) -> None:
    write_wav(folder / "a.wav", tone(0.1))
    refused(folder / "a.wav", probe_video, "no picture")


@kind("foreign or empty")
def foreign(folder: Path) -> None:
    for name in ("a.mp4", "a.png", "a.wav", "a.exr"):
        for content in (b"", b"hello " * 50):
            (folder / name).write_bytes(content)
            refused(folder / name, probe_video)


@kind("not there")
def not_there(folder: Path) -> None:
    for name in ("a.mp4", "a.png", "a.heic"):
        refused(folder / name, probe_video, "No such file")


# Pictures -------------------------------------------------------------------------------------------------------------


def marked(mode: str = "RGB") -> Image.Image:
    """8 wide, 6 high, red in the top left corner."""
    image = Image.new("RGB", (8, 6), (20, 40, 60))
    image.paste((250, 0, 0), (0, 0, 2, 2))
    return image.convert(mode)


@kind("turned by EXIF")
def turned_picture(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    marked().save(folder / "a.png", exif=exif)
    assert decode_image(folder / "a.png")[0, 5].tolist() == [250, 0, 0]
    assert (probe_video(folder / "a.png").width, probe_video(folder / "a.png").height) == (6, 8)
    assert changed(folder / "a.png", height=8, width=6) == {"rotation": "turned upright by 90 degrees"}


@kind("colour profile")
def profile(folder: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    marked().save(folder / "a.png", icc_profile=srgb)
    assert torch.equal(decode_image(folder / "a.png"), torch.from_numpy(np.array(marked())))
    swapped = srgb.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)
    marked().save(folder / "b.png", icc_profile=swapped)
    red, _, blue = decode_image(folder / "b.png")[0, 0].tolist()
    assert red < 20 and blue > 240


@kind("broken colour profile")
def broken_profile(folder: Path) -> None:
    marked().save(folder / "a.png", icc_profile=b"nothing")
    assert torch.equal(decode_image(folder / "a.png"), torch.from_numpy(np.array(marked())))


@kind("16-bit grey")
def grey16(folder: Path) -> None:
    Image.fromarray(np.full((6, 8), 200 * 257, np.uint16)).save(folder / "a.png")
    assert (decode_image(folder / "a.png") == 200).all()


@kind("grey, palette or CMYK")
def modes(folder: Path) -> None:
    for mode in ("L", "P", "CMYK", "1"):
        marked(mode).save(folder / "a.tiff")
        assert decode_image(folder / "a.tiff").shape == (6, 8, 3)


@kind("transparent picture")
def transparent_picture(folder: Path) -> None:
    image = marked("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 0, 0, 0, 255, 255, 255, 255]]), 6, 0)))
    palette = Image.new("P", (8, 6), 0)
    palette.putpalette([9, 9, 9, 20, 40, 60])
    palette.paste(1, (4, 0, 8, 6))
    image.save(folder / "a.png")
    palette.save(folder / "b.png", transparency=0)
    for name in ("a.png", "b.png"):
        assert decode_image(folder / name)[5, [0, 7]].tolist() == [[0, 0, 0], [20, 40, 60]]
        assert decode_image(folder / name, "#010203")[5, 0].tolist() == [1, 2, 3]
        assert "background" in changed(folder / name)


@kind("HEIC")
def heic(folder: Path) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    Image.new("RGB", (64, 48), (200, 30, 40)).save(folder / "a.heic", quality=100)
    assert (decode_image(folder / "a.heic").float().mean((0, 1)) - torch.tensor([200.0, 30, 40])).abs().max() < 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        refused(folder / "a.heic", decode_image, "pip install pillow-heif")


@kind("over 178 million pixels")
def oversized(folder: Path) -> None:
    Image.new("1", (15000, 12000)).save(folder / "a.png")
    refused(folder / "a.png", decode_image, "too many pixels")


@kind("100 times as wide as high")
def thread(folder: Path) -> None:
    Image.new("L", (100_000, 1)).save(folder / "a.png")
    refused(folder / "a.png", decode_image, "100000 x 1")


@kind("cut off picture")
def cut_picture(folder: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp"):
        Image.effect_noise((64, 64), 50).save(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        refused(folder / name, probe_video, "cannot read image")


@kind("EXR")
def exr(folder: Path) -> None:
    write_exr(folder / "a.exr", torch.full((48, 64, 3), 1.0), HDRColorSpace.ACESCG)
    refused(folder / "a.exr", lambda path: normalize_source(path, wanted()), "colour space")
    codes = normalize_source(folder / "a.exr", wanted(color_space=HDRColorSpace.ACESCG)).video
    assert codes == pytest.approx(torch.full((1, 3, 1, 48, 64), 0.5548 * 2 - 1), abs=1e-3)


# Sound ----------------------------------------------------------------------------------------------------------------


@kind("8, 16, 24, 32 bits or float")
def sample_formats(folder: Path) -> None:
    values = np.linspace(-0.9, 0.9, 500)
    for codec, sample_format, scale, offset, dtype in (
        ("pcm_u8", "u8", 2**7, 128, np.uint8),
        ("pcm_s16le", "s16", 2**15, 0, np.int16),
        ("pcm_s24le", "s32", 2**31, 0, np.int32),
        ("pcm_f32le", "flt", 1, 0, np.float32),
    ):
        with av.open(str(folder / "a.wav"), "w") as sink:
            stream = sink.add_stream(codec, rate=16000, layout="mono")
            samples = (values * scale + offset).astype(dtype)[None]
            frame = av.AudioFrame.from_ndarray(samples, format=sample_format, layout="mono")
            frame.sample_rate = 16000
            sink.mux([*stream.encode(frame), *stream.encode()])
        audio = read_audio(folder / "a.wav")
        assert (
            audio is not None and np.abs(audio.waveform[0, 0].numpy() - values).max() < 1.01 / min(scale, 2**23) + 1e-6
        )


@kind("5.1")
def surround(folder: Path) -> None:
    with av.open(str(folder / "a.wav"), "w") as sink:
        stream = sink.add_stream("pcm_s16le", rate=16000, layout="5.1")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 6 * 1600), np.int16), format="s16", layout="5.1")
        frame.sample_rate = 16000
        sink.mux([*stream.encode(frame), *stream.encode()])
    audio = read_audio(folder / "a.wav")
    assert audio is not None and audio.waveform.shape == (1, 6, 1600)
    (change,) = sound_changes(audio.waveform.shape[1])
    assert change == ("channels", "6 channels of sound heard as two")
    assert sound_changes(1) == sound_changes(2) == ()


@kind("cut off, WAV")
def cut_wav(folder: Path) -> None:
    write_wav(folder / "a.wav", tone(1))
    data = (folder / "a.wav").read_bytes()
    (folder / "a.wav").write_bytes(data[: len(data) // 2])
    refused(folder / "a.wav", read_audio, "bytes are missing at its end")


@kind("silent file")
def silent(folder: Path) -> None:
    path = raw(folder / "a.mp4", [grey(16)])
    assert read_audio(path) is None and not probe_video(path).has_audio


# What a task keeps ----------------------------------------------------------------------------------------------------


@cache
def ledger() -> ModelLedger:
    return ModelLedger(find_model(str(TINY_CHECKPOINT)).files, dtype=torch.float32, device="cpu", policy="resident")


def source(
    folder: Path, frames: int = 24, size: tuple[int, int] = (64, 48), fps: float = 24, seconds: float = 1.0
) -> str:
    path = folder / "clip.mp4"
    pictures = torch.linspace(0, 1, frames).view(-1, 1, 1, 1).expand(-1, size[1], size[0], 3)
    write_video(path, [pictures], fps, tone(seconds, 44100, 1))
    return str(path)


def delivered(plan: Plan) -> torch.Tensor:
    """Frames as bytes, where all that is new is grey."""
    made = (torch.full((plan.shape.height, plan.shape.width, 3), 0.5) for _ in range(plan.shape.frames))
    return (torch.cat(list(kept_frames(plan, made, 8))) * 255).round().byte()


def retake(path: str, **request) -> Plan:
    return RetakePipeline(ledger()).plan(prompt="x", video_path=path, distilled=True, **request)


def extend(path: str, seconds: float, **request) -> Plan:
    return ExtendPipeline(ledger()).plan(prompt="x", video_path=path, extend_seconds=seconds, **request)


@kind("picture of v2a-one-stage and retake --keep-video")
def kept_picture(folder: Path) -> None:
    path = source(folder)
    plans = (
        V2AOneStagePipeline(ledger()).plan(prompt="x", video_path=path),
        retake(path, start_time=0, regenerate_video=False),
    )
    for plan in plans:
        assert torch.equal(delivered(plan), torch.stack(list(read_frames(path))))


@kind("sound of a2vid and retake --keep-audio")
def kept_track(folder: Path) -> None:
    path = source(folder)
    sound = kept_sound(retake(path, start_time=0, regenerate_audio=False), None)
    own = read_audio(path)
    assert sound is not None and own is not None and sound.sampling_rate == 44100
    assert torch.equal(sound.waveform, own.waveform) and own.waveform.shape[1] == 1


@kind("around a retaken span")
def around(folder: Path) -> None:
    path = source(folder)
    plan, own, sound = (
        retake(path, start_time=0.25, end_time=0.5),
        torch.stack(list(read_frames(path))),
        read_audio(path),
    )
    equal = [torch.equal(one, other) for one, other in zip(delivered(plan), own, strict=True)]
    assert equal == [not 6 <= index < 12 for index in range(24)]
    made = kept_sound(plan, tone(1.0, 24000))
    assert made is not None and sound is not None
    same = made.waveform[0] == sound.waveform[0, 0, :44100]
    assert same[:11025].all() and same[22050:].all() and not same[11025:22050].all()
    words = what_is_kept(plan, 8)
    assert words is not None and "picture new in 0.250-0.500 s, cross-faded in 0.250-0.292 s and 0.458-0.500 s" in words


@kind("clip that is extended")
def extended(folder: Path) -> None:
    path = source(folder)
    own = torch.stack(list(read_frames(path)))
    assert torch.equal(delivered(extend(path, 0.5))[:24], own)
    assert torch.equal(delivered(extend(path, 0.5, direction="before"))[-24:], own)


@kind("length off the grid")
def length_off_the_grid(folder: Path) -> None:
    plan = retake(source(folder, 24, (64, 64)), start_time=0.5)
    assert (plan.stages[0].shape.frames, plan.shape.frames, len(delivered(plan))) == (25, 24, 24)
    assert plan.notes == ("clip.mp4: worked on at 64 x 64 and 25 frames, cut back to 64 x 64 and 24",)


@kind("size off the grid")
def size_off_the_grid(folder: Path) -> None:
    plan = retake(source(folder, 17, (96, 50)), start_time=0.5)
    assert plan.stages[0].shape[2:4] == (64, 96) and delivered(plan).shape == (17, 50, 96, 3)
    assert plan.notes == ("clip.mp4: worked on at 96 x 64 and 17 frames, cut back to 96 x 50 and 17",)


@kind("off the grid with --no-snap")
def not_snapped(folder: Path) -> None:
    for frames, side, says in ((24, 64, "frames is 24"), (17, 50, "height is 50")):
        with pytest.raises(ConfigError, match=says):
            retake(source(folder, frames, (64, side)), start_time=0.5, snap=False)


@kind("odd sides")
def odd_sides(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (49, 65, 3), np.uint8)
    path = raw(folder / "a.mkv", [pixels] * 9, format="bgr24", codec="libx264rgb", size=(65, 49), crf="0")
    plan = V2AOneStagePipeline(ledger()).plan(prompt="x", video_path=str(path))
    assert torch.equal(delivered(plan), torch.stack(list(read_frames(path)))[:, :48, :64])
    assert "a.mkv: an odd last row or column is left out: 64 x 48" in plan.notes


@kind("extended by less than fits")
def extended_a_little(folder: Path) -> None:
    plan = extend(source(folder, 25), 0.3)
    assert plan.shape.frames == 33
    assert "clip.mp4: 0.33 s (8 frames) are added, the nearest length that fits" in plan.notes


@kind("retake without an end")
def to_the_end(folder: Path) -> None:
    assert retake(source(folder), start_time=0.5).new_span("video") == (0.5, 1.0)


@kind("span beyond the end")
def beyond_the_end(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"end_time is 1.5 s, the clip ends at 1.000 s; nearest valid: 1.000"):
        retake(source(folder), start_time=0.5, end_time=1.5)


@kind("reference of another rate")
def reference_rate(folder: Path) -> None:
    plan = followed(source(folder, 60, fps=30, seconds=2), 17)
    assert "clip.mp4: 30 fps sampled by time at 24 fps" in plan.notes
    assert "clip.mp4: 2.00 s cut to 0.71 s" in plan.notes


@kind("reference that ends early")
def short_reference(folder: Path) -> None:
    plan = followed(source(folder, 12), 25)
    assert "clip.mp4: 0.50 s long, the clip is 1.04 s: its rest follows nothing" in plan.notes


@kind("attention mask of another rate or length")
def other_mask(folder: Path) -> None:
    path, shape = source(folder, 12, fps=30), VideoPixelShape(1, 17, 48, 64, 24.0)  # 0.4 s
    mask, own = attention_mask(path, shape), torch.stack(list(read_frames(path)))[..., 0] / 255
    by_time = [min(int(k * 30 / 24 + 0.1), 11) for k in range(17)]
    assert (mask[0, 0] - own[by_time]).abs().max() < 0.01
    write_png(folder / "still.png", torch.full((48, 64, 3), 255, dtype=torch.uint8))
    assert (attention_mask(str(folder / "still.png"), shape) == 1).all()
    (folder / "clip.mp4").rename(folder / "mask.mp4")
    plan = followed(source(folder, 17), 17, conditioning_attention_mask=str(folder / "mask.mp4"))
    assert "mask.mp4: 30 fps sampled by time at 24 fps" in plan.notes


@kind("clip for LTX-Video of another rate")
def slower_clip(folder: Path) -> None:
    path, shape = source(folder, 24), VideoPixelShape(1, 9, 48, 64, 12.0)
    frames = read_media(path, wanted_media(PaddedSize.of(shape, SpatioTemporalScaleFactors.default())))
    assert torch.equal(frames, torch.stack(list(read_frames(path)))[: 2 * len(frames) : 2])
    assert dict(changes_of(probe_video(path), wanted(fps=12)))["rate"] == "24 fps sampled by time at 12 fps"


def followed(path: str, frames: int, **request) -> Plan:
    adapter = str(TINY_CHECKPOINT / "ic-lora-tiny.safetensors")
    sizes = {"height": 128, "width": 128, "num_frames": frames}
    return ICLoraPipeline(ledger(), [adapter]).plan(prompt="x", video_conditioning=[(path, 1.0)], **sizes, **request)


# What goes out --------------------------------------------------------------------------------------------------------


def recipe_in(clip: Path, *given: Path) -> dict:
    """The recipe of a sound that was made with files."""
    plan = Plan("x", ModelFiles(*map(str, given)), "bell.wav", 1, ())
    request = {"command": "x", "options": {"prompt": str(given[0]), "gemma_root": str(given[1])}}
    write_wav(clip, Audio(torch.zeros(1, 9), 8000), {"recipe": json.dumps(recipe_for(clip, plan, request))})
    recipe = read_recipe(clip)
    assert recipe is not None and recipe["plan"]["prompt"] == "bell.wav"
    assert recipe["request"]["options"]["prompt"] == str(given[0])  # texts are no names
    assert recipe["request"]["options"]["gemma_root"] == recipe["plan"]["models"]["text_encoder"]
    return recipe


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@kind("file beside or below the clip")
def _(tmp_path: Path) -> None:
    files = [written(tmp_path / name, name) for name in ("a.bin", "in/b.bin")]
    assert list(recipe_in(tmp_path / "c.wav", *files)["files"]) == ["a.bin", "in/b.bin"]


@kind("file elsewhere")
def _(tmp_path: Path) -> None:
    files = [written(tmp_path / name, name) for name in ("private/a.bin", "other/a.bin")]
    recipe = recipe_in(tmp_path / "out" / "c.wav", *files)
    assert list(recipe["files"]) == ["a.bin", "a-2.bin"] and "private" not in json.dumps(recipe["plan"])
    finder = Finder({}, tmp_path / "out" / "c.wav")
    assert [finder.find(*item) for item in recipe["files"].items()] == files


@kind("files that were moved with their clip")
def _(tmp_path: Path) -> None:
    files = [written(tmp_path / "one" / name, name) for name in ("a.bin", "b.bin")]
    recipe = recipe_in(tmp_path / "one" / "c.wav", *files)
    (tmp_path / "one").rename(tmp_path / "two")
    finder = Finder({}, tmp_path / "two" / "c.wav")
    assert [finder.find(*item) for item in recipe["files"].items()] == [tmp_path / "two" / path.name for path in files]


@kind("file that was moved")
def _(tmp_path: Path) -> None:
    files = [written(tmp_path / "one" / name, name) for name in ("a.bin", "b.bin")]
    recipe = recipe_in(tmp_path / "out" / "c.wav", *files)
    (tmp_path / "one").rename(tmp_path / "two")
    written(tmp_path / "two" / "below" / "a.bin", "another")
    places = {name: str(folder) for name, folder in (("look_in", tmp_path / "two"),)}
    for given, found in (({}, None), (places, tmp_path / "two" / "a.bin")):
        assert Finder(given, tmp_path / "out" / "c.wav").find("a.bin", recipe["files"]["a.bin"]) == found


@kind("--absolute-paths")
def _(tmp_path: Path) -> None:
    file = written(tmp_path / "a.bin", "a")
    plan = Plan("x", ModelFiles(str(file)), "", 1, ())
    assert list(recipe_for(tmp_path / "c.wav", plan, absolute_paths=True)["files"]) == [str(file)]


@kind("output that is there")
def _(tmp_path: Path) -> None:
    taken = written(tmp_path / "a.mp4", "a")
    with pytest.raises(MediaError, match="is there already; choose another name, or replace it with --overwrite"):
        check_output(taken, has_video=True)
    check_output(taken, has_video=True, overwrite=True)


@kind("output with a name that is too long")
def _(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="the name has 256 bytes, at most 255"):
        check_output(tmp_path / ("\u00e4" * 126 + ".mp4"), has_video=True)


@kind("told to end, SIGTERM or SIGHUP")
def _(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):

        def frames(number=number):
            for _ in range(12):
                yield torch.randint(0, 256, (10, 64, 64, 3), dtype=torch.uint8)
            assert list(tmp_path.iterdir())
            yield signal.raise_signal(number)

        assert exit_code(lambda frames=frames: write_video(tmp_path / "a.mp4", frames(), 24.0)) == 130
        assert not list(tmp_path.iterdir())


@kind("left half-written by a killed process")
def _(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [f"a.{label}-{gone.pid}-{MACHINE}{suffix}" for label, suffix in (("partial", ".mp4"), ("writing", ""))]
    stay = ["a.partial.mp4", f"a.partial-{os.getppid()}-{MACHINE}.mp4", f"a.writing-{gone.pid}-elsewhere.wav"]
    for name in (*left, *stay):
        written(tmp_path / name, "")
    write_wav(tmp_path / "c.wav", Audio(torch.zeros(1, 9), 8000))
    assert {path.name for path in tmp_path.iterdir()} == {"c.wav", *stay}


@kind("reader of the output that goes away")
def _(tmp_path: Path) -> None:
    for name, style in (("stdout", "json"), ("stderr", "lines")):
        reading, writing = os.pipe()
        os.close(reading)
        with pytest.MonkeyPatch.context() as patch, os.fdopen(writing, "w") as stream:
            patch.setattr(sys, name, stream)
            reporter = Reporter(style)
            for _ in range(3):
                reporter.wrote_frames(1, 9)
                reporter.note("a line")
            assert reporter.style == "quiet"


def test_the_document_lists_what_is_tested() -> None:
    assert rows() == list(KINDS)


@pytest.mark.parametrize("name", rows())
def test_kind(name: str, tmp_path: Path) -> None:
    KINDS[name](tmp_path)
