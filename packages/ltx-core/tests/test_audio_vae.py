"""Audio: front end, VAE halves, vocoders, on tiny networks and synthetic sound."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from ltx_core.errors import ConditioningError, ConfigError, MediaError
from ltx_core.model.audio_vae.audio_vae import AudioDecoder, AudioEncoder, decode_audio, encode_audio
from ltx_core.model.audio_vae.config import AudioVaeConfig, MelConfig, VocoderConfig
from ltx_core.model.audio_vae.mel import LOG_FLOOR, log_mel, mel_filterbank, resample, resample_kernel, to_stereo
from ltx_core.model.audio_vae.vocoder import BandwidthExtensionVocoder, HifiGanVocoder, MelStft, Vocoder
from ltx_core.types import Audio

GENERATOR = {
    "stereo": True,
    "upsample_initial_channel": 8,
    "upsample_rates": [5, 2],
    "upsample_kernel_sizes": [11, 4],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
}
ALIAS_FREE = {**GENERATOR, "resblock": "AMP1", "activation": "snakebeta", "use_bias_at_final": False}
BWE = {
    **ALIAS_FREE,
    "upsample_rates": [6, 4],
    "upsample_kernel_sizes": [12, 8],
    "input_sampling_rate": 8000,
    "output_sampling_rate": 24000,
    "hop_length": 8,
    "n_fft": 32,
    "num_mels": 64,
}
VOCODERS = {"hifigan": GENERATOR, "bwe": {"vocoder": {**ALIAS_FREE, "use_tanh_at_final": False}, "bwe": BWE}}


def vae_metadata(**extra):
    plain = {"ch": 8, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "z_channels": 2, "mel_bins": 16}
    ddconfig = {**plain, "mid_block_add_attention": False, "attn_resolutions": [], **extra}
    return {"audio_vae": {"model": {"params": {"ddconfig": ddconfig, "sampling_rate": 16000}}}}


def build_vae(**extra) -> tuple[AudioEncoder, AudioDecoder]:
    torch.manual_seed(0)
    config = AudioVaeConfig.from_metadata(vae_metadata(**extra))
    encoder, decoder = AudioEncoder(config).eval(), AudioDecoder(config).eval()
    tables = {"mean-of-means": torch.linspace(-1, 1, config.ch), "std-of-means": torch.linspace(0.5, 2, config.ch)}
    for half in (encoder, decoder):
        half.per_channel_statistics.load_state_dict(tables)
    return encoder, decoder


def build_vocoder(kind: str) -> Vocoder:
    torch.manual_seed(0)
    return Vocoder(VocoderConfig.from_metadata({"vocoder": VOCODERS[kind]})).eval()


class TestWaveform:
    def test_to_stereo_mixes_known_layouts_and_averages_the_rest(self):
        wave = torch.randn(2, 3, 10)
        torch.testing.assert_close(to_stereo(wave), wave.mean(1, keepdim=True).expand(2, 2, 10))
        assert torch.equal(to_stereo(wave[:, :1]), wave[:, :1].expand(2, 2, 10))
        for channels in (6, 8):
            low_frequency_only = torch.zeros(channels, 4)
            low_frequency_only[3] = 1
            assert not to_stereo(low_frequency_only).any()
            torch.testing.assert_close(to_stereo(torch.ones(channels, 4)), torch.ones(2, 4))
        right_surround = torch.zeros(6, 4)
        right_surround[5] = 2.414
        torch.testing.assert_close(to_stereo(right_surround), torch.tensor([[0.0], [0.707]]).expand(2, 4))
        with pytest.raises(MediaError, match="0 channels"):
            to_stereo(torch.zeros(0, 4))

    @pytest.mark.parametrize(("source", "target"), [(44100, 16000), (8000, 16000), (24000, 16000), (16000, 48000)])
    def test_resample_keeps_a_tone(self, source, target):
        samples = source // 4 + 7
        tone = torch.sin(2 * math.pi * 440 * torch.arange(samples) / source)
        result = resample(tone.expand(2, 1, -1), source, target)
        assert result.shape == (2, 1, math.ceil(samples * target / source))
        expected = torch.sin(2 * math.pi * 440 * torch.arange(result.shape[-1]) / target)
        middle = slice(200, -200)
        torch.testing.assert_close(result[1, 0, middle], expected[middle], rtol=0, atol=3e-3)

    def test_resample_equals_its_defining_sum(self):
        wave, kernel = torch.randn(37, dtype=torch.float64), resample_kernel(3, 2, torch.float64, torch.device("cpu"))
        half, result = (kernel.shape[1] - 3) // 2, resample(wave, 3, 2)
        for index, value in enumerate(result):
            n, j = divmod(index, 2)
            taps = [(3 * n + i, kernel[j, i + half]) for i in range(-half, half + 3)]
            expected = sum(tap * wave[t] for t, tap in taps if 0 <= t < len(wave))
            torch.testing.assert_close(value, expected)
        assert len(result) == math.ceil(37 * 2 / 3)

    def test_cached_kernels_can_be_trained_through(self):
        resample_kernel.cache_clear()
        with torch.inference_mode():
            resample(torch.randn(1, 50), 5, 3)
        wave = torch.randn(1, 50, requires_grad=True)
        resample(wave, 5, 3).sum().backward()
        assert wave.grad is not None and wave.grad.any()


class TestMel:
    def test_filterbank_has_the_documented_sum_and_peak(self):
        bank = mel_filterbank(513, 64, 16000)
        assert bank.sum().item() == pytest.approx(4.09588, abs=1e-5)
        assert bank.max().item() == pytest.approx(0.0213312, abs=1e-7)
        assert (int((bank[:, 0] > 0).sum()), int((bank[:, 63] > 0).sum())) == (5, 46)

    def test_frames_floor_and_tone(self):
        config = MelConfig()
        silence = log_mel(torch.zeros(1, 2, 1601), config)
        assert silence.shape == (1, 2, 11, 64)
        assert torch.all(silence == math.log(torch.tensor(LOG_FLOOR)))
        tone = torch.sin(2 * math.pi * 1000 * torch.arange(4000) / 16000)[None, None]
        peak = log_mel(tone, config)[0, 0, 12].argmax().item()
        edges = mel_filterbank(513, 64, 16000)[64]  # bin 64 is 1000 Hz
        assert edges[peak] == edges.max()

    def test_wrong_inputs_are_refused(self):
        with pytest.raises(MediaError, match="at least 513"):
            log_mel(torch.zeros(1, 2, 512), MelConfig())
        with pytest.raises(MediaError, match=r"\[batch, channels, samples\]"):
            log_mel(torch.zeros(2, 2000), MelConfig())

    def test_gradient_is_finite_in_silence(self):
        wave = torch.zeros(1, 2, 64, requires_grad=True)
        extension = VocoderConfig.from_metadata({"vocoder": VOCODERS["bwe"]}).extension
        assert extension is not None
        (MelStft(extension)(wave).sum() + log_mel(wave, MelConfig(8000, 32, 8, 4)).sum()).backward()
        assert wave.grad is not None and torch.isfinite(wave.grad).all()

    def test_the_stored_bases_start_as_a_fourier_transform(self):
        extension = VocoderConfig.from_metadata({"vocoder": VOCODERS["bwe"]}).extension
        assert extension is not None
        basis = MelStft(extension).stft_fn.forward_basis[:, 0]
        frame = torch.randn(32)
        spectrum = torch.fft.rfft(frame * torch.hann_window(32))
        torch.testing.assert_close(basis @ frame, torch.cat((spectrum.real, spectrum.imag)), rtol=1e-4, atol=1e-5)


class TestVae:
    @pytest.mark.parametrize(
        ("extra", "latent", "decoded"),
        [
            ({}, (7, 4), (25, 16)),
            ({"causality_axis": "width"}, (6, 4), (21, 16)),
            ({"causality_axis": "width-compatibility"}, (6, 4), (21, 16)),
            ({"causality_axis": None}, (6, 4), (24, 16)),
            ({"causality_axis": None, "resamp_with_conv": False}, (6, 4), (24, 16)),
            ({"causality_axis": None, "norm_type": "group", "ch": 32, "z_channels": 8}, (6, 4), (24, 16)),
            ({"mid_block_add_attention": True, "attn_resolutions": [128], "dropout": 0.1}, (7, 4), (25, 16)),
            ({"double_z": False}, (7, 4), (25, 16)),
            ({"mel_bins": 18}, (7, 4), (25, 18)),
        ],
    )
    def test_sizes_gradients_and_meta_build(self, extra, latent, decoded):
        config = AudioVaeConfig.from_metadata(vae_metadata(**extra))
        encoder, decoder = AudioEncoder(config).eval(), AudioDecoder(config).eval()
        mel = torch.randn(2, 2, 25, 16)
        encoded = encoder(mel)
        assert encoded.shape == (2, config.z_channels, *latent)
        assert decoder(encoded).shape == (2, 2, *decoded)
        decoder(encoded).sum().backward()
        for half in (encoder, decoder):
            assert all(p.grad is not None for p in half.parameters())
            with torch.device("meta"):
                shell = type(half)(config)
            shell.load_state_dict(half.state_dict(), assign=True, strict=True)
            given = mel if half is encoder else encoded
            assert torch.equal(shell.eval()(given), half(given))

    def test_the_latent_is_the_normalised_mean(self):
        encoder, decoder = build_vae()
        mel = torch.randn(1, 2, 9, 16)
        mean, log_variance = encoder.moments(mel)
        assert mean.shape == log_variance.shape == (1, 2, 3, 4)
        latent = encoder(mel)
        channel, frequency = 1, 2
        entry = channel * 4 + frequency
        expected = (mean[:, channel, :, frequency] - torch.linspace(-1, 1, 8)[entry]) / torch.linspace(0.5, 2, 8)[entry]
        torch.testing.assert_close(latent[:, channel, :, frequency], expected)
        torch.testing.assert_close(decoder.per_channel_statistics.un_normalize(latent), mean)

    def test_time_is_causal(self):
        encoder, decoder = build_vae()
        mel, latent = torch.randn(1, 2, 17, 16), torch.randn(1, 2, 5, 4)
        torch.testing.assert_close(encoder(mel[:, :, :9]), encoder(mel)[:, :, :3])
        torch.testing.assert_close(decoder(latent[:, :, :3]), decoder(latent)[:, :, :9])

    def test_published_tensor_names(self):
        config = AudioVaeConfig.from_metadata(
            vae_metadata(ch=128, ch_mult=[1, 2, 4], num_res_blocks=2, z_channels=8, mel_bins=64)
        )
        with torch.device("meta"):
            encoder, decoder = AudioEncoder(config).state_dict(), AudioDecoder(config).state_dict()
        assert sum(t.numel() for t in encoder.values()) == 21_333_264
        assert sum(t.numel() for t in decoder.values()) == 31_915_394
        assert len(encoder) + len(decoder) - 2 == 102
        assert {"down.1.block.0.nin_shortcut.conv.weight", "down.0.downsample.conv.weight"} <= set(encoder)
        assert {"up.2.upsample.conv.conv.weight", "per_channel_statistics.std-of-means"} <= set(decoder)

    @pytest.mark.parametrize(
        ("extra", "named"),
        [
            ({"norm_type": "group"}, "norm_type"),
            ({"norm_type": "batch"}, "norm_type"),
            ({"causality_axis": "none"}, "causality_axis"),
            ({"resamp_with_conv": False}, "resamp_with_conv"),
            ({"attn_type": "linear"}, "attn_type"),
            ({"norm_type": "group", "causality_axis": None}, "multiple of 32"),
            ({"ch_mult": []}, "ch_mult"),
        ],
    )
    def test_contradictory_configs_are_refused(self, extra, named):
        with pytest.raises(ConfigError, match=named):
            AudioVaeConfig.from_metadata(vae_metadata(**extra))

    def test_wrong_inputs_are_refused(self):
        encoder, decoder = build_vae()
        with pytest.raises(ConfigError, match="audio_vae"):
            AudioVaeConfig.from_metadata({"vae": {}})
        with pytest.raises(ConfigError, match=r"expected \[B, 2, frames, bins\]"):
            encoder(torch.zeros(1, 1, 9, 16))
        with pytest.raises(ConfigError, match="8 channels \\* bins"):
            decoder(torch.zeros(1, 2, 3, 5))
        with pytest.raises(ConfigError, match="double_z"):
            AudioEncoder(AudioVaeConfig.from_metadata(vae_metadata(double_z=False))).moments(torch.zeros(1, 2, 9, 16))

    def test_defaults_of_an_empty_ddconfig(self):
        config = AudioVaeConfig.from_metadata({"audio_vae": {"model": {"params": {"ddconfig": {}}}}})
        assert config.mid_block_add_attention and config.attn_resolutions == {8, 16, 32} and config.mel_bins is None
        with pytest.raises(ConfigError, match="mel_bins"):
            _ = config.mel


class TestVocoder:
    @pytest.mark.parametrize(("kind", "samples"), [("hifigan", 10), ("bwe", 30)])
    def test_length_range_dtype_and_meta_build(self, kind, samples):
        vocoder, mel = build_vocoder(kind), torch.randn(2, 2, 7, 64)
        waveform = vocoder(mel)
        assert waveform.shape == (2, 2, 7 * samples) and waveform.abs().max() <= 1
        assert vocoder(mel.bfloat16()).dtype == torch.bfloat16
        assert vocoder.output_sampling_rate == 24000
        with torch.device("meta"):
            shell = Vocoder(vocoder.config)
        assert all(t.is_meta for t in shell.state_dict().values())
        shell.load_state_dict(vocoder.state_dict(), assign=True, strict=True)
        assert torch.equal(shell(mel), waveform)

    @pytest.mark.parametrize(("kind", "network"), [("hifigan", HifiGanVocoder), ("bwe", BandwidthExtensionVocoder)])
    def test_the_config_picks_the_kind_and_copies_train(self, kind, network):
        vocoder = copy.deepcopy(build_vocoder(kind)).train()
        assert isinstance(vocoder, network)
        vocoder(torch.randn(1, 2, 4, 64)).sum().backward()
        assert all(p.grad is not None for p in vocoder.parameters())

    def test_bandwidth_extension_computes_in_float32_whatever_the_weights_are(self):
        half, mel = build_vocoder("bwe").bfloat16(), torch.randn(1, 2, 5, 64)
        full = copy.deepcopy(half).float()
        assert torch.equal(half(mel), full(mel))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(half(mel), full(mel))

    def test_channels_enter_left_first(self):
        vocoder = build_vocoder("hifigan")
        assert isinstance(vocoder, HifiGanVocoder)
        seen = []
        vocoder.conv_pre.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        mel = torch.randn(1, 2, 3, 64)
        vocoder(mel)
        assert torch.equal(seen[0][0, 64 + 5], mel[0, 1, :, 5])

    def test_published_tensor_names(self):
        flat = {"stereo": True, "resblock": "1"}
        with torch.device("meta"):
            state = Vocoder(VocoderConfig.from_metadata({"vocoder": flat})).state_dict()
        assert (len(state), sum(t.numel() for t in state.values())) == (194, 55_592_802)
        names = set(build_vocoder("bwe").state_dict())
        assert {"mel_stft.mel_basis", "mel_stft.stft_fn.forward_basis", "mel_stft.stft_fn.inverse_basis"} <= names
        assert "vocoder.resblocks.0.acts1.1.downsample.lowpass.filter" in names
        assert "bwe_generator.act_post.upsample.filter" in names and "vocoder.conv_post.bias" not in names

    @pytest.mark.parametrize(
        ("vocoder", "named"),
        [
            ({**GENERATOR, "resblock": "2"}, "resblock"),
            ({**GENERATOR, "stereo": False}, "stereo"),
            ({**GENERATOR, "upsample_kernel_sizes": [4]}, "upsample_kernel_sizes"),
            ({**GENERATOR, "upsample_initial_channel": 3}, "upsample_initial_channel"),
            ({"vocoder": {**ALIAS_FREE, "activation": "snake"}, "bwe": BWE}, "activation"),
            ({"vocoder": ALIAS_FREE, "bwe": {**BWE, "output_sampling_rate": 20000}}, "output_sampling_rate"),
            ({"vocoder": ALIAS_FREE, "bwe": {**BWE, "hop_length": 7}}, "upsample_rates"),
            ({"vocoder": ALIAS_FREE, "bwe": {k: v for k, v in BWE.items() if k != "n_fft"}}, "n_fft"),
        ],
    )
    def test_contradictory_configs_are_refused(self, vocoder, named):
        with pytest.raises(ConfigError, match=named):
            VocoderConfig.from_metadata({"vocoder": vocoder})


class TestChain:
    def test_mono_at_another_rate_goes_in_and_stereo_comes_out(self):
        encoder, decoder = build_vae(mel_bins=64, z_channels=1, ch=16)
        latent = encode_audio(Audio(torch.randn(1, 4410), 44100), encoder)
        assert latent.shape == (1, 1, 3, 16)
        audio = decode_audio(latent, decoder, build_vocoder("hifigan"))
        assert audio.waveform.shape == (2, 9 * 10) and audio.waveform.dtype == torch.float32
        assert audio.sampling_rate == 24000
        with pytest.raises(ConditioningError, match="batch of 2"):
            decode_audio(latent.expand(2, -1, -1, -1), decoder, build_vocoder("hifigan"))
