"""The folder of a tiny Llama Guard 3, as transformers reads it, that judges by one marked word."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BEGIN, _HEADER, _HEADER_END, _TURN_END, _UNKNOWN = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|unknown|>",
)
_SPECIAL = (_BEGIN, _HEADER, _HEADER_END, _TURN_END, _UNKNOWN)
_ANSWER = ("\n\n", "safe", "unsafe", "\n", "S1")
"""What the answers consist of."""

_TEMPLATE = (
    _BEGIN + _HEADER + "user" + _HEADER_END + "\n\n"
    "Task: say whether the last message of this conversation breaks one of the rules below.\n\n"
    "<BEGIN UNSAFE CONTENT CATEGORIES>\n"
    "{% for code in categories | default({}) %}{{ code }}: {{ categories[code] }}\n{% endfor %}"
    "<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n"
    "{% for message in messages %}"
    "{{ 'User' if message['role'] == 'user' else 'Agent' }}: {{ message['content'] | trim }}\n\n"
    "{% endfor %}"
    "<END CONVERSATION>\n\nAnswer with one word; after a bad one, name the broken rules in a second line."
    + _TURN_END + _HEADER + "assistant" + _HEADER_END
)  # fmt: skip
"""In the structure of Llama Guard 3: the task, the categories, the conversation, the header of the answer."""

_NUM_LAYERS = 2
_NUM_HEADS, _NUM_KEY_HEADS, _HEAD_DIM = 4, 2, 8
_SLOWEST = _HEAD_DIM // 2 - 1
"""The number of a query or key that rotation leaves nearly as it is over some thousands of tokens."""

_CONSTANT, _MARKED, _SEEN, _LAST = 0, 1, 2, 3
"""Numbers of a hidden vector: 1 everywhere; 1 in the marked word; above 0 where attention has found it; and,
from here on, 1 in one token each of _CHAIN."""
_CHAIN = (_HEADER_END, *_ANSWER)
_FREE = _LAST + len(_CHAIN)
"""The first number that decides nothing: random, and kept apart from those before it."""

_SHARPNESS = 4.0
_SEEN_WHEN_THERE = 0.75
_SURE, _HALF_SURE = 40.0, 20.0


def guard_vocabulary(words: Iterable[str], *, marked: str) -> list[str]:
    """A word's place is its token; words in none of the lists are unknown. `marked` is in lower case."""
    return list(dict.fromkeys((*_SPECIAL, *_ANSWER, marked, *(word.lower() for word in words))))


def guard_config(vocabulary: list[str]) -> dict[str, Any]:
    """config.json with Llama 3.1's rotary scaling and context of 131,072 tokens."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary),
        "hidden_size": _NUM_HEADS * _HEAD_DIM,
        "intermediate_size": 2 * _NUM_HEADS * _HEAD_DIM,
        "num_hidden_layers": _NUM_LAYERS,
        "num_attention_heads": _NUM_HEADS,
        "num_key_value_heads": _NUM_KEY_HEADS,
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "bos_token_id": vocabulary.index(_BEGIN),
        "eos_token_id": [vocabulary.index(_TURN_END)],
        "torch_dtype": "bfloat16",
    }


def guard_weights(vocabulary: list[str], *, marked: str, seed: int) -> dict[str, Tensor]:
    """Bfloat16 weights that answer "unsafe", S1 to a question with the word `marked`, else "safe".

    Random (the same for the same seed) but for what decides: the first head of the first layer looks for the
    marked word, and the last layer says the next word of the answer after the word before it.
    """
    draw = torch.Generator().manual_seed(seed)
    weights = {"model.embed_tokens.weight": _embeddings(vocabulary, marked, draw)}
    for layer in range(_NUM_LAYERS):
        weights |= {f"model.layers.{layer}.{name}": part for name, part in _random_layer(draw).items()}
    weights |= _norm("model.norm", draw) | {"lm_head.weight": _next_word(vocabulary, draw)}
    _look_for_the_marked_word(weights, "model.layers.0.self_attn")
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}


def write_guard_folder(folder: Path, *, vocabulary: list[str], weights: Mapping[str, Tensor]) -> None:
    """Writes config.json, generation_config.json, the tokenizer and model.safetensors into `folder`."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    config = guard_config(vocabulary)
    _write_json(folder / "config.json", config)
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    # Llama's own sampling, which a guard must not use.
    _write_json(
        folder / "generation_config.json", ends | {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    )
    _write_json(folder / "tokenizer.json", _tokenizer(vocabulary))
    names = {"bos_token": _BEGIN, "eos_token": _TURN_END, "unk_token": _UNKNOWN}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write_json(folder / "tokenizer_config.json", names | settings | {"chat_template": _TEMPLATE})
    # Not save_file, whose files only their owner may read.
    (folder / "model.safetensors").write_bytes(save(dict(weights), {"format": "pt"}))


def _embeddings(vocabulary: list[str], marked: str, draw: torch.Generator) -> Tensor:
    width = _NUM_HEADS * _HEAD_DIM
    table = torch.randn(len(vocabulary), width, generator=draw) * 0.3
    table[:, :_FREE] = 0
    table[:, _CONSTANT] = 1
    for place, token in enumerate(_CHAIN):
        table[vocabulary.index(token), _LAST + place] = 1
    table[vocabulary.index(marked)] = 0
    table[vocabulary.index(marked), [_CONSTANT, _MARKED]] = 1
    return table


def _random_layer(draw: torch.Generator) -> dict[str, Tensor]:
    """One decoder layer that reads all of a hidden vector and writes only to its free numbers."""
    width, keys = _NUM_HEADS * _HEAD_DIM, _NUM_KEY_HEADS * _HEAD_DIM

    def linear(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=draw) * columns**-0.5

    layer = _norm("input_layernorm", draw) | _norm("post_attention_layernorm", draw)
    for name, rows in (("q", width), ("k", keys), ("v", keys), ("o", width)):
        layer[f"self_attn.{name}_proj.weight"] = linear(rows, width)
    layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"] = (
        linear(2 * width, width),
        linear(2 * width, width),
    )
    layer["mlp.down_proj.weight"] = linear(width, 2 * width)
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        layer[name][:_FREE] = 0
        layer[name] *= 0.3
    return layer


def _norm(name: str, draw: torch.Generator) -> dict[str, Tensor]:
    weight = 1 + 0.1 * torch.randn(_NUM_HEADS * _HEAD_DIM, generator=draw)
    weight[:_FREE] = 1
    return {f"{name}.weight": weight}


def _look_for_the_marked_word(weights: Mapping[str, Tensor], attention: str) -> None:
    """The first head attends to the marked word alone if there is one, and writes _SEEN_WHEN_THERE."""
    query, key, value, out = (weights[f"{attention}.{name}_proj.weight"] for name in "qkvo")
    for projection in (query, key, value):
        projection[:_HEAD_DIM] = 0
    query[_SLOWEST, _CONSTANT] = key[_SLOWEST, _MARKED] = _SHARPNESS
    value[0, _MARKED] = 1
    marked_after_norm = (_NUM_HEADS * _HEAD_DIM / 2) ** 0.5  # its only other number is the constant
    out[_SEEN, 0] = _SEEN_WHEN_THERE / marked_after_norm


def _next_word(vocabulary: list[str], draw: torch.Generator) -> Tensor:
    head = torch.randn(len(vocabulary), _NUM_HEADS * _HEAD_DIM, generator=draw) * 0.1
    head[:, :_FREE] = 0

    def follows(token: str, before: str, how_sure: float = _SURE) -> None:
        head[vocabulary.index(token), _LAST + _CHAIN.index(before)] = how_sure

    follows("\n\n", _HEADER_END)
    follows("safe", "\n\n")
    follows("unsafe", "\n\n", _HALF_SURE)  # and as much again, and a half, if the marked word was seen
    head[vocabulary.index("unsafe"), _SEEN] = 1.5 * _HALF_SURE / _SEEN_WHEN_THERE
    follows("\n", "unsafe")
    follows("S1", "\n")
    follows(_TURN_END, "safe")
    follows(_TURN_END, "S1")
    return head


def _tokenizer(vocabulary: list[str]) -> dict[str, Any]:
    """tokenizer.json of the `tokenizers` library: words and signs in lower case; answers are joined as is."""
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **mark} for i, token in enumerate(_SPECIAL)],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {word: i for i, word in enumerate(vocabulary)},
            "unk_token": _UNKNOWN,
        },
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
