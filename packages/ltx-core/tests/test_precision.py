"""One policy decides what ``auto`` means."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ltx_core import precision
from ltx_core.errors import ConfigError
from ltx_core.precision import Precision, fast, resolve, resolve_mixed


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    """Devices are asked again, before and after."""
    fast.cache_clear()
    precision.slowdown.cache_clear()
    yield
    fast.cache_clear()


class TestAutoOnAProcessor:
    @pytest.mark.parametrize(
        ("units", "slowdown", "expected"),
        [(True, 0.3, "bfloat16"), (True, 1.3, "float32"), (False, 0.3, "float32")],
    )
    def test_takes_units_that_are_also_fast(
        self, monkeypatch: pytest.MonkeyPatch, units: bool, slowdown: float, expected: str
    ) -> None:
        monkeypatch.setattr(precision, "cpu_has_units", lambda: units)
        monkeypatch.setattr(precision, "slowdown", lambda name, kind: slowdown)
        assert resolve("auto", "cpu") == Precision(expected)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            ("flags\t\t: fpu avx2 avx512_bf16", True),
            ("flags\t\t: fpu avx2 avx512f", False),
            ("processor\t: 0\nFeatures\t: fp asimd bf16", True),
        ],
    )
    def test_reads_the_flags_of_the_kernel(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, expected: bool
    ) -> None:
        (tmp_path / "cpuinfo").write_text(f"{flags}\n")
        monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
        assert precision.cpu_has_units() is expected

    def test_believes_torch_that_its_library_uses_no_units(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
        assert not precision.cpu_has_units()

    def test_is_asked_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        monkeypatch.setattr(precision, "cpu_has_units", lambda: asked.append("units"))
        assert resolve("auto", "cpu") == resolve("auto", "cpu")
        assert asked == ["units"]


@pytest.mark.parametrize(
    ("has_bf16", "capability", "expected"),
    [(True, (8, 0), "bfloat16"), (False, (7, 5), "float16"), (False, (6, 1), "float32")],
)
def test_auto_on_cuda_follows_the_card(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert resolve("auto", "cuda").name == expected


@pytest.mark.parametrize(
    ("slow", "expected"),
    [((0.5, 0.5), "bfloat16"), ((float("inf"), 0.6), "float16"), ((2.0, 2.0), "float32")],
)
def test_auto_on_mps_takes_the_first_that_is_not_slower(
    monkeypatch: pytest.MonkeyPatch, slow: tuple[float, float], expected: str
) -> None:
    known = dict(zip(("bfloat16", "float16"), slow, strict=True))
    monkeypatch.setattr(precision, "slowdown", lambda name, kind: known[name])
    assert resolve("auto", "mps").name == expected


def test_a_slow_choice_is_obeyed_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "slowdown", lambda name, kind: 55.0)
    found = resolve(torch.bfloat16, "cpu")
    assert found.dtype is torch.bfloat16
    assert found.warning == "bfloat16 is 55 times slower than float32 here; --dtype auto takes the faster"
    assert resolve("auto", "meta") == Precision("float32")
    assert Precision("float32").warning is None


def test_what_a_device_cannot_compute_is_infinitely_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dtype: torch.dtype, device: str) -> None:
        raise TypeError("no bfloat16 on this device")

    monkeypatch.setattr(precision, "_convolution", refuse)
    assert precision.slowdown("bfloat16", "cpu") == float("inf")


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"dtype is 'bfloat', expected one of auto, .* nearest valid: bfloat16"):
        resolve("bfloat", "cpu")  # type: ignore[arg-type]


def test_modes_of_training_follow_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_units", lambda: False)
    modes = {mode: resolve_mixed(mode, "cpu").mixed for mode in ("auto", "bf16", "fp16", "no", None)}
    assert modes == {"auto": "no", "bf16": "bf16", "fp16": "fp16", "no": "no", None: "no"}


def test_the_names_are_known_without_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, ltx_core.precision; assert 'torch' not in sys.modules"], check=True
    )
