"""Running a network whose blocks do not fit: each is copied into one of a few slots just before it computes.

A block's tensors lie in one byte buffer in file order, each at a multiple of 16 bytes; the buffer ends at one too. The
blocks wait in host memory (``hold="host"``, adapters fused once), in the file (``hold="file"``, read again in every
pass, two blocks ahead, by one reader thread) or in parts on several devices, which gather a block as FSDP does
(``hold`` is `Shards`). Tables of embeddings stay in host memory too. Results equal those of the resident network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ltx_core.errors import CheckpointError, ConfigError, check_least
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.lora import Lora
from ltx_core.loader.weights import ComponentWeights, fill
from ltx_core.precision import Precision

ALIGNMENT = 16  # bytes
READ_AHEAD = 2  # blocks
BLOCKS = "transformer_blocks"


@dataclass(frozen=True)
class BlockLayout:
    """Place of each tensor of a block in its buffer."""

    kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    offsets: Mapping[str, int]  # bytes
    nbytes: int

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The tensors of a block in its uint8 buffer."""
        return {
            name: buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for (name, start), (shape, dtype) in zip(self.offsets.items(), self.kinds.values(), strict=True)
        }


def block_layout(kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> BlockLayout:
    """The layout of tensors ``{name: (shape, dtype)}`` in the order given."""
    offsets, position = {}, 0
    for name, (shape, dtype) in kinds.items():
        offsets[name] = position
        position += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    return BlockLayout(dict(kinds), offsets, max(position, 1))


@dataclass(frozen=True)
class PackedBlock:
    """One block's tensors in one buffer."""

    layout: BlockLayout
    buffer: Tensor  # uint8


def pack(tensors: Mapping[str, Tensor], pinned: bool) -> PackedBlock:
    """Copy a block's tensors into one host buffer, pinned for copies that run beside the computation."""
    layout = block_layout({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()})
    buffer = torch.empty(layout.nbytes, dtype=torch.uint8, pin_memory=pinned)
    for name, view in layout.views(buffer).items():
        view.copy_(tensors[name])
    return PackedBlock(layout, buffer)


def copy_into(packed: PackedBlock, room: Tensor) -> Tensor:
    """Copy a block's buffer into ``room``; the copy runs beside the computation where the buffer is pinned."""
    return room[: packed.layout.nbytes].copy_(packed.buffer, non_blocking=True)


@dataclass
class Shards:
    """Processes that hold an equal part of every block each, and the bytes this one has sent so far."""

    group: Any
    rank: int
    size: int
    sent: int = 0

    def part(self, packed: PackedBlock, device: torch.device) -> PackedBlock:
        """This process's part of a block, on its device."""
        length = -(-packed.layout.nbytes // self.size)
        part = torch.zeros(length, dtype=torch.uint8, device=device)
        own = packed.buffer[self.rank * length : (self.rank + 1) * length]
        part[: len(own)].copy_(own)
        return PackedBlock(packed.layout, part)

    def gather(self, packed: PackedBlock, room: Tensor) -> Tensor:
        """Gather a block into ``room`` from the parts of all, which call this for the same blocks in the same order."""
        self.sent += packed.buffer.nbytes * (self.size - 1)
        target = room[: packed.buffer.numel() * self.size]
        dist.all_gather_into_tensor(target, packed.buffer, group=self.group)
        return target


Hold = Literal["host", "file"] | Shards


class FileBlocks:
    """Blocks read from the file by one thread, up to ``ahead`` ahead of the one asked for."""

    def __init__(self, load: Callable[[int], PackedBlock], count: int, ahead: int = READ_AHEAD) -> None:
        self._load, self._count, self._ahead = load, count, ahead
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="block-reader")
        self._coming: dict[int, Future[PackedBlock]] = {}

    def __call__(self, index: int) -> PackedBlock:
        """The block; errors of the reader thread are raised here."""
        wanted = [(index + ahead) % self._count for ahead in range(min(self._ahead + 1, self._count))]
        self._coming = {i: self._coming.get(i) or self._reader.submit(self._load, i) for i in wanted}
        return self._coming.pop(index).result()

    def close(self) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)


@dataclass
class Slot:
    """Room for one block on the device, and what has to finish before it is used or overwritten."""

    buffer: Tensor  # uint8
    index: int | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    loaded: torch.cuda.Event | None = None
    computed: torch.cuda.Event | None = None


class BlockStreamer:
    """Moves blocks into slots around their forwards. The slot loaded longest ago is overwritten first.

    ``fetch`` fills the room of a slot with what ``source`` has of a block.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        source: Callable[[int], PackedBlock],
        slots: Sequence[Slot],
        fetch: Callable[[PackedBlock, Tensor], Tensor] = copy_into,
    ) -> None:
        self._blocks, self._source, self._slots, self._fetch = blocks, source, list(slots), fetch
        device = self._slots[0].buffer.device
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._hooks = [
            hook
            for index, block in enumerate(blocks)
            for hook in (
                block.register_forward_pre_hook(partial(self._enter, index)),
                block.register_forward_hook(partial(self._leave, index)),
            )
        ]

    def close(self) -> None:
        """Remove the hooks and free the slots; the blocks have no data then."""
        for hook in self._hooks:
            hook.remove()
        for block in self._blocks:
            point_parameters(block, {name: tensor.to("meta") for name, tensor in block.state_dict().items()})
        self._slots = []

    def _enter(self, index: int, block: nn.Module, args: Any) -> None:
        slot = self._slot_of(index) or self._load(index)
        if slot.loaded is not None:
            torch.cuda.current_stream().wait_event(slot.loaded)
        point_parameters(block, slot.tensors)

    def _leave(self, index: int, block: nn.Module, args: Any, output: Any) -> None:
        """Start copying the next block while this one still computes."""
        slot = self._slot_of(index)
        if self._copy_stream is None or slot is None:
            return
        slot.computed = torch.cuda.current_stream().record_event()
        following = (index + 1) % len(self._blocks)
        if len(self._slots) > 1 and self._slot_of(following) is None:
            self._load(following)

    def _slot_of(self, index: int) -> Slot | None:
        return next((slot for slot in self._slots if slot.index == index), None)

    def _load(self, index: int) -> Slot:
        slot = self._slots.pop(0)
        self._slots.append(slot)
        packed = self._source(index)
        if self._copy_stream is None:
            target = self._fetch(packed, slot.buffer)
        else:
            if slot.computed is not None:
                self._copy_stream.wait_event(slot.computed)
            with torch.cuda.stream(self._copy_stream):
                target = self._fetch(packed, slot.buffer)
                slot.loaded = self._copy_stream.record_event()
        slot.index, slot.tensors = index, packed.layout.views(target)
        return slot


def point_parameters(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make a module's parameters and buffers be these tensors, without copying."""
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[leaf] = tensor


@dataclass(frozen=True)
class StreamingModel:
    """A network whose blocks are streamed; call it like the network. ``close`` frees slots, hooks and reader."""

    network: nn.Module
    streamer: BlockStreamer
    reader: FileBlocks | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def close(self) -> None:
        self.streamer.close()
        if self.reader is not None:
            self.reader.close()


def build_streaming(
    checkpoint: Checkpoint,
    dtype: torch.dtype | Precision,
    device: torch.device | str = "cpu",
    loras: Sequence[Lora] = (),
    quantization: str | None = None,
    hold: Hold = "host",
    slots: int = 2,
    read_ahead: int = READ_AHEAD,
) -> StreamingModel:
    """The transformer with everything but its blocks on ``device``, and ``slots`` blocks there at a time.

    With ``hold="file"`` up to ``read_ahead`` blocks and the one that is asked for are in host memory.

    Raises ``ConfigError`` for a quantisation whose adapters change more than weights, ``CheckpointError`` as ``build``.
    """
    weights = checkpoint.weights("transformer", dtype, "cpu", quantization)
    if weights.policy is not None and not weights.policy.streamable:
        raise ConfigError(f"quantization is {quantization!r}, streaming takes fp8-cast or none")
    check_least("slots", slots, 1)
    network = checkpoint.empty_network(weights)
    blocks = StreamedBlocks(weights, BLOCKS, weights.fit_loras(loras), torch.device(device))
    return blocks.fill(network, hold, slots, read_ahead)


@dataclass(frozen=True)
class StreamedBlocks:
    """The blocks of a network under ``name``, where its weights lie, and the device they visit."""

    weights: ComponentWeights  # in host memory
    name: str
    loras: Sequence[Lora]
    device: torch.device

    def fill(self, network: nn.Module, hold: Hold, slots: int = 2, read_ahead: int = READ_AHEAD) -> StreamingModel:
        """A network without data with its tensors, those of the blocks while they compute."""
        layers = block_layers(self.weights, self.name)
        load = partial(self._load, layers)
        blocks = network.get_submodule(self.name)
        assert isinstance(blocks, nn.ModuleList)
        setattr(network, self.name, nn.ModuleList())
        fill(network, dict(self._rest(network)))
        setattr(network, self.name, blocks.eval().requires_grad_(False))
        shards = hold if isinstance(hold, Shards) else None
        place = partial(shards.part, device=self.device) if shards is not None else lambda block: block
        held = [place(load(index)) for index in range(len(layers))] if hold != "file" else []
        reader = None if held else FileBlocks(load, len(layers), read_ahead)
        largest = max(block.layout.nbytes for block in held) if held else _largest(self.weights, layers)
        room = largest + (shards.size if shards is not None else 0)
        rooms = [Slot(torch.empty(room, dtype=torch.uint8, device=self.device)) for _ in range(slots)]
        fetch = copy_into if shards is None else shards.gather
        return StreamingModel(network, BlockStreamer(blocks, reader or held.__getitem__, rooms, fetch), reader)

    def _rest(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Tensors outside the blocks, on the device; tables of embeddings stay in host memory."""
        for path in self.weights.layers:
            if not path.startswith(f"{self.name}."):
                is_table = isinstance(network.get_submodule(path), nn.Embedding)
                for name, tensor in self.weights.module_tensors(path, self.loras):
                    yield name, tensor if is_table else tensor.to(self.device)

    def _load(self, layers: Sequence[Sequence[str]], index: int) -> PackedBlock:
        start = f"{self.name}.{index}."
        named = (pair for path in layers[index] for pair in self.weights.module_tensors(path, self.loras))
        return pack({name.removeprefix(start): tensor for name, tensor in named}, self.device.type == "cuda")


def block_layers(weights: ComponentWeights, name: str) -> list[list[str]]:
    """Layer paths of each block. ``CheckpointError`` unless blocks are numbered 0 to n - 1."""
    found: dict[int, list[str]] = {}
    for path in weights.layers:
        if path.startswith(f"{name}."):
            found.setdefault(int(path.split(".")[1]), []).append(path)
    if sorted(found) != list(range(len(found))):
        raise CheckpointError(f"{weights.where}: blocks are {sorted(found)[:10]}..., expected 0 to {len(found) - 1}")
    return [found[index] for index in range(len(found))]


def _largest(weights: ComponentWeights, layers: Sequence[Sequence[str]]) -> int:
    """Room that fits any block: its tensors as stored or, if that is more, as the dtype they get."""
    itemsize = weights.dtype.itemsize if weights.dtype is not None else 1
    sizes = []
    for paths in layers:
        infos = [source.info for path in paths for source in weights.layers[path].values()]
        sizes.append(sum(max(info.nbytes, math.prod(info.shape) * itemsize) + ALIGNMENT for info in infos))
    return max(sizes)
