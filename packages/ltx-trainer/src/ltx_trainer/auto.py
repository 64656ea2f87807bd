"""Settings that say ``auto``, chosen for this machine from what a run will hold in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ltx_trainer.machine import Machine, this_machine

if TYPE_CHECKING:
    from ltx_trainer.config import TrainerConfig

logger = logging.getLogger(__name__)

AUTO = "auto"
ENCODE = "data", "encode"
#: What may be ``auto``, with the value that takes the least.
CHOSEN: dict[tuple[str, str], Any] = {
    ("optimization", "batch_size"): 1,
    ("optimization", "enable_gradient_checkpointing"): False,
    ("acceleration", "quantization"): None,
    ("acceleration", "blocks_to_swap"): 0,
    ENCODE: "ahead",
}
BATCHES = (4, 2)  # tried from the largest; more is for who knows why
USABLE = 0.9  # of the free memory
Keys = tuple[str, str]
Choice = dict[Keys, Any]


def without_auto(raw: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Keys, ...]]:
    """A parsed document with plain values in place of ``auto``, and where those stood."""
    written, wanted = dict(raw), []
    for (section, key), value in CHOSEN.items():
        given = written.get(section)
        if isinstance(given, Mapping) and given.get(key) == AUTO:
            written[section] = {**given, key: value}
            wanted.append((section, key))
    return written, tuple(wanted)


def choose(config: TrainerConfig, wanted: tuple[Keys, ...], machine: Machine | None = None) -> TrainerConfig:
    """``config`` with the settings at ``wanted`` chosen: the fastest that fits, then the largest batch that still does.

    What was chosen, and why, is logged in one line.
    """
    from ltx_trainer.memory_plan import GIB, MemoryModel

    machine = machine or this_machine()
    model = MemoryModel.of(config, machine)
    room = machine.free * USABLE

    def bytes_needed(choice: Choice) -> int:
        return model.plan(with_choice(config, choice)).device

    levels = list(frugality(config, wanted, model.num_blocks))
    choice = next((level for level in levels if bytes_needed(level) <= room), levels[-1])
    if ("optimization", "batch_size") in wanted:
        for size in BATCHES:
            larger = {**choice, ("optimization", "batch_size"): size}
            if size <= model.examples and bytes_needed(larger) <= room:
                choice = larger
                break
    if ENCODE in wanted:
        lazily = {**choice, ENCODE: "lazily"}
        choice = lazily if bytes_needed(lazily) <= room else choice
    taken = bytes_needed(choice)
    said = ", ".join(f"{key} {_said(value)}" for (_, key), value in choice.items())
    logger.info("chosen for %s: %s (%.2f GiB needed)", machine.describe(), said, taken / GIB)
    if choice.get(ENCODE) == "ahead" and config.data.unprepared:
        logger.info("clips are encoded before the first step: their encoders do not fit beside the transformer")
    if taken > room:
        logger.warning("the run needs %.1f GiB and %.1f GiB are there: it may not fit", taken / GIB, room / GIB)
    return with_choice(config, choice)


def frugality(config: TrainerConfig, wanted: tuple[Keys, ...], blocks: int) -> Iterator[Choice]:
    """Choices from the fastest to the smallest; only settings in ``wanted`` vary."""
    plain: Choice = {keys: CHOSEN[keys] for keys in wanted}
    recomputed = {("optimization", "enable_gradient_checkpointing"): True}
    quantized = {**recomputed, ("acceleration", "quantization"): "int8-quanto"}
    swapped = [{**quantized, ("acceleration", "blocks_to_swap"): count} for count in range(4, blocks + 1, 4)]
    steps: list[Choice] = [{}, recomputed, quantized, *swapped]
    if config.model.training_mode != "lora":
        steps = steps[:2]
    for step in steps:
        yield plain | {keys: value for keys, value in step.items() if keys in wanted}


def with_choice(config: TrainerConfig, choice: Choice) -> TrainerConfig:
    """A configuration with some settings changed."""
    sections: dict[str, dict[str, Any]] = {}
    for (section, key), value in choice.items():
        sections.setdefault(section, {})[key] = value
    changed = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=changed)


def _said(value: Any) -> str:
    return "none" if value is None else {"True": "on", "False": "off"}.get(str(value), str(value))
