"""Text in the letters that it looks like: what is written to be read as English is to be judged as it."""

import re
import unicodedata

_DROPPED = ("Mn", "Cf", "Cc")
"""Categories of what is not seen: accents and other marks, formats, control characters."""
_WORD = re.compile(r"[^\W\d_]+")

_SEEN_AS = (
    ("ıȷɩøɵłƚđɗħŧɑɒɡƒǝɛʋƙɓ", "ijioollddhtaagfeevkb"),
    ("ØŁĐĦŦ", "oldht"),
    ("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘꞯʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnopqrstuvwyz"),
    ("аеорсхуіјѕһӏԁԛԝкмт", "aeopcxyijshldqwkmt"),
    ("АВЕКМНОРСТХУІЈЅ", "abekmhopctxyijs"),  # noqa: RUF001
    ("αονρικυχτ", "aovpikuxt"),
    ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "abezhikmnoptyx"),  # noqa: RUF001
    ("սօոհցզյ", "uonhgqj"),
)
"""Letters that Unicode does not decompose (Latin, small capitals, Cyrillic, Greek, Armenian), and those of
English that they are seen as: the commonest of Unicode's confusables (UTS 39)."""
_DOUBLES = {
    ord(letter): plain for letters, seen in _SEEN_AS for letter, plain in zip(letters, seen, strict=True)
}
_IN_BOXES = {
    first + i: chr(ord("a") + i)
    for first in (ord("🅐"), ord("🅰"), ord("🇦"))  # white on a disc, on a square, and halves of a flag
    for i in range(26)
}


def without_accents(text: str) -> str:
    """Without accents and invisible characters, full-width letters as ASCII; other scripts as they are."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if c.isspace() or unicodedata.category(c) not in _DROPPED)


def plain_letters(text: str) -> str:
    """`without_accents`, and letters that look like English ones as those, in lower case.

    But a word without an English letter stays what it is, unless all of its letters have a double: it is one
    of another language.
    """
    return _WORD.sub(_read, without_accents(text).translate(_IN_BOXES))


def _read(word: re.Match[str]) -> str:
    seen = word[0].translate(_DOUBLES)
    return seen if seen.isascii() or re.search("[A-Za-z]", word[0]) else word[0]
