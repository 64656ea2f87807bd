"""`ltx lora`: what an adapter is, adapters merged into a model, the adapter between two models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltx_core.errors import CheckpointError
from ltx_pipelines.cli.command import AS_JSON, Command
from ltx_pipelines.planning.schema import File, Option, UsageError, options_of
from ltx_pipelines.request import Networks

ABOUT_INSPECT = """Show what an adapter changes and how strongly, and whether it fits a model.

Reads headers and the small tensors of scales only.
"""
ABOUT_MERGE = """Write a model's transformer file with adapters fused into it.

Weights are read and written layer by layer; what is quantised stays so, but for layers that an adapter changes.
"""
ABOUT_EXTRACT = """Write the adapter that makes one model of another, at most of a rank.

It is the best of that rank in the sense of least squares, layer by layer. Biases become differences.
"""
MODEL = Option("model", str, "", "A model: file, folder or 'tiny'.", metavar="MODEL")
OUTPUT = Option("output", str, "", "The safetensors file to write.", ("--output", "-o"), metavar="FILE")


def lora(line: Sequence[str]) -> None:
    """Run `ltx lora inspect`, `merge` or `extract`."""
    commands = {"inspect": INSPECT, "merge": MERGE, "extract": EXTRACT}
    if not line or line[0] not in commands:
        if line[:1] in (["--help"], ["-h"]):
            print("".join(command.help_text() for command in commands.values()), end="")
            return
        raise UsageError(f"expected `ltx lora` with one of {', '.join(commands)}")
    commands[line[0]](line[1:])


def inspect(given: dict[str, Any]) -> None:
    """Facts of an adapter as lines or JSON."""
    if "file" not in given:
        raise UsageError("no file is given, expected an adapter")
    facts = facts_of(Path(given["file"]), given.get("model"))
    if given.get("json"):
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    for key, value in facts.items():
        shown = ", ".join(f"{name} {count}" for name, count in value.items()) if isinstance(value, dict) else value
        print(f"{key:<14} {shown}")


def facts_of(path: Path, model: str | None) -> dict[str, Any]:
    """Kinds, modules, ranks and scales of an adapter, and how much of it fits a model."""
    from ltx_core.loader.lora import Lora

    one = Lora.open(path)
    layers = one.layers.values()
    ranks = Counter(layer.a.shape[0] for layer in layers if layer.a is not None)
    scales = sorted({round(layer.scale, 4) for layer in layers})
    facts: dict[str, Any] = {
        "file": str(path),
        "kinds": dict(Counter(kind for layer in layers for kind in _kinds(layer))),
        "modules": len(one.layers),
        "targets": dict(Counter(_target(name) for name in one.layers).most_common(12)),
        "ranks": {f"rank {rank}:": count for rank, count in sorted(ranks.items())},
        "scale": f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}",
    }
    facts |= {key: text for key, text in one.metadata.items() if len(text) < 200 and not key.endswith("blake2b")}
    if one.unused:
        facts["unused"] = ", ".join(one.unused[:5])
    if model:
        facts["fits"] = _fit(one, model)
    return facts


def _kinds(layer: Any) -> list[str]:
    fields = {"a": "low rank", "kron": "LoKr", "hadamard": "LoHa", "diff": "difference", "magnitude": "DoRA"}
    fields |= {"diff_b": "bias difference", "bias": "bias factor"}
    return [kind for field, kind in fields.items() if getattr(layer, field) is not None]


def _target(name: str) -> str:
    """The kind of a module: its name without the number of its block."""
    return ".".join(part for part in name.split(".") if not part.isdigit() and part != "transformer_blocks")


def _fit(one: Any, model: str) -> str:
    from ltx_pipelines.running.model_facts import ModelFacts
    from ltx_pipelines.running.model_files import find_model

    weights = ModelFacts(find_model(model).files).checkpoint.weights("transformer")
    shapes = {name: kind.shape for name, kind in weights.kinds().items()}
    lost = one.fit(shapes).unmatched(shapes.keys())
    return f"{model}, all of it" if not lost else f"{model}, but for {len(lost)}: {', '.join(lost[:5])}"


def merge(given: dict[str, Any]) -> None:
    """Fuse adapters, and write the file they are fused into."""
    _need(given, "model", "output", "loras")
    from ltx_core.loader.writing import merged_pieces
    from ltx_pipelines.running.model_files import find_model

    target = _free(given["output"])
    from ltx_pipelines.running.conversion import write_checked
    from ltx_pipelines.running.model_facts import ModelFacts
    from ltx_pipelines.running.whole_model import Model

    found = find_model(given["model"])
    facts = ModelFacts(found.files)
    facts.lora_precision = given.get("lora_precision") or facts.lora_precision
    pieces = merged_pieces(facts.checkpoint, [facts.lora(one) for one in given["loras"]])
    merged = [{"file": Path(one.path).name, "strength": one.strength} for one in given["loras"]]
    header = Model(found).metadata | {"merged_loras": json.dumps(merged)}
    header["config"] = json.dumps(facts.checkpoint.config)
    write_checked(target, pieces, header, print, target)


def extract(given: dict[str, Any]) -> None:
    """Decompose what differs between two models."""
    _need(given, "base", "tuned", "output")
    from ltx_core.loader.safetensors_file import save_checkpoint
    from ltx_core.loader.writing import extract as extracted
    from ltx_pipelines.running.model_facts import ModelFacts
    from ltx_pipelines.running.model_files import find_model

    target, rank = _free(given["output"]), given.get("rank", 32)
    base, tuned = (ModelFacts(find_model(given[name]).files).checkpoint for name in ("base", "tuned"))
    found = list(extracted(base, tuned, rank))
    if not found:
        raise CheckpointError(
            f"{given['base']} and {given['tuned']} have the same weights, there is nothing to extract"
        )
    tensors = {name: tensor for one in found for name, tensor in one.tensors.items()}
    save_checkpoint(target, tensors, {"format": "pt", "model_version": base.model_version, "lora_rank": str(rank)})
    shares = sorted(one.share for one in found)
    print(f"{target}: {len(found)} layers, rank {rank}, {target.stat().st_size / 1e6:.1f} MB")
    print(f"holds {shares[0]:.1%} to {shares[-1]:.1%} of what differs, {shares[len(shares) // 2]:.1%} in the middle")


def _need(given: dict[str, Any], *names: str) -> None:
    if missing := [name for name in names if not given.get(name)]:
        raise UsageError(f"--{missing[0].removesuffix('s')} is not given, see `ltx lora --help`")


def _free(path: str) -> Path:
    target = Path(path)
    if target.exists():
        raise CheckpointError(f"{target} exists, expected a file that is not there yet")
    if target.suffix != ".safetensors":
        raise UsageError(f"output is {target}, expected a name that ends in .safetensors")
    return target


FILE = {"file": Option("file", File, "", "The adapter.")}
NETWORKS = {name: options_of(Networks)[name] for name in ("loras", "lora_precision")}
MODELS = {
    "base": Option("base", str, "", "The model before.", metavar="MODEL"),
    "tuned": Option("tuned", str, "", "The model after.", metavar="MODEL"),
}
RANK = Option("rank", int, 32, "At most this rank in each layer.", least=1)
INSPECT = Command("lora inspect", ABOUT_INSPECT, {**FILE, "model": MODEL, "json": AS_JSON}, inspect, "file")
MERGE = Command("lora merge", ABOUT_MERGE, {"model": MODEL, "output": OUTPUT, **NETWORKS}, merge, "model output")
EXTRACT = Command(
    "lora extract", ABOUT_EXTRACT, {**MODELS, "output": OUTPUT, "rank": RANK}, extract, "base tuned output"
)
