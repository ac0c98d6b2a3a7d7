"""The custom word list: its words and phrases in every spelling that better_profanity knows.

Those are letters written as digits and signs ("gr0bn1k"), and words cut in pieces ("gro bnik").
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cosmos_nemo.stages.guardrail.text_wordnet import WordNet

QUOTES = "*\"'"
"""What better_profanity takes for letters, although it mostly stands around a word."""

_FUNCTION_WORDS = (
    "a an the this that these those and or but nor if than as at by in into of on onto for from to with "
    "i you he she it we they me him her us them my your his its our their who whom whose which what when "
    "where is are was were be been am do does did has have had will would can could shall should may might "
    "must not no so there here"
)
"""Words that only hold a sentence together. Not off, out, up, down, over: they make compounds with verbs."""
_FUNCTION = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True)
class Word:
    """A word of the prompt in lower case; `form` is what is compared, `gap` what stands before it."""

    written: str
    form: str
    gap: str
    is_apart: bool
    """White space stands before it."""

    @property
    def bare(self) -> str:
        return self.written.strip(QUOTES)


class Spellings:
    """Finds the entries of a list in running text, however they are spelt.

    What counts as a spelling is up to better_profanity: its table of signs, and its limit on the words that
    are read as one. But it takes "a desk in the hall" for "deskin", and "ball" for "bail" with another i.
    Here a spelling other than the list's own does not count where the text is plain English as it stands:
    each word is everyday English or a number and, if words had to be read as one, white space is between all
    of them and a function word among them ("desk in", but neither "desk-in" nor "blood bath").
    """

    def __init__(self, entries: Iterable[str], *, whitelist: Collection[str], wordnet: WordNet) -> None:
        """entries: words and phrases in lower case, at least one; whitelist: words in lower case."""
        from better_profanity import Profanity

        words = sorted(set(entries))
        assert words, "better_profanity would take a list of its own for an empty one"
        library = Profanity(words=words)
        self._most_words = 1 + library.MAX_NUMBER_COMBINATIONS
        self._classes = _classes(library.CHARS_MAPPING)
        self._entries: dict[str, list[Any]] = defaultdict(list)
        for entry in library.CENSOR_WORDSET:
            self._entries[str(entry).translate(self._classes)].append(entry)
        self._whitelist, self._wordnet = frozenset(whitelist), wordnet

    def find(self, words: list[Word]) -> tuple[str, str] | None:
        """The first match: as the text has it, and the entry; None if there is none that counts."""
        for first in range(len(words)):
            for end in range(first + 1, min(first + self._most_words, len(words)) + 1):
                run = words[first:end]
                entry = self._match(run)
                if entry is not None:
                    return _joined(run, lambda word: word.written), entry
        return None

    def _match(self, run: list[Word]) -> str | None:
        whole, fused = _joined(run, lambda word: word.form), "".join(word.form for word in run)
        for spelling in dict.fromkeys((whole, fused)):
            for entry in self._spelt(spelling):
                if self._counts(run, as_listed=whole == entry, is_fused=spelling != whole):
                    return entry
        return None

    def _counts(self, run: list[Word], *, as_listed: bool, is_fused: bool) -> bool:
        if as_listed and len(run) > 1:
            return True  # a phrase is meant even if its words are allowed
        if self._is_whitelisted(run):
            return False
        return as_listed or not self._is_plain(run, is_fused=is_fused)

    def _spelt(self, spelling: str) -> list[str]:
        """The entries of which this is a spelling. The classes only narrow down what the library compares."""
        candidates = self._entries.get(spelling.translate(self._classes), ())
        return [str(entry) for entry in candidates if entry == spelling]

    def _is_whitelisted(self, run: list[Word]) -> bool:
        return all(word.bare in self._whitelist or word.form in self._whitelist for word in run)

    def _is_plain(self, run: list[Word], *, is_fused: bool) -> bool:
        if all(word.written.isdigit() for word in run):
            return True  # one number, however its digits are grouped: 4.55
        return all(self._is_everyday(word.written) for word in run) and not (is_fused and _is_joined(run))

    def _is_everyday(self, word: str) -> bool:
        if word in _FUNCTION or word.isdigit():
            return True
        # Single letters are in WordNet too, but stand alone in no sentence.
        return not word.strip(QUOTES) or (len(word) > 1 and self._wordnet.is_common(word))


def _is_joined(run: list[Word]) -> bool:
    """Whether the words do not simply follow each other in a sentence."""
    holds_together = any(word.written in _FUNCTION or word.written.isdigit() for word in run)
    return not holds_together or not all(word.is_apart for word in run[1:])


def _joined(run: list[Word], part: Callable[[Word], str]) -> str:
    """The words with the gaps between them."""
    return part(run[0]) + "".join(word.gap + part(word) for word in run[1:])


def _classes(signs: Mapping[str, Collection[str]]) -> dict[int, str]:
    """For str.translate: equal for characters that may stand for each other, directly or through others.

    So all spellings of an entry become one string, under which it can be looked up.
    """
    leader = {character: character for letter, others in signs.items() for character in (letter, *others)}
    for letter, others in signs.items():
        for other in others:
            assert len(other) == 1, "spellings of one length are needed to look them up"
            kept, given_up = leader[letter], leader[other]
            leader = {character: kept if lead == given_up else lead for character, lead in leader.items()}
    return {ord(character): lead for character, lead in leader.items()}
