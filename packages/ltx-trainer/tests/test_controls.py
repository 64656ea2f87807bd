"""Controls made by networks of transformers: tiny random ones, saved to a folder as anyone's would be."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx_core.errors import ConfigError
from ltx_trainer.model_files import find_model
from ltx_trainer.processing.controls import find_control
from ltx_trainer.processing.options import ProcessingOptions
from ltx_trainer.processing.pose import KEYPOINTS, cut, draw, joints_of, widened
from ltx_trainer.processing.workspace import Workspace


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
    Workspace(depth, find_model("tiny"), ProcessingOptions()).release()
    assert find_control(f"depth:{depth}") is not control, "it goes with the networks that encode"


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
    (broken / "model.safetensors").write_bytes((depth / "model.safetensors").read_bytes()[:-8])
    assert f"there is no depth model at {broken}" in refused(broken), "cut off"
    other = shutil.copytree(depth, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "there is no depth model at" in refused(other)
    pickled = shutil.copytree(depth, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert "there is no depth model at" in refused(pickled), "a pickle is not read"


@pytest.fixture(scope="module")
def pose(tmp_path_factory):
    """A ViTPose model and a detector of persons and dogs."""
    from transformers import (
        RTDetrConfig,
        RTDetrForObjectDetection,
        RTDetrResNetConfig,
        VitPoseBackboneConfig,
        VitPoseConfig,
        VitPoseForPoseEstimation,
    )
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
    from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil

    folder, detector = tmp_path_factory.mktemp("pose"), tmp_path_factory.mktemp("detector")
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        out_features=["stage1"],
    )
    torch.manual_seed(0)
    config = VitPoseConfig(backbone_config=backbone, num_labels=KEYPOINTS, scale_factor=4, use_simple_decoder=True)
    VitPoseForPoseEstimation(config).save_pretrained(folder)
    VitPoseImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(folder)
    resnet = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8] * 4,
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    small = RTDetrConfig(
        backbone_config=resnet,
        encoder_hidden_dim=16,
        encoder_in_channels=[8] * 3,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=5,
        decoder_in_channels=[16] * 3,
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        id2label={0: "dog", 1: "person"},
        label2id={"dog": 0, "person": 1},
    )
    RTDetrForObjectDetection(small).save_pretrained(detector)
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(detector)
    return folder, detector


class Bright:
    """A network whose joints all are where its input is brightest, four pixels a cell."""

    config, device = None, "cpu"

    def __call__(self, pixel_values):
        heat = torch.nn.functional.avg_pool2d(pixel_values.mean(dim=1, keepdim=True), 5, 1, 2, count_include_pad=False)
        self.heatmaps = torch.nn.functional.interpolate(heat, (16, 12), mode="bilinear", align_corners=True)
        self.heatmaps = self.heatmaps.expand(-1, KEYPOINTS, -1, -1)
        return self


@pytest.mark.parametrize("box", [None, (50.0, 60.0, 40.0, 30.0)])
def test_joints_are_where_they_are_in_the_frame(pose, monkeypatch, box):
    control = find_control(f"pose:{pose[0]}")
    network = Bright()
    network.config = control.network.config
    monkeypatch.setattr(control, "network", network)
    if box is not None:
        monkeypatch.setattr(control, "detector", lambda pictures: [torch.tensor([box]) for _ in pictures])
    frames = -torch.ones(3, 2, 96, 128)
    frames[:, 0, 58:61, 44:47] = 1.0
    ((picture, boxes),) = list(control._found(((frames + 1) * 127.5).to(torch.uint8).permute(1, 2, 3, 0)[:1]))
    joints = control.persons((picture, boxes))
    cell = widened(boxes, 0.75)[0, 2:] / torch.tensor([12.0, 16.0])
    assert joints.shape == (1, KEYPOINTS, 3)
    assert ((joints[0, :, :2] - torch.tensor([45.0, 59.0])).abs() <= cell).all()


def test_a_peak_is_found_to_a_part_of_a_cell_and_a_cut_keeps_pixels():
    picture = torch.randint(0, 255, (32, 24, 3), dtype=torch.uint8)
    whole = torch.tensor([[11.5, 15.5, 23.0, 31.0]])
    torch.testing.assert_close(cut(picture, whole, (32, 24))[0], picture.permute(2, 0, 1).float() / 255)
    heat = torch.zeros(1, KEYPOINTS, 16, 12)
    heat[0, :, 7, 4], heat[0, :, 7, 5], heat[0, :, 6, 4] = 1.0, 0.5, 0.2
    x, y, score = joints_of(heat, torch.tensor([[5.5, 7.5, 11.0, 15.0]]))[0, 0].tolist()
    assert (x, y, score) == (pytest.approx(4.25), pytest.approx(6.75), 1.0)


def test_a_skeleton_has_its_joints_and_not_those_unseen():
    person = torch.zeros(KEYPOINTS, 3)
    person[0] = torch.tensor([60.0, 20.0, 0.9])  # nose: red
    person[5], person[6] = torch.tensor([80.0, 50.0, 0.9]), torch.tensor([40.0, 50.0, 0.9])
    person[9] = torch.tensor([100.0, 90.0, 0.1])
    picture = draw(person[None], (120, 120))
    assert picture.shape == (3, 120, 120) and picture[:, 20, 60].tolist() == [1, 0, 0]
    assert picture[:, 50, 50].max() > 0.3, "the arm's side of the neck"
    assert not picture[:, 80:].any() and not draw(torch.empty(0, KEYPOINTS, 3), (8, 8)).any()


def test_persons_are_found_or_the_frame_is_one(pose, tmp_path):
    folder, detector = pose
    made = find_control(f"pose:{folder}")(clip())
    assert made.shape == (3, 9, 32, 64) and made.min() >= -1 and made.max() <= 1
    control = find_control(f"pose:{folder},{detector}")
    assert control(clip()).shape == made.shape and control.detector.person == 1
    cats = shutil.copytree(detector, tmp_path / "cats")
    config = json.loads((cats / "config.json").read_text())
    (cats / "config.json").write_text(json.dumps({**config, "id2label": {"0": "cat", "1": "dog"}}))
    with pytest.raises(ConfigError, match="knows no 'person', but cat, dog"):
        find_control(f"pose:{folder},{cats}")
    with pytest.raises(ConfigError, match="there is no detector at"):
        find_control(f"pose:{folder},{tmp_path / 'none'}")
