"""What Apple silicon is asked for, on a device that only says it is one."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

mx = pytest.importorskip("mlx.core", reason="mlx is not installed: `pip install mlx`, on Linux mlx-cpu too")

from ltx_core.precision import Precision  # noqa: E402
from ltx_mlx import memory  # noqa: E402
from ltx_mlx.backend import MLXBackend  # noqa: E402

pytestmark = pytest.mark.backend("mlx")
LIMIT = 48_000_000_000


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Every limit that is set, by name, on a GPU with this recommended working set."""
    found: dict[str, list[int]] = {"memory": [], "cache": [], "wired": []}

    def setter(name: str):
        def set_limit(value: int) -> int:
            found[name].append(value)
            return 7

        return set_limit

    fake = SimpleNamespace(
        metal=SimpleNamespace(is_available=lambda: True),
        device_info=lambda: {"max_recommended_working_set_size": LIMIT},
        get_active_memory=lambda: 8_000_000_000,
        synchronize=lambda: None,
        **{f"set_{name}_limit": setter(name) for name in found},
    )
    monkeypatch.setattr(memory, "mx", fake)
    return found


def test_limits_follow_the_recommended_working_set(asked: dict[str, list[int]]) -> None:
    backend = MLXBackend()
    assert asked == {"memory": [LIMIT], "cache": [LIMIT // 10], "wired": []}
    assert memory.free_bytes() == LIMIT - 8_000_000_000
    assert backend.precision("auto", None) == Precision("bfloat16")


def test_weights_are_wired_while_they_are_used(asked: dict[str, list[int]], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), memory.wire(20_000_000_000):
        assert asked["wired"] == [LIMIT]
    assert asked["wired"] == [LIMIT, 7] and not caplog.records


def test_weights_that_crowd_the_memory_get_one_warning(
    asked: dict[str, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), memory.wire(44_000_000_000):
        pass
    (message,) = caplog.messages
    assert message.startswith("44.0 GB of weights, of 48.0 GB") and "\n" not in message


def test_a_cpu_is_asked_for_nothing() -> None:
    with memory.wire(10**15):
        assert memory.recommended_bytes() is None
    assert MLXBackend().precision("auto", None) == Precision("float32")
    assert memory.free_bytes() > 0
