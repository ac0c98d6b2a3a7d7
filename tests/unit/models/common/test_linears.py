from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.common.linears import column, row
from cosmos_nemo.models.token_transformer.spec import transformer_config
from cosmos_nemo.parallel.groups import start_alone
from tests.fakes import CPU
from tests.tiny_tokens import BASE


class Recorded(nn.Module):
    """In the place of a back end's linear."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__()
        self.sizes, self.options = sizes, options


CONFIG: Any = SimpleNamespace(init_method="first", output_layer_init_method="last")
GROUPS: Any = SimpleNamespace(tp="tensor parallel ranks")


def test_a_column_keeps_its_part_of_the_outputs_and_a_row_expects_its_part_of_the_inputs() -> None:
    made: Any = column(Recorded, 3, 5, CONFIG, GROUPS)
    assert made.sizes == (3, 5)
    assert made.options["gather_output"] is False and made.options["init_method"] == "first"
    assert "input_is_parallel" not in made.options
    made = row(Recorded, 5, 3, CONFIG, GROUPS)
    assert made.sizes == (5, 3)
    assert made.options["input_is_parallel"] is True and made.options["init_method"] == "last"


@pytest.mark.parametrize("make", [column, row])
def test_neither_has_a_bias_and_both_are_split_over_the_tensor_parallel_ranks(make: Any) -> None:
    made = make(Recorded, 3, 5, CONFIG, GROUPS)
    assert made.options["bias"] is False and made.options["skip_bias_add"] is False
    assert made.options["tp_group"] == "tensor parallel ranks"


@pytest.mark.parametrize(("make", "part"), [(column, "column_linear"), (row, "row_linear")])
def test_on_one_rank_megatrons_are_plain_products(make: Any, part: str) -> None:
    groups, backend = start_alone(CPU), torch_backend()
    config = transformer_config(BASE, backend=backend, pg_collection=groups.collection, dtype=torch.float32)
    linear = make(getattr(backend, part), 6, 4, config, groups.collection)
    assert [name for name, _ in linear.named_parameters()] == ["weight"]
    torch.nn.init.normal_(linear.weight)  # as built it is whatever lay in memory
    inputs = torch.randn(2, 1, 6)
    torch.testing.assert_close(linear(inputs)[0], inputs @ linear.weight.T)
