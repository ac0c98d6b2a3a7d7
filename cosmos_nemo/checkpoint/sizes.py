"""What the shapes in a file say about the network: its sizes, and the released model that has them."""

from dataclasses import fields, replace

from cosmos_nemo.catalog import CARDS, DiTShape, Family, ModelCard
from cosmos_nemo.checkpoint.formats import detect_format, network_names
from cosmos_nemo.checkpoint.reader import Checkpoint

# These change how the weights are used, but no tensor's shape.
_WITHOUT_SHAPE = ("rope_ratios_THW", "base_fps", "text_length", "patch_size")
_MAY_BE_NONE = ("takes_given_mask", "token_vocab", "token_dim")
SIZES = tuple(field.name for field in fields(DiTShape) if field.name not in _WITHOUT_SHAPE)


def infer_shape(checkpoint: Checkpoint, *, like: DiTShape) -> DiTShape | None:
    """`like` with every size that the file's shapes tell; None if a tensor that tells one is not there."""
    format_, prefix = detect_format(checkpoint)
    present = set(network_names(checkpoint))

    def size(name: str, axis: int) -> int:
        """Of our tensor `name`; axes count from the end, since a file may stack the layers along a first."""
        _, (first, *_) = format_.stored(name)
        lengths = checkpoint.shape(prefix + first) if prefix + first in present else ()
        return lengths[axis] if len(lengths) >= -axis else 0

    layer = "decoder.layers.0."
    width, head_dim = (
        size("affline_norm.weight", -1),
        size(layer + "full_self_attention.q_layernorm.weight", -1),
    )
    patch = like.patch_size
    channels = size("final_layer.linear.weight", -2) // patch**2
    token_dim = size("token_embedder.weight", -1)
    found = replace(
        like,
        num_layers=format_.num_layers(present) or size(layer + "mlp.linear_fc1.weight", -3),
        hidden_size=width,
        num_heads=width // head_dim if head_dim else 0,
        ffn_hidden_size=size(layer + "mlp.linear_fc1.weight", -2),
        adaln_lora_dim=size("final_layer.adaLN_modulation.1.weight", -2),
        text_dim=size(layer + "cross_attention.linear_kv.weight", -1),
        latent_channels=channels,
        token_vocab=size("token_embedder.weight", -2),
        token_dim=token_dim,
        takes_given_mask=size("x_embedder.proj.1.weight", -1) == (channels + token_dim + 2) * patch**2,
    )
    frames = size("extra_pos_embedder.pos_emb_t", -2)
    without_tables = Family.TOKEN_DECODER if found.token_vocab else Family.PREDICT2
    found = replace(found, family=Family.COSMOS1 if frames else without_tables)
    if frames:
        found = replace(
            found,
            max_latent_frames=frames,
            max_latent_height=size("extra_pos_embedder.pos_emb_h", -2) * patch,
            max_latent_width=size("extra_pos_embedder.pos_emb_w", -2) * patch,
        )
    is_known = size("x_embedder.proj.1.weight", -1) == found.patch_dim
    return (
        found
        if is_known and all(getattr(found, name) for name in SIZES if name not in _MAY_BE_NONE)
        else None
    )


def same_sizes(one: DiTShape, other: DiTShape) -> bool:
    """Whether the two networks have the same tensors."""
    return not _differences(one, other)


def cards_of_sizes(shape: DiTShape) -> list[ModelCard]:
    """The released models whose network has the same tensors as one of `shape`."""
    return [card for card in CARDS.values() if same_sizes(card.network, shape)]


def nearest_card(shape: DiTShape) -> ModelCard:
    """The released model of its family that differs from `shape` in the fewest sizes (none: it is that)."""
    family = [card for card in CARDS.values() if card.network.family is shape.family]
    return min(family, key=lambda card: len(_differences(shape, card.network)))


def describe(shape: DiTShape) -> str:
    """The released model with these sizes, else the sizes, in a few words."""
    card = nearest_card(shape)
    sizes = f"{shape.num_layers} layers, width {shape.hidden_size}"
    if same_sizes(shape, card.network):
        return f"{card.name} ({sizes})"
    if shape.family is Family.TOKEN_DECODER:
        return f"a diffusion decoder of {sizes}, {shape.num_heads} heads, {shape.token_vocab:,} tokens"
    without_mask = "Text2Image" if shape.family is Family.PREDICT2 else "Text2World"
    kind = "Video2World" if shape.takes_given_mask else without_mask
    return f"a {kind} network of {sizes}, {shape.num_heads} heads, text width {shape.text_dim}"


def _differences(one: DiTShape, other: DiTShape) -> list[str]:
    return [name for name in SIZES if getattr(one, name) != getattr(other, name)]
