"""The word lists of the released guardrail: what a prompt may not say, whatever it means."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.guardrail.text_letters import plain_letters, without_accents
from cosmos_nemo.stages.guardrail.text_spelling import Spellings, Word
from cosmos_nemo.stages.guardrail.text_wordnet import WordNet

_AS_THE_LIBRARY = re.compile(r"[A-Za-z0-9@$*\"']+")
"""The words of better_profanity, to which quotes and stars belong."""
_WITHOUT_QUOTES = re.compile(
    r"[A-Za-z0-9@$]+(?:\*+[A-Za-z0-9@$]+)*|(?<=[A-Za-z])'(?:s|d|m|t|ll|re|ve)\b", re.IGNORECASE
)
"""Quotes and emphasis fall away. Not that of a contraction: "it's hit" must not be read as it, s, hit."""
_FOREIGN = "\x1a"
"""In the place of characters that are not ASCII: a gap like any other, but no white space."""
_GAP = re.compile(r"[\x00-\x20\x7f]+")
_WHITE_SPACE = re.compile(r"[ \t\n\v\f\r]")


class WordLists:
    """Words that block a prompt (spec/predict1-diffusion.md, 7.4).

    custom: words and phrases in any spelling (text_spelling.py), in the prompt and in its nouns' singulars;
    exact_match: words and phrases as they are, between word boundaries; whitelist: words that custom does not
    apply to. The released code also compares entries of six letters or more with runs of words by difflib
    and asks for a ratio of (length - 0.4) / length. One letter more, less or other leaves at most
    1 - 1 / (2 length + 1), which is below that: only equal text passes, and that is found as it is.

    Stricter than the released code: words in "quotes", in *emphasis* and at a sentence's start are found too,
    as are words in letters that only look like English ones (text_letters.py). More lenient:
    an empty line in exact_match would block every prompt and is skipped; everyday words that happen to spell
    an entry when read as one, or with another letter, do not count (Spellings); a word of the whitelist stays
    allowed when its singular is an entry; better_profanity's own list never stands in for an empty one (it
    has "pot", and "ugly" of the default negative prompt).
    """

    def __init__(
        self, *, custom: Iterable[str], whitelist: Iterable[str], exact_match: Iterable[str], wordnet: WordNet
    ) -> None:
        """Entries as in the files. custom must have entries that are not in the whitelist."""
        allowed = {_normalized(word) for word in whitelist}
        blocked = {_normalized(entry) for entry in custom} - allowed
        self._wordnet = wordnet
        self._spellings = Spellings(blocked, whitelist=allowed, wordnet=wordnet)
        self._exact = sorted({_normalized(entry) for entry in exact_match})

    @staticmethod
    def read(folder: Path) -> "WordLists":
        """From `folder`, the guardrail's "blocklist": custom, whitelist, exact_match and nltk_data.

        CheckpointError if a list is missing or has no words, or if WordNet is missing or damaged.
        """
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no folder of word lists: download the guardrail again.")
        custom, whitelist = _read_list(folder / "custom"), _read_list(folder / "whitelist")
        if not {_normalized(entry) for entry in custom} - {_normalized(word) for word in whitelist}:
            raise CheckpointError(
                f"{folder}: the whitelist has every word of the custom list, so that nothing would be found."
            )
        return WordLists(
            custom=custom,
            whitelist=whitelist,
            exact_match=_read_list(folder / "exact_match"),
            wordnet=WordNet.read(folder / "nltk_data"),
        )

    def find(self, text: str) -> str | None:
        """What makes `text` unsafe, a clause for people; None if nothing does. An empty text is unsafe."""
        if not text.strip():
            return "the prompt is empty"
        return next(filter(None, map(self._find, _readings(text))), None)

    def _find(self, text: str) -> str | None:
        for words in self._forms(text):
            if (match := self._spellings.find(words)) is not None:
                written, entry = match
                reading = "" if written == entry else f" (as '{entry}')"
                return f"'{written}'{reading} is on the custom list"
        text = _normalized(_GAP.sub(" ", text))
        for entry in self._exact:
            if entry in text and re.search(rf"(?<!\w){re.escape(entry)}(?!\w)", text):
                return f"'{entry}' is on the exact_match list"
        return None

    def _forms(self, text: str) -> Iterable[list[Word]]:
        yield _words(text, _AS_THE_LIBRARY)
        words = _words(text, _WITHOUT_QUOTES)
        yield words
        yield [replace(word, form=self._wordnet.noun_lemma(word.form)) for word in words]


def _readings(text: str) -> Iterable[str]:
    """ASCII forms of a text: other characters as gaps, and as the plain letters that they look like."""
    return dict.fromkeys(map(_ascii, (text, plain_letters(text))))


def _ascii(text: str) -> str:
    return "".join(c if c.isascii() else " " if c.isspace() else _FOREIGN for c in text)


def _words(text: str, pattern: re.Pattern[str]) -> list[Word]:
    words, end = [], 0
    for match in pattern.finditer(text):
        between, word = text[end : match.start()], match[0].lower()
        is_apart = _WHITE_SPACE.search(between) is not None
        words.append(Word(word, word, gap=_GAP.sub(" ", between), is_apart=is_apart))
        end = match.end()
    return words


def _normalized(text: str) -> str:
    return " ".join(text.lower().split())


def _read_list(folder: Path) -> list[str]:
    """One entry a line, from all files of the folder; not those in other scripts, which could not match."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is missing: download the guardrail again.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"A word list in {folder} cannot be read: {error}") from error
    entries = [entry for entry in map(without_accents, lines) if entry.strip() and entry.isascii()]
    if not entries:
        raise CheckpointError(f"{folder} holds no words: download the guardrail again.")
    return entries
