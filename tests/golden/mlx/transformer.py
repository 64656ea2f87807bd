"""Golden operations of the transformer in MLX: outputs of every part and of whole models."""

from __future__ import annotations

import json
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import torch
from torch import Tensor

from ltx_core.model.transformer.config import StreamConfig, TransformerConfig
from ltx_core.utils import to_denoised
from ltx_mlx import transformer as net
from ltx_mlx.arrays import DTYPES, flat_parameters, to_mlx, to_torch
from ltx_mlx.layers import sinusoid
from ltx_mlx.weights import fill
from tests.golden.case import Case, read_header
from tests.golden.operations import Operation
from tests.golden.operations import transformer as torch_operations
from tests.golden.operations.transformer import MODEL_STREAMS, STREAMS, modality, perturbations, weights

Network = TypeVar("Network", bound=nn.Module)


def filled(module: Network, case: Case, prefix: str, dtype: torch.dtype = torch.float32) -> Network:
    """The module with exactly the case's tensors under the prefix."""
    return fill(module, ((name, tensor.to(dtype)) for name, tensor in weights(case, prefix).items()))


def rope(case: Case) -> dict[str, Tensor]:
    """Tables are shared; what MLX does with them is its own."""
    results = torch_operations.rope(case)
    if "x" in case.inputs:
        cos, sin = (results[f"out.{part}"] for part in ("cos", "sin"))
        results["out.x_rotated"] = to_torch(table(cos, sin).rotate(to_mlx(case.inputs["x"])))
    return results


def table(cos: Tensor, sin: Tensor) -> net.Rope:
    return net.Rope(*(to_mlx(part.transpose(1, 2) if part.ndim == 4 else part) for part in (cos, sin)))


def given_table(inputs: dict[str, Tensor], prefix: str) -> net.Rope | None:
    cos, sin = inputs.get(f"{prefix}cos"), inputs.get(f"{prefix}sin")
    return None if cos is None or sin is None else table(cos, sin)


def timestep_embedding(case: Case) -> dict[str, Tensor]:
    args = case.args
    found = sinusoid(to_mlx(case.inputs["timesteps"]), args.get("dim", 256), args.get("max_period", 10000))
    return {"out.embedding": to_torch(found)}


def adaln_single(case: Case) -> dict[str, Tensor]:
    args = case.args
    module = filled(net.AdaLayerNormSingle(args["dim"], args["num_params"]), case, args["prefix"])
    rows, embedded = module(to_mlx(case.inputs["timesteps"]), DTYPES[getattr(torch, args["hidden_dtype"])])
    return {"out.modulation": to_torch(rows).flatten(1), "out.embedded_timestep": to_torch(embedded)}


def attention(case: Case) -> dict[str, Tensor]:
    args, inputs = case.args, case.inputs
    width, context_width = args["query_dim"], args["context_dim"] or args["query_dim"]
    module = net.Attention(width, context_width, args["heads"], args["dim_head"], args["gated"], args["norm_eps"])
    filled(module, case, args["prefix"])
    x, context = (None if name not in inputs else to_mlx(inputs[name]) for name in ("x", "context"))
    rope_q = given_table(inputs, "pe_")
    known = module.keys_values(x if context is None else context, given_table(inputs, "k_pe_") or rope_q)
    keep = False if args["all_perturbed"] else keep_mask(inputs, "perturbation_mask")
    mask = None if "mask" not in inputs else to_mlx(inputs["mask"])
    if mask is not None and mask.ndim < 4:
        mask = mask[None, None] if mask.ndim == 2 else mask[:, None]
    return {"out.y": to_torch(module(x, known, rope_q, mask, keep))}


def keep_mask(inputs: dict[str, Tensor], name: str) -> net.Keep:
    return True if name not in inputs else to_mlx(inputs[name])


def feed_forward(case: Case) -> dict[str, Tensor]:
    module = filled(net.FeedForward(case.args["dim"], case.args["bias"]), case, case.args["prefix"])
    return {"out.y": to_torch(module(to_mlx(case.inputs["x"])))}


def caption_projection(case: Case) -> dict[str, Tensor]:
    args = case.args
    module = filled(net.TextProjection(args["caption_channels"], args["dim"]), case, args["prefix"])
    return {"out.y": to_torch(module(to_mlx(case.inputs["x"])))}


def output_head(case: Case) -> dict[str, Tensor]:
    prefix = case.args["prefix"]
    stream, state = "audio" if prefix.startswith("audio_") else "video", weights(case)
    out_channels, width = state[f"{prefix}proj_out.weight"].shape
    sizes = StreamConfig(1, width, 1, out_channels, (1,))
    streams = {name: sizes if name == stream else None for name in STREAMS}
    model = net.LTXModel(TransformerConfig(0, **streams, caption_channels=None, out_norm_eps=case.args["norm_eps"]))
    model.load_weights([(name, to_mlx(tensor)) for name, tensor in state.items()], strict=False)
    embedded = to_mlx(case.inputs["embedded_timestep"])  # [B, T, w]
    batch, tokens, _ = embedded.shape
    rows = mx.repeat(embedded.reshape(batch * tokens, 1, width), 2, axis=1)
    index = None if tokens == 1 else mx.arange(batch * tokens).reshape(batch, tokens)
    return {"out.y": to_torch(model.head(stream, to_mlx(case.inputs["x"]), net.Modulation(rows, index)))}


def keyframe_marker(case: Case) -> dict[str, Tensor]:
    x = case.inputs["x"]
    sizes = StreamConfig(1, x.shape[-1], x.shape[-1], 1, (1,))
    model = net.LTXModel(TransformerConfig(0, sizes, None, None, use_keyframes_abs_pos_embedding=True))
    model.load_weights([(name, to_mlx(tensor)) for name, tensor in weights(case).items()], strict=False)
    model.patchify_proj.weight, model.patchify_proj.bias = mx.eye(x.shape[-1]), mx.zeros(x.shape[-1])
    given = torch_operations.Modality(
        latent=x,
        timesteps=torch.ones(x.shape[0]),
        positions=torch.zeros(x.shape[0], 1, x.shape[1], 2),
        context=x,
        keyframes_mask=case.inputs["keyframes_mask"],
    )
    return {"out.y": to_torch(model.embed("video", given))}


def av_block(case: Case) -> dict[str, Tensor]:
    args = case.args
    state = weights(case, args["prefix"])
    biases = {name: f"{net.PREFIX[name]}ff.net.2.bias" in state for name in STREAMS}
    sizes = {
        name: StreamConfig(args[f"{name}_heads"], args[f"{name}_dim_head"], 1, 1, (1,), ff_bias=biases[name])
        if f"{net.PREFIX[name]}attn1.to_q.weight" in state
        else None
        for name in STREAMS
    }
    config = TransformerConfig(
        num_layers=1,
        **sizes,
        caption_channels=None,
        norm_eps=args["norm_eps"],
        qk_norm_eps=args["norm_eps"],
        rope_type=args["rope_type"],
        apply_gated_attention=args["gated"],
        cross_attention_adaln=args["cross_attention_adaln"],
    )
    block = fill(net.TransformerBlock(config), state.items())
    given = [name for name in STREAMS if f"{name}_x" in case.inputs]
    inputs = {name: block_inputs(case, name, config) for name in given}
    keeps = {
        kind: keep if isinstance(keep, bool) else to_mlx(keep)
        for kind, keep in torch_operations.block_keep(case).items()
    }
    tokens = {name: to_mlx(case.inputs[f"{name}_x"]) for name in given}
    texts = {name: net.TextCache((0, name), {}) for name in given}
    return {f"out.{name}_x": to_torch(x) for name, x in block(tokens, inputs, keeps, texts).items()}


def block_inputs(case: Case, name: str, config: TransformerConfig) -> net.StreamInputs:
    inputs = case.group(f"in.{name}_")
    optional = {key: to_mlx(inputs[key]) for key in ("context_mask", "self_attention_bias") if key in inputs}
    prompt, cross_rope, rope_table = (
        inputs.get("prompt_modulation"),
        given_table(inputs, "cross_rope_"),
        given_table(inputs, "rope_"),
    )
    cross = None
    if cross_rope is not None:
        cross = net.CrossInputs(cross_rope, rows_of(inputs["cross_scale_shift"], 4), rows_of(inputs["cross_gate"], 1))
    context = inputs["context"]
    return net.StreamInputs(
        runs=bool(case.args[f"{name}_enabled"]),
        modulation=rows_of(inputs["modulation"], config.modulation_rows),
        embedded=net.Modulation(mx.zeros((1, 2, 1))),
        rope=rope_table,
        prompt=None if prompt is None else rows_of(prompt, 2),
        self_mask=optional.get("self_attention_bias"),
        cross=cross,
        context=to_mlx(context),
        context_mask=optional.get("context_mask"),
        text_labels=tuple(range(context.shape[0])),
    )


def rows_of(modulation: Tensor, count: int) -> net.Modulation:
    """Rows that were computed for every token or sample, ``[B, 1 or T, k * width]``."""
    batch, tokens, _ = modulation.shape
    rows = to_mlx(modulation.reshape(batch * tokens, count, -1))
    return net.Modulation(rows, None if tokens == 1 else mx.arange(batch * tokens).reshape(batch, tokens))


def build_model(case: Case, streams: tuple[str, ...] | None = None) -> net.LTXModel:
    header = json.loads(read_header(case.weights_path)["__metadata__"]["config"])
    model = net.LTXModel(TransformerConfig.from_metadata(header, streams))
    latent = next(value for name, value in case.inputs.items() if name.endswith("_latent"))
    own = set(flat_parameters(model))
    state = {name: value for name, value in weights(case).items() if name in own or streams in (None, STREAMS)}
    return fill(model, ((name, value.to(latent.dtype)) for name, value in state.items()))


def forward(case: Case) -> dict[str, Tensor]:
    model = build_model(case, MODEL_STREAMS[case.args["model_type"]])
    given = {name: modality(case, name) for name in STREAMS}
    results: dict[str, Tensor] = {}
    for name, velocity in zip(STREAMS, model(**given, perturbations=perturbations(case)), strict=True):
        stream = given[name]
        if velocity is not None and stream is not None:
            results[f"out.{name}_velocity"] = velocity
            results[f"out.{name}_x0"] = to_denoised(stream.latent, velocity, stream.per_token_timesteps)
    return torch_operations.present(case, results)


def ltxv_forward(case: Case) -> dict[str, Tensor]:
    perturbed = None
    if (mask := case.inputs.get("skip_layer_mask")) is not None:
        perturbed = torch_operations.BatchedPerturbationConfig.from_skip_mask(mask, case.args["skip_strategy"])
    velocity, _ = build_model(case)(modality(case, "video"), None, perturbed)
    assert velocity is not None
    return {"out.video_velocity": velocity}


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("transformer", "rope"): rope,
    ("transformer", "timestep_embedding"): timestep_embedding,
    ("transformer", "adaln_single"): adaln_single,
    ("transformer", "attention"): attention,
    ("transformer", "feed_forward"): feed_forward,
    ("transformer", "caption_projection"): caption_projection,
    ("transformer", "output_head"): output_head,
    ("transformer", "keyframe_marker"): keyframe_marker,
    ("transformer", "av_block"): av_block,
    ("transformer", "forward"): forward,
    ("transformer", "ltxv_forward"): ltxv_forward,
}
#: Computed by shared torch code whatever the backend.
SHARED = {("transformer", name) for name in ("context_mask", "self_attention_mask", "x0")}
