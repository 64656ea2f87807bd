"""What reads files of others, each with whole files to damage: `TARGETS` by name."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import tempfile
import wave
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.textfiles import read_csv, read_json, read_json_lines, read_yaml
from tests.fuzz.harness import Mutator, Target
from tests.fuzz.mutate import as_json, mutate_bytes, mutate_json, mutate_safetensors, mutate_value
from tests.golden.case import TINY_CHECKPOINT
from tests.tiny_checkpoints import UPSAMPLER, upsampler_tensors

TEXT_FILE = "request.json"


def quietly(line: list[str]) -> None:
    """Run a line of `ltx`, its errors raised, up to where a clip would be made."""
    from ltx_pipelines.cli.app import dispatch

    with (
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        patch("ltx_pipelines.cli.job.execute", lambda *arguments: None),
    ):
        dispatch(line)


@cache
def recipe() -> dict[str, Any]:
    """The recipe of a clip of two stages with a picture and guidance."""
    from ltx_pipelines.distilled import DistilledPipeline
    from ltx_pipelines.running.model_files import find_model
    from ltx_pipelines.running.recipe import make_recipe
    from ltx_pipelines.utils.model_ledger import ModelLedger

    pipeline = DistilledPipeline(ModelLedger(find_model("tiny").files))
    plan = pipeline.plan(prompt="a bell rings", height=64, width=64, num_frames=9, seed=3)
    options = {"prompt": "a bell rings", "seed": 3, "height": 64, "width": 64, "num_frames": 9, "loras": []}
    return make_recipe(plan, {"command": "distilled", "options": options})


@cache
def named_recipe() -> dict[str, Any]:
    """The same as a clip carries it."""
    from ltx_pipelines.running.recipe import without_folders

    return without_folders(recipe(), Path("clip.png"))


def recipes() -> dict[str, bytes]:
    return {"whole.json": json.dumps(recipe()).encode(), "named.json": json.dumps(named_recipe()).encode()}


def read_recipe(path: Path) -> None:
    """A picture whose text is the recipe: shown, then made again with and without a change."""
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_itxt("recipe", path.read_bytes().decode("utf-8", "replace"))
    clip = path.with_suffix(".png")
    Image.new("RGB", (8, 8)).save(clip, pnginfo=text)
    quietly(["inspect", str(clip), "--trust"])
    quietly(["rerun", str(clip), "--trust", "-q"])
    quietly(["rerun", str(clip), "--trust", "-q", "--seed", "5"])


@cache
def stage_file() -> bytes:
    tensors = {"video": torch.zeros(1, 16, 2, 2, 2), "rng_state": torch.get_rng_state()}
    return save(tensors, {name: json.dumps(named_recipe()[name]) for name in ("plan", "files")})


def read_batch(path: Path) -> None:
    from ltx_pipelines.cli import batch
    from ltx_pipelines.cli.batch_work import There

    with patch.object(batch, "what_is_there", lambda given: There()):
        quietly(["batch", str(path), "-q", "-o", str(path.parent / "clips")])


def read_texts(path: Path) -> None:
    if path.suffix == ".yaml":
        repr(read_yaml(path))
    elif path.suffix == ".csv":
        read_csv(path)
    elif path.suffix == ".jsonl":
        list(read_json_lines(path))
    else:
        read_json(path)


def read_training_config(path: Path) -> None:
    from ltx_trainer.config_file import read_config

    read_config(path)


def read_table(path: Path) -> None:
    from ltx_trainer.processing.metadata import read_rows

    read_rows(path)


def read_training_file(path: Path) -> None:
    """A record, a state, and the list of a table."""
    from ltx_trainer.precomputed import listed_rows, read_inputs, read_record, read_values, signature
    from ltx_trainer.state import load_state, state_header

    if path.suffix == ".json":
        listed_rows(path.parent)
    elif "state" in path.name:
        state_header(path)
        load_state(path)
    else:
        read_record(path)
        read_values(path)
        read_inputs(path)
        signature(path)


def read_weights(path: Path) -> None:
    """Everything a file holds, as the loader and `ltx inspect` see it."""
    quietly(["inspect", str(path)])
    checkpoint = Checkpoint.open(path)
    for name in checkpoint.components:
        if name != "text_encoder":
            checkpoint.build(name)


def read_gguf(path: Path) -> None:
    from ltx_core.loader.gguf import GgufFile

    file = GgufFile(path)
    for name in file.tensors:
        file.read(name)
    quietly(["inspect", str(path)])


def read_adapter(path: Path) -> None:
    from ltx_core.loader.lora import Lora

    quietly(["inspect", str(path)])
    lora = Lora.open(path)
    for layer in lora.layers.values():
        repr(layer)


@cache
def _tiny_header() -> tuple[dict[str, Any], int]:
    data = (TINY_CHECKPOINT / "ltx-2-tiny.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), len(data) - 8 - length


def read_model_config(path: Path) -> None:
    """A checkpoint with this config and the tensors of the tiny one: every network without its data."""
    header, size = _tiny_header()
    header = {
        **header,
        "__metadata__": {"config": path.read_bytes().decode("utf-8", "replace"), "model_version": "2.3"},
    }
    text = as_json(header)
    model = path.with_suffix(".safetensors")
    model.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(model, 8 + len(text) + size)
    checkpoint = Checkpoint.open(model)
    problem = None
    for name in (name for name in checkpoint.components if name != "embeddings"):
        try:
            checkpoint.empty_network(checkpoint.weights(name))
        except ValueError as error:  # of the family; one component does not hide the next
            problem = error
    if problem is not None:
        raise problem


@cache
def _gemma() -> Path:
    from tests.tiny_text_encoders import PER_PROMPT, write_checkpoint, write_gemma

    folder = Path(tempfile.mkdtemp(prefix="ltx-fuzz-gemma-"))
    write_gemma(folder / "gemma")
    write_checkpoint(folder / "model.safetensors", PER_PROMPT, model_version="2.3.0")
    return folder


def read_text_encoder(path: Path) -> None:
    """A Gemma folder one of whose JSON files is this one."""
    from ltx_core.text_encoders.gemma.encoder import load_text_encoder

    folder = path.parent / "gemma"
    folder.mkdir(exist_ok=True)
    for file in (_gemma() / "gemma").iterdir():
        target = folder / file.name
        target.unlink(missing_ok=True)
        if file.name == path.name:
            target.write_bytes(path.read_bytes())
        else:
            target.symlink_to(file)
    encoder = load_text_encoder(folder, Checkpoint.open(_gemma() / "model.safetensors"), torch.float32)
    encoder.features(["a red boat"])


def read_media(path: Path) -> None:
    """A picture, clip or sound as every task reads it, and the recipe in it."""
    from ltx_core.errors import MediaError
    from ltx_media.audio import probe_sound, read_audio
    from ltx_media.containers import read_recipe as recipe_of
    from ltx_media.source import Wanted, normalize_source

    problem: MediaError | None = None
    for read in (
        lambda: normalize_source(path, Wanted(32, 32, 9)),
        lambda: normalize_source(path, Wanted(32, 32, 9, 24.0, 0.1, fit="cover")),
        lambda: read_audio(path),
        lambda: read_audio(path, 0.1, 0.1),
        lambda: probe_sound(path),
        lambda: recipe_of(path),
    ):
        try:
            read()
        except MediaError as error:
            if "\n" in str(error):
                raise
            problem = error
    if problem is not None:
        raise problem


def read_camera(path: Path) -> None:
    from ltx_media.camera.path import read_camera_path

    read_camera_path(path)


# Whole files ------------------------------------------------------------------------------------------------------


@cache
def text_files() -> dict[str, bytes]:
    nested = {"a": [1, 2.5, {"b": None}], "c": "text", "d": [[1], [2]], "n": 10**6}
    yaml = "a: &a [1, 2, {b: c}]\nd: *a\ne: {<<: {x: 1}, y: 2}\nf: 1e-4\ng: !!python/tuple [1, 2]\n"
    return {
        "a.json": json.dumps(nested).encode(),
        "a.jsonl": b'{"a": 1}\n\n{"b": [1, 2]}\n',
        "a.yaml": yaml.encode(),
        "a.csv": 'caption,video\n"a, b",c.mp4\nd,e.mp4\n'.encode("utf-8-sig"),
    }


@cache
def _still() -> Path:
    from PIL import Image

    path = Path(tempfile.mkdtemp(prefix="ltx-fuzz-still-")) / "a.png"
    Image.new("RGB", (64, 64), (200, 30, 40)).save(path)
    return path


@cache
def requests() -> dict[str, bytes]:
    entry = {
        "prompt": "a cat",
        "seeds": "1-2",
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "image": [[str(_still()), 0, 1.0]],
        "model": "tiny",
        "output": "cat.mp4",
        "pipeline": "distilled",
        "frame_rate": 24.0,
    }
    return {TEXT_FILE.replace(".json", ".jsonl"): json.dumps(entry).encode()}


@cache
def training_configs() -> dict[str, bytes]:
    import yaml

    from tests.tiny_training import raw_config

    root = Path(tempfile.mkdtemp(prefix="ltx-fuzz-data-"))
    for directory in ("conditions", "latents", "audio_latents"):
        (root / directory).mkdir()
    raw = raw_config(Path(__file__), root, root)
    prompts = {"interval": 2, "samples": [{"prompt": "x", "conditions": []}], "video_dims": [64, 64, 9]}
    return {"train.yaml": yaml.safe_dump({**raw, "validation": prompts}).encode()}


def mutate_yaml(data: bytes, rng: random.Random) -> bytes:
    """YAML damaged as a value (JSON is YAML) or as text."""
    import yaml

    return mutate_bytes(data, rng) if rng.random() < 0.2 else as_json(mutate_value(yaml.safe_load(data), rng))


@cache
def tables() -> dict[str, bytes]:
    rows = [{"caption": "a", "video": "a.mp4", "video_mask": "m.png"}, {"caption": "b", "video": "b/c.mp4"}]
    return {"t.json": json.dumps(rows).encode()}


@cache
def training_files() -> dict[str, bytes]:
    latents = {"latents": torch.zeros(4, 1, 2, 2)}
    caption = {"video_prompt_embeds": torch.zeros(3, 4)}
    values = {"num_frames": 1, "height": 2, "width": 2, "fps": 24.0}
    state = {"model.a": torch.zeros(2), "optimizer.a.step": torch.zeros(1), "rng.cpu": torch.get_rng_state()}
    return {
        "record.safetensors": save(latents, {"values": json.dumps(values), "inputs": json.dumps({"file": "1-a"})}),
        "caption.safetensors": save(caption, {"values": json.dumps({"padded_length": 8})}),
        "state.safetensors": save(state, {"state": json.dumps({"step": 3, "fingerprint": {"seed": 1}})}),
        "table.t-json.json": json.dumps({"table": "t.json", "rows": {"a": ["caption", "video"]}}).encode(),
    }


def mutate_training_file(data: bytes, rng: random.Random) -> bytes:
    if data[:1] == b"{":
        return mutate_json(data, rng)
    return mutate_safetensors("values", "inputs", "state")(data, rng)


@cache
def weights() -> dict[str, bytes]:
    upsampler = save(upsampler_tensors(), {"config": json.dumps(UPSAMPLER)})
    return {"upsampler.safetensors": upsampler}


@cache
def adapters() -> dict[str, bytes]:
    layer = "diffusion_model.transformer_blocks.0.attn1.to_q"
    peft = {
        f"{layer}.lora_A.weight": torch.zeros(2, 8),
        f"{layer}.lora_B.weight": torch.zeros(8, 2),
        f"{layer}.alpha": torch.tensor(2.0),
    }
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["to_q"], "rank_pattern": {}, "alpha_pattern": {}}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()})}
    return {"lora.safetensors": save(peft, {**metadata, "reference_downscale_factor": "2"})}


@cache
def model_configs() -> dict[str, bytes]:
    return {"config.json": _tiny_header()[0]["__metadata__"]["config"].encode()}


@cache
def text_encoders() -> dict[str, bytes]:
    folder = _gemma() / "gemma"
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.json"))}


def gguf(fields: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> bytes:
    """A GGUF file of float32 zeros."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields))]
    for key, value in fields.items():
        if isinstance(value, list):
            data = struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
        else:
            data = struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<II", 4, value)
        parts.append(text(key) + data)
    offset = 0
    for name, shape in tensors.items():
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        parts.append(text(name) + sizes + struct.pack("<IQ", 0, offset))
        offset += 4 * int(torch.Size(shape).numel())
    head = b"".join(parts)
    return head + bytes(-len(head) % 32) + bytes(offset)


@cache
def gguf_files() -> dict[str, bytes]:
    fields = {"general.architecture": "ltxv", "general.alignment": 32, "comfy.gguf.orig_shape.a": [2, 4], "b": [1, 2]}
    return {"model.gguf": gguf(fields, {"a": (8,), "transformer_blocks.0.attn1.to_q.weight": (4, 4)})}


@cache
def media_files() -> dict[str, bytes]:
    from PIL import Image

    from ltx_core.types import Audio
    from ltx_media.writer import write_video

    pixels = torch.arange(40 * 48 * 3, dtype=torch.int32).reshape(40, 48, 3).mul(7).remainder(251).to(torch.uint8)
    files: dict[str, bytes] = {}
    image = Image.fromarray(pixels.numpy())
    for kind in ("png", "jpeg", "webp", "bmp", "tiff", "gif"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        files[f"a.{kind}"] = buffer.getvalue()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(range(256)) * 32)
    files["a.wav"] = buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "a.mp4"
        tone = torch.sin(torch.arange(8000) / 9)[None]
        write_video(clip, [pixels[:32, :32]] * 9, 24, Audio(tone, 16000), metadata={"recipe": json.dumps({"plan": {}})})
        files["a.mp4"] = clip.read_bytes()
    return files


@cache
def camera_files() -> dict[str, bytes]:
    keys = [{"t": 0, "position": [0, 0, 0], "rotation": [0, 0, 0]}, {"t": 1, "position": [0, 0, 1], "fov": 50}]
    return {"path.json": json.dumps({"fov": 60, "interpolation": "linear", "keys": keys}).encode()}


def target(name: str, read: Callable[[Path], Any], seeds: Callable[[], dict[str, bytes]], mutate: Mutator) -> Target:
    return Target(name, read, seeds, mutate)


TARGETS = {
    one.name: one
    for one in (
        target("texts", read_texts, text_files, mutate_bytes),
        target("recipes", read_recipe, recipes, mutate_json),
        target(
            "stages",
            lambda path: quietly(["finish", str(path), "--trust", "-q"]),
            lambda: {"a.stage1.safetensors": stage_file()},
            mutate_safetensors("plan"),
        ),
        target("batches", read_batch, requests, mutate_json),
        target("training-configs", read_training_config, training_configs, mutate_yaml),
        target("tables", read_table, tables, mutate_json),
        target("training-files", read_training_file, training_files, mutate_training_file),
        target("weights", read_weights, weights, mutate_safetensors("config")),
        target("adapters", read_adapter, adapters, mutate_safetensors("lora_adapter_metadata")),
        target("model-configs", read_model_config, model_configs, mutate_json),
        target("text-encoders", read_text_encoder, text_encoders, mutate_json),
        target("gguf", read_gguf, gguf_files, mutate_bytes),
        target("media", read_media, media_files, mutate_bytes),
        target("camera-paths", read_camera, camera_files, mutate_json),
    )
}
