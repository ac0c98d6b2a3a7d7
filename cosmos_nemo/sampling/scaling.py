"""How the network's input and output are scaled at a noise level (EDM preconditioning)."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EdmScaling:
    """Coefficients at one or several noise levels, each of sigma's shape and dtype.

    x0 = c_skip * x + c_out * F(c_in * x, c_noise), where F is the raw network.
    """

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_scaling(sigma: Tensor, *, sigma_data: float) -> EdmScaling:
    """Coefficients for sigma > 0 (any shape); spec/predict1-diffusion.md 4, arXiv 2206.00364 table 1."""
    variance = sigma**2 + sigma_data**2
    return EdmScaling(
        c_skip=sigma_data**2 / variance,
        c_out=sigma * sigma_data / variance.sqrt(),
        c_in=1 / variance.sqrt(),
        c_noise=sigma.log() / 4,
    )
