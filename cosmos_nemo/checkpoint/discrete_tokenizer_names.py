"""Names and shapes of a discrete video tokenizer's tensors: diffusers' names and NVIDIA's files.

They are those of the continuous tokenizer (tokenizer_names.py) but for the two convolutions beside the codes.
NVIDIA's files hold more (spec/predict1-autoregressive.md, 3): archives the constants that tracing captured,
of the Haar patches and of the quantiser; a model.pt of tokenizer training has the network under `network.`
and, under `ema.`, averages of its weights, which are what archives are made of.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace

from cosmos_nemo.catalog import DiscreteTokenizerShape
from cosmos_nemo.checkpoint import tokenizer_names
from cosmos_nemo.checkpoint.rules import Shape
from cosmos_nemo.checkpoint.tokenizer_names import PARTS, NameMatch

LEVELS = ("quantizer._levels", "inv_quant.quantizer._levels")
"""Where an archive says the number of values of each channel of a code: the encoder's, the decoder's."""

_QUANTISER = ("quantizer.", "inv_quant.")
_NETWORK, _AVERAGES = "network.", "ema.network-"


def tensor_shapes(shape: DiscreteTokenizerShape, *, parts: Collection[str] = PARTS) -> dict[str, Shape]:
    """Every tensor of `parts` under diffusers' name, with its shape.

    ValueError for sizes that contradict each other.
    """
    _check_sizes(shape)
    latent, code = shape.latent_channels, len(shape.levels)
    named = tokenizer_names.tensor_shapes(shape.autoencoder, parts=parts)
    beside_codes = {
        "quant_conv.weight": (code, latent, 1, 1, 1),
        "quant_conv.bias": (code,),
        "post_quant_conv.weight": (latent, code, 1, 1, 1),
    }
    return named | {name: sizes for name, sizes in beside_codes.items() if name in named}


def match_names(
    shape: DiscreteTokenizerShape, file_names: Iterable[str], *, parts: Collection[str] = PARTS
) -> NameMatch:
    """Where the tensors of `parts` lie in a file of either naming; its other part may be there too."""
    file_names = tuple(file_names)
    held = _of_network(file_names)
    match = tokenizer_names.match_names(shape.autoencoder, held, parts=parts)
    return replace(match, sources={name: held[source] for name, source in match.sources.items()})


def upstream_name(name: str, shape: DiscreteTokenizerShape) -> str:
    """NVIDIA's name, in an archive, of the tensor that diffusers calls `name`."""
    return tokenizer_names.upstream_name(name, shape.autoencoder)


def _of_network(file_names: Collection[str]) -> dict[str, str]:
    """The network's tensors by their names in an archive -> by those in the file; averages if it has any."""
    averages = {
        name.removeprefix(_AVERAGES).replace("-", "."): name
        for name in file_names
        if name.startswith(_AVERAGES)
    }
    plain = {name.removeprefix(_NETWORK): name for name in file_names if not name.startswith("ema.")}
    return {name: held for name, held in (averages or plain).items() if not name.startswith(_QUANTISER)}


def _check_sizes(shape: DiscreteTokenizerShape) -> None:
    """A decoder doubles time at the same levels as space, and not at the first: not all is undone by it."""
    between = len(shape.channel_multipliers) - 1
    space, time = (
        _halvings(compression, shape.patch_size)
        for compression in (shape.spatial_compression, shape.temporal_compression)
    )
    if not (0 <= time <= space <= between and time < max(between, 1)):
        raise ValueError(
            f"spatial_compression {shape.spatial_compression} and temporal_compression "
            f"{shape.temporal_compression} of a discrete tokenizer cannot be, with patches of "
            f"{shape.patch_size} and {between + 1} levels: between two levels space can be halved, and "
            "time with it"
        )


def _halvings(compression: int, patch_size: int) -> int:
    """How often `compression` halves what the patches leave; negative if it cannot."""
    halvings = (compression // patch_size).bit_length() - 1
    return halvings if compression == patch_size * 2 ** max(halvings, 0) else -1
