"""Sound on LTX-Video: the picture stays what it was, the clip has a track of its length, a plan is a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_checkpoints import write_audio_adapter

from ltx_core.errors import ConfigError
from ltx_core.networks import Contexts
from ltx_media.audio import read_audio
from ltx_pipelines import LTXAudioVideoPipeline, LTXVideoPipeline
from ltx_pipelines.cli.app import run as ltx
from ltx_pipelines.ltx_video.settings import LTXVConfig, Sampling
from ltx_pipelines.planning.cost import cost_of
from ltx_pipelines.planning.plan import ModelFiles, plan_from_json
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.utils.media_io import read_recipe
from ltx_pipelines.utils.model_ledger import ModelLedger

GUIDED = Sampling(num_inference_steps=2, guidance_scale=3.0, stg_scale=1.0, rescaling_scale=0.7, skip_block_list=(1,))
PLAIN = Sampling(guidance_scale=1.0, stg_scale=0.0, timesteps=(1.0, 0.7))
BASE = LTXVConfig((GUIDED,), precision="float32", stochastic_sampling=True)
TWO_PASSES = replace(BASE, pipeline_type="multi-scale", passes=(PLAIN, replace(PLAIN, timesteps=(0.9, 0.4))))
ASKED: dict[str, Any] = {"prompt": "a boat", "negative_prompt": "ugly", "height": 64, "width": 96, "num_frames": 17}

Make = Callable[..., ModelLedger]


@pytest.fixture
def make_ledger(media_folder: Path) -> Make:
    """Ledgers of the tiny LTX-Video model with sound; they know the contexts of two prompts."""

    def make(**files: str | None) -> ModelLedger:
        sound = {"audio_adapter": "audio-adapter.safetensors", "audio_vae": "model.safetensors"} | files
        found = {slot: name and str(media_folder / name) for slot, name in sound.items()}
        model, larger = (str(media_folder / f"ltxv-{name}.safetensors") for name in ("2b-0.9.6-distilled", "upscaler"))
        ledger = ModelLedger(
            ModelFiles(model, spatial_upsampler=larger, **found), dtype="float32", device="cpu", policy="resident"
        )
        generator = torch.Generator().manual_seed(5)
        mask = torch.tensor([[1, 1, 1, 0]])
        for prompt in ("a boat", "ugly"):
            ledger.texts.remember(prompt, Contexts(torch.randn(1, 4, 24, generator=generator), mask=mask))
        return ledger

    return make


def made(ledger: ModelLedger, config: LTXVConfig = BASE, kind: Any = LTXAudioVideoPipeline, **more: Any) -> Generation:
    pipeline = kind(ledger)
    pipeline.config = config
    generation: Generation = pipeline(**ASKED, **more)
    return generation


@pytest.mark.parametrize("config", [BASE, TWO_PASSES], ids=["guided", "two passes"])
def test_a_closed_gate_leaves_the_picture_as_it_is(
    config: LTXVConfig, make_ledger: Make, media_folder: Path, tmp_path: Path
) -> None:
    model = media_folder / "ltxv-2b-0.9.6-distilled.safetensors"
    closed = write_audio_adapter(tmp_path / "closed.safetensors", model, {"attention_head_dim": 8}, gate=0.0)
    plain = made(make_ledger(audio_adapter=None), config, LTXVideoPipeline)
    with_sound = made(make_ledger(audio_adapter=str(closed)), config, generate_audio=True)
    assert torch.equal(with_sound.latents["video"], plain.latents["video"])
    assert plain.video is not None and with_sound.video is not None
    assert torch.equal(with_sound.video.tensor(), plain.video.tensor())
    opened = made(make_ledger(), config, generate_audio=True)
    assert not torch.equal(opened.latents["video"], plain.latents["video"])
    assert torch.equal(made(make_ledger(), config).latents["video"], plain.latents["video"])  # sound not asked for


def test_the_track_is_as_long_as_its_tokens_say(make_ledger: Make, tmp_path: Path) -> None:
    ledger = make_ledger()
    pipeline = LTXAudioVideoPipeline(ledger).enable_audio_generation()
    pipeline.config = BASE
    generation = pipeline(**ASKED)
    tokens = round(17 / 30 * 25)
    assert generation.latents["audio"].shape == (1, 8, tokens, 16) and generation.audio is not None
    assert generation.audio.duration == pytest.approx((4 * tokens - 3) / 100)
    shorter = pipeline(**{**ASKED, "num_frames": 12})  # made at 17, cut back
    assert shorter.audio is not None and shorter.audio.duration == pytest.approx(12 / 30, abs=1e-4)
    sound = read_audio(generation.save(tmp_path / "clip.mp4"))
    assert sound is not None and sound.duration == pytest.approx(
        generation.audio.duration, abs=0.09
    )  # whole frames of AAC
    quiet = pipeline.enable_audio_generation(False)(**ASKED)
    assert quiet.audio is None and list(quiet.latents) == ["video"]


def test_the_second_pass_keeps_the_sound(make_ledger: Make) -> None:
    first, second = made(make_ledger(), TWO_PASSES, generate_audio=True).stages
    assert torch.equal(first["audio"], second["audio"])
    assert first["audio"].std() > 0.1


def test_sound_follows_the_seed(make_ledger: Make) -> None:
    ledger = make_ledger()
    first, again, other = (made(ledger, generate_audio=True, seed=seed).latents["audio"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_is_missing_is_named(make_ledger: Make, media_folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected an audio adapter"):
        LTXAudioVideoPipeline(make_ledger(audio_adapter=None)).enable_audio_generation()
    with pytest.raises(ConfigError, match="no audio_decoder and no vocoder, expected those of LTX-2"):
        made(make_ledger(audio_vae=None), generate_audio=True)
    with pytest.raises(ConfigError, match="where sound cannot begin"):
        made(make_ledger(), generate_audio=True, input_media_path=str(media_folder / "silent.mp4"))


def test_an_adapter_beside_the_model_is_found(media_folder: Path) -> None:
    model, adapter = media_folder / "ltxv-2b-0.9.6-distilled.safetensors", media_folder / "audio-adapter.safetensors"
    assert find_model(str(model)).files.audio_adapter == str(adapter)
    assert find_model(str(media_folder / "model.safetensors")).files.audio_adapter is None  # of LTX-2
    with_sound = LTXAudioVideoPipeline.from_pretrained(model, device="cpu")
    assert with_sound.ledger.files.audio_adapter == str(adapter)
    assert LTXVideoPipeline.from_pretrained(model, device="cpu").ledger.files.audio_adapter is None
    config = LTXAudioVideoPipeline.from_pretrained(media_folder / "ltxv.yaml", device="cpu").config
    assert config is not None and len(config.passes) == 2


def test_a_plan_with_sound_is_costed_and_read_back(make_ledger: Make) -> None:
    ledger = make_ledger()
    pipeline = LTXAudioVideoPipeline(ledger)
    pipeline.config = BASE
    plan, silent = (pipeline.plan(**ASKED, generate_audio=sound) for sound in (True, False))
    assert plan_from_json(plan.to_json()) == plan
    dear, cheap = (cost_of(one, ledger) for one in (plan, silent))
    assert dear.flops > cheap.flops and dear.peak > cheap.peak


def test_sound_in_fewer_blocks_costs_less(make_ledger: Make, media_folder: Path, tmp_path: Path) -> None:
    model = media_folder / "ltxv-2b-0.9.6-distilled.safetensors"

    def flops(blocks: list[int] | None) -> float:
        settings = {"attention_head_dim": 8, "blocks": blocks}
        adapter = write_audio_adapter(tmp_path / f"{blocks}.safetensors", model, settings)
        ledger = make_ledger(audio_adapter=str(adapter))
        pipeline = LTXAudioVideoPipeline(ledger)
        pipeline.config = LTXVConfig((PLAIN,))
        return cost_of(pipeline.plan(**ASKED, generate_audio=True), ledger).flops

    none, one, two, every = (flops(blocks) for blocks in ([], [1], [0, 2], None))
    assert two - none == pytest.approx(2 * (one - none)) and every - none == pytest.approx(3 * (one - none))


def test_the_command(here: Path) -> None:
    files = "--checkpoint-path ltxv-2b-0.9.6-distilled.safetensors --text-encoder-path t5"
    line = f"generate -p boat --generate-audio {files} --audio-vae-path model.safetensors -W 64 -H 64 -f 9 --quiet"
    assert ltx([*line.split(), "-o", "boat.mp4"]) == 0
    recipe = read_recipe(here / "boat.mp4")
    assert recipe is not None and recipe["pipeline"] == "LTXAudioVideoPipeline"
    assert read_audio("boat.mp4") is not None
    assert ltx(["rerun", "boat.mp4", "-o", "again.mp4", "--quiet"]) == 0
    assert (here / "again.mp4").read_bytes() == (here / "boat.mp4").read_bytes()
