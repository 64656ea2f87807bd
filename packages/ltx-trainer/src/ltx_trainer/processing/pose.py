"""Pose as a control: skeletons on black, found by a ViTPose model of `transformers` in a folder of the user's.

A skeleton is drawn as OpenPose draws it: 18 joints in 18 hues, the neck between the shoulders, limbs darker.
Persons are found by a detector where one is named; else the whole frame is taken for one.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_trainer.processing.depth import AT_ONCE, as_pictures, open_network

SEEN = 0.3  # least score of a joint that is drawn, and
FOUND = 0.5  # of a person
MARGIN = 1.25  # around a person who was found, as the model was trained
KEYPOINTS = 17  # of COCO: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles, left before right
SHOULDERS = (5, 6)
# Joints as OpenPose numbers them, by their place among those of COCO and, last, the neck; pairs of them are limbs.
JOINTS = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7)),  # arms
    *((1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),  # legs
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),  # head
)
HUES = [colorsys.hsv_to_rgb(index / len(JOINTS), 1, 1) for index in range(len(JOINTS))]
LIMB_LIGHT = 0.6
THICKNESS = 1 / 120  # of a limb, by the picture's shorter side


def pose_control(places: str, device: str) -> PoseControl:
    """The ViTPose model of ``places``, and after a comma a detector of persons. Raises `ConfigError`."""
    place, _, detector = places.partition(",")
    network, processor = open_network("VitPoseForPoseEstimation", "a ViTPose model", place, device)
    if network.config.num_labels != KEYPOINTS:
        raise ConfigError(f"{place} finds {network.config.num_labels} joints, expected the {KEYPOINTS} of COCO")
    return PoseControl(network, processor, PersonDetector(detector, device) if detector else None)


class PoseControl:
    """Frames ``[3, F, H, W]`` to drawn skeletons."""

    def __init__(self, network: Any, processor: Any, detector: PersonDetector | None) -> None:
        self.network, self.processor, self.detector = network, processor, detector

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        pictures = as_pictures(frames)
        size = frames.shape[-2], frames.shape[-1]
        drawn = [draw(self.persons(picture), size) for part in pictures.split(AT_ONCE) for picture in self._found(part)]
        return (torch.stack(drawn, dim=1) * 2 - 1).to(frames.dtype)

    def _found(self, pictures: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Every picture ``[H, W, 3]`` with the boxes ``[N, 4]`` of persons: centre and size, pixels."""
        if self.detector is not None:
            yield from zip(pictures, self.detector(pictures), strict=True)
            return
        height, width = pictures.shape[1:3]
        for picture in pictures:
            yield picture, torch.tensor([[(width - 1) / 2, (height - 1) / 2, width, height]])

    def persons(self, found: tuple[Tensor, Tensor]) -> Tensor:
        """Joints of every person of a picture, ``[N, 17, 3]``: x, y in pixels and score."""
        picture, boxes = found
        if not len(boxes):
            return torch.empty(0, KEYPOINTS, 3)
        height, width = self.network.config.backbone_config.image_size
        boxes = widened(boxes, width / height)
        mean, deviation = torch.tensor([self.processor.image_mean, self.processor.image_std])[..., None, None]
        inputs = ((cut(picture, boxes, (height, width)) - mean) / deviation).to(self.network.device)
        experts = {}
        if getattr(self.network.config.backbone_config, "num_experts", 1) > 1:
            experts["dataset_index"] = torch.zeros(len(boxes), dtype=torch.long, device=inputs.device)  # of COCO
        return joints_of(self.network(pixel_values=inputs, **experts).heatmaps.float().cpu(), boxes)


class PersonDetector:
    """A detector of `transformers`, such as RT-DETR, that knows persons."""

    def __init__(self, place: str, device: str) -> None:
        self.network, self.processor = open_network("AutoModelForObjectDetection", "a detector", place, device)
        names = self.network.config.id2label
        self.person = next((index for index, name in names.items() if name.lower() == "person"), None)
        if self.person is None:
            raise ConfigError(f"{place} knows no 'person', but {', '.join(list(names.values())[:8])}")

    def __call__(self, pictures: Tensor) -> list[Tensor]:
        """Boxes of the persons of every picture, ``[N, 4]``: centre and size in pixels."""
        inputs = self.processor(images=list(pictures.numpy()), return_tensors="pt").to(self.network.device)
        sizes = [tuple(pictures.shape[1:3])] * len(pictures)
        outputs = self.network(pixel_values=inputs["pixel_values"])
        boxes = []
        for found in self.processor.post_process_object_detection(outputs, threshold=FOUND, target_sizes=sizes):
            corners = found["boxes"][found["labels"] == self.person].float().cpu()
            sides = corners[:, 2:] - corners[:, :2]
            boxes.append(torch.cat((corners[:, :2] + sides / 2, sides * MARGIN), dim=1))
        return boxes


def widened(boxes: Tensor, aspect: float) -> Tensor:
    """Boxes ``[N, 4]`` made wider or higher, so that width by height is ``aspect``."""
    centre, width, height = boxes[:, :2], boxes[:, 2:3], boxes[:, 3:]
    return torch.cat((centre, torch.maximum(width, height * aspect), torch.maximum(height, width / aspect)), dim=1)


def cut(picture: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of a picture ``[H, W, 3]`` at one size, ``[N, 3, h, w]`` in [0, 1]; black where they reach out of it.

    The first and the last pixel lie on a box's edges, as the model was trained.
    """
    whole = torch.tensor([picture.shape[1] - 1, picture.shape[0] - 1]).float()
    axes = torch.meshgrid(torch.linspace(-0.5, 0.5, size[0]), torch.linspace(-0.5, 0.5, size[1]), indexing="ij")
    places = torch.stack((axes[1], axes[0]), dim=-1)  # [h, w, 2]: x, y
    pixels = boxes[:, None, None, :2] + places * boxes[:, None, None, 2:]
    source = picture.permute(2, 0, 1)[None].float() / 255
    grid = 2 * pixels / whole.clamp(min=1) - 1
    return F.grid_sample(source.expand(len(boxes), -1, -1, -1), grid, align_corners=True)


def joints_of(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """Peaks of ``[N, K, h, w]`` in the boxes they were cut from, ``[N, K, 3]``: x, y and score.

    A peak is moved a quarter of a cell towards the higher of its neighbours.
    """
    height, width = heatmaps.shape[-2:]
    scores, peaks = heatmaps.flatten(2).max(dim=2)
    y, x = peaks // width, peaks % width
    around = F.pad(heatmaps, (1, 1, 1, 1), mode="replicate").flatten(2)

    def at(dx: int, dy: int) -> Tensor:
        return around.gather(2, ((y + 1 + dy) * (width + 2) + x + 1 + dx)[..., None])[..., 0]

    place = torch.stack((x + (at(1, 0) - at(-1, 0)).sign() / 4, y + (at(0, 1) - at(0, -1)).sign() / 4), dim=-1)
    share = place / torch.tensor([width - 1, height - 1]) - 0.5
    return torch.cat((boxes[:, None, :2] + share * boxes[:, None, 2:], scores[..., None]), dim=-1)


def draw(persons: Tensor, size: tuple[int, int]) -> Tensor:
    """Skeletons ``[N, 17, 3]`` on black, ``[3, H, W]`` in [0, 1]; joints of low score are left out with their limbs."""
    image = Image.new("RGB", (size[1], size[0]))
    canvas, thick = ImageDraw.Draw(image), max(round(min(size) * THICKNESS), 1)
    for person in persons:
        shoulders = person[list(SHOULDERS)]
        neck = torch.cat((shoulders[:, :2].mean(dim=0), shoulders[:, 2:].amin(dim=0)))
        joints = torch.cat((person, neck[None]))[list(JOINTS)].tolist()
        for hue, (first, second) in zip(HUES, LIMBS, strict=False):  # the last hue is of a joint alone
            (x1, y1, score), (x2, y2, other) = joints[first], joints[second]
            if min(score, other) >= SEEN:
                canvas.line((x1, y1, x2, y2), fill=_shade(hue, LIMB_LIGHT), width=2 * thick)
        for hue, (x, y, score) in zip(HUES, joints, strict=True):
            if score >= SEEN:
                canvas.ellipse((x - thick, y - thick, x + thick, y + thick), fill=_shade(hue, 1.0))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _shade(colour: tuple[float, float, float], light: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * light * value) for value in colour)
    return red, green, blue
