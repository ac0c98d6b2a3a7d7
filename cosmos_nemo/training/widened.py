"""A network that is told frames, begun with the weights of one that is not: Video2World from Text2World."""

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.names import network_rules, parameter_shapes
from cosmos_nemo.checkpoint.reader import Checkpoint
from cosmos_nemo.checkpoint.reader.base import Index, full_index
from cosmos_nemo.checkpoint.rules import Rule, Shape
from cosmos_nemo.checkpoint.sizes import infer_shape, same_sizes

logger = logging.getLogger(__name__)
_PATCHES = "x_embedder.proj.1.weight"


@dataclass(frozen=True, kw_only=True)
class WithMask(Rule):
    """A patch embedding [D, patch_dim] of a file that has no columns for the mask of given frames.

    Those are zero, so that the network begins as the file's own, whatever is given. They stand between the
    columns of the latent and those of the padding mask.
    """

    own: Rule
    """How the narrower one is read."""
    first: int
    """The first column of the mask."""

    def stored_shape(self) -> Shape:
        return self.own.stored_shape()

    def read(self, checkpoint: Checkpoint, index: Index = ()) -> Tensor:
        narrow = self.own.read(checkpoint)
        rows, columns = self.shape
        zeros = narrow.new_zeros(rows, columns - narrow.shape[1])
        wide = torch.cat([narrow[:, : self.first], zeros, narrow[:, self.first :]], dim=1)
        return wide[full_index(index, shape=self.shape)]

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        width = self.shape[1] - self.own.shape[1]
        narrow = torch.cat([tensor[:, : self.first], tensor[:, self.first + width :]], dim=1)
        return self.own.split(narrow)


def starting_rules(shape: DiTShape, checkpoint: Checkpoint) -> dict[str, Rule]:
    """As network_rules, but a network that takes a mask of given frames may begin with a file without one.

    CheckpointError if the file is of another network than that.
    """
    without = replace(shape, takes_given_mask=False)
    found = infer_shape(checkpoint, like=shape)
    if not shape.takes_given_mask or found is None or not same_sizes(found, without):
        return network_rules(shape, checkpoint)
    logger.warning(
        "%s is of a network that is told no frames: what it would need for their mask begins at zero",
        checkpoint.path,
    )
    rules = network_rules(without, checkpoint)
    own = rules[_PATCHES]
    return {
        **rules,
        _PATCHES: WithMask(
            names=own.names,
            shape=parameter_shapes(shape)[_PATCHES],
            own=own,
            first=shape.latent_channels * shape.patch_size**2,
        ),
    }
