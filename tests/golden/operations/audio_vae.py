"""Golden operations of the audio VAE, the mel front end, the vocoders and WAV files."""

from __future__ import annotations

import json
import tempfile
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ltx_core.components.patchifiers import AudioPatchifier
from ltx_core.model.audio_vae.audio_vae import AudioDecoder, AudioEncoder, decode_audio, encode_audio
from ltx_core.model.audio_vae.config import AudioVaeConfig, CausalityAxis, MelConfig, VocoderConfig
from ltx_core.model.audio_vae.mel import log_mel, magnitude, mel_tables, resample, resample_kernel, to_stereo
from ltx_core.model.audio_vae.vocoder import (
    AliasFreeSnakeBeta,
    BandwidthExtensionVocoder,
    Vocoder,
    downsample_2x,
    hann_sinc_filter,
    kaiser_sinc_filter,
    snake_beta,
    upsample_2x,
    upsample_hann,
)
from ltx_core.types import Audio, AudioLatentShape, VideoPixelShape
from ltx_media.audio import read_audio, write_wav
from tests.golden.case import Case, assert_close, read_header
from tests.golden.operations import Operation

CPU = torch.device("cpu")
REFERENCE_GAP = 0.04  # seconds between a dubbing reference and the generated audio: one latent frame


def load_config(case: Case) -> Mapping[str, Any]:
    return json.loads(read_header(case.weights_path)["__metadata__"]["config"])


Network = TypeVar("Network", bound=nn.Module)
Half = TypeVar("Half", AudioEncoder, AudioDecoder)


def build(case: Case, network: Callable[[], Network], prefixes: Mapping[str, str]) -> Network:
    """A meta build filled with the tensors under each prefix, which is replaced by its value; strict both ways."""
    with torch.device("meta"):
        model = network()
    state = {}
    for name, tensor in load_file(case.weights_path).items():
        for prefix, inside in prefixes.items():
            if name.startswith(prefix):
                state[inside + name[len(prefix) :]] = tensor
    model.load_state_dict(state, assign=True, strict=True)
    return model.eval()


def load_half(case: Case, half: type[Half]) -> Half:
    statistics = "per_channel_statistics."
    prefix = "audio_vae.encoder." if half is AudioEncoder else "audio_vae.decoder."
    config = AudioVaeConfig.from_metadata(load_config(case))
    return build(case, lambda: half(config), {prefix: "", f"audio_vae.{statistics}": statistics})


def load_vocoder(case: Case) -> Vocoder:
    config = VocoderConfig.from_metadata(load_config(case))
    return build(case, lambda: Vocoder(config), {"vocoder.": ""})


def known(case: Case, results: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Only what the case holds too."""
    return {name: value for name, value in results.items() if name in case.tensors}


def record(module: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Outputs of submodules, {result name: submodule name}, filled the first time each one runs."""
    seen: dict[str, Tensor] = {}

    def keep(result: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen.setdefault(result, output)

        return hook

    for result, name in names.items():
        module.get_submodule(name).register_forward_hook(keep(result))
    return seen


def mel_config(case: Case) -> MelConfig:
    args = case.args
    return MelConfig(args["target_sample_rate"], args["n_fft"], args["hop_length"], args["mel_bins"])


@torch.inference_mode()
def waveform_to_log_mel(case: Case) -> dict[str, Tensor]:
    config, results = mel_config(case), {}
    window, filters = mel_tables(config, CPU, torch.float32)
    for item in case.args["inputs"]:
        i = item["index"]
        waveform = case.inputs[f"waveform_{i}"]
        assert list(waveform.shape) == item["shape"]
        resampled = resample(waveform, item["sampling_rate"], config.sample_rate)
        spectrum = magnitude(resampled, config)
        log = log_mel(resampled, config)
        assert log.shape[2] == item["mel_frames"]
        results |= {f"out.resampled_{i}": resampled, f"out.log_mel_{i}": log, f"mid.magnitude_{i}": spectrum}
        results[f"mid.mel_{i}"] = filters.T @ spectrum
    for name in case.group("mid.resample_kernel_"):
        source, target = map(int, name.split("_"))
        results[f"mid.resample_kernel_{name}"] = resample_kernel(source, target, torch.float32, CPU)
    results |= {"mid.window": window, "mid.mel_filterbank": filters}
    return known(case, results)


@torch.inference_mode()
def stereo(case: Case) -> dict[str, Tensor]:
    return {name.replace("waveform", "out.stereo"): to_stereo(waveform) for name, waveform in case.inputs.items()}


def wav_io(case: Case) -> dict[str, Tensor]:
    waveform, rate = case.inputs["waveform"], case.args["sampling_rate"]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        write_wav(path, Audio(waveform, rate))
        with wave.open(str(path)) as file:
            assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (rate, 2, 2)
            frames = bytearray(file.readframes(file.getnframes()))
        written = torch.frombuffer(frames, dtype=torch.int16).view(-1, 2).T
        results["out.pcm16"] = written
        path.write_bytes(case.inputs["wav_file"].numpy().tobytes())
        for window in case.args["windows"]:
            audio = read_audio(path, window["start_time"], window["max_duration"])
            assert audio is not None and audio.sampling_rate == rate
            assert audio.waveform.shape[1:] == (case.args["wav_channels"], window["samples"])
            results[f"out.decoded_{window['index']}"] = audio.waveform
    return results


def latent_lengths(case: Case) -> dict[str, Tensor]:
    durations = [AudioLatentShape.from_duration(1, duration).frames for duration in case.args["durations"]]
    shapes = [VideoPixelShape(1, int(frames), 64, 64, fps) for frames, fps in case.args["video"]]
    videos = [AudioLatentShape.from_video_pixel_shape(shape).frames for shape in shapes]
    for other in case.args.get("other_rates", []):
        arguments = {name: value for name, value in other.items() if name != "frames"}
        assert AudioLatentShape.from_duration(1, **arguments).frames == other["frames"], other
    return {"out.frames_from_duration": torch.tensor(durations), "out.frames_from_video": torch.tensor(videos)}


@torch.inference_mode()
def encode_decode_mel(case: Case) -> dict[str, Tensor]:
    encoder, decoder = load_half(case, AudioEncoder), load_half(case, AudioDecoder)
    encoder.to(case.inputs["mel"].dtype)
    decoder.to(case.inputs["latent"].dtype)
    assert encoder.config.causality_axis is CausalityAxis(case.args["causality_axis"])
    assert encoder.config.norm_type == case.args["norm_type"]
    seen = record(encoder, mid_names(case, "mid.enc.", encoder))
    seen_decoder = record(decoder, mid_names(case, "mid.dec.", decoder))
    given = case.inputs["latent"]
    mel, latent = decoder(given), encoder(case.inputs["mel"])
    results = {"out.latent": latent, "out.mel": mel, "out.roundtrip_mel": decoder(latent)}
    if encoder.config.double_z:
        mean, _ = encoder.moments(case.inputs["mel"])
        assert_close(encoder.per_channel_statistics.normalize(mean), latent, 1e-6, 1e-6, "moments")
    if "mid.dec.denormalized" in case.tensors:
        results["mid.dec.denormalized"] = decoder.per_channel_statistics.un_normalize(given)
    return known(case, results) | seen | seen_decoder


def mid_names(case: Case, prefix: str, half: AudioEncoder | AudioDecoder) -> dict[str, str]:
    """{result name: submodule}; `last_block` and `last_attn` are the last entries of their level's lists."""
    names = {}
    for name in case.group(prefix):
        parent, _, leaf = name.rpartition(".")
        if leaf.startswith("last_"):
            entries = half.get_submodule(f"{parent}.{leaf.removeprefix('last_')}")
            assert isinstance(entries, nn.ModuleList)
            names[prefix + name] = f"{parent}.{leaf.removeprefix('last_')}.{len(entries) - 1}"
        elif leaf != "denormalized":
            names[prefix + name] = name
    return names


@torch.inference_mode()
def vocode(case: Case) -> dict[str, Tensor]:
    vocoder = load_vocoder(case).to(case.inputs["mel"].dtype)
    assert vocoder.output_sampling_rate == case.args["output_sampling_rate"]
    derived = {"low_rate_waveform": "vocoder", "bwe_log_mel": "mel_stft", "bwe_residual": "bwe_generator"}
    computed = {"bwe_skip", "resampler_filter"}
    names = {f"mid.{name}": derived.get(name, name) for name in case.group("mid.") if name not in computed}
    seen = record(vocoder, names)
    results = {"out.waveform": vocoder(case.inputs["mel"])}
    if isinstance(vocoder, BandwidthExtensionVocoder) and "mid.bwe_skip" in case.tensors:
        low, ratio = seen["mid.low_rate_waveform"], vocoder.extension.ratio
        low = F.pad(low, (0, -low.shape[-1] % vocoder.extension.hop_length))
        results |= {"mid.bwe_skip": upsample_hann(low, ratio), "mid.resampler_filter": hann_sinc_filter(ratio, CPU)}
    results |= seen
    if "mel_bf16" in case.inputs:
        results["out.waveform_bf16"] = vocoder(case.inputs["mel_bf16"])
        assert results["out.waveform_bf16"].dtype == torch.bfloat16
    return results


@torch.inference_mode()
def primitives(case: Case) -> dict[str, Tensor]:
    x, alpha, beta = (case.inputs[name] for name in ("x", "alpha", "beta"))
    block = AliasFreeSnakeBeta(x.shape[1])
    block.act.load_state_dict({"alpha": alpha, "beta": beta})
    odd = case.args["odd_filter"]
    down = block.downsample.lowpass.filter
    results = {
        "out.snake": snake_beta(x, alpha, alpha),
        "out.snakebeta": snake_beta(x, alpha, beta),
        "out.kaiser_filter_up2": block.upsample.filter,
        "out.kaiser_filter_down2": down,
        "out.kaiser_filter_odd": kaiser_sinc_filter(odd["cutoff"], odd["half_width"], odd["kernel_size"]),
        "out.upsample2": upsample_2x(x, block.upsample.filter),
        "out.downsample2": downsample_2x(x, down),
        "out.activation1d_snakebeta": block(x),
    }
    for ratio in case.args["ratios"]:
        results[f"out.hann_filter_{ratio}"] = hann_sinc_filter(ratio, CPU)
        results[f"out.hann_upsample_{ratio}"] = upsample_hann(x, ratio)
    return results


@torch.inference_mode()
def audio_chain(case: Case) -> dict[str, Tensor]:
    encoder, decoder, vocoder = load_half(case, AudioEncoder), load_half(case, AudioDecoder), load_vocoder(case)
    results = {"mid.decoded_mel": decoder(case.inputs["latent"])}
    config = encoder.config.mel
    for item in case.args["inputs"]:
        i, rate = item["index"], item["sampling_rate"]
        waveform = case.inputs[f"waveform_{i}"]
        assert list(waveform.shape[1:]) == [item["channels"], item["samples"]]
        latent = encode_audio(Audio(waveform, rate), encoder)
        results[f"mid.log_mel_{i}"] = log_mel(resample(waveform, rate, config.sample_rate), config)
        results[f"out.latent_{i}"] = latent
        results[f"out.waveform_{i}"] = decode_audio(latent, decoder, vocoder).waveform
    audio = decode_audio(case.inputs["latent"], decoder, vocoder)
    assert audio.sampling_rate == case.args["output_sampling_rate"]
    return known(case, results | {"out.waveform": audio.waveform})


@torch.inference_mode()
def tokens_and_positions(case: Case) -> dict[str, Tensor]:
    from ltx_core.components.helpers import conform_latent_length

    latent = case.inputs["latent"]
    shape = AudioLatentShape.from_torch_shape(latent.shape)
    tokens = AudioPatchifier().patchify(latent)
    assert torch.equal(AudioPatchifier().unpatchify(tokens, shape), latent)
    results = {"out.tokens": tokens}
    for variant in case.args["variants"]:
        settings = {name: value for name, value in variant.items() if name != "index"}
        results[f"out.positions_{variant['index']}"] = AudioPatchifier(**settings).get_patch_grid_bounds(shape, CPU)
    reference = AudioPatchifier().get_patch_grid_bounds(shape, CPU)
    results["out.positions_negative_reference"] = reference - reference.max() - REFERENCE_GAP
    for name in ("longer", "shorter"):
        results[f"out.conformed_{name}"] = conform_latent_length(latent, case.args[f"conform_{name}"])
    return results


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("audio_vae", "waveform_to_log_mel"): waveform_to_log_mel,
    ("audio_vae", "to_stereo (training preprocessing)"): stereo,
    ("audio_vae", "write 16-bit wav; decode_audio_from_file with a time window"): wav_io,
    ("audio_vae", "audio latent length arithmetic"): latent_lengths,
    ("audio_vae", "patchify, unpatchify, get_patch_grid_bounds, conform_latent_length"): tokens_and_positions,
    ("audio_vae", "encode_mel, decode_latent, decode(encode(mel))"): encode_decode_mel,
    ("audio_vae", "encode_audio, decode_audio"): audio_chain,
    ("vocoder", "vocoder(mel)"): vocode,
    ("vocoder", "alias-free activation primitives"): primitives,
}
