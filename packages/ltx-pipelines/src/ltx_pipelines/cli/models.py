"""`ltx models`: the models we know, what of them is on disk, and fetching one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_pipelines.cli.command import AS_JSON, Command
from ltx_pipelines.planning.schema import Option, UsageError

if TYPE_CHECKING:
    from ltx_pipelines.running.hub import KnownModel

ABOUT = """Known models, what is on disk. `ltx models download MODEL` fetches one.

Any other model works too: `--model` takes a file, a folder, or the id of any hub repository.
"""
ABOUT_DOWNLOAD = "Fetch a model, and the text encoder it needs; an interrupted download goes on."
MODEL = Option("model", str, "", "Hub id, such as Lightricks/LTX-2.3.", metavar="MODEL")
YES = Option("yes", bool, False, "Do not ask before fetching.", ("--yes", "-y"))


def models(line: Sequence[str]) -> None:
    """Run `ltx models` or `ltx models download`."""
    if line[:1] == ["download"]:
        DOWNLOAD(line[1:])
    else:
        LISTING(line)


def show(given: dict[str, Any]) -> None:
    """The models we know."""
    if given.get("json"):
        print(json.dumps(rows(), ensure_ascii=False, indent=2))
        return
    for row in rows():
        print(f"{row['model']}: about {row['gigabytes']:g} GB, {place_of(row)}")
        print(f"    {row['what']}")
        print(f"    {row['license']}{row['page'] and ', ' + row['page']}")
    print("ltx models download MODEL fetches one, with the text encoder it needs")


def download(given: dict[str, Any]) -> None:
    """Fetch a model after its licence was shown."""
    from ltx_pipelines.running.hub import (
        KNOWN_MODELS,
        TINY,
        bundled_model,
        download_model,
        folder_bytes,
        free_disk_bytes,
    )

    if "model" not in given:
        raise UsageError("no model is given, expected a hub id such as Lightricks/LTX-2.3")
    model = given["model"]
    if model == TINY:
        print(f"tiny is bundled and there: {bundled_model(TINY)}")
        return
    known = KNOWN_MODELS.get(model)
    if known is not None:
        repos = [known, *(KNOWN_MODELS[repo] for repo in known.needs)]
        for one in repos:
            print(f"{one.repo}: {one.summary}; about {one.gigabytes:g} GB; {one.license}, {one.page}")
        needed, free = sum(one.gigabytes for one in repos), free_disk_bytes() / 1e9
        if needed > free:
            print(f"only {free:.0f} GB are free where downloads go; set HF_HOME to another disk", file=sys.stderr)
        asked = "By going on you accept these licences. Fetch? [Y/n] "
        if not given.get("yes") and input(asked).lower() in ("n", "no"):
            raise SystemExit(1)
    folder = download_model(model)
    print(f"{folder_bytes(folder) / 1e9:.1f} GB in {folder}")
    print(f'next: ltx generate "a prompt" --model {model}')


def rows() -> list[dict[str, Any]]:
    """The bundled model, then those on the hub, as plain values."""
    from ltx_core.errors import CheckpointError
    from ltx_pipelines.running.hub import KNOWN_MODELS, NOT_BUNDLED, TINY, KnownModel, bundled_model, on_disk

    missing = NOT_BUNDLED
    try:
        folder = bundled_model(TINY)
    except CheckpointError as error:
        folder, missing = None, str(error)
    what = "small trained model of moving shapes with sound, bundled" if folder else missing
    tiny = row_of(KnownModel(TINY, what, (), 0.0, "Apache-2.0"), folder, digits=3)
    tiny |= {"gigabytes": tiny["on_disk"], "page": ""}
    return [tiny, *(row_of(model, on_disk(model.repo)) for model in KNOWN_MODELS.values())]


def row_of(model: KnownModel, folder: Path | None, digits: int = 1) -> dict[str, Any]:
    """A model, and the folder it lies in."""
    from ltx_pipelines.running.hub import folder_bytes

    return {
        "model": model.repo,
        "what": model.summary,
        "gigabytes": model.gigabytes,
        "on_disk": round(folder_bytes(folder) / 1e9 if folder else 0.0, digits),
        "folder": str(folder) if folder else None,
        "license": model.license,
        "page": model.page,
        "needs": list(model.needs),
    }


def place_of(row: Mapping[str, Any]) -> str:
    """Where a model lies, in words."""
    return f"{row['on_disk']:g} GB in {row['folder']}" if row["folder"] else "not on disk"


LISTING = Command("models", ABOUT, {"json": AS_JSON}, show)
DOWNLOAD = Command("models download", ABOUT_DOWNLOAD, {"model": MODEL, "yes": YES}, download, "model")
