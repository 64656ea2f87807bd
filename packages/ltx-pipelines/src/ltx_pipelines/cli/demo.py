"""`ltx demo`: a clip from the bundled model, to see that everything works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ltx_core.loader.checkpoint import Checkpoint

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
PROMPT = "a ball bounces"  # of a model that proposes none


@app.command("demo")
def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.  [default: demo.mp4, or demo-2.mp4 ...]")
    ] = None,
    prompt: str = typer.Option("", "--prompt", "-p", help="Another prompt."),
    seed: int = typer.Option(10, "--seed", "-s", help="Seed of the noise."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> None:
    """Make demo.mp4 and a contact sheet with the bundled model."""
    from ltx_core.loader.checkpoint import Checkpoint
    from ltx_pipelines.cli.generate import make
    from ltx_pipelines.running.hub import TINY
    from ltx_pipelines.running.model_files import find_model

    model = Checkpoint.open(find_model(TINY).files.checkpoint)
    asked = prompt or model.metadata.get("demo_prompt", PROMPT)
    output = output or free_output()
    sheet = output.with_suffix(".png")
    given = {"model": TINY, "output": str(output), "contact_sheet": str(sheet), "seed": seed, "snap": True}
    make({**given, "prompt": asked, "quiet": quiet})
    if not quiet:
        typer.echo(f'Made {output} (video with sound) and {sheet} (frames over the spectrogram) of "{asked}".')
        typer.echo(f'Next, in words of your own: ltx generate "{proposed(model)}" -o mine.mp4 (see ltx --help)')


def free_output() -> Path:
    """The first of demo.mp4, demo-2.mp4 ... that would replace neither a clip nor a contact sheet."""
    names = (Path(f"demo{again}.mp4") for again in ("", *(f"-{n}" for n in range(2, 10000))))
    return next(name for name in names if not name.exists() and not name.with_suffix(".png").exists())


def proposed(model: Checkpoint) -> str:
    """A prompt to try that a model gives as an example of what it knows."""
    from ltx_pipelines.planning.prompt_world import PromptWorld

    text = model.metadata.get("prompt_world")
    examples = PromptWorld.read(text, model.where).examples if text is not None else ()
    return examples[0] if examples else PROMPT
