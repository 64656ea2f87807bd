"""``ltx tiny``: train the bundled model anew, and examine a model of the toy world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The bundled model: its training and its eval.")


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for states, curves, samples and the result.")] = Path(
        "tiny-run"
    ),
    only: Annotated[list[str] | None, typer.Option("--only", help="Stages to run; may be given several times.")] = None,
    reuse: Annotated[
        list[str] | None,
        typer.Option("--reuse", help="Stages whose result is taken from the packaged weights: audio_vae, vocoder."),
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few steps of every stage, to try the recipe.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Make ltx-tiny from nothing, stage by stage. Stopped, it goes on where it was when the command is given again."""
    import torch

    from ltx_core.errors import ConfigError
    from ltx_tiny.recipe import Recipe, read_recipe
    from ltx_tiny.train import run

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device is {device!r}, expected auto, cpu or cuda")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    overlay = "smoke" if smoke else "gpu" if chosen == "cuda" else None
    if not run(Recipe(read_recipe(overlay), out, chosen), only or (), reuse or ()):
        raise typer.Exit(130)


@app.command("eval")
def evaluate(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A model of the toy world: `tiny`, a folder or a file.")
    ] = "tiny",
    count: Annotated[int, typer.Option("--count", "-n", help="Held-out prompts.")] = 64,
    path: Annotated[
        list[str] | None, typer.Option("--path", help="distilled, two-stages or guided; all unless given.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="torch or mlx; mlx on Apple silicon unless given.")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option("--quantization", help="Keep the transformer's weights in a smaller type.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the table, records and sheets.")] = Path("eval"),
) -> None:
    """Answer held-out prompts and measure the clips, beside the renderer's own clips through the same detectors."""
    from ltx_tiny.eval.run import PATHS, measure

    session = {"backend": backend, "quantization": quantization}
    typer.echo(measure(model, path or tuple(PATHS), count, out, **session))


@app.command()
def draw(
    out: Annotated[Path, typer.Option("--out", "-o", help="The clip to write.")] = Path("drawing.mp4"),
    seed: Annotated[int, typer.Option("--seed", help="Which scene.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a clip that is there.")] = False,
) -> None:
    """Draw a scene in white lines on black, and say how the bundled in-context adapter makes a clip of the drawing."""
    import shlex

    import numpy as np
    import torch

    from ltx_media.writer import write_video
    from ltx_pipelines.running.output import check_free
    from ltx_tiny.bundle import DEFAULT_REQUEST, OUTLINE_LORA, model_folder
    from ltx_tiny.world.captions import caption
    from ltx_tiny.world.drawing import draw_lines
    from ltx_tiny.world.scene import sample_scene

    check_free(out, overwrite)
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "held_out")
    frames, height, width, fps = (DEFAULT_REQUEST[name] for name in ("num_frames", "height", "width", "frame_rate"))
    write_video(out, torch.from_numpy(draw_lines(scene, frames, height, width, fps)).unbind(), fps)
    line = ["ltx", "ic-lora", "-p", caption(scene, rng, leave_out=0.0).text]
    line += ["--lora", str(model_folder() / OUTLINE_LORA), "--video-conditioning", str(out), "1", "-o", "clip.mp4"]
    typer.echo(f"wrote {out}; a clip of it:\n{shlex.join(line)}")


@app.command()
def preview(
    count: Annotated[int, typer.Option("--count", "-n", help="Scenes to fit it on.")] = 40,
) -> None:
    """Fit the bundled map from latents to pixels anew, which previews are drawn with; after the VAE was trained."""
    import torch

    from ltx_core.loader.safetensors_file import save_tensors
    from ltx_pipelines.running.model_files import find_model
    from ltx_pipelines.running.preview import KEY, beside
    from ltx_pipelines.utils.model_ledger import ModelLedger
    from ltx_tiny.preview import fit

    ledger = ModelLedger(find_model("tiny").files)
    weights = fit(ledger, count).weights.to(torch.float16)
    save_tensors(beside(ledger), {"map": weights}, {KEY: ledger.decoder_digest})
    typer.echo(f"wrote {beside(ledger)}")
