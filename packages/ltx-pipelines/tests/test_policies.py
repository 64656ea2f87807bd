"""Memory policies give one result: whole networks, one at a time, blocks streamed, loaded beside the text encoder."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tests.golden.case import TINY_CHECKPOINT

from ltx_core import precision
from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.loader import backend
from ltx_core.loader.backend import ResidentTransformer
from ltx_core.loader.fp8 import RowwiseLinear
from ltx_core.loader.quantization import POLICIES
from ltx_core.model.video_vae import frames
from ltx_core.model.video_vae.frames import decode_parts, decode_tiles
from ltx_core.parallel.mesh import Devices
from ltx_core.precision import WIDENED, DtypeName
from ltx_pipelines.distilled import DistilledPipeline
from ltx_pipelines.planning.cost import cost_of
from ltx_pipelines.planning.plan import Lora, plan_from_json
from ltx_pipelines.request import Policy
from ltx_pipelines.running.decoding import decode_frames
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.running.networks import QUANTIZATIONS
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
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
    held: Any = streamed._transformer
    assert len(held.model.streamer._slots) == 2
    streamed.release()
    assert streamed.resident() == () and held.model is None


def test_streamed_guidance_is_bit_equal() -> None:
    assert all(torch.equal(a, b) for a, b in zip(guided(policy="resident"), guided(policy="streamed"), strict=True))


def test_the_transformer_loads_beside_the_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is loaded once."""
    built = []
    original = ResidentTransformer.__init__

    def counting(self: Any, *args: Any) -> None:
        built.append(args)
        original(self, *args)

    monkeypatch.setattr(ResidentTransformer, "__init__", counting)
    one = ledger(policy="resident")
    first = latents_of(TI2VidOneStagePipeline(one)(**GUIDED, output_type="latent"))
    assert len(built) == 1 and one._coming is None
    again = latents_of(TI2VidOneStagePipeline(one)(**GUIDED, output_type="latent"))
    assert len(built) == 1
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def tiny(dtype: DtypeName = "float32", **how: Any) -> ModelLedger:
    """The bundled model, whose matrices are stored in bfloat16."""
    return ModelLedger(find_model("tiny").files, dtype, "cpu", **how)


@pytest.fixture(scope="module")
def in_float32() -> tuple[Generation, list[torch.Tensor]]:
    made = TI2VidOneStagePipeline(tiny(policy="resident"))(**GUIDED)
    assert made.video is not None
    return made, list(made.video)


@pytest.mark.parametrize("policy", ["resident", "sequential", "streamed"])
def test_widened_matrices_compute_what_float32_computes(
    policy: Policy, in_float32: tuple[Generation, list[torch.Tensor]]
) -> None:
    """To the bit, from text to frames and sound, with matrices that stay in bfloat16."""
    ledger = tiny(WIDENED, policy=policy)
    made = TI2VidOneStagePipeline(ledger)(**GUIDED)
    network = ledger.network("video_decoder").network
    stored = {name: p.dtype for name, p in network.named_parameters() if p.ndim > 1}
    assert set(stored.values()) == {torch.bfloat16}
    assert made.video is not None and made.audio is not None and in_float32[0].audio is not None
    for a, b in zip(latents_of(made), latents_of(in_float32[0]), strict=True):
        assert a.dtype is torch.float32 and torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(made.video, in_float32[1], strict=True))
    assert torch.equal(made.audio.waveform, in_float32[0].audio.waveform)


def test_auto_widens_where_float32_weights_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fast", lambda kind: "float32")
    largest = max(tiny(policy="resident").weight_bytes().values())
    found = {}
    for share in (1.2, 0.6, 0.3):
        monkeypatch.setattr(backend, "free_bytes", lambda device, share=share: int(share * largest))
        one = tiny("auto")
        found[share] = (one.precision.name, one.policy)
    assert found == {1.2: ("float32", "sequential"), 0.6: (WIDENED, "sequential"), 0.3: (WIDENED, "streamed")}
    plan = TI2VidOneStagePipeline(one).plan(**SMALL)
    assert plan.dtype == WIDENED and plan_from_json(plan.to_json()) == plan
    wide, narrow = (cost_of(plan, tiny(dtype, policy="resident")) for dtype in ("float32", WIDENED))
    assert narrow.phases[0].weights["text_encoder"] < 0.6 * wide.phases[0].weights["text_encoder"]


def test_a_language_model_that_alone_does_not_fit_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny("float32", policy="sequential")
    sizes = whole.weight_bytes()
    assert not whole.streams_texts
    monkeypatch.setattr(backend, "free_bytes", lambda device: sizes["text_encoder"])
    streamed = tiny("float32", policy="sequential")
    assert streamed.streams_texts
    plan = TI2VidOneStagePipeline(streamed).plan(**SMALL)
    text, before = (cost_of(plan, one).phases[0].weights["text_encoder"] for one in (streamed, whole))
    assert text < before
    contexts = [one.texts.contexts(["a bell"])[0].video for one in (streamed, whole)]
    torch.testing.assert_close(*contexts, rtol=1e-5, atol=1e-5)
    layers = streamed.text_encoder().backbone.layers
    assert len({parameter.untyped_storage().data_ptr() for parameter in layers.parameters()}) <= 3


def test_auto_says_what_it_chose(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    files = find_model(str(TINY_CHECKPOINT)).files
    sizes = ledger(policy="resident").weight_bytes()
    total, transformer = sum(sizes.values()), sizes["checkpoint"]
    choices = {2 * total: "resident", 1.2 * transformer: "sequential", 0.4 * transformer: "streamed"}
    for free, expected in choices.items():
        monkeypatch.setattr(backend, "free_bytes", lambda device, free=free: int(free))
        caplog.clear()
        with caplog.at_level(logging.INFO, "ltx_pipelines"):
            assert ModelLedger(files, torch.float32, "cpu").policy == expected
        assert len(caplog.records) == 1 and expected in caplog.messages[0] and "\n" not in caplog.messages[0]


@pytest.mark.parametrize("first", ["spread_over", "policy"])
def test_weights_are_spread_over_cards_whatever_is_asked_first(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = ledger(device="cuda:0", policy="auto")
    total = cards.weight_bytes()["checkpoint"]
    monkeypatch.setattr(cards, "free_bytes", lambda: int(0.6 * total))
    assert cards.spread_over == 1  # one card
    cards.devices = Devices(0, 4)
    getattr(cards, first)
    assert cards.devices.spread_over == cards.spread_over == 2


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
    decoder: Any = one.network("video_decoder").network
    latent = torch.randn(1, one.latent_channels, 3, 4, 24, generator=torch.Generator().manual_seed(1))
    assert decode_parts(decoder, latent, 2**40) == 1
    fits = decode_parts(decoder, latent, 2**33 - 1)
    assert 1 <= fits < decode_parts(decoder, latent, 2**20)
    asked = list(decode_frames(latent, one, torch.Generator(), most=64))
    monkeypatch.setattr(frames, "free_bytes", lambda device: 2**20)
    short = list(decode_frames(latent, one, torch.Generator()))
    monkeypatch.undo()
    whole = list(decode_frames(latent, one, torch.Generator()))
    assert len(asked) == len(short) == 17 > len(whole), "frame by frame"
    assert torch.equal(torch.cat(asked), torch.cat(short)) and torch.cat(asked).shape == torch.cat(whole).shape
    assert decode_tiles(decoder, latent, 2**40) is None and decode_tiles(decoder, latent, 2**40, 96) is None


def test_the_names_that_are_checked_without_torch_are_those_there_are() -> None:
    assert set(QUANTIZATIONS) == set(POLICIES)
