"""Golden operations of the latent upsampler in MLX."""

from __future__ import annotations

import re

from safetensors.torch import load_file
from torch import Tensor

from ltx_core.model.upsampler.model import upsample_latent
from ltx_mlx import upsampler as net
from ltx_mlx.arrays import channels_first, channels_last, to_torch
from ltx_mlx.weights import fill
from tests.golden.case import Case
from tests.golden.operations import Operation
from tests.golden.operations.upsampler import load_config


def load_upsampler(case: Case) -> net.LatentUpsampler:
    dtype = case.inputs["latent"].dtype
    state = ((name, tensor.to(dtype)) for name, tensor in load_file(case.weights_path).items())
    return fill(net.LatentUpsampler(load_config(case)), state)


def shuffle(case: Case) -> dict[str, Tensor]:
    results = {}
    for name, x in case.inputs.items():
        factors = tuple(case.args[name])
        whole = (1,) * (x.ndim - 2 - len(factors))  # axes the name leaves out: those after T, or T before H and W
        every = factors + whole if name.startswith("t") else whole + factors
        results[f"out.{name}"] = channels_first(net.depth_to_space(channels_last(x), every))
    return results


def blur(case: Case) -> dict[str, Tensor]:
    results = {"out.kernel": to_torch(net.BlurDownsample(1).kernel)}
    for name, x in case.inputs.items():
        stride = re.match(r"s(\d+)_", name)
        assert stride is not None, name
        results[f"out.{name}"] = channels_first(net.BlurDownsample(int(stride[1]))(channels_last(x)))
    return results


def res_block(case: Case) -> dict[str, Tensor]:
    config, start = load_config(case), "res_blocks.0."
    state = load_file(case.weights_path).items()
    block = fill(
        net.ResBlock(config.mid_channels, config.dims),
        ((name.removeprefix(start), tensor) for name, tensor in state if name.startswith(start)),
    )
    return {"out.y": channels_first(block(channels_last(case.inputs["x"])))}


def forward(case: Case) -> dict[str, Tensor]:
    return {"out.latent": load_upsampler(case)(case.inputs["latent"])}


def normalised(case: Case) -> dict[str, Tensor]:
    given = (case.inputs[name] for name in ("mean_of_means", "std_of_means"))
    return {"out.latent": upsample_latent(case.inputs["latent"], load_upsampler(case), *given)}


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("upsampler", "channel-to-space"): shuffle,
    ("upsampler", "anti-aliased strided blur"): blur,
    ("upsampler", "res_blocks.0 alone"): res_block,
    ("upsampler", "LatentUpsampler forward on an un-normalised latent"): forward,
    ("upsampler", "upsample a normalised latent"): normalised,
}
#: What LTX-Video does to latents between its passes.
SHARED = {("upsampler.ltxv", "statistics matching and tone mapping of latents")}
