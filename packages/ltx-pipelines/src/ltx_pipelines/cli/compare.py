"""`ltx compare`: how far two clips are apart, and what differs in their recipes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ltx_pipelines.cli.command import AS_JSON, Command
from ltx_pipelines.cli.fields import every_option
from ltx_pipelines.planning.plan import Window
from ltx_pipelines.planning.schema import File, Option, UsageError

ABOUT = """Compare two clips: picture, sound, and the recipes inside them.

Distances are PSNR in dB (above 40 hardly anybody sees a difference), over the frames and samples that both have. The
sheet shows frames of both over what differs, four times as strong.

With --coherence each clip, or one alone, is also measured by itself: the frame that differs most from the one before,
relative to the frames around it and along the motion; the seams of windows, where its recipe has some; how its colours
drift; where its sound jumps.
"""
SHOWN, STRONGER = 6, 4  # frames on a sheet; how much a difference is amplified there
FILES = {name: Option(name, File, "", f"The {name} clip, picture or sound.") for name in ("first", "second")}
COHERENCE = Option("coherence", bool, False, "Also measure how well each clip hangs together; one alone will do.")
OUTPUT = Option("output", str | None, None, "Also write a sheet to this PNG.", ("--output", "-o"), metavar="FILE")


def compare(given: dict[str, Any]) -> None:
    """Print what two files have in common."""
    from ltx_media.containers import read_recipe
    from ltx_media.files import check_exists
    from ltx_pipelines.running.output import check_free, check_name

    alone = bool(given.get("coherence"))
    if "first" not in given or ("second" not in given and not alone):
        raise UsageError("two files are compared, such as `ltx compare a.mp4 b.mp4`; one alone with --coherence")
    paths = [Path(given[name]) for name in FILES if name in given]
    for path in paths:
        check_exists(path, "compare")
    sheet = Path(given["output"]) if "output" in given else None
    if sheet is not None:
        check_name(sheet, (".png",))
        check_free(sheet, bool(given.get("overwrite")))
    facts: dict[str, Any] = {}
    if len(paths) == 2:
        first, second = paths
        facts = {"picture": picture(first, second, sheet), "sound": sound(first, second)}
        recipes = [read_recipe(path) or {} for path in paths]
        facts["recipe"] = {name: list(values) for name, values in differences(*map(flat, recipes))}
    if alone:
        facts["coherence"] = {path.name: coherent(path) for path in paths}
    print(json.dumps(facts, ensure_ascii=False, indent=2) if given.get("json") else "\n".join(lines(facts)))


def picture(first: Path, second: Path, sheet: Path | None = None) -> dict[str, Any] | None:
    """Sizes, and how far apart the frames are that both have; None where one of them is a sound."""
    from ltx_core.errors import MediaError
    from ltx_media.contact_sheet import write_rows
    from ltx_media.metrics import psnr
    from ltx_media.video import probe_video, read_frames

    if not (has_picture(first) and has_picture(second)):
        if sheet is not None:
            raise MediaError(f"{sheet}: a sheet needs two pictures, and {first} or {second} is a sound")
        return None
    infos = [probe_video(path) for path in (first, second)]
    facts: dict[str, Any] = {"size": [f"{one.width} x {one.height}" for one in infos]}
    facts |= {"frames": [one.frames for one in infos], "fps": [float(one.fps) for one in infos]}
    if facts["size"][0] != facts["size"][1]:
        return facts
    picks = {round(i * (min(facts["frames"]) - 1) / (SHOWN - 1)) for i in range(SHOWN)}
    shown: list[tuple[Any, Any]] = []
    decibels = []
    for index, (one, other) in enumerate(zip(read_frames(first), read_frames(second), strict=False)):
        decibels.append(psnr(one, other, 255))
        shown += [(one, other)] if index in picks else []
    errors = [10 ** (-level / 10) for level in decibels]
    mean, worst = sum(errors) / len(errors), min(range(len(decibels)), key=decibels.__getitem__)
    facts |= {"psnr": finite(-10 * math.log10(mean) if mean else math.inf), "worst": finite(decibels[worst])}
    facts["worst_frame"] = worst
    if sheet is not None:
        apart = [((one.float() - other.float()).abs() * STRONGER).clamp(0, 255).byte() for one, other in shown]
        named = (first.name, [one for one, _ in shown]), (second.name, [other for _, other in shown])
        write_rows(sheet, [*named, (f"difference x {STRONGER}", apart)])
    return facts


def sound(first: Path, second: Path) -> dict[str, Any] | None:
    """Rates, and how far apart the samples are that both have; None where one of them is silent."""
    from ltx_media.audio import read_audio
    from ltx_media.images import is_image
    from ltx_media.metrics import psnr

    tracks = [None if is_image(path) else read_audio(path) for path in (first, second)]
    one, other = tracks
    if one is None or other is None:
        return None
    facts: dict[str, Any] = {"rate": [one.sampling_rate, other.sampling_rate]}
    facts |= {"channels": [track.waveform.shape[1] for track in (one, other)]}
    if facts["rate"][0] == facts["rate"][1] and facts["channels"][0] == facts["channels"][1]:
        shared = min(one.waveform.shape[2], other.waveform.shape[2])
        facts["psnr"] = finite(psnr(one.waveform[..., :shared], other.waveform[..., :shared]))
    return facts


def coherent(path: Path) -> dict[str, Any] | None:
    """Coherence of a clip; None for a sound or a picture."""
    from dataclasses import asdict

    from ltx_media.audio import read_audio
    from ltx_media.containers import read_recipe
    from ltx_media.images import is_image
    from ltx_media.metrics import coherence
    from ltx_media.video import probe_video, read_frames

    if is_image(path) or not has_picture(path):
        return None
    windows = (read_recipe(path) or {}).get("plan", {}).get("stages", [{}])[-1].get("windows", ())
    seams = [Window(**window).first_new for window in windows if window.get("shared")]
    info = probe_video(path)
    return asdict(coherence(lambda: read_frames(path), float(info.fps), read_audio(path), seams))


def has_picture(path: Path) -> bool:
    """Whether a file is a picture or holds a video."""
    from ltx_media.containers import open_file
    from ltx_media.images import is_image

    if is_image(path):
        return True
    with open_file(path, "compare") as source:
        return bool(source.streams.video)


def finite(level: float) -> float | str:
    """Decibels; "equal" for an infinite distance, which JSON cannot hold."""
    return "equal" if math.isinf(level) else round(level, 2)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The values inside a recipe by their places: ``plan.stages.0.sigmas``."""
    if isinstance(value, Mapping):
        return {key: one for name_, part in value.items() for key, one in flat(part, f"{name}.{name_}").items()}
    if isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
        return flat(dict(enumerate(value)), name)
    return {name.removeprefix("."): value}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The places where two recipes differ, with both values."""
    for name in dict.fromkeys((*first, *second)):
        if (one := first.get(name)) != (other := second.get(name)):
            yield name, (one, other)


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The facts for people."""
    if "recipe" in facts:
        yield from distances(facts)
    for name, found in facts.get("coherence", {}).items():
        yield from (f"{name}: {line}" for line in (coherence_lines(found) if found else ["no clip"]))


def coherence_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines on the coherence of a clip, for people."""
    worst, seams = found["worst"], found["seams"]
    yield f"frame {worst['frame']} changes most, {worst['change']:.2f} times as much as those around"
    if seams:
        seam = max(seams, key=lambda one: one["change"])
        yield (
            f"seams: frame {seam['frame']} the worst of {len(seams)}, {seam['change']:.2f} times; along the motion "
            f"{seam['warp_change']:.2f} times; {seam['above']:.0%} of all frames change more"
        )
    drifts = ", ".join(f"{name} {found[name]:+.4f}" for name in ("luma", "chroma", "saturation"))
    yield f"drift a second: {drifts}"
    if found["sound_jump"] is not None:
        yield f"sound jumps most at {found['sound_at']:.2f} s, {found['sound_jump']:.1f} times the steps around"


def distances(facts: Mapping[str, Any]) -> Iterator[str]:
    """Lines on the distances between two files, for people."""
    for part in ("picture", "sound"):
        if (found := facts[part]) is None:
            yield f"{part}: not in both"
            continue
        unequal = [name for name in ("size", "frames", "fps", "rate", "channels") if name in found]
        unequal = [f"{name} {found[name][0]} and {found[name][1]}" for name in unequal if len(set(found[name])) > 1]
        distance = found.get("psnr")
        words = [distance if isinstance(distance, str) else f"{distance:g} dB"] if distance is not None else []
        if isinstance(distance, float) and "worst" in found:
            words.append(f"frame {found['worst_frame']} the worst with {found['worst']:g} dB")
        yield f"{part}: {', '.join([*words, *unequal])}"
    yield "recipes: " + (f"{len(facts['recipe'])} differences" if facts["recipe"] else "no difference")
    for name, (one, other) in facts["recipe"].items():
        yield f"  {name}: {short(one)} -> {short(other)}"


def short(value: Any) -> str:
    """A value in at most a few words."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


OPTIONS = {**FILES, "output": OUTPUT, "coherence": COHERENCE, "overwrite": every_option()["overwrite"], "json": AS_JSON}
COMPARE = Command("compare", ABOUT, OPTIONS, compare, "first second")
