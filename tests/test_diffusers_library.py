"""The diffusers library loads the folder and the adapters we write and computes what we compute.

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
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.lora import Lora
from ltx_pipelines.running.conversion import convert
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.utils.model_ledger import ModelLedger
from ltx_trainer.adapters import trained_tensors
from ltx_trainer.lora import LoraSettings, add_lora, lora_layers, lora_tensors, save_lora

pytestmark = pytest.mark.slow
VERSION, PEFT = "0.42.1", "0.21.2"
GUIDED = MultiModalGuiderParams(cfg_scale=3.0, stg_scale=0.0, modality_scale=1.0, rescale_scale=0.0)
UNGUIDED = MultiModalGuiderParams(cfg_scale=1.0, stg_scale=0.0, modality_scale=1.0, rescale_scale=0.0)
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
    output_type="pt", max_sequence_length=128, spatio_temporal_guidance_blocks=[],
)
frames = result.frames[0].float().permute(0, 2, 3, 1).contiguous()
save_file({"frames": frames, "sound": result.audio.float().reshape(2, -1).contiguous()}, made)
"""

ADAPTED = """
import sys, torch
from safetensors.torch import load_file, save_file
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline
folder, given, made, *adapters = sys.argv[1:]
ours = load_file(given)
pipeline = LTX2Pipeline.from_pretrained(folder, torch_dtype=torch.float32)
plain = {"use_dynamic_shifting": False, "shift_terminal": None}  # the sigmas are given
pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, **plain)
vae = pipeline.audio_vae
seen = {}
def note(module, inputs, output):
    seen["video"], seen["audio"] = (part.float().contiguous() for part in output[:2])
pipeline.transformer.register_forward_hook(note)
scales = {f"{stream}{name}": value for stream in ("", "audio_") for name, value in
    (("guidance_scale", 1.0), ("stg_scale", 0.0), ("modality_scale", 1.0), ("guidance_rescale", 0.0))}
results = {}
for adapter in ("", *adapters):
    if adapter:
        pipeline.load_lora_weights(adapter, adapter_name="ours")
    pipeline(
        prompt="a small red ball bounces", height=64, width=64, num_frames=9, frame_rate=25.0, sigmas=[1.0],
        latents=ours["video_noise"], audio_latents=ours["audio_noise"] * vae.latents_std + vae.latents_mean,
        output_type="latent", max_sequence_length=128, spatio_temporal_guidance_blocks=[], return_dict=False, **scales,
    )
    name = adapter.rpartition("/")[2].partition(".")[0] or "base"
    results |= {f"{name}.{stream}": velocity for stream, velocity in seen.items()}
    if adapter:
        pipeline.transformer.save_lora_adapter(made + "." + name, adapter_name="ours")
        pipeline.unload_lora_weights()
save_file(results, made)
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
    subprocess.run([made, "-m", "pip", "install", "-q", f"diffusers=={VERSION}", f"peft=={PEFT}"], check=True)
    return made


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as that library's folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    convert(find_model("tiny"), folder, "diffusers", None, lambda line: None)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The noise of a run, in the order in which it is drawn."""
    noises: list[torch.Tensor] = []
    draw = noisers.plain_noise

    def noted(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noises.append(draw(like, generator))
        return noises[-1]

    monkeypatch.setattr(noisers, "plain_noise", noted)
    return noises


def test_a_guided_clip_is_the_same(python: str, tiny: Path, tmp_path: Path, drawn: list[torch.Tensor]) -> None:
    ledger = ModelLedger(find_model("tiny").files, torch.float32, "cpu", policy="resident")
    guided = {"video_guider_params": GUIDED, "audio_guider_params": GUIDED}
    made = TI2VidOneStagePipeline(ledger)(**ASKED, **guided, frame_rate=25.0, seed=3, num_inference_steps=4)
    assert made.video is not None and made.audio is not None and len(drawn) == 2
    sigmas = torch.tensor(made.plan.stages[0].sigmas)
    given, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_file({"video_noise": drawn[0], "audio_noise": drawn[1], "sigmas": sigmas}, given)
    path = {"PYTHONPATH": ""}  # none of ours
    subprocess.run([python, "-c", THEIRS, str(tiny), str(given), str(theirs)], check=True, env={**os.environ, **path})
    result = load_file(theirs)
    frames, sound = made.video.tensor(), made.audio.waveform.reshape(2, -1)
    errors = {"frames": (result["frames"] - frames).abs().max(), "sound": (result["sound"] - sound).abs().max()}
    print({name: f"{error:.2e}" for name, error in errors.items()}, sys.version_info[:2])
    assert frames.std() > 0.01 and sound.std() > 0.001
    assert max(errors.values()) < 1e-4


def write_adapter(path: Path, kind: str) -> Path:
    """An adapter of the small model as training writes it, with random values in what begins at zero."""
    network = Checkpoint.open(find_model("tiny").files.checkpoint).build("transformer", torch.float32)
    add_lora(network, LoraSettings(rank=4, alpha=2, kind=kind))
    generator = torch.Generator().manual_seed(5)
    weights = {
        f"{name}.{part}": value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, layer in lora_layers(network)
        for part, value in trained_tensors(layer).items()
    }
    return save_lora(path, lora_tensors(network, weights), torch.float32)


def test_adapters_act_alike(python: str, tiny: Path, tmp_path: Path, drawn: list[torch.Tensor]) -> None:
    files = [write_adapter(tmp_path / f"{kind}.safetensors", kind) for kind in ("lora", "rslora", "dora")]
    ledger = ModelLedger(find_model("tiny").files, torch.float32, "cpu", policy="resident")
    plain = {f"{name}_guider_params": UNGUIDED for name in ("video", "audio")}
    asked = {key: value for key, value in ASKED.items() if key != "negative_prompt"}
    ours: dict[str, torch.Tensor] = {}
    for file in (None, *files):
        drawn.clear()
        pipeline = TI2VidOneStagePipeline(ledger, loras=() if file is None else (str(file),))
        made = pipeline(**asked, **plain, frame_rate=25.0, seed=3, num_inference_steps=1)
        for name, noise in zip(("video", "audio"), drawn, strict=True):  # one step: latent = noise - velocity
            latent = made.latents[name]
            tokens = latent.flatten(2).mT if name == "video" else latent.transpose(1, 2).flatten(2)
            ours[f"{'base' if file is None else file.stem}.{name}"] = noise - tokens
    given, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_file({"video_noise": drawn[0], "audio_noise": drawn[1]}, given)
    command = [python, "-c", ADAPTED, str(tiny), str(given), str(theirs), *map(str, files)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
    result = load_file(theirs)
    for key, velocity in ours.items():
        kind, _, stream = key.partition(".")
        effect, error = ((velocity - other).abs().max() for other in (ours[f"base.{stream}"], result[key]))
        print(f"{key}: changes by {effect:.3f}, differs by {error:.2e}")
        assert (kind == "base") == bool(effect < 0.1)
        assert error < 1e-5, key
    for file in files:
        written, back = Lora.open(file), Lora.open(Path(f"{theirs}.{file.stem}") / "pytorch_lora_weights.safetensors")
        assert written.layers.keys() == back.layers.keys()
        for name, layer in written.layers.items():
            for part in ("a", "b", "magnitude"):
                values = [getattr(lora.layers[name], part) for lora in (written, back)]
                assert values[0] is values[1] or torch.equal(*(value.flatten() for value in values)), (name, part)
            assert layer.scale == back.layers[name].scale
