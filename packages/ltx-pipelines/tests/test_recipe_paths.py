"""Recipes inside clips name no folders, and their files are found again."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from ltx_core.fingerprint import fingerprint
from ltx_media.containers import read_recipe
from ltx_media.video import read_frames
from ltx_pipelines.cli.app import run
from ltx_pipelines.long import LongVideoPipeline
from ltx_pipelines.running import recipe as recipes
from ltx_pipelines.running.recipe import last_known, names_from, remember, without_folders
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline

STAGES = "distilled -p photo.png -s 3"
SHORT = "one-stage -p bell --sigmas 1 0"


@pytest.fixture
def deep(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures whose names are nobody's business; the current folder is one for clips."""
    folder = tmp_path / "anna-smith" / "divorce-papers"
    folder.mkdir(parents=True)
    shutil.copy(here / "photo.png", folder / "photo.png")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return folder


def line(text: str) -> int:
    return run(shlex.split(text))


def recipe_of(path: str | Path) -> dict:
    recipe = read_recipe(path)
    assert recipe is not None
    return recipe


def frames_of(path: str | Path) -> torch.Tensor:
    return torch.stack(list(read_frames(path)))


def leaks(folder: Path, *secret: Path) -> list[str]:
    """Files that name a folder of what went into them."""
    names = {os.fsencode(part) for path in secret for part in path.parts if len(part) > 3 and part != "/"}
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        text = path.read_bytes() + str(read_recipe(path) if path.suffix != ".safetensors" else "").encode()
        found += [f"{path.name}: {name.decode()}" for name in names if name in text]
    return found


def test_nothing_delivered_names_a_folder(deep: Path, small_model: Path) -> None:
    out = Path.cwd()
    given = f"-i {deep}/photo.png -m {small_model} -q"
    assert line(f"{STAGES} {given} -o bell.mp4 --keep-latents --contact-sheet sheet.png") == 0
    for name in ("frames", "bell.gif"):
        assert line(f"{SHORT} {given} -o {name}") == 0
    assert line(f"t2a-one-stage -p bell --steps 1 -m {small_model} -o bell.wav -q") == 0
    assert line(f"long -p bell --steps 1 -f 17 --window 9 --overlap 1 {given} -o long.mp4") == 0
    assert len(list(out.iterdir())) == 7 and leaks(out, deep, small_model.parent, out) == []
    recipe = recipe_of("bell.mp4")
    assert {"photo.png", "ltx-2-tiny.safetensors"} <= set(recipe["files"])
    assert recipe["request"]["options"]["model"] == "./small"
    assert recipe["plan"]["prompt"] == "photo.png"
    assert line(f"{SHORT} {given} -o whole.mp4 --absolute-paths") == 0
    assert str(deep / "photo.png") in recipe_of("whole.mp4")["files"] and leaks(out, deep)


def test_a_rerun_finds_files_where_they_were_and_asks(deep: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert line(f"{STAGES} -i {deep}/photo.png -o bell.mp4 --first-stage -q") == 0
    capfd.readouterr()
    assert line("rerun bell.mp4 -o again.mp4") == 1
    assert f"its recipe opens {deep}/photo.png; give --trust" in capfd.readouterr().err
    assert line("rerun bell.mp4 -o again.mp4 --trust") == 0
    assert "since then" not in capfd.readouterr().err
    assert Path("again.mp4").read_bytes() == Path("bell.mp4").read_bytes()
    assert line("finish bell.mp4 -o whole.mp4 --trust -q") == 0
    assert line(f"{STAGES} -i {deep}/photo.png -o direct.mp4 -q") == 0
    assert torch.equal(frames_of("whole.mp4"), frames_of("direct.mp4"))
    assert line("rerun direct.mp4 --seed 4 --trust -q") == 0  # planned anew
    assert recipe_of("direct-again.mp4")["files"] == recipe_of("direct.mp4")["files"]


def test_a_clip_moves_with_its_files(
    deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert line(f"{STAGES} -i {deep}/photo.png -o bell.mp4 --first-stage -q") == 0
    before = Path("bell.mp4").read_bytes()
    for name in ("bell.mp4", "bell.stage1.safetensors"):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        shutil.move(name, tmp_path / "elsewhere" / name)
    shutil.move(deep, tmp_path / "pictures")
    monkeypatch.chdir(tmp_path / "elsewhere")
    capfd.readouterr()
    assert line("rerun bell.mp4") == 1
    assert (
        "its recipe names photo.png, found neither beside it nor where last used; name the folder with --look-in"
        in (capfd.readouterr().err)
    )
    assert line("inspect bell.mp4") == 0 and "changed since    photo.png is gone" in capfd.readouterr().out
    assert line(f"rerun bell.mp4 --look-in {tmp_path}/pictures -o one.mp4 -q") == 0
    shutil.copy(tmp_path / "pictures" / "photo.png", ".")
    assert line("inspect bell.mp4") == 0 and "changed since" not in capfd.readouterr().out
    assert line("rerun bell.mp4 -o two.mp4 -q") == 0 and line("finish bell.mp4 -q -o three.mp4") == 0
    assert before == Path("one.mp4").read_bytes() == Path("two.mp4").read_bytes()
    Path("photo.png").write_bytes(Path("photo.png").read_bytes() + b"\0")
    assert line("rerun bell.mp4 -o other.mp4") == 0
    assert "since then: photo.png is another file than it was" in capfd.readouterr().err


def test_a_batch_knows_its_clips_by_what_went_into_them(deep: Path, capfd: pytest.CaptureFixture[str]) -> None:
    request = f'{{"prompt": "bell", "pipeline": "one-stage", "sigmas": [1, 0], "image": "{deep}/photo.png"'
    Path("requests.jsonl").write_text(f'{request}}}\n{request}, "absolute-paths": true}}\n')
    assert line("batch requests.jsonl -q") == 0 and line("batch requests.jsonl") == 0
    assert capfd.readouterr().err.count("already there") == 2
    (deep / "photo.png").write_bytes((deep / "photo.png").read_bytes() + b"\0")
    assert line("batch requests.jsonl --output-dir clips") == 1  # they are there, of another picture
    assert "is there already" in capfd.readouterr().err


def test_a_clip_of_python_is_one_of_the_command(deep: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    pipeline = TI2VidOneStagePipeline.from_pretrained(os.environ["LTX_MODEL"], device="cpu")
    made = pipeline("bell", images=["photo.png"], sigmas=(1.0, 0.0))
    assert str(here / "photo.png") in made.recipe["files"]
    made.save("bell.mp4")
    made.save(deep / "bell.mp4")
    for place in (here, deep):
        recipe = recipe_of(place / "bell.mp4")
        assert recipe["plan"]["stages"][0]["streams"]["video"]["conditions"][0]["path"] == "photo.png"
        assert "photo.png" in recipe["files"] and leaks(deep, here, deep) == []
    monkeypatch.chdir(deep)
    assert line(f"rerun {here}/bell.mp4 -q -o again.mp4") == 0
    assert torch.equal(frames_of("again.mp4"), frames_of(here / "bell.mp4"))


def test_files_that_only_the_request_names_are_found_again(deep: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (deep / "board.yaml").write_text(
        "[{prompt: bell, seconds: 0.3, keyframes: [{image: photo.png}]}, {prompt: drum, seconds: 0.3}]"
    )
    assert line(f"long --storyboard {deep}/board.yaml --steps 1 --window 9 --overlap 1 -o bell.mp4 -q") == 0
    recipe = recipe_of("bell.mp4")
    assert recipe["request"]["options"]["storyboard"] == "board.yaml" and leaks(Path.cwd(), deep) == []
    shutil.copy(deep / "board.yaml", "board.yaml")
    shutil.copy(deep / "photo.png", "photo.png")
    shutil.rmtree(deep)
    assert line("rerun bell.mp4 --seed 4 -q") == 0
    assert recipe_of("bell-again.mp4")["plan"]["seed"] == 4


def test_no_two_files_have_one_name(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a/photo.png", "b/photo.png", "clips/photo.png", "clips/in/photo.png")]
    names = names_from(tmp_path / "clips", [*paths, "photo-2.png", str(tmp_path / "clips" / ".." / "x" / "y.png")])
    expected = ["photo.png", "photo-2.png", "photo-3.png", "in/photo.png", "photo-2-2.png", "y.png"]
    assert list(names.values()) == expected


def test_a_recipe_without_folders_stays_as_it_is(here: Path) -> None:
    pipeline = LongVideoPipeline.from_pretrained(os.environ["LTX_MODEL"], device="cpu")
    from ltx_pipelines.running.recipe import make_recipe, plan_of

    plan = pipeline.plan("bell", images=["photo.png"], anchor="first.png", num_frames=9)
    once = without_folders(make_recipe(plan), here / "bell.mp4")
    assert without_folders(once, here / "bell.mp4") == once
    assert plan_of(once, "").long.anchor == "first.png"
    held = pipeline.plan("bell", images=["photo.png"], anchor_first=True, num_frames=9)
    assert without_folders(make_recipe(held), here / "bell.mp4")["plan"]["long"]["anchor"] == "first"


def test_what_is_known_is_bounded_and_damage_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(recipes, "MOST_KNOWN", 3)
    files = []
    for number in range(5):
        (tmp_path / f"ä{number}.txt").write_text(str(number))
        files.append((str(tmp_path / f"ä{number}.txt"), fingerprint(tmp_path / f"ä{number}.txt")))
        remember(dict(files[-1:]))
        os.utime(recipes.state_folder() / files[-1][1], (number, number))
    assert [last_known(mark) and str(last_known(mark)) for _, mark in files] == [None, None, *(p for p, _ in files[2:])]
    remember({str(tmp_path / "moved.txt"): files[4][1]})
    assert last_known(files[4][1]) == tmp_path / "moved.txt"
    (recipes.state_folder() / files[4][1]).write_bytes(b"\xff\0nonsense")
    assert last_known(files[4][1]) is None and "is damaged and left out" in caplog.text
    assert last_known("../../../etc/passwd") is None and last_known("") is None
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    remember(dict(files))
    assert "cannot be written, so a rerun finds files beside the clip only" in caplog.text


def test_a_fingerprint_somebody_knows_opens_nothing(
    deep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stranger's recipe names a file of ours by its fingerprint: it is found, and asked about."""
    remember({str(deep / "photo.png"): fingerprint(deep / "photo.png")})
    assert line(f"{SHORT} -i ../here/photo.png -o bell.mp4 -q") == 0  # the same picture
    remember({str(deep / "photo.png"): fingerprint(deep / "photo.png")})
    capfd.readouterr()
    assert line("rerun bell.mp4 -q") == 1
    assert f"its recipe opens {deep}/photo.png; give --trust" in capfd.readouterr().err
    assert line("inspect bell.mp4") == 0 and "photo.png was not looked at" in capfd.readouterr().out
