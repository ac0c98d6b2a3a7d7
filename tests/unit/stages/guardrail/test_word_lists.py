import difflib
import json
import random
import string
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.request import DEFAULT_NEGATIVE_PROMPT
from cosmos_nemo.stages.guardrail.text_wordnet import WordNet
from cosmos_nemo.stages.guardrail.word_lists import WordLists
from cosmos_nemo.tools.standin_text_guard import write_word_lists
from tests.doors import commands

EXAMPLES = Path(__file__).parents[4] / "assets" / "diffusion" / "batch_inputs" / "text2world.jsonl"
PROMPTS = (
    DEFAULT_NEGATIVE_PROMPT,
    *(json.loads(line)["prompt"] for line in EXAMPLES.read_text().splitlines()),
    *(value for name, value in vars(commands).items() if name.endswith("_PROMPT")),
)
TRAPS = ("bail", "moue", "weil", "avast", "ina", "thebus", "toit", "intoa", "deskin", "455", "io", "ass")
"""Entries that better_profanity finds in harmless text: in PROMPTS, and in the sentences tested below."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_word_lists(tmp_path)
    return tmp_path


def lists(folder: Path, **entries: Iterable[str]) -> WordLists:
    """Of the stand-in, with these entries instead of its own."""
    for name, words in entries.items():
        (folder / name / f"{name}.txt").write_text("\n".join(words))
    return WordLists.read(folder)


def flagged_by_the_library(text: str, entries: Iterable[str]) -> bool:
    from better_profanity import Profanity

    return "\0" in Profanity(words=list(entries)).censor(text, censor_char="\0")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A grobnik on a table", "'grobnik' is on the custom list"),
        ("a GROBNIK", "'grobnik' is on the custom list"),
        ("a gr0bn1k, seen from above", "'gr0bn1k' (as 'grobnik') is on the custom list"),
        ("gr*bnik", "'gr*bnik' (as 'grobnik') is on the custom list"),
        ("a gro bnik", "'gro bnik' (as 'grobnik') is on the custom list"),
        ("Grobniks walk", "'grobniks' (as 'grobnik') is on the custom list"),
        ("two smulchies", "'smulchies' (as 'smulch') is on the custom list"),
        ("the “grobnik”", "'grobnik' is on the custom list"),
        ('the "grobnik" and', "'grobnik' is on the custom list"),
        ("the **grobnik** and", "'grobnik' is on the custom list"),
        ("the grobnik's hat", "'grobnik' is on the custom list"),
        ("a grob\u200bnik", "'grob nik' (as 'grobnik') is on the custom list"),
        ("a gro\u200bb\u200bnik", "'grobnik' is on the custom list"),
        ("a\u200bgrobnik", "'grobnik' is on the custom list"),
        ("a \uff47\uff52\uff4f\uff42\uff4e\uff49\uff4b", "'grobnik' is on the custom list"),
        ("a gröbník", "'grobnik' is on the custom list"),
        ("a frazzwick\n gurn", "'frazzwick gurn' is on the custom list"),
        ("of Plimsnark.", "'plimsnark' is on the exact_match list"),
        ("the dread   yonker", "'dread yonker' is on the exact_match list"),
        ("", "the prompt is empty"),
        (" \n", "the prompt is empty"),
    ],
)
def test_bad_words_are_found_however_they_are_written(text: str, found: str, folder: Path) -> None:
    message = WordLists.read(folder).find(text)
    assert message == found


@pytest.mark.parametrize(
    "text",
    [
        *("agrobnik", "frazzwick", "gurn", "a plimsnarkish mood", "dread, yonker", "a smulcher"),
        *("two smulchers", "grobnikov"),
        "一个机器人",
        "**Bold** and 'quoted', 100% at 24 fps.",
    ],
)
def test_harmless_words_are_not_found(text: str, folder: Path) -> None:
    assert lists(folder, whitelist=["smulcher", "smulchers", "grobnikov"]).find(text) is None


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt[:24])
def test_the_documented_prompts_pass_the_standin_lists_and_lists_of_traps(prompt: str, folder: Path) -> None:
    assert WordLists.read(folder).find(prompt) is None
    assert lists(folder, custom=TRAPS, exact_match=["", "  ", "plimsnark"]).find(prompt) is None


def test_the_library_alone_would_block_documented_prompts_for_the_traps() -> None:
    blocked = {entry for entry in TRAPS for prompt in PROMPTS if flagged_by_the_library(prompt, [entry])}
    assert blocked >= {"bail", "avast", "ina"}


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("a robot at a desk in the hall", "deskin"),
        ("a blue ball", "bail"),
        ("house number 455", "ass"),
        ("a 55 year old tree", "ass"),
        ("with ** around it", "io"),
    ],
)
def test_plain_english_that_happens_to_spell_an_entry_is_not_found(
    text: str, entry: str, folder: Path
) -> None:
    assert flagged_by_the_library(f"{text} .", [entry, "one two three"])
    assert lists(folder, custom=[entry]).find(text) is None


@pytest.mark.parametrize(
    "gap", ["-", ".", "/", "--", "\x00", "\x1f", "\x7f", "\u2013", "\u00b7", "\U0001f642"]
)
@pytest.mark.parametrize(
    ("words", "entry"), [(("desk", "in"), "deskin"), (("in", "hall"), "inhall"), (("to", "it"), "toit")]
)
def test_everyday_words_without_white_space_between_them_still_spell_an_entry(
    words: tuple[str, str], gap: str, entry: str, folder: Path
) -> None:
    found = lists(folder, custom=[entry])
    assert found.find(f"a {gap.join(words)} of it") is not None
    for space in (" ", "\n", "\t", "\u3000", f" {gap} ", f"{gap} "):
        if not gap.isascii() or gap.isprintable():
            assert found.find(f"a {space.join(words)} of it") is None, space


@pytest.mark.parametrize("text", ["at 4.55", "4-5-5", "f/4.55", "4:55"])
def test_a_number_is_plain_however_its_digits_are_grouped(text: str, folder: Path) -> None:
    assert lists(folder, custom=["ass"]).find(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *("gr\u043ebnik", "\u0261robnik", "grobn\u0131k", "gr\u00f8bnik", "gr\u03bfbnik", "gr\u0585bnik"),
        *("\u0262\u0280\u1d0f\u0299\u0274\u026a\u1d0b", "grobni\u043a", "GR\u041eBNIK"),
        *("\U0001f176\U0001f181\U0001f17e\U0001f171\U0001f17d\U0001f178\U0001f17a",),
        *("\U0001f156\U0001f161\U0001f15e\U0001f151\U0001f15d\U0001f158\U0001f15a",),
        *("\U0001f1ec\U0001f1f7\U0001f1f4\U0001f1e7\U0001f1f3\U0001f1ee\U0001f1f0",),
        *("gr\u03ccbnik", "gr\u0151bnik"),
    ],
)
def test_letters_that_look_like_those_of_an_entry_are_read_as_them(text: str, folder: Path) -> None:
    assert WordLists.read(folder).find(f"a {text} in a kitchen") == "'grobnik' is on the custom list"


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("\u0455\u0435\u0445", "sex"),
        ("a\u0455s", "ass"),
        ("d\u057dck", "duck"),
        ("\ua730uck", "fuck"),
        ("\U0001f175uck", "fuck"),
        ("du'ck", "duck"),
        ("du\u2019ck", "duck"),
        ("p\u0456\u0455\u0455", "piss"),
    ],
)
def test_disguises_in_other_scripts_and_quotes_are_found(text: str, entry: str, folder: Path) -> None:
    assert lists(folder, custom=[entry]).find(f"a {text} of it") is not None


ENTRIES = ("ass", "cock", "sex", "piss", "hot", "pot", "come", "poc", "aha", "co", "tot", "bar", "mao")


@pytest.mark.parametrize(
    "prompt",
    [
        "Робот готовит ужин на кухне, за окном идёт снег, кот сидит на столе рядом с соусом и рисом.",  # noqa: RUF001
        "Ένα ρομπότ μαγειρεύει σε μια κουζίνα, και η γάτα κάθεται πάνω στο τραπέζι.",
        "Ռոբոտը խոհանոցում ճաշ է պատրաստում։",  # noqa: RUF001
        "Er aß ein großes Stück Kuchen, während der Fluß über die Ufer trat.",
        "En gammel mand går på en ø i søen, og båden sejler forbi.",
        "Kıyıda yürüyen bir kadın, ışık yavaşça sönüyor.",  # noqa: RUF001
        "Łódź płynie powoli po rzece, a nad nią lśni księżyc.",
        "机器人在厨房里做饭。",
        "ロボットが台所で料理をしている。",
        "الروبوت يطبخ في المطبخ",
        "a 🇺🇸 flag beside a 🇫🇷 one, 🅿 and 🅰️ on a sign 🙂",
        "the robot\u2014a tall one\u2014sits; \u201cit\u2019s calm\u201d\u2026",
    ],
)
def test_harmless_prompts_of_other_languages_pass(prompt: str, folder: Path) -> None:
    assert lists(folder, custom=ENTRIES).find(prompt) is None


def test_an_entry_in_another_script_does_not_become_an_english_word(folder: Path) -> None:
    (folder / "custom" / "more.txt").write_text("\u0441\u043e\u043c\u0435\n", encoding="utf-8")
    assert WordLists.read(folder).find("they come home") is None


def test_a_phrase_is_found_whatever_stands_between_its_words(folder: Path) -> None:
    found = WordLists.read(folder)
    for gap in (" ", "  ", "\n", "\u2013", "\x00", "\x1f"):
        assert found.find(f"a frazzwick{gap}gurn") == "'frazzwick gurn' is on the custom list"
        assert found.find(f"a dread{gap}yonker") == "'dread yonker' is on the exact_match list"


def test_contractions_do_not_lose_their_letter_to_the_next_word(folder: Path) -> None:
    found = lists(folder, custom=["shit"])
    assert found.find("It's hit by a ball, the man's hit too.") is None
    assert found.find("It is s hit") is not None
    for ending in ("s", "d", "m", "t", "ll", "re", "ve"):
        assert lists(folder, custom=[f"{ending}zib"]).find(f"they'{ending} zib") is None
    assert lists(folder, custom=["ckzib"]).find("they'ck zib") is not None


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("a ba1l", "bail"),
        ("a bail", "bail"),
        ("a des kin", "deskin"),
        ("deskin", "deskin"),
        ("a d3sk in", "deskin"),
        ("a ball box", "ballbox"),
        ("a $$", "ass"),
        ("4$$", "ass"),
    ],
)
def test_disguises_and_compounds_written_apart_are_still_found(text: str, entry: str, folder: Path) -> None:
    assert lists(folder, custom=[entry]).find(text) is not None


def test_a_letter_on_its_own_is_no_everyday_word() -> None:
    counts: dict[str, dict[str, int]] = {kind: {} for kind in ("noun", "verb", "adj", "adv")}
    wordnet = WordNet(tag_counts=counts | {"noun": {"f": 1, "ff": 1}}, irregular=dict(counts))
    found = WordLists(custom=["fat", "ffat"], whitelist=[], exact_match=["-"], wordnet=wordnet)
    assert found.find("f at") is not None
    assert found.find("ff at") is None


def test_as_many_words_are_read_as_one_as_the_longest_phrase_has(folder: Path) -> None:
    assert lists(folder, custom=["grobnik", "a b c"]).find("g r o b n i k") is None
    assert lists(folder, custom=["grobnik", "a b c d e f g"]).find("g r o b n i k") is not None


def test_a_word_of_the_whitelist_is_allowed_but_not_a_listed_phrase_of_such_words(folder: Path) -> None:
    found = lists(folder, custom=["grobnik", "ball box"], whitelist=["Grobnik", "ball", "box", "none"])
    assert found.find("a grobnik, 'Grobnik'.") is None
    assert found.find("a ball, a box") is None
    assert found.find("a ball box") is not None


def test_the_whitelist_allows_what_spells_an_entry_or_has_one_as_its_singular(folder: Path) -> None:
    for allowed in ("none", "zalk"):
        found = lists(folder, custom=["zaik"], whitelist=[allowed]).find("a 'Zalk'")
        assert (found is None) == (allowed == "zalk")
    for allowed in ("none", "grobniks"):
        found = lists(folder, custom=["grobnik"], whitelist=[allowed]).find("two Grobniks.")
        assert (found is None) == (allowed == "grobniks")


def test_whatever_the_library_finds_is_found() -> None:
    """In random text of made-up words, none of which is plain English."""
    draw = random.Random(0)
    kinds = ("noun", "verb", "adj", "adv")
    wordnet = WordNet(
        tag_counts={kind: {} for kind in kinds},
        irregular={kind: {} for kind in kinds},
    )
    flagged = 0
    for _ in range(400):
        entries = ["".join(draw.choices("xlovqe", k=draw.choice((3, 4)))) for _ in range(4)] + ["xx oo le"]
        text = "".join(draw.choices("xxlovqe@u  -.", k=80)) + draw.choice(entries) + " ."
        found = WordLists(custom=entries, whitelist=[], exact_match=["-"], wordnet=wordnet).find(text)
        if flagged_by_the_library(text, entries):
            flagged += 1
            assert found is not None, (entries, text)
    assert 100 < flagged < 400


def test_no_text_but_the_entry_itself_reaches_the_ratio_of_the_released_fuzzy_match() -> None:
    draw = random.Random(0)
    for length in range(6, 41):
        entry = "".join(draw.choices(string.ascii_lowercase, k=length))
        place = draw.randrange(1, length)
        for other in (entry[:place] + "-" + entry[place:], entry[:place] + entry[place + 1 :]):
            ratio = difflib.SequenceMatcher(None, other, entry).ratio()
            assert ratio < (length - 0.4) / length


@pytest.mark.parametrize("part", ["custom", "whitelist", "exact_match", "nltk_data/corpora/wordnet.zip"])
def test_a_missing_part_is_an_error_that_names_it(part: str, folder: Path) -> None:
    (folder / part).rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match=part.rpartition("/")[2]):
        WordLists.read(folder)


@pytest.mark.parametrize("part", ["custom", "whitelist", "exact_match"])
def test_a_list_without_words_is_an_error(part: str, folder: Path) -> None:
    (folder / part / f"{part}.txt").write_text("\n  \n")
    with pytest.raises(CheckpointError, match=f"{part} holds no words"):
        WordLists.read(folder)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder of word lists"):
        WordLists.read(tmp_path / "blocklist")


def test_a_list_that_is_no_text_is_an_error(folder: Path) -> None:
    (folder / "custom" / "more.txt").write_bytes(b"\xff\xfe\x00grobnik")
    with pytest.raises(CheckpointError, match=r"custom cannot be read"):
        WordLists.read(folder)


def test_a_whitelist_of_all_custom_words_is_an_error(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing would be found"):
        lists(folder, whitelist=["grobnik", "smulch", "Frazzwick  gurn"])


def test_lists_in_several_files_with_marks_and_line_ends_of_windows_are_read(folder: Path) -> None:
    (folder / "custom" / "more.txt").write_bytes("\ufeffgazzle\r\nñandú-plok\r\n".encode())
    (folder / "custom" / ".hidden").write_bytes(b"\xff")
    found = WordLists.read(folder)
    assert found.find("a gazzle") is not None
    assert found.find("a ñandú-plok") is not None
    assert found.find("a grobnik") is not None


def unzip(folder: Path) -> Path:
    archive = folder / "nltk_data" / "corpora" / "wordnet.zip"
    with zipfile.ZipFile(archive) as files:
        files.extractall(archive.parent)
    archive.unlink()
    return archive.with_suffix("")


def test_wordnet_may_be_unpacked(folder: Path) -> None:
    unzip(folder)
    assert WordLists.read(folder).find("Grobniks") is not None


def test_a_damaged_wordnet_is_an_error(folder: Path) -> None:
    archive = folder / "nltk_data" / "corpora" / "wordnet.zip"
    whole = archive.read_bytes()
    inside = whole.index(b"wordnet/index.noun") + 40
    for damaged in (whole[:-30], whole[:inside] + b"damage" + whole[inside + 6 :], b""):
        archive.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            WordLists.read(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.noun", ""),
        ("index.noun", "grobnik n one"),
        ("index.adv", "slowly r 1 0 1\n"),
        ("verb.exc", None),
    ],
)
def test_a_wordnet_file_without_sense_is_an_error(name: str, content: str | None, folder: Path) -> None:
    path = unzip(folder) / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=name):
        WordLists.read(folder)


def test_lemmas_are_those_of_nltk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(folder / "nltk_data")])
    lemmatize = nltk.WordNetLemmatizer().lemmatize
    wordnet = WordNet.read(folder / "nltk_data")
    words = ["grobniks", "men", "women", "shelves", "glasses", "boxes", "sky", "skies", "smulchies", "zebras"]
    assert {word: wordnet.noun_lemma(word) for word in words} == {word: lemmatize(word) for word in words}
    assert wordnet.noun_lemma("shelves") == "shelf" and wordnet.noun_lemma("zebras") == "zebras"


def test_everyday_words_are_those_with_a_form_in_prose(folder: Path) -> None:
    wordnet = WordNet.read(folder / "nltk_data")
    assert all(map(wordnet.is_common, ("ball", "balls", "rolls", "rolled", "boxes", "taller", "fell")))
    assert not any(map(wordnet.is_common, ("grobnik", "grobniks", "xyz", "")))


def test_reading_leaves_the_search_path_of_nltk_alone(folder: Path) -> None:
    nltk = pytest.importorskip("nltk")
    before = list(nltk.data.path)
    WordLists.read(folder).find("Grobniks")
    assert nltk.data.path == before


def test_long_lists_and_prompts_take_a_fraction_of_a_second(folder: Path) -> None:
    draw = random.Random(0)
    many = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(4, 9))) for _ in range(6000)]
    phrases = [" ".join(many[i : i + 4]) for i in range(0, 400, 4)]
    prompt = " ".join(" ".join(PROMPTS[-4:]).split()[:250])
    started = time.process_time()
    found = lists(folder, custom=many[:3000] + phrases, exact_match=many[3000:])
    built = time.process_time()
    assert found.find(prompt) is None
    assert built - started < 1 and time.process_time() - built < 0.5
