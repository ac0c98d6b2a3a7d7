"""WordNet's word lists: the singular of a noun, and which words are everyday English.

Read straight from the folder of the released guardrail. NLTK's reader of the same files looks for them along
a search path of the whole process, and reads all definitions before the first answer.
"""

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from cosmos_nemo.checkpoint.reader import CheckpointError

_KINDS = ("noun", "verb", "adj", "adv")
_ENDINGS = {
    "noun": (
        *(("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z")),
        *(("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
    ),
    "verb": (
        *(("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", "")),
        *(("ing", "e"), ("ing", "")),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}
"""Endings that inflection adds, and what they stand for (WordNet's manual, morphy(7WN))."""


class WordNet:
    """Nouns, verbs, adjectives and adverbs with their irregular forms."""

    def __init__(
        self,
        *,
        tag_counts: Mapping[str, Mapping[str, int]],
        irregular: Mapping[str, Mapping[str, tuple[str, ...]]],
    ) -> None:
        """tag_counts: kind -> word -> how many of its senses occur in WordNet's corpus of tagged prose;
        irregular: kind -> inflected form -> base forms."""
        self._tag_counts, self._irregular = tag_counts, irregular

    @staticmethod
    def read(nltk_data: Path) -> "WordNet":
        """From `nltk_data`/corpora/wordnet or wordnet.zip, as NLTK's downloader leaves it.

        CheckpointError if neither is there or a file in it is missing or damaged.
        """
        files = _Files.find(nltk_data / "corpora")
        return WordNet(
            tag_counts={kind: _read_index(files, kind) for kind in _KINDS},
            irregular={kind: _read_exceptions(files, kind) for kind in _KINDS},
        )

    def noun_lemma(self, word: str) -> str:
        """The shortest noun that `word` (lower case) may be a form of; `word` itself if there is none.

        As NLTK's WordNetLemmatizer: "as" has the noun "a", "buses" the noun "bus".
        """
        return min(self._lemmas(word, "noun"), key=len, default=word)

    def is_common(self, word: str) -> bool:
        """Whether `word` (lower case) is a form of a word that occurs in WordNet's corpus of prose.

        Tells "hall" and "desk" from the many rare names, codes and chemical symbols in WordNet.
        """
        return any(self._tag_counts[kind][lemma] > 0 for kind in _KINDS for lemma in self._lemmas(word, kind))

    def _lemmas(self, word: str, kind: str) -> list[str]:
        forms = self._irregular[kind].get(word)
        if forms is None:
            forms = tuple(
                word.removesuffix(ending) + base for ending, base in _ENDINGS[kind] if word.endswith(ending)
            )
        return [form for form in (word, *forms) if form in self._tag_counts[kind]]


class _Files:
    """WordNet's files by name, from a folder or a zip archive."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @staticmethod
    def find(corpora: Path) -> "_Files":
        for path in (corpora / "wordnet", corpora / "wordnet.zip"):
            if path.exists():
                return _Files(path)
        raise CheckpointError(
            f"{corpora} has neither wordnet nor wordnet.zip: the word lists need WordNet, which comes with "
            "them in nltk_data. Download the guardrail again."
        )

    def lines(self, name: str) -> list[str]:
        """The lines of one file without the licence at its top."""
        try:
            content = self._content(name).decode("utf-8")
        except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
            raise CheckpointError(
                f"{self._path} is damaged: its {name} cannot be read ({error}). Download the guardrail again."
            ) from error
        return [line for line in content.splitlines() if line and not line.startswith(" ")]

    def _content(self, name: str) -> bytes:
        if self._path.is_dir():
            return (self._path / name).read_bytes()
        with zipfile.ZipFile(self._path) as archive:
            return archive.read(f"wordnet/{name}")


def _read_index(files: _Files, kind: str) -> dict[str, int]:
    """Lines are: lemma, letter, synsets, n, n pointers, senses, tagged senses, offsets (wndb(5WN))."""
    name = f"index.{kind}"
    try:
        counts = dict(_tag_count(line.split()) for line in files.lines(name))
    except (IndexError, ValueError) as error:
        raise CheckpointError(
            f"{name} of WordNet is damaged ({error}). Download the guardrail again."
        ) from error
    if not counts:
        raise CheckpointError(f"{name} of WordNet holds no words. Download the guardrail again.")
    return counts


def _tag_count(fields: list[str]) -> tuple[str, int]:
    return fields[0], int(fields[5 + int(fields[3])])


def _read_exceptions(files: _Files, kind: str) -> dict[str, tuple[str, ...]]:
    """Lines are: inflected form, base forms."""
    words: Iterable[list[str]] = (line.split() for line in files.lines(f"{kind}.exc"))
    return {form: tuple(bases) for form, *bases in words}
