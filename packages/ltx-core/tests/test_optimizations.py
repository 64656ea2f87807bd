"""Optimizations change no result: every one on, each one off, and all off agree."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny_transformers import V19B, V23, random_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import BatchedPerturbationConfig, Perturbation, PerturbationConfig
from ltx_core.guidance.perturbations import PerturbationType as Skip
from ltx_core.loader import Checkpoint
from ltx_core.loader.safetensors_file import save_checkpoint
from ltx_core.loader.streaming import build_streaming
from ltx_core.model.transformer.block import StreamLayers
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.masks import MAX_GROUPS, StrengthGroups, self_attention_bias
from ltx_core.model.transformer.modality import Modality, TextMemory
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.tiling import TileCountConfig, balanced_tiling, stream_tiles
from ltx_core.model.video_vae.video_vae import VideoDecoder
from ltx_core.optimizations import NAMES, Optimizations, optimizations, parse, without
from ltx_core.sampling.denoisers import GuidedDenoiser
from ltx_core.sampling.loop import denoise
from ltx_core.types import LatentState

TOKENS = {"video": 12, "audio": 7}
STG = PerturbationConfig([Perturbation(Skip.SKIP_VIDEO_SELF_ATTN, (2,)), Perturbation(Skip.SKIP_AUDIO_SELF_ATTN, (2,))])
ISOLATED = PerturbationConfig([Perturbation(Skip.SKIP_A2V_CROSS_ATTN), Perturbation(Skip.SKIP_V2A_CROSS_ATTN)])
PLAIN = PerturbationConfig()


@pytest.fixture(scope="module", params=[V19B, V23], ids=["19b", "2.3"])
def model(request: pytest.FixtureRequest) -> LTXModel:
    return random_model(request.param)


def text(model: LTXModel, name: str, seed: int) -> Tensor:
    width = model.config.caption_channels or model.config.streams[name].width
    return torch.randn(1, 5, width, generator=torch.Generator().manual_seed(seed))


def states(model: LTXModel, held: int = 2, mask: Tensor | None = None) -> dict[str, LatentState]:
    """Noisy streams; the first ``held`` video tokens are clean."""
    generator = torch.Generator().manual_seed(3)
    result = {}
    for name, tokens in TOKENS.items():
        stream = model.config.streams[name]
        latent = torch.randn(1, tokens, stream.in_channels, generator=generator)
        starts = 4 * torch.rand(1, len(stream.max_pos), tokens, generator=generator)
        denoise_mask = torch.ones(1, tokens, 1)
        if name == "video":
            denoise_mask[:, :held] = 0
        result[name] = LatentState(
            latent=latent,
            denoise_mask=denoise_mask,
            positions=torch.stack((starts, starts + 0.1), dim=-1),
            clean_latent=latent.clone(),
            attention_mask=mask if name == "video" else None,
        )
    return result


def guided(model: LTXModel, **params: Any) -> GuidedDenoiser:
    settings = {"cfg_scale": 3.0, "stg_scale": 1.0, "stg_blocks": [2], "modality_scale": 2.0, **params}
    contexts = {name: text(model, name, 5) for name in TOKENS}
    guiders = {name: MultiModalGuider(MultiModalGuiderParams(**settings), text(model, name, 6)) for name in TOKENS}
    return GuidedDenoiser(contexts, guiders)


def run(model: LTXModel, start: dict[str, LatentState], max_batch_size: int | None = 1, **params: Any) -> list[Tensor]:
    sigmas = torch.tensor([1.0, 0.7, 0.3, 0.0])
    last = list(denoise(X0Model(model, max_batch_size), guided(model, **params), start, sigmas))[-1]
    return [state.latent for state in last.states.values()]


def assert_close(got: list[Tensor], want: list[Tensor], atol: float = 2e-5) -> None:
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=atol)


@contextmanager
def counted_blocks(model: LTXModel) -> Iterator[list[int]]:
    """Rows that went through each block, summed over its calls."""
    rows = [0] * model.num_blocks

    def count(index: int) -> Any:
        def hook(_block: Any, args: Any) -> None:
            rows[index] += next(iter(args[0].values())).shape[0]

        return hook

    handles = [block.register_forward_pre_hook(count(i)) for i, block in enumerate(model.transformer_blocks)]
    yield rows
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("off", ["all", *NAMES])
@pytest.mark.parametrize("max_batch_size", [1, 3, None])
def test_a_run_is_the_same_without_a_saving(model: LTXModel, off: str, max_batch_size: int | None) -> None:
    mask = torch.ones(1, 12, 12)
    mask[:, :8, 8:] = mask[:, 8:, :8] = 0.4
    start = states(model, mask=mask)
    want = run(model, start, max_batch_size)
    with without(*(() if off == "all" else (off,))):
        got = run(model, start, max_batch_size)
    assert_close(got, want, atol=1e-4)


def test_shared_passes_are_bit_equal_one_by_one(model: LTXModel) -> None:
    start = states(model)
    shared = run(model, start)
    with without("shared_prefix"):
        apart = run(model, start)
    assert all(torch.equal(a, b) for a, b in zip(shared, apart, strict=True))


@pytest.mark.parametrize("max_batch_size", [1, 2, None])
def test_blocks_before_passes_differ_are_shared(model: LTXModel, max_batch_size: int | None) -> None:
    """Passes: text, negative text, self-attention skipped in block 2, modalities apart from block 0 on."""
    one_step = torch.tensor([1.0, 0.0])
    with counted_blocks(model) as rows:
        list(denoise(X0Model(model, max_batch_size), guided(model), states(model), one_step))
    assert rows == [3, 3, 4, 4]
    with without("shared_prefix"), counted_blocks(model) as rows:
        list(denoise(X0Model(model, max_batch_size), guided(model), states(model), one_step))
    assert rows == [4] * 4


def way(config: BatchedPerturbationConfig) -> list[tuple[Any, ...]]:
    """Where each segment of four blocks begins, which samples it computes, and the row of every sample."""
    found = config.segments(4)
    assert found[-1].last == 4
    assert all(left.last == right.first for left, right in pairwise(found))
    return [(each.first, each.samples, each.row_of) for each in found]


def test_segments_follow_texts_and_perturbations() -> None:
    config = BatchedPerturbationConfig([PLAIN, PLAIN, STG, ISOLATED], same_as=[0, 1, 0, 0], same_but_text_as=[0] * 4)
    assert way(config) == [(0, (0, 1, 3), (0, 1, 0, 2)), (2, (0, 1, 2, 3), (0, 1, 2, 3))]
    assert way(BatchedPerturbationConfig([PLAIN, PLAIN], same_as=[0, 0])) == [(0, (0,), (0, 0))]
    assert way(BatchedPerturbationConfig([PLAIN, STG])) == [(0, (0, 1), (0, 1))]
    late = PerturbationConfig([Perturbation(Skip.SKIP_VIDEO_BLOCK, (3,))])
    cut_twice = BatchedPerturbationConfig([PLAIN, STG, late], same_as=[0, 0, 0])
    assert way(cut_twice) == [(0, (0,), (0, 0, 0)), (2, (0, 1), (0, 1, 0)), (3, (0, 1, 2), (0, 1, 2))]
    part = config.batch_slice(1, 4)
    assert (part.same_as, part.same_but_text_as) == ((0, 1, 1), (0, 0, 0))


@pytest.mark.parametrize("kind", list(Skip))
@pytest.mark.parametrize("blocks", [None, (0,), (1, 3)])
def test_any_perturbation_is_bit_equal_one_by_one(model: LTXModel, kind: Skip, blocks: tuple[int, ...] | None) -> None:
    """Three passes over two samples: text, the same perturbed, another text."""
    perturbed = PerturbationConfig([Perturbation(kind, blocks)])
    configs = [PLAIN, PLAIN, perturbed, perturbed, PLAIN, PLAIN]
    given = {}
    for name, state in states(model).items():
        latent = torch.cat((state.latent, state.latent.flip(1)))
        given[name] = Modality(
            latent=latent.repeat(3, 1, 1),
            timesteps=torch.cat((0.5 * state.denoise_mask, 0.7 * state.denoise_mask)).repeat(3, 1, 1),
            positions=state.positions.expand(6, -1, -1, -1),
            context=torch.cat([text(model, name, seed) for seed in (5, 6, 5, 6, 7, 8)]),
        )
    known = {"same_as": [0, 1, 0, 1, 4, 5], "same_but_text_as": [0, 1, 0, 1, 0, 1]}
    got = model(given["video"], given["audio"], BatchedPerturbationConfig(configs, **known), max_batch_size=1)
    want = model(given["video"], given["audio"], BatchedPerturbationConfig(configs), max_batch_size=1)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not all(torch.equal(x[:2], x[2:4]) for x in want), "the perturbation counts"
    for size in (2, 4, None):
        batched = model(given["video"], given["audio"], BatchedPerturbationConfig(configs, **known), size)
        assert_close(list(batched), list(want), atol=1e-4)


def test_samples_said_to_be_the_same_get_the_same_result(model: LTXModel) -> None:
    latent = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(1))[:1].expand(3, -1, -1)
    starts = torch.rand(1, 3, 12, generator=torch.Generator().manual_seed(2)).expand(3, -1, -1)
    video = Modality(
        latent=latent,
        timesteps=torch.full((3,), 0.5),
        positions=torch.stack((starts, starts + 0.1), dim=-1),
        context=text(model, "video", 5).expand(3, -1, -1),
    )
    skip = PerturbationConfig([Perturbation(Skip.SKIP_VIDEO_SELF_ATTN, (1,))])
    out = model(video, None, BatchedPerturbationConfig([PLAIN, skip, PLAIN], same_as=[0, 0, 0]))[0]
    assert out is not None and torch.equal(out[0], out[2]) and not torch.equal(out[0], out[1])


def test_text_is_projected_once(model: LTXModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = StreamLayers.project_text

    def counting(self: StreamLayers, context: Tensor, modulation: Any) -> Any:
        calls.append(context)
        return original(self, context, modulation)

    monkeypatch.setattr(StreamLayers, "project_text", counting)
    run(model, states(model))
    texts, streams, steps = 2, 2, 3
    once = texts * streams * model.num_blocks
    assert len(calls) == (once if model.config.has_static_text else once * steps)
    calls.clear()
    with without("kept_text"):
        run(model, states(model))
    assert len(calls) == steps * streams * (3 + 3 + 4 + 4)


@torch.no_grad()
def test_kept_text_goes_by_label(model: LTXModel) -> None:
    start = states(model)["video"]

    def forward(context: Tensor, memory: TextMemory | None) -> Tensor:
        video = Modality(
            latent=start.latent.expand(2, -1, -1),
            timesteps=torch.full((2,), 0.5),
            positions=start.positions.expand(2, -1, -1, -1),
            context=context,
            text_memory=memory,
        )
        velocity = model(video)[0]
        assert velocity is not None
        return velocity

    contexts = torch.cat((text(model, "video", 5), text(model, "video", 6)))
    memory = TextMemory((7, 3))
    for _ in range(2):
        torch.testing.assert_close(forward(contexts, memory), forward(contexts, None), rtol=1e-5, atol=2e-5)
    swapped = TextMemory((3, 7), memory.kept)
    torch.testing.assert_close(
        forward(contexts.flip(0), swapped), forward(contexts.flip(0), None), rtol=1e-5, atol=2e-5
    )
    if model.config.has_static_text:
        assert {label for _, _, label in memory.kept} == {3, 7}


def strengths(weight: float) -> Tensor:
    """8 target tokens and two appended groups of 2, blind to each other."""
    mask = torch.eye(12).new_zeros(1, 12, 12)
    for first, last in ((0, 8), (8, 10), (10, 12)):
        mask[:, first:last, first:last] = 1
        mask[:, :8, first:last] = 1 if first == 0 else weight
        mask[:, first:last, :8] = 1 if first == 0 else weight
    return mask


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_grouped_strengths_are_the_dense_bias(model: LTXModel, weight: float) -> None:
    mask = strengths(weight)
    groups = StrengthGroups.of(mask)
    assert len(groups.starts) == 3
    start = states(model)["video"]
    video = Modality(
        latent=start.latent,
        timesteps=torch.full((1,), 0.5),
        positions=start.positions,
        context=text(model, "video", 5),
        attention_mask=mask,
    )
    dense = model(video)[0]
    grouped = model(replace(video, strength_groups=groups))[0]
    torch.testing.assert_close(grouped, dense, rtol=1e-5, atol=2e-5)


def test_strength_groups_need_few_equal_rows() -> None:
    assert StrengthGroups.of(torch.ones(1, 6, 6)).bias(torch.float32) is None
    many = torch.rand(1, MAX_GROUPS + 1, 5)
    bias = StrengthGroups.of(many).bias(torch.float32)
    assert isinstance(bias, Tensor) and torch.equal(bias, self_attention_bias(many, torch.float32))  # type: ignore[arg-type]
    apart = StrengthGroups.of(strengths(0.0)).bias(torch.float32)
    assert isinstance(apart, tuple) and apart[0].bias is None and apart[0].keys == slice(0, 8)
    hidden = strengths(0.5)
    hidden[:, 8:] = 0  # nothing to see: attention is uniform over all keys
    assert StrengthGroups.of(hidden).spans[-1] == (0, 12)


class Syncs(TorchDispatchMode):
    """Counts operations whose result the host reads, of tensors that do not come from ``host`` alone."""

    READING = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal", "is_nonzero")

    def __init__(self, host: Tensor) -> None:
        super().__init__()
        self.host, self.count = [host], 0

    def is_host(self, tensor: Tensor) -> bool:
        return any(tensor.untyped_storage().data_ptr() == own.untyped_storage().data_ptr() for own in self.host)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_host = bool(given) and all(self.is_host(tensor) for tensor in given)
        if on_host and isinstance(result, Tensor):
            self.host.append(result)  # kept alive, so that its address stays its own
        if function._opname in self.READING and not on_host:
            self.count += 1
        return result


def test_no_step_after_the_first_waits_for_the_device(model: LTXModel) -> None:
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    mask = torch.ones(1, 12, 12)
    mask[:, :8, 8:] = 0.4
    steps = denoise(X0Model(model, 1), guided(model), states(model, mask=mask), sigmas)
    with Syncs(sigmas) as syncs:
        next(steps)
        assert syncs.count > 0, "grouping masks reads them once"
        before = syncs.count
        list(steps)
    assert syncs.count == before


@pytest.mark.slow
@torch.no_grad()
def test_one_compilation_serves_all_blocks_and_sizes() -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def forward(model: LTXModel, tokens: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        starts = torch.rand(1, 3, tokens, generator=generator)
        video = Modality(
            latent=torch.randn(1, tokens, 6, generator=generator),
            timesteps=torch.full((1,), 0.5),
            positions=torch.stack((starts, starts + 0.1), dim=-1),
            context=text(model, "video", 5),
        )
        velocity = model(video)[0]
        assert velocity is not None
        return velocity

    config = TransformerConfig.from_metadata({"transformer": V19B | {"num_layers": 5}}).with_streams("video")
    model = LTXModel(config).eval().requires_grad_(False)
    want = {tokens: forward(model, tokens) for tokens in (20, 31)}
    torch._dynamo.reset()
    model.compile_blocks(backend=backend)
    for tokens, expected in want.items():
        torch.testing.assert_close(forward(model, tokens), expected, rtol=1e-5, atol=2e-5)
    assert 0 < len(graphs) <= 2, "one for tokens that are a view, one for tokens that are not"
    torch._dynamo.reset()


@pytest.mark.parametrize("section", [V19B, V23], ids=["19b", "2.3"])
def test_streamed_blocks_hold_their_weights_under_a_cap(section: dict[str, Any], tmp_path: Path) -> None:
    """With 40 % of the weights in memory: what is not in blocks, one slot, one block on its way.

    Weights are equal to the bit; results to rounding, since a CPU's matrix products go by where a matrix lies.
    """
    section = section | {"num_layers": 12}
    whole = random_model(section)
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in whole.state_dict().items()}
    save_checkpoint(tmp_path / "model.safetensors", tensors, {"config": {"transformer": section}})
    checkpoint = Checkpoint.open(tmp_path / "model.safetensors")
    streamed = build_streaming(checkpoint, torch.float32, hold="file", slots=1, read_ahead=0)
    network: Any = streamed.network
    sizes = {name: tensor.nbytes for name, tensor in whole.state_dict().items()}
    rest = sum(size for name, size in sizes.items() if not name.startswith(LTXModel.BLOCK_LIST))
    (slot,) = streamed.streamer._slots
    assert rest + 2 * slot.buffer.nbytes < 0.4 * sum(sizes.values())
    checked = []

    def check(index: int, block: torch.nn.Module, _args: Any, _output: Any) -> None:
        want = whole.transformer_blocks[index].state_dict()
        checked.append(all(torch.equal(tensor, want[name]) for name, tensor in block.state_dict().items()))

    for index, block in enumerate(network.transformer_blocks):
        block.register_forward_hook(partial(check, index))
    got, want = run(network, states(network)), run(whole, states(whole))
    streamed.close()
    assert len(checked) >= 3 * 12 and all(checked)
    assert_close(got, want, atol=1e-4)


@pytest.mark.parametrize("cells", [(16, 24), (32, 32), (34, 60), (68, 120), (4, 24)], ids=str)
@pytest.mark.parametrize("most", [10**6, 4000, 1000, 300, 1])
def test_tiles_are_small_enough_and_decode_little_twice(cells: tuple[int, int], most: int) -> None:
    tiling = balanced_tiling(*cells, most)
    _, rows, columns = ([part.length for part in axis] for axis in tiling.split((1, *cells)))
    assert sum(rows) * sum(columns) <= 4 * cells[0] * cells[1]
    assert max(rows) * max(columns) <= most or most == 1
    assert (len(rows) * len(columns) == 1) == (most >= cells[0] * cells[1])
    assert all(max(axis) - min(axis) <= 1 for axis in (rows, columns)), "balanced"


def test_tiles_one_after_another_are_the_whole_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit of rounding where what is decoded around them is all that the network sees."""
    block = {"num_layers": 1}
    vae = {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "latent_channels": 8,
        "patch_size": 4,
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "timestep_conditioning": False,
        "encoder_base_channels": 8,
        "decoder_base_channels": 8,
        "encoder_blocks": [["res_x", block], ["compress_all", {}], ["compress_all", {}], ["compress_all", {}]],
        "decoder_blocks": [["res_x", block], *[["compress_all", {"residual": True, "multiplier": 1}]] * 3],
    }
    torch.manual_seed(0)
    decoder = VideoDecoder(VideoVaeConfig.from_metadata({"vae": vae})).eval()
    latent, sees = torch.randn(1, 8, 3, 11, 26), 5  # cells: 1 + 2 convolutions of the first size, 3 of half of it, ...
    want = decoder(latent)
    tiling = TileCountConfig(height=(2, 4), width=(2, 2 * sees))
    columns = list(stream_tiles(decoder, latent, replace(tiling, height=(1, 0))))
    assert len(columns) == 17 and columns[0].shape == (1, 3, 1, 352, 832)
    torch.testing.assert_close(torch.cat(columns, dim=2), want, rtol=1e-5, atol=1e-5)
    both = torch.cat(list(stream_tiles(decoder, latent, tiling)), dim=2)
    row = 32 * 5  # where tiles meet that see two cells of each other
    torch.testing.assert_close(both[..., : row - 96, :], want[..., : row - 96, :], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(both[..., row - 32 : row, :], want[..., row - 32 : row, :], rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="time is streamed"):
        next(stream_tiles(decoder, latent, TileCountConfig(frames=(2, 1))))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**6))
    with pytest.raises(ConfigError, match=r"17 x 352 x 832 frames wait in 0.1 GB of .*, which has 0.0 GB; let TMPDIR"):
        next(stream_tiles(decoder, latent, tiling))


def test_switches() -> None:
    assert parse("") == Optimizations() and not any(vars(parse("all")).values())
    assert parse("kept_text, shared_prefix") == Optimizations(shared_prefix=False, kept_text=False)
    with pytest.raises(ConfigError, match="shared_prefix"):
        parse("nothing")
    before = optimizations()
    with without("kept_text"):
        assert not optimizations().kept_text
        with without():
            assert not any(vars(optimizations()).values())
    assert optimizations() == before
