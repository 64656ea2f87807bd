"""What a task keeps of a clip is the clip's own, to the bit; what it makes has the clip's size, length and rate."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from av.video.reformatter import Interpolation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.golden.case import TINY_CHECKPOINT

from ltx_core.errors import ConfigError
from ltx_core.types import Audio
from ltx_media.writer import write_video
from ltx_pipelines.a2vid_two_stage import A2VidPipelineTwoStage
from ltx_pipelines.dubit import DubItPipeline
from ltx_pipelines.extend import ExtendPipeline
from ltx_pipelines.pipeline import Pipeline
from ltx_pipelines.retake import RetakePipeline
from ltx_pipelines.running.decoding import cut_frames
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.kept import kept_encoding, kept_frames, what_is_kept
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.utils.media_io import probe_video, read_audio, read_frames
from ltx_pipelines.utils.model_ledger import ModelLedger
from ltx_pipelines.v2a_one_stage import V2AOneStagePipeline

ACCURATE = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


@pytest.fixture(scope="module")
def ledger() -> ModelLedger:
    return ModelLedger(find_model(str(TINY_CHECKPOINT)).files, dtype=torch.float32, device="cpu", policy="resident")


def smooth(frames: int, height: int, width: int) -> torch.Tensor:
    """A moving picture without hard edges, uint8."""
    noise = torch.rand(1, 3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    moving = torch.nn.functional.interpolate(noise, (frames, height, width), mode="trilinear")
    return (moving[0].permute(1, 2, 3, 0) * 255).byte()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames of 66 x 50 at 24 fps, none of which is on the grid, with a mono tone at 44.1 kHz."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    tone = Audio(torch.sin(torch.arange(55125) * 0.1)[None] * 0.4, 44100)
    write_video(path, [smooth(30, 50, 66)], 24, tone)
    return path


def decoded(path: Path) -> torch.Tensor:
    """The frames as PyAV decodes them, uint8."""
    with av.open(str(path)) as source:
        frames = [frame.to_ndarray(format="rgb24", interpolation=ACCURATE) for frame in source.decode(video=0)]
    return torch.stack([torch.from_numpy(frame) for frame in frames])


def run(pipeline: Pipeline, clip: Path, **request: Any) -> tuple[Generation, torch.Tensor]:
    """The result, and its frames as bytes, which they are exactly where they are kept."""
    guided = {} if isinstance(pipeline, RetakePipeline) else {"num_inference_steps": 1}
    generation = pipeline(prompt="a bell", video_path=str(clip), **guided, **request)
    assert generation.video is not None
    return generation, (torch.cat(list(generation.video)) * 255).round().byte()


def same(frames: torch.Tensor, own: torch.Tensor) -> list[int]:
    """The indices of equal frames."""
    return [index for index in range(len(own)) if torch.equal(frames[index], own[index])]


class TestKept:
    def test_outside_a_retaken_span_frames_and_samples_are_the_clips(self, ledger: ModelLedger, clip: Path) -> None:
        generation, frames = run(RetakePipeline(ledger), clip, start_time=0.4, end_time=0.8, distilled=True)
        own, sound = decoded(clip), read_audio(clip)
        assert frames.shape == own.shape and same(frames, own) == [*range(10), *range(20, 30)]
        assert sound is not None and generation.audio is not None and generation.audio.sampling_rate == 44100
        equal = (generation.audio.waveform == sound.waveform[0, :, :55125])[0]
        assert equal[:17640].all() and equal[35280:].all() and not equal[18000:35000].any()
        assert what_is_kept(generation.plan, 8) == (
            "picture new in 0.417-0.833 s, cross-faded in 0.417-0.500 s and 0.750-0.833 s, kept elsewhere; "
            "sound new in 0.400-0.800 s, cross-faded in 0.400-0.420 s and 0.780-0.800 s, kept elsewhere"
        )

    def test_a_stream_that_is_not_retaken_is_kept_whole(self, ledger: ModelLedger, clip: Path) -> None:
        retake, own, sound = RetakePipeline(ledger), decoded(clip), read_audio(clip)
        made, frames = run(retake, clip, start_time=0.5, regenerate_video=False, distilled=True)
        assert torch.equal(frames, own) and "picture kept as it was" in (what_is_kept(made.plan, 8) or "")
        assert made.plan.decoded == ("audio",)
        made, frames = run(retake, clip, start_time=0.5, regenerate_audio=False, distilled=True)
        assert same(frames, own) == list(range(12)) and made.plan.decoded == ("video",)
        assert sound is not None and made.audio is not None and torch.equal(made.audio.waveform, sound.waveform)

    def test_video_to_audio(self, ledger: ModelLedger, clip: Path) -> None:
        made, frames = run(V2AOneStagePipeline(ledger), clip)
        assert torch.equal(frames, decoded(clip)) and made.plan.decoded == ("audio",)
        assert made.audio is not None and made.audio.duration == pytest.approx(30 / 24, abs=1e-3)

    @pytest.mark.parametrize("direction", ["after", "before"])
    def test_extend(self, ledger: ModelLedger, clip: Path, direction: str) -> None:
        made, frames = run(ExtendPipeline(ledger), clip, extend_seconds=0.3, direction=direction)
        first = 0 if direction == "after" else 11
        own, sound = decoded(clip), read_audio(clip)
        assert len(frames) == 41 and torch.equal(frames[first : first + 30], own)
        assert sound is not None and made.audio is not None
        start = round(first / 24 * 44100)
        assert torch.equal(made.audio.waveform[:, start : start + 55125], sound.waveform[0, :, :55125])

    @pytest.mark.parametrize("direction", ["after", "before"])
    def test_an_added_part_begins_where_the_clip_is(self, ledger: ModelLedger, clip: Path, direction: str) -> None:
        """Frames of another brightness, which changes by 0.01 a frame: the clip goes on by that, and fades out."""
        plan = ExtendPipeline(ledger).plan(prompt="x", video_path=str(clip), extend_seconds=0.4, direction=direction)
        made = (torch.full((50, 66, 3), 0.3 + 0.01 * index) for index in range(41))
        frames, step = torch.cat(list(kept_frames(plan, made, 8))), 1 if direction == "after" else -1
        seam, edge = (29, 0.59) if direction == "after" else (11, 0.41)
        for nth in range(1, 6):  # half of the 11 new frames
            new = edge + 0.01 * step * nth
            want = (new + (1 - nth / 6) * (frames[seam] - edge)).clamp(0, 1)
            assert (frames[seam + nth * step] - want).abs().max() < 1e-5
        assert (frames[seam + 6 * step] - (edge + 0.06 * step)).abs().max() < 1e-6

    def test_a_given_sound(self, ledger: ModelLedger, clip: Path) -> None:
        sizes = {"height": 128, "width": 128, "num_frames": 9, "frame_rate": 24.0, "num_inference_steps": 1}
        made = A2VidPipelineTwoStage(ledger)(prompt="a bell", audio_path=str(clip), **sizes)
        sound = read_audio(clip)
        assert sound is not None and made.audio is not None and torch.equal(made.audio.waveform, sound.waveform)

    @pytest.mark.parametrize(("crf", "least"), [(10, 45), (0, 100)])
    def test_the_written_file(self, ledger: ModelLedger, clip: Path, tmp_path: Path, crf: float, least: float) -> None:
        plan = RetakePipeline(ledger).plan(
            prompt="x", video_path=str(clip), start_time=0.4, end_time=0.8, distilled=True
        )
        made = (torch.full((50, 66, 3), 0.5) for _ in range(30))
        encoding = kept_encoding(plan, crf)
        write_video(tmp_path / "a.mp4", kept_frames(plan, made, 8), plan.shape.fps, encoding=encoding)
        own, got = (torch.stack(list(read_frames(path))).double() for path in (clip, tmp_path / "a.mp4"))
        error = (got - own)[[*range(10), *range(20, 30)]].square().mean((1, 2, 3))
        assert 10 * torch.log10(255**2 / error.clamp(min=1e-9)).min() >= least


class TestSizeAndLength:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        frames=st.integers(2, 40),
        sides=st.tuples(st.integers(8, 70), st.integers(8, 70)),
        fps=st.sampled_from([Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(12), Fraction(50)]),
        span=st.tuples(st.floats(0, 0.9), st.floats(0.05, 1)),
    )
    def test_a_retake_has_the_clips_own(
        self,
        ledger: ModelLedger,
        tmp_path: Path,
        frames: int,
        sides: tuple[int, int],
        fps: Fraction,
        span: tuple[float, float],
    ) -> None:
        height, width = sides[0] * 2, sides[1] * 2
        write_video(tmp_path / "clip.mp4", [smooth(frames, height, width)], fps)
        length = float(frames / fps)
        start = span[0] * length
        plan = RetakePipeline(ledger).plan(
            prompt="x",
            video_path=str(tmp_path / "clip.mp4"),
            start_time=start,
            end_time=min(start + span[1] * length, length),
            distilled=True,
        )
        work = plan.decoded_shape(ledger.scale_factors)
        ledger.scale_factors.check(work)
        decoded = iter([torch.rand(work.frames, work.height, work.width, 3)])
        made = (frame for chunk in cut_frames(decoded, plan.shape) for frame in chunk)
        write_video(tmp_path / "out.mp4", kept_frames(plan, made, 8), plan.shape.fps)
        before, after = probe_video(tmp_path / "clip.mp4"), probe_video(tmp_path / "out.mp4")
        facts = [(info.width, info.height, info.frames, info.fps) for info in (before, after)]
        assert facts[0] == facts[1] == (width, height, frames, fps)

    def test_a_result_without_a_kept_picture_is_cut_back_too(self, ledger: ModelLedger, tmp_path: Path) -> None:
        path = tmp_path / "clip.mp4"
        write_video(path, [smooth(12, 64, 64)], 25.0, Audio(torch.rand(2, 12000) - 0.5, 24000))
        adapter = str(TINY_CHECKPOINT / "ic-lora-tiny.safetensors")
        plan = DubItPipeline(ledger, [adapter]).plan(prompt="x", reference_video_path=str(path), height=128, width=128)
        assert plan.shape.frames == 12 and plan.decoded_shape(ledger.scale_factors).frames == 17
        chunks: Iterator[torch.Tensor] = iter([torch.zeros(9, 160, 128, 3), torch.zeros(8, 160, 128, 3)])
        assert [tuple(chunk.shape[:3]) for chunk in cut_frames(chunks, plan.shape)] == [(9, 128, 128), (3, 128, 128)]

    def test_what_is_off_the_grid_is_said(self, ledger: ModelLedger, clip: Path) -> None:
        plan = V2AOneStagePipeline(ledger).plan(prompt="x", video_path=str(clip))
        assert plan.notes == ("clip.mp4: worked on at 96 x 64 and 33 frames, cut back to 66 x 50 and 30",)

    @pytest.mark.parametrize(("frames", "side", "says"), [(24, 64, "frames is 24"), (17, 66, "height is 66")])
    def test_without_snapping_it_is_refused(
        self, ledger: ModelLedger, tmp_path: Path, frames: int, side: int, says: str
    ) -> None:
        write_video(tmp_path / "a.mp4", [smooth(frames, side, 64)], 24)
        with pytest.raises(ConfigError, match=says):
            V2AOneStagePipeline(ledger).plan(prompt="x", video_path=str(tmp_path / "a.mp4"), snap=False)

    def test_an_odd_side_loses_its_last_row_with_a_line(self, ledger: ModelLedger, tmp_path: Path) -> None:
        with av.open(str(tmp_path / "a.mkv"), "w") as sink:
            stream = sink.add_stream("ffv1", rate=24)
            stream.width, stream.height, stream.pix_fmt = 65, 49, "yuv444p"
            for picture in smooth(9, 49, 65):
                sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")))
            sink.mux(stream.encode())
        made, frames = run(V2AOneStagePipeline(ledger), tmp_path / "a.mkv")
        own = torch.stack(list(read_frames(tmp_path / "a.mkv")))
        assert torch.equal(frames, own[:, :48, :64])
        assert "a.mkv: an odd last row or column is left out: 64 x 48" in made.plan.notes


class TestTime:
    @pytest.mark.parametrize(
        ("frames", "fps", "asked", "added"), [(25, 24, 0.3, 8), (24, 24, 1.0, 25), (17, 25, 0.64, 16), (9, 24, 0.01, 8)]
    )
    def test_extend_adds_at_least_what_is_asked(
        self, ledger: ModelLedger, tmp_path: Path, frames: int, fps: float, asked: float, added: int
    ) -> None:
        write_video(tmp_path / "a.mp4", [smooth(frames, 64, 64)], fps)
        for direction in ("after", "before"):
            plan = ExtendPipeline(ledger).plan(
                prompt="x", video_path=str(tmp_path / "a.mp4"), extend_seconds=asked, direction=direction
            )
            assert plan.shape.frames - frames == added >= asked * fps - 1e-6 and added < asked * fps + 8
            seconds = f"{added / fps:.2f} s ({added} frames) are added, the nearest length that fits"
            assert f"a.mp4: {seconds}" in plan.notes

    def test_a_retake_goes_to_the_end_and_not_beyond(self, ledger: ModelLedger, clip: Path) -> None:
        request = {"prompt": "x", "video_path": str(clip), "distilled": True}
        plan = RetakePipeline(ledger).plan(**request, start_time=0.5)
        assert plan.new_span("video") == (0.5, 1.25)
        for end, says in ((1.5, "end_time is 1.5 s, the clip ends at 1.250 s"), (0.2, "expected 0 <= start < end")):
            with pytest.raises(ConfigError, match=says):
                RetakePipeline(ledger).plan(**request, start_time=0.5, end_time=end)
        with pytest.raises(ConfigError, match=r"start_time is 2 s, the clip ends at 1\.250 s"):
            RetakePipeline(ledger).plan(**request, start_time=2.0)

    def test_a_clip_of_varying_length_is_kept_by_time(self, ledger: ModelLedger, tmp_path: Path) -> None:
        times = [0, 40, 80, 500, 540, 900]
        with av.open(str(tmp_path / "a.mp4"), "w") as sink:
            stream = sink.add_stream("libx264", rate=1000, options={"crf": "0"})
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            for time in times:
                picture = torch.full((64, 64, 3), 250 if time >= 500 else 20, dtype=torch.uint8).numpy()
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                sink.mux(stream.encode(frame))
            sink.mux(stream.encode())
        made, frames = run(V2AOneStagePipeline(ledger), tmp_path / "a.mp4")
        fps = made.plan.shape.fps
        bright = (frames[:, 0, 0, 0] > 128).nonzero()[0].item()
        assert abs(bright / fps - 0.5) <= 1 / fps
        assert any("frames of varying length sampled by time" in note for note in made.plan.notes)
