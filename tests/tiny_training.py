"""A very small random model and data set to train on: 16 latent channels, so that latents are patches of pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.model import LTXModel
from ltx_core.text_encoders.gemma.config import EmbeddingsConfig
from ltx_core.text_encoders.gemma.embeddings import EmbeddingsProcessor
from ltx_trainer.config import TrainerConfig
from ltx_trainer.config_file import parse_config
from ltx_trainer.precomputed import write_record
from tests.tiny_checkpoints import TRANSFORMER

NATIVE = "model.diffusion_model."
REGISTERS, TOKENS = 8, 8  # learned registers; tokens of a padded caption
CHANNELS, BINS = 16, 2  # of a video latent; of an audio latent with its 8 channels
FRAMES, SIDE, STEPS = 3, 2, 6  # latent frames, rows and columns, audio steps
FPS = 25 * ((FRAMES - 1) * 8 + 1) / STEPS  # sound and pictures last equally long


def model_config(width: int = 16, audio_width: int = 8, layers: int = 1) -> dict[str, Any]:
    """The ``transformer`` section of a model with two heads."""
    return {
        **TRANSFORMER,
        "num_layers": layers,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "audio_in_channels": 8 * BINS,
        "audio_out_channels": 8 * BINS,
        "attention_head_dim": width // 2,
        "audio_attention_head_dim": audio_width // 2,
        "cross_attention_dim": width,
        "audio_cross_attention_dim": audio_width,
        "connector_num_attention_heads": 2,
        "connector_attention_head_dim": width // 2,
        "audio_connector_num_attention_heads": 2,
        "audio_connector_attention_head_dim": audio_width // 2,
        "connector_num_layers": 1,
        "connector_num_learnable_registers": REGISTERS,
        "connector_positional_embedding_max_pos": [TOKENS],
    }


def write_model(path: Path, seed: int = 0, **sizes: int) -> Path:
    """A checkpoint with a random transformer and random connectors."""
    config = {"transformer": model_config(**sizes)}
    torch.manual_seed(seed)
    transformer = LTXModel(TransformerConfig.from_metadata(config))
    connectors = EmbeddingsProcessor(EmbeddingsConfig.connectors_from_metadata(config))
    tensors = {NATIVE + name: tensor for name, tensor in transformer.state_dict().items()}
    for name, tensor in connectors.state_dict().items():
        modality, rest = name.split("_connector.")
        tensors[f"{NATIVE}{modality}_embeddings_connector.{rest}"] = tensor
    save_file(tensors, path, {"config": json.dumps(config), "model_version": "2.3.0"})
    return path


def write_dataset(root: Path, count: int = 4, width: int = 16, audio_width: int = 8, silent: int = 0) -> Path:
    """``count`` clips of noise; the last ``silent`` of them without sound."""
    generator = torch.Generator().manual_seed(7)
    for index in range(count):
        caption = {
            "video_prompt_embeds": torch.randn(TOKENS, width, generator=generator),
            "audio_prompt_embeds": torch.randn(TOKENS, audio_width, generator=generator),
            "prompt_attention_mask": torch.tensor([0] * 3 + [1] * (TOKENS - 3)),
        }
        video = torch.randn(CHANNELS, FRAMES, SIDE, SIDE, generator=generator)
        audio = torch.randn(8, STEPS, BINS, generator=generator)
        write_clip(root, f"clip_{index}", caption, video, audio, present=index < count - silent)
    return root


def write_clip(
    root: Path, name: str, caption: Mapping[str, Tensor], video: Tensor, audio: Tensor, present: bool = True
) -> None:
    """The records of one clip."""
    frames, height, width = video.shape[1:]
    records: dict[str, dict[str, Any]] = {
        "conditions": dict(caption),
        "latents": {"latents": video, "num_frames": frames, "height": height, "width": width, "fps": FPS},
        "audio_latents": {
            "latents": audio,
            "num_time_steps": audio.shape[1],
            "frequency_bins": audio.shape[2],
            "duration": audio.shape[1] / 25,
            "present": int(present),
        },
    }
    for directory, record in records.items():
        write_record(root / directory / f"{name}.safetensors", record)


def raw_config(model_path: Path, root: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A short LoRA run over both modalities; ``changes`` are merged section by section."""
    raw: dict[str, Any] = {
        "model": {"model_path": str(model_path), "training_mode": "lora"},
        "lora": {"rank": 4, "alpha": 8},
        "training_strategy": {
            "name": "flexible",
            "video": {"is_generated": True, "latents_dir": "latents"},
            "audio": {"is_generated": True, "latents_dir": "audio_latents"},
        },
        "optimization": {"steps": 3, "batch_size": 2, "learning_rate": 1e-3},
        "acceleration": {"mixed_precision_mode": "no"},
        "data": {"preprocessed_data_root": str(root), "num_dataloader_workers": 0},
        "validation": {"interval": None},
        "checkpoints": {"precision": "float32", "save_training_state": "full"},
        "output_dir": str(output),
    }
    for section, values in changes.items():
        merged = isinstance(values, Mapping) and isinstance(raw.get(section), dict) and section != "training_strategy"
        raw[section] = {**raw[section], **values} if merged else values
    return raw


def make_config(model_path: Path, root: Path, output: Path, **changes: Any) -> TrainerConfig:
    return parse_config(raw_config(model_path, root, output, **changes))


def run_training(raw: dict[str, Any], environment: Mapping[str, str] | None = None, notes: Path | None = None) -> None:
    """Train in a process of its own; ``notes`` gets a JSON line of the noise levels of every step."""
    import os

    os.environ.update(environment or {})
    torch.set_num_threads(1)
    from ltx_trainer.trainer import LtxvTrainer

    trainer = LtxvTrainer(parse_config(raw))

    def note(step: int, total: int, files: list[Path]) -> None:
        if notes is not None:
            levels = {name: sigmas for name, (sigmas, _) in trainer.objective.sigma_losses().items()}
            with notes.open("a") as file:
                file.write(json.dumps(levels) + "\n")

    trainer.train(live=False, callback=note)


def run_several(raws: Sequence[dict[str, Any]], environment: Mapping[str, str]) -> None:
    """Train one configuration after the other in a process of its own."""
    for raw in raws:
        run_training(raw, environment)


def processes() -> Any:
    """Where to start processes that have everything imported: ``processes().Process(target=run_training, ...)``."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["ltx_trainer.trainer", "accelerate", "torch._dynamo", "torch.utils.tensorboard", "tests.tiny_training"]
    )
    return context
