"""Memory policies give one result: whole networks, one at a time, blocks streamed, loaded beside the text encoder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.case import TINY_CHECKPOINT

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.loader.fp8 import RowwiseLinear
from ltx_pipelines.distilled import DistilledPipeline
from ltx_pipelines.planning.plan import Lora
from ltx_pipelines.running import engine
from ltx_pipelines.running.decode_memory import decode_parts
from ltx_pipelines.running.engine import Generation
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.utils import model_ledger
from ltx_pipelines.utils.model_ledger import ModelLedger

SMALL: dict[str, Any] = {"prompt": "a bell rings", "height": 64, "width": 64, "num_frames": 9, "seed": 3}
GUIDED = {
    **SMALL,
    "num_inference_steps": 2,
    "video_guider_params": MultiModalGuiderParams(cfg_scale=3.0, stg_scale=1.0, stg_blocks=[1], modality_scale=2.0),
    "audio_guider_params": MultiModalGuiderParams(cfg_scale=3.0, stg_scale=1.0, stg_blocks=[1], modality_scale=2.0),
}


def ledger(**how: Any) -> ModelLedger:
    return ModelLedger(find_model(str(TINY_CHECKPOINT)).files, **{"dtype": torch.float32, "device": "cpu", **how})


def latents_of(generation: Generation) -> list[torch.Tensor]:
    return [latent for stage in generation.stages for latent in stage.values()]


def guided(**how: Any) -> list[torch.Tensor]:
    return latents_of(TI2VidOneStagePipeline(ledger(**how))(**GUIDED, output_type="latent"))


def test_streamed_blocks_are_bit_equal_under_a_cap_on_weights() -> None:
    whole, streamed = (ledger(policy=policy) for policy in ("resident", "streamed"))
    kept, passed = (latents_of(DistilledPipeline(one)(**SMALL, output_type="latent")) for one in (whole, streamed))
    assert all(torch.equal(a, b) for a, b in zip(kept, passed, strict=True))
    assert streamed._transformer is not None and streamed._transformer.model is not None  # type: ignore[union-attr]
    slots = streamed._transformer.model.streamer._slots  # type: ignore[union-attr]
    assert len(slots) == 2
    streamed.release()
    assert streamed._transformer is None


def test_streamed_guidance_is_bit_equal() -> None:
    assert all(torch.equal(a, b) for a, b in zip(guided(policy="resident"), guided(policy="streamed"), strict=True))


def test_the_transformer_loads_beside_the_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is loaded once."""
    built = []
    original = model_ledger._AdaptedTransformer.__init__

    def counting(self: Any, *args: Any) -> None:
        built.append(args)
        original(self, *args)

    monkeypatch.setattr(model_ledger._AdaptedTransformer, "__init__", counting)
    one = ledger(policy="resident")
    first = latents_of(TI2VidOneStagePipeline(one)(**GUIDED, output_type="latent"))
    assert len(built) == 1 and one._coming is None
    again = latents_of(TI2VidOneStagePipeline(one)(**GUIDED, output_type="latent"))
    assert len(built) == 1
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_auto_says_what_it_chose(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    files = find_model(str(TINY_CHECKPOINT)).files
    total = sum(Path(path).stat().st_size for _, path in files.paths() if Path(path).is_file())
    transformer = Path(files.checkpoint).stat().st_size
    choices = {2 * total: "resident", 1.2 * transformer: "sequential", 0.4 * transformer: "streamed"}
    for free, expected in choices.items():
        monkeypatch.setattr(model_ledger, "free_bytes", lambda device, free=free: int(free))
        caplog.clear()
        with caplog.at_level(logging.INFO, "ltx_pipelines"):
            assert ModelLedger(files, torch.float32, "cpu").policy == expected
        assert len(caplog.records) == 1 and expected in caplog.messages[0] and "\n" not in caplog.messages[0]


def test_scaled_rows_spare_the_ends_and_stay_close() -> None:
    one = ledger(policy="resident", quantization="fp8-rowwise")
    network = one.transformer()
    covered = {name.split(".")[1] for name, module in network.named_modules() if isinstance(module, RowwiseLinear)}
    blocks = len(network.get_submodule("transformer_blocks"))  # type: ignore[arg-type]
    assert covered == {str(block) for block in range(1, blocks - 1)}


def test_scaled_rows_take_adapters() -> None:
    path = str(TINY_CHECKPOINT / "distilled-lora-tiny.safetensors")
    one = ledger(policy="resident", quantization="fp8-rowwise")
    before = {name: tensor.clone() for name, tensor in one.transformer().state_dict().items()}
    after = one.transformer([Lora(path, 1.0)]).state_dict()
    assert any(not torch.equal(before[name].float(), after[name].float()) for name in before)
    back = one.transformer().state_dict()
    assert all(torch.equal(before[name].float(), back[name].float()) for name in before)


def test_a_picture_is_cut_only_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ledger(policy="resident")
    decoder: Any = one.network("video_decoder")
    latent = torch.randn(1, one.latent_channels, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    assert decode_parts(decoder, latent, 2**40) == 1
    fits = decode_parts(decoder, latent, 2**33 - 1)
    short = decode_parts(decoder, latent, 2**20)
    assert 1 <= fits < short
    monkeypatch.setattr(engine, "free_bytes", lambda device: 2**20)
    tiled = list(engine.video_frames(latent, one, torch.Generator()))
    monkeypatch.undo()
    whole = list(engine.video_frames(latent, one, torch.Generator()))
    assert [chunk.shape for chunk in tiled] == [chunk.shape for chunk in whole]
