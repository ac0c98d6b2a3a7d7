import random
import re
from pathlib import Path

import pytest
import torch

from cosmos_nemo.request import DEFAULT_NEGATIVE_PROMPT
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.training.nano.captions import (
    PHRASINGS,
    SUBJECT_PREFIX,
    UNSEEN_PHRASINGS,
    caption,
    subject_caption,
)
from cosmos_nemo.training.nano.text_encoder import (
    ATTRIBUTES,
    LabelledText,
    TrainedTextEncoder,
    draw_text,
    measure_accuracy,
    train_text_encoder,
    unseen_texts,
    write_text_encoder,
)
from cosmos_nemo.training.nano.world import ALL_SCENES, HELD_OUT, Scene

CPU = torch.device("cpu")
DIM, LENGTH = 64, 128


def train(**changes: int) -> TrainedTextEncoder:
    sizes = {"seed": 0, "num_steps": 2, "batch_size": 8} | changes
    return train_text_encoder(**sizes, device=CPU, text_dim=DIM, text_length=LENGTH)


@pytest.fixture(scope="module")
def trained() -> TrainedTextEncoder:
    return train()


@pytest.fixture(scope="module")
def folder(trained: TrainedTextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    write_text_encoder(folder, trained)
    return folder


def stage(folder: Path) -> TextEncoder:
    return TextEncoder(folder=folder, text_length=LENGTH, text_dim=DIM, device=CPU, dtype=torch.float32)


@pytest.mark.slow
def test_the_stage_reads_of_the_texts_what_training_taught(tmp_path: Path) -> None:
    trained = train(num_steps=260, batch_size=24)
    write_text_encoder(tmp_path, trained)
    prompt = SUBJECT_PREFIX + subject_caption("bounces", "gray")
    robots = [LabelledText(prompt, {"motion": "bounces", "ground": "gray"})]
    for texts in (unseen_texts(), robots, [LabelledText(DEFAULT_NEGATIVE_PROMPT, {})]):
        with stage(tmp_path) as encode:
            accuracy = measure_accuracy(encode, texts, heads=trained.heads)
        assert accuracy.keys() == ATTRIBUTES.keys()
        assert all(value > 0.8 for value in accuracy.values()), accuracy


def test_the_embeddings_are_of_order_one(folder: Path) -> None:
    with stage(folder) as encode:
        text_BLD = encode(["A red ball moves up on a dark background.", DEFAULT_NEGATIVE_PROMPT])
    tokens_ND = text_BLD[text_BLD.any(dim=2)]
    torch.testing.assert_close(tokens_ND.square().mean(dim=1).sqrt(), torch.ones(len(tokens_ND)))


def test_every_word_of_a_caption_is_one_token_and_case_matters_not_to_telling_words(folder: Path) -> None:
    from transformers import T5TokenizerFast

    tokenizer = T5TokenizerFast.from_pretrained(folder)
    for text in (
        *(caption(Scene("blue", "ball", "stays still", "light blue"), each) for each in UNSEEN_PHRASINGS),
        SUBJECT_PREFIX + subject_caption("bounces", "gray"),
        "Yellow Triangle Bouncing",
    ):
        tokens = tokenizer.tokenize(text)
        assert [token.lstrip("▁") for token in tokens] == re.findall(r"\w+|[.,]", text)


def test_the_same_seed_trains_the_same_weights() -> None:
    first, again, other = train(), train(), train(seed=1)
    assert all(torch.equal(again.weights[name], values) for name, values in first.weights.items())
    assert not torch.equal(first.weights["shared.weight"], other.weights["shared.weight"])


def test_training_lowers_the_loss_and_counts_its_steps() -> None:
    seen: list[tuple[int, float]] = []
    train_text_encoder(
        seed=0,
        num_steps=41,
        batch_size=8,
        device=CPU,
        text_dim=DIM,
        on_step=lambda step, loss: seen.append((step, loss)),
    )
    assert [step for step, _ in seen] == list(range(1, 42))
    assert seen[-1][1] < 0.8 * seen[0][1]


def test_no_drawn_text_tells_of_a_held_out_scene_or_uses_an_unseen_phrasing() -> None:
    dice = random.Random(0)
    texts = [draw_text(dice) for _ in range(3000)]
    whole = [Scene(**text.labels) for text in texts if len(text.labels) == 4]
    assert len(whole) > 500 and not HELD_OUT & set(whole)
    unseen = {caption(scene, phrasing) for scene in ALL_SCENES for phrasing in UNSEEN_PHRASINGS}
    assert not any(phrase in text.text for text in texts for phrase in unseen)


def test_the_labels_of_a_text_are_in_its_words() -> None:
    dice = random.Random(1)
    for _ in range(2000):
        drawn = draw_text(dice)
        said = re.findall(r"\w+", drawn.text.lower())
        for name in ("colour", "shape", "ground"):
            assert all(word in said for word in drawn.labels.get(name, "").split()), drawn
            if name not in drawn.labels and name == "shape":
                assert not set(ATTRIBUTES[name]) & set(said), drawn


def test_the_subject_and_the_negative_prompt_are_drawn_and_name_no_colour() -> None:
    dice = random.Random(2)
    texts = [draw_text(dice) for _ in range(2000)]
    robots = [text for text in texts if "teal robot" in text.text and "motion" in text.labels]
    assert len(robots) > 50
    assert all(text.labels.keys() == {"motion", "ground"} for text in robots if "sks teal" in text.text)
    negative = [text for text in texts if DEFAULT_NEGATIVE_PROMPT in text.text]
    assert negative and all(text.labels == {} for text in negative)


def test_the_unseen_texts_are_all_held_out_scenes_in_all_unseen_phrasings() -> None:
    texts = unseen_texts()
    assert len({text.text for text in texts}) == len(HELD_OUT) * len(UNSEEN_PHRASINGS) == len(texts)
    assert {Scene(**text.labels) for text in texts} == HELD_OUT
    assert not {text.text for text in texts} & {caption(s, p) for s in HELD_OUT for p in PHRASINGS}


def test_accuracy_counts_the_tokens_and_not_what_follows_the_end() -> None:
    heads = {"shape": torch.eye(4)[:, :4]}
    text_BLD = torch.zeros(1, 5, 4)
    text_BLD[0, 0, 1] = text_BLD[0, 1, 3] = 1
    shape = ATTRIBUTES["shape"][1]
    texts = [LabelledText("", {"shape": shape})]
    assert measure_accuracy(lambda _: text_BLD, texts, heads=heads) == {"shape": 0.5}
