"""Prompts that were encoded: in memory, and in a folder where one is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from ltx_core.loader.safetensors_file import SafetensorsFile, save_tensors
from ltx_core.networks import Contexts, EncodedTexts, TextEncoder
from ltx_core.precision import Precision


class Texts:
    """The contexts of every prompt seen.

    ``encoder`` gives the text encoder when a new prompt comes. Entries in ``folder`` are named by everything contexts
    depend on: prompt, precision and ``files``, those of the language model and its connectors.
    """

    def __init__(
        self,
        encoder: Callable[[], TextEncoder],
        precision: Precision,
        device: torch.device,
        folder: Path | None = None,
        files: Sequence[str] = (),
    ) -> None:
        self._encoder, self._precision, self._device = encoder, precision, device
        self._folder, self._files = folder, files
        self._known: dict[str, Contexts] = {}

    def know(self, prompts: Sequence[str]) -> bool:
        """Whether the contexts of all prompts are kept."""
        return all(self._find(prompt) is not None for prompt in prompts)

    def contexts(self, prompts: Sequence[str]) -> list[Contexts]:
        """Contexts of each prompt; new ones go through the language model one by one.

        What a prompt becomes would depend, in its last bits, on those it is encoded with.
        """
        for prompt in dict.fromkeys(prompts):
            if self._find(prompt) is None:
                self.remember(prompt, _contexts_of(self._encoder()([prompt], self._precision.dtype)))
        return [found for prompt in prompts if (found := self._find(prompt)) is not None]

    def remember(self, prompt: str, contexts: Contexts) -> None:
        """Use these contexts for ``prompt`` from now on."""
        self._known[prompt] = contexts
        if (path := self._path(prompt)) is not None:
            save_tensors(path, {name: part.cpu() for name, part in vars(contexts).items() if part is not None})

    def _find(self, prompt: str) -> Contexts | None:
        if prompt not in self._known and (path := self._path(prompt)) is not None and path.is_file():
            parts = load_file(path)  # whose alignment in memory a copy has not, which sums of float32 follow
            self._known[prompt] = Contexts(**{name: part.to(self._device, copy=True) for name, part in parts.items()})
        return self._known.get(prompt)

    def _path(self, prompt: str) -> Path | None:
        """File of a prompt's contexts: named by everything they depend on."""
        if self._folder is None:
            return None
        stats = [(path, Path(path).stat()) for path in self._files]
        stamps = [(path, stat.st_mtime_ns, stat.st_size) for path, stat in stats]
        digest = hashlib.sha256(repr((prompt, self._precision.name, stamps)).encode()).hexdigest()
        return self._folder / f"{digest[:32]}.safetensors"


def read_contexts(path: str, device: torch.device, dtype: torch.dtype) -> Contexts:
    """The contexts of the picture that a file holds as ``video_context`` ``[1, S, c]``."""
    return Contexts(SafetensorsFile(path).read("video_context").to(device, dtype))


def _contexts_of(output: EncodedTexts) -> Contexts:
    """A mask that hides nothing is left out: registers stand where padding was."""
    mask = output.attention_mask
    return Contexts(output.video_context, getattr(output, "audio_context", None), None if bool(mask.all()) else mask)
