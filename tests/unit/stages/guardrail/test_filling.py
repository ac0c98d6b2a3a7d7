from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, LazyTensor
from cosmos_nemo.stages.guardrail.filling import check_same_tensors, fill


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).requires_grad_(False)


def checkpoint(**changes: Tensor | None) -> Checkpoint:
    draw = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor | None] = {
        name: torch.rand(tensor.shape, generator=draw).mul(100).to(tensor.dtype)
        for name, tensor in network().state_dict().items()
    }
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    lazy = {name: LazyTensor.of(tensor) for name, tensor in tensors.items() if tensor is not None}
    return Checkpoint(Path("file.pt"), layout="torch", tensors=lazy)


def test_parameters_and_buffers_are_filled_in_their_own_dtype() -> None:
    module, stored = network().to(torch.bfloat16), checkpoint()
    check_same_tensors(module, stored)
    fill(module, stored)
    state = module.state_dict()
    assert len(state) == 7 and state["1.running_var"].dtype == torch.bfloat16
    for name, tensor in state.items():
        assert torch.equal(tensor, stored.read(name).to(tensor.dtype))


def test_a_count_of_batches_that_the_file_lacks_is_zero() -> None:
    module, stored = network(), checkpoint(**{"1__num_batches_tracked": None})
    module[1].num_batches_tracked.fill_(7)
    check_same_tensors(module, stored)
    fill(module, stored)
    assert module[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"0__bias": None}, "1 of 7 tensors missing, first: 0.bias"),
        ({"1__running_mean": None}, "1 of 7 tensors missing, first: 1.running_mean"),
        ({"2__weight": torch.zeros(1)}, "1 of 8 tensors belong to another network, first: 2.weight"),
        (
            {"0__weight": torch.zeros(2, 4)},
            r"1 of 7 tensors of another shape, first: 0.weight is \(2, 4\), not \(2, 3\)",
        ),
    ],
)
def test_other_tensors_are_refused_by_name(changes: dict[str, Tensor | None], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=f"file.pt: {complaint}"):
        check_same_tensors(network(), checkpoint(**changes))


def test_names_that_are_to_be_ignored_are() -> None:
    stored = checkpoint(**{"text__a": torch.zeros(1), "text__b": torch.zeros(1)})
    check_same_tensors(network(), stored, ignored=("text.",))


def test_an_unchecked_file_without_a_tensor_fills_nothing_silently() -> None:
    with pytest.raises(AssertionError, match=r"0\.bias"):
        fill(network(), checkpoint(**{"0__bias": None}))
