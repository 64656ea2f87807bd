"""Test settings shared by all packages."""

import gc
import os
import tempfile

import pytest
import torch
from hypothesis import settings

# Tests run one process per core; more threads per process only fight each other on small tensors.
torch.set_num_threads(1)

# What commands keep for the user goes where it hurts nobody.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ltx-test-cache-")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="ltx-test-state-")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=("torch", "mlx"), help="run tests of networks with this backend only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of tests that belong to a backend, leave those of the other out where one is named."""
    wanted = config.getoption("--backend")
    chosen, left = [], []
    for item in items:
        mark = item.get_closest_marker("backend")
        (left if wanted and mark and mark.args[0] != wanted else chosen).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = chosen


@pytest.fixture(scope="module", autouse=True)
def light_collections() -> None:
    """Commands collect garbage between networks: let that look at what a module of tests makes, not at all of torch."""
    gc.collect()
    gc.freeze()


# Examples may take as long as a busy machine needs.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
