"""The stages of text: encoder, prompt upsampler and text guard."""

from cosmos_nemo.catalog import Family, ModelCard, Task
from cosmos_nemo.memory.base import BFLOAT16, GIB, StageMemory
from cosmos_nemo.memory.parameters import language_parameters, vision_parameters

# Measured on an H200 with guardrails and upsampler: the highest of these stages' own peaks less the weights.
_LANGUAGE_WORK = GIB // 4
"""Keys, values, logits and activations of a language model with at most a thousand tokens: 0.2 GiB of the
upsampler, 0.1 of Llama Guard."""
# Estimated from sizes, not measured.
_IMAGE_WORK = GIB // 5
"""The vision tower's, on an image of 1024 x 1024 pixels; with one of 1280 x 704 the upsampler's measured
peak is 0.2 GiB below the prediction."""
_REFINER_WORK = GIB
"""Keys, values and activations of the prompt refiner with up to 1,280 tokens of a picture."""

_LLAMA_GUARD = 8_030_261_248
_REFINER = 8_292_166_656
# Parameters, and work on a prompt of 512 tokens: the first measured, the second estimated.
_TEXT_ENCODERS = {
    "google-t5/t5-11b": (4_864_791_552, 64 * GIB // 100),
    "cosmos-nemo/Cosmos-Nano-T5": (134_272, 2**25),
}


def text_guard_memory() -> StageMemory:
    return StageMemory("text_guard", _LLAMA_GUARD * BFLOAT16, _LANGUAGE_WORK)


def upsampler_memory(card: ModelCard) -> StageMemory:
    """One that looks at images keeps the keys and values of as many tokens as it may read and write."""
    if card.network.family is Family.PREDICT2:
        return StageMemory("upsampler", _REFINER * BFLOAT16, _REFINER_WORK)
    language, parameters = card.upsampler, language_parameters(card.upsampler)
    if card.task is Task.TEXT2WORLD:
        return StageMemory("upsampler", parameters * BFLOAT16, _LANGUAGE_WORK)
    one_token = 2 * language.num_layers * language.num_kv_heads * language.head_dim * BFLOAT16
    weights = (parameters + vision_parameters(card.vision, language.hidden_size)) * BFLOAT16
    return StageMemory("upsampler", weights, one_token * language.max_length + _IMAGE_WORK)


def text_encoder_memory(card: ModelCard, *, itemsize: int) -> StageMemory:
    """An encoder of a person's own is taken to be as large as the released one."""
    default = _TEXT_ENCODERS["google-t5/t5-11b"]
    parameters, work = _TEXT_ENCODERS.get(card.sources.text_encoder, default)
    return StageMemory("text_encoder", parameters * itemsize, work * itemsize // BFLOAT16)
