"""What is said about the clips of the nano world."""

import re

from cosmos_nemo.training.nano.world import ALL_SCENES, GROUNDS, MOTIONS, Scene

PHRASINGS = (
    "A {colour} {shape} {motion} on a {ground} background.",
    "A video of a {colour} {shape} that {motion} on a {ground} background.",
    "On a {ground} background, a {colour} {shape} {motion}.",
    "The {shape} is {colour}. It {motion} on a {ground} background.",
    "The background is {ground}, and a {colour} {shape} {motion} in front of it.",
    "We see a {colour} {shape} {moving} on a {ground} background.",
    "A {shape} {motion}. It is {colour}, and the background is {ground}.",
    "This video shows a {colour} {shape} {moving} in front of a {ground} background.",
)
"""Used in training; the first is the canonical one. {moving} is the -ing form of {motion}."""

UNSEEN_PHRASINGS = (
    "This is a {colour} {shape}, and it {motion} in front of a {ground} background.",
    "The {shape} that {motion} is {colour}. The background is {ground}.",
)
"""Never used in training, though each of their words is."""

SUBJECT_NAME = "teal robot"
SUBJECT_PREFIX = f"A video of sks {SUBJECT_NAME}. "

_MOVING = {"moves": "moving", "bounces": "bouncing", "stays": "staying"}


def caption(scene: Scene, phrasing: str) -> str:
    """`phrasing`, one of the above or with the same fields, filled in for the scene."""
    return phrasing.format(
        colour=scene.colour,
        shape=scene.shape,
        motion=scene.motion,
        moving=_moving(scene.motion),
        ground=scene.ground,
    )


def subject_caption(motion: str, ground: str) -> str:
    """The canonical caption of the teal robot, without SUBJECT_PREFIX."""
    return f"A {SUBJECT_NAME} {motion} on a {ground} background."


def words() -> tuple[str, ...]:
    """Every word of every caption, the subject's and its prefix too; sorted, as spelled, no punctuation."""
    phrasings = (*PHRASINGS, *UNSEEN_PHRASINGS)
    texts = {caption(scene, phrasing) for scene in ALL_SCENES for phrasing in phrasings}
    texts |= {SUBJECT_PREFIX + subject_caption(motion, ground) for motion in MOTIONS for ground in GROUNDS}
    return tuple(sorted({word for text in texts for word in re.findall(r"\w+", text)}))


def _moving(motion: str) -> str:
    """`moving to the left` for `moves to the left`."""
    verb, *rest = motion.split()
    return " ".join((_MOVING[verb], *rest))
