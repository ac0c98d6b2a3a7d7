"""Tests on a Slurm cluster: run by `-m slurm` alone (make slurm-test), and then never skipped."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, running_cluster


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Not only by addopts: .ci/run takes every marker, and the daemons may not be installed there.
    if "slurm" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("slurm")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as started:
        yield started
