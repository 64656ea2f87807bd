"""The engine and the ledger: cancelling, resuming, what is read, what is kept, and the tasks on a random checkpoint."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.golden.case import TINY_CHECKPOINT

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.errors import CheckpointError, ConditioningError, ConfigError, MediaError
from ltx_core.types import Audio
from ltx_pipelines.a2vid_two_stage import A2VidPipelineTwoStage
from ltx_pipelines.distilled import DistilledPipeline
from ltx_pipelines.extend import ExtendPipeline
from ltx_pipelines.keyframe_interpolation import KeyframeInterpolationPipeline
from ltx_pipelines.pipeline import Pipeline
from ltx_pipelines.planning.plan import ImageCondition, Lora, plan_from_json
from ltx_pipelines.retake import RetakePipeline
from ltx_pipelines.running.engine import generate
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.t2a_one_stage import T2AOneStagePipeline
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
from ltx_pipelines.ti2vid_two_stages_hq import TI2VidTwoStagesHQPipeline
from ltx_pipelines.utils.media_io import probe_video, write_png, write_video
from ltx_pipelines.utils.model_ledger import ModelLedger
from ltx_pipelines.v2a_one_stage import V2AOneStagePipeline

PLAIN = MultiModalGuiderParams()
SMALL = {"prompt": "a bell rings", "height": 64, "width": 64, "num_frames": 9, "seed": 3}
GUIDED = {**SMALL, "num_inference_steps": 2, "video_guider_params": PLAIN, "audio_guider_params": PLAIN}


def new_ledger() -> ModelLedger:
    return ModelLedger(find_model(str(TINY_CHECKPOINT)).files, dtype=torch.float32, device="cpu", policy="resident")


@pytest.fixture(scope="module")
def ledger() -> ModelLedger:
    return new_ledger()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 frames of 64 x 64 at 25 fps with a tone."""
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    ramp = torch.linspace(0, 1, 64)
    frames = torch.stack([(ramp.view(1, 64, 1) * (frame + 1) / 17).expand(64, 64, 3) for frame in range(17)])
    tone = torch.sin(torch.arange(16320) * 0.05).expand(2, -1) * 0.3
    write_video(path, [frames], 25.0, Audio(tone, 24000))
    return path


def latents_of(generation: Generation) -> list[torch.Tensor]:
    return [latent for stage in generation.stages for latent in stage.values()]


def equal(a: Generation, b: Generation) -> bool:
    return all(torch.equal(x, y) for x, y in zip(latents_of(a), latents_of(b), strict=True))


def test_one_seed_gives_one_result_and_another_seed_another(ledger: ModelLedger) -> None:
    pipeline = DistilledPipeline(ledger)
    first, again, other = (pipeline(**{**SMALL, "seed": seed}, output_type="latent") for seed in (3, 3, 4))
    assert equal(first, again) and not equal(first, other)


def test_a_plan_survives_its_json_and_runs_to_the_same_result(ledger: ModelLedger, tmp_path: Path) -> None:
    write_png(tmp_path / "still.png", torch.full((64, 64, 3), 128, dtype=torch.uint8))
    image = ImageCondition(str(tmp_path / "still.png"), frame_idx=8, strength=0.5, crf=0)
    plan = TI2VidTwoStagesPipeline(ledger).plan(**GUIDED, images=[image])
    again = plan_from_json(plan.to_json())
    assert again == plan
    results = [list(generate(each, ledger, decode=False))[-1].generation for each in (plan, again)]
    assert equal(*results)


@pytest.mark.parametrize("steps_before_cancel", [0, 1, 4, 8, 9])
def test_cancelling_between_steps_leaves_nothing_and_the_next_run_is_right(
    ledger: ModelLedger, steps_before_cancel: int
) -> None:
    pipeline = DistilledPipeline(ledger)
    want = pipeline(**SMALL, output_type="latent")
    events, seen, kept = pipeline.stream(**SMALL), 0, None
    for event in events:
        seen += event.phase == "denoise" and event.step > 0
        if event.states:
            kept = weakref.ref(event.states["video"].latent)
        if seen == steps_before_cancel and event.phase == "denoise":
            break
    del event
    events.close()
    del events
    gc.collect()
    assert kept is not None and kept() is None, "a cancelled run still holds its tokens"
    assert equal(pipeline(**SMALL, output_type="latent"), want)


def test_resuming_after_the_first_stage_equals_the_uninterrupted_run(ledger: ModelLedger) -> None:
    plan = DistilledPipeline(ledger).plan(**SMALL)
    want = list(generate(plan, ledger))[-1].generation
    first = list(generate(plan.with_(stages=plan.stages[:1]), ledger, decode=False))[-1].generation
    got = list(generate(plan, ledger, resume=first))[-1].generation
    assert equal(got, want)
    assert torch.equal(torch.cat(list(got.video)), torch.cat(list(want.video)))
    assert torch.equal(got.audio.waveform, want.audio.waveform)


def test_a_first_stage_goes_on_in_another_precision(ledger: ModelLedger) -> None:
    plan = DistilledPipeline(ledger).plan(**SMALL)
    first = list(generate(plan.with_(stages=plan.stages[:1]), ledger, decode=False))[-1].generation
    assert first is not None
    narrow = [{name: latent.bfloat16() for name, latent in stage.items()} for stage in first.stages]
    resumed = list(generate(plan, ledger, resume=replace(first, stages=tuple(narrow))))[-1].generation
    assert resumed is not None and resumed.video is not None
    assert resumed.latents["video"].dtype == ledger.dtype and len(list(resumed.video))


def test_weights_are_read_once_and_the_video_encoder_never() -> None:
    ledger = new_ledger()
    pipeline = TI2VidTwoStagesPipeline(ledger, distilled_loras=find_model(str(TINY_CHECKPOINT)).distilled_loras)
    reads = []
    for _ in range(2):
        generation = pipeline(**GUIDED)
        assert sum(len(chunk) for chunk in generation.video) == 9
        reads.append(ledger.bytes_read)
    read, after_the_second = reads
    assert after_the_second == read, "the second generation read weights"
    parts = ("transformer", "embeddings", "video_decoder", "audio_decoder", "vocoder")
    needed = {
        (source.file.path, source.key): source.info.nbytes
        for part in parts
        for source in ledger.checkpoint.sources(part).values()
    }
    upsampler = ledger.open(ledger.files.spatial_upsampler)
    once = sum(needed.values()) + sum(s.info.nbytes for s in upsampler.sources("latent_upsampler").values())
    adapted = ledger.checkpoint.weights("transformer")
    lora = ledger.lora(pipeline.distilled_loras[0])
    again = sum(
        source.info.nbytes for path in adapted.layers_changed_by([lora]) for source in adapted.layers[path].values()
    )
    statistics = 4 * 2 * 128 * 2  # per-channel mean and deviation, which decoder and upsampler share
    assert once <= read <= once + again + statistics
    encoder = set(ledger.checkpoint.sources("video_encoder")) - set(ledger.checkpoint.sources("video_decoder"))
    assert encoder and "video_encoder" not in ledger.resident()


def test_switching_adapters_gives_the_base_back_bit_for_bit(ledger: ModelLedger) -> None:
    base = {name: tensor.clone() for name, tensor in ledger.transformer().state_dict().items()}
    adapter = Lora(str(TINY_CHECKPOINT / "distilled-lora-tiny.safetensors"), 0.7)
    changed = {name: tensor.clone() for name, tensor in ledger.transformer([adapter]).state_dict().items()}
    assert any(not torch.equal(base[name], changed[name]) for name in base)
    read = ledger.bytes_read
    back = ledger.transformer().state_dict()
    assert all(torch.equal(base[name], back[name]) for name in base)
    again = ledger.transformer([adapter]).state_dict()
    assert all(torch.equal(changed[name], again[name]) for name in base)
    assert ledger.bytes_read == read, "switching back and forth read weights"
    ledger.transformer()


def test_sequential_policy_gives_the_same_clip_as_resident(ledger: ModelLedger) -> None:
    sequential = ModelLedger(ledger.files, dtype=torch.float32, device="cpu", policy="sequential")
    assert equal(
        DistilledPipeline(sequential)(**SMALL, output_type="latent"),
        DistilledPipeline(ledger)(**SMALL, output_type="latent"),
    )


def test_prompts_seen_before_come_from_the_cache_on_disk(tmp_path: Path) -> None:
    files = find_model(str(TINY_CHECKPOINT)).files
    first, second = (
        ModelLedger(files, dtype=torch.float32, device="cpu", policy="resident", embedding_cache=tmp_path)
        for _ in range(2)
    )
    want = first.texts.contexts(["a bell", "a drum"])
    got = second.texts.contexts(["a drum"])
    assert torch.equal(got[0].video, want[1].video) and torch.equal(got[0].audio, want[1].audio)
    assert second.bytes_read == 0 and "text_encoder" not in second._networks


@pytest.mark.parametrize(
    ("pipeline", "arguments", "frames"),
    [
        (TI2VidOneStagePipeline, GUIDED, 9),
        (KeyframeInterpolationPipeline, GUIDED, 9),
        (TI2VidTwoStagesHQPipeline, GUIDED, 9),
    ],
)
def test_task_gives_frames_and_sound(
    ledger: ModelLedger, pipeline: type[Pipeline], arguments: dict, frames: int
) -> None:
    generation = pipeline(ledger)(**arguments)
    video = torch.cat(list(generation.video))
    assert video.shape == (frames, 64, 64, 3) and float(video.min()) >= 0 and float(video.max()) <= 1
    assert generation.audio.waveform.shape[0] == 2 and generation.audio.duration > 0.2


def test_audio_to_video_delivers_the_given_sound(ledger: ModelLedger, clip: Path) -> None:
    arguments = {key: value for key, value in GUIDED.items() if key != "audio_guider_params"}
    generation = A2VidPipelineTwoStage(ledger)(
        **arguments, frame_rate=25.0, audio_path=str(clip), audio_max_duration=0.36
    )
    assert generation.audio.sampling_rate == 24000
    assert abs(generation.audio.duration - 9 / 25) < 0.01
    stage_1, stage_2 = (stage["audio"] for stage in generation.stages)
    assert torch.equal(stage_1, stage_2), "the frozen sound changed between stages"


def test_video_to_audio_keeps_the_pictures(ledger: ModelLedger, clip: Path) -> None:
    from ltx_pipelines.running.conditions import source_latent

    arguments = {"prompt": "a bell", "num_inference_steps": 2, "audio_guider_params": PLAIN, "video_path": str(clip)}
    generation = V2AOneStagePipeline(ledger)(**arguments, output_type="latent")
    given = source_latent(generation.plan, "video", generation.plan.shape, ledger)
    assert torch.allclose(generation.latents["video"], given, atol=1e-5)


@pytest.mark.parametrize("anew", [("video",), ("audio",), ("video", "audio")])
def test_retake_changes_only_the_span(ledger: ModelLedger, clip: Path, anew: tuple[str, ...]) -> None:
    from ltx_pipelines.running.conditions import source_latent

    generation = RetakePipeline(ledger)(
        prompt="a bell",
        video_path=str(clip),
        start_time=0.4,
        end_time=0.6,
        regenerate_video="video" in anew,
        regenerate_audio="audio" in anew,
        distilled=True,
        output_type="latent",
    )
    assert generation.plan.shape == (1, 17, 64, 64, 25.0)
    for name, latent in generation.latents.items():
        given = source_latent(generation.plan, name, generation.plan.shape, ledger)
        changed = (latent - given).abs().flatten(3).amax(dim=(0, 1, 3)) > 1e-4  # per latent frame
        assert not changed[0]
        assert bool(changed.any()) == (name in anew)


@pytest.mark.parametrize("direction", ["after", "before"])
def test_extend_keeps_the_given_part(ledger: ModelLedger, clip: Path, direction: str) -> None:
    generation = ExtendPipeline(ledger)(
        prompt="a bell",
        video_path=str(clip),
        extend_seconds=0.64,
        direction=direction,
        num_inference_steps=2,
        video_guider_params=PLAIN,
        audio_guider_params=PLAIN,
    )
    frames = torch.cat(list(generation.video))
    assert len(frames) == 33 == generation.plan.shape.frames
    stream = generation.plan.stages[0].streams["video"]
    (region,) = stream.conditions
    assert (region.start > 0.6) == (direction == "after")


def test_ours_names_unknown_and_useless_arguments(ledger: ModelLedger) -> None:
    with pytest.raises(ConfigError, match="nearest valid: num_frames"):
        DistilledPipeline(ledger).plan(prompt="x", num_frame=9)
    with pytest.raises(ConfigError, match="negative_prompt has no effect"):
        DistilledPipeline(ledger).plan(prompt="x", negative_prompt="y")


def test_a_lora_of_another_family_is_refused(ledger: ModelLedger, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    pair = {"unet.down.0.lora_A.weight": torch.zeros(2, 4), "unet.down.0.lora_B.weight": torch.zeros(4, 2)}
    save_file(pair, path)
    with pytest.raises(CheckpointError, match="names no module of this model"):
        DistilledPipeline(ledger, [str(path)]).plan(**SMALL)


def test_sound_alone_may_have_any_length(ledger: ModelLedger) -> None:
    request = {"prompt": "a bell rings", "num_frames": 30, "frame_rate": 24.0, "num_inference_steps": 2}
    generation = T2AOneStagePipeline(ledger)(**request, audio_guider_params=PLAIN, output_type="latent")
    assert generation.latents["audio"].shape[2] == 31  # round(30 / 24 * 25)


def test_known_contexts_stand_for_the_text_encoder(ledger: ModelLedger) -> None:
    silent = ModelLedger(replace(ledger.files, text_encoder=None), torch.float32, "cpu", "resident")
    with pytest.raises(ConfigError, match="text_encoder"):
        DistilledPipeline(silent).plan(**SMALL)
    silent.texts.remember(str(SMALL["prompt"]), ledger.texts.contexts([str(SMALL["prompt"])])[0])
    results = [DistilledPipeline(each)(**SMALL, output_type="latent") for each in (silent, ledger)]
    assert equal(*results)


def test_silent_clip_cannot_drive_audio_to_video(ledger: ModelLedger, tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    write_video(path, [torch.zeros(9, 64, 64, 3)], 25.0)
    assert not probe_video(path).has_audio
    with pytest.raises(MediaError, match="no sound"):
        A2VidPipelineTwoStage(ledger).plan(**SMALL, audio_path=str(path))


def test_image_beyond_the_clip_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    ledger = new_ledger()
    write_png(tmp_path / "still.png", torch.zeros(64, 64, 3, dtype=torch.uint8))
    with pytest.raises(ConditioningError, match="nearest valid: 8"):
        DistilledPipeline(ledger).plan(**SMALL, images=[ImageCondition(str(tmp_path / "still.png"), frame_idx=9)])
    assert ledger.bytes_read == 0
