"""Adapters: where they sit, what is saved, and that a loader which knows no alpha gets what training computed."""

from __future__ import annotations

import resource
import signal

import pytest
import torch
from safetensors import safe_open
from tests.tiny_checkpoints import inputs
from tests.tiny_training import make_config, write_dataset, write_model
from torch import nn

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.lora import Lora
from ltx_trainer.adapters import trained_tensors
from ltx_trainer.lora import (
    LoraSettings,
    add_lora,
    load_lora,
    lora_layers,
    lora_tensors,
    reference_metadata,
    save_lora,
)
from ltx_trainer.memory_plan import plan_memory
from ltx_trainer.targets import LoraGroup, is_target, modality_of
from ltx_trainer.trainer import LtxvTrainer


@pytest.fixture
def files(tmp_path):
    return write_model(tmp_path / "model.safetensors"), write_dataset(tmp_path / "data")


def network_of(path, dtype=torch.float32):
    return Checkpoint.open(path).build("transformer", dtype)


def modalities(dtype=torch.float32):
    from dataclasses import replace

    generator = torch.Generator().manual_seed(3)
    video, audio = inputs(dtype)
    return (
        replace(video, latent=torch.randn(1, 6, 16, generator=generator).to(dtype)),
        replace(audio, latent=torch.randn(1, 4, 16, generator=generator).to(dtype)),
    )


def randomised(network):
    generator = torch.Generator().manual_seed(5)
    for _, layer in lora_layers(network):
        layer.lora_B.weight.data.copy_(torch.randn(layer.lora_B.weight.shape, generator=generator) * 0.2)
    return network


@pytest.mark.parametrize(
    ("name", "target", "matches"),
    [
        ("transformer_blocks.0.attn1.to_k", "to_k", True),
        ("transformer_blocks.0.audio_attn1.to_k", "to_k", True),
        ("transformer_blocks.0.audio_attn1.to_k", "attn1.to_k", False),
        ("transformer_blocks.0.audio_ff.net.2", "ff.net.2", False),
        ("transformer_blocks.0.ff.net.2", "ff.net.2", True),
        ("patchify_proj", "patchify_proj", True),
        ("audio_patchify_proj", "patchify_proj", False),
    ],
)
def test_a_target_is_a_name_or_the_end_of_one_after_a_dot(name, target, matches):
    assert is_target(name, (target,)) is matches


def test_a_target_that_matches_nothing_is_refused_with_the_nearest(files):
    with pytest.raises(ConfigError, match=r"lora target 'to_kk' matches no linear of the transformer; nearest: 'to_k'"):
        add_lora(network_of(files[0]), LoraSettings(4, 4, 0.0, ("to_q", "to_kk")))


def test_the_start_depends_on_the_seed_alone_and_changes_nothing(files):
    torch.manual_seed(1)
    first, second, third = (network_of(files[0]) for _ in range(3))
    before = first(*modalities())
    names = add_lora(first, LoraSettings(4, 8), seed=2)
    torch.manual_seed(99)
    add_lora(second, LoraSettings(4, 8), seed=2)
    add_lora(third, LoraSettings(4, 8), seed=3)
    assert len(names) == 24
    for got, want in zip(first(*modalities()), before, strict=True):
        assert torch.equal(got, want)
    left, right, other = (lora_tensors(network) for network in (first, second, third))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert any(not torch.equal(left[name], other[name]) for name in left)
    trained = {name for name, parameter in first.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in first.state_dict() if "lora_" in name}


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4), (4, 8), (3, 1)])
def test_fused_by_a_loader_without_alpha_equals_the_trained_adapter(files, tmp_path, rank, alpha):
    network = network_of(files[0])
    add_lora(network, LoraSettings(rank, alpha, 0.0, ("to_k", "to_out.0", "ff.net.2", "audio_ff.net.0.proj")))
    randomised(network)
    with torch.no_grad():
        want = network(*modalities())
    path = save_lora(tmp_path / "a.safetensors", lora_tensors(network), torch.float32)
    with safe_open(path, "pt") as file:
        assert all(name.startswith("diffusion_model.") and name.endswith(".weight") for name in file.keys())  # noqa: SIM118
    fused = Checkpoint.open(files[0]).build("transformer", torch.float32, loras=[Lora.open(path, use_alpha=False)])
    with torch.no_grad():
        got = fused(*modalities())
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    again = network_of(files[0])
    add_lora(again, LoraSettings(rank, alpha, 0.0, ("to_k", "to_out.0", "ff.net.2", "audio_ff.net.0.proj")), seed=7)
    load_lora(again, path)
    for (name, one), (_, other) in zip(lora_layers(again), lora_layers(network), strict=True):
        torch.testing.assert_close(one.lora_B.weight, other.lora_B.weight, msg=name)


def test_an_adapter_on_a_bf16_base_stays_float32(files):
    network = network_of(files[0], torch.bfloat16)
    add_lora(network, LoraSettings(4, 8))
    randomised(network)
    video, audio = network(*modalities(torch.bfloat16))
    (video.float().square().mean() + audio.float().square().mean()).backward()
    for name, layer in lora_layers(network):
        assert layer.lora_A.weight.dtype == layer.lora_A.weight.grad.dtype == torch.float32, name
    assert video.dtype == torch.bfloat16


def test_loading_another_adapter_is_refused(files, tmp_path):
    network = network_of(files[0])
    add_lora(network, LoraSettings(4, 4, 0.0, ("to_k",)))
    path = save_lora(tmp_path / "a.safetensors", lora_tensors(network), torch.float32)
    wider, elsewhere = network_of(files[0]), network_of(files[0])
    add_lora(wider, LoraSettings(8, 8, 0.0, ("to_k",)))
    add_lora(elsewhere, LoraSettings(4, 4, 0.0, ("to_q",)))
    with pytest.raises(CheckpointError, match="is of rank 4, expected lora of rank 8"):
        load_lora(wider, path)
    with pytest.raises(CheckpointError, match=r"lacks 6 of the adapter's modules, first: transformer_blocks.0"):
        load_lora(elsewhere, path)


def test_reference_factors_are_in_the_metadata():
    assert reference_metadata(None) == reference_metadata((1, 1)) == {}
    assert reference_metadata((2, 1)) == {"reference_spatial_scale_factor": "2", "reference_downscale_factor": "2"}
    assert reference_metadata((1, 3)) == {"reference_temporal_scale_factor": "3"}
    assert reference_metadata((1, 1), legacy=True) == {"reference_downscale_factor": "1"}


def test_a_trained_adapter_loads_and_changes_the_model(files, tmp_path):
    result = LtxvTrainer(make_config(*files, tmp_path / "out", optimization={"learning_rate": 1e-2})).train(live=False)
    checkpoint = Checkpoint.open(files[0])
    base, tuned = checkpoint.build("transformer"), checkpoint.build("transformer", loras=[Lora.open(result.weights)])
    with torch.no_grad():
        assert not torch.equal(base(*modalities())[0], tuned(*modalities())[0])


def test_dropout_acts_in_training_only(files):
    network = network_of(files[0])
    add_lora(network, LoraSettings(4, 8, 0.5))
    randomised(network).train()
    assert not torch.equal(network(*modalities())[0], network(*modalities())[0])
    network.eval()
    assert torch.equal(network(*modalities())[0], network(*modalities())[0])
    assert isinstance(next(lora_layers(network))[1].dropout, nn.Dropout)


def test_a_full_disk_is_one_line_and_leaves_no_debris(files, tmp_path):
    trainer = LtxvTrainer(make_config(*files, tmp_path / "out", checkpoints={"interval": 1, "keep_last_n": 0}))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    reports = trainer.steps()
    next(reports)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(CheckpointError, match=r"cannot write .*lora_weights_step_00002.safetensors"):
            list(reports)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert kept == ["lora_weights_step_00001.safetensors", "training_state_step_00001.safetensors"]


KINDS = {
    "lora": {},
    "rslora": {"kind": "rslora"},
    "dora": {"kind": "dora"},
    "lokr": {"kind": "lokr", "factor": 4},
    "lokr, both factors whole": {"kind": "lokr", "factor": 2, "rank": 16},
    "groups": {"groups": (LoraGroup(modality="audio", rank=2, alpha=6), LoraGroup(("ff.net.2",), rank=3))},
}


def moved(network):
    """Adapters that change something: every value a little elsewhere."""
    generator = torch.Generator().manual_seed(5)
    for _, layer in lora_layers(network):
        for value in trained_tensors(layer).values():
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return network


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_kind_acts_in_the_loader_as_it_did_in_training(files, tmp_path, options):
    settings = LoraSettings(**{"rank": 4, "alpha": 6, "target_modules": ("to_k", "to_out.0", "ff.net.2"), **options})
    network = network_of(files[0])
    with torch.no_grad():
        before = network(*modalities())
        add_lora(network, settings)
        start = network(*modalities())
        want = moved(network)(*modalities())
    path = save_lora(tmp_path / "a.safetensors", lora_tensors(network), torch.float32)
    again = network_of(files[0])
    add_lora(again, settings, seed=9)
    load_lora(again, path)
    merged = Checkpoint.open(files[0]).build("transformer", torch.float32, loras=[Lora.open(path)])
    with torch.no_grad():
        loaded, fused = again(*modalities()), merged(*modalities())
    for number in range(2):
        torch.testing.assert_close(start[number], before[number], rtol=1e-5, atol=1e-5)
        assert (want[number] - before[number]).abs().max() > 1e-3
        torch.testing.assert_close(loaded[number], want[number], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fused[number], want[number], rtol=1e-5, atol=1e-5)
    layers = dict(lora_layers(network))
    if settings.groups:
        assert {layer.settings.rank for name, layer in layers.items() if modality_of(name) == "audio"} == {2}
        assert layers["transformer_blocks.0.ff.net.2"].settings.rank == 3


@pytest.mark.parametrize("kind", ["rslora", "dora", "lokr"])
def test_every_kind_learns_on_an_8_bit_base_and_its_plan_counts_it(files, tmp_path, kind):
    config = make_config(
        *files,
        tmp_path / "out",
        lora={"type": kind, "factor": 4, "groups": [{"modality": "audio", "rank": 2, "learning_rate": 1e-2}]},
        acceleration={"quantization": "int8-quanto"},
    )
    trainer = LtxvTrainer(config)
    before = {name: value.clone() for name, value in lora_tensors(trainer.transformer).items()}
    trained = sum(p.numel() for p in trainer.transformer.parameters() if p.requires_grad)
    assert plan_memory(config).trained == trained
    result = trainer.train(live=False)
    assert any(not torch.equal(value, before[name]) for name, value in lora_tensors(trainer.transformer).items())
    tuned = Checkpoint.open(files[0]).build("transformer", loras=[Lora.open(result.weights)])
    assert all(parameter.isfinite().all() for parameter in tuned.parameters())


def test_groups_have_learning_rates_of_their_own(files, tmp_path):
    groups = [{"modality": "audio", "learning_rate": 1e-5}]
    options = {"optimization": {"steps": 1, "learning_rate": 1e-2}, "lora": {"groups": groups}}
    trainer = LtxvTrainer(make_config(*files, tmp_path / "out", **options))
    trainer.train(live=False)
    largest = {True: 0.0, False: 0.0}
    for name, layer in lora_layers(trainer.transformer):
        change = float(layer.lora_B.weight.abs().max())  # zero at first; one step of Adam moves by the rate
        is_audio = modality_of(name) == "audio"
        largest[is_audio] = max(largest[is_audio], change)
    assert largest == {True: pytest.approx(1e-5, rel=0.01), False: pytest.approx(1e-2, rel=0.01)}


def test_an_adapter_of_another_kind_is_refused(files, tmp_path):
    network = network_of(files[0])
    add_lora(network, LoraSettings(4, 4, 0.0, ("to_k",)))
    path = save_lora(tmp_path / "a.safetensors", lora_tensors(network), torch.float32)
    other = network_of(files[0])
    add_lora(other, LoraSettings(4, 4, 0.0, ("to_k",), kind="lokr"))
    with pytest.raises(CheckpointError, match="is of rank 4, expected lokr of rank 4"):
        load_lora(other, path)
    with pytest.raises(ConfigError, match=r"lora.groups.0 means no module of the transformer's audio stream"):
        add_lora(network_of(files[0]), LoraSettings(groups=(LoraGroup(("attn1.to_k",), "audio"),)))
