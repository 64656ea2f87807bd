"""Files that each network of a model is read from: a unified checkpoint and a Gemma folder, or a split pack.

| | unified file | split pack |
|---|---|---|
| model_path | everything but Gemma | transformer and connectors |
| text_encoder_path | Gemma folder | packed text encoder |
| video_vae_path | the model file's own | required |
| audio_vae_path | the model file's own | required once sound is encoded or decoded |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.model.transformer.config import AUDIO_ADAPTER, TransformerConfig
from ltx_core.textfiles import path_of
from ltx_trainer.command_options import shown

if TYPE_CHECKING:
    import torch

    from ltx_core.loader.checkpoint import Checkpoint
    from ltx_core.text_encoders.gemma.encoder import GemmaTextEncoder
    from ltx_core.text_encoders.t5 import T5TextEncoder
    from ltx_core.types import SpatioTemporalScaleFactors
    from ltx_trainer.config import TrainerConfig

# Networks, and the option that names their file where it is not the model file.
VAE_OPTIONS = {
    "video_encoder": "video_vae_path",
    "video_decoder": "video_vae_path",
    "audio_encoder": "audio_vae_path",
    "audio_decoder": "audio_vae_path",
    "vocoder": "audio_vae_path",
}
PARTS = {  # components, and the option that names their file
    "transformer": "model_path",
    "text_encoder": "text_encoder_path",
    "video_encoder": "video_vae_path",
    "audio_encoder": "audio_vae_path",
}
VAE_SECTIONS = ("vae", "audio_vae", "vocoder")


def is_split_transformer(config: Mapping[str, Any]) -> bool:
    """Whether a file with this ``config`` metadata is the transformer of a split pack."""
    return "transformer" in config and not any(section in config for section in VAE_SECTIONS)


@dataclass(frozen=True)
class ModelFiles:
    """Paths as options give them. A path is opened when one of its networks is asked for, not before.

    ``model_path`` is a unified checkpoint, or the transformer of a split pack. ``text_encoder_path`` is a Gemma folder
    or a packed text encoder; None where nothing is to be encoded. ``video_vae_path`` and ``audio_vae_path`` (with the
    vocoder) belong to a split pack; None means the model file's own. Asking for a network raises `ConfigError` where
    its path is missing, `CheckpointError` where the file cannot be read.
    """

    model_path: Path = field(metadata=shown("Unified checkpoint, or the transformer of a split pack."))
    text_encoder_path: Path | None = field(
        default=None, metadata=shown("Gemma folder, or packed text encoder of a split pack.")
    )
    video_vae_path: Path | None = field(default=None, metadata=shown("Video VAE of a split pack."))
    audio_vae_path: Path | None = field(default=None, metadata=shown("Audio VAE and vocoder of a split pack."))

    def __post_init__(self) -> None:
        for name, path in vars(self).items():
            object.__setattr__(self, name, path and path_of(path))

    @classmethod
    def of(
        cls,
        model_path: str | Path,
        text_encoder_path: str | Path | None = None,
        video_vae_path: str | Path | None = None,
        audio_vae_path: str | Path | None = None,
    ) -> ModelFiles:
        """Paths given as text."""
        others = (text_encoder_path, video_vae_path, audio_vae_path)
        return cls(Path(model_path), *(Path(path) if path else None for path in others))

    def absolute(self) -> ModelFiles:
        """The same files, named so that other processes find them."""
        return ModelFiles(**{name: path and path.absolute() for name, path in vars(self).items()})

    def model(self) -> Checkpoint:
        """The file of the transformer and the connectors."""
        return _open(self.model_path)

    def checkpoint_of(self, network: str) -> Checkpoint:
        """The file of a part of a VAE or of the vocoder.

        Raises `ConfigError` that names the missing option when the model file is a split transformer.
        """
        option = VAE_OPTIONS[network]
        path: Path | None = getattr(self, option)
        if path is not None:
            return _open(path)
        model = self.model()
        if network not in model.components and is_split_transformer(model.config):
            raise ConfigError(f"{self.model_path} holds a transformer alone, no {network}: {option} is missing")
        return model

    def build(self, network: str, dtype: torch.dtype, device: torch.device | str) -> Any:
        """A part of a VAE or the vocoder, with its weights."""
        return self.checkpoint_of(network).build(network, dtype=dtype, device=device)

    def text_encoder(
        self, dtype: torch.dtype, device: torch.device | str, in_8bit: bool = False
    ) -> GemmaTextEncoder | T5TextEncoder:
        """The text encoder with the feature extractor of this model; ``in_8bit`` stores its layers in int8.

        That of an LTX-Video model is T5, which is never stored in int8.

        Raises `ConfigError` when none is named, and when a split transformer is paired with a Gemma folder, which has
        no text projection.
        """
        from ltx_core.text_encoders.gemma.encoder import load_text_encoder

        model = self.model()
        if self.text_encoder_path is None:
            raise ConfigError(f"captions for {self.model_path} cannot be encoded: text_encoder_path is missing")
        if model.is_ltx_video:
            from ltx_core.text_encoders.t5 import load_t5

            if in_8bit:
                raise ConfigError("the text encoder is T5, which is not stored in 8 bits")
            return load_t5(self.text_encoder_path, dtype, device)
        projected = any(name.startswith("feature_extractor.") for name in model.sources("embeddings"))
        if not projected and is_split_transformer(model.config) and self.text_encoder_path.is_dir():
            raise ConfigError(
                f"{self.model_path} holds a transformer alone, no text projection: text_encoder_path is the folder "
                f"{self.text_encoder_path}, expected the packed text encoder of the same split pack"
            )
        if not in_8bit:
            return load_text_encoder(self.text_encoder_path, model, dtype, device)
        from ltx_trainer.memory import quantize_frozen

        encoder = load_text_encoder(self.text_encoder_path, model, dtype, "cpu")
        quantize_frozen(encoder.backbone, "int8-quanto", device)
        return encoder.to(device)

    def scale_factors(self) -> SpatioTemporalScaleFactors:
        """Pixels per latent cell of the video VAE."""
        from ltx_core.types import SpatioTemporalScaleFactors

        config = self.model().config
        if "vae" not in config and self.video_vae_path is not None:
            config = _open(self.video_vae_path).config
        return SpatioTemporalScaleFactors.from_model_config(config)


def find_model(named: str | None) -> ModelFiles:
    """The files of a model by what a user calls it: a checkpoint, a folder, or the name of a model that is installed.

    ``named`` None is the model ``tiny``. A text encoder and VAEs that lie in the folder are found by what they hold.
    Raises `ConfigError` for no such model.
    """
    name = named or "tiny"
    path = path_of(name)
    if not path.exists():
        path = installed_model(name)
    if path.is_file():
        return ModelFiles(path, next(iter(_text_encoder_folders(path.parent)), None))
    found: dict[str, Path] = {}
    unread: list[str] = []
    for file in sorted(path.glob("*.safetensors")):
        try:
            components = _open(file).components
        except CheckpointError as error:  # an adapter, or damaged
            unread.append(str(error))
            continue
        for part, option in PARTS.items():
            if part in components:
                found.setdefault(option, file)
    if "model_path" not in found:
        raise ConfigError("; ".join((f"{path} holds no file with a transformer, expected a model", *unread[:1])))
    main = found.pop("model_path")
    others = {option: file for option, file in found.items() if file != main}
    gemma = others.get("text_encoder_path") or next(iter(_text_encoder_folders(path)), None)
    return ModelFiles(main, gemma, others.get("video_vae_path"), others.get("audio_vae_path"))


def installed_model(name: str) -> Path:
    """The folder of a model that an installed package ships. Raises `ConfigError` for another name."""
    entries = {entry.name: entry for entry in entry_points(group="ltx.models")}
    if name not in entries:
        known = ", ".join(entries) or "none"
        raise ConfigError(f"model is {name!r}, expected a file, a folder or an installed model ({known})")
    return Path(entries[name].load()())


def _text_encoder_folders(folder: Path) -> list[Path]:
    """Folders below ``folder`` that hold a text encoder with its tokenizer: Gemma, or T5 in folders of its own."""
    gemma = (path.parent for path in folder.glob("*/tokenizer.json") if (path.parent / "config.json").is_file())
    t5 = (path.parent for path in folder.glob("*/tokenizer") if (path.parent / "text_encoder/config.json").is_file())
    return [*sorted(gemma), *sorted(t5)]


def _open(path: Path) -> Checkpoint:
    from ltx_core.loader.checkpoint import Checkpoint

    return Checkpoint.open(path)


def open_trainable(files: ModelFiles, mode: str = "lora") -> Checkpoint:
    """The model file. Raises `CheckpointError` for one whose transformer cannot be trained in this mode."""
    checkpoint = files.model()
    if "transformer" not in checkpoint.components:
        raise CheckpointError(f"{checkpoint.where} holds no transformer but {', '.join(checkpoint.components)}")
    adds_audio = mode == "audio_adapter"
    if checkpoint.is_ltx_video and not adds_audio:
        raise CheckpointError(
            f"{checkpoint.where} is an LTX-Video model, expected one of the LTX-2 family or training_mode audio_adapter"
        )
    if adds_audio and not checkpoint.is_ltx_video:
        raise CheckpointError(f"{checkpoint.where} is no LTX-Video model, which training_mode audio_adapter needs")
    return checkpoint


def has_causal_positions(checkpoint: Checkpoint) -> bool:
    """Whether the first latent frame stands for one pixel frame in the positions of the model."""
    return not checkpoint.is_ltx_video or bool(checkpoint.config["transformer"].get("causal_temporal_positioning"))


def trained_config(checkpoint: Checkpoint, config: TrainerConfig) -> TransformerConfig:
    """The transformer of a run, with the audio stream that it adds."""
    if config.model.training_mode != "audio_adapter":
        found: TransformerConfig = checkpoint.network_config("transformer")
        return found
    described = checkpoint.component_config("transformer")
    return TransformerConfig.from_metadata({**described, AUDIO_ADAPTER: config.audio_adapter.section})
