"""The diffusers library loads the folder we write and computes what we compute, from text to frames and sound.

It is installed into an environment of its own, which sees this one's torch and transformers; ``LTX_DIFFUSERS_PYTHON``
names the interpreter of one that is there already.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx_core.components import noisers
from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_pipelines.running.conversion import convert
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.utils.model_ledger import ModelLedger

pytestmark = pytest.mark.slow
VERSION = "0.42.1"
GUIDED = MultiModalGuiderParams(cfg_scale=3.0, stg_scale=0.0, modality_scale=1.0, rescale_scale=0.0)
ASKED = {"prompt": "a small red ball bounces", "negative_prompt": "noise", "height": 64, "width": 64, "num_frames": 9}
THEIRS = """
import sys, torch
from safetensors.torch import load_file, save_file
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline
folder, given, made = sys.argv[1:]
ours = load_file(given)
pipeline = LTX2Pipeline.from_pretrained(folder, torch_dtype=torch.float32)
plain = {"use_dynamic_shifting": False, "shift_terminal": None}  # the sigmas are given
pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, **plain)
vae = pipeline.audio_vae  # sound that is given counts as not normalised
scales = {f"{stream}{name}": value for stream in ("", "audio_") for name, value in
    (("guidance_scale", 3.0), ("stg_scale", 0.0), ("modality_scale", 1.0), ("guidance_rescale", 0.0))}
result = pipeline(
    prompt="a small red ball bounces", negative_prompt="noise", height=64, width=64, num_frames=9, frame_rate=25.0,
    sigmas=ours["sigmas"][:-1].tolist(), latents=ours["video_noise"], **scales,
    audio_latents=ours["audio_noise"] * vae.latents_std + vae.latents_mean,
    output_type="pt", max_sequence_length=64, spatio_temporal_guidance_blocks=[],
)
frames = result.frames[0].float().permute(0, 2, 3, 1).contiguous()
save_file({"frames": frames, "sound": result.audio.float().reshape(2, -1).contiguous()}, made)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has the library."""
    if given := os.environ.get("LTX_DIFFUSERS_PYTHON"):
        return given
    place = tmp_path_factory.mktemp("diffusers")
    venv.create(place, with_pip=True, symlinks=True)
    own = next(place.glob("lib/python*/site-packages"))
    (own / "shared.pth").write_text(sysconfig.get_paths()["purelib"])
    made = str(place / "bin" / "python")
    subprocess.run([made, "-m", "pip", "install", "-q", f"diffusers=={VERSION}"], check=True)
    return made


def test_a_guided_clip_is_the_same(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tiny"
    convert(find_model("tiny"), folder, "diffusers", None, lambda line: None)
    drawn: list[torch.Tensor] = []
    draw = noisers.plain_noise

    def noted(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        drawn.append(draw(like, generator))
        return drawn[-1]

    monkeypatch.setattr(noisers, "plain_noise", noted)
    ledger = ModelLedger(find_model("tiny").files, torch.float32, "cpu", policy="resident")
    guided = {"video_guider_params": GUIDED, "audio_guider_params": GUIDED}
    made = TI2VidOneStagePipeline(ledger)(**ASKED, **guided, frame_rate=25.0, seed=3, num_inference_steps=4)
    assert made.video is not None and made.audio is not None and len(drawn) == 2
    sigmas = torch.tensor(made.plan.stages[0].sigmas)
    given, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_file({"video_noise": drawn[0], "audio_noise": drawn[1], "sigmas": sigmas}, given)
    path = {"PYTHONPATH": ""}  # none of ours
    subprocess.run([python, "-c", THEIRS, str(folder), str(given), str(theirs)], check=True, env={**os.environ, **path})
    result = load_file(theirs)
    frames, sound = made.video.tensor(), made.audio.waveform.reshape(2, -1)
    errors = {"frames": (result["frames"] - frames).abs().max(), "sound": (result["sound"] - sound).abs().max()}
    print({name: f"{error:.2e}" for name, error in errors.items()}, sys.version_info[:2])
    assert frames.std() > 0.01 and sound.std() > 0.001
    assert max(errors.values()) < 1e-4
