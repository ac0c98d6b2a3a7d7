"""Forward passes of the blocks of diffusers' AutoencoderKLCosmos, for a piece of a clip.

Each is that of the diffusers module it is given, without its copies. A clip in one piece has a fresh carry.
"""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from cosmos_nemo.models.common.causal import Carry
from cosmos_nemo.models.common.norm_silu import group_norm_silu
from cosmos_nemo.models.common.volumes import convolved, joined

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_cosmos import (
        CosmosCausalConv3d,
        CosmosConvProjection3d,
        CosmosResnetBlock3d,
    )


def resnet_block(block: "CosmosResnetBlock3d", x: Tensor, carry: Carry) -> Tensor:
    hidden = projection(block.conv1, group_norm_silu(x, block.norm1.norm), carry)
    hidden = projection(block.conv2, group_norm_silu(hidden, block.norm2.norm), carry)
    return hidden.add_(over_space(block.conv_shortcut, x))


def projection(pair: "CosmosConvProjection3d", x: Tensor, carry: Carry) -> Tensor:
    return over_time(pair.conv_t, over_space(pair.conv_s, x), carry)


def over_space(conv: "CosmosCausalConv3d | nn.Identity", x: Tensor) -> Tensor:
    """A convolution of every frame by itself, or x where the module has none."""
    if isinstance(conv, nn.Identity):
        return x
    assert conv.temporal_pad == 0, "a convolution over time"
    return convolved(conv, x)


def over_time(conv: "CosmosCausalConv3d", x: Tensor, carry: Carry) -> Tensor:
    """A convolution over time that sees the frames before the piece."""
    return convolved(conv, joined(carry.before(conv, x), x))
