"""The folder of a small T5 encoder, as transformers reads it, with a tokenizer for English."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.request import DEFAULT_NEGATIVE_PROMPT

Vocabulary = list[tuple[str, float]]
"""Pieces with their Unigram scores; a piece's place is its token."""

_NUM_LAYERS = 2
_NUM_HEADS = 4
_NUM_BUCKETS = 32
_SPECIAL = ("<pad>", "</s>", "<unk>")
_CHARACTERS = "".join(chr(code) for code in range(0x21, 0x7F))
_PIECES = (
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me "
    "de hi ri ro ic ne ea ra ce li ch ll be ma si om ur ing tion ers ent and the ly est ight ound sh ck "
    "ate ure ous"
)
_WORDS = (
    "A about above across all along an around as at back below beside between black blue bright building "
    "camera car city close cloud color dark day down each face field first flowers food for foreground "
    "from front glass gold grass gray green hand head house in into is it its kitchen large leaves left "
    "light lighting like long man metal moon morning mountain moves moving near night of off on one open "
    "orange out over paper path people person pink purple rain red right river road robot rock room round "
    "sand sea second shadow shot side silver sky slow slowly small smooth smoothly snow soft stands steam "
    "steel stone street sun sunlight surface table tall that their them then through to toward tree trees "
    "two under up view viewer walks wall warm water wave waves which while white wide wind window woman "
    "wood wooden yellow"
)
"""Beside those of the default negative prompt, which comes with every video."""


def english_words() -> tuple[str, ...]:
    """The words that every vocabulary holds as one piece each."""
    return (*re.findall(r"[\w-]+", DEFAULT_NEGATIVE_PROMPT), *_WORDS.split())


def english_vocabulary(extra_words: Iterable[str] = ()) -> Vocabulary:
    """Pieces for all printable ASCII, `extra_words` among them; other characters are unknown tokens.

    The scores are equal, so that the split with the fewest pieces wins.
    """
    pieces = ["▁", *_CHARACTERS, *_PIECES.split()]
    starts = (*_CHARACTERS, *_PIECES.split(), *english_words(), *extra_words)
    pieces += [f"▁{piece}" for piece in starts]
    return [(piece, 0.0) for piece in _SPECIAL] + [(piece, -10.0) for piece in dict.fromkeys(pieces)]


def text_config(*, text_dim: int, vocab_size: int) -> dict[str, Any]:
    """config.json of an encoder of two layers and width `text_dim`, a multiple of the four heads."""
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": text_dim,
        "d_kv": text_dim // _NUM_HEADS,
        "d_ff": 4 * text_dim,
        "num_layers": _NUM_LAYERS,
        "num_heads": _NUM_HEADS,
        "vocab_size": vocab_size,
        "relative_attention_num_buckets": _NUM_BUCKETS,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "relu",
        "dropout_rate": 0.0,
        "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def untrained_text_weights(config: Mapping[str, Any], *, seed: int) -> dict[str, Tensor]:
    """Float32 weights, those of T5 before training: no 1/sqrt(width) in attention, so the queries carry it.

    The same seed makes the same values.
    """
    generator = torch.Generator().manual_seed(seed)
    width, inner, wide = config["d_model"], config["d_kv"] * config["num_heads"], config["d_ff"]

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    weights = {
        "shared.weight": normal(config["vocab_size"], width, scale=1.0),
        "encoder.final_layer_norm.weight": torch.ones(width),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": normal(
            _NUM_BUCKETS, config["num_heads"], scale=1.0
        ),
    }
    for layer in range(config["num_layers"]):
        attention, mlp = f"encoder.block.{layer}.layer.0", f"encoder.block.{layer}.layer.1"
        weights |= {
            f"{attention}.SelfAttention.q.weight": normal(
                inner, width, scale=(width * config["d_kv"]) ** -0.5
            ),
            f"{attention}.SelfAttention.k.weight": normal(inner, width, scale=width**-0.5),
            f"{attention}.SelfAttention.v.weight": normal(inner, width, scale=width**-0.5),
            f"{attention}.SelfAttention.o.weight": normal(width, inner, scale=inner**-0.5),
            f"{attention}.layer_norm.weight": torch.ones(width),
            f"{mlp}.DenseReluDense.wi.weight": normal(wide, width, scale=width**-0.5),
            f"{mlp}.DenseReluDense.wo.weight": normal(width, wide, scale=wide**-0.5),
            f"{mlp}.layer_norm.weight": torch.ones(width),
        }
    return weights


def write_text_folder(
    folder: Path, *, config: Mapping[str, Any], vocabulary: Vocabulary, weights: Mapping[str, Tensor]
) -> None:
    """Writes config.json, the tokenizer and model.safetensors into `folder`, made if need be."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    write_text_tokenizer(folder, vocabulary)
    # Not save_file, whose files only their owner may read.
    (folder / "model.safetensors").write_bytes(save(dict(weights), {"format": "pt"}))


def write_text_tokenizer(folder: Path, vocabulary: Vocabulary) -> None:
    """Writes what T5TokenizerFast.from_pretrained reads into `folder`, which is there."""
    _write_json(folder / "tokenizer.json", _tokenizer(vocabulary))
    specials = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", specials)
    _write_json(
        folder / "tokenizer_config.json", specials | {"tokenizer_class": "T5TokenizerFast", "extra_ids": 0}
    )


def _tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer.json of the `tokenizers` library, in the form of the released T5: Unigram, then `</s>`."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": piece, **mark} for i, piece in enumerate(_SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, end, second, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": False},
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
