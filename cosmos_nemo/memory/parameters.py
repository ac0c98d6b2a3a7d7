"""How many parameters the networks have, from the sizes on their cards."""

from cosmos_nemo.catalog import DiTShape, Family, LanguageShape, TokenShape, VisionShape

_COLORS = 3


def network_parameters(shape: DiTShape, *, tensor_parallel: int = 1) -> int:
    """Of one rank's part of the diffusion network, as it is in memory: with the fused adaLN matrices."""
    width, rank, patch = shape.hidden_size, shape.adaln_lora_dim, shape.patch_size
    linears = 6 * width * width + 2 * width * shape.text_dim + 2 * width * shape.ffn_hidden_size
    whole = 30 * rank * width + 4 * shape.head_dim
    places = 0
    if shape.family is Family.COSMOS1:
        places = shape.max_latent_frames + (shape.max_latent_height + shape.max_latent_width) // patch
    timestep = 4 * width * width + width + shape.token_vocab * shape.token_dim
    ends = (shape.patch_dim + shape.latent_channels * patch**2 + 3 * rank) * width
    return shape.num_layers * (linears // tensor_parallel + whole) + places * width + timestep + ends


def token_parameters(shape: TokenShape, *, tensor_parallel: int = 1) -> int:
    """Of one rank's part of a token transformer."""
    width, heads = shape.hidden_size, shape.num_heads * shape.head_dim
    key_value = shape.num_kv_heads * shape.head_dim
    layer = width * (2 * heads + 2 * key_value + 3 * shape.ffn_hidden_size)
    norms = 2 * width + 2 * shape.head_dim
    if shape.takes_text:
        layer += 2 * width * heads + 2 * shape.text_dim * key_value
        norms += width + 2 * shape.head_dim
    ends = (shape.embedding_rows + shape.vocab_size) * width
    return (shape.num_layers * layer + ends) // tensor_parallel + shape.num_layers * norms + width


def language_parameters(shape: LanguageShape) -> int:
    """Of a Mistral language model whose embedding and output matrices are two."""
    width, heads = shape.hidden_size, shape.head_dim * shape.num_heads
    key_value = shape.head_dim * shape.num_kv_heads
    layer = width * (2 * heads + 2 * key_value + 3 * shape.ffn_hidden_size + 2)
    return shape.num_layers * layer + 2 * shape.vocab_size * width + width


def vision_parameters(shape: VisionShape, language_width: int) -> int:
    """Of a Pixtral vision tower, and of the two linears that lead to a language model of that width."""
    width = shape.hidden_size
    layer = width * (4 * width + 3 * shape.ffn_hidden_size + 2)
    tower = _COLORS * shape.patch_size**2 * width + width + shape.num_layers * layer
    return tower + language_width * (width + language_width + 2)
