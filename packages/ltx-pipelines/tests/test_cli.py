"""The command: its options, how it chooses, what it says, how it ends, and what it leaves behind."""

from __future__ import annotations

import errno
import inspect
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ltx_core.errors import ConfigError, MediaError
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.text_encoders.gemma import enhance
from ltx_pipelines.cli import job
from ltx_pipelines.cli.app import OWN, run
from ltx_pipelines.cli.batch import parse_seeds
from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.errors import describe
from ltx_pipelines.cli.fields import every_option, options_for
from ltx_pipelines.cli.session import Known, choose, open_session
from ltx_pipelines.pipeline import Pipeline, find_pipeline, pipelines
from ltx_pipelines.planning.plan import ImageCondition, Lora
from ltx_pipelines.planning.schema import options_of
from ltx_pipelines.request import AutoDuration, Networks, Output
from ltx_pipelines.running import generation
from ltx_pipelines.utils.media_io import probe_video, read_audio, read_frames, read_recipe

FULL = Known(distilled=False, has_upsampler=True, has_distilled_lora=True)


def line(text: str, *more: str) -> int:
    return run([*text.split(), *more])


def frames_of(path: Path) -> torch.Tensor:
    return torch.stack(list(read_frames(path)))


def sound_of(path: Path) -> torch.Tensor:
    sound = read_audio(path)
    assert sound is not None
    return sound.waveform


def test_every_help_answers_without_torch() -> None:
    program = (
        "import sys\n"
        "from ltx_pipelines.cli.app import OWN, run\n"
        "from ltx_pipelines.pipeline import pipelines\n"
        "for command in ([], *([name] for name in (*OWN, *pipelines()))):\n"
        "    assert run([*command, '--help']) == 0, command\n"
        "heavy = {'torch', 'transformers', 'av', 'pydantic', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in (*OWN, *pipelines()):
        assert f"ltx {name} " in done.stdout


def test_commands_of_other_packages_are_listed_without_importing_them() -> None:
    program = (
        "import sys\n"
        "from ltx_pipelines.cli.app import run\n"
        "run(['--help'])\n"
        "assert not {'ltx_trainer', 'ltx_tiny'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dataset" in done.stdout and "train" in done.stdout and "tiny" in done.stdout


@pytest.mark.parametrize("kind", pipelines().values(), ids=lambda kind: kind.__name__)
def test_a_pipeline_offers_exactly_the_options_that_have_an_effect(kind: type[Pipeline]) -> None:
    shared = {**options_of(Networks), **options_of(Output)}
    assert options_for(kind).keys() - shared.keys() == kind.fields().keys()
    assert kind.accepts <= kind.fields().keys()
    assert kind.uses <= shared.keys() <= every_option().keys()
    signature = inspect.signature(kind.__call__).parameters
    assert kind.fields().keys() <= signature.keys()
    for name, option in kind.fields().items():
        assert f"    {name}: " in str(kind.__call__.__doc__) and option.help in str(kind.plan.__doc__)


@pytest.mark.parametrize("asked", [True, False])
def test_compiling_is_left_to_the_line(asked: bool) -> None:
    given = {"prompt": "x"} | ({"compile_blocks": True} if asked else {})
    block = open_session(given, find_pipeline("one-stage")).ledger.transformer().transformer_blocks[0]
    assert ("compute" in vars(block)) is asked


def test_spellings_of_the_published_commands_are_known() -> None:
    published = (
        "--checkpoint-path --distilled-checkpoint-path --gemma-root --transformer-path --text-encoder-path "
        "--video-vae-path --audio-vae-path --duration-head-path --prompt --output-path --seed --num-inference-steps "
        "--lora --offload --max-batch-size --quantization --height --width --num-frames --auto-duration --frame-rate "
        "--image --num-generated-keyframes --negative-prompt --video-cfg-guidance-scale --video-stg-guidance-scale "
        "--video-stg-blocks --video-rescale-scale --a2v-guidance-scale --video-skip-step --audio-cfg-guidance-scale "
        "--audio-stg-guidance-scale --audio-stg-blocks --audio-rescale-scale --v2a-guidance-scale --audio-skip-step "
        "--distilled-lora --spatial-upsampler-path --distilled-lora-strength-stage-1 "
        "--distilled-lora-strength-stage-2 --audio-path --audio-start-time --audio-max-duration "
        "--video-conditioning --conditioning-attention-mask --skip-stage-2 --video-path --start-time --end-time "
        "--reference-video --reference-strength --detailing-lora --temporal-upsampler-path --temporal-upsample-rounds "
        "-p -o -s -H -W -f -i -m -q"
    )
    assert set(published.split()) <= {flag for option in every_option().values() for flag in option.spellings}


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("--image a.png 0 1 -p x", {"images": (ImageCondition("a.png"),), "prompt": "x"}),
        ("-i a.png -i b.png 8 0.5 0", {"images": (ImageCondition("a.png"), ImageCondition("b.png", 8, 0.5, 0))}),
        ("--lora a -0.5 x", {"loras": (Lora("a", -0.5),), "prompt": "x"}),
        ("--video-stg-blocks -p x", {"video_stg_blocks": (), "prompt": "x"}),
        ("--video_stg_blocks 1 2 3", {"video_stg_blocks": (1, 2, 3)}),
        ("--auto-duration 1 5 --sigmas 1 0.5 0", {"auto_duration": AutoDuration(1, 5), "sigmas": (1.0, 0.5, 0.0)}),
        ("--num-generated-keyframes 2", {"generated_keyframes": 2}),
        ("--num-generated-keyframes 2 5", {"generated_keyframes": (2, 5)}),
        ("--keep-video --snap --no-snap", {"regenerate_video": False, "snap": False}),
        ("-s-1 -qH64 --fps=25", {"seed": -1, "quiet": True, "height": 64, "frame_rate": 25.0}),
        ("--cfg 4 --guidance-scale 5", {"video_cfg_scale": 5.0}),
        ("-p x --", {"prompt": "x"}),
        ("-- -x", {"prompt": "-x"}),
    ],
)
def test_what_a_line_means(given: str, values: dict[str, Any]) -> None:
    command = Command("generate", "", every_option(), dict, "prompt")
    assert command.parse(given.split()) == values


@pytest.mark.parametrize(
    ("given", "known", "command"),
    [
        ({}, FULL, "ti2vid-two-stages"),
        ({}, Known(False, False, False), "ti2vid-one-stage"),
        ({}, Known(True, True, False), "distilled"),
        ({"images": ["a"]}, FULL, "ti2vid-two-stages"),
        ({"images": ["a", "b"]}, FULL, "keyframe-interpolation"),
        ({"images": ["a", "b"]}, Known(True, True, False), "distilled"),
        ({"audio_path": "a.wav"}, FULL, "a2vid-two-stage"),
        ({"video_path": "a.mp4"}, FULL, "v2a-one-stage"),
        ({"video_path": "a.mp4", "start_time": 1.0}, FULL, "retake"),
        ({"video_path": "a.mp4", "extend_seconds": 1.0}, FULL, "extend"),
        ({"video_conditioning": ["a.mp4"]}, FULL, "ic-lora"),
        ({"output": "a.WAV"}, FULL, "t2a-one-stage"),
        ({"distilled_strength_1": 0.2}, FULL, "ti2vid-two-stages-hq"),
        ({"reference_video_path": "a.mp4"}, FULL, "dubit"),
        ({"temporal_upsample_rounds": 1}, FULL, "dfr-pipeline"),
        ({}, Known(False, True, True, reference_lora=True), "ic-lora"),
    ],
)
def test_generate_chooses(given: dict[str, Any], known: Known, command: str) -> None:
    assert choose(given, known) == command


def test_some_guidance_given_leaves_the_rest_at_the_models_values(here: Path) -> None:
    def guidance(name: str, **given: Any) -> list[Any]:
        session = open_session({"prompt": "x", **given}, find_pipeline(name))
        streams = session.pipeline.plan(**session.request).stages[0].streams
        return [streams[stream].guidance for stream in ("video", "audio")]

    video, audio = guidance("one-stage", video_cfg_scale=5.0, audio_stg_blocks=(0,))
    assert (video.cfg_scale, video.stg_scale, video.stg_blocks) == (5.0, 1.0, (29,))
    assert (audio.cfg_scale, audio.stg_blocks) == (7.0, (0,))
    video, _ = guidance("hq", video_cfg_scale=5.0)
    assert (video.cfg_scale, video.stg_scale, video.rescale_scale) == (5.0, 0.0, 0.45)


def test_plan_as_json_names_stages_and_costs_and_reads_no_weights(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SafetensorsFile, "read", lambda file, name: pytest.fail(f"{name} was read"))
    assert line("plan bell --json -i photo.png --pipeline one-stage") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["plan"]["stages"][0]["streams"]["video"]["conditions"][0]["kind"] == "image"
    phases = {phase["name"]: phase for phase in shown["cost"]["phases"]}
    assert list(phases) == ["text", "conditions", "stage 1", "sound", "video"]
    assert phases["stage 1"]["flops"] > 0 and phases["video"]["activation_bytes"] > 0
    assert shown["cost"]["peak_bytes"] >= max(phase["peak_bytes"] for phase in phases.values())


def test_events_for_programs(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert line("distilled -p bell -o bell.mp4 --json") == 0
    shown = capfd.readouterr()
    events = [json.loads(text) for text in shown.out.splitlines()]
    steps = [(event["stage"], event["step"], event["total"]) for event in events if event["event"] == "step"]
    assert steps == [(1, step, 8) for step in range(1, 9)] + [(2, step, 3) for step in range(1, 4)]
    assert events[-1]["event"] == "done" and events[-1]["path"] == "bell.mp4" and events[-1]["peak_bytes"] > 0
    assert events[-2] == {"event": "frames", "done": 9, "total": 9}
    assert shown.err == ""


def test_errors_for_programs(here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MediaError("bell.mp4: cannot write video: No space left on device")

    monkeypatch.setattr(generation, "write_video", full)
    assert line("distilled -p bell -o bell.mp4 --json") == 1
    shown = capfd.readouterr()
    assert json.loads(shown.out.splitlines()[-1]) == {
        "event": "error",
        "message": "bell.mp4: cannot write video: No space left on device",
    }
    assert shown.err == "ltx: bell.mp4: cannot write video: No space left on device\n"
    assert not (here / "bell.mp4").exists()


def test_snapping_is_said_and_the_recipe_repeats_it(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert line("distilled -p bell -H 100 -W 130 -f 12 -o bell.mp4") == 0
    said = capfd.readouterr().err
    assert "height 100 -> 128, width 130 -> 128, num_frames 12 -> 9" in said
    assert probe_video("bell.mp4").frames == 9
    assert line("rerun bell.mp4 -o again.mp4 -q") == 0
    assert torch.equal(frames_of(here / "bell.mp4"), frames_of(here / "again.mp4"))


def test_rerun_of_two_stages_is_the_same_and_changes_are_kept(here: Path) -> None:
    assert line("two-stages -p bell -i photo.png 0 0.9 --audio-cfg-guidance-scale 2 -o bell.mp4 -q") == 0
    assert line("rerun bell.mp4 -q") == 0
    first, again = here / "bell.mp4", here / "bell-again.mp4"
    assert torch.equal(frames_of(first), frames_of(again)) and torch.equal(sound_of(first), sound_of(again))
    assert read_recipe(first) == read_recipe(again)
    assert line("rerun bell.mp4 --seed 11 --steps 3 -o other.mp4 -q") == 0
    recipe = read_recipe(here / "other.mp4")
    assert recipe is not None
    stage = recipe["plan"]["stages"][0]
    assert recipe["plan"]["seed"] == 11 and len(stage["sigmas"]) == 4
    assert stage["streams"]["audio"]["guidance"]["cfg_scale"] == 2
    assert recipe["request"]["options"]["seed"] == 11
    assert not torch.equal(frames_of(first), frames_of(here / "other.mp4"))


def test_finish_equals_the_uninterrupted_run(here: Path) -> None:
    assert line("distilled -p bell -o whole.mp4 -q") == 0
    assert line("distilled -p bell -o draft.mp4 --first-stage -q") == 0
    assert line("finish draft.mp4 -o final.mp4 -q") == 0
    assert torch.equal(frames_of(here / "whole.mp4"), frames_of(here / "final.mp4"))
    assert torch.equal(sound_of(here / "whole.mp4"), sound_of(here / "final.mp4"))
    assert line("finish whole.mp4") == 1


def test_enhanced_prompts_are_what_the_recipe_holds(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Enhancer:
        def enhance_i2v(self, prompt: str, image: torch.Tensor, seed: int) -> str:
            asked.extend((prompt, tuple(image.shape), seed))
            return "a bell, in full"

    def load(path: str, *_: Any, images: bool) -> Enhancer:
        assert images and Path(path).name == "chat"
        return Enhancer()

    (here / "chat").mkdir()
    monkeypatch.setattr(enhance, "load_enhancer", load)
    options = "-i photo.png -s 5 --enhance-prompt --prompt-enhancer-gemma-root chat -o bell.mp4 -q"
    assert line(f"distilled -p bell {options}") == 0
    assert asked == ["bell", (64, 64, 3), 5]
    recipe = read_recipe(here / "bell.mp4")
    assert recipe is not None and recipe["plan"]["prompt"] == "a bell, in full"
    assert recipe["request"]["options"]["prompt"] == "a bell, in full"
    assert line("rerun bell.mp4 --seed 6 -q") == 0 and len(asked) == 3
    assert line("distilled -p bell --prompt-enhancer-gemma-root chat -q") == 2


def test_batch_goes_on_where_it_stopped(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert line("batch requests.jsonl --seeds 1,2") == 0
    clips = sorted(path.name for path in (here / "clips").iterdir())
    assert clips == ["0002-1.mp4", "0002-2.mp4", "bell-1.mp4", "bell-2.mp4"]
    times = {path: path.stat().st_mtime_ns for path in (here / "clips").iterdir()}
    (here / "clips" / "bell-2.mp4").unlink()
    capfd.readouterr()
    assert line("batch requests.jsonl --seeds 1,2") == 0
    assert capfd.readouterr().err.count("already there") == 3
    kept = {path: path.stat().st_mtime_ns for path in (here / "clips").iterdir() if path.name != "bell-2.mp4"}
    assert kept.items() <= times.items() and (here / "clips" / "bell-2.mp4").exists()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('{"prompt": "x", "image": [3]}', "line 2: images is [3], expected a file name"),
        ('{"promt": "x"}', "line 2: promt is no option; nearest valid: prompt"),
        ('{"prompt": "x", "height": "tall"}', "line 2: height is 'tall', expected an integer"),
        ('["x"]', "line 2: it is list, expected an object of options"),
        ('{"prompt": "x", "pipeline": "distiled"}', "nearest valid: distilled"),
        ('{"prompt": "x", "output": "bell.mp4"}', "is made twice"),
        ("{", "line 2: it is no JSON"),
    ],
)
def test_a_bad_line_ends_a_batch_before_anything_is_made(
    entry: str, said: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "bad.jsonl").write_text('{"prompt": "x", "output": "bell.mp4"}\n' + entry)
    assert line("batch bad.jsonl") == 1
    assert said in capfd.readouterr().err
    assert not (here / "clips").exists()


def test_seed_sweeps() -> None:
    assert list(parse_seeds("1-3, 7", "x")) == [1, 2, 3, 7]
    assert list(parse_seeds("", "x")) == []
    with pytest.raises(ConfigError, match="seeds is 'many'"):
        parse_seeds("many", "x")


def test_a_drawn_seed_is_said_and_kept(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert line("distilled -p bell -s -1 -o bell.mp4") == 0
    recipe = read_recipe(here / "bell.mp4")
    assert recipe is not None and recipe["plan"]["seed"] >= 0
    assert f"seed {recipe['plan']['seed']}" in capfd.readouterr().err


def test_pictures_previews_and_names(here: Path) -> None:
    assert line("distilled -p bell -o frames -q") == 0
    assert len(list((here / "frames").glob("frame_*.png"))) == 9
    assert line("rerun frames -q") == 0 and len(list((here / "frames-again").iterdir())) == 9
    assert line("distilled -p bell -o bell.gif -q") == 0 and (here / "bell.gif").stat().st_size > 0
    assert line("distilled -q -p", "A bell, ringing!") == 0
    assert (here / "a-bell-ringing-10.mp4").exists()


def test_models_and_doctor(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert line("models --json") == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"tiny", "Lightricks/LTX-2", "Lightricks/LTX-2.3", "Lightricks/LTX-2.5"} <= set(rows)
    assert rows["Lightricks/LTX-2"]["license"] and rows["Lightricks/LTX-2"]["page"].startswith("https://")
    assert line("doctor --json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["devices"]["cpu"].startswith("usable: ")
    kinds = {**facts["devices"], **facts["attention"], **facts["media"]}
    kinds.pop("chosen by default")
    assert all(
        (text.startswith(("usable", "not usable")) and ": " in text) or text == "usable" or "usable on" in text
        for text in kinds.values()
    )


def test_inspect_of_weights(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert line("inspect model.safetensors --json") == 0
    facts = json.loads(capsys.readouterr().out)
    parts = {part["name"]: part for part in facts["components"]}
    assert parts["transformer"]["parameters"] > 0 and facts["model_version"] == "2.0.0"
    assert line("inspect ic-lora.safetensors") == 0
    assert "reference_downscale_factor" in capsys.readouterr().out


def test_inspect_says_what_changed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert line("distilled -p bell -i photo.png -o bell.mp4 -q") == 0
    (here / "photo.png").unlink()
    assert line("inspect bell.mp4") == 0
    assert "changed since    photo.png is gone" in capsys.readouterr().out
    assert line("rerun bell.mp4 -q") == 1


def test_an_internal_error_is_one_line_and_a_traceback_only_on_demand(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "generate", lambda *_, **__: 1 / 0)
    assert line("distilled -p bell -o bell.mp4 -q") == 1
    said = capfd.readouterr().err
    assert (
        said == "ltx: internal error: ZeroDivisionError: division by zero (run again with --debug for the traceback)\n"
    )
    assert line("distilled -p bell -o bell.mp4 -q --debug") == 1
    assert "Traceback" in capfd.readouterr().err


def test_what_the_system_refuses_is_one_line() -> None:
    assert describe(OSError(errno.ENOSPC, "No space left on device", "a.mp4")) == "disk full: no space left for a.mp4"
    assert describe(PermissionError(errno.EACCES, "Permission denied", "a.mp4")) == "a.mp4: Permission denied"
    assert describe(MemoryError()).startswith("out of memory")
    assert describe(torch.OutOfMemoryError("CUDA out of memory.\nTried")).startswith("out of memory: CUDA out of")


def test_ctrl_c_leaves_nothing_behind(here: Path) -> None:
    """The process is stopped while it denoises."""
    before = set(here.rglob("*"))
    steps = " ".join(str(1 - index / 900) for index in range(900))
    command = [sys.executable, "-c", "import sys; from ltx_pipelines.cli import main; sys.exit(main())"]
    arguments = f"one-stage -p bell -o new/bell.mp4 --json --sigmas {steps} 0".split()
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    for text in process.stdout:
        if json.loads(text)["event"] == "step":
            break
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    process.stdout.close()
    assert process.wait(timeout=60) == 130
    assert said.strip().splitlines()[-1] == "ltx: stopped: nothing was left half-written"
    assert {path for path in here.rglob("*") if path.is_file()} == {path for path in before if path.is_file()}


def test_the_installed_command_ends_with_the_code_of_the_run() -> None:
    script = Path(sys.executable).parent / "ltx"
    if not script.exists():
        script = Path(sys.executable)
    began = time.monotonic()
    done = subprocess.run([str(script), "--version"], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0 and time.monotonic() > began


def test_what_is_there_is_refused_before_anything_is_loaded(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("a.mp4").write_bytes(b"the one before")
    assert run(["generate", "a bell", "-o", "a.mp4", "-f", "9"]) == 1
    assert "a.mp4 is there already; choose another name, or replace it with --overwrite" in capfd.readouterr().err
    assert Path("a.mp4").read_bytes() == b"the one before"
    assert run([*["generate", "a", "-H", "64", "-W", "64", "-f", "9", "-o", "a.mp4", "--overwrite", "--quiet"]]) == 0
    assert probe_video("a.mp4").frames == 9
    long = "n" * 252 + ".mp4"
    assert run(["generate", "a bell", "-o", long]) == 1 and "has 256 bytes, at most 255" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_being_told_to_end_is_like_ctrl_c(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    from ltx_pipelines.cli.errors import exit_code

    before = signal.getsignal(getattr(signal, name))
    assert exit_code(lambda: signal.raise_signal(getattr(signal, name))) == 130
    assert "nothing was left half-written" in capfd.readouterr().err
    assert signal.getsignal(getattr(signal, name)) is before


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_does_not_cost_the_clip(stream: str, tmp_path: Path) -> None:
    line = shlex.split("one-stage -p a --sigmas 1 0.5 0 -H 64 -W 64 -f 9 -o a.mp4" + " --json" * (stream == "stdout"))
    pipe: Any = {stream: subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-m", "ltx_pipelines", *line], cwd=tmp_path, **pipe) as process:
        reader = getattr(process, stream)
        assert reader.readline()
        reader.close()
        assert process.wait() == 0
    assert probe_video(tmp_path / "a.mp4").frames == 9


def test_streams_that_are_closed_from_the_start_do_not_cost_the_clip(tmp_path: Path) -> None:
    line = f"exec {sys.executable} -m ltx_pipelines one-stage -p a --sigmas 1 0 -H 64 -W 64 -f 9 -o a.mp4 <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=tmp_path, check=False).returncode == 0
    assert probe_video(tmp_path / "a.mp4").frames == 9
