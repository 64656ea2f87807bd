"""Training from nothing: batches by position, each small task learns, resumes bit for bit and exports what loads."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from ltx_core.errors import ConfigError
from ltx_core.loader import Checkpoint
from ltx_core.loader.safetensors_file import SafetensorsFile, save_tensors
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.video_vae import VideoDecoder
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_core.text_encoders.gemma.backbone import load_backbone
from ltx_core.text_encoders.gemma.encoder import load_tokenizer
from ltx_core.text_encoders.gemma.enhance import load_enhancer
from ltx_core.text_encoders.gemma.tokenizer import GemmaTokenizer
from ltx_trainer.draws import step_draws
from ltx_trainer.loop import CHECKPOINT_FOLDER, LoopSettings, train
from ltx_trainer.pretrain.audio_vae import AudioVaeTask
from ltx_trainer.pretrain.data import Curriculum, Examples, Stage
from ltx_trainer.pretrain.gemma import (
    IMAGE,
    IMAGE_TOKENS,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TURN,
    TURN_END,
    GemmaTask,
    train_tokenizer,
    unpack,
)
from ltx_trainer.pretrain.pictures import draw_curves, frames_sheet, spectrogram_sheet
from ltx_trainer.pretrain.task import Spread, holding
from ltx_trainer.pretrain.taught_vae import TaughtDecoder, TaughtDecoderTask, TaughtEncoder, TaughtEncoderTask
from ltx_trainer.pretrain.transformer import pick
from ltx_trainer.pretrain.upsampler import UpsamplerTask
from ltx_trainer.pretrain.video_vae import VideoVaeTask, stands_out, to_pixels
from ltx_trainer.pretrain.vocoder import VocoderTask, VocoderTrainer, spectral_losses

VIDEO_CONFIG = {
    "vae": {
        "_class_name": "CausalVideoAutoencoder",
        "latent_channels": 32,
        "patch_size": 2,
        "latent_log_var": "uniform",
        "timestep_conditioning": False,
        "encoder_blocks": [["compress_all_res", {"multiplier": 1}]],
        "decoder_base_channels": 16,
        "decoder_blocks": [["compress_all", {"multiplier": 2, "residual": True}]],
    }
}
AUDIO_CONFIG = {
    "audio_vae": {
        "model": {
            "params": {
                "ddconfig": {
                    "ch": 32,
                    "z_channels": 2,
                    "ch_mult": [1, 1, 1],
                    "num_res_blocks": 0,
                    "attn_resolutions": [],
                    "mid_block_add_attention": False,
                    "mel_bins": 64,
                }
            }
        }
    },
    "vocoder": {
        "upsample_initial_channel": 32,
        "upsample_rates": [10, 16],
        "upsample_kernel_sizes": [20, 32],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]],
        "stereo": True,
        "output_sampling_rate": 16000,
    },
}
TEXT_CONFIG = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
TEXTS = ["a red ball bounces", "a blue box slides to the left", "a green star spins"]


def noise(position: int, slot: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * position + slot))


def moving_square(position: int, slot: int, stage: Stage) -> dict[str, torch.Tensor]:
    video = torch.full((3, stage.frames, 16, 16), 60, dtype=torch.uint8)
    left = (3 * slot + position) % 8
    for frame in range(stage.frames):
        video[0, frame, 4:10, left + frame : left + frame + 5] = 220
    return {"video": video}


def tones(position: int, slot: int, stage: Stage) -> dict[str, torch.Tensor]:
    t = torch.arange(3200) / 16000
    wave = torch.sin(2 * torch.pi * (200 + 150 * slot) * t) * 0.3
    return {"waveform": torch.stack((wave, 0.5 * wave))}


def pairs(position: int, slot: int, stage: Stage) -> dict[str, torch.Tensor]:
    small = noise(0, slot, 4, 2, 3, 3)
    return {"small": small, "large": torch.nn.functional.interpolate(small[None], scale_factor=(1, 2, 2))[0]}


def video_task() -> VideoVaeTask:
    torch.manual_seed(0)
    curriculum = Curriculum((Stage(2, 4), Stage(20, 2, frames=3)))
    return VideoVaeTask(
        VIDEO_CONFIG, Examples(moving_square, curriculum), [Examples(moving_square, curriculum).batch(9)["video"]]
    )


def square_with_code(position: int, slot: int, stage: Stage) -> dict[str, torch.Tensor]:
    video = moving_square(position, slot, stage)["video"]
    red = video[:1, ::2].float() / 127.5 - 1  # of the last frame of each latent frame
    return {"video": video, "code": torch.nn.functional.avg_pool3d(red, (1, 4, 4)), "drawable": torch.tensor(1.0)}


def taught_encoder_task() -> TaughtEncoderTask:
    torch.manual_seed(0)
    decoder = VideoDecoder(VideoVaeConfig.from_metadata(VIDEO_CONFIG)).requires_grad_(False)
    examples = Examples(square_with_code, Curriculum((Stage(20, 2, frames=3),)))
    return TaughtEncoderTask(TaughtEncoder(VIDEO_CONFIG, 1, decoder), VIDEO_CONFIG, examples, [examples.batch(9)])


def taught_decoder_task() -> TaughtDecoderTask:
    torch.manual_seed(0)
    examples = Examples(square_with_code, Curriculum((Stage(20, 2, frames=3),)))
    return TaughtDecoderTask(TaughtDecoder(VIDEO_CONFIG, [0.1]), VIDEO_CONFIG, examples, [examples.batch(9)])


def audio_task() -> AudioVaeTask:
    torch.manual_seed(0)
    examples = Examples(tones, Curriculum((Stage(20, 2),)))
    return AudioVaeTask(AUDIO_CONFIG, examples, examples.batch(0)["waveform"], statistics_batches=2)


def vocoder_task() -> VocoderTask:
    torch.manual_seed(0)
    examples = Examples(tones, Curriculum((Stage(20, 2),)))
    return VocoderTask(AUDIO_CONFIG, examples, examples.batch(0)["waveform"])


def upsampler_task() -> UpsamplerTask:
    torch.manual_seed(0)
    examples = Examples(pairs, Curriculum((Stage(20, 2),)))
    config = {"_class_name": "LatentUpsampler", "in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 1}
    return UpsamplerTask(config, (torch.zeros(4), torch.ones(4)), examples, examples.batch(99))


def gemma_task() -> GemmaTask:
    torch.manual_seed(0)
    tokenizer_json = train_tokenizer(TEXTS, TEXT_CONFIG["vocab_size"])
    tokenizer = GemmaTokenizer(tokenizer_json, TOKENIZER_CONFIG)

    def make(position: int, slot: int, stage: Stage) -> dict[str, torch.Tensor]:
        ids = tokenizer.tokenizer.encode(TEXTS[(position + slot) % 3]).ids[:24]
        return {"input_ids": torch.tensor([*ids, *[0] * (24 - len(ids))])}

    examples = Examples(make, Curriculum((Stage(20, 2),)))
    return GemmaTask(TEXT_CONFIG, tokenizer_json, examples, examples.batch(0)["input_ids"])


TASKS = {
    "video_vae": video_task,
    "video_encoder": taught_encoder_task,
    "video_decoder": taught_decoder_task,
    "audio_vae": audio_task,
    "vocoder": vocoder_task,
    "upsampler": upsampler_task,
    "gemma": gemma_task,
}


def settings(steps: int, **more: object) -> LoopSettings:
    return LoopSettings(steps=steps, learning_rate=3e-3, max_grad_norm=10.0, ema_decay=0.9, **more)


@pytest.mark.parametrize("name", TASKS)
def test_each_task_learns_validates_and_exports(name: str, tmp_path: Path) -> None:
    reports = list(train(TASKS[name](), settings(24, validation_interval=24), tmp_path))
    assert reports[-1].losses["loss"] < 0.9 * reports[0].losses["loss"]
    assert reports[-1].metrics and all(value == value for value in reports[-1].metrics.values())
    assert reports[-1].files[0].name == f"{name}_step_00024.safetensors"


def test_a_video_vae_with_a_haar_stem_says_so_in_its_file(tmp_path: Path) -> None:
    config = {"vae": {**VIDEO_CONFIG["vae"], "stem": "haar"}}
    task = VideoVaeTask(config, Examples(moving_square, Curriculum((Stage(2, 2),))), statistics_batches=1)
    (report,) = train(task, LoopSettings(1), tmp_path)
    checkpoint = Checkpoint.open(report.files[0])
    encoder, decoder = (checkpoint.build(f"video_{half}", torch.float32) for half in ("encoder", "decoder"))
    assert encoder.config.stem == decoder.config.stem == "haar"
    video = moving_square(0, 0, Stage(1))["video"][None]
    with torch.no_grad():
        made = decoder(encoder(task.module.pixels(video))).clamp(-1, 1)
    torch.testing.assert_close(made, task.module.reconstruct(video).detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["video_vae", "vocoder"])
def test_a_run_stopped_and_resumed_ends_bit_equal(name: str, tmp_path: Path) -> None:
    list(train(TASKS[name](), settings(6), tmp_path / "whole"))
    list(train(TASKS[name](), settings(6, checkpoint_interval=3, keep_last_n=-1), tmp_path / "parts"))
    for path in (tmp_path / "parts" / CHECKPOINT_FOLDER).glob("*00006*"):
        path.unlink()
    reports = list(train(TASKS[name](), settings(6), tmp_path / "parts"))
    assert [report.step for report in reports] == [4, 5, 6]
    whole, parts = (
        SafetensorsFile(tmp_path / which / CHECKPOINT_FOLDER / f"{name}_step_00006.safetensors")
        for which in ("whole", "parts")
    )
    assert whole.tensors.keys() == parts.tensors.keys()
    assert all(torch.equal(whole.read(key), parts.read(key)) for key in whole.tensors)


def test_batches_depend_on_position_alone_and_ranks_share_the_whole_batch() -> None:
    curriculum = Curriculum((Stage(2, 4), Stage(3, 2, frames=3)))
    made = {"x": noise}
    examples = Examples(lambda position, slot, stage: {"x": made["x"](position, slot, stage.frames)}, curriculum)
    from_start, later = examples.batches(0), examples.batches(3)
    batches = [next(from_start)["x"] for _ in range(5)]
    assert [tuple(batch.shape) for batch in batches] == [(4, 1)] * 2 + [(2, 3)] * 3
    assert torch.equal(next(later)["x"], batches[3])
    assert torch.equal(examples.batch(0, rank=1)["x"][0], noise(0, 4, 1))
    assert curriculum.steps == 5 and curriculum.at(10**6).frames == 3


def test_a_stage_goes_through_its_forms_in_turn() -> None:
    small, large = Stage(2, 4, side=128), Stage(1, 2, side=256)
    written = {"steps": 6, "in_turn": [{"steps": 2, "batch_size": 4, "side": 128}, {**vars(large), "in_turn": []}]}
    curriculum = Curriculum((Stage(1, 8), Stage.from_dict(written), Stage(5, 1)))
    assert [curriculum.at(position) for position in range(7)] == [
        Stage(1, 8), small, small, large, small, small, large,
    ]  # fmt: skip
    assert curriculum.at(7) == curriculum.at(2**30) == Stage(5, 1) and curriculum.steps == 12


def test_workers_leave_signals_to_the_parent() -> None:
    examples = Examples(own_process, Curriculum((Stage(2, 1),)), workers=1)
    batches = examples.batches(0)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(int(next(batches)["pid"]), number)
    assert [int(next(batches)["position"]) for _ in range(4)] == [2, 3, 4, 5]


def own_process(position: int, slot: int, stage: Stage) -> dict[str, torch.Tensor]:
    return {"pid": torch.tensor(os.getpid()), "position": torch.tensor(position)}


def test_exported_vaes_load_strictly_and_give_latents_of_unit_spread(tmp_path: Path) -> None:
    video, audio = video_task(), audio_task()
    files = [video.export(tmp_path, 1, {})[0], audio.export(tmp_path, 1, {})[0]]
    checkpoint = Checkpoint.open(files)
    assert checkpoint.components == ("video_encoder", "video_decoder", "audio_encoder", "audio_decoder")
    encoder = checkpoint.build("video_encoder")
    clips = torch.cat([video.module.pixels(video.examples.batch(22 + i)["video"]) for i in range(16)])
    latent = encoder(clips).transpose(0, 1).flatten(1)
    assert latent.mean(1).abs().max() < 1e-3
    assert (latent.std(1) - 1).abs().max() < 1e-2
    mel = audio.module.mel(audio.examples.batch(0)["waveform"])
    assert checkpoint.build("audio_encoder")(mel).std() == pytest.approx(1.0, abs=0.05)
    decoded = checkpoint.build("audio_decoder")(checkpoint.build("audio_encoder")(mel))
    assert decoded.shape == mel.shape


def test_halves_of_a_taught_vae_make_one_that_uses_no_channel_but_the_codes(tmp_path: Path) -> None:
    tasks = taught_encoder_task(), taught_decoder_task()
    files = [list(train(task, settings(8), tmp_path / task.name))[-1].files[0] for task in tasks]
    checkpoint = Checkpoint.open(files)
    assert checkpoint.components == ("video_encoder", "video_decoder")
    encoder, decoder = (checkpoint.build(f"video_{half}", torch.float32) for half in ("encoder", "decoder"))
    video = to_pixels(tasks[0].examples.batch(9)["video"], torch.device("cpu"))
    with torch.no_grad():
        latent = encoder(video)
        assert latent[:, :1].std() > 0 and not latent[:, 1:].any()
        other = torch.cat([latent[:, :1], torch.randn_like(latent[:, 1:])], dim=1)
        assert torch.equal(decoder(latent), decoder(other))


def test_a_taught_encoder_is_not_blamed_for_what_no_decoder_could_draw_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    task = taught_encoder_task()
    batch = task.examples.batch(0)
    with torch.no_grad():
        drawable, not_drawable = (
            task.module(batch | {"drawable": torch.full((2,), share)}, step_draws("cpu", 0)) for share in (1.0, 0.0)
        )
    assert drawable["picture"] > 0 == not_drawable["picture"] and drawable["squared"] == not_drawable["squared"]
    decoder = task.module.draw.args[0]
    before = [weight.clone() for weight in decoder.parameters()]
    list(train(task, settings(2), tmp_path))
    assert all(map(torch.equal, before, decoder.parameters()))
    assert not any("decoder" in name for name in task.module.state_dict())


def test_an_unpacked_language_model_is_a_whole_gemma_that_can_chat(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    task = gemma_task()
    (packed,) = task.export(tmp_path / "exports", 1, dict(task.module.named_parameters()))
    unpack(packed, tmp_path / "gemma", torch.float32)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "gemma", output_loading_info=True)[1]
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    words = "a small red ball"
    own = GemmaTokenizer(task.tokenizer_json, TOKENIZER_CONFIG)(words, 16)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "gemma")(words)["input_ids"]
    assert theirs == own.input_ids[own.attention_mask.bool()].tolist()
    enhancer = load_enhancer(tmp_path / "gemma", torch.float32, images=True)
    plain = enhancer.prepare(words, "ignored")
    assert [SPECIAL_TOKENS[i] for i in plain["input_ids"][0].tolist() if 4 <= i < len(SPECIAL_TOKENS)] == [
        TURN,
        TURN_END,
        TURN,
    ]
    shown = enhancer.prepare(words, "ignored", torch.zeros(40, 40, 3, dtype=torch.uint8))
    assert int((shown["input_ids"] == SPECIAL_TOKENS.index(IMAGE["image_token"])).sum()) == IMAGE_TOKENS


def test_a_packed_language_model_unpacks_to_a_folder_that_loads(tmp_path: Path) -> None:
    task = gemma_task()
    packed = task.export(tmp_path, 1, {})[0]
    unpack(packed, tmp_path / "gemma", torch.float32)
    tokens = load_tokenizer(GemmaAssets.open(packed))(["a RED ball", "zebra"], 16)
    assert (
        tokens.input_ids[0, -1] == load_tokenizer(GemmaAssets.open(tmp_path / "gemma"))("red ball", 16).input_ids[0, -1]
    )
    assert (tokens.input_ids == 2).sum(1).tolist() == [1, 1]
    states = [
        load_backbone(GemmaAssets.open(where), torch.float32).hidden_states(tokens)
        for where in (packed, tmp_path / "gemma")
    ]
    assert len(states[0]) == TEXT_CONFIG["num_hidden_layers"] + 1
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_spread_is_that_of_all_batches_together() -> None:
    values = torch.randn(3, 40) * torch.tensor([[1.0], [2.0], [5.0]]) + 7
    spread = Spread()
    for part in values.split(16, dim=1):
        spread.add(part)
    tensors = spread.tensors()
    assert torch.allclose(tensors["mean-of-means"], values.mean(1), atol=1e-4)
    assert torch.allclose(tensors["std-of-means"], values.std(1, correction=0), atol=1e-4)


def test_holding_puts_the_weights_back() -> None:
    module = torch.nn.Linear(2, 2)
    before = module.weight.detach().clone()
    with holding(module, {"weight": torch.ones(2, 2)}):
        assert not module.training and bool((module.weight == 1).all())
    assert module.training and torch.equal(module.weight, before)


def test_what_stands_out_is_the_square_and_not_the_wall() -> None:
    video = moving_square(0, 0, Stage(1, 1, frames=2))["video"][None].float() / 127.5 - 1
    marked = stands_out(video)
    assert bool(marked[0, 0, 0, 4:10, 0:5].all()) and not bool(marked[0, 0, 0, :4].any())


def test_what_changes_in_time_stands_out_however_faint_it_is() -> None:
    video = torch.zeros(1, 3, 4, 8, 8)
    video[:, :, 2:, 5] = 0.1  # a row that gets lighter
    assert bool(stands_out(video)[0, 0, :, 5].all()) and not bool(stands_out(video)[0, 0, :, :5].any())


def test_spectral_losses_are_zero_for_equal_sound_and_see_a_lost_channel() -> None:
    wave = tones(0, 1, Stage(1, 1))["waveform"][None]
    assert all(float(loss) == pytest.approx(0.0, abs=1e-6) for loss in spectral_losses(wave, wave))
    assert float(spectral_losses(wave * torch.tensor([[[1.0], [0.0]]]), wave)[1]) > 0.1


def test_spectral_losses_see_two_sides_made_one() -> None:
    left, right = noise(0, 0, 1, 8000), noise(0, 1, 1, 8000)
    stereo, mono = torch.stack((left, right), dim=1), torch.stack((left, left), dim=1)
    silent = torch.zeros_like(left)
    assert spectral_losses(mono, stereo)[0] > 0.5
    assert spectral_losses(torch.stack((left, silent), dim=1), mono)[0] > 0.5


def test_the_written_vocoder_is_the_trained_one_on_either_side(tmp_path: Path) -> None:
    task = vocoder_task()
    save_tensors(tmp_path / "vocoder.safetensors", task.tensors(), {"config": json.dumps(task.config())})
    vocoder = Checkpoint.open(tmp_path / "vocoder.safetensors").build("vocoder", torch.float32)
    mel = noise(0, 0, 1, 2, 20, 64)
    with torch.no_grad():
        assert torch.allclose(vocoder(mel), task.module.waveform(mel), atol=1e-6)


def test_a_vocoder_too_narrow_to_part_is_refused() -> None:
    odd = {**AUDIO_CONFIG, "vocoder": {**AUDIO_CONFIG["vocoder"], "upsample_initial_channel": 36}}
    with pytest.raises(ConfigError, match="upsample_initial_channel is 36, expected a multiple of 8"):
        VocoderTrainer(odd, mel_noise=0.0)


def test_pick_lays_weights_end_to_end() -> None:
    assert [pick(at, [1.0, 2.0, 1.0]) for at in (0.0, 0.24, 0.26, 0.74, 0.76, 0.9999999)] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ConfigError, match="long enough"):
        pick(0.5, [0.0, 0.0])


def test_pictures_are_written(tmp_path: Path) -> None:
    from PIL import Image

    frames_sheet(tmp_path / "f.png", torch.zeros(2, 3, 5, 8, 8), torch.ones(2, 3, 5, 8, 8))
    spectrogram_sheet(tmp_path / "s.png", torch.zeros(2, 2, 10, 64))
    rows = [(step, name, step * 1.0) for step in range(1000) for name in ("a", "b", "c")]
    draw_curves(tmp_path / "c.png", rows)
    assert Image.open(tmp_path / "f.png").size == (2 * 4 * 8, 16)
    assert Image.open(tmp_path / "s.png").size == (28, 256)
    assert Image.open(tmp_path / "c.png").size[0] == 840
    shutil.rmtree(tmp_path)
