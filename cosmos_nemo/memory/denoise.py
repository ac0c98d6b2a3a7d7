"""The diffusion transformer as a stage, be it the model itself or an autoregressive model's decoder."""

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.memory.base import BFLOAT16, StageMemory
from cosmos_nemo.memory.parameters import network_parameters
from cosmos_nemo.plan import Plan

# Measured on an H200 with the 7B at 121 frames of 1280 x 704 (docs/performance.md): values alive
# at once for each token of a rank, in units of the network's width.
_WIDTHS = 12.6
_WIDTHS_TO_EXCHANGE = 2.5
"""On top where context parallel ranks exchange tokens and heads."""
# Estimated from sizes, not measured.
_WIDTHS_SPLIT_BY_TENSOR_PARALLEL = 8.0
"""Of _WIDTHS: the four-fold width of the MLP, before and after its activation."""


def denoise_memory(
    shape: DiTShape, latent_THW: tuple[int, int, int], *, plan: Plan, num_branches: int
) -> StageMemory:
    """Each branch whose turn it is on this rank keeps its text's keys and values for the whole video."""
    frames, rows, columns = latent_THW
    tokens = frames * (rows // shape.patch_size) * (columns // shape.patch_size)
    one_width = -(-tokens // plan.cp) * shape.hidden_size * BFLOAT16
    split = _WIDTHS_SPLIT_BY_TENSOR_PARALLEL + (_WIDTHS_TO_EXCHANGE if plan.cp > 1 else 0)
    widths = _WIDTHS - _WIDTHS_SPLIT_BY_TENSOR_PARALLEL + split / plan.tp
    branches = num_branches if plan.cfg == 1 else 1
    text = shape.num_layers * 2 * shape.text_length * shape.hidden_size // plan.tp * BFLOAT16
    weights = network_parameters(shape, tensor_parallel=plan.tp) * BFLOAT16
    return StageMemory("denoise", weights, int(widths * one_width) + branches * text)
