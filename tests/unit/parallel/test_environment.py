import pytest

from cosmos_nemo.parallel.environment import Ranks, first_host, ranks_from

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "1234",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
}


def test_a_process_alone_is_rank_0_of_1() -> None:
    assert ranks_from({}) == Ranks()


def test_torchrun_counts() -> None:
    assert ranks_from(TORCHRUN) == Ranks(
        rank=5, num_ranks=8, local_rank=1, address="node7", port=1234, store_is_hosted=True, attempt="2"
    )


def test_srun_counts_its_own_tasks_and_meets_on_the_first_host() -> None:
    assert ranks_from(SRUN) == Ranks(
        rank=3, num_ranks=4, local_rank=1, address="gpu07", port=26043, attempt="4711.2"
    )


def test_torchrun_under_srun_is_torchrun() -> None:
    assert ranks_from({**SRUN, **TORCHRUN}).num_ranks == 8


def test_master_address_and_port_win_over_slurms() -> None:
    found = ranks_from({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "99"})
    assert (found.address, found.port) == ("head", 99)


def test_a_batch_script_is_one_process_although_slurm_promises_many_tasks() -> None:
    assert ranks_from({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}) == Ranks()


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[07-09,12]", "gpu07"),
        ("rack1-n[3,5].local", "rack1-n3.local"),
        ("a,b[1-2]", "a"),
        ("rack[2-3]n[05,07-09],login", "rack2n05"),
        ("127.0.0.[1-2]", "127.0.0.1"),
    ],
)
def test_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_two_steps_of_one_job_do_not_meet() -> None:
    one, other = (ranks_from({**SRUN, "SLURM_STEP_ID": step}) for step in "01")
    assert one.port != other.port and one.attempt != other.attempt


def test_a_step_of_one_task_is_a_process_alone() -> None:
    assert ranks_from({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == Ranks()
