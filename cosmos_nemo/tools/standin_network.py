"""A diffusion transformer's random weights, scaled so that nothing grows or dies on the way through it."""

import torch
from torch import Tensor

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.names import parameter_shapes

_SMALL = 0.1
_SMALL_LAYERS = ("adaLN_modulation.2.weight", "t_embedder.1.linear_2.weight", "final_layer.linear.weight")
"""Zero before training: kept small, so that the gates are and the first guess of the video is."""


def random_network(shape: DiTShape, *, seed: int) -> dict[str, Tensor]:
    """Our parameter name -> tensor in bfloat16, the dtype of the released folders; decided by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: random_parameter(name, size, generator).to(torch.bfloat16)
        for name, size in parameter_shapes(shape).items()
    }


def random_parameter(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """One parameter of that name and size, float32 on the generator's device."""
    if len(size) == 1:  # the only vectors are the weights of norms
        return torch.ones(size, device=generator.device)
    scale = _SMALL if name.endswith(_SMALL_LAYERS) else 1.0
    if name.endswith("adaLN.adaLN_modulation.2.weight"):
        return _three_diagonal_blocks(size, generator) * scale
    return torch.randn(size, generator=generator, device=generator.device) * scale * size[-1] ** -0.5


def _three_diagonal_blocks(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """As released: the three branches of a layer do not mix, so that other formats can hold the weights."""
    rows, rank = size[0] // 3, size[1] // 3
    blocks = (torch.randn(rows, rank, generator=generator, device=generator.device) for _ in range(3))
    return torch.block_diag(*(block * rank**-0.5 for block in blocks))
