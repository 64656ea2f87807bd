"""Cheaper stages as a plan asks for them: sparse self-attention, and steps that run the first block alone."""

from __future__ import annotations

from typing import cast

import torch

from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.transformer.sparse import BlockPattern
from ltx_core.networks import Transformer
from ltx_core.sampling.cheaper import FirstBlockCache, SparseDenoiser
from ltx_core.sampling.denoisers import Denoiser
from ltx_core.types import VideoLatentShape
from ltx_pipelines.planning.plan import SparseAttention, StagePlan
from ltx_pipelines.running.stage_inputs import StageRun
from ltx_pipelines.utils.model_ledger import ModelLedger


def block_pattern(
    sparse: SparseAttention, latent: VideoLatentShape, tokens: int, ledger: ModelLedger, device: torch.device | str
) -> BlockPattern:
    """Blocks of a picture's cells, and of the tokens of its conditions behind them, before them with LTX-Video."""
    grid = (latent.frames, latent.height, latent.width)
    return BlockPattern.of(grid, tokens, sparse.block, sparse.stride, first=ledger.is_ltx_video, device=device)


def network_of(stage: StagePlan, ledger: ModelLedger) -> Transformer:
    """The transformer of a stage, one that leaves out blocks where the stage says so."""
    network = ledger.transformer(stage.loras, tuple(stage.streams))
    if (cache := stage.first_block_cache) is None:
        return network
    return FirstBlockCache(cast(LTXModel, network), cache.threshold, cache.steps)


def reuse_note(network: Transformer) -> str:
    """A line on the steps of which a transformer left out blocks; empty where it leaves out none."""
    if not isinstance(network, FirstBlockCache):
        return ""
    return f"{network.reused} of {network.calls} calls of the transformer ran its first block alone"


def denoiser_of(stage: StagePlan, begun: StageRun, ledger: ModelLedger) -> Denoiser:
    """The denoiser of a stage, on a sparse attention where the stage has one."""
    if (sparse := stage.sparse_attention) is None:
        return begun.denoiser
    video = begun.states["video"].latent
    shape = cast(VideoLatentShape, begun.tools["video"].target_shape)
    network = cast(LTXModel, ledger.transformer(stage.loras, tuple(stage.streams)))
    pattern = block_pattern(sparse, shape, video.shape[1], ledger, video.device)
    return SparseDenoiser(begun.denoiser, network, pattern, sparse.steps, sparse.layers)
