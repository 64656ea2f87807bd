"""The ``config.json`` of each component in a folder of the diffusers library, to a checkpoint's config and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.config import AudioVaeConfig, GeneratorConfig, VocoderConfig
from ltx_core.model.duration_head.config import DurationHeadConfig
from ltx_core.model.transformer.config import LTX_VIDEO_CLASS, STREAM_PREFIXES, TEXT_IS_READY, TransformerConfig
from ltx_core.model.transformer.foreign import infer_transformer_config
from ltx_core.model.upsampler.config import LatentUpsamplerConfig
from ltx_core.model.video_vae.config import BlockConfig, VideoVaeConfig
from ltx_core.text_encoders.gemma.config import EmbeddingsConfig

Json = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

AXES = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}  # of compress_<key>
OUR_AXES = {theirs: ours for ours, theirs in AXES.items()}
FIXED: Json = {"patch_size": 1, "patch_size_t": 1, "activation_fn": "gelu-approximate", "attention_bias": True}
FIXED |= {"qk_norm": "rms_norm_across_heads", "norm_elementwise_affine": False, "attention_out_bias": True}
VAE_FIXED: Json = {"patch_size_t": 1, "resnet_norm_eps": 1e-06, "scaling_factor": 1.0, "encoder_causal": True}
AUDIO_FIXED: Json = {"audio_patch_size": 1, "audio_patch_size_t": 1, "audio_scale_factor": 4, "causal_offset": 1}
STREAM_SIZES = {"in_channels": "in_channels", "out_channels": "out_channels", "width": "cross_attention_dim"}
STREAM_SIZES |= {"heads": "num_attention_heads", "head_dim": "attention_head_dim"}
#: Keys of an audio VAE's ``ddconfig`` -> theirs.
AUDIO_KEYS = {
    "ch": "base_channels",
    "out_ch": "output_channels",
    "z_channels": "latent_channels",
    **{key: key for key in ("ch_mult", "num_res_blocks", "in_channels", "resolution", "norm_type", "causality_axis")},
    **{key: key for key in ("dropout", "mid_block_add_attention", "mel_bins", "double_z")},
}
VOCODER_KEYS = {
    "upsample_initial_channel": "hidden_channels",
    "upsample_kernel_sizes": "upsample_kernel_sizes",
    "upsample_rates": "upsample_factors",
    "resblock_kernel_sizes": "resnet_kernel_sizes",
    "resblock_dilation_sizes": "resnet_dilations",
}
GENERATOR_FIXED: Json = {"in_channels": 128, "out_channels": 2, "leaky_relu_negative_slope": 0.1}
GENERATOR_FIXED |= {"antialias_ratio": 2, "antialias_kernel_size": 12}
DURATION_KEYS = {"pooler_hidden_dim": "pooler_hidden_dim", "num_queries": "num_queries"}
DURATION_KEYS |= {"num_pooler_heads": "num_pooler_heads", "mlp_hidden": "mlp_hidden_dim"}


def read_config(kind: str, given: Mapping[str, Any], shapes: Shapes) -> Json:
    """The sections of a checkpoint's config that a component's ``config.json`` means.

    ``shapes`` are those of its tensors under published names. Raises ``ConfigError`` where a key is missing.
    """
    try:
        return KINDS[kind][0](given, shapes)
    except (KeyError, TypeError, IndexError, ZeroDivisionError, AttributeError) as error:
        raise ConfigError(f"config.json describes no {kind}: {type(error).__name__} {error}") from error


def write_config(kind: str, config: Mapping[str, Any]) -> Json:
    """A component's ``config.json``, of a checkpoint's config. Raises ``ConfigError`` for what has no counterpart."""
    return KINDS[kind][1](config)


def _read_transformer(given: Mapping[str, Any], shapes: Shapes) -> Json:
    bare = {name.removeprefix("model.diffusion_model."): shape for name, shape in shapes.items()}
    section = infer_transformer_config(bare, given)
    if given.get("_class_name") == "LTXVideoTransformer3DModel":
        return {"transformer": {**section, "rope_type": "interleaved"}}
    if "pos_embed_max_pos" in given:
        section["positional_embedding_max_pos"] = [given[k] for k in ("pos_embed_max_pos", "base_height", "base_width")]
        section["audio_positional_embedding_max_pos"] = [given["audio_pos_embed_max_pos"]]
    renamed = {"rope_theta": "positional_embedding_theta", "caption_channels": "caption_channels"}
    renamed |= {"cross_attn_timestep_scale_multiplier": "av_ca_timestep_scale_multiplier"}
    renamed |= {"use_prompt_adaln_single": "use_prompt_adaln_single"}
    section |= {ours: given[theirs] for theirs, ours in renamed.items() if theirs in given}
    section["rope_type"] = given.get("rope_type", "interleaved")
    section["frequencies_precision"] = "float64" if given.get("rope_double_precision", True) else "float32"
    return {"transformer": section}


def _write_transformer(config: Mapping[str, Any]) -> Json:
    model, section = TransformerConfig.from_metadata(config), config["transformer"]
    video, audio = model.video, model.audio
    assert video is not None
    made: Json = {**FIXED, **_attributes(video, STREAM_SIZES)} | {
        "num_layers": model.num_layers,
        "norm_eps": model.norm_eps,
        "caption_channels": section.get("caption_channels", 3840),
    }
    if section.get("_class_name") == LTX_VIDEO_CLASS:
        return {"_class_name": "LTXVideoTransformer3DModel"} | made
    if audio is None:
        raise ConfigError("the transformer has no audio stream, expected one: LTX2VideoTransformer3DModel has both")
    mel = AudioVaeConfig.from_metadata(config) if "audio_vae" in config else AudioVaeConfig()
    seconds, height, width = video.max_pos
    return (
        {"_class_name": "LTX2VideoTransformer3DModel"}
        | made
        | AUDIO_FIXED
        | _attributes(audio, STREAM_SIZES, "audio_")
        | {
            "vae_scale_factors": [8, 32, 32],
            "pos_embed_max_pos": seconds,
            "base_height": height,
            "base_width": width,
            **{f"{stream}gated_attn": model.apply_gated_attention for stream in ("", "audio_")},
            **{f"{stream}cross_attn_mod": model.cross_attention_adaln for stream in ("", "audio_")},
            "audio_pos_embed_max_pos": audio.max_pos[0],
            "audio_sampling_rate": mel.sample_rate,
            "audio_hop_length": mel.hop_length,
            "rope_theta": model.positional_embedding_theta,
            "rope_double_precision": model.double_precision_rope,
            "rope_type": model.rope_type,
            "timestep_scale_multiplier": int(model.timestep_scale_multiplier),
            "cross_attn_timestep_scale_multiplier": int(model.av_ca_timestep_scale_multiplier),
            "use_prompt_embeddings": model.caption_channels is not None,
            "perturbed_attn": model.cross_attention_adaln,
            "ff_bias": video.ff_bias,
            "audio_ff_bias": audio.ff_bias,
            "use_prompt_adaln_single": section.get("use_prompt_adaln_single", True),
            "use_keyframes_abs_pos_embedding": model.use_keyframes_abs_pos_embedding,
        }
    )


def _attributes(config: object, keys: Mapping[str, str], prefix: str = "") -> Json:
    """A config's values by their keys there; ``keys`` are by ours."""
    return {prefix + theirs: getattr(config, ours) for ours, theirs in keys.items()}


def _read_connectors(given: Mapping[str, Any], shapes: Shapes) -> Json:
    section: Json = {
        "connector_num_learnable_registers": given["video_connector_num_learnable_registers"],
        "connector_apply_gated_attention": given["video_gated_attn"],
        "connector_positional_embedding_max_pos": [given["connector_rope_base_seq_len"]],
        "connector_norm_output": True,
        "use_embeddings_connector": True,
        "caption_channels": given["caption_channels"],
        "rope_type": given["rope_type"],
        "frequencies_precision": "float64" if given["rope_double_precision"] else "float32",
    }
    for ours, theirs in (("", "video_"), ("audio_", "audio_")):
        for key in ("num_attention_heads", "attention_head_dim", "num_layers"):
            section[f"{ours}connector_{key}"] = given[f"{theirs}connector_{key}"]
            if key != "num_layers" and given["per_modality_projections"]:
                section[f"{ours}{key}"] = given[f"{theirs}connector_{key}"]  # features are as wide as their connector
    if given["per_modality_projections"]:
        section |= TEXT_IS_READY
    gemma = {"hidden_size": given["caption_channels"], "num_hidden_layers": given["text_proj_in_factor"] - 1}
    return {"transformer": section, "gemma": gemma}


def _write_connectors(config: Mapping[str, Any]) -> Json:
    text = EmbeddingsConfig.from_metadata(config, config.get("gemma"))
    if text.features is None or text.audio is None:
        raise ConfigError("the connectors have no audio stream, expected one: LTX2TextConnectors has both")
    if text.video.num_registers is None:
        raise ConfigError("the connectors have no learnable registers, which LTX2TextConnectors needs")
    model = TransformerConfig.from_metadata(config)
    assert model.video is not None and model.audio is not None
    made: Json = {
        "_class_name": "LTX2TextConnectors",
        "caption_channels": text.features.hidden_size,
        "text_proj_in_factor": text.features.num_states,
        "connector_rope_base_seq_len": text.video.max_pos,
        "rope_theta": 10000.0,
        "rope_double_precision": text.video.double_precision_rope,
        "causal_temporal_positioning": False,
        "rope_type": text.video.rope_type,
        "per_modality_projections": text.features.per_token,
        "video_hidden_dim": model.video.width,
        "audio_hidden_dim": model.audio.width,
        "proj_bias": text.features.per_token,
    }
    for name, one in (("video", text.video), ("audio", text.audio)):
        made[f"{name}_connector_num_attention_heads"] = one.heads
        made[f"{name}_connector_attention_head_dim"] = one.head_dim
        made[f"{name}_connector_num_layers"] = one.num_layers
        made[f"{name}_connector_num_learnable_registers"] = one.num_registers
        made[f"{name}_gated_attn"] = one.gated
    return made


def _read_vae(given: Mapping[str, Any], shapes: Shapes) -> Json:
    is_ltxv = given.get("_class_name") == "AutoencoderKLLTXVideo"
    latent = given["latent_channels"]
    widths = [*([] if is_ltxv else [latent]), *given["block_out_channels"]]
    encoder: list[Any] = []
    samplings = given["downsample_type"]
    for index, count in enumerate(given["layers_per_block"]):
        encoder += [["res_x", {"num_layers": count}]] if count else []
        if index < len(samplings):
            factor = widths[index + 1] // widths[index]
            encoder.append([f"compress_{OUR_AXES[samplings[index]]}_res", {"multiplier": factor}])
    factors, residual = given["upsample_factor"], _each(given["upsample_residual"], len(given["upsample_factor"]))
    kinds = given.get("upsample_type") or ["spatiotemporal"] * len(factors)  # from the latent on; the rest is reversed
    noise = _each(given["decoder_inject_noise"], len(factors) + 1)
    decoder: list[Any] = []
    for index, count in enumerate(given["decoder_layers_per_block"]):
        decoder += [["res_x", {"num_layers": count, "inject_noise": noise[index]}]] if count else []
        if index < len(factors):
            axes = OUR_AXES[kinds[len(factors) - 1 - index]]
            settings = {"multiplier": factors[index], "residual": residual[index]}
            decoder.append([f"compress_{axes}", settings])
    section = {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        **{key: given[key] for key in ("in_channels", "out_channels", "latent_channels", "patch_size")},
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "causal_decoder": given["decoder_causal"],
        "timestep_conditioning": given["timestep_conditioning"],
        "encoder_blocks": encoder,
        "decoder_blocks": decoder,
        "encoder_base_channels": latent,
        "decoder_base_channels": given["decoder_block_out_channels"][0] // factors[0],
    }
    if mode := given.get("encoder_spatial_padding_mode"):
        section["encoder_spatial_padding_mode"] = mode
    if (mode := given.get("decoder_spatial_padding_mode", "zeros")) != "reflect":
        section["spatial_padding_mode"] = mode
    return {"vae": section}


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * count


def _write_vae(config: Mapping[str, Any]) -> Json:
    vae = VideoVaeConfig.from_metadata(config)
    if vae.diffusion_decoder is not None:
        raise ConfigError("the video VAE has a diffusion decoder, vae/ of a diffusers folder a convolutional one")
    known = ("res_x", *(f"compress_{axis}_res" for axis in AXES), *(f"compress_{axis}" for axis in AXES))
    if foreign := [b.name for b in (*vae.encoder_blocks, *vae.decoder_blocks) if b.name not in known]:
        raise ConfigError(f"VAE block {foreign[0]} has no counterpart in AutoencoderKLLTX2Video")
    counts, samplings = _group(vae.encoder_blocks)
    decoder_counts, upsamplings = _group(vae.decoder_blocks)
    widths = _widths(vae.latent_channels, samplings)
    noise = any(block.inject_noise for block in vae.decoder_blocks)
    scale = vae.decoder_scale_factors
    return {
        "_class_name": "AutoencoderKLLTX2Video" if vae.family == "ltx2" else "AutoencoderKLLTXVideo",
        **VAE_FIXED,
        **{key: getattr(vae, key) for key in ("in_channels", "out_channels", "latent_channels", "patch_size")},
        "block_out_channels": widths,
        "down_block_types": ["LTX2VideoDownBlock3D"] * len(widths),
        "decoder_block_out_channels": _widths(vae.decoder_base_channels, upsamplings),
        "layers_per_block": counts,
        "decoder_layers_per_block": decoder_counts,
        "spatio_temporal_scaling": [True] * len(widths),
        "decoder_spatio_temporal_scaling": [True] * len(upsamplings),
        "decoder_inject_noise": [noise] * len(decoder_counts),
        "downsample_type": [AXES[block.name.split("_")[1]] for block in samplings],
        "upsample_type": [AXES[block.name.split("_")[1]] for block in reversed(upsamplings)],
        "upsample_residual": [block.residual for block in upsamplings],
        "upsample_factor": [block.multiplier for block in upsamplings],
        "timestep_conditioning": vae.timestep_conditioning,
        "decoder_causal": vae.causal_decoder,
        "encoder_spatial_padding_mode": vae.encoder_padding,
        "decoder_spatial_padding_mode": vae.decoder_padding,
        "spatial_compression_ratio": scale.height,
        "temporal_compression_ratio": scale.time,
    }


def _group(blocks: Sequence[BlockConfig]) -> tuple[list[int], list[BlockConfig]]:
    """Counts of resnets before, between and after the resamplings, and these."""
    counts, samplings = [0], []
    for block in blocks:
        if block.name == "res_x":
            counts[-1] += block.num_layers
        else:
            samplings.append(block)
            counts.append(0)
    return counts, samplings


def _widths(first: int, blocks: Sequence[BlockConfig]) -> list[int]:
    """Channels after each resampling."""
    return list(accumulate((block.multiplier for block in blocks), mul, initial=first))[1:]


def _read_audio_vae(given: Mapping[str, Any], shapes: Shapes) -> Json:
    dd = {ours: given[theirs] for ours, theirs in AUDIO_KEYS.items()}
    params = {
        "sampling_rate": given["sample_rate"],
        "ddconfig": dd | {"attn_resolutions": given["attn_resolutions"] or []},
    }
    stft = {
        "filter_length": 1024,
        "win_length": 1024,
        "hop_length": given["mel_hop_length"],
        "causal": given["is_causal"],
    }
    mel = {"n_mel_channels": given["mel_bins"]}
    return {"audio_vae": {"model": {"params": params}, "preprocessing": {"stft": stft, "mel": mel}}}


def _write_audio_vae(config: Mapping[str, Any]) -> Json:
    vae = AudioVaeConfig.from_metadata(config)
    values = vars(vae) | {"causality_axis": vae.causality_axis.value, "ch_mult": list(vae.ch_mult)}
    return {
        "_class_name": "AutoencoderKLLTX2Audio",
        **{theirs: values[ours] for ours, theirs in AUDIO_KEYS.items()},
        "attn_resolutions": sorted(vae.attn_resolutions) or None,
        "sample_rate": vae.sample_rate,
        "mel_hop_length": vae.hop_length,
        "is_causal": vae.is_causal,
    }


def _read_vocoder(given: Mapping[str, Any], shapes: Shapes) -> Json:
    if "bwe_hidden_channels" not in given:
        return {"vocoder": _read_generator(given, "") | {"output_sampling_rate": given["output_sampling_rate"]}}
    rates = {key: given[key] for key in ("input_sampling_rate", "output_sampling_rate", "hop_length")}
    rates |= {"n_fft": given["filter_length"], "win_size": given["window_length"]}
    bwe = (
        _read_generator(given, "bwe_")
        | rates
        | {"num_mels": given["num_mel_channels"], "apply_final_activation": False}
    )
    return {"vocoder": {"vocoder": _read_generator(given, ""), "bwe": bwe}}


def _read_generator(given: Mapping[str, Any], prefix: str) -> Json:
    made: Json = {ours: given[prefix + theirs] for ours, theirs in VOCODER_KEYS.items()}
    snake = {"resblock": "AMP1", "activation": "snakebeta"}
    kind = snake if given[f"{prefix}act_fn"] == "snakebeta" else {"resblock": "1"}
    final = {"use_tanh_at_final": given[f"{prefix}final_act_fn"] == "tanh"}
    return made | kind | final | {"stereo": True, "use_bias_at_final": given[f"{prefix}final_bias"]}


def _write_vocoder(config: Mapping[str, Any]) -> Json:
    vocoder = VocoderConfig.from_metadata(config)
    made = _write_generator(vocoder.generator, "")
    if (extension := vocoder.extension) is None:
        rate = {"output_sampling_rate": vocoder.output_sampling_rate}
        return {"_class_name": "LTX2Vocoder"} | made | rate
    return (
        {"_class_name": "LTX2VocoderWithBWE"}
        | made
        | _write_generator(extension.generator, "bwe_")
        | {
            "filter_length": extension.n_fft,
            "window_length": extension.n_fft,
            "hop_length": extension.hop_length,
            "num_mel_channels": extension.num_mels,
            "input_sampling_rate": extension.input_sampling_rate,
            "output_sampling_rate": extension.output_sampling_rate,
        }
    )


def _write_generator(one: GeneratorConfig, prefix: str) -> Json:
    values = (
        GENERATOR_FIXED
        | _attributes(one, VOCODER_KEYS)
        | {
            "act_fn": "snakebeta" if one.is_alias_free else "leaky_relu",
            "antialias": one.is_alias_free,
            "final_act_fn": "tanh" if one.final_activation == "tanh" else None,
            "final_bias": one.use_bias_at_final,
        }
    )
    return {prefix + key: value for key, value in values.items()}


def _read_duration_head(given: Mapping[str, Any], shapes: Shapes) -> Json:
    widths = {
        f"{prefix}cross_attention_dim": given[f"{stream}_cross_attention_dim"]
        for stream, prefix in STREAM_PREFIXES.items()
    }
    return {"transformer": widths, "duration_head": {ours: given[theirs] for ours, theirs in DURATION_KEYS.items()}}


def _write_duration_head(config: Mapping[str, Any]) -> Json:
    head = DurationHeadConfig.from_metadata(config)
    widths = {"video_cross_attention_dim": head.video_width, "audio_cross_attention_dim": head.audio_width}
    return {"_class_name": "LTX2DurationHead"} | widths | _attributes(head, DURATION_KEYS)


def _read_diffusion_decoder(given: Mapping[str, Any], shapes: Shapes) -> Json:
    strides, reductions = given["decoder_upsample_strides"], given["decoder_upsample_channel_reductions"]
    decoder = {
        "in_channels": given["latent_channels"],
        "out_channels": given["out_channels"],
        "patch_size": given["patch_size"],
        "head_dim": given["decoder_head_dim"],
        "stage_channels": given["decoder_stage_channels"],
        "stage_depths": given["decoder_stage_depths"],
        "stage_kernels": given["decoder_stage_kernels"],
        "stage5_kernel": given["decoder_stage5_kernel"],
        "upsamples": [[stride, reduction] for stride, reduction in zip(strides, reductions, strict=True)],
        "t_emb_dim": given["decoder_t_emb_dim"],
        "timestep_scale_multiplier": given["decoder_timestep_scale_multiplier"],
        "default_num_inference_steps": given["decoder_num_inference_steps"],
    }
    encoder = {"out_channels": given["latent_channels"], "patch_size": given["patch_size"], "blocks": []}
    kind = {"_class_name": "CausalDiffusionVAE", "model_output_type": given["decoder_model_output_type"]}
    return {"vae": kind | {"dims": 3, "encoder": encoder, "decoder": decoder}}


def _write_diffusion_decoder(config: Mapping[str, Any]) -> Json:
    one = VideoVaeConfig.from_metadata(config).diffusion_decoder
    if one is None:
        raise ConfigError("the video VAE has no diffusion decoder")
    scale = one.scale_factors
    return {
        "_class_name": "LTX2VideoDiffusionDecoderModel",
        **{key: getattr(one, key) for key in ("out_channels", "latent_channels", "patch_size")},
        "scaling_factor": 1.0,
        "decoder_head_dim": one.head_dim,
        "decoder_stage_channels": [stage.width for stage in one.stages],
        "decoder_stage_depths": [stage.depth for stage in one.stages],
        "decoder_stage_kernels": [list(stage.kernel) for stage in one.deterministic],
        "decoder_upsample_strides": [list(upsample.stride) for upsample in one.upsamples],
        "decoder_upsample_channel_reductions": [upsample.reduction for upsample in one.upsamples],
        "decoder_stage5_kernel": list(one.denoising.kernel),
        "decoder_t_emb_dim": one.timestep_width,
        "decoder_timestep_scale_multiplier": one.timestep_scale,
        "decoder_model_output_type": one.prediction,
        "decoder_num_inference_steps": one.steps,
        "spatial_compression_ratio": scale.height,
        "temporal_compression_ratio": scale.time,
    }


UPSAMPLER_KEYS = (
    "in_channels",
    "mid_channels",
    "num_blocks_per_stage",
    "dims",
    "spatial_upsample",
    "temporal_upsample",
)


def _read_latent_upsampler(given: Mapping[str, Any], shapes: Shapes) -> Json:
    section: Json = {key: given[key] for key in UPSAMPLER_KEYS} | {"_class_name": "LatentUpsampler"}
    scale = given.get("rational_spatial_scale") or 2.0
    return section | {"spatial_scale": scale, "rational_resampler": given.get("use_rational_resampler", False)}


def _write_latent_upsampler(config: Mapping[str, Any]) -> Json:
    one = LatentUpsamplerConfig.from_metadata(config)
    rational = {"rational_spatial_scale": one.spatial_scale, "use_rational_resampler": one.is_rational}
    return {"_class_name": "LTX2LatentUpsamplerModel"} | {key: getattr(one, key) for key in UPSAMPLER_KEYS} | rational


Reader = Callable[[Mapping[str, Any], Shapes], Json]
Writer = Callable[[Mapping[str, Any]], Json]
KINDS: dict[str, tuple[Reader, Writer]] = {
    "transformer": (_read_transformer, _write_transformer),
    "connectors": (_read_connectors, _write_connectors),
    "vae": (_read_vae, _write_vae),
    "audio_vae": (_read_audio_vae, _write_audio_vae),
    "vocoder": (_read_vocoder, _write_vocoder),
    "duration_head": (_read_duration_head, _write_duration_head),
    "diffusion_decoder": (_read_diffusion_decoder, _write_diffusion_decoder),
    "latent_upsampler": (_read_latent_upsampler, _write_latent_upsampler),
}
