"""The folder of a small prompt upsampler, as released: model.pt in Mistral's names, a tokenizer for chats."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.catalog import LanguageShape
from cosmos_nemo.checkpoint.language_names import native_rules
from cosmos_nemo.checkpoint.writer.text_encoder import Vocabulary

UNKNOWN, START, END, TURN_START, TURN_END = SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
"""The tokens that a vocabulary begins with, in this order."""

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    f"{TURN_START}{{{{ message['content'] }}}}{TURN_END}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def write_upsampler_folder(
    folder: Path, *, shape: LanguageShape, vocabulary: Vocabulary, weights: Mapping[str, Tensor]
) -> None:
    """Writes model.pt and the tokenizer into `folder`, made if need be; `weights` have our names."""
    assert len(vocabulary) <= shape.vocab_size, f"{len(vocabulary)} pieces for {shape.vocab_size} tokens"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(native_tensors(shape, weights), folder / "model.pt")
    specials = {"bos_token": START, "eos_token": END, "unk_token": UNKNOWN}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write_json(folder / "tokenizer.json", _tokenizer(vocabulary))
    _write_json(folder / "special_tokens_map.json", specials)
    _write_json(folder / "tokenizer_config.json", specials | settings | {"chat_template": _CHAT_TEMPLATE})


def native_tensors(shape: LanguageShape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under Mistral's names, each contiguous and alone in its storage."""
    named: dict[str, Tensor] = {}
    for name, rule in native_rules(shape).items():
        (stored,) = rule.split(weights[name])
        named[rule.names[0]] = stored.clone(memory_format=torch.contiguous_format)
    return named


def _tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer.json of the `tokenizers` library: words by Unigram; a chat's marks are found in the text.

    As the released one, it puts `<s>` before a text unless asked not to.
    """
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    start = {"SpecialToken": {"id": START, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **mark} for i, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, text],
            "pair": [start, text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {START: {"id": START, "ids": [SPECIAL.index(START)], "tokens": [START]}},
        },
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": SPECIAL.index(UNKNOWN),
            "vocab": vocabulary,
            "byte_fallback": False,
        },
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
