import time

import pytest
import torch

from cosmos_nemo import launch
from cosmos_nemo.parallel.company import Company, Failure, open_store
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.stages.guardrail.outcome import GuardrailUnavailable
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.prompt_upsampler import UpsamplerError
from tests.parallel import launcher


def _pair() -> tuple[Company, Company]:
    """Two ranks in one process, on a store as srun's tasks have it."""
    port = launcher.free_port()
    ranks = [Ranks(rank=rank, num_ranks=2, address="127.0.0.1", port=port) for rank in range(2)]
    return Company(ranks[0], open_store(ranks[0])), Company(ranks[1], open_store(ranks[1]))


def test_another_ranks_failure_interrupts_the_work_and_its_status_becomes_this_ranks() -> None:
    ours, theirs = _pair()

    def work() -> None:
        theirs.fail("no such file", status=2)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(0.05)

    started = time.monotonic()
    assert launch._guarded(work, ours, 2, launch.Complain({})) == 2
    assert time.monotonic() - started < 20


def test_a_failure_of_our_own_is_reported_with_its_status() -> None:
    ours, theirs = _pair()

    def work() -> None:
        raise OSError("disk full")

    assert launch._guarded(work, ours, 2, launch.Complain({})) == 1
    assert theirs.failure() == Failure(0, 1, "OSError: disk full")


def test_errors_name_flags_as_the_door_does(capsys: pytest.CaptureFixture[str]) -> None:
    complain = launch.Complain({"--num_devices": "--num_gpus", "--video": "--film"})
    complain(launch.RequestError("--num_devices 8, --num_devices_more or --video_save_path"))
    assert capsys.readouterr().err == "RequestError: --num_gpus 8, --num_devices_more or --video_save_path\n"


@pytest.mark.parametrize(
    "error", [GuardrailUnavailable("a"), ItemError("b"), UpsamplerError("c")], ids=lambda e: type(e).__name__
)
def test_what_a_model_says_of_a_request_is_a_sentence(error: Exception) -> None:
    status, text = launch._status_and_text(error, Ranks())
    assert (status, text) == (1, f"{type(error).__name__}: {error}")


def test_a_gpu_that_is_too_small_is_told_what_to_do() -> None:
    def shown(error: Exception) -> str:
        try:
            raise error
        except Exception as caught:
            status, text = launch._status_and_text(caught, Ranks())
            assert status == 1
            return text

    text = shown(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB." in text
    assert "--offload all" in text.splitlines()[-1]
    assert "--offload" not in shown(RuntimeError("out of memory"))
    error = torch.OutOfMemoryError("CUDA out of memory.")
    error.add_note("The GPU's memory does not suffice for denoise: so much is predicted.")
    assert shown(error).splitlines()[-1] == error.__notes__[0], "what is known of this run is said instead"
