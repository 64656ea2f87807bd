"""Controls made by networks of transformers: tiny random ones, saved to a folder as anyone's would be."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx_core.errors import ConfigError
from ltx_trainer.processing.controls import find_control


@pytest.fixture(scope="module")
def depth(tmp_path_factory):
    """A depth model of some thousand weights."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    folder = tmp_path_factory.mktemp("depth")
    backbone = Dinov2Config(
        image_size=28,
        patch_size=14,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        out_features=["stage1", "stage2"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        reassemble_factors=[1, 0.5],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    DPTImageProcessorPil(size=size, ensure_multiple_of=14, keep_aspect_ratio=True).save_pretrained(folder)
    return folder


def clip():
    return torch.rand(3, 9, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_depth_is_grey_and_fills_its_range_over_the_whole_clip(depth):
    control = find_control(f"depth:{depth}")
    made = control(clip())
    assert made.shape == (3, 9, 32, 64) and torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert made.min() == -1 and made.max() == 1
    assert (made[:, 0].max() < 1) or (made[:, 1].max() < 1), "frames are not stretched one by one"
    assert find_control(f"depth:{depth}") is control, "the network is read once"
    assert control(clip().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("metres", "nearest"), [(False, -1.0), (True, 1.0)])
def test_what_is_near_is_white(depth, monkeypatch, metres, nearest):
    control = find_control(f"depth:{depth}")
    monkeypatch.setattr(control, "tells_distance", metres)
    monkeypatch.setattr(
        control, "_planes", lambda pictures, size: torch.arange(1.0, 9.0)[:, None, None].expand(8, *size)
    )
    made = control(clip()[:, :8])
    assert made[0, 0, 0, 0] == nearest and made[0, 7, 0, 0] == -nearest


def test_a_missing_or_foreign_folder_is_one_line(depth, tmp_path):
    def refused(place):
        with pytest.raises(ConfigError) as caught:
            find_control(f"depth:{place}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert f"there is no depth model at {tmp_path / 'none'}" in refused(tmp_path / "none")
    broken = shutil.copytree(depth, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "head" not in name}, broken / "model.safetensors")
    assert "is not a depth model: its files lack" in refused(broken)
    other = shutil.copytree(depth, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "there is no depth model at" in refused(other)
    pickled = shutil.copytree(depth, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert "there is no depth model at" in refused(pickled), "a pickle is not read"
