"""The names MLX users know open the shared things."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

mx = pytest.importorskip("mlx.core", reason="mlx is not installed: `pip install mlx`, on Linux mlx-cpu too")

import ltx_mlx  # noqa: E402
from ltx_core.errors import ConfigError  # noqa: E402
from ltx_mlx.generate import main, split_pipeline  # noqa: E402
from ltx_pipelines.utils.media_io import read_recipe  # noqa: E402

pytestmark = pytest.mark.backend("mlx")

TINY = Path(__file__).parents[3] / "tests" / "data" / "tiny-checkpoint"
SMALL = {"height": 64, "width": 64, "num_frames": 9, "seed": 1}


def test_every_name_is_there() -> None:
    assert all(getattr(ltx_mlx, name) for name in ltx_mlx.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        ltx_mlx.Nothing  # noqa: B018


def test_importing_the_package_imports_neither_array_library() -> None:
    code = "import ltx_mlx, sys; print('torch' in sys.modules, 'mlx' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]


def test_a_pipeline_makes_a_clip_on_mlx() -> None:
    pipeline = ltx_mlx.create_one_stage_pipeline(TINY, dtype="float32")
    config = ltx_mlx.OneStageCFGConfig(**SMALL, num_inference_steps=2, cfg_scale=3.0)
    plan = pipeline.plan("a bell", config)
    assert plan.backend == "mlx" and plan.pipeline == "TI2VidOneStagePipeline"
    assert plan.stages[0].streams["video"].guidance.cfg_scale == 3.0
    generation = pipeline.generate("a bell", config)
    assert torch.cat(list(generation.video)).shape == (9, 64, 64, 3)


@pytest.mark.parametrize(
    "kind", ["pipeline", "two_stage_pipeline", "distilled_pipeline", "keyframe_interpolation_pipeline"]
)
def test_every_factory_opens_its_pipeline(kind: str) -> None:
    door = getattr(ltx_mlx, f"create_{kind}")(TINY)
    assert door.pipeline.ledger.backend == "mlx"


def test_a_length_it_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_frames is 20, expected 8k\+1; nearest valid: 17"):
        ltx_mlx.GenerationConfig(num_frames=20)


def test_guiders_guide() -> None:
    cond, uncond = torch.tensor([2.0]), torch.tensor([1.0])
    assert float(ltx_mlx.CFGGuider(3.0).guide(cond, uncond)) == 4.0


def test_transformer_weights_load_from_a_published_layout() -> None:
    both = ltx_mlx.load_transformer_weights(TINY / "ltx-2-tiny.safetensors", dtype="float32")
    video = ltx_mlx.load_transformer_weights(TINY / "ltx-2-tiny.safetensors", ("video",), "float32")
    assert isinstance(both, ltx_mlx.LTXAVModel) and list(both.config.streams) == ["video", "audio"]
    assert list(video.config.streams) == ["video"]


def test_the_module_is_the_command_with_mlx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["a bell", "--pipeline", "distilled", "--model", str(TINY), "-q", "-o", "bell.mp4"]
    assert main([*line, "--height", "64", "--width", "64", "--frames", "9", "--seed", "1"]) == 0
    recipe = read_recipe(tmp_path / "bell.mp4")
    assert recipe is not None and recipe["plan"]["backend"] == "mlx" and recipe["pipeline"] == "DistilledPipeline"
    assert split_pipeline(["x", "--pipeline=two-stage"]) == ("ti2vid-two-stages", ["x"])
    assert main(["a bell", "--pipeline", "none"]) == 2
