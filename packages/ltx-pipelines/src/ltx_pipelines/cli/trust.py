"""Whose files a recipe may make us open: what the user named, what lies beside the clip, our models; others on request.

A recipe comes with a clip from somebody else. It names files; reading them is the user's decision.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltx_pipelines.planning.schema import MODEL_VARIABLE, Option

TRUST = Option("trust", bool, False, "Open the files its recipe names, wherever they lie.", group="Request")
SHOWN = 8  # files in a message
NAMED = ("model", "checkpoint_path", "gemma_root")  # options that name files to trust


def trusted_by(given: Mapping[str, Any], file: Path) -> Callable[[Path], bool]:
    """Whether a file may be opened without asking: all with ``--trust``, else by where it lies.

    Links are followed: what lies beside the clip is not what a link beside it leads to.
    """
    from ltx_pipelines.running.hub import bundled_folders, cache_folder

    named = [Path(text).expanduser() for text in (os.environ.get(MODEL_VARIABLE), *map(given.get, NAMED)) if text]
    own = [path if path.is_dir() else path.parent for path in named if path.exists()]
    inside = [folder.resolve() for folder in (file.parent, cache_folder(), *bundled_folders(), *own)]

    def trusted(path: Path) -> bool:
        real = path.expanduser().resolve()
        return bool(given.get("trust")) or any(real.is_relative_to(folder) for folder in inside)

    return trusted


def ask_to_open(paths: Iterable[str], given: Mapping[str, Any], file: Path, others: Sequence[str] = ()) -> None:
    """Refuse what a recipe may not open: asks on a terminal, elsewhere expects ``--trust``. Raises `ConfigError`.

    ``others`` are programs and names of models on the hub, which are always asked about.
    """
    from ltx_core.errors import ConfigError
    from ltx_core.fingerprint import is_regular

    listed = list(dict.fromkeys(paths))
    for name in listed:
        path = Path(name).expanduser()
        if path.exists() and not path.is_dir() and not is_regular(path):
            raise ConfigError(f"{file}: its recipe names {name}, which is no regular file")
    trusted = trusted_by(given, file)
    strange = [*(name for name in listed if not trusted(Path(name))), *(() if given.get("trust") else others)]
    if not strange:
        return
    more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
    what = f"{file}: its recipe opens {', '.join(strange[:SHOWN])}{more}"
    if sys.stdin.isatty():
        sys.stderr.write(f"{what}\nOpen them? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    raise ConfigError(f"{what}; give --trust if you know who made it")
