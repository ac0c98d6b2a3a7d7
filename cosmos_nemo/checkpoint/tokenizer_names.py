"""Names and shapes of the video tokenizer's tensors: diffusers' AutoencoderKLCosmos and NVIDIA's files.

Ours are diffusers' names. The released TorchScript archives, and a safetensors file written from them, have
upstream's (spec/predict1-diffusion.md, 6.2).
"""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from cosmos_nemo.catalog import TokenizerShape

Named = tuple[str, tuple[int, ...]]

PARTS = ("encoder", "decoder")

# (upstream, diffusers), replaced in this order in both directions.
_FRAGMENTS = (
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.0.", "mid_block.attentions.0."),
    ("mid.attn_1.1.", "mid_block.temp_attentions.0."),
    (".block.", ".resnets."),
    *(
        (f".{way}sample.conv{i}.conv3d.", f".{way}samplers.0.conv{i}.")
        for way in ("up", "down")
        for i in (1, 2, 3)
    ),
    (".q.conv3d.", ".to_q."),
    (".k.conv3d.", ".to_k."),
    (".v.conv3d.", ".to_v."),
    (".proj_out.conv3d.", ".to_out.0."),
    (".0.conv3d.", ".conv_s."),
    (".1.conv3d.", ".conv_t."),
    (".nin_shortcut.conv3d.", ".conv_shortcut."),
    ("quant_conv.conv3d.", "quant_conv."),
)
_CONSTANTS = ("wavelets", "_arange", "patch_size_buffer")
_PREFIXES = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}


@dataclass(frozen=True, kw_only=True)
class NameMatch:
    """Which of a file's names holds which of our tensors, and what did not fit, both in the file's naming."""

    sources: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def complaint(self) -> str | None:
        """What is wrong in one clause, None if nothing is."""
        if self.missing:
            total = len(self.missing) + len(self.sources)
            near = difflib.get_close_matches(self.missing[0], self.unexpected, n=1, cutoff=0.3)
            instead = f"; the file has {near[0]} instead" if near else ""
            return f"{len(self.missing)} of {total} tensors missing, first: {self.missing[0]}{instead}"
        if self.unexpected:
            return f"{len(self.unexpected)} tensors too many, first: {self.unexpected[0]}"
        return None


def match_names(
    shape: TokenizerShape, file_names: Iterable[str], *, parts: Collection[str] = PARTS
) -> NameMatch:
    """Where the tensors of `parts` lie in a file of either naming; its other part may be there too."""
    held = [name for name in file_names if name.rpartition(".")[2] not in _CONSTANTS]
    is_upstream = any(name.endswith(".conv3d.weight") for name in held)
    wanted = {
        name: upstream_name(name, shape) if is_upstream else name
        for name in tensor_shapes(shape, parts=parts)
    }
    others = tuple(prefix for part in set(_PREFIXES) - set(parts) for prefix in _PREFIXES[part])
    present, used = set(held), set(wanted.values())
    return NameMatch(
        sources={name: source for name, source in wanted.items() if source in present},
        missing=tuple(source for source in wanted.values() if source not in present),
        unexpected=tuple(name for name in held if name not in used and not name.startswith(others)),
    )


def upstream_name(name: str, shape: TokenizerShape) -> str:
    """NVIDIA's name of the tensor that diffusers calls `name`."""
    for upstream, diffusers in _FRAGMENTS:
        name = name.replace(diffusers, upstream)
    name = name.replace("down_blocks.", "down.")
    return re.sub(r"\bup_blocks\.(\d+)", lambda found: f"up.{_other_end(found[1], shape)}", name)


def diffusers_name(name: str, shape: TokenizerShape) -> str:
    """diffusers' name of the tensor that NVIDIA calls `name`."""
    for upstream, diffusers in _FRAGMENTS:
        name = name.replace(upstream, diffusers)
    name = re.sub(r"\bdown\.(\d+)", r"down_blocks.\1", name)
    return re.sub(r"\bup\.(\d+)", lambda found: f"up_blocks.{_other_end(found[1], shape)}", name)


def _other_end(level: str, shape: TokenizerShape) -> int:
    """Upstream counts the decoder's levels from the video, diffusers from the latent."""
    return len(shape.channel_multipliers) - 1 - int(level)


def tensor_shapes(shape: TokenizerShape, *, parts: Collection[str] = PARTS) -> dict[str, tuple[int, ...]]:
    """Every tensor of `parts` under diffusers' name, with its shape."""
    latent, named = shape.latent_channels, dict[str, tuple[int, ...]]()
    if "encoder" in parts:
        named |= dict(_encoder(shape))
        named |= dict(_conv("quant_conv", latent, latent))
    if "decoder" in parts:
        named |= dict(_conv("post_quant_conv", latent, latent))
        named |= dict(_decoder(shape))
    return named


def _encoder(shape: TokenizerShape) -> Iterator[Named]:
    widths = [shape.channels * multiplier for multiplier in (1, *shape.channel_multipliers)]
    space, time = _halvings(shape.spatial_compression, shape), _halvings(shape.temporal_compression, shape)
    yield from _projection("encoder.conv_in", _patch_channels(shape), widths[0])
    for level, width in enumerate(widths[1:]):
        block = f"encoder.down_blocks.{level}"
        for i in range(shape.num_res_blocks):
            yield from _resnet(f"{block}.resnets.{i}", widths[level] if i == 0 else width, width)
        if level < len(widths) - 2:
            yield from _resampler(f"{block}.downsamplers.0", width, space=level < space, time=level < time)
    yield from _middle("encoder.mid_block", widths[-1])
    yield from _norm("encoder.norm_out", widths[-1])
    yield from _projection("encoder.conv_out", widths[-1], shape.latent_channels)


def _decoder(shape: TokenizerShape) -> Iterator[Named]:
    multipliers = (*shape.channel_multipliers, shape.channel_multipliers[-1])
    widths = [shape.channels * multiplier for multiplier in reversed(multipliers)]
    space, time = _halvings(shape.spatial_compression, shape), _halvings(shape.temporal_compression, shape)
    yield from _projection("decoder.conv_in", shape.latent_channels, widths[0])
    yield from _middle("decoder.mid_block", widths[0])
    for level, width in enumerate(widths[1:]):
        block = f"decoder.up_blocks.{level}"
        for i in range(shape.num_res_blocks + 1):
            yield from _resnet(f"{block}.resnets.{i}", widths[level] if i == 0 else width, width)
        if level < len(widths) - 2:
            in_time = 0 < level <= time
            in_space = in_time or (space > time and level < space)
            yield from _resampler(f"{block}.upsamplers.0", width, space=in_space, time=in_time)
    yield from _norm("decoder.norm_out", widths[-1])
    yield from _projection("decoder.conv_out", widths[-1], _patch_channels(shape))


def _patch_channels(shape: TokenizerShape) -> int:
    return 3 * shape.patch_size**3


def _halvings(compression: int, shape: TokenizerShape) -> int:
    """How often the levels halve an axis that the patches have already divided by patch_size."""
    return (compression // shape.patch_size).bit_length() - 1


def _middle(name: str, width: int) -> Iterator[Named]:
    yield from _resnet(f"{name}.resnets.0", width, width)
    for attention in ("attentions.0", "temp_attentions.0"):
        yield from _norm(f"{name}.{attention}.norm", width)
        for linear in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _conv(f"{name}.{attention}.{linear}", width, width)
    yield from _resnet(f"{name}.resnets.1", width, width)


def _resnet(name: str, inputs: int, outputs: int) -> Iterator[Named]:
    yield from _norm(f"{name}.norm1", inputs)
    yield from _projection(f"{name}.conv1", inputs, outputs)
    yield from _norm(f"{name}.norm2", outputs)
    yield from _projection(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.conv_shortcut", inputs, outputs)


def _resampler(name: str, width: int, *, space: bool, time: bool) -> Iterator[Named]:
    """Down- or upsampler; each way works first on one axis kind, then on the other."""
    first, second = (_SPACE, _TIME) if "down" in name else (_TIME, _SPACE)
    applies = {_SPACE: space, _TIME: time}
    if applies[first]:
        yield from _conv(f"{name}.conv1", width, width, first)
    if applies[second]:
        yield from _conv(f"{name}.conv2", width, width, second)
    if space or time:
        yield from _conv(f"{name}.conv3", width, width)


_SPACE, _TIME = (1, 3, 3), (3, 1, 1)


def _projection(name: str, inputs: int, outputs: int) -> Iterator[Named]:
    yield from _conv(f"{name}.conv_s", inputs, outputs, _SPACE)
    yield from _conv(f"{name}.conv_t", outputs, outputs, _TIME)


def _conv(name: str, inputs: int, outputs: int, kernel: tuple[int, int, int] = (1, 1, 1)) -> Iterator[Named]:
    yield f"{name}.weight", (outputs, inputs, *kernel)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[Named]:
    yield f"{name}.norm.weight", (width,)
    yield f"{name}.norm.bias", (width,)
