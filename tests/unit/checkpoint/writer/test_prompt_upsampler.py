import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import LanguageShape
from cosmos_nemo.checkpoint.language_names import language_rules, language_shapes
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.writer.prompt_upsampler import SPECIAL, native_tensors, write_upsampler_folder

SHAPE = LanguageShape(
    num_layers=1, hidden_size=6, num_heads=2, num_kv_heads=1, head_dim=4, ffn_hidden_size=8, vocab_size=10
)
VOCABULARY = [*((token, 0.0) for token in SPECIAL), *((piece, -1.0) for piece in ("▁", "a", "▁a", "b"))]


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Views of one storage, which a file must not hold whole with each of them."""
    big = torch.randn(50_000)
    views, start = {}, 0
    for name, size in language_shapes(SHAPE).items():
        count = torch.Size(size).numel()
        views[name] = big[start : start + count].view(size)
        start += count
    return views


def test_what_is_written_reads_back(weights: dict[str, Tensor], tmp_path: Path) -> None:
    write_upsampler_folder(tmp_path / "new", shape=SHAPE, vocabulary=VOCABULARY, weights=weights)
    checkpoint = open_checkpoint(tmp_path / "new")
    for name, rule in language_rules(SHAPE, checkpoint).items():
        assert torch.equal(rule.read(checkpoint), weights[name]), name
    assert (tmp_path / "new" / "model.pt").stat().st_size < 20_000


def test_the_native_tensors_are_contiguous(weights: dict[str, Tensor]) -> None:
    assert all(tensor.is_contiguous() for tensor in native_tensors(SHAPE, weights).values())


def test_the_tokenizer_finds_the_marks_of_a_chat_and_makes_text_of_tokens(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    write_upsampler_folder(tmp_path, shape=SHAPE, vocabulary=VOCABULARY, weights=weights)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    chat = [{"role": "user", "content": "a ab"}, {"role": "assistant", "content": "a"}]
    assert tokenizer.apply_chat_template(chat) == [1, 3, 7, 7, 8, 4, 7, 2]
    assert tokenizer.decode([7, 7, 8, 2], skip_special_tokens=True) == "a ab"
    assert tokenizer.encode("a ☃")[-1] == tokenizer.unk_token_id


def test_a_vocabulary_larger_than_the_models_is_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="11 pieces for 10 tokens"):
        write_upsampler_folder(
            tmp_path,
            shape=SHAPE,
            vocabulary=[*VOCABULARY, ("c", -1.0), ("d", -1.0)],
            weights=weights,
        )


def test_the_template_stands_where_transformers_looks_for_it(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    write_upsampler_folder(tmp_path, shape=SHAPE, vocabulary=VOCABULARY, weights=weights)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "[INST]{{ message['content'] }}[/INST]" in settings["chat_template"]
