"""What every test gets: no hub, nobody's cache, and GPU tests only where there is a GPU."""

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # huggingface_hub reads both when it is imported, so a fixture would come too late.
    empty = tempfile.TemporaryDirectory(prefix="cosmos_nemo_tests_")
    config.add_cleanup(empty.cleanup)
    os.environ["HF_HOME"] = f"{empty.name}/hub"
    os.environ["COSMOS_NEMO_CACHE"] = f"{empty.name}/cache"
    os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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
