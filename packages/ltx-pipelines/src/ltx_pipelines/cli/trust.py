"""Places of the files that a recipe names, and those of them that are opened unasked.

A recipe comes with a clip from somebody else. It names files; reading them is the user's decision, but for what the
user named, what lies beside the clip, and our models.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError
from ltx_core.fingerprint import exists, fingerprint, is_regular
from ltx_core.textfiles import path_of
from ltx_pipelines.planning.schema import MODEL_VARIABLE, File, Option

TRUST = Option("trust", bool, False, "Open the files its recipe names, wherever they lie.", group="Request")
LOOK_IN = Option(
    "look_in", File | None, None, "Look for files that its recipe names here too.", group="Request", metavar="FOLDER"
)
SHOWN = 8  # files in a message
NAMED = ("look_in", "model", "checkpoint_path", "gemma_root")  # options that name files to trust


class Finder:
    """Finds the files that the recipe of one clip names, and asks before strange ones are opened."""

    def __init__(self, given: Mapping[str, Any], file: Path) -> None:
        from ltx_pipelines.running.hub import bundled_folders, cache_folder

        self.file, self.trusts_all = file, bool(given.get("trust"))
        self._agreed: set[Path] = set()
        named = [path_of(text) for text in (*map(given.get, NAMED), os.environ.get(MODEL_VARIABLE)) if text]
        own = [path if path.is_dir() else path.parent for path in named if path.exists()]
        self.near = [folder.absolute() for folder in (file.parent, *own)]
        self.searched = [*(path for path in named if path.is_dir()), *bundled_folders(), cache_folder()]
        self.inside = [folder.resolve() for folder in (*self.near, *self.searched)]

    def is_trusted(self, path: Path) -> bool:
        """Whether a file may be opened without asking: all with ``--trust``, else by where it lies.

        Links are followed: what lies beside the clip is not what a link beside it leads to.
        """
        if "\0" in str(path):  # no name of a file
            return False
        real = Path(os.path.realpath(path))  # which raises nothing for a loop of links
        return self.trusts_all or any(real.is_relative_to(folder) for folder in self.inside)

    def may_open(self, path: Path) -> bool:
        """Whether a file is trusted, or may be opened after having asked."""
        return path in self._agreed or self.is_trusted(path)

    def find(self, name: str, mark: str = "") -> Path | None:
        """Path of the file of a name and fingerprint; None where it is nowhere.

        One of its name, elsewhere or another, is better than none. What is not trusted is not opened for that.
        """
        from ltx_pipelines.running.recipe import last_known

        near = [folder / name for folder in self.near]  # an absolute name is itself
        known = [path for path in (last_known(mark),) if path is not None]
        fitting = (path for path in self._places(name, [*near, *known]) if self._is(path, mark))
        others = (*near, *known) if Path(name).is_absolute() else (*known, *near)
        return next(fitting, None) or next(filter(exists, others), None)

    def model(self, name: str, checkpoint: Path) -> Path | None:
        """The folder of a model, by its name beside the clip or around the model's checkpoint."""
        around = [place for folder in checkpoint.parents for place in (folder, folder / name)]
        places = [self.near[0] / name, *(place for place in around if place.parts[-1:] == Path(name).parts[-1:])]
        return next(filter(exists, places), None)

    def _places(self, name: str, first: Sequence[Path]) -> Iterator[Path]:
        yield from first
        yield from self._below.get(Path(name).name, ())

    @cached_property
    def _below(self) -> dict[str, list[Path]]:
        """Files in the folders of models and those the user named, by name."""
        found: dict[str, list[Path]] = {}
        for start in self.searched:
            for folder, folders, files in os.walk(start):
                for name in (*folders, *files):
                    found.setdefault(name, []).append(Path(folder, name))
        return found

    def _is(self, path: Path, mark: str) -> bool:
        try:
            return exists(path) and self.is_trusted(path) and fingerprint(path) == mark
        except ConfigError:
            return False

    def ask_to_open(self, paths: Iterable[Path], others: Sequence[str] = ()) -> None:
        """Refuse what a recipe may not open: asks on a terminal, elsewhere expects ``--trust``. Raises `ConfigError`.

        ``others`` are programs and names of models on the hub, which are always asked about.
        """
        listed = list(dict.fromkeys(paths))
        self._agreed.update(listed)
        for path in listed:
            if "\0" in str(path):
                raise ConfigError(f"{self.file}: its recipe names {str(path)!r:.60}, expected a file")
            if exists(path) and not path.is_dir() and not is_regular(path):
                raise ConfigError(f"{self.file}: its recipe names {path}, which is no regular file")
        strange = [*(str(path) for path in listed if not self.is_trusted(path)), *(() if self.trusts_all else others)]
        if not strange:
            return
        more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
        what = f"{self.file}: its recipe opens {', '.join(strange[:SHOWN])}{more}"
        if sys.stdin.isatty():
            sys.stderr.write(f"{what}\nOpen them? [y/N] ")
            sys.stderr.flush()
            if sys.stdin.readline().strip().lower() in ("y", "yes"):
                return
        raise ConfigError(f"{what}; give --trust if you know who made it")
