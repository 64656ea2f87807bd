"""Pictures, video and sound in and out of files, on media made on the fly."""

import json
import math
import resource
import struct
import subprocess
import sys
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ltx_core.errors import MediaError
from ltx_core.types import Audio
from ltx_media.color import HDRColorSpace, rgb_to_i420
from ltx_media.contact_sheet import spectrogram
from ltx_media.files import MACHINE
from ltx_media.writer import sdr_encoding
from ltx_pipelines.utils.media_io import (
    HLG,
    center_crop_fit,
    decode_image,
    exact_rate,
    load_image,
    load_mask_video,
    load_video,
    probe_video,
    read_audio,
    read_exr,
    read_frames,
    read_frames_at,
    read_frames_between,
    read_recipe,
    recompress_image,
    reflect_pad_fit,
    write_contact_sheet,
    write_exr,
    write_png,
    write_png_sequence,
    write_preview,
    write_video,
    write_wav,
)

NTSC = Fraction(30000, 1001)
COLORS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.9, 0.9, 0.9]])


def quadrants(frames=9, height=64, width=96):
    """Four coloured quarters, red at the top left, under a slow change of brightness: floats [F, H, W, 3]."""
    y = (torch.arange(height) >= height // 2).long()[:, None]
    x = (torch.arange(width) >= width // 2).long()[None]
    picture = COLORS[2 * y + x]
    return torch.stack([picture * (0.7 + 0.3 * index / frames) for index in range(frames)])


def tone(seconds=1.0, rate=24000, channels=2):
    wave = 0.5 * torch.sin(torch.arange(round(seconds * rate)) / rate * 2 * math.pi * 440)
    return Audio(wave.expand(channels, -1).clone(), rate)


def write_raw(path, times, size=(64, 48), codec="mpeg4", pixel_format="yuv420p", color=None, planes=None):
    """A silent clip through PyAV alone: one grey level per frame, frame i shown at `times[i]` / 1000 s."""
    width, height = size
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream(codec, rate=1000, options={"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        if color:
            stream.codec_context.colorspace, stream.codec_context.color_range = color
        for index, time in enumerate(times):
            level = np.full((height * 3 // 2, width), 128, np.uint8) if planes is None else planes
            if planes is None:
                level[:height] = 40 + 20 * index
            frame = av.VideoFrame.from_ndarray(level, format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode())
    return path


def write_sound(path, codec, sample_format, layout, rate=48000, values=None):
    """`values` [channels, samples] in the sample format's own integers, through PyAV alone."""
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream(codec, rate=rate, layout=layout)
        packed = np.ascontiguousarray(values.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(packed, format=sample_format, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        sink.mux(stream.encode(frame))
        sink.mux(stream.encode())
    return path


def rotate_display(path, matrix):
    """Write a display matrix into the first track header of an MP4."""
    data = bytearray(path.read_bytes())
    start = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8
    data[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """61 frames at 30000/1001 with sound a little too short, and a long recipe."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    metadata = {"recipe": json.dumps(RECIPE), "title": "Quarters"}
    assert write_video(path, quadrants(61).split(8), NTSC, tone(2.0), metadata=metadata) == 61
    return path


RECIPE = {"prompt": "Zwei Hunde — 走れ", "steps": list(range(9000))}


class TestWriter:
    def test_tracks(self, clip):
        with av.open(str(clip)) as source:
            picture, sound = source.streams.video[0], source.streams.audio[0]
            assert (picture.codec_context.name, picture.codec_context.profile) == ("h264", "High")
            assert picture.pix_fmt == "yuv420p"
            assert picture.average_rate == NTSC and picture.frames == 61
            assert picture.start_time == 0 and sound.start_time == 0
            context = picture.codec_context
            tags = context.colorspace, context.color_range, context.color_primaries, context.color_trc
            assert tags == (1, 1, 1, 1)  # BT.709, limited range
            assert (sound.codec_context.name, sound.layout.name, sound.rate) == ("aac", "stereo", 24000)
            lengths = [float(stream.duration * stream.time_base) for stream in (picture, sound)]
            assert lengths[0] == pytest.approx(61 / NTSC)
            assert abs(lengths[0] - lengths[1]) < 1 / NTSC

    def test_frames_are_evenly_timed(self, clip):
        with av.open(str(clip)) as source:
            times = [frame.pts * frame.time_base for frame in source.decode(video=0)]
        assert times == [index / NTSC for index in range(61)]

    def test_picture(self, clip):
        got = torch.stack(list(read_frames(clip)))
        assert (got.float() / 255 - quadrants(61)).abs().mean() < 0.012

    def test_sound_is_in_step(self, clip):
        got = read_audio(clip).waveform[0]
        want = tone(2.0).waveform
        assert (got[:, 2000:40000] - want[:, 2000:40000]).abs().max() < 0.02

    def test_index_is_in_front(self, clip):
        data = clip.read_bytes()
        assert data.find(b"moov") < data.find(b"mdat")
        assert data.find(b"moof") < 0

    def test_recipe(self, clip):
        assert read_recipe(clip) == RECIPE

    def test_nothing_is_left_beside(self, clip):
        assert [path.name for path in clip.parent.iterdir()] == ["clip.mp4"]

    @pytest.mark.parametrize("seconds", [0.05, 3.0])
    def test_sound_is_cut_or_padded(self, tmp_path, seconds):
        write_video(tmp_path / "a.mp4", quadrants(24), 24, lambda: tone(seconds))
        with av.open(str(tmp_path / "a.mp4")) as source:
            sound = source.streams.audio[0]
            assert float(sound.duration * sound.time_base) == pytest.approx(1, abs=1 / 24)

    @pytest.mark.parametrize(("channels", "rate"), [(1, 48000), (6, 44100), (2, 37000), (3, 48000)])
    def test_sound_keeps_its_channels(self, tmp_path, channels, rate):
        write_video(tmp_path / "a.mov", quadrants(12), 24, tone(0.5, rate, channels))
        audio = read_audio(tmp_path / "a.mov")
        assert audio.waveform.shape[1] == (channels if channels in (1, 2, 6) else 2)
        assert audio.duration == pytest.approx(0.5, abs=1 / 24)
        assert audio.waveform.abs().max() > 0.2

    def test_uint8_and_float_frames_agree(self):
        frames = torch.randint(0, 256, (2, 8, 10, 3), dtype=torch.uint8)
        assert torch.equal(rgb_to_i420(frames), rgb_to_i420(frames.double() / 255))

    @pytest.mark.parametrize("level", [0, 127, 128, 255])
    def test_grey_has_no_tint(self, level):
        planes = rgb_to_i420(torch.full((1, 4, 4, 3), level, dtype=torch.uint8))
        assert (planes[:, 4:] == 128).all()
        assert planes[0, 0, 0] == int(16 + level * 219 / 255 + 1e-6)

    def test_lossless(self, tmp_path):
        frames = torch.randint(0, 256, (5, 48, 64, 3), dtype=torch.uint8)
        sound = Audio(torch.rand(2, 9600) * 1.8 - 0.9, 48000)
        write_video(tmp_path / "a.mp4", [frames[:3], frames[3:].float() / 255], 25, sound, sdr_encoding(0))
        assert torch.equal(torch.stack(list(read_frames(tmp_path / "a.mp4"))), frames)
        assert (read_audio(tmp_path / "a.mp4").waveform[0] - sound.waveform).abs().max() < 2**-22

    @pytest.mark.parametrize("width", [60, 64, 96])
    def test_equal_frames_are_equal_files_however_narrow(self, tmp_path, width):
        blocks = torch.rand(5, width // 4, 3, generator=torch.Generator().manual_seed(0))
        picture = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)
        fading = torch.stack([picture[:, 2 * at : 2 * at + width] * (1 - 0.03 * at) for at in range(12)])
        files = set()
        for size in range(2000, 22000, 1000):
            np.full((size, 20), size % 251, np.uint8)  # leaves something in the memory that is taken next
            write_video(tmp_path / "clip.mp4", fading, 24)
            files.add((tmp_path / "clip.mp4").read_bytes())
        assert len(files) == 1

    def test_hlg_master(self, tmp_path):
        write_video(tmp_path / "hdr.mp4", [quadrants(5) * 4], 25, tone(0.2), HLG)
        with av.open(str(tmp_path / "hdr.mp4")) as source:
            context = source.streams.video[0].codec_context
            assert (context.name, context.pix_fmt) == ("hevc", "yuv420p10le")
            assert (context.color_primaries, context.color_trc, context.colorspace) == (9, 18, 9)
            assert b"hvc1" in (tmp_path / "hdr.mp4").read_bytes()[:4000]

    def test_decoding_and_encoding_overlap(self, tmp_path):
        """The writer asks for the next chunk before the one before last is forgotten, but never runs further ahead."""
        import weakref

        alive = []

        def chunks():
            for _ in range(6):
                chunk = quadrants(2, 32, 32)
                alive.append(weakref.ref(chunk))
                yield chunk
                del chunk
                assert sum(ref() is not None for ref in alive) <= 2

        assert write_video(tmp_path / "a.mp4", chunks(), 24) == 12

    @pytest.mark.parametrize(
        ("fps", "rate"),
        [
            (24, Fraction(24)),
            (29.97, NTSC),
            (23.976, Fraction(24000, 1001)),
            (59.94005994, Fraction(60000, 1001)),
            (12.5, Fraction(25, 2)),
            (23.98, Fraction(24000, 1001)),
            (NTSC, NTSC),
        ],
    )
    def test_exact_rate(self, fps, rate):
        assert exact_rate(fps) == rate


class TestWriterRefuses:
    @pytest.mark.parametrize(
        ("frames", "fps", "audio", "says"),
        [
            ([torch.zeros(2, 33, 64, 3)], 24, None, "height is 33.*34"),
            ([torch.zeros(2, 32, 64, 4)], 24, None, r"expected \[F, H, W, 3\]"),
            ([torch.zeros(2, 32, 64, 3), torch.zeros(2, 64, 64, 3)], 24, None, r"\[2, 64, 64, 3\]"),
            ([], 24, None, "no frames"),
            ([torch.zeros(2, 32, 64, 3)], 0, None, "frame rate is 0"),
            ([torch.zeros(2, 32, 64, 3)], 24, Audio(torch.zeros(2, 0), 48000), "waveform"),
        ],
    )
    def test_bad_input(self, tmp_path, frames, fps, audio, says):
        (tmp_path / "a.mp4").write_bytes(b"the one before")
        with pytest.raises(MediaError, match=says):
            write_video(tmp_path / "a.mp4", frames, fps, audio)
        assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
        assert (tmp_path / "a.mp4").read_bytes() == b"the one before"

    def test_other_containers(self, tmp_path):
        with pytest.raises(MediaError, match=r"\.avi.*\.mp4"):
            write_video(tmp_path / "a.avi", [quadrants(1)], 24)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_errors_of_the_decoder_pass_through(self, tmp_path, error):
        def chunks():
            yield quadrants(2)
            raise error

        with pytest.raises(error):
            write_video(tmp_path / "a.mp4", chunks(), 24)
        assert not list(tmp_path.iterdir())

    def test_a_full_disk(self, tmp_path):
        """A limit on the size of files stands in for the disk: the same path from libav to one line."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        noise = (torch.randint(0, 256, (4, 128, 128, 3), dtype=torch.uint8) for _ in range(40))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(MediaError, match=r"a\.mp4: cannot write video: .*large"):
                write_video(tmp_path / "a.mp4", noise, 24)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.iterdir())

    def test_a_killed_run_leaves_a_playable_file(self, tmp_path):
        code = (
            "import sys, os, signal, torch\n"
            "from ltx_pipelines.utils.media_io import write_video\n"
            "def chunks():\n"
            "    for _ in range(12):\n"
            "        yield torch.randint(0, 256, (10, 64, 64, 3), dtype=torch.uint8)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "write_video(sys.argv[1], chunks(), 24)\n"
        )
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.mp4")], check=False)
        assert run.returncode == -9
        (partial,) = tmp_path.iterdir()
        assert partial.name.startswith("a.partial-")
        played = []
        with av.open(str(partial)) as source, suppress(av.error.InvalidDataError):  # where the last packet is cut
            played += (frame.pts for frame in source.decode(video=0))
        assert len(played) > 50
        (tmp_path / f"b.partial-1-{MACHINE}.mp4").touch()  # of a process that runs
        (tmp_path / "d.partial-99999999-other.mp4").touch()  # of another machine
        write_wav(tmp_path / "c.wav", tone(0.1))
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            f"b.partial-1-{MACHINE}.mp4",
            "c.wav",
            "d.partial-99999999-other.mp4",
        ]

    def test_long_names(self, tmp_path):
        for stem in ("n" * 251, "ä" * 125):
            write_wav(tmp_path / f"{stem}.wav", tone(0.1))
            assert (tmp_path / f"{stem}.wav").is_file()
        with pytest.raises(MediaError, match="the name has 256 bytes, at most 255"):
            write_wav(tmp_path / f"{'n' * 252}.wav", tone(0.1))


class TestReader:
    def test_probe(self, clip):
        info = probe_video(clip)
        assert (info.width, info.height, info.fps, info.frames) == (96, 64, NTSC, 61)
        assert info.has_audio and not info.variable_rate and info.rotation == 0

    def test_by_index(self, clip):
        every = list(read_frames(clip))
        part = list(read_frames(clip, skip=5, max_frames=3))
        assert len(every) == 61 and len(part) == 3
        assert all(torch.equal(a, b) for a, b in zip(part, every[5:8], strict=True))

    @pytest.mark.parametrize(("start", "duration"), [(0.0, 0.5), (1.0, 0.4)])
    def test_by_time(self, clip, start, duration):
        every = list(read_frames(clip))
        wanted = [index for index in range(61) if start <= index / NTSC < start + duration]
        got = list(read_frames_between(clip, start, duration))
        assert len(got) == len(wanted)
        assert all(torch.equal(frame, every[index]) for frame, index in zip(got, wanted, strict=True))

    @pytest.mark.parametrize(
        ("matrix", "corner"),  # where red, at the top left in the file, is shown
        [
            ((0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30), "top right"),
            ((-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30), "bottom right"),
            ((0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30), "bottom left"),
        ],
    )
    def test_rotation(self, tmp_path, matrix, corner):
        path = tmp_path / "phone.mp4"
        write_video(path, [quadrants(3)], 24)
        rotate_display(path, matrix)
        info, frame = probe_video(path), next(read_frames(path))
        assert frame.shape[:2] == (info.height, info.width) == ((64, 96) if corner == "bottom right" else (96, 64))
        y = -8 if "bottom" in corner else 8
        x = -8 if "right" in corner else 8
        assert frame[y, x, 0] > 120 and frame[y, x, 1:].max() < 60

    @pytest.mark.parametrize(
        ("space", "value_range", "rgb"),  # of Y 81, Cb 90, Cr 240
        [(1, 1, (255, 24, 0)), (1, 2, (255, 36, 11)), (5, 1, (254, 0, 0)), (5, 2, (238, 14, 14))],
    )
    def test_matrix_and_range(self, tmp_path, space, value_range, rgb):
        planes = np.empty((96, 64), np.uint8)
        planes[:64], planes[64:80], planes[80:] = 81, 90, 240
        path = write_raw(tmp_path / "a.mp4", [0, 40], (64, 64), "libx264", color=(space, value_range), planes=planes)
        got = next(read_frames(path))[32, 32]
        assert (got.int() - torch.tensor(rgb)).abs().max() <= 3

    def test_untagged_pictures_of_hd_height_are_bt709(self, tmp_path):
        planes = np.empty((1080, 64), np.uint8)
        planes[:720], planes[720:900], planes[900:] = 81, 90, 240
        path = write_raw(tmp_path / "a.mp4", [0], (64, 720), planes=planes)
        assert next(read_frames(path))[32, 32, 1] == pytest.approx(24, abs=3)

    @pytest.mark.parametrize("container", ["mp4", "mkv"])
    def test_variable_rate(self, tmp_path, container):
        times = [0, 40, 80, 280, 320, 520]
        path = write_raw(tmp_path / f"vfr.{container}", times)
        info = probe_video(path)
        assert info.variable_rate
        assert info.fps == pytest.approx(10, rel=0.2)
        assert len(list(read_frames(path))) == 6
        shown = [frame[0, 0, 0].item() for frame in read_frames_at(path, Fraction(25), 14)]
        levels = [frame[0, 0, 0].item() for frame in read_frames(path)]
        expected = [max(i for i, time in enumerate(times) if time <= 40 * k) for k in range(14)]
        assert shown == [levels[index] for index in expected]
        assert len(list(read_frames_between(path, 0.05, 0.25))) == 2

    def test_frames_are_counted_where_the_container_does_not_say(self, tmp_path):
        path = write_raw(tmp_path / "a.mkv", range(0, 280, 40))
        assert probe_video(path).frames == 7

    def test_odd_sizes(self, tmp_path):
        path = write_raw(tmp_path / "odd.mkv", [0, 40], (50, 34), "ffv1")
        Image.fromarray(quadrants(1, 33, 47)[0].mul(255).byte().numpy()).save(tmp_path / "odd.png")
        assert load_video(path, 31, 45).shape == (1, 3, 2, 31, 45)
        assert next(read_frames(tmp_path / "odd.png")).shape == (33, 47, 3)

    def test_load_video(self, clip):
        video = load_video(clip, 32, 64, max_frames=5, dtype=torch.bfloat16)
        assert video.shape == (1, 3, 5, 32, 64) and video.dtype == torch.bfloat16
        assert video.min() >= -1 and video.max() <= 1
        assert video[0, 0, 0, 4, 4] > 0.1 > video[0, 1, 0, 4, 4]

    def test_mask(self, clip):
        mask = load_mask_video(clip, 32, 48, 3)
        assert mask.shape == (1, 1, 3, 32, 48)
        assert mask[0, 0, 0, -3, -3] == pytest.approx(0.63, abs=0.03)

    def test_no_audio_track(self, tmp_path):
        write_video(tmp_path / "a.mp4", [quadrants(3)], 24)
        assert not probe_video(tmp_path / "a.mp4").has_audio
        assert read_audio(tmp_path / "a.mp4") is None

    @pytest.mark.parametrize("kept", [0.25, 0.5, 0.9, 0.995])
    def test_truncated(self, clip, tmp_path, kept):
        data = clip.read_bytes()
        (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * kept)])
        with pytest.raises(MediaError, match=r"cut\.mp4: "):
            list(read_frames(tmp_path / "cut.mp4"))

    @pytest.mark.parametrize("content", [b"", b"hello " * 50, b"\0" * 1000])
    @pytest.mark.parametrize(
        "read", [probe_video, read_audio, decode_image, read_recipe, lambda p: list(read_frames(p))]
    )
    def test_foreign_files(self, tmp_path, content, read):
        path = tmp_path / "a.mp4"
        path.write_bytes(content)
        with pytest.raises(MediaError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "read", [probe_video, read_audio, decode_image, read_recipe, lambda p: list(read_frames(p))]
    )
    @pytest.mark.parametrize("name", ["nothing.mp4", "nothing.png", "nothing.exr"])
    def test_missing_files(self, tmp_path, read, name):
        with pytest.raises(MediaError, match="No such file"):
            read(tmp_path / name)

    def test_sound_only(self, tmp_path):
        write_wav(tmp_path / "a.wav", tone())
        with pytest.raises(MediaError, match="no picture"):
            probe_video(tmp_path / "a.wav")

    def test_beyond_the_end(self, clip):
        with pytest.raises(MediaError, match="61 frames"):
            list(read_frames(clip, skip=61))
        with pytest.raises(MediaError, match="no frame from 9 s"):
            list(read_frames_between(clip, 9, 1))


class TestSound:
    @pytest.mark.parametrize(
        ("codec", "sample_format", "dtype", "offset", "scale"),
        [
            ("pcm_u8", "u8", np.uint8, 128, 128),
            ("pcm_s16le", "s16", np.int16, 0, 2**15),
            ("pcm_s32le", "s32", np.int32, 0, 2**31),
            ("pcm_f32le", "flt", np.float32, 0, 1),
        ],
    )
    @pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1"])
    def test_formats(self, tmp_path, codec, sample_format, dtype, offset, scale, layout):
        channels = av.AudioLayout(layout).nb_channels
        wave = np.linspace(-0.9, 0.9, channels * 500).reshape(channels, 500)
        values = (wave * scale + offset).astype(dtype)
        path = write_sound(tmp_path / "a.wav", codec, sample_format, layout, 32000, values)
        audio = read_audio(path)
        assert audio.sampling_rate == 32000
        want = torch.from_numpy((values.astype(np.float64) - offset) / scale).float()
        assert torch.allclose(audio.waveform[0], want)

    @pytest.mark.parametrize(("start", "duration"), [(0, None), (0.1, 0.2), (0.3333, 0.5), (0.9, 1.0)])
    def test_windows(self, tmp_path, start, duration):
        values = np.arange(24000, dtype=np.int16)[None]
        path = write_sound(tmp_path / "a.wav", "pcm_s16le", "s16", "mono", 24000, values)
        first = round(start * 24000)
        stop = 24000 if duration is None else min(first + round(duration * 24000), 24000)
        got = read_audio(path, start, duration).waveform[0, 0] * 2**15
        assert torch.equal(got, torch.arange(first, stop, dtype=torch.float32))

    def test_beyond_the_end(self, tmp_path):
        write_wav(tmp_path / "a.wav", tone(0.5))
        assert read_audio(tmp_path / "a.wav", 2.0, 1.0) is None

    def test_a_late_track_stays_in_step(self, tmp_path):
        path = tmp_path / "late.mkv"
        with av.open(str(path), "w") as sink:
            picture = sink.add_stream("mpeg4", rate=24)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
            sound = sink.add_stream("pcm_s16le", rate=8000, layout="mono")
            for index in range(24):
                frame = av.VideoFrame.from_ndarray(np.full((48, 32), 128, np.uint8), format="yuv420p")
                frame.pts, frame.time_base = index, Fraction(1, 24)
                sink.mux(picture.encode(frame))
            sink.mux(picture.encode())
            frame = av.AudioFrame.from_ndarray(np.full((1, 4000), 16384, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, 4000, Fraction(1, 8000)
            sink.mux(sound.encode(frame))
            sink.mux(sound.encode())
        wave = read_audio(path).waveform[0, 0]
        assert wave.shape == (8000,)
        assert (wave[:4000] == 0).all() and (wave[4000:] == 0.5).all()

    def test_wav(self, tmp_path):
        audio = Audio(torch.tensor([[0.0, 0.5, 2.0, -2.0], [0.1, 0.2, 0.3, -0.4]]), 48000)
        write_wav(tmp_path / "new" / "a.wav", audio, {"recipe": json.dumps(RECIPE)})
        got = read_audio(tmp_path / "new" / "a.wav")
        assert got.sampling_rate == 48000
        assert torch.allclose(got.waveform[0], audio.waveform.clamp(-1, 1), atol=2 / 32768)
        assert read_recipe(tmp_path / "new" / "a.wav") == RECIPE


class TestImages:
    def marked(self, mode="RGB"):
        """8 wide, 6 high, red in the top left corner."""
        image = Image.new("RGB", (8, 6), (20, 40, 60))
        image.paste((250, 0, 0), (0, 0, 2, 2))
        return image.convert(mode)

    @pytest.mark.parametrize(
        ("orientation", "corner"),  # of the upright picture where red is shown
        [
            (1, (0, 0)),
            (2, (0, -1)),
            (3, (-1, -1)),
            (4, (-1, 0)),
            (5, (0, 0)),
            (6, (0, -1)),
            (7, (-1, -1)),
            (8, (-1, 0)),
        ],
    )
    def test_orientation(self, tmp_path, orientation, corner):
        exif = Image.Exif()
        exif[0x0112] = orientation
        self.marked().save(tmp_path / "a.png", exif=exif)
        got = decode_image(tmp_path / "a.png")
        assert got.shape == ((8, 6, 3) if orientation >= 5 else (6, 8, 3))
        assert got[corner].tolist() == [250, 0, 0]
        assert (got == torch.tensor([250, 0, 0], dtype=torch.uint8)).all(-1).sum() == 4

    def test_transparent_parts_show_the_background(self, tmp_path):
        image = self.marked("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(tmp_path / "a.png")
        alpha = torch.from_numpy(np.array(image.getchannel("A")))[..., None].double() / 255
        for name, color in (("black", (0, 0, 0)), ("#ff8000", (255, 128, 0))):
            want = torch.from_numpy(np.array(self.marked())) * alpha + torch.tensor(color) * (1 - alpha)
            assert (decode_image(tmp_path / "a.png", name) - want).abs().max() <= 0.5

    @pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16"])
    def test_modes(self, tmp_path, mode):
        if mode == "I;16":
            image = Image.fromarray(np.full((6, 8), 200 * 257, np.uint16))
        else:
            image = self.marked(mode)
        path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
        image.save(path)
        got = decode_image(path)
        assert got.shape == (6, 8, 3) and got.dtype == torch.uint8
        if mode == "I;16":
            assert (got == 200).all()

    def test_profile(self, tmp_path, caplog):
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        self.marked().save(tmp_path / "same.png", icc_profile=srgb.tobytes())
        assert torch.equal(decode_image(tmp_path / "same.png"), torch.from_numpy(np.array(self.marked())))
        self.marked().save(tmp_path / "wrong.png", icc_profile=lab.tobytes())
        assert torch.equal(decode_image(tmp_path / "wrong.png"), torch.from_numpy(np.array(self.marked())))
        assert "profile" in caplog.text

    def test_truncated(self, tmp_path):
        Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
        data = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
        with pytest.raises(MediaError, match="cannot read image"):
            decode_image(tmp_path / "a.png")

    def test_recompression(self):
        torch.manual_seed(0)
        smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 7), (45, 67), mode="bilinear")
        image = (smooth[0].permute(1, 2, 0) * 255).byte()
        assert torch.equal(recompress_image(image, 0), image)
        errors = []
        for crf in (10, 33, 51):
            got = recompress_image(image, crf)
            assert got.shape == (44, 66, 3)
            errors.append((got.float() - image[:44, :66].float()).abs().mean().item())
        assert 0 < errors[0] < errors[1] < errors[2] and errors[1] < 12
        assert torch.equal(recompress_image(image[:1], 33), image[:1])

    def test_recompression_comes_before_the_fit(self, tmp_path):
        write_png(tmp_path / "a.png", torch.randint(0, 256, (41, 61, 3), dtype=torch.uint8))
        again = recompress_image(decode_image(tmp_path / "a.png"), 33).permute(2, 0, 1)[None].float()
        want = center_crop_fit(again, 32, 64) / 127.5 - 1
        assert torch.equal(load_image(tmp_path / "a.png", 32, 64, crf=33)[:, :, 0], want)

    def test_png_recipe(self, tmp_path):
        write_png(tmp_path / "a.png", torch.zeros(4, 4, 3, dtype=torch.uint8), {"recipe": json.dumps(RECIPE)})
        assert read_recipe(tmp_path / "a.png") == RECIPE
        write_png(tmp_path / "b.png", torch.zeros(4, 4, 3, dtype=torch.uint8))
        assert read_recipe(tmp_path / "b.png") is None

    @pytest.mark.parametrize(("height", "width"), [(7, 31), (20, 9), (12, 12)])
    def test_fits_give_the_size(self, height, width):
        pictures = torch.rand(2, 3, 10, 13)
        assert center_crop_fit(pictures, height, width).shape == (2, 3, height, width)
        assert reflect_pad_fit(pictures, height, width).shape == (2, 3, height, width)

    def test_reflection_keeps_small_pictures(self):
        picture = torch.arange(12.0).reshape(1, 1, 3, 4)
        padded = reflect_pad_fit(picture, 5, 6)
        assert torch.equal(padded[..., :3, :4], picture)
        assert padded[0, 0, 0].tolist() == [0, 1, 2, 3, 2, 1]
        assert padded[0, 0, :, 0].tolist() == [0, 4, 8, 4, 0]


class TestHDR:
    @pytest.mark.parametrize("size", [(5, 7), (40, 33)])
    @pytest.mark.parametrize("fill", ["noise", "ramp"])
    def test_exr(self, tmp_path, size, fill):
        image = (
            torch.randn(*size, 3) * 5
            if fill == "noise"
            else torch.linspace(0, 9, size[1])[None, :, None].expand(*size, 3)
        )
        write_exr(tmp_path / "a.exr", image, HDRColorSpace.ACESCG)
        assert torch.equal(read_exr(tmp_path / "a.exr"), image.half().float())

    def test_exr_needs_its_colour_space(self, tmp_path):
        write_exr(tmp_path / "a.exr", torch.rand(8, 8, 3), HDRColorSpace.SRGB_LINEAR)
        with pytest.raises(MediaError, match="colour space"):
            load_image(tmp_path / "a.exr", 8, 8)
        got = load_image(tmp_path / "a.exr", 8, 8, color_space=HDRColorSpace.SRGB_LINEAR)
        assert got.shape == (1, 3, 1, 8, 8) and got.abs().max() <= 1

    def test_exr_folder(self, tmp_path):
        for index in range(3):
            write_exr(tmp_path / f"f{index}.exr", torch.full((8, 8, 3), index / 4), HDRColorSpace.ACESCCT)
        video = load_video(tmp_path, 8, 12, max_frames=2, color_space=HDRColorSpace.ACESCCT)
        assert video.shape == (1, 3, 2, 8, 12)
        assert video[0, 0, :, 0, 0].tolist() == [-1.0, -0.5]


class TestPreviews:
    @pytest.mark.parametrize("suffix", [".gif", ".webp"])
    def test_moving(self, tmp_path, suffix):
        write_preview(tmp_path / f"a{suffix}", quadrants(48, 64, 96).split(7), 24, long_side=48)
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.size == (48, 32) and 8 < image.n_frames <= 24
            total = 0
            for index in range(image.n_frames):
                image.seek(index)
                image.load()
                total += image.info["duration"]
            assert total == pytest.approx(2000, abs=20)
            assert image.info["loop"] == 0

    def test_sequence_replaces_an_older_one(self, tmp_path):
        folder = tmp_path / "frames"
        frames = quadrants(4, 16, 16)
        assert write_png_sequence(folder, frames, {"recipe": "{}"}) == 4
        assert write_png_sequence(folder, [frames[:2]]) == 2
        assert sorted(path.name for path in folder.iterdir()) == ["frame_00000.png", "frame_00001.png"]
        got = decode_image(folder / "frame_00001.png")
        assert (got.float() / 255 - frames[1]).abs().max() < 0.003
        assert [path.name for path in tmp_path.iterdir()] == ["frames"]

    def test_sequence_spares_other_files(self, tmp_path):
        (tmp_path / "letter.txt").write_text("dear")
        with pytest.raises(MediaError, match="other files"):
            write_png_sequence(tmp_path, quadrants(2))

    @pytest.mark.parametrize(("height", "width", "frames"), [(64, 96, 9), (96, 64, 30), (64, 96, 1)])
    @pytest.mark.parametrize("sound", [True, False])
    def test_contact_sheet(self, tmp_path, height, width, frames, sound):
        audio = tone(1.0, 48000) if sound else None
        write_contact_sheet(tmp_path / "a.png", quadrants(frames, height, width).split(4), 24, audio, "Quarters " * 40)
        with Image.open(tmp_path / "a.png") as page:
            colors = page.convert("RGB").getcolors(1 << 24)
            assert page.width == 1600 and page.height < 4 * page.width
            assert len(colors) > 50

    def test_spectrogram_finds_the_tone(self):
        levels = spectrogram(tone(1.0, 48000), 1.0, 100, 64)
        height = levels.mean(1).argmax().item()
        frequency = math.exp(math.log(24000) - height / 99 * math.log(24000 / 50))
        assert frequency == pytest.approx(440, rel=0.07)

    def test_silence_is_dark(self):
        assert spectrogram(Audio(torch.zeros(2, 24000), 24000), 1.0, 10, 10).max() == 0

    def test_a_sound_alone_has_a_sheet_too(self, tmp_path):
        write_contact_sheet(tmp_path / "a.png", (), 24, tone(0.5), "A bell")
        with Image.open(tmp_path / "a.png") as page:
            assert page.width == 1600 and len(page.convert("RGB").getcolors(1 << 24)) > 50
        with pytest.raises(MediaError, match="no frames to show"):
            write_contact_sheet(tmp_path / "b.png", (), 24)
