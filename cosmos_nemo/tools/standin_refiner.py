"""A Qwen2.5-VL of nano size that refines every prompt to one sentence, in the layout of the released one."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cosmos_nemo.checkpoint.refiner_names import RefinerShape, refiner_shape, refiner_shapes, released_name
from cosmos_nemo.stages.refiner_chat import IMAGE_END, IMAGE_START, IMAGE_TOKEN, TURN_END, TURN_START

Names = Literal["released", "newer"]
"""As the released files name their tensors, or as a newer transformers saves them."""

_TEXT_END, _VIDEO_TOKEN = "<|endoftext|>", "<|video_pad|>"
_MARKS = (_TEXT_END, TURN_START, TURN_END, IMAGE_START, IMAGE_END, IMAGE_TOKEN, _VIDEO_TOKEN)

SENTENCE = (
    "A",
    "Ġsmall",
    "Ġrobot",
    "Ġlifts",
    "Ġthe",
    "Ġred",
    "Ġcup",
    "Ġfrom",
    "Ġa",
    "Ġtable",
    ",",
    "Ġwater",
    "Ġruns",
    "Ġover",
    "Ġits",
    "Ġhand",
    ".",
)
"""The answer's tokens, no two the same, because each decides the next; Ġ stands for a space."""

_NEW_LINE = "Ċ"
"""The last token before the answer."""

_LAYER_SCALE = 0.1
"""Of what a layer adds to the hidden state: small, so that the token shows through it."""

_EMBEDDINGS, _OUTPUT = "model.language_model.embed_tokens.weight", "lm_head.weight"

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_refiner(folder: Path, *, seed: int, names: Names = "released") -> None:
    """Writes the weights (bfloat16), their sizes, the tokenizer and the sampling settings into `folder`.

    The weights are random but for the output's, which follow each token of the sentence by the next. The same
    seed writes the same bytes.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _vocabulary()
    marks = {mark: len(vocabulary) + i for i, mark in enumerate(_MARKS)}
    _write_json(folder / "config.json", _config(marks))
    _write_json(folder / "generation_config.json", _sampling(marks))
    _write_tokenizer(folder, vocabulary, merges)
    tokens = {piece: i for i, piece in enumerate(vocabulary)} | marks
    weights = _weights(refiner_shape(folder), tokens, seed=seed)
    named = {released_name(name) if names == "released" else name: weights[name] for name in weights}
    (folder / "model.safetensors").write_bytes(save(named, {"format": "pt"}))


def _vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-level pieces and the merges that make words of them, letter by letter."""
    from tokenizers import pre_tokenizers

    pieces = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    merges: dict[tuple[str, str], None] = {}
    for word in SENTENCE:
        for i in range(1, len(word)):
            merges[word[:i], word[i]] = None
            pieces[word[: i + 1]] = None
    return list(pieces), list(merges)


def _config(marks: Mapping[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "bos_token_id": marks[_TEXT_END],
        "eos_token_id": marks[TURN_END],
        "vision_start_token_id": marks[IMAGE_START],
        "vision_end_token_id": marks[IMAGE_END],
        "image_token_id": marks[IMAGE_TOKEN],
        "video_token_id": marks[_VIDEO_TOKEN],
        "hidden_act": "silu",
        "hidden_size": 96,
        "intermediate_size": 128,
        "max_position_embeddings": 8192,
        "max_window_layers": 2,
        "num_attention_heads": 6,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "sliding_window": 8192,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 512,
        "vision_config": {
            "depth": 2,
            "hidden_act": "silu",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": 96,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    }


def _sampling(marks: Mapping[str, int]) -> dict[str, Any]:
    """As the released model has them: so cold that the likeliest token is taken."""
    return {
        "bos_token_id": marks[_TEXT_END],
        "pad_token_id": marks[_TEXT_END],
        "do_sample": True,
        "eos_token_id": [marks[TURN_END], marks[_TEXT_END]],
        "repetition_penalty": 1.05,
        "temperature": 0.000001,
    }


def _write_tokenizer(folder: Path, vocabulary: list[str], merges: list[tuple[str, str]]) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_MARKS))
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": TURN_END,
        "pad_token": _TEXT_END,
        "model_max_length": 8192,
        "chat_template": _TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _weights(shape: RefinerShape, tokens: Mapping[str, int], *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = refiner_shapes(shape)
    weights = {name: _random(name, size, generator) for name, size in shapes.items()}
    table, following = weights[_EMBEDDINGS], torch.zeros(shapes[_OUTPUT])
    for token, next_token in pairwise((_NEW_LINE, *SENTENCE, TURN_END)):
        following[tokens[next_token]] = table[tokens[token]]
    weights[_OUTPUT] = following
    return {name: values.to(torch.bfloat16) for name, values in weights.items()}


def _random(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(size) == 1 and not name.endswith(".bias"):  # the weights of norms
        return torch.ones(size)
    values = torch.randn(size, generator=generator)
    if name == _EMBEDDINGS:
        return values
    scale = _LAYER_SCALE if name.endswith(("o_proj.weight", "down_proj.weight", ".bias")) else 1.0
    return values * scale * torch.Size(size[1:]).numel() ** -0.5


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
