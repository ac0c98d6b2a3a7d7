"""Both halves of a text guard that knows only made-up bad words, to try everything without the real ones."""

from pathlib import Path

from cosmos_nemo.checkpoint.writer.llama_guard import guard_vocabulary, guard_weights, write_guard_folder
from cosmos_nemo.checkpoint.writer.text_encoder import english_words
from cosmos_nemo.tools.standin_wordnet import write_wordnet

UNSAFE_WORD = "zorchblade"
"""What the stand-in of Llama Guard takes for a violent crime."""

_LISTS = {
    "custom": ("grobnik", "smulch", "frazzwick gurn"),
    "exact_match": ("plimsnark", "dread yonker"),
    "whitelist": ("smulcher", "grobnikov"),
}
_NOUNS = (
    "ball box bottle building bus camera car chest cube desk floor food forest frame glass grass hall hill "
    "kitchen light man mountain night pan person pot prompt road robot room scene shelf sky spoon steam "
    "stone street sun table terminal tree vegetable video warehouse water wave window woman wood word"
)
_VERBS = (
    "boil catch chop cook drive fall gleam glow hit make move open pan park pass place roll show stand walk"
)
_ADJECTIVES = (
    "blue bright calm dark green large old open poor quiet red slow small soft tall vast warm well-lit wide"
)
_ADVERBS = "away forward gently left not out overall right slowly smoothly well"
_IRREGULAR = {
    "noun": {"men": "man", "women": "woman", "shelves": "shelf", "smulchies": "smulch"},
    "verb": {"fell": "fall", "fallen": "fall", "drove": "drive", "stood": "stand"},
}


def write_word_lists(folder: Path) -> None:
    """Writes what the released guardrail has in its "blocklist": three lists, and a tiny WordNet."""
    for name, entries in _LISTS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{name}.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    kinds = {"noun": _NOUNS, "verb": _VERBS, "adj": _ADJECTIVES, "adv": _ADVERBS}
    write_wordnet(
        folder / "nltk_data" / "corpora",
        common={kind: words.split() for kind, words in kinds.items()},
        rare={"noun": ("grobnik", "smulch", "gurn")},
        irregular=_IRREGULAR,
    )


def write_llama_guard(folder: Path, *, seed: int) -> None:
    """Writes a tiny Llama that answers "unsafe" and S1 to text with UNSAFE_WORD in it, and "safe" to others.

    The same seed writes the same bytes.
    """
    vocabulary = guard_vocabulary(english_words(), marked=UNSAFE_WORD)
    weights = guard_weights(vocabulary, marked=UNSAFE_WORD, seed=seed)
    write_guard_folder(folder, vocabulary=vocabulary, weights=weights)
