"""The transformer with two blocks in memory at a time (improved) against all of it (plain)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Options, Table, alternate, drain
from benchmarks.files import transformer_file
from benchmarks.models import cpu_sizes, guided_denoiser, states_of
from ltx_core.loader import Checkpoint
from ltx_core.loader.streaming import StreamingModel, build_streaming
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.sampling.loop import denoise

CAP = 0.4  # of the weights


def run(options: Options) -> list[Table]:
    columns = ("case", "weights MB", "held MB", "share %", "resident s", "streamed s", "equal bits")
    table = Table(f"Guided step with blocks from the file, cap {CAP:.0%} of the weights", columns)
    for size in cpu_sizes(options.quick):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Checkpoint.open(transformer_file(size, Path(folder)))
            resident = checkpoint.build("transformer", torch.float32, options.device)
            streamed = build_streaming(checkpoint, torch.float32, options.device, hold="file", slots=1, read_ahead=0)

            def guided(network: Any, size: Any = size) -> Any:
                denoiser = guided_denoiser(network, size, options.device, network.num_blocks // 2)
                states = states_of(network, size, options.device)
                last = drain(denoise(X0Model(network, 1), denoiser, states, torch.tensor([1.0, 0.0])))
                return [state.latent for state in last.states.values()]

            arms = {"plain": lambda: guided(resident), "improved": lambda: guided(streamed.network)}  # noqa: B023
            timing = alternate(arms, options, measure_memory=False)
            total, held = weights_of(resident), held_by(streamed)
            table.rows.append(
                [
                    size.name,
                    f"{total / 1e6:.1f}",
                    f"{held / 1e6:.1f}",
                    f"{100 * held / total:.1f}",
                    f"{timing.median('plain'):.3f}",
                    f"{timing.median('improved'):.3f}",
                    "yes" if timing.difference("improved", "plain") == 0 else "no",
                ]
            )
            streamed.close()
    return [table]


def weights_of(network: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())


def held_by(model: StreamingModel) -> int:
    """Bytes outside the blocks, of one slot, and of one block on its way from the file."""
    network = model.network
    assert isinstance(network, LTXModel)
    rest = sum(p.nbytes for name, p in network.named_parameters() if not name.startswith(LTXModel.BLOCK_LIST))
    return rest + 2 * model.streamer._slots[0].buffer.nbytes
