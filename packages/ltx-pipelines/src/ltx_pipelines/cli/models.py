"""`ltx models`: the models we know, what of them is on disk, and fetching one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ltx_pipelines.running.hub import KnownModel

app = typer.Typer(add_completion=False, rich_markup_mode="rich", invoke_without_command=True)


@app.callback()
def models(ctx: typer.Context, as_json: bool = typer.Option(False, "--json", help="As JSON.")) -> None:
    """Known models, what is on disk, downloads.

    Any other model works too: `--model` takes a file, a folder, or the id of any hub repository.
    """
    if ctx.invoked_subcommand is None:
        rows = [row_of_tiny(), *(row_of(model) for model in known_models())]
        if as_json:
            typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        else:
            print_table(rows)


@app.command("download")
def download(
    model: str = typer.Argument(help="Hub id, such as Lightricks/LTX-2.3.", show_default=False),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask before fetching."),
) -> None:
    """Fetch a model, and the text encoder it needs; an interrupted download goes on."""
    from ltx_pipelines.running.hub import KNOWN_MODELS, download_model, folder_bytes, free_disk_bytes

    known = KNOWN_MODELS.get(model)
    if known is not None:
        repos = [known, *(KNOWN_MODELS[repo] for repo in known.needs)]
        for one in repos:
            typer.echo(f"{one.repo}: {one.summary}; about {one.gigabytes:g} GB; {one.license}, {one.page}")
        needed, free = sum(one.gigabytes for one in repos), free_disk_bytes() / 1e9
        if needed > free:
            typer.echo(f"only {free:.0f} GB are free where downloads go; set HF_HOME to another disk", err=True)
        if not yes and not typer.confirm("By going on you accept these licences. Fetch?", default=True):
            raise typer.Exit(1)
    folder = download_model(model)
    typer.echo(f"{folder_bytes(folder) / 1e9:.1f} GB in {folder}")
    typer.echo(f'next: ltx generate "a prompt" --model {model}')


def known_models() -> list[KnownModel]:
    from ltx_pipelines.running.hub import KNOWN_MODELS

    return list(KNOWN_MODELS.values())


def row_of(model: KnownModel) -> dict[str, Any]:
    """A known model as plain values."""
    from ltx_pipelines.running.hub import folder_bytes, on_disk

    folder = on_disk(model.repo)
    here = folder_bytes(folder) / 1e9 if folder else 0.0
    return {
        "model": model.repo,
        "what": model.summary,
        "gigabytes": model.gigabytes,
        "on_disk": round(here, 1),
        "folder": str(folder) if folder else None,
        "license": model.license,
        "page": model.page,
        "needs": list(model.needs),
    }


def row_of_tiny() -> dict[str, Any]:
    """The bundled model."""
    from ltx_core.errors import CheckpointError
    from ltx_pipelines.running.hub import NOT_BUNDLED, TINY, bundled_model

    missing = NOT_BUNDLED
    try:
        folder = bundled_model(TINY)
    except CheckpointError as error:
        folder, missing = None, str(error)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9 if folder else 0.0
    return {
        "model": TINY,
        "what": "small trained model of moving shapes with sound, bundled" if folder else missing,
        "gigabytes": round(size, 3),
        "on_disk": round(size, 3),
        "folder": str(folder) if folder else None,
        "license": "Apache-2.0",
        "page": "",
        "needs": [],
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """The models, one under the other, then how to get one."""
    for row in rows:
        here = f"{row['on_disk']:g} GB in {row['folder']}" if row["folder"] else "not on disk"
        typer.echo(f"{row['model']}: about {row['gigabytes']:g} GB, {here}")
        typer.echo(f"    {row['what']}")
        typer.echo(f"    {row['license']}{row['page'] and ', ' + row['page']}")
    typer.echo("ltx models download MODEL fetches one, with the text encoder it needs")
