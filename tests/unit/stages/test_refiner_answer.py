import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.refiner_answer import (
    Sampling,
    chat_positions,
    plain_ascii_mask,
    read_sampling,
    refined_tokens,
)
from cosmos_nemo.stages.refiner_image import Patches
from cosmos_nemo.tools.standin_refiner import write_refiner
from tests.unit.stages.test_refiner_model import COLUMNS, ROWS, built, inputs

GREEDY = Sampling(do_sample=False)
WARM = Sampling(do_sample=True, temperature=4.0, top_k=0)
NOWHERE = frozenset({10_000})
ALL_V = torch.ones(512, dtype=torch.bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refiner")
    write_refiner(folder, seed=0)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"].copy_(torch.randn(512, 96, generator=torch.Generator().manual_seed(5)) / 4)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.mul_(20)  # so that what came before counts
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return built(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def answer(model: Any, **options: Any) -> list[int]:
    given = inputs(model)
    defaults = {
        "image": Patches(values_ND=given["pixel_values"], rows=ROWS, columns=COLUMNS),
        "sampling": GREEDY,
        "end_tokens": NOWHERE,
        "allowed_V": ALL_V,
        "num_tokens": 10,
        "seed": 0,
    }
    return refined_tokens(model, given["input_ids"][0].tolist(), **defaults | options)


def generated(model: Any, **options: Any) -> list[int]:
    """By transformers' own loop, which takes positions and earlier tokens its own way."""
    given = inputs(model)
    settings = {"do_sample": False, "eos_token_id": 10_000, "pad_token_id": 0, "max_new_tokens": 10}
    tokens_1L = model.generate(**given, **settings | options)
    return list(tokens_1L[0, given["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_the_likeliest_tokens_are_those_of_transformers_loop(penalty: float, model: Any) -> None:
    sampling = Sampling(do_sample=False, repetition_penalty=penalty)
    found = answer(model, sampling=sampling)
    assert found == generated(model, repetition_penalty=penalty)
    assert len(set(found)) > 3


def test_a_penalty_for_what_was_said_changes_the_answer(model: Any) -> None:
    first = answer(model)[0]
    assert answer(model, sampling=Sampling(repetition_penalty=1e-3)) != answer(model)
    hushed = Sampling(repetition_penalty=1e3)
    drawn = answer(model, sampling=hushed)
    assert drawn[0] == first and len(set(drawn)) == len(drawn)


def test_positions_are_those_of_transformers(model: Any) -> None:
    given = inputs(model)
    del given["pixel_values"]
    expected, _ = model.model.get_rope_index(**given)
    found = chat_positions(
        given["input_ids"][0].tolist(),
        image_token=model.config.image_token_id,
        rows=ROWS // 2,
        columns=COLUMNS // 2,
    )
    assert torch.equal(found, expected)


def test_text_moves_along_all_axes_and_the_image_along_rows_and_columns() -> None:
    positions = chat_positions([7, 7, *[1] * 6, 7, 7], image_token=1, rows=2, columns=3)
    assert positions[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    with pytest.raises(AssertionError, match="2 x 2 tokens of the image"):
        chat_positions([7, 1, 1, 1], image_token=1, rows=2, columns=2)


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(model: Any) -> None:
    assert answer(model, sampling=WARM, seed=1) == answer(model, sampling=WARM, seed=1)
    assert len({tuple(answer(model, sampling=WARM, seed=seed)) for seed in range(4)}) > 1


def test_drawing_leaves_the_global_random_state_alone(model: Any) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = answer(model, sampling=WARM)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert answer(model, sampling=WARM) == first


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(do_sample=True, temperature=1e-6),
        Sampling(do_sample=True, temperature=9.0, top_k=1),
        Sampling(do_sample=True, temperature=9.0, top_k=0, top_p=1e-4),
    ],
)
def test_cold_or_narrow_sampling_takes_the_likeliest(sampling: Sampling, model: Any) -> None:
    assert answer(model, sampling=sampling) == answer(model) != answer(model, sampling=WARM)


def first_odds(model: Any, temperature: float) -> tuple[Tensor, list[int]]:
    with torch.no_grad():
        logits = model(**inputs(model)).logits[0, -1]
    odds, tokens = (logits / temperature).softmax(-1).sort(descending=True)
    return odds, tokens.tolist()


@pytest.mark.parametrize("by", ["top_k", "top_p"])
def test_only_the_likeliest_tokens_are_drawn(by: str, model: Any) -> None:
    odds, tokens = first_odds(model, temperature=9.0)
    three = float(odds[:3].sum()) - 1e-3
    narrow = {
        "top_k": Sampling(do_sample=True, temperature=9.0, top_k=3),
        "top_p": Sampling(do_sample=True, temperature=9.0, top_k=0, top_p=three),
    }
    drawn = {answer(model, sampling=narrow[by], num_tokens=1, seed=seed)[0] for seed in range(40)}
    assert drawn == set(tokens[:3])


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_tokens_that_are_not_allowed_are_never_drawn(sampling: Sampling, model: Any) -> None:
    allowed_V = torch.zeros(512, dtype=torch.bool)
    allowed_V[100:140] = True
    free = answer(model, sampling=sampling)
    assert not all(100 <= token < 140 for token in free)
    drawn = answer(model, sampling=sampling, allowed_V=allowed_V)
    assert len(drawn) == 10 and all(100 <= token < 140 for token in drawn)


def test_an_answer_ends_with_the_first_end_token_or_when_the_tokens_run_out(model: Any) -> None:
    whole = answer(model)
    end = whole[3]
    assert answer(model, end_tokens=frozenset({end, 10_000})) == whole[: whole.index(end) + 1]
    assert answer(model, num_tokens=2) == whole[:2]


def test_the_image_is_looked_at_once_and_earlier_tokens_are_not_computed_again(model: Any) -> None:
    looks, lengths, made = [], [], []
    language = model.model.language_model
    hooks = [
        model.model.visual.register_forward_hook(lambda *_: looks.append(1)),
        language.layers[0].register_forward_pre_hook(lambda _, x: lengths.append(x[0].shape[1])),
        model.lm_head.register_forward_hook(lambda _, __, logits: made.append(logits.shape[1])),
    ]
    try:
        answer(model, num_tokens=4)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(looks) == 1
    assert lengths == [inputs(model)["input_ids"].shape[1], 1, 1, 1] and made == [1] * 4


def test_another_image_has_another_answer(model: Any) -> None:
    other = Patches(values_ND=-inputs(model)["pixel_values"], rows=ROWS, columns=COLUMNS)
    assert answer(model, image=other) != answer(model)


def test_an_earlier_answer_leaves_no_trace(model: Any) -> None:
    first = answer(model)
    generated(model)
    answer(model, sampling=WARM, num_tokens=3)
    assert answer(model) == first


@pytest.mark.parametrize("name", ["lm_head.weight", "model.visual.merger.mlp.2.bias"])
def test_logits_that_are_not_finite_are_an_error(name: str, folder: Path) -> None:
    broken = built(folder)
    dict(broken.named_parameters())[name].view(-1)[3] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        answer(broken)


def test_allowed_are_plain_ascii_and_marks_and_nothing_unknown(tokenizer: Any) -> None:
    allowed_V = plain_ascii_mask(tokenizer, vocab_size=512)
    assert allowed_V.shape == (512,)
    for token in range(512):
        text = tokenizer.decode([token], skip_special_tokens=False) if token < len(tokenizer) else ""
        name = tokenizer.convert_ids_to_tokens(token) if text else ""
        plain = text.isascii() and (text.isprintable() or text.isspace()) and text != ""
        assert bool(allowed_V[token]) == plain, (token, name, text)
    for mark in ("<|im_end|>", "<|endoftext|>"):
        assert allowed_V[tokenizer.convert_tokens_to_ids(mark)]
    for piece, allowed in (("Ġrobot", True), ("Ċ", True), ("Ã", False), ("Ā", False)):
        assert bool(allowed_V[tokenizer.convert_tokens_to_ids(piece)]) == allowed, piece


def test_a_mark_is_allowed_whatever_its_letters_and_a_model_may_have_fewer_tokens(tokenizer: Any) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.add_tokens(["naïve", "plain"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|énd|>"]})
    ids = tokenizer.convert_tokens_to_ids(["naïve", "plain", "<|énd|>"])
    mask_V = plain_ascii_mask(tokenizer, vocab_size=512)
    assert mask_V[ids].tolist() == [False, True, True]
    assert torch.equal(plain_ascii_mask(tokenizer, vocab_size=50), mask_V[:50])


def write(folder: Path, **content: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


def test_the_folder_says_how_tokens_are_drawn(tmp_path: Path) -> None:
    assert read_sampling(tmp_path) == Sampling()
    content = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
    found = read_sampling(write(tmp_path, **content, eos_token_id=[7, 3], transformers_version="4.49.0"))
    assert found == Sampling(**content, end_tokens=(7, 3))
    assert read_sampling(write(tmp_path, eos_token_id=3, top_p=None)) == Sampling(end_tokens=(3,))


def test_what_the_folder_leaves_out_is_as_transformers_takes_it() -> None:
    from transformers import GenerationConfig

    config, ours = GenerationConfig(), Sampling()
    filled = getattr(config, "_get_default_generation_params", dict)()
    for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"):
        theirs = getattr(config, name)
        assert getattr(ours, name) == (filled[name] if theirs is None else theirs), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_sample", "yes"),
        ("temperature", 0),
        ("temperature", "0.6"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("repetition_penalty", True),
        ("repetition_penalty", 0.0),
        ("eos_token_id", ["a"]),
    ],
)
def test_a_setting_without_meaning_is_an_error(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {name} must be .*but is "):
        read_sampling(write(tmp_path, **{name: value}))


def test_damaged_settings_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json cannot be read as JSON"):
        read_sampling(tmp_path)
