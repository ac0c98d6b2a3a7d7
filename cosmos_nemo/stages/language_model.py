"""transformers' language models, filled in place on their device, and the tokens with which they answer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import LanguageShape
from cosmos_nemo.checkpoint.language_names import language_rules
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.reader import Checkpoint


def build_mistral(
    shape: LanguageShape, *, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """A MistralForCausalLM of that shape, filled tensor by tensor, so that no device holds more than it.

    CheckpointError as language_names.language_rules', before any memory is taken.
    """
    from transformers import MistralForCausalLM

    rules = language_rules(shape, checkpoint)
    config = mistral_config(shape)
    model = empty_on_device(lambda: MistralForCausalLM(config), device=device, dtype=dtype)
    load_into(model, checkpoint=checkpoint, rules=rules)
    return model


def mistral_config(shape: LanguageShape) -> Any:
    """transformers' MistralConfig with those sizes: full causal attention, embeddings and output apart."""
    from transformers import MistralConfig

    return MistralConfig(
        num_hidden_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.ffn_hidden_size,
        vocab_size=shape.vocab_size,
        rms_norm_eps=shape.norm_eps,
        rope_theta=shape.rope_theta,
        max_position_embeddings=shape.max_length,
        sliding_window=None,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )


def empty_on_device(make: Callable[[], nn.Module], *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The transformers model that `make` makes, with parameters on `device` that are still to be filled.

    Its rotary tables, which no checkpoint holds, are computed, in float32 as transformers keeps them.
    """
    with torch.device("meta"):
        model = make().to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if _has_table(child):
                # Some of these modules keep their configuration, others leave it to the module around them.
                config = getattr(child, "config", None) or parent.config
                setattr(parent, name, type(child)(config).to(device))
    return model


def _has_table(module: nn.Module) -> bool:
    """Whether the module itself has buffers outside its state: to_empty has left garbage in them."""
    own = {name for name, _ in module.named_buffers(recurse=False)}
    return bool(own - module.state_dict().keys())


def answer_tokens(
    model: Any,
    prompt: list[int],
    *,
    num_tokens: int,
    end_token: int,
    temperature: float,
    seed: int,
    top_p: float = 1.0,
    pixels_1CHW: Tensor | None = None,
) -> list[int]:
    """Up to `num_tokens` tokens drawn after `prompt`, the last of them `end_token` unless they ran out.

    Each is drawn from the likeliest tokens that together have the probability `top_p`. For a model that sees
    images, `prompt` has an image token for each patch of `pixels`. The same seed draws the same tokens, and
    no global random state is used. FloatingPointError if the model's logits are not finite.
    """
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    tokens_1L = torch.tensor([prompt], device=model.device)
    steps = [refuse_not_finite, TemperatureLogitsWarper(temperature)]
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    seen = (
        {}
        if pixels_1CHW is None
        else {"pixel_values": pixels_1CHW.to(device=model.device, dtype=model.dtype)}
    )
    drawn_1L = model.generate(
        tokens_1L,
        attention_mask=torch.ones_like(tokens_1L),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=end_token,
        pad_token_id=end_token,
        logits_processor=LogitsProcessorList([*steps, GumbelNoise(seed)]),
        **seen,
    )
    return drawn_1L[0, len(prompt) :].tolist()


def refuse_not_finite(tokens_BL: Tensor, logits_BV: Tensor) -> Tensor:
    """The logits as they are; FloatingPointError if one of them is NaN or infinite."""
    if not torch.isfinite(logits_BV).all():
        raise FloatingPointError(f"logits are NaN or infinite after {tokens_BL.shape[1]} tokens")
    return logits_BV


class GumbelNoise:
    """Noise that makes the largest of the logits a draw from their softmax: the Gumbel-max trick.

    It stands where generate would sample, because generate draws from the global random state.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, tokens_BL: Tensor, logits_BV: Tensor) -> Tensor:
        # Drawn on the host, so that every device draws the same tokens.
        waiting_BV = torch.empty(logits_BV.shape).exponential_(generator=self._generator)
        return logits_BV - waiting_BV.clamp_min_(torch.finfo(torch.float32).tiny).log_().to(logits_BV.device)
