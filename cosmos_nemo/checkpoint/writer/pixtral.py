"""The folder of a small Pixtral in each of the layouts in which the released one is found."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from cosmos_nemo.catalog import LanguageShape, VisionShape
from cosmos_nemo.checkpoint.pixtral_names import LAYOUTS, layout_rules
from cosmos_nemo.checkpoint.writer.text_encoder import Vocabulary

Layout = Literal["predict1", "mistral", "transformers"]
"""As the Predict1 scripts convert it, as Mistral released it, as transformers' users converted that."""

UNKNOWN, START, END, TURN_START, TURN_END, PATCH, ROW_END, IMAGE_END = MARKS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
)
"""The tokens that a vocabulary begins with, in this order."""


def write_pixtral_folder(
    folder: Path,
    *,
    shape: LanguageShape,
    vision: VisionShape,
    vocabulary: Vocabulary,
    weights: Mapping[str, Tensor],
    layout: Layout,
) -> None:
    """Writes `weights` (our names), the sizes and tokenizer.json into `folder`, which is made if need be."""
    assert len(vocabulary) <= shape.vocab_size, f"{len(vocabulary)} pieces for {shape.vocab_size} tokens"
    folder.mkdir(parents=True, exist_ok=True)
    named = pixtral_tensors(weights, shape=shape, vision=vision, layout=layout)
    if layout == "predict1":
        torch.save(_with_parts(named), folder / "model.pt")
        _write_json(folder / "config.json", _predict1_config(shape))
    elif layout == "mistral":
        save_file(named, folder / "consolidated.safetensors")
        _write_json(folder / "params.json", _mistral_params(shape, vision))
    else:
        _write_shards(folder, named)
        _write_json(folder / "config.json", _transformers_config(shape, vision))
    _write_tokenizer(folder / "tokenizer.json", vocabulary)


def pixtral_tensors(
    weights: Mapping[str, Tensor], *, shape: LanguageShape, vision: VisionShape, layout: str
) -> dict[str, Tensor]:
    """The weights under the names of one of pixtral_names.LAYOUTS, contiguous, each alone in its storage."""
    named: dict[str, Tensor] = {}
    for name, rule in layout_rules(LAYOUTS[layout], shape, vision).items():
        (stored,) = rule.split(weights[name])
        named[rule.names[0]] = stored.clone(memory_format=torch.contiguous_format)
    return named


def _with_parts(named: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The whole model, and once more by themselves the parts that are not the language model."""
    parts = {
        part: {
            name.removeprefix(f"{part}."): tensor
            for name, tensor in named.items()
            if name.startswith(f"{part}.")
        }
        for part in ("mm_projector", "vision_encoder")
    }
    return {"model": dict(named), **parts}


def _write_shards(folder: Path, named: Mapping[str, Tensor]) -> None:
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = {name: files[i * len(files) // len(named)] for i, name in enumerate(named)}
    for file in files:
        save_file({name: named[name] for name in named if halves[name] == file}, folder / file)
    size = sum(tensor.nbytes for tensor in named.values())
    _write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": halves}
    )


def _predict1_config(shape: LanguageShape) -> dict[str, Any]:
    sizes = _mistral_sizes(shape)
    wide = sizes.pop("hidden_dim")
    return {**sizes, "ffn_hidden_size": wide, "vision_encoder": "pixtral-12b-vit"}


def _mistral_params(shape: LanguageShape, vision: VisionShape) -> dict[str, Any]:
    tower = {
        "hidden_size": vision.hidden_size,
        "num_channels": 3,
        "image_size": vision.max_image_size,
        "patch_size": vision.patch_size,
        "rope_theta": vision.rope_theta,
        "intermediate_size": vision.ffn_hidden_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "image_token_id": MARKS.index(PATCH),
    }
    return {**_mistral_sizes(shape), "vision_encoder": tower}


def _mistral_sizes(shape: LanguageShape) -> dict[str, Any]:
    return {
        "dim": shape.hidden_size,
        "n_layers": shape.num_layers,
        "head_dim": shape.head_dim,
        "hidden_dim": shape.ffn_hidden_size,
        "n_heads": shape.num_heads,
        "n_kv_heads": shape.num_kv_heads,
        "rope_theta": shape.rope_theta,
        "norm_eps": shape.norm_eps,
        "vocab_size": shape.vocab_size,
    }


def _transformers_config(shape: LanguageShape, vision: VisionShape) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": MARKS.index(PATCH),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "mistral",
            "hidden_size": shape.hidden_size,
            "num_hidden_layers": shape.num_layers,
            "head_dim": shape.head_dim,
            "intermediate_size": shape.ffn_hidden_size,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "rope_theta": shape.rope_theta,
            "rms_norm_eps": shape.norm_eps,
            "vocab_size": shape.vocab_size,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "pixtral",
            "hidden_act": "silu",
            "hidden_size": vision.hidden_size,
            "image_size": vision.max_image_size,
            "patch_size": vision.patch_size,
            "rope_theta": vision.rope_theta,
            "intermediate_size": vision.ffn_hidden_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
        },
    }


def _write_tokenizer(path: Path, vocabulary: Vocabulary) -> None:
    """Words by Unigram; the marks of a chat and of an image are found in the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    assert tuple(piece for piece, _ in vocabulary[: len(MARKS)]) == MARKS, (
        "a vocabulary begins with the marks"
    )
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=MARKS.index(UNKNOWN), byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(list(MARKS))
    path.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
