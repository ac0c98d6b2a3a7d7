import pytest

from cosmos_nemo.stages.upsampled_text import clean_answer

TEN = "one two three four five six seven eight nine ten"
NINE = TEN.removesuffix(" ten")


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ("a\nb\r\nc\rd", "a b c d"),
        ("a   b\t c ", "a b c"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_lines_and_spaces_become_single_spaces(answer: str, prompt: str) -> None:
    assert clean_answer(answer) == prompt


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ("Dawn. - **The Setting** A beach.", "Dawn. A beach."),
        ("- **Setting:** A beach. - **Mood:** Calm.", "A beach. Calm."),
        (f"Dawn. - **{NINE}** A beach.", "Dawn. A beach."),
        (f"Dawn. - **{TEN}** A beach.", f"Dawn. - **{TEN}** A beach."),
        ("Dawn. - **The\nSetting** A beach.", "Dawn. A beach."),
        ("Dawn. **The Setting** A beach.", "Dawn. **The Setting** A beach."),
        ("Dawn. - **open A beach.", "Dawn. - **open A beach."),
    ],
)
def test_a_bold_bullet_of_fewer_than_ten_words_goes(answer: str, prompt: str) -> None:
    assert clean_answer(answer) == prompt


@pytest.mark.parametrize("marker", ["Caption:", "Caption: ", "##### ", "#### ", "- ", "* ", ", "])
def test_a_marker_at_the_start_goes(marker: str) -> None:
    assert clean_answer(f"{marker}A red # beach, a - b") == "A red # beach, a - b"


def test_markers_go_in_their_order_each_once() -> None:
    assert clean_answer("Caption: ##### #### - * , A beach") == "A beach"
    assert clean_answer("#### Caption: A beach") == "Caption: A beach"
    assert clean_answer("Caption: Caption: A beach") == "Caption: A beach"


def test_three_number_signs_and_a_marker_behind_a_space_stay_as_released() -> None:
    assert clean_answer("### A beach") == "### A beach"
    assert clean_answer(" Caption: A beach") == "Caption: A beach"


@pytest.mark.parametrize("edge", [" ", "-", ",", "*", ":", '"', "'", "“", "”", ' "*:'])
def test_punctuation_and_quotes_around_the_text_go(edge: str) -> None:
    assert clean_answer(f"{edge}A calm “blue” beach: it's here.{edge}") == "A calm “blue” beach: it's here."


def test_a_full_stop_and_brackets_stay() -> None:
    assert clean_answer("(A beach).") == "(A beach)."


def test_only_punctuation_becomes_nothing() -> None:
    assert clean_answer('- **Caption** "*:,"') == ""
