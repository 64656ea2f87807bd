"""Upload of a finished run: weights, a model card and its samples."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ltx_core.errors import ConfigError
from ltx_trainer.config import TrainerConfig

CARD = """---
tags: [ltx-2, {kind}]
base_model: {base}
pipeline_tag: text-to-video
---

# {name}

{summary}

| | |
|---|---|
| base model | {base} |
| trained | {mode} |
| steps | {steps} |
| learning rate | {rate} |
| batch size | {batch} |

{samples}
"""


def model_card(config: TrainerConfig, samples: Sequence[Path]) -> str:
    """The README of the uploaded model."""
    optimization, lora = config.optimization, config.lora
    kinds = {"lora": "lora", "full": "fine-tune", "audio_adapter": "audio-adapter"}
    mode = {"full": "full fine-tune", "audio_adapter": "audio adapter"}.get(config.model.training_mode)
    if mode is None and lora is not None:
        mode = f"LoRA of rank {lora.rank} on {', '.join(lora.target_modules)}"
    pictures = [f"![{path.stem}](samples/{path.name})" for path in samples if path.suffix == ".png"]
    prompts = [f"{i}. {sample.prompt}" for i, sample in enumerate(config.validation.samples, start=1)]
    return CARD.format(
        kind=kinds[config.model.training_mode],
        base=Path(config.model.model_path).name,
        name=(config.hub.hub_model_id or "model").rpartition("/")[2],
        summary=f"Trained with the `{config.training_strategy.name}` strategy.",
        mode=mode,
        steps=optimization.steps,
        rate=optimization.learning_rate,
        batch=optimization.batch_size,
        samples="\n".join(["## Samples", "", *prompts, "", *pictures]) if pictures or prompts else "",
    )


def write_model_folder(config: TrainerConfig, weights: Path, samples: Sequence[Path], folder: Path) -> None:
    """Everything that is uploaded, under ``folder``."""
    (folder / "samples").mkdir(parents=True)
    shutil.copy2(weights, folder / weights.name)
    shutil.copy2(Path(config.output_dir) / "training_config.yaml", folder)
    for path in samples:
        shutil.copy2(path, folder / "samples")
    (folder / "README.md").write_text(model_card(config, samples), encoding="utf-8")


def push_to_hub(config: TrainerConfig, weights: Path, samples: Sequence[Path]) -> None:
    """Create the repository and upload to it. Raises `ConfigError` when the hub refuses; the files stay."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ConfigError("hub.push_to_hub is true, which needs `pip install huggingface_hub`") from error
    name = config.hub.hub_model_id
    assert name is not None
    with tempfile.TemporaryDirectory() as folder:
        write_model_folder(config, weights, samples, Path(folder))
        try:
            api = HfApi()
            api.create_repo(name, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder)
        except (HfHubHTTPError, OSError) as error:
            raise ConfigError(f"cannot upload {weights} to {name}: {error}") from error
