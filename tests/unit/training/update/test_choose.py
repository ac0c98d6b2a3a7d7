import pytest
import torch

from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.training.settings import TrainingError, TrainingSettings
from cosmos_nemo.training.update.choose import form_of_update, make_update
from cosmos_nemo.training.update.replicated import Replicated
from tests.fakes import CPU, tiny_network

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("asked", "device", "replicas", "form"),
    [
        ("auto", CPU, 1, "replicated"),
        ("auto", CPU, 8, "replicated"),
        ("auto", CUDA, 1, "replicated"),
        ("auto", CUDA, 2, "distributed"),
        ("replicated", CUDA, 8, "replicated"),
        ("distributed", CUDA, 1, "distributed"),
    ],
)
def test_the_form_follows_device_replicas_and_what_was_asked(
    asked: str, device: torch.device, replicas: int, form: str
) -> None:
    settings = TrainingSettings(optimizer=asked)
    assert form_of_update(settings, num_replicas=replicas, device=device) == form


def test_the_distributed_form_is_refused_without_cuda() -> None:
    with pytest.raises(TrainingError, match=r"--optimizer distributed needs CUDA.*Pass --optimizer auto"):
        form_of_update(TrainingSettings(optimizer="distributed"), num_replicas=2, device=CPU)


def test_the_update_of_cpu_ranks_is_the_replicated_one() -> None:
    network = tiny_network().requires_grad_(True)
    update = make_update(network, settings=TrainingSettings(), groups=start_alone(CPU), device=CPU)
    assert isinstance(update, Replicated)
    assert not update.is_sharded
