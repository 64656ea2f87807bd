"""The bundled model: where it lies in the package, and how the stages' files become it.

The folder holds ``ltx-tiny.safetensors`` (transformer, text projection and connectors, both VAEs, vocoder),
``gemma/``, ``ltx-tiny-spatial-upscaler-x2.safetensors``, ``ltx-tiny-distilled-lora.safetensors`` and
``ltx-tiny-ic-lora-outline.safetensors``, which turns the drawing of a scene into a clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = Path(__file__).parent / "weights"
CHECKPOINT = "ltx-tiny.safetensors"
UPSCALER = "ltx-tiny-spatial-upscaler-x2.safetensors"
DISTILLED_LORA = "ltx-tiny-distilled-lora.safetensors"
OUTLINE_LORA = "ltx-tiny-ic-lora-outline.safetensors"
GEMMA = "gemma"
MOST_BYTES = 48_000_000
DEMO_PROMPT = "a small red ball bounces on a blue background with a low knock"
GUIDANCE = {"cfg_scale": 3.0, "stg_scale": 0.0, "modality_scale": 1.0, "rescale_scale": 0.0}
DEFAULT_REQUEST: dict[str, Any] = {  # what the model was trained to be asked
    "height": 256,
    "width": 256,
    "num_frames": 49,
    "frame_rate": 25.0,
    "num_inference_steps": 16,
    "video_guider_params": GUIDANCE,
    "audio_guider_params": GUIDANCE,
}


def model_folder() -> Path:
    """The folder of the packaged weights. Raises `CheckpointError` when the package was installed without them."""
    if not (WEIGHTS / CHECKPOINT).is_file():
        raise CheckpointError(f"the bundled weights are not in {WEIGHTS}; make them with `ltx tiny train`")
    return WEIGHTS


def reuse(name: str, config: Mapping[str, Any], folder: Path) -> Path:
    """Write a component of the packaged weights as a stage's export, and return the file.

    ``name`` is ``audio_vae`` or ``vocoder``. Of a vocoder whose blocks have more convolutions in ``config`` than in the
    package, those that are new are 0, which adds nothing. Raises `CheckpointError` for another component.
    """
    import torch

    from ltx_core.loader.safetensors_file import SafetensorsFile, save_checkpoint
    from ltx_core.model.audio_vae.config import VocoderConfig
    from ltx_core.model.audio_vae.vocoder import Vocoder
    from ltx_trainer.pretrain.task import MODEL_VERSION

    if name not in ("audio_vae", "vocoder"):
        raise CheckpointError(f"stage is {name!r}, expected audio_vae or vocoder, which know no pictures")
    file, prefix = SafetensorsFile(model_folder() / CHECKPOINT), f"{name}."
    tensors = {key: file.read(key) for key in file.tensors if key.startswith(prefix)}
    if name == "vocoder":
        wanted = Vocoder(VocoderConfig.from_metadata(config)).state_dict()
        tensors |= {prefix + k: torch.zeros_like(v) for k, v in wanted.items() if prefix + k not in tensors}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_step_00000.safetensors"
    save_checkpoint(path, tensors, {"config": {name: config[name]}, "model_version": MODEL_VERSION})
    return path


def write_bundle(folder: Path, config: Mapping[str, Any], files: Mapping[str, Path]) -> list[Path]:
    """Put the stages' files together and return what was written.

    ``files`` are by stage: ``video_decoder``, ``video_encoder``, ``audio_vae``, ``vocoder``, ``transformer``,
    ``gemma``, ``upsampler``, ``distill``, ``in_context``. Raises `CheckpointError` when the whole is larger than 48 MB.
    """
    from ltx_core.loader.safetensors_file import SafetensorsFile, save_checkpoint
    from ltx_tiny.world.captions import prompt_world
    from ltx_trainer.pretrain.gemma import unpack
    from ltx_trainer.pretrain.task import MODEL_VERSION

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, upscaler = folder / CHECKPOINT, folder / UPSCALER
    parts = [files[name] for name in ("transformer", "video_encoder", "video_decoder", "audio_vae", "vocoder")]
    metadata = {"config": dict(config), "model_version": MODEL_VERSION, "demo_prompt": DEMO_PROMPT}
    metadata |= {"default_request": DEFAULT_REQUEST, "prompt_world": prompt_world()}
    save_checkpoint(checkpoint, round_tensors(parts), metadata)
    save_checkpoint(upscaler, round_tensors([files["upsampler"]]), SafetensorsFile(files["upsampler"]).metadata)
    adapters = {folder / DISTILLED_LORA: files["distill"], folder / OUTLINE_LORA: files["in_context"]}
    for path, file in adapters.items():
        save_checkpoint(path, round_tensors([file]), SafetensorsFile(file).metadata)
    written = [checkpoint, upscaler, *adapters, *unpack(files["gemma"], folder / GEMMA)]
    size = sum(path.stat().st_size for path in written)
    if size > MOST_BYTES:
        raise CheckpointError(f"the bundled model has {size} bytes, expected at most {MOST_BYTES}")
    return written


def round_tensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of some files, in bfloat16 but for the latents' statistics."""
    import torch

    from ltx_core.loader.safetensors_file import SafetensorsFile
    from ltx_trainer.pretrain.task import STATISTICS

    tensors: dict[str, Tensor] = {}
    for path in paths:
        file = SafetensorsFile(path)
        for name in file.tensors:
            tensors[name] = file.read(name) if STATISTICS in name else file.read(name).to(torch.bfloat16)
    return tensors
