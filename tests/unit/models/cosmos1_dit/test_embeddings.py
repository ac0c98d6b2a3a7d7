import pytest
import torch

from cosmos_nemo.models.cosmos1_dit.embeddings import LearnedPositions


def _positions(dtype: torch.dtype = torch.float32) -> LearnedPositions:
    table = LearnedPositions((3, 4, 5), 6, dtype=dtype).requires_grad_(False)
    for parameter in table.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    return table


def test_positions_are_the_sum_of_three_rows_scaled_to_unit_root_mean_square() -> None:
    table = _positions()
    found = table(torch.tensor([[0, 1, 2], [2, 3, 4], [1, 0, 0]]))
    assert found.shape == (3, 1, 6)
    for row, (t, h, w) in zip(found[:, 0], [(0, 1, 2), (2, 3, 4), (1, 0, 0)], strict=True):
        total = table.pos_emb_t[t] + table.pos_emb_h[h] + table.pos_emb_w[w]
        torch.testing.assert_close(row, total / (1e-6 + total.square().mean().sqrt()))
        assert row.square().mean().item() == pytest.approx(1, abs=1e-5)


def test_tiny_position_tables_are_scaled_with_1e_6_added_to_their_root_mean_square() -> None:
    table = LearnedPositions((1, 1, 1), 6, dtype=torch.float32).requires_grad_(False)
    place = torch.zeros(1, 3, dtype=torch.long)
    assert torch.equal(table(place), torch.zeros(1, 1, 6))
    table.pos_emb_h.fill_(1e-6)
    torch.testing.assert_close(table(place), torch.full((1, 1, 6), 0.5))


def test_positions_of_bfloat16_tables_are_worked_out_in_float32_and_rounded_once() -> None:
    table = _positions(torch.bfloat16)
    places = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(5))
    found = table(places)
    exact = LearnedPositions((3, 4, 5), 6, dtype=torch.float32)
    exact.load_state_dict({name: tensor.float() for name, tensor in table.state_dict().items()})
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact(places).bfloat16())
