"""Video out: frames are encoded while the next ones are being decoded, and the file appears whole or not at all.

Two steps. A fragmented MP4 beside the target (``<name>.partial-...mp4``) takes the picture as it comes; after a
crash it plays up to its last half second. At the end its packets and the sound are copied, without encoding again, into
an ordinary MP4 with its index in front, which replaces the target.

An HDR clip is a folder of EXR files in its colour space, and beside it a master in HEVC and HLG that players show.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_core.types import Audio
from ltx_media.audio import LAYOUTS, encode_sound, sound_track
from ltx_media.color import HDRColorSpace, Primaries, hlg_to_yuv420p10, linear_to_hlg, rec709_light, rgb_to_i420
from ltx_media.containers import container_tags, open_container
from ltx_media.exr import write_exr
from ltx_media.files import media_errors, replacing, temporary_beside
from ltx_media.pixels import to_bytes
from ltx_media.preview import numbered_files

FRAME_SIZES = {"aac": 1024, "alac": 4096, "libopus": 960}  # samples
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
LIMITED_RANGE = 1
# Half-second pieces, each written through to the disk.
FRAGMENTED = {"movflags": "empty_moov+default_base_moof", "frag_duration": "500000", "flush_packets": "1"}
# For who asks for quality: the least error in every frame and in colour, not what looks best for the bytes.
FAITHFUL = {"tune": "psnr", "x264-params": "mbtree=0:ipratio=1:pbratio=1:chroma-qp-offset=-6"}
FAITHFUL_BELOW = 15  # CRF
NARROW = 128  # pixels: below, libx264's macroblock tree reads past its rows, and equal frames become unequal files
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".m4v": "mp4", ".mkv": "matroska", ".webm": "webm"}
SUFFIXES = tuple(CONTAINERS)
EXR_WRITERS = 4  # threads that pack files


@dataclass(frozen=True)
class VideoEncoding:
    """Encoding of frames. Colour numbers are the code points of ITU-T H.273."""

    codec: str
    pixel_format: str
    crf: float
    preset: str
    primaries: int
    transfer: int
    matrix: int
    tag: str  # what the MP4 calls the stream
    to_planes: Callable[[Tensor], np.ndarray]  # one frame [H, W, 3] -> what the pixel format holds
    audio_codec: str = "aac"
    audio_bit_rate: int = 96_000  # per channel
    options: Mapping[str, str] = field(default_factory=dict)  # further ones of the encoder


def sdr_planes(frame: Tensor, matrix: int = 1) -> np.ndarray:
    return rgb_to_i420(frame[None], matrix, nudge=0.5)[0].cpu().numpy()


def hlg_planes(frame: Tensor) -> np.ndarray:
    y, u, v = hlg_to_yuv420p10(linear_to_hlg(frame[None], Primaries.REC709))
    return torch.cat([y.flatten(), u.flatten(), v.flatten()]).cpu().numpy().astype(np.uint16).reshape(-1, y.shape[-1])


def rgb_pixels(frame: Tensor) -> np.ndarray:
    return (to_bytes(frame) if frame.is_floating_point() else frame).cpu().contiguous().numpy()


SDR = VideoEncoding("libx264", "yuv420p", 19, "veryfast", 1, 1, 1, "avc1", sdr_planes)
QUIET = {"x265-params": "log-level=none"}
HLG = VideoEncoding("libx265", "yuv420p10le", 12, "ultrafast", 9, 18, 9, "hvc1", hlg_planes, options=QUIET)
LOSSLESS = VideoEncoding("libx264rgb", "rgb24", 0, "veryfast", 1, 1, 0, "avc1", rgb_pixels, "alac")


FAST = {"b:v": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"}
WEBM = VideoEncoding("libvpx-vp9", "yuv420p", 24, "", 1, 1, 1, "vp09", sdr_planes, "libopus", options=FAST)


def sdr_encoding(crf: float | None = None, suffix: str = ".mp4") -> VideoEncoding:
    """H.264 at a quality: 0 keeps every pixel and 24 bits of sound, 51 is the worst, None is `SDR`.

    A .webm holds VP9 and Opus, which lose something. Raises ``MediaError`` where it should keep every pixel.
    """
    if suffix.lower() == ".webm":
        if crf == 0:
            raise MediaError("crf is 0, which .webm cannot do, expected .mp4, .mov, .m4v or .mkv")
        return WEBM if crf is None else replace(WEBM, crf=round(crf * 63 / 51))  # VP9 counts to 63
    if crf is None:
        return SDR
    return replace(SDR, crf=crf, options=FAITHFUL if crf < FAITHFUL_BELOW else {}) if crf else LOSSLESS


def exact_rate(fps: float | Fraction) -> Fraction:
    """Frames per second as a fraction; 23.976, 29.97, 59.94 and their like are the NTSC rates n * 1000/1001."""
    if not fps > 0:
        raise MediaError(f"frame rate is {fps}, expected a positive number")
    if isinstance(fps, Fraction):
        return fps
    ntsc = Fraction(round(fps * 1.001) * 1000, 1001)
    if abs(fps - round(fps)) > 1e-6 and abs(fps - ntsc) < 0.005:
        return ntsc
    return Fraction(fps).limit_denominator(1000)


def write_video(
    path: str | Path,
    frames: Iterable[Tensor],
    fps: float | Fraction,
    audio: Audio | Callable[[], Audio | None] | None = None,
    encoding: VideoEncoding = SDR,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write chunks of frames, and sound, to an MP4; returns the number of frames.

    ``frames`` yields chunks ``[F, H, W, 3]`` of any lengths, or single frames ``[H, W, 3]``: uint8, or floats in [0, 1]
    (scene-linear light for ``HLG``), even sides. The next chunk is pulled while the one before is encoded. ``audio`` is
    cut or padded with silence to the picture's length; a callable is asked for it after the last frame.
    ``metadata["recipe"]`` is what ``read_recipe`` returns. Raises ``MediaError``; whatever ``frames`` raises passes
    through; either way ``path`` is left as it was.
    """
    path = Path(path)
    rate = exact_rate(fps)
    if path.suffix.lower() not in SUFFIXES:
        raise MediaError(f"{path}: suffix is {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    if isinstance(audio, Audio):
        sound_track(audio, path)
    with temporary_beside(path, "partial") as fragments:
        count = _encode(fragments, path, frames, rate, encoding)
        sound = audio() if callable(audio) else audio
        track = (sound_track(sound, path, count / rate), sound.sampling_rate) if sound else None
        join_pieces(path, [fragments], rate, track, encoding, metadata)
    return count


def write_piece(path: str | Path, frames: Iterable[Tensor], fps: float | Fraction, encoding: VideoEncoding) -> int:
    """Write frames as for `write_video`, without sound, as a piece for `join_pieces`; returns their number."""
    with replacing(path) as temporary:
        return _encode(temporary, Path(path), frames, exact_rate(fps), encoding)


def join_pieces(
    path: str | Path,
    pieces: Sequence[Path],
    fps: float | Fraction,
    sound: tuple[Tensor, int] | None,
    encoding: VideoEncoding,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Make one MP4 of pieces of one size and encoding, without encoding them again, in memory of a second of each.

    ``sound`` is a track ``[channels, samples]`` in [-1, 1], which may lie in a mapped file, and its rate.
    """
    path = Path(path)
    with replacing(path) as complete, media_errors(path, "write video"):
        _assemble(complete, pieces, exact_rate(fps), sound, encoding, container_tags(metadata))


def _encode(fragments: Path, path: Path, frames: Iterable[Tensor], rate: Fraction, encoding: VideoEncoding) -> int:
    """Encode all chunks on one worker thread, never more than one waiting."""
    with media_errors(path, "write video"):
        sink = av.open(str(fragments), "w", format="mp4", options=FRAGMENTED)
    picture = _Picture(sink, rate, encoding, path)
    pending: deque[Future[None]] = deque()
    try:
        with ThreadPoolExecutor(1, "ltx-encode") as worker:
            for chunk in frames:
                pending.append(worker.submit(picture.write, chunk))
                while len(pending) > 1:
                    pending.popleft().result()
            for future in pending:
                future.result()
        with media_errors(path, "write video"):
            picture.finish()
            sink.close()
    except BaseException:
        _abandon(sink)
        raise
    return picture.count


class _Picture:
    """The picture track of a fragmented file while it is being written."""

    def __init__(self, sink: av.container.OutputContainer, rate: Fraction, encoding: VideoEncoding, path: Path) -> None:
        self.sink, self.rate, self.encoding, self.path = sink, rate, encoding, path
        self.stream: av.VideoStream | None = None
        self.size = (0, 0)
        self.count = 0

    @torch.no_grad()
    def write(self, chunk: Tensor) -> None:
        """Encode ``[F, H, W, 3]`` or one frame ``[H, W, 3]``."""
        chunk = chunk[None] if chunk.dim() == 3 else chunk
        with media_errors(self.path, "write video"):
            if self.stream is None:
                self.stream = self._start(chunk)
            if tuple(chunk.shape[1:]) != (*self.size, 3):
                raise MediaError(
                    f"{self.path}: a chunk is {list(chunk.shape)}, expected [F, {self.size[0]}, {self.size[1]}, 3]"
                )
            for pixels in chunk:
                frame = av.VideoFrame.from_ndarray(self.encoding.to_planes(pixels), format=self.encoding.pixel_format)
                frame.pts, frame.time_base = self.count, 1 / self.rate
                self.sink.mux(self.stream.encode(frame))
                self.count += 1

    def finish(self) -> None:
        if self.stream is None or not self.count:
            raise MediaError(f"{self.path}: there are no frames to write")
        self.sink.mux(self.stream.encode())

    def _start(self, chunk: Tensor) -> av.VideoStream:
        if chunk.dim() != 4 or chunk.shape[-1] != 3:
            raise MediaError(f"{self.path}: a chunk is {list(chunk.shape)}, expected [F, H, W, 3]")
        self.size = height, width = chunk.shape[1], chunk.shape[2]
        for name, side in (("height", height), ("width", width)):
            if side < 2 or side % 2:
                raise MediaError(f"{self.path}: {name} is {side}, expected an even number; nearest valid: {side + 1}")
        encoding = self.encoding
        options = {"crf": f"{encoding.crf:g}", **encoding.options}
        options |= {"preset": encoding.preset} if encoding.preset else {}
        if encoding.codec == "libx264" and width < NARROW:
            options.setdefault("x264-params", "mbtree=0")
        stream = self.sink.add_stream(encoding.codec, rate=self.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, encoding.pixel_format
        context = stream.codec_context
        context.time_base, context.codec_tag = 1 / self.rate, encoding.tag
        context.color_primaries, context.color_trc = encoding.primaries, encoding.transfer
        context.colorspace, context.color_range = encoding.matrix, LIMITED_RANGE
        return stream


def _assemble(
    path: Path,
    pieces: Sequence[Path],
    rate: Fraction,
    sound: tuple[Tensor, int] | None,
    encoding: VideoEncoding,
    tags: Mapping[str, str],
) -> None:
    """Copy the picture's packets and encode the sound into a file; an MP4 starts playing before it is whole."""
    container = CONTAINERS[path.suffix.lower()]
    options = {"movflags": "faststart"} if container in ("mp4", "mov") else {}
    with open_container(pieces[0]) as source, av.open(str(path), "w", format=container, options=options) as sink:
        sink.metadata.update(tags)
        stream = sink.add_stream_from_template(source.streams.video[0])
        if options:
            stream.codec_context.codec_tag = encoding.tag
        tracks = [_picture_packets(pieces, rate, stream)]
        if sound is not None:
            tracks.append(_sound_packets(sink, *sound, encoding))
        for packet in heapq.merge(*tracks, key=lambda packet: packet.dts * packet.time_base):
            sink.mux(packet)


def _picture_packets(pieces: Sequence[Path], rate: Fraction, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Packets for ``stream``, the first frame shown at 0: a piece starts later by its encoder's reordering delay.

    They are decoded a frame apart, as early as the piece with the longest delay needs.
    """
    begins = [next(_packets(piece, rate)) for piece in pieces]
    delay = max(packet.pts - packet.dts for packet in begins)
    count = 0
    for piece, first in zip(pieces, begins, strict=True):
        start = count - first.pts
        for packet in _packets(piece, rate):
            packet.pts, packet.dts, packet.stream = packet.pts + start, count - delay, stream
            count += 1
            yield packet


def _packets(piece: Path, rate: Fraction) -> Iterator[av.Packet]:
    """The packets of a picture track, timed in frames."""
    with open_container(piece) as source:
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                frame = rate * packet.time_base
                packet.pts, packet.dts = round(packet.pts * frame), round(packet.dts * frame)
                packet.duration, packet.time_base = 1, 1 / rate
                yield packet


def _sound_packets(
    sink: av.container.OutputContainer, track: Tensor, rate: int, encoding: VideoEncoding
) -> Iterator[av.Packet]:
    """A track ``[channels, S]`` as packets; the first AAC one starts before 0 by the encoder's priming samples."""
    kept = encoding.audio_codec == "alac" or (encoding.audio_codec == "aac" and rate in AAC_RATES)
    target = rate if kept else 48000
    stream = sink.add_stream(encoding.audio_codec, rate=target, layout=LAYOUTS[len(track)])
    stream.bit_rate = encoding.audio_bit_rate * len(track)
    if encoding.audio_codec == "alac":
        stream.codec_context.format = "s32p"  # 24 bits
    return encode_sound(stream, track.numpy(), rate, FRAME_SIZES[encoding.audio_codec])


def _abandon(sink: av.container.OutputContainer) -> None:
    with suppress(av.FFmpegError, OSError, ValueError):
        sink.close()


# HDR clips -----------------------------------------------------------------------------------------------------------


def write_exr_files(folder: str | Path, frames: Iterable[Tensor], color_space: HDRColorSpace) -> int:
    """Write chunks ``[F, H, W, 3]`` as ``frame_00000.exr`` ... in a folder; returns their number."""
    with numbered_files(folder, ".exr") as name:
        return sum(len(chunk) for chunk in _stored(frames, name, color_space))


def write_hdr(
    path: str | Path,
    folder: str | Path,
    frames: Iterable[Tensor],
    fps: float | Fraction,
    audio: Audio | None,
    color_space: HDRColorSpace,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write a master to an MP4 (BT.2020, HLG, 10 bits) and its EXR files to a folder; returns the number of frames.

    ``frames`` yields chunks ``[F, H, W, 3]`` in ``color_space``. Raises ``MediaError`` as `write_video` does.
    """
    with numbered_files(folder, ".exr") as name:
        light = (rec709_light(chunk, color_space) for chunk in _stored(frames, name, color_space))
        return write_video(path, light, fps, audio, HLG, metadata)


def _stored(frames: Iterable[Tensor], name: Callable[[int], Path], color_space: HDRColorSpace) -> Iterator[Tensor]:
    """The chunks, each handed on while its frames are being written."""
    count = 0
    with ThreadPoolExecutor(EXR_WRITERS, "ltx-exr") as pool:
        for chunk in frames:
            written = [pool.submit(write_exr, name(count + at), frame, color_space) for at, frame in enumerate(chunk)]
            count += len(chunk)
            yield chunk
            for one in written:
                one.result()
