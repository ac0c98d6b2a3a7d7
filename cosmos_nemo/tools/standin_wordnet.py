"""A few words in the file format of WordNet 3.0, as NLTK's downloader leaves it, to try the word lists."""

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

_KINDS = {"noun": ("n", 1, 3), "verb": ("v", 2, 29), "adj": ("a", 3, 0), "adv": ("r", 4, 2)}
"""File ending -> its letter, its number in sense keys, and the lexicographer file that all words are in."""
_NUM_LEXNAMES = 45
_NOTICE = "  1 Made-up entries in the format of WordNet 3.0 Copyright: none of its text is in here.  \n"
"""Before the entries, as in every file of WordNet; NLTK takes the version from it."""


def write_wordnet(
    corpora: Path,
    *,
    common: Mapping[str, Iterable[str]],
    rare: Mapping[str, Iterable[str]],
    irregular: Mapping[str, Mapping[str, str]],
) -> None:
    """Writes `corpora`/wordnet.zip; the same words make the same bytes.

    common, rare: kind (noun, verb, adj, adv) -> words that occur in tagged prose once and never;
    irregular: kind -> inflected form -> base form.
    """
    files = {"lexnames": "".join(f"{i:02}\tgroup.{i}\t1\n" for i in range(_NUM_LEXNAMES)), "cntlist.rev": ""}
    senses = []
    for kind in _KINDS:
        counts = dict.fromkeys(rare.get(kind, ()), 0) | dict.fromkeys(common.get(kind, ()), 1)
        data, offsets = _data(kind, counts)
        files[f"data.{kind}"], files[f"index.{kind}"] = data, _index(kind, counts, offsets)
        forms = sorted(irregular.get(kind, {}).items())
        files[f"{kind}.exc"] = "".join(f"{form} {base}\n" for form, base in forms)
        senses += [_sense(kind, word, offsets[word], count) for word, count in counts.items()]
    files["index.sense"] = "".join(sorted(senses))
    corpora.mkdir(parents=True, exist_ok=True)
    (corpora / "wordnet.zip").write_bytes(_archive(files))


def _data(kind: str, words: Iterable[str]) -> tuple[str, dict[str, int]]:
    """The definitions, one group of synonyms per word, and where each begins in bytes (wndb(5WN))."""
    letter, _, lexfile = _KINDS[kind]
    frames = "00 " if kind == "verb" else ""
    text, offsets = _NOTICE, {}
    for word in sorted(words):
        offsets[word] = len(text)
        text += f"{len(text):08} {lexfile:02} {letter} 01 {word} 0 000 {frames}| a stand-in  \n"
    return text, offsets


def _index(kind: str, counts: Mapping[str, int], offsets: Mapping[str, int]) -> str:
    letter = _KINDS[kind][0]
    lines = (f"{word} {letter} 1 0 1 {counts[word]} {offsets[word]:08}  \n" for word in sorted(counts))
    return _NOTICE + "".join(lines)


def _sense(kind: str, word: str, offset: int, count: int) -> str:
    _, number, lexfile = _KINDS[kind]
    return f"{word}%{number}:{lexfile:02}:00:: {offset:08} 1 {count}\n"


def _archive(files: Mapping[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            # Without a date of its own it would hold the time of writing.
            archive.writestr(zipfile.ZipInfo(f"wordnet/{name}"), text, zipfile.ZIP_DEFLATED)
    return content.getvalue()
