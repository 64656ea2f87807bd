"""MLX as a backend, on the small checkpoint: answers as torch's networks, adapters, streaming, quantisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

mx = pytest.importorskip("mlx.core", reason="mlx is not installed: `pip install mlx`, on Linux mlx-cpu too")

import mlx.nn  # noqa: E402

from ltx_core.errors import CheckpointError, ConfigError  # noqa: E402
from ltx_core.loader.checkpoint import Checkpoint  # noqa: E402
from ltx_core.loader.lora import Lora  # noqa: E402
from ltx_core.loader.safetensors_file import save_checkpoint  # noqa: E402
from ltx_core.model.transformer.modality import Modality  # noqa: E402
from ltx_core.networks import BuildSettings, find_backend  # noqa: E402
from ltx_core.precision import Precision  # noqa: E402
from ltx_mlx.arrays import flat_parameters  # noqa: E402
from ltx_mlx.backend import MLXBackend, prepare  # noqa: E402
from ltx_mlx.convert import convert  # noqa: E402
from ltx_mlx.quantization import Quantization, WidenedLinear  # noqa: E402

pytestmark = pytest.mark.backend("mlx")

TINY = Path(__file__).parents[3] / "tests" / "data" / "tiny-checkpoint"
LORA, IC_LORA = TINY / "distilled-lora-tiny.safetensors", TINY / "ic-lora-tiny.safetensors"
FLOAT32 = BuildSettings(Precision("float32"), torch.device("cpu"))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(TINY / "ltx-2-tiny.safetensors")


@pytest.fixture(scope="module")
def deep(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The transformer with its two blocks repeated, so that there are some between the ends."""
    config = {**checkpoint.config, "transformer": {**checkpoint.config["transformer"], "num_layers": 4}}
    tensors = {}
    for name, source in checkpoint.sources("transformer").items():
        tensors[f"model.diffusion_model.{name}"] = source.read()
        for block in (0, 1):
            if name.startswith(start := f"transformer_blocks.{block}."):
                copy = f"model.diffusion_model.transformer_blocks.{block + 2}.{name.removeprefix(start)}"
                tensors[copy] = source.read()
    path = tmp_path_factory.mktemp("deep") / "deep.safetensors"
    save_checkpoint(path, tensors, {"config": config, "model_version": checkpoint.model_version})
    return Checkpoint.open(path)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def given(config, batch: int = 1) -> dict[str, Modality]:
    """Random inputs of both streams."""
    result = {}
    for name, stream in config.streams.items():
        positions = torch.rand(1, len(stream.max_pos), 7, 2).sort().values.expand(batch, -1, -1, -1)
        result[name] = Modality(
            latent=torch.randn(batch, 7, stream.in_channels),
            timesteps=torch.full((batch,), 0.6),
            positions=positions,
            context=torch.randn(batch, 5, config.caption_channels or stream.width),
        )
    return result


def close(got, want) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_backend_is_found_by_name() -> None:
    assert isinstance(find_backend("mlx"), MLXBackend)


@torch.no_grad()
def test_networks_answer_as_torchs(checkpoint: Checkpoint) -> None:
    latent = torch.randn(1, checkpoint.network_config("video_decoder").latent_channels, 3, 2, 2)
    sound = torch.randn(1, 8, 5, 16)
    inputs = {
        "video_decoder": latent,
        "video_encoder": torch.rand(1, 3, 9, 64, 64) * 2 - 1,
        "audio_decoder": sound,
        "audio_encoder": torch.randn(1, 2, 17, 64),
        "vocoder": torch.randn(1, 2, 9, 64),
    }
    for component, x in inputs.items():
        network = MLXBackend().network(component, checkpoint, FLOAT32)
        close([network(x)], [checkpoint.build(component, torch.float32)(x)])


def test_no_network_of_torch_is_built(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(nn.Module, "__init__", lambda self, *args, **kwargs: built.append(type(self).__name__))
    backend = MLXBackend()
    for component in ("video_encoder", "video_decoder", "audio_encoder", "audio_decoder", "vocoder"):
        backend.network(component, checkpoint, FLOAT32)
    for streams in (("video", "audio"), ("audio",)):
        adapted = backend.transformer(checkpoint, streams, FLOAT32)
        given_streams = {name: value for name, value in given(adapted.network.config).items() if name in streams}
        adapted.network(**given_streams)
    (folder,) = TINY.glob("gemma*")
    backend.text_encoder(str(folder), checkpoint, FLOAT32)(["a ball"])
    assert not built


@torch.no_grad()
def test_one_stream_alone_reads_its_own_weights(checkpoint: Checkpoint) -> None:
    for stream in ("video", "audio"):
        adapted = MLXBackend().transformer(checkpoint, (stream,), FLOAT32)
        assert adapted.serves((stream,)) and not adapted.serves(("video", "audio"))
        x = given(adapted.network.config)
        close([adapted.network(**x)[("video", "audio").index(stream)]], [alone(checkpoint, stream, x)])


def alone(checkpoint: Checkpoint, stream: str, x: dict[str, Modality]) -> torch.Tensor:
    network = checkpoint.build(f"{stream}_transformer", torch.float32)
    return network(**x)[("video", "audio").index(stream)]


@torch.no_grad()
@pytest.mark.parametrize("streamed", [False, True])
def test_adapters_are_fused_and_leave_nothing_behind(checkpoint: Checkpoint, streamed: bool) -> None:
    settings = BuildSettings(Precision("float32"), torch.device("cpu"), streamed=streamed)
    adapted = MLXBackend().transformer(checkpoint, ("video", "audio"), settings)
    loras = [Lora.open(LORA, 0.8), Lora.open(IC_LORA, 0.5)]
    x = given(adapted.network.config)
    base = adapted.network(**x)
    close(base, checkpoint.build("transformer", torch.float32)(**x))
    adapted.switch(loras)
    changed = adapted.network(**x)
    close(changed, checkpoint.build("transformer", torch.float32, loras=loras)(**x))
    assert not torch.equal(changed[0], base[0])
    adapted.switch([])
    assert all(torch.equal(one, other) for one, other in zip(adapted.network(**x), base, strict=True))
    adapted.close()


def test_a_streamed_transformer_keeps_no_block(checkpoint: Checkpoint) -> None:
    settings = BuildSettings(Precision("float32"), torch.device("cpu"), streamed=True)
    adapted = MLXBackend().transformer(checkpoint, ("video", "audio"), settings)
    assert not [name for name in flat_parameters(adapted.network) if name.startswith("transformer_blocks")]
    adapted.close()


@torch.no_grad()
@pytest.mark.parametrize(("name", "most"), [("mlx-q8-g32", 0.02), ("mlx-q4", 0.15), ("mlx-mxfp4", 0.2)])
@pytest.mark.parametrize("streamed", [False, True])
def test_quantised_linears_stay_near(deep: Checkpoint, name: str, most: float, streamed: bool) -> None:
    settings = BuildSettings(Precision("float32"), torch.device("cpu"), quantization=name, streamed=streamed)
    adapted = MLXBackend().transformer(deep, ("video", "audio"), settings)
    x = given(adapted.network.config)
    exact = MLXBackend().transformer(deep, ("video", "audio"), FLOAT32).network(**x)
    for got, want in zip(adapted.network(**x), exact, strict=True):
        error = float((got - want).norm() / want.norm())
        assert 0 < error < most
    adapted.close()


def test_few_bits_spare_the_end_blocks_and_all_that_is_sensitive(deep: Checkpoint) -> None:
    network, loader = prepare("transformer", deep, torch.float32, Quantization.parse("mlx-q4"))
    layers = {path: layer for path, layer in network.named_modules() if isinstance(layer, mlx.nn.QuantizedLinear)}
    assert layers.keys() == loader.formats.keys()
    blocks = {int(path.split(".")[1]) for path in layers}
    assert blocks == set(range(1, network.num_blocks - 1))
    assert not any("gate_logits" in path or "adaln" in path or "proj_out" in path for path in layers)


def test_names_of_quantisations() -> None:
    assert Quantization.parse("mlx-q8") == Quantization(8, 64)
    assert Quantization.parse("mlx-q4-g128") == Quantization(4, 128)
    assert Quantization.parse("mlx-mxfp4") == Quantization(4, 32, "mxfp4")
    with pytest.raises(ConfigError, match="quantization is 'fp8-cast', expected one such as mlx-q8"):
        Quantization.parse("fp8-cast")


@pytest.mark.parametrize("name", ["mlx-q8", "mlx-q4-g32", "mlx-mxfp4"])
@pytest.mark.parametrize("bias", [False, True])
def test_widened_linears_are_quantised_ones(name: str, bias: bool) -> None:
    plain = mlx.nn.Linear(128, 96, bias)
    form = Quantization.parse(name)
    weights = list({**plain.parameters(), **form.quantize(plain.weight)}.items())
    x = mlx.core.random.normal((3, 128))
    answers = []
    for kind in (WidenedLinear, mlx.nn.QuantizedLinear):
        layer = kind(128, 96, bias, form.group_size, form.bits, form.mode)
        layer.load_weights(weights)
        answers.append(layer(x))
    assert mlx.core.allclose(*answers, rtol=1e-4, atol=1e-5)
    assert not mlx.core.allclose(answers[0], plain(x), rtol=1e-4, atol=1e-5)


def test_foreign_adapters_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    save_file({f"diffusion_model.none.lora_{end}.weight": torch.zeros(4, 4) for end in "AB"}, file)
    adapted = MLXBackend().transformer(checkpoint, ("video", "audio"), FLOAT32)
    with pytest.raises(CheckpointError, match="names no module"):
        adapted.switch([Lora.open(file)])


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlx-q8-g32", "mlx-q4", "mlx-mxfp4"])
def test_a_converted_folder_computes_what_quantising_at_load_does(deep: Checkpoint, tmp_path: Path, name: str) -> None:
    source = deep.parts[0].path
    convert(source, tmp_path / "out", name, say=lambda line: None)
    stored = Checkpoint.open(tmp_path / "out")
    assert stored.config == deep.config and stored.model_version == deep.model_version
    tensors = stored.parts[0].tensors
    packed = [key.replace(".scales", ".weight") for key in tensors if key.endswith(".scales")]
    assert packed and all(tensors[key].info.dtype == torch.uint32 for key in packed)
    with pytest.raises(CheckpointError, match="is quantised for MLX, expected plain weights; compute with backend mlx"):
        stored.build("transformer")
    plain = BuildSettings(Precision("bfloat16"), torch.device("cpu"))
    at_load = replace(plain, quantization=name)
    for loras in ([], [Lora.open(LORA, 0.8)]):
        answers = []
        for checkpoint, settings in ((stored, plain), (deep, at_load)):
            torch.manual_seed(1)
            adapted = MLXBackend().transformer(checkpoint, ("video", "audio"), settings)
            adapted.switch(loras)
            answers.append(adapted.network(**given(adapted.network.config)))
        error = max(float((a - b).norm() / b.norm()) for a, b in zip(*answers, strict=True))
        assert error == 0 if not loras else error < 0.1  # an adapter meets weights that were rounded before


def test_a_conversion_that_fails_leaves_nothing(deep: Checkpoint, tmp_path: Path) -> None:
    convert(deep.parts[0].path, tmp_path / "once", "mlx-q8", say=lambda line: None)
    for source, message in ((tmp_path / "once", "is quantised already"), (LORA, "holds no transformer")):
        with pytest.raises(CheckpointError, match=message):
            convert(source, tmp_path / "twice", "mlx-q8", say=lambda line: None)
    with pytest.raises(CheckpointError, match="exists"):
        convert(deep.parts[0].path, tmp_path / "once", "mlx-q8", say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["once"]
