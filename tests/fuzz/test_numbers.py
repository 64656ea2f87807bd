"""The inputs that once hung, ate all memory or ended in an internal error, made by hand: now each is a line."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest

from ltx_core.errors import CheckpointError, ConfigError, MediaError
from ltx_core.loader.gguf import GgufFile
from ltx_core.textfiles import parse_json, read_json, read_text, read_yaml
from ltx_media.audio import probe_sound, read_audio
from ltx_media.containers import read_recipe
from ltx_media.images import decode_image
from ltx_media.video import probe_video, read_frames
from ltx_pipelines.cli.batch import MOST_CLIPS, parse_seeds, read_lines
from tests.fuzz.harness import Target, check
from tests.fuzz.targets import TARGETS, gguf, media_files, model_configs, text_encoders
from tests.golden.case import TINY_CHECKPOINT

BOMB = "a: &a {x: 1}\n" + "\n".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}], {name}: 1}}"
    for before, name in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "its aliases stand for more than 1,000,000 values"),
        ("a: &a [*a]", "aliases stand for more than"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 70 + "1" + "}" * 70, "nested too deeply"),
        ("a: " + "1" * 10_000, "11111... has 10000 digits, expected at most 40"),
        ('a: "\\ud800"', "no YAML"),
        ("a: [1, 2\n", "no YAML"),
        ("a: !!python/object/apply:os.system [id]", "no YAML"),
    ],
)
def test_yaml(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 70 + "]" * 70, "nested more than 64 deep"),
        ('{"a": ' + "1" * 10_000 + "}", "has 10000 digits, expected at most 40"),
        ('"\\ud800"', "no JSON"),
        ("NaN", "no number that can be kept"),
        ('{"a": 1, "a": 2}', "given twice"),
    ],
)
def test_json(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_json(text, "a.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_texts_of_no_end_and_of_other_encodings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="/dev/zero is larger than 64 MiB"):
        read_text("/dev/zero")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        read_json(tmp_path / "a.json")


def test_seeds_are_a_range(tmp_path: Path) -> None:
    assert next(iter(parse_seeds(f"7-{MOST_CLIPS}", "x"))) == 7
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "seeds": "1-999999999999"}')
    with pytest.raises(ConfigError, match=r"line 1: seeds is '1-999999999999', 1e\+12 clips, expected at most 100,000"):
        next(read_lines(tmp_path / "a.jsonl", str(tmp_path), "", {}))


@pytest.mark.parametrize("block", [["res_x", 10**12], ["res_x", {"num_layers": 10**12}], ["res_x", 10**300], ["res_x"]])
def test_encoder_blocks_of_huge_numbers(block: list[object], tmp_path: Path) -> None:
    config = json.loads(model_configs()["config.json"])
    config["vae"]["encoder_blocks"] = [block]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not check(TARGETS["model-configs"], tmp_path / "config.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", [b"[]", b"null", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"1" * 10_000 + b"}"])
def test_text_encoders_of_other_things(name: str, text: bytes, tmp_path: Path) -> None:
    assert name in text_encoders()
    (tmp_path / name).write_bytes(text)
    check(TARGETS["text-encoders"], tmp_path / name)


def png_of(width: int, height: int) -> bytes:
    """A small file that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    text = b"recipe\x00\x00\x00\x00\x00{}"
    packed = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"iTXt", text)
        + chunk(b"IDAT", packed)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(13_400, 13_400), (65_500, 65_500), (100_000, 1), (1, 100_000), (2**31 - 1, 1)])
@pytest.mark.parametrize("suffix", [".png", ".mp4"])
def test_pictures_that_claim_sizes(size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(png_of(*size))

    def read(file: Path) -> None:
        pictures = (decode_image, read_recipe) if file.suffix == ".png" else ()
        for one in (probe_video, lambda file: list(read_frames(file)), *pictures):
            with pytest.raises(MediaError):
                one(file)
        raise MediaError("all refused")

    assert not check(Target("claims", read, dict, lambda data, rng: data), path)


@pytest.mark.parametrize(
    ("at", "value"), [(34, 0), (34, 1), (34, 255), (22, 0), (22, 255), (24, 0), (32, 0), (20, 0), (20, 99)]
)
def test_wav_of_no_bits_channels_or_rate(at: int, value: int, tmp_path: Path) -> None:
    data = bytearray(media_files()["a.wav"])
    data[at] = value
    if at == 24:
        data[24:28] = bytes(4)
    (tmp_path / "a.wav").write_bytes(data)
    for read in (read_audio, probe_sound):
        check(Target("wav", read, dict, lambda data, rng: data), tmp_path / "a.wav")


def test_damaged_sound_in_mp4(tmp_path: Path) -> None:
    data = bytearray(media_files()["a.mp4"])
    start = data.index(b"mdat") + 8
    for step in (1, 3, 7):
        damaged = bytearray(data)
        for at in range(start, len(data), 1 + step):
            damaged[at] ^= 0xA5
        (tmp_path / "a.mp4").write_bytes(damaged)
        check(TARGETS["media"], tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("fields", "tensors", "said"),
    [
        ({"general.architecture": "ltxv"}, {"a": (2**62, 0)}, "expected sizes up to"),
        ({"comfy.gguf.orig_shape.a": "ab"}, {"a": (2,)}, "original shape 'ab'"),
        ({"comfy.gguf.orig_shape.a": [-1, -2]}, {"a": (2,)}, r"original shape \[-1, -2\]"),
        ({"general.alignment": "x"}, {"a": (2,)}, "alignment is 'x'"),
    ],
)
def test_gguf_of_huge_and_foreign_shapes(
    fields: dict[str, object], tensors: dict[str, tuple[int, ...]], said: str, tmp_path: Path
) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf(fields, tensors))
    with pytest.raises(CheckpointError, match=said):
        GgufFile(tmp_path / "a.gguf")


def test_gguf_of_an_array_of_millions(tmp_path: Path) -> None:
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    (tmp_path / "a.gguf").write_bytes(head + struct.pack("<IIQ", 9, 0, 10**7) + bytes(10**7))
    with pytest.raises(CheckpointError, match="a field has 10000000 values, expected at most 4194304"):
        GgufFile(tmp_path / "a.gguf")


def test_errors_of_upsamplers_are_one_line(tmp_path: Path) -> None:
    from ltx_core.loader.checkpoint import Checkpoint

    data = (TINY_CHECKPOINT / "spatial-upscaler-x2-tiny.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    config = json.loads(header["__metadata__"]["config"])
    for changes in (
        {"dims": 5},
        {"in_channels": "x"},
        {"mid_channels": 7},
        {"num_blocks_per_stage": []},
        {"dims": None},
    ):
        header["__metadata__"] = {"config": json.dumps(config | changes)}
        text = json.dumps(header).encode()
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.open(tmp_path / "a.safetensors").build("latent_upsampler")
        assert "\n" not in str(caught.value)
