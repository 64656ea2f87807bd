"""The stages of the recipe: what each trains on what. A stage is a function of the recipe that gives a task, or does
its work itself and gives None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from torch import Tensor

from ltx_core.components.schedulers import DISTILLED_SIGMAS, LTX2Scheduler
from ltx_core.loader import Checkpoint
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_core.text_encoders.gemma.backbone import load_backbone
from ltx_core.text_encoders.gemma.encoder import load_tokenizer
from ltx_core.text_encoders.gemma.tokenizer import GemmaTokenizer
from ltx_tiny.bundle import write_bundle
from ltx_tiny.examples import (
    DRAWN_SHARE,
    HARD_SHARE,
    CaptionExamples,
    SoundExamples,
    VideoExamples,
    captions,
    held_out_clips,
    held_out_sound,
)
from ltx_tiny.latents import LATENT_CHANNELS, LatentClips, LatentExamples, LatentPairs, LatentsPlan, make_latents
from ltx_tiny.recipe import Recipe
from ltx_tiny.sample import Decoders, SampleJudge, SampleSettings
from ltx_tiny.world.code import CHANNELS, DOUBTS
from ltx_trainer.loop import Task
from ltx_trainer.lora import LoraSettings
from ltx_trainer.pretrain.audio_vae import AudioVaeTask
from ltx_trainer.pretrain.data import Examples, Stage, stack
from ltx_trainer.pretrain.distill import DistillSettings, DistillTask, block_linears
from ltx_trainer.pretrain.gemma import TOKENIZER_CONFIG, GemmaTask, train_tokenizer
from ltx_trainer.pretrain.in_context import InContextTask
from ltx_trainer.pretrain.taught_vae import TaughtDecoder, TaughtDecoderTask, TaughtEncoder, TaughtEncoderTask
from ltx_trainer.pretrain.transformer import Mode, TextModel, TransformerTask, TransformerTrainer, start_distinct
from ltx_trainer.pretrain.upsampler import UpsamplerTask
from ltx_trainer.pretrain.vocoder import VocoderTask
from ltx_trainer.training_strategies.config import FlexibleConfig

if TYPE_CHECKING:
    from ltx_trainer.pretrain.transformer import Judge

HELD_OUT_SOUNDS = 8
HELD_OUT_CAPTIONS = 64
CAPTIONS_TO_START = 512  # whose words set the text projections


def video_decoder(recipe: Recipe) -> Task:
    examples = recipe.examples("video_decoder", VideoExamples(recipe.seed, hard_share=HARD_SHARE))
    module = TaughtDecoder(recipe.config, DOUBTS.tolist())
    return TaughtDecoderTask(module, recipe.config, examples, held_out_videos(recipe))


def video_encoder(recipe: Recipe) -> Task:
    examples = recipe.examples("video_encoder", VideoExamples(recipe.seed, drawn_share=DRAWN_SHARE))
    trained = Checkpoint.open(recipe.exported_file("video_decoder"))
    decoder: Any = trained.build("video_decoder", torch.float32, recipe.device)
    module = TaughtEncoder(recipe.config, len(CHANNELS), decoder)
    return TaughtEncoderTask(module, recipe.config, examples, held_out_videos(recipe))


def audio_vae(recipe: Recipe) -> Task:
    samples = int(recipe.stage("audio_vae")["samples"])
    examples = recipe.examples("audio_vae", SoundExamples(recipe.seed, samples))
    return AudioVaeTask(recipe.config, examples, held_out_sound(HELD_OUT_SOUNDS, samples))


def vocoder(recipe: Recipe) -> Task:
    samples = int(recipe.stage("vocoder")["samples"])
    examples = recipe.examples("vocoder", SoundExamples(recipe.seed, samples))
    return VocoderTask(recipe.config, examples, held_out_sound(HELD_OUT_SOUNDS, samples))


def gemma(recipe: Recipe) -> Task:
    count = int(recipe.stage("gemma")["captions"])
    text_config = recipe.values["gemma"]
    tokenizer_json = train_tokenizer(captions(count, recipe.seed), text_config["vocab_size"])
    tokenizer = GemmaTokenizer(tokenizer_json, TOKENIZER_CONFIG)
    examples = recipe.examples("gemma", CaptionExamples(recipe.seed, tokenizer))
    checked = CaptionExamples(recipe.seed + 1, tokenizer, "held_out")
    stage = examples.curriculum.at(0)
    held_out = stack([checked(0, slot, stage) for slot in range(HELD_OUT_CAPTIONS)])["input_ids"]
    return GemmaTask(text_config, tokenizer_json, examples, held_out)


def latents(recipe: Recipe) -> None:
    stage = recipe.stage("latents")
    audio_vae = Checkpoint.open(recipe.exported_file("audio_vae"))
    encoder: Any = audio_vae.build("audio_encoder", torch.float32, recipe.device)
    plan = LatentsPlan(
        recipe.seed, stage["counts"], int(stage["shard_size"]), int(stage["frames"]), int(recipe.values["workers"])
    )
    for path in make_latents(recipe.out / "latents", plan, encoder):
        typer.echo(f"latents {path.name}")


def upsampler(recipe: Recipe) -> Task:
    nothing, one = torch.zeros(LATENT_CHANNELS), torch.ones(LATENT_CHANNELS)  # the statistics of a taught VAE
    examples = recipe.examples("upsampler", LatentPairs(recipe.seed))
    held_out = held_out_batch(recipe, LatentPairs(recipe.seed, "held_out"), examples.curriculum.at(0))
    return UpsamplerTask(recipe.values["upscaler"], (nothing, one), examples, held_out, len(CHANNELS))


def transformer(recipe: Recipe) -> Task:
    stage, tokenizer = recipe.stage("transformer"), text_tokenizer(recipe)
    sigmas = tuple(LTX2Scheduler().execute(int(stage["samples"]["steps"])).tolist())
    examples, held_out = latent_examples(recipe, "transformer", float(stage["caption_dropout"]))
    judge = sample_judge(recipe, "transformer", sigmas, tokenizer)
    trainer = make_trainer(recipe)
    start_distinct(trainer, tokenizer(captions(CAPTIONS_TO_START, recipe.seed)))
    return TransformerTask(recipe.config, trainer, examples, held_out, judge)


def distill(recipe: Recipe) -> Task:
    stage, tokenizer = recipe.stage("distill"), text_tokenizer(recipe)
    trainer = make_trainer(recipe, recipe.exported_file("transformer"))
    lora = LoraSettings(rank=int(stage["rank"]), target_modules=tuple(block_linears(trainer)))
    settings = DistillSettings(float(stage["guidance_scale"]), int(stage["substeps"]))
    examples, held_out = latent_examples(recipe, "distill", 0.0)
    judge = sample_judge(recipe, "distill", DISTILLED_SIGMAS, tokenizer)
    return DistillTask(trainer, examples, lora, settings, held_out, judge)


def in_context(recipe: Recipe) -> Task:
    stage = recipe.stage("in_context")
    trainer = make_trainer(recipe, recipe.exported_file("transformer"), stage["modes"])
    lora = LoraSettings(rank=int(stage["rank"]), target_modules=tuple(block_linears(trainer)))
    made = LatentExamples(recipe.seed, *training_clips(recipe), text_tokenizer(recipe), 0.0, drawings=True)
    return InContextTask(trainer, recipe.examples("in_context", made), lora)


def bundle(recipe: Recipe) -> None:
    files = {name: recipe.exported_file(name) for name in STAGES if name not in ("latents", "bundle")}
    written = write_bundle(recipe.out / "bundle", recipe.config, files)
    size = sum(path.stat().st_size for path in written)
    typer.echo(f"bundle of {len(written)} files, {size / 1e6:.1f} MB, in {recipe.out / 'bundle'}")


STAGES: dict[str, Callable[[Recipe], Task | None]] = {
    "video_decoder": video_decoder,
    "video_encoder": video_encoder,
    "audio_vae": audio_vae,
    "vocoder": vocoder,
    "gemma": gemma,
    "latents": latents,
    "upsampler": upsampler,
    "transformer": transformer,
    "distill": distill,
    "in_context": in_context,
    "bundle": bundle,
}


def held_out_videos(recipe: Recipe) -> list[dict[str, Tensor]]:
    """Clips and their codes to judge the video VAE by, a batch for each side."""
    check = recipe.stage("video_decoder")["check"]
    return [held_out_clips(check["clips"], check["frames"], side) for side in check["sides"]]


def text_tokenizer(recipe: Recipe) -> GemmaTokenizer:
    return load_tokenizer(GemmaAssets.open(recipe.exported_file("gemma")))


def latent_examples(recipe: Recipe, name: str, dropout: float) -> tuple[Examples, dict[str, Tensor]]:
    """Training examples of a stage and one held-out batch at the small side."""
    tokenizer, folder = text_tokenizer(recipe), recipe.out / "latents"
    made = LatentExamples(recipe.seed, *training_clips(recipe), tokenizer, dropout)
    kept = LatentClips.open(folder, "held_out")
    checked = LatentExamples(recipe.seed + 1, kept, kept, tokenizer, 0.0)
    whole = Stage(1, 1, frames=int(recipe.stage("latents")["frames"]), side=128)
    return recipe.examples(name, made), held_out_batch(recipe, checked, whole)


def training_clips(recipe: Recipe) -> tuple[LatentClips, LatentClips]:
    """The clips to learn from, and those that are longer."""
    return LatentClips.open(recipe.out / "latents", "train"), LatentClips.open(recipe.out / "latents", "long")


def held_out_batch(
    recipe: Recipe, make: Callable[[int, int, Stage], Mapping[str, Tensor]], stage: Stage
) -> dict[str, Tensor]:
    """Examples to take held-out losses on."""
    return stack([make(0, slot, stage) for slot in range(int(recipe.stage("latents")["held_out_batch"]))])


def make_trainer(
    recipe: Recipe, trained: Path | None = None, modes: Sequence[Mapping[str, Any]] = ()
) -> TransformerTrainer:
    """Transformer and connectors, fresh or as exported, with the frozen language model.

    It is trained in the ``modes`` of its own stage, or in those given.
    """
    assets = GemmaAssets.open(recipe.exported_file("gemma"))
    text = TextModel(load_backbone(assets, torch.float32), assets.config)
    given = [
        Mode(
            float(mode["weight"]),
            FlexibleConfig(name="flexible", video=mode.get("video"), audio=mode.get("audio")),
            int(mode.get("least_frames", 1)),
        )
        for mode in modes or recipe.stage("transformer")["modes"]
    ]
    torch.manual_seed(recipe.seed)
    isolated_share = float(recipe.stage("transformer")["isolated_share"])
    trainer = TransformerTrainer(recipe.config, text, given, isolated_share, len(CHANNELS))
    if recipe.device == "cpu":
        trainer.transformer.set_attention_backend("math")
    if trained is not None:
        checkpoint = Checkpoint.open(trained)
        trainer.transformer.load_state_dict(checkpoint.build("transformer", torch.float32).state_dict())
        weights = checkpoint.weights("embeddings", torch.float32).state_dict()
        trainer.embeddings.load_state_dict(weights)
    return trainer


def sample_judge(recipe: Recipe, name: str, sigmas: tuple[float, ...], tokenizer: GemmaTokenizer) -> Judge:
    """Clips and eval figures of a transformer at each validation; of its latents where the decoder is not trained."""
    decoders = None
    if recipe.exports("video_decoder").is_dir():
        checkpoint = Checkpoint.open(
            [recipe.exported_file(stage) for stage in ("video_decoder", "audio_vae", "vocoder")]
        )
        parts = ("video_decoder", "audio_decoder", "vocoder")
        networks: list[Any] = [checkpoint.build(part, torch.float32, recipe.device) for part in parts]
        decoders = Decoders(*networks)
    given = {"guidance_scale": 1.0, **recipe.stage(name)["samples"]}
    settings = SampleSettings(
        sigmas,
        guidance_scale=float(given["guidance_scale"]),
        side=int(given["side"]),
        frames=int(recipe.stage("latents")["frames"]),
        count=int(given["count"]),
    )
    return SampleJudge(decoders, tokenizer, settings)
