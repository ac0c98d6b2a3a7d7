"""Names and shapes of a Wan2.1 video tokenizer's tensors: diffusers' AutoencoderKLWan and the released file.

Ours are diffusers' names. The released file, tokenizer.pth or Wan2.1_VAE.pth, has Wan2.1's
(spec/predict2-video2world.md, 3), which number the layers of encoder and decoder in one row each.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.checkpoint.mismatch import complaint
from cosmos_nemo.checkpoint.rules import Shape

PARTS = ("encoder", "decoder")

# In either naming; the released file calls quant_conv conv1 and post_quant_conv conv2.
_PREFIXES = {
    "encoder": ("encoder.", "quant_conv.", "conv1."),
    "decoder": ("decoder.", "post_quant_conv.", "conv2."),
}
_CUBE, _TIME, _POINT = (3, 3, 3), (3, 1, 1), (1, 1, 1)


@dataclass(frozen=True)
class Place:
    """A layer or a tensor by its name here and in the released file."""

    ours: str
    released: str

    def at(self, ours: str, released: str = "") -> "Place":
        """What is called so inside this layer, in the released file like here if it is not said."""
        return Place(f"{self.ours}{ours}", f"{self.released}{released or ours}")


Placed = tuple[Place, Shape]


def tensor_shapes(shape: WanTokenizerShape, *, parts: Collection[str] = PARTS) -> dict[str, Shape]:
    """Every tensor of `parts` under diffusers' name, with its shape.

    ValueError for sizes that contradict each other.
    """
    return {place.ours: sizes for place, sizes in _tensors(shape, parts)}


def released_names(shape: WanTokenizerShape, *, parts: Collection[str] = PARTS) -> dict[str, str]:
    """diffusers' name of every tensor of `parts` -> its name in the released file."""
    return {place.ours: place.released for place, _ in _tensors(shape, parts)}


def diffusers_names(shape: WanTokenizerShape, *, parts: Collection[str] = PARTS) -> dict[str, str]:
    """The name in the released file of every tensor of `parts` -> diffusers' name."""
    return {place.released: place.ours for place, _ in _tensors(shape, parts)}


def match_names(
    shape: WanTokenizerShape, stored: Mapping[str, Shape], *, parts: Collection[str] = PARTS
) -> tuple[dict[str, str], str]:
    """Our name -> the file's, for the tensors of `parts`, and what is wrong in one clause, "" if nothing is.

    `stored` are the file's names, of either naming, and shapes; its other part may be there too.
    """
    released = released_names(shape, parts=parts)
    is_released = len(stored.keys() & set(released.values())) >= len(stored.keys() & released.keys())
    sources = released if is_released else {name: name for name in released}
    expected = {sources[name]: sizes for name, sizes in tensor_shapes(shape, parts=parts).items()}
    others = tuple(prefix for part in PARTS if part not in parts for prefix in _PREFIXES[part])
    own = {name: sizes for name, sizes in stored.items() if not name.startswith(others)}
    return sources, complaint(expected, own)


def _tensors(shape: WanTokenizerShape, parts: Collection[str]) -> Iterator[Placed]:
    _check_sizes(shape)
    latent = shape.latent_channels
    if "encoder" in parts:
        yield from _encoder(shape)
        yield from _conv(Place("quant_conv", "conv1"), 2 * latent, 2 * latent, _POINT)
    if "decoder" in parts:
        yield from _conv(Place("post_quant_conv", "conv2"), latent, latent, _POINT)
        yield from _decoder(shape)


def _check_sizes(shape: WanTokenizerShape) -> None:
    halvings = len(shape.channel_multipliers) - 1
    compression = 2**halvings, 2 ** sum(shape.halves_time)
    if len(shape.halves_time) != halvings:
        raise ValueError(
            f"halves_time {shape.halves_time} and channel_multipliers {shape.channel_multipliers} of a video "
            f"tokenizer contradict each other: there is a halving between levels, {halvings} in all"
        )
    if (shape.spatial_compression, shape.temporal_compression) != compression:
        raise ValueError(
            f"spatial_compression {shape.spatial_compression} and temporal_compression "
            f"{shape.temporal_compression} of a video tokenizer cannot be: "
            f"its levels make them {compression[0]} and {compression[1]}"
        )


def _encoder(shape: WanTokenizerShape) -> Iterator[Placed]:
    widths = [shape.channels * multiplier for multiplier in (1, *shape.channel_multipliers)]
    yield from _conv(Place("encoder.conv_in", "encoder.conv1"), 3, widths[0])
    layer = 0
    for level, width in enumerate(widths[1:]):
        for i in range(shape.num_res_blocks):
            place = Place(f"encoder.down_blocks.{layer}", f"encoder.downsamples.{layer}")
            yield from _resnet(place, widths[level] if i == 0 else width, width)
            layer += 1
        if level < len(shape.halves_time):
            place = Place(f"encoder.down_blocks.{layer}", f"encoder.downsamples.{layer}")
            yield from _conv(place.at(".resample.1"), width, width, (3, 3))
            if shape.halves_time[level]:
                yield from _conv(place.at(".time_conv"), width, width, _TIME)
            layer += 1
    yield from _ends(
        Place("encoder", "encoder"), middle=widths[-1], last=widths[-1], outputs=2 * shape.latent_channels
    )


def _decoder(shape: WanTokenizerShape) -> Iterator[Placed]:
    widths = [shape.channels * multiplier for multiplier in reversed(shape.channel_multipliers)]
    yield from _conv(Place("decoder.conv_in", "decoder.conv1"), shape.latent_channels, widths[0])
    doubles_time = shape.halves_time[::-1]
    inputs, layer = widths[0], 0
    for level, width in enumerate(widths):
        for i in range(shape.num_res_blocks + 1):
            place = Place(f"decoder.up_blocks.{level}.resnets.{i}", f"decoder.upsamples.{layer}")
            yield from _resnet(place, inputs if i == 0 else width, width)
            layer += 1
        if level < len(doubles_time):
            place = Place(f"decoder.up_blocks.{level}.upsamplers.0", f"decoder.upsamples.{layer}")
            inputs = width // 2
            yield from _conv(place.at(".resample.1"), width, inputs, (3, 3))
            if doubles_time[level]:
                yield from _conv(place.at(".time_conv"), width, 2 * width, _TIME)
            layer += 1
    yield from _ends(Place("decoder", "decoder"), middle=widths[0], last=widths[-1], outputs=3)


def _ends(place: Place, *, middle: int, last: int, outputs: int) -> Iterator[Placed]:
    """What encoder and decoder have alike: the middle block and the way out."""
    attention = place.at(".mid_block.attentions.0", ".middle.1")
    yield from _resnet(place.at(".mid_block.resnets.0", ".middle.0"), middle, middle)
    yield attention.at(".norm.gamma"), (middle, 1, 1)
    yield from _conv(attention.at(".to_qkv"), middle, 3 * middle, (1, 1))
    yield from _conv(attention.at(".proj"), middle, middle, (1, 1))
    yield from _resnet(place.at(".mid_block.resnets.1", ".middle.2"), middle, middle)
    yield _norm(place.at(".norm_out", ".head.0"), last)
    yield from _conv(place.at(".conv_out", ".head.2"), last, outputs)


def _resnet(place: Place, inputs: int, outputs: int) -> Iterator[Placed]:
    yield _norm(place.at(".norm1", ".residual.0"), inputs)
    yield from _conv(place.at(".conv1", ".residual.2"), inputs, outputs)
    yield _norm(place.at(".norm2", ".residual.3"), outputs)
    yield from _conv(place.at(".conv2", ".residual.6"), outputs, outputs)
    if inputs != outputs:
        yield from _conv(place.at(".conv_shortcut", ".shortcut"), inputs, outputs, _POINT)


def _conv(place: Place, inputs: int, outputs: int, kernel: Shape = _CUBE) -> Iterator[Placed]:
    yield place.at(".weight"), (outputs, inputs, *kernel)
    yield place.at(".bias"), (outputs,)


def _norm(place: Place, width: int) -> Placed:
    return place.at(".gamma"), (width, 1, 1, 1)
