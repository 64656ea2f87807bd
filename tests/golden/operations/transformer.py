"""Golden operations of the transformer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ltx_core.guidance.perturbations import (
    BatchedPerturbationConfig,
    Keep,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.model.transformer.attention import Attention, Bypass
from ltx_core.model.transformer.block import CrossInputs, StreamInputs, TextInputs, TransformerBlock
from ltx_core.model.transformer.config import StreamConfig, TransformerConfig
from ltx_core.model.transformer.layers import (
    AdaLayerNormSingle,
    FeedForward,
    Modulation,
    TextProjection,
)
from ltx_core.model.transformer.masks import context_bias, self_attention_bias
from ltx_core.model.transformer.modality import Modality, check_modalities
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.model.transformer.rope import RotaryEmbedding, RotaryTable, token_points
from ltx_core.utils import timestep_embedding, to_denoised
from tests.golden.case import Case, read_header
from tests.golden.operations import Operation

PREFIX = "model.diffusion_model."
STREAMS = ("video", "audio")
MODEL_STREAMS = {"av": STREAMS, "video": ("video",), "audio": ("audio",)}


def weights(case: Case, prefix: str = "") -> dict[str, Tensor]:
    """The case's tensors under ``prefix`` (without its dot), by the rest of their names; not the connectors."""
    start = f"{PREFIX}{prefix}." if prefix else PREFIX
    tensors = load_file(case.weights_path)
    return {
        name.removeprefix(start): value
        for name, value in tensors.items()
        if name.startswith(start) and "embeddings_connector." not in name
    }


def filled(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The module with exactly these tensors, in evaluation mode."""
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


def present(case: Case, results: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The results the case holds."""
    return {name: value for name, value in results.items() if value is not None and name in case.tensors}


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The last output of each module, by the given names."""
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            outputs[name] = output

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in modules.items()]
    yield outputs
    for handle in handles:
        handle.remove()


def rope(case: Case) -> dict[str, Tensor]:
    args = case.args
    embedding = RotaryEmbedding(
        args["dim"],
        args["num_heads"],
        tuple(args["max_pos"]),
        args["theta"],
        args["rope_type"],
        args["double_precision"],
    )
    points = token_points(case.inputs["positions"], args["use_middle_indices_grid"])
    table = embedding.table(points, getattr(torch, args["out_dtype"]))
    x = case.inputs.get("x")
    results = {
        "out.cos": table.cos,
        "out.sin": table.sin,
        "out.x_rotated": None if x is None else table.rotate(x),
        "mid.freq_grid": embedding.frequencies(),
        "mid.angles": embedding.angles(points),
    }
    return present(case, results)


def sinusoid(case: Case) -> dict[str, Tensor]:
    args = case.args
    assert args.get("flip_sin_to_cos", True) and args.get("downscale_freq_shift", 0) == 0
    embedding = timestep_embedding(
        case.inputs["timesteps"], args.get("dim", 256), max_period=args.get("max_period", 10000)
    )
    return {"out.embedding": embedding}


def adaln_single(case: Case) -> dict[str, Tensor]:
    args = case.args
    module = filled(AdaLayerNormSingle(args["dim"], args["num_params"]), weights(case, args["prefix"]))
    timesteps = case.inputs["timesteps"]
    rows, embedded = module(timesteps, getattr(torch, args["hidden_dtype"]))
    results = {
        "out.modulation": rows.flatten(1),
        "out.embedded_timestep": embedded,
        "mid.sinusoid": timestep_embedding(timesteps),
    }
    return present(case, results)


def attention(case: Case) -> dict[str, Tensor]:
    args, inputs = case.args, case.inputs
    width, context_width = args["query_dim"], args["context_dim"] or args["query_dim"]
    module = Attention(width, context_width, args["heads"], args["dim_head"], gated=args["gated"], eps=args["norm_eps"])
    filled(module, weights(case, args["prefix"]))
    query_rope = table(inputs, "pe_")
    key_rope = table(inputs, "k_pe_") or query_rope
    keep: Keep = False if args["all_perturbed"] else inputs.get("perturbation_mask", True)
    x, context = inputs["x"], inputs.get("context")
    y = module(x, context, rope=query_rope, key_rope=key_rope, bias=inputs.get("mask"), bypass=Bypass(keep))
    projected = module.project_context(x if context is None else context, key_rope)
    results = {
        "out.y": y,
        "mid.q_normed": module.project_queries(x),
        "mid.q": module.project_queries(x, query_rope),
        "mid.k": projected.keys,
        "mid.v": projected.values,
    }
    return present(case, results)


def table(inputs: Mapping[str, Tensor], prefix: str) -> RotaryTable | None:
    cos, sin = inputs.get(f"{prefix}cos"), inputs.get(f"{prefix}sin")
    return None if cos is None or sin is None else RotaryTable(cos, sin)


def context_mask(case: Case) -> dict[str, Tensor]:
    bias = context_bias(case.inputs["mask"], getattr(torch, case.args["dtype"]))
    assert bias is not None
    return {"out.bias": bias}


def self_attention_mask(case: Case) -> dict[str, Tensor]:
    bias = self_attention_bias(case.inputs["mask"], getattr(torch, case.args["dtype"]))
    assert bias is not None
    return {"out.bias": bias}


def feed_forward(case: Case) -> dict[str, Tensor]:
    args = case.args
    return {"out.y": filled(FeedForward(args["dim"], args["bias"]), weights(case, args["prefix"]))(case.inputs["x"])}


def caption_projection(case: Case) -> dict[str, Tensor]:
    args = case.args
    module = filled(TextProjection(args["caption_channels"], args["dim"]), weights(case, args["prefix"]))
    return {"out.y": module(case.inputs["x"])}


def output_head(case: Case) -> dict[str, Tensor]:
    prefix = case.args["prefix"]
    stream = "audio" if prefix.startswith("audio_") else "video"
    state = weights(case)
    out_channels, width = state[f"{prefix}proj_out.weight"].shape
    sizes = StreamConfig(1, width, 1, out_channels, (1,))
    model = LTXModel(
        TransformerConfig(
            num_layers=0,
            video=sizes if stream == "video" else None,
            audio=sizes if stream == "audio" else None,
            caption_channels=None,
            out_norm_eps=case.args["norm_eps"],
        )
    )
    model.load_state_dict(state, strict=False, assign=True)
    embedded = case.inputs["embedded_timestep"]
    return {"out.y": model.head(stream, case.inputs["x"], Modulation.from_tokens(embedded.repeat(1, 1, 2), 2))}


def keyframe_marker(case: Case) -> dict[str, Tensor]:
    x = case.inputs["x"]
    sizes = StreamConfig(1, x.shape[-1], x.shape[-1], 1, (1,))
    config = TransformerConfig(0, sizes, None, None, use_keyframes_abs_pos_embedding=True)
    model = LTXModel(config)
    model.load_state_dict(weights(case), strict=False)
    projection = model.get_submodule("patchify_proj")
    nn.init.eye_(projection.get_parameter("weight"))
    nn.init.zeros_(projection.get_parameter("bias"))
    model.to(x.dtype)
    modality = Modality(
        latent=x,
        timesteps=torch.ones(x.shape[0]),
        positions=torch.zeros(x.shape[0], 1, x.shape[1], 2),
        context=x,
        keyframes_mask=case.inputs["keyframes_mask"],
    )
    return {"out.y": model.embed({"video": modality})["video"]}


def x0(case: Case) -> dict[str, Tensor]:
    return {"out.x0": to_denoised(case.inputs["latent"], case.inputs["velocity"], case.inputs["timesteps"])}


def av_block(case: Case) -> dict[str, Tensor]:
    args = case.args
    state = weights(case, args["prefix"])
    sizes = {
        name: StreamConfig(
            args[f"{name}_heads"],
            args[f"{name}_dim_head"],
            1,
            1,
            (1,),
            ff_bias=("" if name == "video" else "audio_") + "ff.net.2.bias" in state,
        )
        for name in STREAMS
    }
    config = TransformerConfig(
        num_layers=1,
        video=sizes["video"] if "attn1.to_q.weight" in state else None,
        audio=sizes["audio"] if "audio_attn1.to_q.weight" in state else None,
        caption_channels=None,
        norm_eps=args["norm_eps"],
        qk_norm_eps=args["norm_eps"],
        rope_type=args["rope_type"],
        apply_gated_attention=args["gated"],
        cross_attention_adaln=args["cross_attention_adaln"],
    )
    block = filled(TransformerBlock(config), state)
    given = [name for name in STREAMS if f"{name}_x" in case.inputs]
    inputs = {name: block_inputs(case, name, config) for name in given}
    names = [name.removeprefix("mid.") for name in case.tensors if name.startswith("mid.")]
    with recorded({name: block.get_submodule(name) for name in names}) as outputs:
        masks = {name: case.tensors.get(f"in.{name}_context_mask") for name in given}
        texts = {name: TextInputs(case.inputs[f"{name}_context"], bias=masks[name]) for name in given}
        tokens = block({name: case.inputs[f"{name}_x"] for name in given}, inputs, texts, block_keep(case))
    results = {f"out.{name}_x": value for name, value in tokens.items()}
    return present(case, results | {f"mid.{name}": value for name, value in outputs.items()})


def block_inputs(case: Case, name: str, config: TransformerConfig) -> StreamInputs:
    inputs = case.group(f"in.{name}_")
    prompt, cross_rope = inputs.get("prompt_modulation"), table(inputs, "cross_rope_")
    self_rope = table(inputs, "rope_")
    assert self_rope is not None
    cross = None
    if cross_rope is not None:
        cross = CrossInputs(
            cross_rope,
            Modulation.from_tokens(inputs["cross_scale_shift"], 4),
            Modulation.from_tokens(inputs["cross_gate"], 1),
        )
    return StreamInputs(
        runs=bool(case.args[f"{name}_enabled"]),
        modulation=Modulation.from_tokens(inputs["modulation"], config.modulation_rows),
        embedded_timestep=Modulation(inputs["x"].new_zeros(1, 2, 1)),
        rope=self_rope,
        prompt_modulation=None if prompt is None else Modulation.from_tokens(prompt, 2),
        self_attention_bias=inputs.get("self_attention_bias"),
        cross=cross,
    )


def block_keep(case: Case) -> dict[PerturbationType, Keep]:
    """The keep masks of a block, where an argument does not say that all samples are perturbed."""
    kinds = {
        PerturbationType.SKIP_VIDEO_SELF_ATTN: ("video_self_all_perturbed", "video_self_keep_mask"),
        PerturbationType.SKIP_AUDIO_SELF_ATTN: ("audio_self_all_perturbed", "audio_self_keep_mask"),
        PerturbationType.SKIP_A2V_CROSS_ATTN: ("a2v_skip_all", "video_cross_keep_mask"),
        PerturbationType.SKIP_V2A_CROSS_ATTN: ("v2a_skip_all", "audio_cross_keep_mask"),
    }
    return {
        kind: False if case.args.get(argument) else case.inputs.get(mask, True)
        for kind, (argument, mask) in kinds.items()
    }


def build_model(case: Case, streams: tuple[str, ...] | None = None) -> LTXModel:
    """The case's model in its latents' dtype. One stream alone reads only its own tensors, both take all."""
    header = json.loads(read_header(case.weights_path)["__metadata__"]["config"])
    with torch.device("meta"):
        model = LTXModel(TransformerConfig.from_metadata(header, streams))
    own = model.state_dict().keys()
    state = {name: value for name, value in weights(case).items() if name in own or streams in (None, STREAMS)}
    filled(model, state)
    latent = next(value for name, value in case.inputs.items() if name.endswith("_latent"))
    return model.to(latent.dtype)


def modality(case: Case, name: str) -> Modality | None:
    fields: dict[str, Any] = case.group(f"in.{name}_")
    if not fields:
        return None
    return Modality(**fields, enabled=bool(case.args.get(f"{name}_enabled", True)))


def perturbations(case: Case) -> BatchedPerturbationConfig | None:
    samples = case.args["perturbations"]
    if samples is None:
        return None
    return BatchedPerturbationConfig(
        [
            PerturbationConfig([Perturbation(PerturbationType[p["type"].upper()], p["blocks"]) for p in sample])
            for sample in samples
        ]
    )


@torch.no_grad()
def forward(case: Case) -> dict[str, Tensor]:
    model = build_model(case, MODEL_STREAMS[case.args["model_type"]])
    video, audio = modality(case, "video"), modality(case, "audio")
    perturbed = perturbations(case)
    velocities = model(video, audio, perturbed)
    denoised = X0Model(model)(video, audio, perturbed)
    results = intermediates(case, model, video, audio, perturbed)
    for name, velocity, latent in zip(STREAMS, velocities, denoised, strict=True):
        results |= {f"out.{name}_velocity": velocity, f"out.{name}_x0": latent}
    return present(case, results)


def intermediates(
    case: Case,
    model: LTXModel,
    video: Modality | None,
    audio: Modality | None,
    perturbed: BatchedPerturbationConfig | None,
) -> dict[str, Tensor | None]:
    modalities = check_modalities(model.config, video, audio)
    inputs, texts, tokens = model.prepare(modalities), model.texts(modalities), model.embed(modalities)
    latent = next(iter(modalities.values())).latent
    perturbed = perturbed or BatchedPerturbationConfig.empty(latent.shape[0])
    keeps = perturbed.block_keeps(model.num_blocks, latent.device, latent.dtype)
    results: dict[str, Tensor | None] = {f"mid.{name}_tokens": value for name, value in tokens.items()}
    for index, block in enumerate(model.transformer_blocks):
        tokens = block(tokens, inputs, texts, keeps[index])
        results |= {f"mid.{name}_block{index}": value for name, value in tokens.items()}
    for name, stream in inputs.items():
        modulations = {"modulation": stream.modulation, "prompt_modulation": stream.prompt_modulation}
        results |= {
            f"mid.{name}_context": texts[name].context,
            f"mid.{name}_context_bias": texts[name].bias,
            f"mid.{name}_self_attention_bias": stream.self_attention_bias,
            f"mid.{name}_rope_cos": stream.rope.cos,
            f"mid.{name}_rope_sin": stream.rope.sin,
        }
        if stream.cross is not None:
            modulations |= {"cross_scale_shift": stream.cross.scale_shift, "cross_gate": stream.cross.gate}
            results |= {f"mid.{name}_cross_rope_cos": stream.cross.rope.cos}
            results |= {f"mid.{name}_cross_rope_sin": stream.cross.rope.sin}
        for key, rows in modulations.items():
            if rows is not None and (expected := case.tensors.get(f"mid.{name}_{key}")) is not None:
                results[f"mid.{name}_{key}"] = per_token(rows, expected)
    return results


def per_token(modulation: Modulation, expected: Tensor) -> Tensor:
    """All rows of every token, one after the other, in the layout the case has."""
    rows = [modulation.row(number) for number in range(modulation.rows.shape[1])]
    every = torch.cat(rows, dim=-1)
    return (every.flatten(0, 1) if expected.ndim == 2 else every).expand(expected.shape)


@torch.no_grad()
def ltxv_forward(case: Case) -> dict[str, Tensor]:
    model = build_model(case)
    video = modality(case, "video")
    perturbed = None
    if (mask := case.inputs.get("skip_layer_mask")) is not None:
        perturbed = BatchedPerturbationConfig.from_skip_mask(mask, case.args["skip_strategy"])
    results = intermediates(case, model, video, None, perturbed)
    parts = {f"mid.block0_{part}": model.get_submodule(f"transformer_blocks.0.{part}") for part in PARTS}
    with recorded(parts) as outputs:
        results["out.video_velocity"] = model(video, None, perturbed)[0]
    return present(case, results | outputs)


PARTS = ("attn1", "attn2", "ff")

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("transformer", "rope"): rope,
    ("transformer", "timestep_embedding"): sinusoid,
    ("transformer", "adaln_single"): adaln_single,
    ("transformer", "attention"): attention,
    ("transformer", "context_mask"): context_mask,
    ("transformer", "self_attention_mask"): self_attention_mask,
    ("transformer", "feed_forward"): feed_forward,
    ("transformer", "caption_projection"): caption_projection,
    ("transformer", "output_head"): output_head,
    ("transformer", "keyframe_marker"): keyframe_marker,
    ("transformer", "x0"): x0,
    ("transformer", "av_block"): av_block,
    ("transformer", "forward"): forward,
    ("transformer", "ltxv_forward"): ltxv_forward,
}
