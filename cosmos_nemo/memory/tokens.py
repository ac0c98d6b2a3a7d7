"""The stages of an autoregressive model."""

from dataclasses import replace

from cosmos_nemo.catalog import DECODER_WINDOW, ModelCard, TokenModel, TokenShape
from cosmos_nemo.memory.base import BFLOAT16, StageMemory
from cosmos_nemo.memory.denoise import denoise_memory
from cosmos_nemo.memory.frames import discrete_tokenizer_memory, tokenizer_memory, video_guard_memory
from cosmos_nemo.memory.parameters import token_parameters
from cosmos_nemo.plan import Plan

# Estimated from sizes, not measured.
_BYTES_TO_DRAW = 64
"""For each logit on top of itself: its place in the order, and float64 probabilities and their sums."""


def token_stages(
    card: ModelCard, tokens: TokenModel, *, plan: Plan, guardrails: bool = True, batch_size: int = 1
) -> tuple[StageMemory, ...]:
    """Of an autoregressive model, with its decoder if it has one; batch_size: videos drawn together.

    The decoder makes at most DECODER_WINDOW latent frames at once.
    """
    _, rows, columns = tokens.network.latent_THW
    side = tokens.tokenizer.spatial_compression // card.tokenizer.spatial_compression
    latent = DECODER_WINDOW, rows * side, columns * side
    stages = [
        discrete_tokenizer_memory(tokens.tokenizer, tokens.network.latent_THW),
        token_generation_memory(tokens.network, tensor_parallel=plan.tp, batch_size=batch_size),
    ]
    if card.has_diffusion_decoder:
        decoder = denoise_memory(card.network, latent, plan=plan, num_branches=card.num_branches)
        stages += [replace(decoder, name="diffusion_decoder"), tokenizer_memory(card, latent)]
    if guardrails:
        stages.append(video_guard_memory(latent))
    return tuple(stages)


def token_generation_memory(shape: TokenShape, *, tensor_parallel: int, batch_size: int) -> StageMemory:
    """Of one rank, in bfloat16, for videos whose tokens are drawn together.

    With the activations of the longest prompt, two fifths of the tokens: five times the hidden state and five
    times the MLP's width a token, which is 0.01 (4B) and 0.03 GiB (12B) above what an H200 took of a video.
    """
    prompt = shape.num_video_tokens * 2 // shape.latent_THW[0]
    activations = prompt * 5 * (shape.hidden_size + shape.ffn_hidden_size // tensor_parallel)
    drawing = token_work(shape, batch_size=batch_size, tensor_parallel=tensor_parallel)
    work = drawing + batch_size * activations * BFLOAT16
    weights = token_parameters(shape, tensor_parallel=tensor_parallel) * BFLOAT16
    return StageMemory("token_generation", weights, work)


def token_work(
    shape: TokenShape, *, batch_size: int = 1, tensor_parallel: int = 1, itemsize: int = BFLOAT16
) -> int:
    """Of one rank that makes so many videos of tokens together: keys and values, and logits as one is drawn.

    What the network needs inside to read a prompt is not in it. Logits are whole on every rank; keys and
    values are split, a head at least being on each.
    """
    heads = -(-shape.num_kv_heads // tensor_parallel)
    one_token = 2 * shape.num_layers * heads * shape.head_dim * itemsize
    logits = shape.vocab_size * (itemsize + _BYTES_TO_DRAW)
    return batch_size * (shape.max_length * one_token + logits)
