"""`ltx demo`: a clip from the bundled model, to see that everything works."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.fields import every_option

if TYPE_CHECKING:
    from ltx_core.loader.checkpoint import Checkpoint

PROMPT = "a ball bounces"  # of a model that proposes none


def demo(given: dict[str, Any]) -> None:
    """Make the clip and its sheet, and say what to try next."""
    from ltx_core.loader.checkpoint import Checkpoint
    from ltx_pipelines.cli.generate import make
    from ltx_pipelines.running.hub import TINY
    from ltx_pipelines.running.model_files import find_model

    model = Checkpoint.open(find_model(TINY).files.checkpoint)
    asked = given.get("prompt") or model.metadata.get("demo_prompt", PROMPT)
    output = Path(given.get("output") or free_output())
    sheet = output.with_suffix(".png")
    make({**given, "model": TINY, "output": str(output), "contact_sheet": str(sheet), "prompt": asked})
    if not given.get("quiet"):
        print(f'Made {output} (video with sound) and {sheet} (frames over the spectrogram) of "{asked}".')
        print(f'Next, in words of your own: ltx generate "{propose_prompt(model)}" -o mine.mp4 (see ltx --help)')
        if entry_points(group="ltx.commands", name="serve"):
            print("Or on a page, with a queue and a gallery: ltx serve")


def free_output() -> Path:
    """The first of demo.mp4, demo-2.mp4 ... that would replace neither a clip nor a contact sheet."""
    names = (Path(f"demo{again}.mp4") for again in ("", *(f"-{n}" for n in range(2, 10000))))
    return next(name for name in names if not name.exists() and not name.with_suffix(".png").exists())


def propose_prompt(model: Checkpoint) -> str:
    """A prompt to try that a model gives as an example of what it knows."""
    from ltx_pipelines.planning.prompt_world import PromptWorld

    text = model.metadata.get("prompt_world")
    examples = PromptWorld.read(text, model.where).examples if text is not None else ()
    return examples[0] if examples else PROMPT


OPTIONS = {name: every_option()[name] for name in ("prompt", "seed", "output", "quiet")}
OPTIONS["output"] = replace(OPTIONS["output"], shown="demo.mp4, or demo-2.mp4 ...")
DEMO = Command("demo", "Make demo.mp4 and a contact sheet with the bundled model.", OPTIONS, demo, "prompt")
