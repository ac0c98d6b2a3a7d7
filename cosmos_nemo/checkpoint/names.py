"""Names and shapes of the diffusion transformer's tensors, and how each is read from a file of any format.

Ours are the parameter names of the network in memory, one entry per layer (spec/nemo-cosmos1.md, 3.2).
"""

from typing import Any

from cosmos_nemo.catalog import DiTShape, Family
from cosmos_nemo.checkpoint.formats import Format, detect_format, network_names
from cosmos_nemo.checkpoint.mismatch import check_tensors
from cosmos_nemo.checkpoint.reader import Checkpoint
from cosmos_nemo.checkpoint.rules import InterleavedHeads, Rule, Shape, StackedLayer
from cosmos_nemo.checkpoint.sizes import infer_shape


def parameter_shapes(shape: DiTShape) -> dict[str, Shape]:
    """Our name -> shape of the whole (unsplit) tensor, of every parameter of the network."""
    width, rank = shape.hidden_size, shape.adaln_lora_dim
    layer = {
        "adaLN.adaLN_modulation.1.weight": (3 * rank, width),
        "adaLN.adaLN_modulation.2.weight": (9 * width, 3 * rank),
        "full_self_attention.linear_qkv.weight": (3 * width, width),
        "full_self_attention.linear_proj.weight": (width, width),
        "full_self_attention.q_layernorm.weight": (shape.head_dim,),
        "full_self_attention.k_layernorm.weight": (shape.head_dim,),
        "cross_attention.linear_q.weight": (width, width),
        "cross_attention.linear_kv.weight": (2 * width, shape.text_dim),
        "cross_attention.linear_proj.weight": (width, width),
        "cross_attention.q_layernorm.weight": (shape.head_dim,),
        "cross_attention.k_layernorm.weight": (shape.head_dim,),
        "mlp.linear_fc1.weight": (shape.ffn_hidden_size, width),
        "mlp.linear_fc2.weight": (width, shape.ffn_hidden_size),
    }
    tables = {
        "extra_pos_embedder.pos_emb_h": (shape.max_latent_height // shape.patch_size, width),
        "extra_pos_embedder.pos_emb_w": (shape.max_latent_width // shape.patch_size, width),
        "extra_pos_embedder.pos_emb_t": (shape.max_latent_frames, width),
    }
    tokens = {"token_embedder.weight": (shape.token_vocab, shape.token_dim)}
    return {
        "x_embedder.proj.1.weight": (width, shape.patch_dim),
        **(tokens if shape.family is Family.TOKEN_DECODER else {}),
        **(tables if shape.family is Family.COSMOS1 else {}),
        "t_embedder.1.linear_1.weight": (width, width),
        "t_embedder.1.linear_2.weight": (3 * width, width),
        "affline_norm.weight": (width,),
        **{
            f"decoder.layers.{i}.{name}": size
            for i in range(shape.num_layers)
            for name, size in layer.items()
        },
        "final_layer.adaLN_modulation.1.weight": (rank, width),
        "final_layer.adaLN_modulation.2.weight": (2 * width, rank),
        "final_layer.linear.weight": (shape.latent_channels * shape.patch_size**2, width),
    }


def rules_for(shape: DiTShape, format_: Format, *, prefix: str) -> dict[str, Rule]:
    """Our name -> how the tensor is stored in a file of this format whose names start with `prefix`."""
    rules = {}
    for name, size in parameter_shapes(shape).items():
        kind, stored = format_.stored(name)
        details: dict[str, Any] = {}
        if issubclass(kind, InterleavedHeads):
            details = {"head_dim": shape.head_dim}
        elif issubclass(kind, StackedLayer):
            details = {"layer": int(name.split(".")[2]), "num_layers": shape.num_layers}
        rules[name] = kind(names=tuple(prefix + each for each in stored), shape=size, **details)
    return rules


def network_rules(shape: DiTShape, checkpoint: Checkpoint) -> dict[str, Rule]:
    """Our name -> how the tensor is read from `checkpoint`, whose format its names tell.

    Raises CheckpointError if a tensor is missing, of another shape, or unexpected (and not one of those known
    to be of no use), and names the model whose sizes the file has.
    """
    format_, prefix = detect_format(checkpoint)
    rules = rules_for(shape, format_, prefix=prefix)
    expected = {name: rule.stored_shape() for rule in rules.values() for name in rule.names}
    stored = {name: checkpoint.shape(name) for name in network_names(checkpoint)}
    found = infer_shape(checkpoint, like=shape)
    check_tensors(checkpoint.path, expected=expected, stored=stored, asked=shape, found=found)
    return rules
