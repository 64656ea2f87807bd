"""Golden operations of the audio VAE and the vocoders in MLX."""

from __future__ import annotations

from typing import TypeVar

from safetensors.torch import load_file
from torch import Tensor

from ltx_core.model.audio_vae.audio_vae import decode_audio, encode_audio
from ltx_core.model.audio_vae.config import AudioVaeConfig, VocoderConfig
from ltx_core.model.audio_vae.vocoder import kaiser_sinc_filter
from ltx_core.types import Audio
from ltx_mlx import audio_vae as net
from ltx_mlx import vocoder as voc
from ltx_mlx.arrays import channels_first, channels_last, to_mlx, to_torch
from ltx_mlx.weights import fill
from tests.golden.case import Case
from tests.golden.operations import Operation
from tests.golden.operations.audio_vae import known, load_config

Half = TypeVar("Half", net.AudioEncoder, net.AudioDecoder)


def state(case: Case, prefixes: dict[str, str]) -> dict[str, Tensor]:
    """The tensors under each prefix, which is replaced by its value."""
    tensors = load_file(case.weights_path)
    return {
        inside + name[len(prefix) :]: tensor
        for name, tensor in tensors.items()
        for prefix, inside in prefixes.items()
        if name.startswith(prefix)
    }


def load_half(case: Case, half: type[Half]) -> Half:
    statistics, name = "per_channel_statistics.", "encoder" if half is net.AudioEncoder else "decoder"
    given = state(case, {f"audio_vae.{name}.": "", f"audio_vae.{statistics}": statistics})
    return fill(half(AudioVaeConfig.from_metadata(load_config(case))), given.items())


def load_vocoder(case: Case) -> voc.HifiGanVocoder | voc.BandwidthExtensionVocoder:
    config = VocoderConfig.from_metadata(load_config(case))
    return fill(voc.make_vocoder(config), state(case, {"vocoder.": ""}).items())


def encode_decode_mel(case: Case) -> dict[str, Tensor]:
    encoder, decoder = load_half(case, net.AudioEncoder), load_half(case, net.AudioDecoder)
    latent = encoder(case.inputs["mel"])
    results = {"out.latent": latent, "out.mel": decoder(case.inputs["latent"]), "out.roundtrip_mel": decoder(latent)}
    return known(case, results)


def vocode(case: Case) -> dict[str, Tensor]:
    vocoder = load_vocoder(case)
    assert vocoder.output_sampling_rate == case.args["output_sampling_rate"]
    results = {"out.waveform": vocoder(case.inputs["mel"])}
    if "mel_bf16" in case.inputs:
        results["out.waveform_bf16"] = vocoder(case.inputs["mel_bf16"])
    return results


def primitives(case: Case) -> dict[str, Tensor]:
    x, (alpha, beta) = channels_last(case.inputs["x"]), (to_mlx(case.inputs[name]) for name in ("alpha", "beta"))
    block = voc.AliasFreeSnakeBeta(x.shape[2])
    kaiser = kaiser_sinc_filter(0.25, 0.3, 12)
    filters = {"upsample.filter": kaiser, "downsample.lowpass.filter": kaiser}
    fill(block, {**filters, "act.alpha": case.inputs["alpha"], "act.beta": case.inputs["beta"]}.items())
    odd, taps = case.args["odd_filter"], block.upsample.taps
    results = {
        "out.snake": voc.snake_beta(x, alpha, alpha),
        "out.snakebeta": voc.snake_beta(x, alpha, beta),
        "out.upsample2": voc.upsample_2x(x, taps),
        "out.downsample2": voc.downsample_2x(x, taps),
        "out.activation1d_snakebeta": block(x),
    }
    for ratio in case.args["ratios"]:
        results[f"out.hann_upsample_{ratio}"] = voc.upsample_hann(x, ratio)
    stored = {
        "out.kaiser_filter_up2": kaiser,
        "out.kaiser_filter_down2": kaiser,
        "out.kaiser_filter_odd": kaiser_sinc_filter(odd["cutoff"], odd["half_width"], odd["kernel_size"]),
    }
    stored |= {f"out.hann_filter_{n}": to_torch(voc.hann_sinc_filter(n))[None, None] for n in case.args["ratios"]}
    return {name: channels_first(value) for name, value in results.items()} | stored


def audio_chain(case: Case) -> dict[str, Tensor]:
    encoder, decoder = load_half(case, net.AudioEncoder), load_half(case, net.AudioDecoder)
    vocoder, results = load_vocoder(case), {}
    for item in case.args["inputs"]:
        i = item["index"]
        latent = encode_audio(Audio(case.inputs[f"waveform_{i}"], item["sampling_rate"]), encoder)
        results[f"out.latent_{i}"] = latent
        results[f"out.waveform_{i}"] = decode_audio(latent, decoder, vocoder).waveform
    results["out.waveform"] = decode_audio(case.inputs["latent"], decoder, vocoder).waveform
    return known(case, results)


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("audio_vae", "encode_mel, decode_latent, decode(encode(mel))"): encode_decode_mel,
    ("audio_vae", "encode_audio, decode_audio"): audio_chain,
    ("vocoder", "vocoder(mel)"): vocode,
    ("vocoder", "alias-free activation primitives"): primitives,
}
#: Sound before the encoder and after the vocoder, and token arithmetic.
SHARED = {
    ("audio_vae", "waveform_to_log_mel"),
    ("audio_vae", "to_stereo (training preprocessing)"),
    ("audio_vae", "write 16-bit wav; decode_audio_from_file with a time window"),
    ("audio_vae", "audio latent length arithmetic"),
    ("audio_vae", "patchify, unpatchify, get_patch_grid_bounds, conform_latent_length"),
}
