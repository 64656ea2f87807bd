"""`ltx generate`, the sub-commands of the pipelines and `ltx demo`: from a line to a clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.config import with_settings
from ltx_pipelines.cli.fields import COMMON, DEVICES, PIPELINE, every_option, options_for, some_options
from ltx_pipelines.pipeline import Pipeline
from ltx_pipelines.planning.schema import UsageError, options_of
from ltx_pipelines.request import AutoDuration, Output
from ltx_pipelines.running.output import SOUND, VIDEO, check_beside, check_free, check_output, free_output, free_path

if TYPE_CHECKING:
    from ltx_core.parallel.mesh import Devices
    from ltx_pipelines.cli.job import Job
    from ltx_pipelines.cli.progress import Reporter
    from ltx_pipelines.cli.session import Session
    from ltx_pipelines.planning.plan import Plan
    from ltx_pipelines.utils.model_ledger import ModelLedger

ENHANCING = ("enhance_prompt", "prompt_enhancer")
NOT_KEPT = {"pipeline", "backend", "policy", "offload", "device", "embedding_cache", *options_of(Output)}  # in a recipe
DEMO_PROMPT = "a ball bounces"  # of a model that proposes none
OTHER_MODELS = "for anything else name a larger model, such as --model Lightricks/LTX-2.3 (`ltx models` lists them)"
ABOUT = """Make a clip; the pipeline follows from what is given.

A source clip with a span is retaken, with seconds to add extended, alone given sound. A reference clip means IC-LoRA,
a sound audio-to-video, several pictures keyframe interpolation, a sound as output text-to-audio. Otherwise text (and a
picture) become video with sound: distilled, in two stages, or in one, whichever the model has the parts for.
"""


def make(given: dict[str, Any], kind: type[Pipeline] | None = None) -> None:
    """Run one line from options to file."""
    from ltx_pipelines.cli.progress import Reporter, style_of
    from ltx_pipelines.cli.session import open_session

    given = with_settings(given)
    devices = join_devices(given)
    reporter = Reporter("quiet" if devices is not None and devices.helping else style_of(given))
    if (count := given.pop("count", 1)) > 1:
        if devices is not None:
            raise UsageError("--count makes several clips, --devices one; leave one of them out")
        make_several(given, kind, count, reporter)
        return
    session = open_session(given, kind)
    session.ledger.devices = devices
    plan = make_plan(session, given, reporter)
    from ltx_pipelines.cli.job import execute  # torch and the networks, once the plan is known to be good

    execute(job_of(session, plan, given), reporter)


def make_several(given: dict[str, Any], kind: type[Pipeline] | None, count: int, reporter: Reporter) -> None:
    """Run one line with seed after seed, all planned before the first, and put frames of all on one sheet."""
    from ltx_pipelines.cli.job import Job, execute, write_shared_sheet
    from ltx_pipelines.cli.progress import Reporter
    from ltx_pipelines.cli.session import open_session
    from ltx_pipelines.utils.model_ledger import ModelLedger

    sheet, ledgers, jobs = given.pop("contact_sheet", None), dict[str, ModelLedger](), list[Job]()
    session = open_session(given, kind, share=ledgers)
    named = given.pop("output", None)
    plan = make_plan(session, given, reporter)
    path = Path(named or free_output(plan.prompt, plan.seed, session.pipeline.suffix))
    # The seed that is drawn, and the prompt that is written out, are those of all.
    given = {name: value for name, value in given.items() if name not in ENHANCING} | {"prompt": plan.prompt}
    for seed in range(plan.seed, plan.seed + count):
        one = {**given, "seed": seed, "output": str(path.with_name(f"{path.stem}-{seed}{path.suffix}"))}
        session = open_session(one, kind, share=ledgers)
        jobs.append(job_of(session, make_plan(session, one, Reporter("quiet")), one))
    sheet = Path(sheet) if sheet else path.with_name(f"{path.stem}-sheet.png")
    check_free(sheet, bool(given.get("overwrite")))
    for number, job in enumerate(jobs, 1):
        reporter.note(f"[{number} of {count}] {job.output}", clip=number, clips=count)
        execute(job, Reporter(reporter.style))
    if jobs[0].output.suffix.lower() in VIDEO:
        write_shared_sheet(sheet, jobs)
        reporter.note(f"wrote {sheet}: all of them", sheet=str(sheet))


def join_devices(given: dict[str, Any]) -> Devices | None:
    """The devices that share the clip; None where one makes it."""
    from ltx_core.parallel.launch import world_size

    size = world_size()
    count, mesh = take_devices(given, size)
    if count != size:
        raise UsageError(f"--devices is {count} in a run of {size} processes, expected it left out")
    if size == 1:
        return None
    from ltx_core.parallel.mesh import Devices

    device = given.get("device")
    return Devices.begin(mesh, on_cards=None if device is None else device.startswith("cuda"))


def take_devices(given: dict[str, Any], usual: int = 1) -> tuple[int, str | None]:
    """The number of devices and their mesh, taken out of a line. Raises `UsageError` for a mesh of one."""
    count, mesh = given.pop("devices", usual), given.pop("mesh", None)
    if count == 1 and mesh is not None:
        raise UsageError("--mesh has no effect on one device, expected --devices too")
    return count, mesh


def job_of(session: Session, plan: Plan, given: Mapping[str, Any]) -> Job:
    """The job that a line, or a line of a batch, wants done with its plan."""
    from ltx_pipelines.cli.job import Job

    output = given.get("output") or free_output(plan.prompt, plan.seed, session.pipeline.suffix)
    return Job(plan, session.ledger, Path(output), output_of(given), kept_request(given, session, plan))


def output_of(given: Mapping[str, Any]) -> Output:
    """What a line asks of its output."""
    return Output(**{name: given[name] for name in options_of(Output) if name in given})


def make_plan(session: Session, given: Mapping[str, Any], reporter: Reporter) -> Plan:
    """The validated plan of a session, with a line on what was chosen and what was moved."""
    output = Path(given.get("output") or f"clip{session.pipeline.suffix}")
    hdr = "hdr" in session.pipeline.usual or "hdr" in given
    if "output" in given:
        check_output(output, session.pipeline.suffix not in SOUND, bool(given.get("overwrite")), hdr)
    check_beside(output, Path(given["contact_sheet"]) if "contact_sheet" in given else None, given.get("crf"), hdr)
    request = session.request
    if given.get("enhance_prompt"):
        request = enhance_request(session, given, reporter)
    plan = session.pipeline.plan(**request)
    if given.get("preview"):
        reporter.show_previews(session.ledger)
    shape = plan.shape
    where = f"on {session.ledger.device} in {plan.dtype}"
    chosen = f"{session.pipeline.command()} with {session.model}"
    reporter.note(f"{chosen} {where}, seed {plan.seed}", dtype=plan.dtype)
    for note in plan.notes:
        reporter.note(note)
    if (world := session.ledger.prompt_world) is not None and not world.holds(plan.prompt):
        reporter.note(f"{world.says}; {OTHER_MODELS}")
    wanted = {name: session.request.get(name) for name in ("height", "width")} if plan.has_video else {}
    wanted["num_frames"] = session.request.get("num_frames")
    times = session.request.get("upscale") or 1
    made = {"height": shape.height // times, "width": shape.width // times, "num_frames": plan.stages[0].shown.frames}
    moved = [f"{name} {value} -> {made[name]}" for name, value in wanted.items() if value not in (None, made[name])]
    if moved and isinstance(wanted["num_frames"], int | None):
        reporter.note(f"snapped to what the model can make: {', '.join(moved)} (--no-snap refuses instead)")
    return plan


def enhance_request(session: Session, given: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """The request with its prompt written out by a language model, which sees the first picture if there is one.

    What else is wrong with the request is said before that model is loaded.
    """
    request = session.pipeline.read(None, None, session.request)
    length = {name for name in ("auto_duration", "num_frames") if isinstance(request.get(name), AutoDuration)}
    session.pipeline.plan(**{name: value for name, value in request.items() if name not in length})
    image = next(iter(request.get("images", ())), None)
    folder, seed = given.get("prompt_enhancer"), request.get("seed", 10)
    prompt = enhance_prompt(request.get("prompt", ""), session.ledger, image and image.path, folder, seed)
    reporter.note(f"prompt: {prompt}", prompt=prompt)
    return {**request, "prompt": prompt}


def enhance_prompt(prompt: str, ledger: ModelLedger, image: str | None, folder: str | None, seed: int) -> str:
    """``prompt`` rewritten by the Gemma in ``folder``, by default the ledger's own text encoder.

    The chat model is loaded for this call alone, before any other large network. The same seed gives the same text.
    Raises `CheckpointError` for encoders that cannot chat: those need ``folder``.
    """
    from ltx_core.errors import CheckpointError
    from ltx_core.text_encoders.gemma.enhance import load_enhancer
    from ltx_media.images import decode_image

    if (path := folder or ledger.files.text_encoder) is None:
        raise CheckpointError("no language model to enhance the prompt with, expected --prompt-enhancer-gemma-root")
    if ledger.policy != "resident":
        ledger.release()
    enhancer = load_enhancer(path, ledger.precision, ledger.device, images=image is not None)
    if image is None:
        return enhancer.enhance_t2v(prompt, seed=seed)
    return enhancer.enhance_i2v(prompt, decode_image(image), seed=seed)


def kept_request(given: Mapping[str, Any], session: Session, plan: Plan) -> dict[str, Any]:
    """The request, for the recipe."""
    return session.pipeline.kept_request({name: given[name] for name in given if name not in NOT_KEPT}, plan)


def pipeline_command(kind: type[Pipeline]) -> Command:
    """The sub-command of one pipeline."""
    text = f"{kind.summary()}\n\n{(kind.__doc__ or '').strip()}"
    options, shown = {**options_for(kind), **DEVICES}, COMMON | kind.own_fields().keys()
    run = partial(make, kind=kind)
    return Command(kind.command(), text, options, run, kind.alone, every_option, shown, on_devices=True)


ALL = {**every_option(), **DEVICES, "pipeline": PIPELINE}
GENERATE = Command("generate", ABOUT, ALL, make, "prompt", common=COMMON, on_devices=True)


def demo(given: dict[str, Any]) -> None:
    """Make the clip and its sheet, and say what to try next."""
    from ltx_pipelines.running.hub import TINY
    from ltx_pipelines.running.model_facts import ModelFacts
    from ltx_pipelines.running.model_files import find_model

    facts = ModelFacts(find_model(TINY).files)
    examples = facts.prompt_world.examples if facts.prompt_world is not None else ()
    example = next(iter(examples), DEMO_PROMPT)
    asked = given.get("prompt") or facts.checkpoint.metadata.get("demo_prompt", DEMO_PROMPT)
    output = Path(given.get("output") or free_path(Path("demo.mp4"), ".png"))
    sheet = output.with_suffix(".png")
    make({**given, "model": TINY, "output": str(output), "contact_sheet": str(sheet), "prompt": asked})
    if not given.get("quiet"):
        print(f'Made {output} (video with sound) and {sheet} (frames over the spectrogram) of "{asked}".')
        print(f'Next, in words of your own: ltx generate "{example}" -o mine.mp4 (see ltx --help)')
        if entry_points(group="ltx.commands", name="serve"):
            print("Or on a page, with a queue and a gallery: ltx serve")


DEMO_OPTIONS = some_options("prompt", "seed", "output", "quiet")
DEMO_OPTIONS["output"] = replace(DEMO_OPTIONS["output"], shown="demo.mp4, or demo-2.mp4 ...")
DEMO = Command("demo", "Make demo.mp4 and a contact sheet with the bundled model.", DEMO_OPTIONS, demo, "prompt")
