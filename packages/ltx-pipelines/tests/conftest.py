"""A random model that asks for small clips, and media to condition them on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.golden.case import REPOSITORY, TINY_CHECKPOINT
from tests.tiny_checkpoints import write_audio_adapter
from tests.tiny_text_encoders import write_t5

from ltx_core.model.upsampler.config import LatentUpsamplerConfig
from ltx_core.model.upsampler.model import LatentUpsampler
from ltx_core.types import Audio
from ltx_pipelines.hdr_ic_lora import HDRICLoraPipeline
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.utils.media_io import write_png, write_video, write_wav

LTX_VIDEO = REPOSITORY / "tests" / "golden" / "data" / "pipelines" / "tiny-checkpoint-ltxv"
LTX_VIDEO_CONFIG = """
pipeline_type: multi-scale
checkpoint_path: ltxv-2b-0.9.6-distilled.safetensors
spatial_upscaler_model_path: ltxv-upscaler.safetensors
text_encoder_model_name_or_path: t5
guidance_scale: 1
stg_scale: 0
first_pass: {timesteps: [1.0, 0.7]}
second_pass: {timesteps: [0.9, 0.4]}
"""
SMALL = {"height": 128, "width": 128, "num_frames": 9, "num_inference_steps": 2}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete random model with keyframe embedding that asks for 128 x 128, 9 frames and 2 steps."""
    source = Path(find_model(str(TINY_CHECKPOINT)).files.checkpoint)
    folder = tmp_path_factory.mktemp("model") / "small"
    shutil.copytree(source.parent, folder)
    checkpoint = folder / source.name
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(checkpoint).items()}
    config = json.loads(metadata["config"])
    config["transformer"]["use_keyframes_abs_pos_embedding"] = True
    tensors["model.diffusion_model.keyframes_abs_pos_embedding"] = torch.zeros(1, 64, dtype=torch.bfloat16)
    own = {"config": json.dumps(config), "default_request": json.dumps(SMALL)}
    save_file(tensors, checkpoint, metadata={**metadata, **own})
    return folder


@pytest.fixture(scope="session")
def temporal_upsampler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a random latent upsampler in time."""
    shape = {"in_channels": 128, "mid_channels": 32, "num_blocks_per_stage": 1, "spatial_upsample": False}
    config = {"_class_name": "LatentUpsampler", "temporal_upsample": True, **shape}
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("upsampler") / "temporal-upscaler.safetensors"
    upsampler = LatentUpsampler(LatentUpsamplerConfig.from_metadata(config))
    save_file(upsampler.state_dict(), path, metadata={"config": json.dumps(config)})
    return path


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory: pytest.TempPathFactory, small_model: Path, temporal_upsampler: Path) -> Path:
    """Pictures, clips, sounds and weights under the names the documentation uses."""
    folder = tmp_path_factory.mktemp("media")
    generator = torch.Generator().manual_seed(0)
    for name in ("photo", "first", "last"):
        write_png(folder / f"{name}.png", torch.randint(0, 255, (64, 64, 3), generator=generator, dtype=torch.uint8))
    tone = Audio(torch.sin(torch.arange(24000) * 0.05).expand(2, -1) * 0.3, 24000)
    ramp = torch.linspace(0, 1, 64).expand(17, 64, 64)[..., None].expand(-1, -1, -1, 3)
    write_video(folder / "clip.mp4", [ramp], 24.0, tone)
    for name in ("silent", "pose"):
        write_video(folder / f"{name}.mp4", [ramp], 24.0)
    write_wav(folder / "voice.wav", tone)
    for name, source in (("model", "ltx-2-tiny"), ("ic-lora", "ic-lora-tiny")):
        shutil.copy(small_model / f"{source}.safetensors", folder / f"{name}.safetensors")
    for name, source in (("2b-0.9.6-distilled", "tiny"), ("upscaler", "spatial-upscaler-tiny")):
        shutil.copy(LTX_VIDEO / f"ltxv-{source}.safetensors", folder / f"ltxv-{name}.safetensors")
    write_audio_adapter(
        folder / "audio-adapter.safetensors", LTX_VIDEO / "ltxv-tiny.safetensors", {"attention_head_dim": 8}
    )
    shutil.copy(temporal_upsampler, folder)
    write_t5(folder / "t5", width=24)
    (folder / "ltxv.yaml").write_text(LTX_VIDEO_CONFIG)
    lines = ({"prompt": "a bell", "output": "bell.mp4"}, {"prompt": "a drum", "image": ["photo.png", 0, 0.9]})
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def hdr_adapter(here: Path) -> Path:
    """An in-context adapter that says it makes LogC3 codes; beside it the text it was trained with ("light")."""
    save_file(load_file("ic-lora.safetensors"), "hdr-lora.safetensors", {"hdr_transform": "true"})
    (contexts,) = HDRICLoraPipeline.from_pretrained(device="cpu").ledger.texts.contexts(["light"])
    save_file({"video_context": contexts.video, "audio_context": contexts.video.clone()}, "scene-emb.safetensors")
    return here


@pytest.fixture
def here(tmp_path: Path, media_folder: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own copy of the media as the current folder, the small model as the default one."""
    folder = tmp_path / "here"
    shutil.copytree(media_folder, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LTX_MODEL", str(small_model))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where pictures given as values are kept
    return folder
