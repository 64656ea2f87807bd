"""Golden operations of the latent upsampler."""

from __future__ import annotations

import json
import re

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ltx_core.components.joining import adain
from ltx_core.model.upsampler.config import LatentUpsamplerConfig
from ltx_core.model.upsampler.model import (
    BlurDownsample,
    LatentUpsampler,
    ResBlock,
    depth_to_space,
    tone_map_latent,
    upsample_latent,
)
from tests.golden.case import Case, read_header
from tests.golden.operations import Operation


def load_config(case: Case) -> LatentUpsamplerConfig:
    return LatentUpsamplerConfig.from_metadata(json.loads(read_header(case.weights_path)["__metadata__"]["config"]))


def load_upsampler(case: Case) -> LatentUpsampler:
    """The case's upsampler, computing in the latent's dtype whatever its file is stored in."""
    with torch.device("meta"):
        model = LatentUpsampler(load_config(case))
    model.load_state_dict(load_file(case.weights_path), assign=True, strict=True)
    return model.to(case.inputs["latent"].dtype).eval()


def record(module: nn.Module, case: Case) -> dict[str, Tensor]:
    """Outputs of the submodules the case names under `mid.`, filled while the module runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda _module, _inputs, output: seen.update({f"mid.{name}": output})

    for name in case.group("mid."):
        module.get_submodule(name).register_forward_hook(keep(name))
    return seen


@torch.inference_mode()
def shuffle(case: Case) -> dict[str, Tensor]:
    results = {}
    for name, x in case.inputs.items():
        factors = tuple(case.args[name])
        whole = (1,) * (x.ndim - 2 - len(factors))  # axes the name leaves out: those after T, or T before H and W
        results[f"out.{name}"] = depth_to_space(x, factors + whole if name.startswith("t") else whole + factors)
    return results


@torch.inference_mode()
def blur(case: Case) -> dict[str, Tensor]:
    taps = torch.tensor(case.args["kernel"], dtype=torch.float32)
    kernel = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    assert torch.allclose(BlurDownsample(1).kernel, kernel)
    results = {"out.kernel": BlurDownsample(1).kernel}
    for name, x in case.inputs.items():
        stride = re.match(r"s(\d+)_", name)
        assert stride is not None, name
        results[f"out.{name}"] = BlurDownsample(int(stride[1]))(x)
    return results


@torch.inference_mode()
def res_block(case: Case) -> dict[str, Tensor]:
    config = load_config(case)
    block = ResBlock(config.mid_channels, config.dims)
    block.load_state_dict({name.removeprefix("res_blocks.0."): t for name, t in load_file(case.weights_path).items()})
    block.to(case.inputs["x"].dtype)
    seen = record(block, case)
    return {"out.y": block(case.inputs["x"])} | seen


@torch.inference_mode()
def forward(case: Case) -> dict[str, Tensor]:
    model = load_upsampler(case)
    seen = record(model, case)
    return {"out.latent": model(case.inputs["latent"])} | seen


@torch.inference_mode()
def normalised(case: Case) -> dict[str, Tensor]:
    model = load_upsampler(case)
    seen: dict[str, Tensor] = {}
    model.register_forward_hook(
        lambda _module, inputs, output: seen.update({"mid.un_normalised": inputs[0], "mid.upsampled": output})
    )
    x = case.inputs
    latent = upsample_latent(x["latent"], model, x["mean_of_means"], x["std_of_means"])
    return {"out.latent": latent} | {name: value for name, value in seen.items() if name in case.tensors}


@torch.inference_mode()
def statistics(case: Case) -> dict[str, Tensor]:
    latent, reference = case.inputs["latent"], case.inputs["reference"]
    matched = {f"out.adain_{factor}": adain(latent, reference, factor) for factor in case.args["factors"]}
    tone = {f"out.tone_{ratio}": tone_map_latent(latent, ratio) for ratio in case.args["compression"]}
    return matched | tone


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("upsampler", "channel-to-space"): shuffle,
    ("upsampler", "anti-aliased strided blur"): blur,
    ("upsampler", "res_blocks.0 alone"): res_block,
    ("upsampler", "LatentUpsampler forward on an un-normalised latent"): forward,
    ("upsampler", "upsample a normalised latent"): normalised,
    ("upsampler.ltxv", "statistics matching and tone mapping of latents"): statistics,
}
