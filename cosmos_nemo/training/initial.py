"""The weights that training from scratch begins with."""

import math

import torch
from torch import Tensor

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.load import rank_index
from cosmos_nemo.checkpoint.names import parameter_shapes
from cosmos_nemo.models.common.dit.model import DiT

_ZERO = ("adaLN_modulation.2.weight", "t_embedder.1.linear_2.weight", "final_layer.linear.weight")
"""Each layer then begins as the identity, and the first answer is zero (adaLN-Zero, arXiv 2212.09748)."""
_ENDS_OF_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight")
_POSITION_STD = 0.02


@torch.no_grad()
def initialize(network: DiT, *, seed: int, tp_rank: int, tp_size: int) -> None:
    """Fills every parameter, on its device: the same network for every number of tensor parallel ranks."""
    device = network.device
    shapes = parameter_shapes(network.shape)
    for index, (name, parameter) in enumerate(network.named_parameters()):
        generator = torch.Generator(device).manual_seed(seed * 100_003 + index)
        whole = _initial(name, shapes[name], network.shape, generator)
        parameter.copy_(whole[rank_index(name, shape=shapes[name], rank=tp_rank, size=tp_size)])


def _initial(name: str, size: tuple[int, ...], shape: DiTShape, generator: torch.Generator) -> Tensor:
    device = generator.device
    if len(size) == 1:  # the only vectors are the weights of norms
        return torch.ones(size, device=device)
    if name.endswith(_ZERO):
        return torch.zeros(size, device=device)
    std = _POSITION_STD if name.startswith("extra_pos_embedder") else size[-1] ** -0.5
    if name.endswith(_ENDS_OF_RESIDUAL):
        std /= math.sqrt(3 * shape.num_layers)
    return torch.randn(size, generator=generator, device=device).clamp_(-3, 3) * std
