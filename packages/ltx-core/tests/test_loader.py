"""Checkpoints: what is refused and how it is said, every layout, strict building, versions, streaming."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny_checkpoints import (
    PREFIX,
    TRANSFORMER,
    UPSAMPLER,
    assert_same,
    inputs,
    metadata,
    prefixed,
    transformer_tensors,
    upsampler_tensors,
)

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader import Checkpoint
from ltx_core.loader.metadata import check_gemma_source, detect_version, parse_version, version_defaults
from ltx_core.loader.safetensors_file import SafetensorsFile, save_checkpoint
from ltx_core.loader.streaming import build_streaming
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.foreign import to_diffusers_name

MANIFESTS = Path(__file__).resolve().parents[3] / "tests" / "manifests"
DIFFUSION_DECODER = ("ltx-2.5-22b", "video_vae", "video_decoder")  # not built by us


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published-style transformer file and an upscaler file."""
    path = tmp_path_factory.mktemp("checkpoints")
    config = {"transformer": TRANSFORMER}
    save_file(prefixed(transformer_tensors()), path / "ltx-dev.safetensors", metadata(config, model_version="2.3.0"))
    save_file(upsampler_tensors(), path / "upscaler.safetensors", metadata(UPSAMPLER))
    return path


@pytest.fixture(scope="module")
def transformer_file(folder: Path) -> Path:
    return folder / "ltx-dev.safetensors"


def test_opening_reads_no_weights_and_building_reads_each_once(transformer_file: Path) -> None:
    checkpoint = Checkpoint.open(transformer_file)
    assert checkpoint.components == ("transformer",)
    assert (checkpoint.model_version, checkpoint.version) == ("2.3.0", (2, 3, 0))
    assert checkpoint.config == {"transformer": TRANSFORMER}
    assert checkpoint.bytes_read == 0
    network = checkpoint.build("transformer")
    assert_same(network, transformer_tensors())
    assert checkpoint.bytes_read == sum(t.nbytes for t in transformer_tensors().values())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_dtype_is_the_callers(transformer_file: Path) -> None:
    network = Checkpoint.open(transformer_file).build("transformer", dtype=torch.float32)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert_same(network, {name: tensor.float() for name, tensor in transformer_tensors().items()})


def test_writing_into_one_build_does_not_show_in_another(transformer_file: Path) -> None:
    checkpoint = Checkpoint.open(transformer_file)
    first = checkpoint.build("transformer")
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert_same(checkpoint.build("transformer"), transformer_tensors())
    assert_same(Checkpoint.open(transformer_file).build("transformer"), transformer_tensors())


@pytest.mark.parametrize("stream", ["video", "audio"])
def test_one_stream_of_a_joint_file(transformer_file: Path, stream: str) -> None:
    checkpoint = Checkpoint.open(transformer_file)
    network = checkpoint.build(f"{stream}_transformer")
    tensors = transformer_tensors()
    assert_same(network, {name: tensors[name] for name in network.state_dict()})
    assert checkpoint.bytes_read < sum(t.nbytes for t in tensors.values())


def test_no_number_is_drawn_for_weights_that_are_read(transformer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 22 billion that is minutes and their size in float32."""
    for draw in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, draw, lambda *_, **__: pytest.fail("a number was drawn"))
    for name in ("transformer", "video_transformer", "audio_transformer"):
        Checkpoint.open(transformer_file).build(name)


def test_sharded_files_are_one_component(tmp_path: Path) -> None:
    names = list(tensors := prefixed(transformer_tensors()))
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for number, half in enumerate(halves, 1):
        path = tmp_path / f"model-0000{number}-of-00002.safetensors"
        save_file({n: tensors[n] for n in half}, path, metadata({"transformer": TRANSFORMER}) if number == 1 else None)
    assert_same(Checkpoint.open(tmp_path).build("transformer"), transformer_tensors())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards"):
        Checkpoint.open(tmp_path)


def test_an_index_decides_among_shards(tmp_path: Path) -> None:
    """By folder, index or any shard; what it names must be there, what it does not name is an error."""
    tensors = upsampler_tensors()
    names = list(tensors)
    shards = {f"model-0000{number}-of-00002.safetensors": names[number - 1 :: 2] for number in (1, 2)}
    places = {name: file for file, own in shards.items() for name in own}
    for file, own in shards.items():
        twice = {names[0]: torch.full_like(tensors[names[0]], 7.0)} if names[0] not in own else {}
        save_file({name: tensors[name] for name in own} | twice, tmp_path / file, metadata(UPSAMPLER))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for named in (tmp_path, index, *(tmp_path / file for file in shards)):
        assert_same(Checkpoint.open(named).build("latent_upsampler"), tensors)
    index.write_text(json.dumps({"weight_map": places | {"stranger": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"index.json names stranger, which no shard holds"):
        Checkpoint.open(tmp_path)
    index.write_text(json.dumps({"weight_map": {name: file for name, file in places.items() if name != names[-1]}}))
    with pytest.raises(CheckpointError, match=rf"holds {names[-1]}, which model.safetensors.index.json does not name"):
        Checkpoint.open(tmp_path)
    for file, said in (("gone.safetensors", "which is not there"), ("../x.safetensors", "a file name without folders")):
        index.write_text(json.dumps({"weight_map": places | {names[0]: file}}))
        with pytest.raises(CheckpointError, match=said):
            Checkpoint.open(index)


def test_a_folder_knows_all_its_components(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.components == ("transformer", "latent_upsampler")
    assert_same(checkpoint.build("latent_upsampler"), upsampler_tensors())


def test_hub_snapshot(folder: Path, transformer_file: Path, tmp_path: Path) -> None:
    """Links into a blob store, sub-folders, adapters beside models; hidden folders do not count."""
    for name, target in {
        "diffusion_models/ltx.safetensors": transformer_file,
        "latent_upscale_models/up.safetensors": folder / "upscaler.safetensors",
        ".cache/other.safetensors": transformer_file,
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(target)
    (tmp_path / "loras").mkdir()
    adapter = {"x.lora_A.weight": torch.ones(1, 2), "x.lora_B.weight": torch.ones(2, 1)}
    save_file(adapter, tmp_path / "loras/a.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.components == ("transformer", "latent_upsampler")
    assert checkpoint.lora_paths == (tmp_path / "loras/a.safetensors",)
    assert_same(checkpoint.build("transformer"), transformer_tensors())


def test_two_files_of_one_component(tmp_path: Path) -> None:
    for seed, name in ((0, "upscaler-a"), (1, "upscaler-b")):
        save_file(upsampler_tensors(seed), tmp_path / f"{name}.safetensors", metadata(UPSAMPLER))
    with pytest.raises(CheckpointError, match=r"several files: .*upscaler-a.*upscaler-b.*prefer"):
        Checkpoint.open(tmp_path).build("latent_upsampler")
    assert_same(Checkpoint.open(tmp_path, prefer=["-b"]).build("latent_upsampler"), upsampler_tensors(1))
    given = [tmp_path / "upscaler-b.safetensors", tmp_path / "upscaler-a.safetensors"]
    assert_same(Checkpoint.open(given).build("latent_upsampler"), upsampler_tensors(0))


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_transformer_only_files_without_config(tmp_path: Path, prefix: str) -> None:
    save_file(prefixed(transformer_tensors(), prefix), tmp_path / "comfy.safetensors")
    checkpoint = Checkpoint.open(tmp_path / "comfy.safetensors")
    assert_same(checkpoint.build("transformer"), transformer_tensors())
    assert checkpoint.network_config("transformer") == TransformerConfig.from_metadata({"transformer": TRANSFORMER})


def test_diffusers_folder(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    tensors = {to_diffusers_name(name): tensor for name, tensor in transformer_tensors().items()}
    assert tensors.keys() != transformer_tensors().keys()
    save_file(tensors, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    assert_same(Checkpoint.open(tmp_path).build("transformer"), transformer_tensors())


def test_misfits_come_in_three_lists(tmp_path: Path) -> None:
    tensors = prefixed(transformer_tensors())
    missing = [name for name in tensors if ".attn1." in name]
    for name in missing:
        del tensors[name]
    tensors[f"{PREFIX}proj_out.weight"] = torch.zeros(6, 17)
    tensors[f"{PREFIX}stranger.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "odd.safetensors", metadata({"transformer": TRANSFORMER}))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path / "odd.safetensors").build("transformer")
    message = str(caught.value)
    assert f"{len(missing)} missing: " in message
    assert f"and {len(missing) - 10} more" in message
    assert "1 unexpected: stranger.weight" in message
    assert "1 misshapen: proj_out.weight [6, 17] instead of [6, 16]" in message
    assert "\n" not in message


def test_connectors_are_no_part_of_the_transformer(tmp_path: Path) -> None:
    tensors = prefixed(transformer_tensors())
    tensors[f"{PREFIX}video_embeddings_connector.learnable_registers"] = torch.zeros(2, 2)
    save_file(tensors, tmp_path / "x.safetensors", metadata({"transformer": TRANSFORMER}))
    checkpoint = Checkpoint.open(tmp_path / "x.safetensors")
    assert checkpoint.components == ("transformer", "embeddings")
    assert_same(checkpoint.build("transformer"), transformer_tensors())


def test_a_declared_marker_embedding_may_be_absent(tmp_path: Path) -> None:
    config = {"transformer": {**TRANSFORMER, "use_keyframes_abs_pos_embedding": True}}
    save_file(prefixed(transformer_tensors()), tmp_path / "x.safetensors", metadata(config))
    checkpoint = Checkpoint.open(tmp_path / "x.safetensors")
    assert_same(checkpoint.build("transformer"), transformer_tensors())
    assert not checkpoint.network_config("transformer").use_keyframes_abs_pos_embedding


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"transformer": {**TRANSFORMER, "num_layers": 10**9}}, "num_layers is 1000000000, the file has"),
        ({"transformer": {**TRANSFORMER, "num_layers": 5}}, "missing: transformer_blocks.3"),
        ({"transformer": {**TRANSFORMER, "audio_num_attention_heads": 4}}, "audio"),
        ({"transformer": {**TRANSFORMER, "attention_head_dim": "many"}}, "config describes no transformer"),
        ({"transformer": {**TRANSFORMER, "_class_name": "SomeOtherModel"}}, "SomeOtherModel"),
        ({"transformer": 3}, "config describes no transformer"),
    ],
)
def test_contradictory_configs(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    save_file(prefixed(transformer_tensors()), tmp_path / "x.safetensors", metadata(config))
    with pytest.raises(CheckpointError, match=says):
        Checkpoint.open(tmp_path / "x.safetensors").build("transformer")


def test_files_that_are_not_checkpoints(tmp_path: Path) -> None:
    cases = {
        "empty": (b"", "at least 8"),
        "text": (b"hello, this is text and not weights", "not a safetensors file"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        "pickle": (b"PK\x03\x04" + bytes(60), "pickle"),
        "html": (b"<!DOCTYPE html><html></html>", "not a safetensors file"),
        "lying length": (struct.pack("<Q", 2**62) + b"{}", "truncated or not a safetensors"),
        "no json": (struct.pack("<Q", 4) + b"{{{{", "no JSON"),
        "deep": (struct.pack("<Q", 200_000) + b"[" * 200_000, "nested too deeply"),
        "list": (struct.pack("<Q", 2) + b"[]", "expected a JSON object"),
    }
    for name, (data, says) in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=says):
            Checkpoint.open(path)
    with pytest.raises(CheckpointError, match=r"cannot read .*nothing"):
        Checkpoint.open(tmp_path / "nothing.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="without any safetensors"):
        Checkpoint.open(tmp_path / "folder")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32"},
        [],
    ],
)
def test_lying_tensor_entries(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"x": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"tensor x|truncated"):
        SafetensorsFile(path)


def test_truncated_file(transformer_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(transformer_file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        Checkpoint.open(path)


def test_what_a_file_is_instead(folder: Path, transformer_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no vocoder; it holds transformer"):
        Checkpoint.open(transformer_file).build("vocoder")
    with pytest.raises(CheckpointError, match="component is 'unet', expected one of"):
        Checkpoint.open(transformer_file).build("unet")
    save_file({"model.diffusion_model.input_blocks.0.weight": torch.zeros(1)}, tmp_path / "sd.safetensors")
    with pytest.raises(CheckpointError, match="no component of an LTX model; first tensor: model"):
        Checkpoint.open(tmp_path / "sd.safetensors")


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"abc" + struct.pack("<2f", 1.5, -2.0))
    assert SafetensorsFile(path).read("b").tolist() == [1.5, -2.0]


def test_float32_is_aligned_as_torch_aligns_it(tmp_path: Path) -> None:
    """Whatever the file's offsets, so that products sum in one order; narrower types stay views of the file."""
    tensors = {f"{index}": torch.ones(index, dtype=torch.float32) for index in range(1, 9)}
    save_checkpoint(tmp_path / "x.safetensors", tensors | {"half": torch.ones(4, dtype=torch.bfloat16)})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert sum(file.tensors[name].start % 64 == 0 for name in tensors) < len(tensors)
    assert all(file.read(name).data_ptr() % 64 == 0 for name in tensors)
    assert file.read("half").data_ptr() % 64 == file.tensors["half"].start % 64


def test_save_checkpoint_round_trip(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4).t(),
        "b": torch.tensor(2.0),
        "c": torch.zeros(0, 3),
        "d": torch.ones(5).bfloat16(),
    }
    save_checkpoint(tmp_path / "x.safetensors", tensors, {"config": {"k": 1}, "model_version": "2.5"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert all(torch.equal(file.read(name), tensor) for name, tensor in tensors.items())
    assert json.loads(file.metadata["config"]) == {"k": 1}
    file.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_published_files_cannot_be_verified(transformer_file: Path) -> None:
    with pytest.raises(CheckpointError, match="no digests"):
        Checkpoint.open(transformer_file).verify()


def written_header(path: Path, manifest: Mapping[str, Any]) -> None:
    """A file of the published names and shapes; its data is one hole."""
    header: dict[str, Any] = {"__metadata__": {"config": json.dumps(manifest["config"])}}
    end = 0
    for name, described in manifest["tensors"].items():
        shape = described["shape"] if isinstance(described, dict) else described
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


TEXT_SIDE = ("text_encoder", "text_embedding_projection", "embeddings_connectors", "duration_head")
PUBLISHED = [path for path in sorted(MANIFESTS.glob("*/*.json")) if path.stem not in TEXT_SIDE]


@pytest.mark.parametrize("manifest", PUBLISHED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_published_files_fill_our_networks_exactly(tmp_path: Path, manifest: Path) -> None:
    written_header(tmp_path / "x.safetensors", json.loads(manifest.read_text()))
    checkpoint = Checkpoint.open(tmp_path / "x.safetensors")
    for component in checkpoint.components:
        if (manifest.parent.name, manifest.stem, component) != DIFFUSION_DECODER:
            checkpoint.empty_network(checkpoint.weights(component))


def test_versions() -> None:
    assert parse_version("2.4-rc2") == (2,)
    assert detect_version("2.4-rc2") == (2, 4)
    assert parse_version(None) == parse_version("v2") == ()
    assert parse_version("2." + "9" * 5000) == (2,)
    assert version_defaults(()).num_inference_steps == 40
    assert version_defaults((2, 10)).ancestral_stage_1


def test_gemma_source(caplog: pytest.LogCaptureFixture) -> None:
    declared = {"gemma_source_checkpoint": {"gemma_version": "g4"}}
    check_gemma_source(declared, "2.5.0", {"gemma_version": "g4"})
    with pytest.raises(CheckpointError, match=r"'g3'.*expects 'g4'"):
        check_gemma_source(declared, "2.5.0", {"gemma_version": "g3"})
    with pytest.raises(CheckpointError, match="no gemma_source_checkpoint"):
        check_gemma_source({}, "2.5.0", {"gemma_version": "g4"})
    check_gemma_source({}, "2.5.0", {})
    assert "not checked" in caplog.text
    check_gemma_source({}, "2.3.0", {"model_type": "gemma3"})
    with pytest.raises(CheckpointError, match="expects 'gemma3'"):
        check_gemma_source({}, "2.3.0", {"model_type": "gemma4_unified"})


@pytest.mark.parametrize("hold", ["host", "file"])
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_streamed_blocks_compute_what_resident_ones_do(transformer_file: Path, hold: Any, slots: int) -> None:
    checkpoint = Checkpoint.open(transformer_file)
    resident = checkpoint.build("transformer", dtype=torch.float32)
    streamed = build_streaming(checkpoint, torch.float32, hold=hold, slots=slots)
    video, audio = inputs()
    for _ in range(2):
        for got, want in zip(streamed(video, audio, None), resident(video, audio, None), strict=True):
            assert torch.equal(got, want)
    streamed.close()
    assert all(p.is_meta for p in streamed.network.get_submodule("transformer_blocks").parameters())


def test_streaming_refuses_what_it_cannot_do(transformer_file: Path) -> None:
    with pytest.raises(ConfigError, match="slots is 0"):
        build_streaming(Checkpoint.open(transformer_file), torch.float32, slots=0)
    with pytest.raises(CheckpointError, match="no layer is stored as fp8-scaled-mm"):
        Checkpoint.open(transformer_file).build("transformer", quantization="fp8-scaled-mm")
    with pytest.raises(ConfigError, match="streaming takes"):
        build_streaming(Checkpoint.open(transformer_file), torch.float32, quantization="nvfp4-cast")
