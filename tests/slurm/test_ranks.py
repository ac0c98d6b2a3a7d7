"""What cosmos_nemo makes of the variables that a real srun sets: no model, a second for each job."""

import json

import pytest

from cosmos_nemo.parallel.environment import Ranks
from tests.slurm.cluster import NODES, Cluster

pytestmark = pytest.mark.slurm

_SAY = """#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
cat > say.py <<'END'
import dataclasses, json, os
from cosmos_nemo.parallel.environment import ranks_from
ranks = dataclasses.asdict(ranks_from(os.environ))
print(json.dumps([os.environ["SLURMD_NODENAME"], ranks]), flush=True)
END
"""


def _said(cluster: Cluster, *commands: str) -> list[tuple[str, Ranks]]:
    """The node and the ranks of each process that the commands start in a job of its own, by rank."""
    number = cluster.submit(_SAY + "\n".join(commands))
    cluster.wait(number, ["COMPLETED"], timeout=60)
    lines = [json.loads(line) for line in cluster.output(number).splitlines() if line.startswith("[")]
    return sorted(((node, Ranks(**ranks)) for node, ranks in lines), key=lambda pair: pair[1].rank)


def test_the_tasks_of_two_nodes_are_ranks_that_meet_on_the_first_node(cluster: Cluster) -> None:
    said = _said(cluster, "srun python say.py")
    assert [(node, ranks.rank, ranks.local_rank) for node, ranks in said] == [
        (NODES[0], 0, 0),
        (NODES[0], 1, 1),
        (NODES[1], 2, 0),
        (NODES[1], 3, 1),
    ]
    assert {ranks.num_ranks for _, ranks in said} == {4}
    assert {ranks.address for _, ranks in said} == {NODES[0]}
    assert len({(ranks.port, ranks.attempt) for _, ranks in said}) == 1


def test_cyclic_tasks_have_the_local_ranks_of_their_nodes(cluster: Cluster) -> None:
    said = _said(cluster, "srun --distribution=cyclic python say.py")
    assert [(node, ranks.local_rank) for node, ranks in said] == [
        (NODES[0], 0),
        (NODES[1], 0),
        (NODES[0], 1),
        (NODES[1], 1),
    ]
    assert {ranks.address for _, ranks in said} == {NODES[0]}


def test_a_step_on_the_second_node_alone_meets_there(cluster: Cluster) -> None:
    said = _said(cluster, f"srun --nodes=1 --ntasks=2 --nodelist={NODES[1]} python say.py")
    assert [node for node, _ in said] == [NODES[1], NODES[1]]
    assert {(ranks.num_ranks, ranks.address) for _, ranks in said} == {(2, NODES[1])}


def test_two_steps_of_one_job_do_not_meet(cluster: Cluster) -> None:
    said = _said(cluster, "srun python say.py", "srun python say.py")
    assert [ranks.rank for _, ranks in said] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({(ranks.port, ranks.attempt) for _, ranks in said}) == 2


@pytest.mark.parametrize("command", ["python say.py", "srun --nodes=1 --ntasks=1 python say.py"])
def test_the_batch_script_itself_and_a_step_of_one_task_are_processes_alone(
    cluster: Cluster, command: str
) -> None:
    assert _said(cluster, command) == [(NODES[0], Ranks())]
