import re
from itertools import product
from string import Formatter

import pytest

from cosmos_nemo.training.nano.captions import (
    PHRASINGS,
    SUBJECT_NAME,
    SUBJECT_PREFIX,
    UNSEEN_PHRASINGS,
    caption,
    subject_caption,
    words,
)
from cosmos_nemo.training.nano.world import ALL_SCENES, GROUNDS, MOTIONS, TRAINED, Scene

EVERY_PHRASING = (*PHRASINGS, *UNSEEN_PHRASINGS)
SCENE = Scene("red", "ball", "moves to the left", "light blue")


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def ing_form(motion: str) -> str:
    return motion.replace("moves", "moving").replace("bounces", "bouncing").replace("stays", "staying")


def test_the_first_phrasing_is_the_canonical_one() -> None:
    assert caption(SCENE, PHRASINGS[0]) == "A red ball moves to the left on a light blue background."


def test_phrasings_are_many_and_no_two_are_the_same() -> None:
    assert len(PHRASINGS) >= 6
    assert len(UNSEEN_PHRASINGS) == 2
    assert len(set(EVERY_PHRASING)) == len(EVERY_PHRASING)


@pytest.mark.parametrize("phrasing", EVERY_PHRASING)
def test_every_phrasing_says_all_four_attributes(phrasing: str) -> None:
    fields = {field for _, field, _, _ in Formatter().parse(phrasing) if field}
    assert {"colour", "shape", "ground"} < fields
    assert len(fields & {"motion", "moving"}) == 1


@pytest.mark.parametrize("phrasing", EVERY_PHRASING)
def test_captions_tell_every_two_scenes_apart(phrasing: str) -> None:
    assert len({caption(scene, phrasing) for scene in ALL_SCENES}) == len(ALL_SCENES)


@pytest.mark.parametrize("phrasing", EVERY_PHRASING)
def test_a_caption_is_a_sentence_with_the_words_of_its_scene(phrasing: str) -> None:
    for scene in ALL_SCENES:
        text = caption(scene, phrasing)
        assert {scene.colour, scene.shape, *scene.ground.split()} < set(words_of(text))
        assert scene.motion in text or ing_form(scene.motion) in text
        assert text[0].isupper()
        assert text.endswith(".")
        assert not re.search(r"[{}]|  ", text)


@pytest.mark.parametrize(
    ("motion", "moving"),
    [
        ("moves to the left", "moving to the left"),
        ("moves up", "moving up"),
        ("bounces", "bouncing"),
        ("stays still", "staying still"),
    ],
)
def test_a_motion_has_an_ing_form(motion: str, moving: str) -> None:
    scene = Scene("green", "square", motion, "gray")
    assert caption(scene, "{moving}") == moving
    assert caption(scene, "{motion}") == motion


def test_unseen_phrasings_use_only_words_that_training_uses() -> None:
    trained = {word for scene, p in product(TRAINED, PHRASINGS) for word in words_of(caption(scene, p))}
    unseen = {word for s, p in product(ALL_SCENES, UNSEEN_PHRASINGS) for word in words_of(caption(s, p))}
    assert unseen <= trained


def test_no_unseen_phrasing_makes_a_trained_caption() -> None:
    trained = {caption(scene, phrasing) for scene, phrasing in product(ALL_SCENES, PHRASINGS)}
    unseen = {caption(scene, phrasing) for scene, phrasing in product(ALL_SCENES, UNSEEN_PHRASINGS)}
    assert trained.isdisjoint(unseen)


def test_the_subject_is_said_as_the_scenes_are() -> None:
    assert subject_caption("bounces", "gray") == "A teal robot bounces on a gray background."


def test_no_caption_of_a_scene_names_the_subject() -> None:
    every = {word for s, p in product(ALL_SCENES, EVERY_PHRASING) for word in words_of(caption(s, p))}
    assert every.isdisjoint({*SUBJECT_NAME.split(), "sks"})


def test_words_are_exactly_those_of_all_captions() -> None:
    texts = [caption(scene, phrasing) for scene, phrasing in product(ALL_SCENES, EVERY_PHRASING)]
    texts += [SUBJECT_PREFIX + subject_caption(*said) for said in product(MOTIONS, GROUNDS)]
    assert set(words()) == {word for text in texts for word in words_of(text)}


def test_words_are_sorted_without_repeats() -> None:
    assert list(words()) == sorted(set(words()))
    assert {"A", "a", "sks", "teal", "robot", "light", "blue", "bouncing", "video"} <= set(words())
