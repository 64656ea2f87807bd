"""Whole plans of published models on the ``meta`` device: no device is mixed, no value is read in a loop.

What is allowed to stay on the host: the drawing of noise where a device has no generator (`plain_noise`, and the
`SeededNoise` of LTX-Video), reading files, `RunMemory.of`, which reads masks once before a loop, and what follows a
loop or a decode: `on_host`, for frames and samples that meet others, `fitting`, which learns previews, and the checks
of `ltx_pipelines.running.finite`. Depth is cut to two blocks, which are alike; widths, VAEs, vocoders and upsamplers
are the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltx_core.model.common.meter import measure, without_data
from ltx_core.model.transformer.config import TransformerConfig, is_adapter_tensor
from ltx_core.model.transformer.model import LTXModel
from ltx_core.sampling import denoisers
from ltx_pipelines.ltx_video import run as ltx_video_run
from ltx_pipelines.pipeline import pipelines
from ltx_pipelines.planning.cost import cost_of
from ltx_pipelines.planning.plan import ImageCondition, Lora, ModelFiles, Plan
from ltx_pipelines.running import decoding, finite, kept, long, long_clip, stages
from ltx_pipelines.running.engine import generate
from ltx_pipelines.utils.model_ledger import ModelLedger
from tests.rehearsal.stage import MetaTransformer, manifest, memory_unread, meta_ledger, write_header

MODELS = ("ltx-2-19b", "ltx-2.3-22b", "ltx-2.5-22b")
LTX_VIDEO = "ltxv-0.9.8-13b"
PARTS = ("transformer", "video_vae_conv", "audio_vae", "vocoder", "embeddings_connectors", "text_embedding_projection")
BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")
LAYERS = 2
SIZE = {"height": 256, "width": 256}
TIME = {"num_frames": 25}


def shallow(model: str, part: str) -> dict[str, Any]:
    """A published component; a transformer with its first two blocks."""
    whole = manifest(model, part)
    if part != "transformer":
        return whole
    kept = {n: s for n, s in whole["tensors"].items() if not (m := BLOCK.search(n)) or int(m[1]) < LAYERS}
    section = {**whole["config"]["transformer"], "num_layers": LAYERS}
    return {**whole, "tensors": kept, "config": {**whole["config"], "transformer": section}}


def adapter(config: Mapping[str, Any]) -> dict[str, Any]:
    """An audio adapter for an LTX-Video model, in one of its blocks."""
    own = {"audio_adapter": {"attention_head_dim": 32, "blocks": [1]}}
    with without_data():
        network = LTXModel(TransformerConfig.from_metadata({**config, **own}))
    state = {name: list(tensor.shape) for name, tensor in network.state_dict().items() if is_adapter_tensor(name)}
    return {"config": own, "tensors": {f"audio_adapter.{name}": shape for name, shape in state.items()}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Headers of every model, adapters, and small media files."""
    root = tmp_path_factory.mktemp("rehearsal")
    parts = [shallow(LTX_VIDEO, "transformer"), manifest(LTX_VIDEO, "video_vae")]
    write_header(root / f"{LTX_VIDEO}.safetensors", parts)
    write_header(root / f"{LTX_VIDEO}-sound.safetensors", [adapter(parts[0]["config"])])
    for model in (*MODELS, LTX_VIDEO):
        for upsampler in ("spatial_upscaler", "temporal_upscaler"):
            write_header(root / f"{model}-{upsampler}.safetensors", [manifest(model, upsampler)])
    for model in MODELS:
        names = [
            part if (Path(__file__).parents[1] / "manifests" / model / f"{part}.json").exists() else "video_vae"
            for part in PARTS
        ]
        write_header(root / f"{model}.safetensors", [shallow(model, part) for part in names])
    pair = {"a": torch.zeros(4, 4096), "b": torch.zeros(4096, 4)}
    for name, header in (
        ("plain", None),
        ("reference", {"reference_downscale_factor": "2"}),
        ("hdr", {"reference_downscale_factor": "2", "hdr_transform": "true"}),
    ):
        layer = "diffusion_model.transformer_blocks.0.attn1.to_q"
        save_file(
            {f"{layer}.lora_A.weight": pair["a"], f"{layer}.lora_B.weight": pair["b"]},
            root / f"{name}.safetensors",
            header,
        )
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(root / "still.png")
    write_clip(root / "clip.mp4")
    return root


def write_clip(path: Path) -> None:
    """25 frames of 256 x 256 at 24 fps with a tone."""
    with av.open(str(path), "w") as file:
        video, sound = file.add_stream("libx264", rate=24), file.add_stream("aac", rate=48000)
        video.width = video.height = 256
        video.pix_fmt = "yuv420p"
        for index in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((256, 256, 3), index * 9, np.uint8), format="rgb24")
            file.mux(video.encode(frame))
        file.mux(video.encode())
        for start in range(0, 50000, 1024):
            wave = np.sin(np.arange(start, start + 1024) / 20).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.stack((wave, wave)), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 48000, start
            file.mux(sound.encode(frame))
        file.mux(sound.encode())


@pytest.fixture(autouse=True)
def reads_before_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoisers.RunMemory, "of", staticmethod(memory_unread))


@pytest.fixture(autouse=True)
def crosses_at_the_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def crossed(made: torch.Tensor) -> torch.Tensor:
        assert made.is_meta
        return torch.zeros(made.shape)

    for module in (kept, long):
        monkeypatch.setattr(module, "on_host", crossed)
    monkeypatch.setattr(finite.Watch, "check", lambda self, plan, ledger: None)
    for module in (long_clip, stages, decoding, ltx_video_run):
        monkeypatch.setattr(module, "fitting", lambda latent, chunks, ledger: chunks, raising=False)
        monkeypatch.setattr(module, "finite_frames", lambda chunks: chunks, raising=False)
        monkeypatch.setattr(module, "finite_sound", lambda sound: sound, raising=False)


def files(folder: Path, model: str) -> ModelFiles:
    path = str(folder / f"{model}.safetensors")
    up, rate = (str(folder / f"{model}-{kind}.safetensors") for kind in ("spatial_upscaler", "temporal_upscaler"))
    found = ModelFiles(path, text_encoder=path, spatial_upsampler=up, temporal_upsampler=rate)
    if model != LTX_VIDEO:
        return found
    sound = {"audio_adapter": f"{LTX_VIDEO}-sound.safetensors", "audio_vae": "ltx-2.3-22b.safetensors"}
    return replace(found, **{slot: str(folder / name) for slot, name in sound.items()})


def requests(folder: Path) -> dict[str, dict[str, Any]]:
    """A request for every pipeline, with every kind of condition it knows."""
    still, clip = str(folder / "still.png"), str(folder / "clip.mp4")
    pictures = (ImageCondition(still, 0, 1.0), ImageCondition(still, 16, 0.7))
    soft = (ImageCondition(still, 0, 1.0), ImageCondition(clip, 8, 0.7))
    return {
        "ti2vid-one-stage": {**SIZE, **TIME, "images": pictures, "num_inference_steps": 2},
        "ti2vid-two-stages": {**SIZE, **TIME, "num_inference_steps": 2, "max_batch_size": 4},
        "ti2vid-two-stages-hq": {**SIZE, **TIME, "images": pictures[:1], "num_inference_steps": 2},
        "distilled": {**SIZE, **TIME, "images": pictures[:1]},
        "keyframe-interpolation": {**SIZE, **TIME, "images": pictures, "num_inference_steps": 2},
        "a2vid-two-stage": {**SIZE, **TIME, "audio_path": clip, "num_inference_steps": 2},
        "ic-lora": {**SIZE, **TIME, "video_conditioning": [(clip, 1.0)], "conditioning_attention_strength": 0.5},
        "hdr-ic-lora": {"video_path": clip, "high_quality_hdr": True},
        "dubit": {**SIZE, "reference_video_path": clip},
        "dfr-pipeline": {**SIZE, **TIME, "temporal_upsample_rounds": 1},
        "retake": {"video_path": clip, "start_time": 0.3, "end_time": 0.7, "num_inference_steps": 2},
        "extend": {"video_path": clip, "extend_seconds": 0.5, "num_inference_steps": 2},
        "upscale": {"video_path": clip, "tile_size": 320},
        "interpolate": {"video_path": clip},
        "v2a-one-stage": {"video_path": clip, "num_inference_steps": 2},
        "t2a-one-stage": {**TIME, "num_inference_steps": 2},
        "long": {**SIZE, "num_frames": 65, "window": 41, "anchor": still, "distilled": True},
        "ltxv": {**SIZE, **TIME, "images": soft, "pipeline_config": "13b-0.9.8-dev"},
        "ltxav": {**SIZE, **TIME, "images": soft, "pipeline_config": "13b-0.9.8-dev", "generate_audio": True},
    }


def plan_of(name: str, ledger: ModelLedger, folder: Path) -> Plan:
    """The plan of a pipeline, each stage cut to two steps."""
    kind = pipelines()[name]
    adapter = Lora(str(folder / "plain.safetensors"))
    kinds = {"ic-lora": "reference", "dubit": "reference", "hdr-ic-lora": "hdr"}
    reference = (Lora(str(folder / f"{kinds[name]}.safetensors")),) if name in kinds else ()
    pipeline = kind(ledger, reference, (adapter,))
    plan = pipeline.plan(prompt="a kettle begins to whistle", **requests(folder)[name])
    shorter = {
        number: (*stage.sigmas[:-1][:2], stage.sigmas[-1]) for number, stage in enumerate(plan.stages) if stage.steps
    }
    stages = tuple(
        replace(one, sigmas=shorter.get(number, one.sigmas), velocity_guidance=one.velocity_guidance[:2])
        for number, one in enumerate(plan.stages)
    )
    return replace(plan, stages=stages)


def model_of(name: str) -> str:
    return LTX_VIDEO if name in ("ltxv", "ltxav") else "ltx-2.5-22b"


def rehearse(plan: Plan, ledger: ModelLedger) -> None:
    """Run a plan to its last frame and sample; everything stays on ``meta`` and has the shape that was planned."""
    generation = None
    for event in generate(plan, ledger):
        generation = event.generation or generation
        for state in event.states.values():
            assert state.latent.is_meta and state.latent.dtype == ledger.dtype
            assert state.positions.is_meta and state.positions.dtype == torch.float32
    assert generation is not None
    assert all(latent.is_meta for stage in generation.stages for latent in stage.values())
    frames, held = 0, [plan.new_span("video") is not None, plan.new_span("audio") is not None or plan.long is not None]
    for chunk in generation.video or ():
        assert chunk.is_meta != held[0] and tuple(chunk.shape[1:]) == (plan.shape.height, plan.shape.width, 3)
        frames += chunk.shape[0]
    if plan.has_video:
        assert frames == plan.shape.frames
    if "audio" in plan.decoded:
        assert generation.audio is not None and generation.audio.waveform.is_meta != held[1]
        assert generation.audio.waveform.shape[-2] == 2


@pytest.mark.parametrize("name", sorted(pipelines()))
def test_every_pipeline(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with meta_ledger(files(folder, model_of(name)), monkeypatch, dtype="bfloat16") as ledger:
        rehearse(plan_of(name, ledger, folder), ledger)


def test_generated_keyframes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with meta_ledger(files(folder, "ltx-2.5-22b"), monkeypatch, dtype="bfloat16") as ledger:
        plan = pipelines()["distilled"](ledger).plan(prompt="x", **SIZE, **TIME, generated_keyframes=2)
        rehearse(replace(plan, stages=tuple(replace(s, sigmas=(s.sigmas[0], 0.0)) for s in plan.stages)), ledger)


def test_every_pipeline_has_a_request(folder: Path) -> None:
    assert requests(folder).keys() == pipelines().keys()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_model_in_every_precision(model: str, dtype: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with meta_ledger(files(folder, model), monkeypatch, dtype=dtype) as ledger:
        rehearse(plan_of("ti2vid-one-stage", ledger, folder), ledger)


@pytest.mark.parametrize("quantization", ["fp8-cast", "fp8-rowwise"])
def test_quantised_weights(quantization: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with meta_ledger(files(folder, "ltx-2.3-22b"), monkeypatch, dtype="bfloat16", quantization=quantization) as ledger:
        rehearse(plan_of("distilled", ledger, folder), ledger)


class NoDouble(TorchDispatchMode):
    """Refuses what Apple's devices lack: float64 and complex128 on the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                assert tensor.dtype not in (torch.float64, torch.complex128), f"{function} made {tensor.dtype}"
        return result


@pytest.mark.parametrize("name", ["distilled", "ti2vid-two-stages-hq", "retake"])
def test_without_double_precision(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltx_core.utils.has_doubles", lambda device: device.type == "cpu")
    with meta_ledger(files(folder, "ltx-2.3-22b"), monkeypatch, dtype="float16") as ledger, NoDouble():
        rehearse(plan_of(name, ledger, folder), ledger)


@pytest.mark.parametrize("name", ["ti2vid-one-stage", "distilled", "v2a-one-stage"])
def test_what_is_counted_is_what_was_planned(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations, bytes of weights and live bytes of the transformer's calls agree with the plan to 3 %."""
    with meta_ledger(files(folder, "ltx-2.3-22b"), monkeypatch, dtype="bfloat16") as ledger:
        plan = plan_of(name, ledger, folder)
        stages = {phase.name: phase for phase in cost_of(plan, ledger).phases if phase.name.startswith("stage")}
        counted: dict[str, list[Any]] = {stage: [] for stage in stages}
        watch(monkeypatch, lambda work, network: counted[f"stage {len(done) + 1}"].append((work, network)))
        done: list[int] = []
        for event in generate(plan, ledger, decode=False):
            done += [event.stage] if event.step and event.step == event.total else []
        for stage, phase in stages.items():
            works = [work for work, _ in counted[stage]]
            network = counted[stage][0][1]
            held = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
            flops = sum(work.flops for work in works)
            most = max(work.activations for work in works)
            assert held == pytest.approx(sum(phase.weights.values()), rel=0.03)
            assert flops == pytest.approx(phase.work.flops, rel=0.03)
            assert most == pytest.approx(phase.work.activations, rel=0.03)


def watch(monkeypatch: pytest.MonkeyPatch, tell: Callable[[Any, torch.nn.Module], None]) -> None:
    """Count every call of the transformer."""
    built = MetaTransformer.__init__

    def init(self: MetaTransformer, *args: Any) -> None:
        built(self, *args)
        network, forward = self.network, self.network.forward

        def counted(*inputs: Any, **named: Any) -> Any:
            answer: list[Any] = []
            tell(measure(network, lambda: answer.append(forward(*inputs, **named))), network)
            return answer[0]

        monkeypatch.setattr(network, "forward", counted)

    monkeypatch.setattr(MetaTransformer, "__init__", init)


# What makes it fail -------------------------------------------------------------------------------------------------


def spoiled(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Mapping[str, Any]], Any]) -> None:
    """A denoiser that does something it should not with the states, in the loop."""
    right = denoisers.GuidedDenoiser.__call__

    def call(self: Any, transformer: Any, states: Any, call: Any) -> Any:
        return right(self, transformer, spoil(states), call)

    monkeypatch.setattr(denoisers.GuidedDenoiser, "__call__", call)


def with_host_tensor(states: Mapping[str, Any]) -> dict[str, Any]:
    first = states["video"]
    return {
        **states,
        "video": replace(first, latent=first.latent + torch.zeros(first.latent.shape, dtype=first.latent.dtype)),
    }


def with_a_read(states: Mapping[str, Any]) -> Mapping[str, Any]:
    states["video"].latent.sum().item()
    return states


@pytest.mark.parametrize("spoil", [with_host_tensor, with_a_read])
def test_a_planted_mistake_is_found(spoil: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(monkeypatch, spoil)
    with meta_ledger(files(folder, "ltx-2.3-22b"), monkeypatch, dtype="bfloat16") as ledger:
        plan = plan_of("distilled", ledger, folder)
        with pytest.raises(RuntimeError, match="meta"):
            rehearse(plan, ledger)
