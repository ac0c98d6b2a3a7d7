from functools import partial
from itertools import product

import pytest
import torch

from cosmos_nemo.checkpoint.reader.base import CheckpointError
from cosmos_nemo.checkpoint.reader.chunks import Chunk, from_chunks

WHOLE = torch.arange(60.0).reshape(5, 12)


def cut(rows, columns, touched=None):
    """WHOLE in boxes of `rows` x `columns`; the boxes that are read put their corner into `touched`."""

    def load(index, *, corner):
        if touched is not None:
            touched.add(corner)
        return WHOLE[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns][index]

    corners = product(range(0, 5, rows), range(0, 12, columns))
    return [
        Chunk(corner, (min(rows, 5 - corner[0]), columns), partial(load, corner=corner)) for corner in corners
    ]


@pytest.mark.parametrize(("rows", "columns"), [(5, 12), (1, 12), (2, 4), (3, 6), (1, 1)])
def test_any_slice_is_assembled_from_the_pieces(rows, columns):
    tensor = from_chunks(cut(rows, columns), shape=(5, 12), dtype=torch.float32, name="a")
    for index in [(), (slice(1, 4),), (slice(0, 5), slice(3, 9)), (slice(2, 3), slice(11, 12))]:
        assert torch.equal(tensor.read(index), WHOLE[index])


def test_only_the_pieces_of_the_slice_are_read():
    touched = set()
    tensor = from_chunks(cut(1, 6, touched), shape=(5, 12), dtype=torch.float32, name="a")
    tensor.read((slice(1, 3), slice(0, 4)))
    assert touched == {(1, 0), (2, 0)}


def test_a_hole_is_an_incomplete_checkpoint():
    with pytest.raises(CheckpointError, match=r"the pieces of a\.b do not fill its shape \(5, 12\)"):
        from_chunks(cut(1, 12)[:-1], shape=(5, 12), dtype=torch.float32, name="a.b")
