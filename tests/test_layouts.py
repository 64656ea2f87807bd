"""One model in every layout people have it in: found, opened and computed alike, refused in one line where broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.errors import LtxError
from ltx_pipelines.cli.app import run
from ltx_pipelines.running.conversion import convert
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.utils.model_ledger import ModelLedger

ODD = "модель 模型 of mine"  # a folder with spaces and letters of other scripts
PLAIN = MultiModalGuiderParams()
ASKED = {"prompt": "a small red ball bounces", "height": 64, "width": 64, "num_frames": 9, "seed": 3}
ASKED |= {"num_inference_steps": 2, "video_guider_params": PLAIN, "audio_guider_params": PLAIN}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Layouts of the bundled model, each made when it is asked for."""
    root = tmp_path_factory.mktemp("layouts")

    def made(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            MAKERS[name](folder, made)
        return folder

    return made


def converted(layout: Any, quantization: str | None = None) -> Callable[[Path, Any], None]:
    return lambda folder, made: convert(find_model("tiny"), folder, layout, quantization, lambda line: None)


def sharded(folder: Path, made: Callable[[str], Path]) -> None:
    """The single file as three shards with an index, config in the first."""
    shutil.copytree(made("single"), folder)
    source = folder / "ltx-tiny.safetensors"
    tensors, metadata = contents(source)
    names, places = list(tensors), {}
    for index in range(3):
        name = f"ltx-tiny-{index + 1:05}-of-00003.safetensors"
        own = names[index::3]
        places |= dict.fromkeys(own, name)
        save_file({key: tensors[key] for key in own}, folder / name, metadata if index == 0 else {"format": "pt"})
    (folder / "ltx-tiny.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    source.unlink()


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata without digests."""
    with safe_open(path, "pt") as file:
        metadata = {key: text for key, text in file.metadata().items() if not key.endswith("blake2b")}
    return load_file(path), metadata


def dialect(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path, Callable[[str], Path]], None]:
    """The folder with an fp8 transformer, its tensors changed."""

    def make(folder: Path, made: Callable[[str], Path]) -> None:
        shutil.copytree(made("fp8"), folder)
        file = folder / "diffusion_models" / "ltx-tiny-transformer.safetensors"
        tensors, metadata = contents(file)
        file.unlink()
        save_file(change(tensors), file, metadata)

    return make


def without(tensors: Mapping[str, Tensor], *leaves: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(leaves)}


def scaled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """ComfyUI's older dialect."""
    renamed = {
        name.replace(".weight_scale", ".scale_weight"): t for name, t in without(tensors, ".comfy_quant").items()
    }
    return renamed | {"model.diffusion_model.scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def with_input_scales(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    scales = {name.replace("weight_scale", "input_scale"): torch.ones(()) for name in tensors if "weight_scale" in name}
    return without(tensors, ".comfy_quant") | scales


def cast(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights cast to fp8, no scales."""
    plain = {}
    for name, tensor in without(tensors, ".comfy_quant", ".weight_scale").items():
        scale = tensors.get(f"{name}_scale")
        plain[name] = tensor if scale is None else (tensor.float() * scale).to(torch.float8_e4m3fn)
    return plain


def bare_gguf(folder: Path, made: Callable[[str], Path]) -> None:
    """A GGUF transformer without connectors in a flat folder, connectors and projections in a file of their own."""
    folder.mkdir()
    for file in made("gguf").rglob("*"):
        if file.is_file() and file.parent.name != "gemma":
            shutil.copy(file, folder / file.name)
    shutil.copytree(made("gguf") / "text_encoders" / "gemma", folder / "gemma")


MAKERS: dict[str, Callable[[Path, Callable[[str], Path]], None]] = {
    "single": converted("single"),
    "split": converted("split"),
    "diffusers": converted("diffusers"),
    "shards": sharded,
    "gguf": converted("split", "q8_0"),
    "gguf-flat": bare_gguf,
    "gguf-q4": converted("split", "q4_k"),
    "fp8": converted("split", "fp8"),
    "fp8-scaled": dialect(scaled),
    "fp8-modelopt": dialect(with_input_scales),
    "fp8-cast": dialect(cast),
    "fp8-rows": converted("split", "fp8-rows"),
    "nvfp4": converted("split", "nvfp4"),
}
#: Layout -> how the transformer's file is named; None: the folder.
NAMED = {
    "single": ("ltx-tiny.safetensors", None),
    "split": ("diffusion_models/ltx-tiny-transformer.safetensors", None),
    "shards": ("ltx-tiny-00002-of-00003.safetensors", "ltx-tiny.safetensors.index.json", None),
    "diffusers": (None,),
    "gguf": ("diffusion_models/ltx-tiny-transformer-Q8_0.gguf",),
}
EXACT = ("single", "split", "shards", "diffusers")
#: Quantised layout -> most that latents may be off, in parts of their deviation; measured: about two thirds of it.
BOUNDS = {
    "gguf": 0.01,
    "gguf-flat": 0.01,
    "gguf-q4": 0.03,
    "fp8": 0.06,
    "fp8-scaled": 0.06,
    "fp8-modelopt": 0.06,
    "fp8-cast": 0.15,  # without scales small weights become 0
    "fp8-rows": 0.06,
    "nvfp4": 0.2,
}


RARE = ("gguf-flat", "gguf-q4", "fp8-rows", "nvfp4")


def generated(model: str | Path) -> tuple[list[Tensor], Tensor]:
    """Latents and frames of one clip."""
    files = find_model(str(model)).files
    made: Generation = TI2VidOneStagePipeline(ModelLedger(files, torch.float32, "cpu", policy="resident"))(**ASKED)
    assert made.video is not None
    return [latent for stage in made.stages for latent in stage.values()], torch.cat(list(made.video))


@pytest.fixture(scope="module")
def expected() -> tuple[list[Tensor], Tensor]:
    return generated("tiny")


def placed(folders: Callable[[str], Path], layout: str, tmp_path: Path) -> Path:
    """The layout under a path with spaces and letters of other scripts."""
    place = tmp_path / ODD / layout
    place.parent.mkdir()
    place.symlink_to(folders(layout), target_is_directory=True)
    return place


@pytest.mark.parametrize("layout", EXACT)
def test_plain_layouts_give_the_same_clip_to_the_bit(
    layout: str, folders: Callable[[str], Path], expected: Any, tmp_path: Path
) -> None:
    latents, frames = generated(placed(folders, layout, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(latents, expected[0], strict=True))
    assert torch.equal(frames, expected[1])


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in BOUNDS]
)
def test_quantised_layouts_stay_near(
    layout: str, folders: Callable[[str], Path], expected: Any, tmp_path: Path
) -> None:
    latents, _ = generated(placed(folders, layout, tmp_path))
    errors = [float((a - b).std() / b.std()) for a, b in zip(latents, expected[0], strict=True)]
    print(f"{layout}: latents of video and sound are off by {', '.join(f'{error:.3%}' for error in errors)}")
    assert max(errors) < BOUNDS[layout]
    assert max(errors) > 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*EXACT, "gguf", "fp8"])
def test_plain_paths_do_as_well(layout: str, folders: Callable[[str], Path], expected: Any) -> None:
    latents, _ = generated(folders(layout))
    bound = BOUNDS.get(layout, 0)
    assert all(float((a - b).std() / b.std()) <= bound for a, b in zip(latents, expected[0], strict=True))


@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout, names in NAMED.items() for name in names])
def test_every_part_is_found_whatever_is_named(layout: str, name: str | None, folders: Callable[[str], Path]) -> None:
    """By folder, by file, by any shard, by the index; and `inspect` and `plan` see what is opened."""
    folder = folders(layout)
    model = folder / name if name else folder
    found = find_model(str(model))
    ledger = ModelLedger(found.files, torch.float32, "cpu")
    for component in ("transformer", "embeddings", "video_encoder", "video_decoder", "audio_decoder", "vocoder"):
        assert ledger.holds(component), component
    ledger.check("transformer", "video_encoder", "video_decoder", "audio_decoder", "vocoder", "text_encoder")
    assert found.files.text_encoder is not None and found.files.spatial_upsampler is not None
    assert ledger.bytes_read == 0 or layout == "gguf"


def test_inspect_and_plan_see_what_is_opened(folders: Callable[[str], Path], capsys: Any) -> None:
    assert run(["inspect", str(folders("diffusers") / "audio_vae")]) == 0
    shown = capsys.readouterr().out
    assert "audio_decoder" in shown and "audio_encoder" in shown and "video" not in shown
    assert run(["inspect", str(folders("shards") / "ltx-tiny-00003-of-00003.safetensors")]) == 0
    assert "transformer" in capsys.readouterr().out
    assert run(["plan", "a red ball", "--model", str(folders("gguf"))]) == 0
    assert "Q8_0.gguf" in capsys.readouterr().out


@pytest.mark.backend("mlx")
def test_folders_for_mlx_go_back(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """From split files to eight bits for MLX, and plain again."""
    pytest.importorskip("mlx.core", reason="mlx is not installed: `pip install mlx`")
    assert run(["convert", str(folders("split")), str(tmp_path / "mlx"), "--to", "mlx-q8-g32"]) == 0
    assert run(["convert", str(tmp_path / "mlx"), str(tmp_path / "plain"), "--to", "single"]) == 0
    there, _ = contents(folders("single") / "ltx-tiny.safetensors")
    back, metadata = contents(tmp_path / "plain" / "ltx-tiny.safetensors")
    assert back.keys() == there.keys() and "quantization" not in metadata
    changed = [name for name in there if not torch.equal(there[name], back[name])]
    assert changed and all(".weight" in name and "transformer_blocks" in name for name in changed)
    errors = [float((there[n].float() - back[n].float()).norm() / there[n].float().norm()) for n in changed]
    assert max(errors) < 0.02


def test_an_interrupted_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from ltx_pipelines.running import conversion

    def broken(path: Path, *rest: Any) -> str:
        if "video-vae" in path.name:
            raise KeyboardInterrupt
        return save(path, *rest)

    save = conversion.save_safetensors
    monkeypatch.setattr(conversion, "save_safetensors", broken)
    with pytest.raises(KeyboardInterrupt):
        convert(find_model("tiny"), tmp_path / "x", "split", None, print)
    written: list[str] = []
    monkeypatch.setattr(
        conversion, "save_safetensors", lambda path, *rest: (written.append(path.name), save(path, *rest))
    )
    convert(find_model("tiny"), tmp_path / "x", "split", None, print)
    assert written == ["ltx-tiny-video-vae.safetensors", "ltx-tiny-audio-vae.safetensors"]
    assert "going on in" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    with pytest.raises(LtxError, match="exists, expected a folder that is not there yet"):
        convert(find_model("tiny"), tmp_path / "x", "split", None, print)


@pytest.mark.parametrize(
    ("layout", "quantization", "said"),
    [
        ("diffusers", "fp8", "diffusers holds plain weights; expected --to split"),
        ("single", "q4_k", "single holds safetensors only; expected --to split"),
        ("split", "int3", "quantization is 'int3', expected one of fp8"),
    ],
)
def test_what_a_layout_cannot_hold(layout: Any, quantization: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(LtxError, match=said):
        convert(find_model("tiny"), tmp_path / "x", layout, quantization, print)
    assert not list(tmp_path.iterdir())


# What is broken -----------------------------------------------------------------------------------------------------


def one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of a model before any prompt is read."""
    from ltx_core.text_encoders.gemma.encoder import GemmaTextEncoder

    def read(*_: Any) -> None:
        raise AssertionError("a prompt was encoded")

    monkeypatch.setattr(GemmaTextEncoder, "features", read)
    with pytest.raises(LtxError) as caught:
        generated(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def pickled(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"PK\x03\x04" + bytes(100))


def pointed(path: Path) -> None:
    path.unlink()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def emptied(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.unlink()
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4)}, path)


def narrowed(path: Path) -> None:
    """One matrix of another size; not one for pictures, which prompts do not need."""
    tensors, metadata = contents(path)
    read = {name: x for name, x in tensors.items() if not name.startswith(("vision_tower", "multi_modal_projector"))}
    name = next(name for name, tensor in reversed(read.items()) if tensor.ndim > 1)
    path.unlink()
    save_file(tensors | {name: torch.zeros(3, 5)}, path, metadata)


FILES = {
    "transformer": "diffusion_models/ltx-tiny-transformer.safetensors",
    "video VAE": "vae/ltx-tiny-video-vae.safetensors",
    "audio VAE": "vae/ltx-tiny-audio-vae.safetensors",
    "projection": "text_encoders/ltx-tiny-text-projection.safetensors",
    "text encoder": "text_encoders/gemma/model.safetensors",
}
ADAPTER = "loras/ltx-tiny-distilled-lora.safetensors"
BREAKS: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "pickled": pickled,
    "pointed": pointed,
    "emptied": emptied,
    "foreign": foreign,
    "narrowed": narrowed,
}


#: The transformer broken in every way, the other files in those that differ from file to file.
BROKEN = [("transformer", how) for how in BREAKS]
BROKEN += [(kind, how) for kind in FILES if kind != "transformer" for how in ("cut", "foreign", "narrowed")]


@pytest.mark.parametrize(("kind", "how"), BROKEN)
def test_broken_files_are_told_before_a_prompt_is_read(
    kind: str, how: str, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders("split"), folder, symlinks=True)
    BREAKS[how](folder / FILES[kind])
    said = one_line(folder, monkeypatch)
    component = {"video VAE": "--video-vae", "audio VAE": "--audio-vae", "projection": "--text-projection"}
    named = FILES[kind].rpartition("/")[2]
    assert named in said or component.get(kind, "holds no LTX transformer") in said or "gemma" in said


@pytest.mark.parametrize("how", ["cut", "foreign", "narrowed"])
def test_broken_adapters_are_told_before_a_weight_is_read(
    how: str, folders: Callable[[str], Path], tmp_path: Path, capsys: Any
) -> None:
    adapter = tmp_path / "adapter.safetensors"
    shutil.copy(folders("split") / ADAPTER, adapter)
    BREAKS[how](adapter)
    line = ["generate", "a ball", "--model", "tiny", "--lora", str(adapter), "-o", str(tmp_path / "x.mp4")]
    assert run(line) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(adapter) in said and not (tmp_path / "x.mp4").exists()


def test_a_truncated_gguf_is_told(folders: Callable[[str], Path], tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders("gguf"), folder)
    transformer = next(folder.rglob("*.gguf"))
    cut(transformer)
    assert "is truncated" in one_line(transformer, monkeypatch)
    transformer.write_bytes(b"not GGUF at all")
    assert "is not a GGUF file" in one_line(transformer, monkeypatch)
