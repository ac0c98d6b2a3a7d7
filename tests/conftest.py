"""What every test gets: no hub, nobody's cache, and GPU tests only where there is a GPU."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_WITH_PROCESSES = [Path(__file__).parent / name for name in ("doors", "parallel")]


def pytest_configure(config: pytest.Config) -> None:
    # huggingface_hub reads both when it is imported, so a fixture would come too late.
    empty = tempfile.TemporaryDirectory(prefix="cosmos_nemo_tests_")
    config.add_cleanup(empty.cleanup)
    os.environ["HF_HOME"] = f"{empty.name}/hub"
    os.environ["COSMOS_NEMO_CACHE"] = f"{empty.name}/cache"
    os.environ["HF_HUB_OFFLINE"] = "1"
    # pytest-xdist would begin with the files of the most tests; those that take longest have few.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What starts processes takes longest: begun last, it would leave the other workers idle.
    items.sort(key=lambda item: item.path.parent not in _WITH_PROCESSES)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _groups_end_with_the_test() -> Iterator[None]:
    """Process groups that a test left running would be found by the next one."""
    yield
    groups = sys.modules.get("cosmos_nemo.parallel.groups")
    if groups is not None:
        groups.stop()


@pytest.fixture(autouse=True)
def _log_levels_end_with_the_test() -> Iterator[None]:
    """A door called in this process sets them, for the messages that a person is to see."""
    names = ("cosmos_nemo", "megatron", "transformers", "diffusers", "torch")
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
