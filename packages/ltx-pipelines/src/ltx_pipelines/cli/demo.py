"""`ltx demo`: a clip from the bundled model, to see that everything works."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
PROMPT = "a red circle moves from left to right and sounds a low tone"


@app.command("demo")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("demo.mp4"),
    prompt: str = typer.Option("", "--prompt", "-p", help="Another prompt."),
    seed: int = typer.Option(10, "--seed", "-s", help="Seed of the noise."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> None:
    """Make demo.mp4 and a contact sheet with the bundled model."""
    from ltx_pipelines.cli.generate import make

    sheet = output.with_suffix(".png")
    given = {"model": "tiny", "output": str(output), "contact_sheet": str(sheet), "seed": seed, "snap": True}
    make({**given, "prompt": prompt or demo_prompt(), "quiet": quiet})
    if not quiet:
        typer.echo(
            f"Made {output} (video with sound) and {sheet} (frames over the spectrogram) with the bundled model."
        )
        typer.echo('Next: ltx generate "a blue square bounces" -o mine.mp4, ltx inspect demo.mp4, ltx models')


def demo_prompt() -> str:
    """What the bundled model proposes, else a prompt of our own."""
    from ltx_core.loader.checkpoint import Checkpoint
    from ltx_pipelines.utils.model_files import find_model

    return Checkpoint.open(find_model("tiny").files.checkpoint).metadata.get("demo_prompt", PROMPT)
