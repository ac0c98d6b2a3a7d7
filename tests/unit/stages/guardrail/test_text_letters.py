import string
import unicodedata

import pytest

from cosmos_nemo.stages.guardrail.text_letters import _DOUBLES, _IN_BOXES, plain_letters, without_accents


def test_the_tables_hold_what_unicode_does_not_decompose_and_small_english_letters() -> None:
    for letter, plain in (_DOUBLES | _IN_BOXES).items():
        assert unicodedata.normalize("NFKD", chr(letter)) == chr(letter) and letter > 127
        assert plain in string.ascii_lowercase and len(plain) == 1
    assert set(_IN_BOXES.values()) == set(string.ascii_lowercase) and len(_IN_BOXES) == 3 * 26


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\u0455\u0435\u0445", "sex"),
        ("\u0421\u041eC\u041a", "coCk"),
        ("\u0440\u0430\u0431\u043e\u0442\u0430", "\u0440\u0430\u0431\u043e\u0442\u0430"),
        ("d\u057dck\u057e", "duck\u057e"),
        ("\u041aot, \u0441\u043d", "kot, \u0441\u043d"),
        ("a\u00df St\u00fcck", "a\u00df Stuck"),
        ("Pen\u0000is a\u200bb", "Penis ab"),
        ("a\u3000b\tc\nd", "a b\tc\nd"),
        ("\uff21\u24b7\U0001f172\U0001f153\U0001f1ea", "ABcde"),
        ("abc XYZ 12 @$", "abc XYZ 12 @$"),
        ("", ""),
    ],
)
def test_text_is_read_in_the_letters_that_it_looks_like(text: str, plain: str) -> None:
    assert plain_letters(text) == plain


def test_letters_of_other_scripts_stay_where_only_accents_go() -> None:
    assert (
        without_accents("\u0441\u043e\u043c\u0451 caf\u00e9 \u00f8") == "\u0441\u043e\u043c\u0435 cafe \u00f8"
    )
