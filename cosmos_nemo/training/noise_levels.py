"""How much noise the samples are trained under."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HIGH = 200.0, 100_000.0
"""Least and largest sigma of samples that are almost nothing but noise: sampling starts below it, at 80."""


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """The distribution of ln(sigma): normal, but for `high_share` of the samples uniform between HIGH's."""

    mean: float
    std: float
    high_share: float = 0.0

    def sigma_of(self, unit_B: Tensor) -> Tensor:
        """The level that belongs to each unit normal number, which it rises with."""
        usual_B = (self.mean + self.std * unit_B).exp()
        if self.high_share == 0:
            return usual_B
        # One number decides both: the upper end of its distribution is stretched over the high levels.
        place_B = torch.special.ndtr(unit_B.double())
        usual_share = 1 - self.high_share
        usual_B = (self.mean + self.std * torch.special.ndtri(place_B / usual_share)).exp()
        low, high = (math.log(sigma) for sigma in HIGH)
        high_B = (low + (high - low) * (place_B - usual_share) / self.high_share).exp()
        return torch.where(place_B < usual_share, usual_B, high_B).to(unit_B.dtype)

    def __str__(self) -> str:
        rest = f", {100 * self.high_share:g} % of the samples from {HIGH[0]:,.0f} to {HIGH[1]:,.0f}"
        return f"ln(sigma) from N({self.mean:.3g}, {self.std:.3g})" + (rest if self.high_share else "")
