"""The nano models that ship with the package: they are there, small enough, and make what they are asked."""

import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cosmos_nemo.catalog import CARDS, ModelCard
from cosmos_nemo.checkpoint.locate import (
    EMBEDDED,
    discrete_tokenizer_of,
    locate,
    text_encoder_of,
    tokenizer_of,
    weights_of,
)
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.token_names import token_rules
from cosmos_nemo.tools.standin import standin_card
from tests.nano_table import quality, quality_of_a_person

NANO = [card for card in CARDS.values() if card.name.startswith("Cosmos-Nano-")]
ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in EMBEDDED.rglob("*") if path.is_file())
_EIGHT = ("--num_seen", "8", "--num_unseen", "0", "--num_steps", "8")
"""A quarter of the steps, which are enough to tell right from wrong: 35 of them take half a minute."""


def test_together_they_are_under_65_megabytes() -> None:
    assert 50e6 < sum(path.stat().st_size for path in FILES) < 65e6


def test_everybody_may_read_them() -> None:
    assert all(path.stat().st_mode & stat.S_IROTH for path in FILES)


@pytest.mark.parametrize("card", NANO, ids=lambda card: card.name)
def test_each_part_is_found_without_a_flag_and_without_a_network(card: ModelCard, tmp_path: Path) -> None:
    parts = (discrete_tokenizer_of,) if card.tokens else (tokenizer_of, text_encoder_of)
    for part in (weights_of, *parts):
        found = locate(part(card), cache_dir=tmp_path, download=False)
        assert found is not None and found.is_relative_to(EMBEDDED)
    checkpoint = open_checkpoint(locate(weights_of(card)))
    if card.tokens:
        token_rules(card.tokens.network, checkpoint)
    else:
        network_rules(card.network, checkpoint)
    assert standin_card(card) == card


def test_an_installed_package_holds_every_file(tmp_path: Path) -> None:
    """Hidden files too, such as the checkpoint's .metadata."""
    source = tmp_path / "source"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    for name in ("cosmos_nemo", "recipes"):
        shutil.copytree(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    packaged = set(zipfile.ZipFile(wheel).namelist())
    assert {path.relative_to(ROOT).as_posix() for path in FILES} <= packaged


@pytest.mark.slow
def test_sixteen_prompts_become_what_they_say(tmp_path: Path) -> None:
    """The full table is in docs/nano.md; a network or sampler that is broken falls far below this.

    With half of its steps; held-out combinations begin to suffer below that.
    """
    shown = quality_of_a_person(tmp_path, "--num_seen", "12", "--num_unseen", "4", "--num_steps", "18")
    for combination in ("trained", "held out"):
        row = shown["rows"][combination]
        assert row["ground"] == 100
        assert min(row["colour"], row["motion"], row["shape"]) >= 75
    assert shown["rows"]["trained, shuffled"]["all"] <= 34


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Percent of eight videos that are right in everything when no mistake is made."""
    shown = quality(tmp_path_factory.mktemp("right"), *_EIGHT)
    return shown["rows"]["trained"]["all"]


@pytest.mark.slow
def test_no_robot_is_seen_before_one_was_learnt(tmp_path: Path) -> None:
    shown = quality(tmp_path, "--subject", "--num_subject", "6", "--num_steps", "12")
    assert shown["rows"]["subject"]["figure"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["guidance_sign", "rope_axes", "text_shift", "sigmas_reversed"])
def test_a_deliberate_mistake_shows_in_the_table(tmp_path: Path, right: float, mistake: str) -> None:
    shown = quality(tmp_path, *_EIGHT, "--mistake", mistake)
    assert shown["rows"]["trained"]["all"] <= right - 40
