"""The prompt upsampler's answer made fit to be a prompt (spec/predict1-diffusion.md, 7.2)."""

import re

_BULLET_HEADING = re.compile(r"- \*\*(.*?)\*\*")
_FEWEST_WORDS = 10
"""A bold bullet with fewer is a heading, and goes; one with more is a sentence of the description."""

_MARKERS = ("Caption:", "#####", "####", "- ", "* ", ",")
_EDGES = " -,*:\"'“”"


def clean_answer(text: str) -> str:
    """`text` as one line of prose, without headings, markers at its start and punctuation around it.

    May be empty. Spaces before a marker protect it, as in the released script.
    """
    line = text.replace("\n", " ").replace("\r", " ")
    without_headings = _BULLET_HEADING.sub(_keep_sentence, line)
    return " ".join(_without_markers(without_headings).split()).strip(_EDGES)


def _keep_sentence(bullet: re.Match[str]) -> str:
    return bullet[0] if len(re.findall(r"\w+", bullet[1])) >= _FEWEST_WORDS else ""


def _without_markers(text: str) -> str:
    """Each marker once, in their order: what stands behind one may be a later one, but not an earlier."""
    for marker in _MARKERS:
        rest = text.removeprefix(marker)
        text = text if rest == text else rest.lstrip()
    return text
