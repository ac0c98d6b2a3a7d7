"""Which files a run needs and whether they fit; where they lie is tested with locate."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cosmos_nemo.catalog import CARDS, ModelCard
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.job.files import Files, card_with_files, check_files, find_files, needs_of
from cosmos_nemo.request import RequestError, Setup
from cosmos_nemo.stages.tokenizer_folder import read_statistics
from cosmos_nemo.tools.standin import standin_card, write_standin
from cosmos_nemo.tools.standin_pixtral import NANO_PIXTRAL, NANO_VISION
from cosmos_nemo.tools.standin_upsampler import write_upsampler

VIDEO, BETWEEN = (CARDS[f"Cosmos-Predict1-7B-{kind}"] for kind in ("Video2World", "WorldInterpolator"))
TEXT = CARDS["Cosmos-Predict1-7B-Text2World"]
SEEN = (VIDEO, BETWEEN)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "checkpoints"
    write_standin(SEEN, folder, seed=0, layout="folder")
    return folder


@pytest.fixture
def copy(stand_ins: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A part's folder, to be damaged."""
    return lambda name: Path(shutil.copytree(stand_ins / name, tmp_path / name))


def setup_of(card: ModelCard, folder: Path) -> Setup:
    return Setup(model=card.name, assets_dir=folder, upsamples=True)


def files_of(card: ModelCard, folder: Path, **instead: Path) -> tuple[ModelCard, Files]:
    """The card as its stand-in says it is, and the files."""
    setup = setup_of(card, folder)
    files = find_files(card, setup, needs_of(card, setup), download=False)
    return card_with_files(card, files), replace(files, **instead)


@pytest.mark.parametrize("card", SEEN, ids=lambda card: card.name)
def test_every_part_of_a_stand_in_is_found_and_fits(card: ModelCard, stand_ins: Path) -> None:
    small, files = files_of(card, stand_ins)
    names = ("weights", "tokenizer", "text_encoder", "upsampler", "guardrail", "text_guard")
    assert tuple(files.found()) == names
    assert files.upsampler == stand_ins / "Pixtral-12B"
    assert small == replace(standin_card(card), upsampler=NANO_PIXTRAL, vision=NANO_VISION)
    check_files(small, files)


@pytest.mark.parametrize("card", SEEN, ids=lambda card: card.name)
def test_what_looks_at_images_needs_the_tokenizers_encoder(
    card: ModelCard, stand_ins: Path, copy: Callable[[str], Path]
) -> None:
    folder = copy("Cosmos-Tokenize1-CV8x8x8-720p")
    (folder / "encoder.jit").unlink()
    small, files = files_of(card, stand_ins, tokenizer=folder)
    with pytest.raises(CheckpointError, match="holds no video encoder"):
        check_files(small, files)
    check_files(replace(small, task=TEXT.task), replace(files, upsampler=None))


def test_an_interpolator_needs_the_statistics_of_single_images(
    stand_ins: Path, copy: Callable[[str], Path]
) -> None:
    folder = copy("Cosmos-Tokenize1-CV8x8x8-720p")
    (folder / "image_mean_std.pt").unlink()
    assert "mean_CT" in read_statistics(folder, VIDEO.tokenizer)
    small, files = files_of(BETWEEN, stand_ins, tokenizer=folder)
    with pytest.raises(CheckpointError, match=r"has no image_mean_std\.pt.*nvidia/Cosmos-Tokenize1"):
        check_files(small, files)
    check_files(*files_of(VIDEO, stand_ins, tokenizer=folder))


def test_an_upsampler_without_its_tokenizer_names_the_repository_that_has_it(
    stand_ins: Path, copy: Callable[[str], Path]
) -> None:
    folder = copy("Pixtral-12B")
    (folder / "tokenizer.json").unlink()
    small, files = files_of(VIDEO, stand_ins, upsampler=folder)
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json.*mistral-community/pixtral-12b"):
        check_files(small, files)


def test_an_upsampler_of_the_other_kind_is_refused_whichever_it_is(stand_ins: Path, tmp_path: Path) -> None:
    write_upsampler(tmp_path, seed=0)
    small, files = files_of(VIDEO, stand_ins)
    with pytest.raises(CheckpointError, match="holds no Pixtral"):
        check_files(small, replace(files, upsampler=tmp_path))
    with pytest.raises(CheckpointError):
        check_files(replace(small, task=TEXT.task), files)


def test_a_network_without_the_channel_of_given_frames_is_refused(stand_ins: Path) -> None:
    small, files = files_of(VIDEO, stand_ins)
    text = replace(small, network=replace(small.network, takes_given_mask=False))
    with pytest.raises(CheckpointError, match=r"of another shape, first: net\.x_embedder"):
        check_files(text, files)


@pytest.mark.parametrize("name", ["Cosmos-Nano-Video2World", "Cosmos-Nano-WorldInterpolator"])
def test_a_model_without_an_upsampler_says_how_to_do_without_or_where_to_name_one(
    name: str, stand_ins: Path
) -> None:
    card = CARDS[name]
    with pytest.raises(RequestError, match=r"--prompt_upsampler_dir.*--disable_prompt_upsampler in"):
        needs_of(card, Setup(model=name, upsamples=True))
    setup = Setup(model=name, upsamples=True, upsampler_dir=stand_ins / "Pixtral-12B")
    files = Files(upsampler=setup.upsampler_dir)
    assert needs_of(card, setup).names[-1] == "upsampler"
    small = card_with_files(card, files)
    assert (small.upsampler, small.vision) == (NANO_PIXTRAL, NANO_VISION)
    check_files(small, files)
