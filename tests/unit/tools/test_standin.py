import argparse
from pathlib import Path

import pytest
import torch

from cosmos_nemo.catalog import CARDS, ModelCard, WanTokenizerShape, find_card, with_overrides
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.locate import (
    downloads_of,
    locate,
    network_in,
    text_encoder_of,
    tokenizer_of,
    upsampler_of,
    weights_of,
)
from cosmos_nemo.checkpoint.names import network_rules, parameter_shapes
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.stages.image_upsampler import ImageUpsampler
from cosmos_nemo.stages.prompt_refiner import check_refiner
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.text_folder import check_text_folder
from cosmos_nemo.stages.wan_tokenizer import WanTokenizerStage
from cosmos_nemo.tools import standin
from cosmos_nemo.tools.standin import standin_card
from cosmos_nemo.tools.standin_network import random_network
from cosmos_nemo.tools.standin_pixtral import DESCRIPTION, NANO_PIXTRAL, NANO_VISION
from cosmos_nemo.tools.standin_text import write_text_encoder
from tests.parallel import launcher

SMALL, LARGE = (f"Cosmos-1.0-Diffusion-{size}-Text2World" for size in ("7B", "14B"))
PREDICT1, NANO = "Cosmos-Predict1-7B-Text2World", "Cosmos-Nano-Text2World"
VIDEO, BETWEEN = "Cosmos-Predict1-7B-Video2World", "Cosmos-Predict1-7B-WorldInterpolator"
PREDICT2, LARGE2 = (f"Cosmos-Predict2-{size}-Video2World" for size in ("2B", "14B"))
NAMES = (SMALL, LARGE, PREDICT1, NANO)
PARTS = (weights_of, tokenizer_of, text_encoder_of)


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    standin.add_arguments(parser)
    return standin.run(parser.parse_args([str(argument) for argument in arguments]))


def content(folder: Path) -> dict[str, bytes]:
    """What every file holds; of a TorchScript archive its tensors: torch numbers the classes it meets."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _content_of(path) for path in files}


def _content_of(path: Path) -> bytes:
    if path.suffix != ".jit":
        return path.read_bytes()
    checkpoint = open_checkpoint(path)
    return b"".join(name.encode() + checkpoint.read(name).numpy().tobytes() for name in checkpoint.names())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Card name -> an assets folder with its stand-in."""
    folders = {name: tmp_path_factory.mktemp("standin") / name for name in NAMES}
    for name, folder in folders.items():
        assert run(name, folder) == 0
    return folders


def card_of(weights: Path, card: ModelCard) -> ModelCard:
    return with_overrides(card, read_card_file(weights))


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_lie_where_an_assets_folder_has_them_and_fit_each_other(
    name: str, written: dict[str, Path], tmp_path: Path
) -> None:
    card = find_card(name)
    weights, tokenizer, text = (
        locate(part(card), assets_dir=written[name], embedded=tmp_path, cache_dir=tmp_path) for part in PARTS
    )
    small = card_of(weights, card)
    assert small == standin_card(card)
    assert (
        network_rules(small.network, open_checkpoint(weights)).keys()
        == parameter_shapes(small.network).keys()
    )
    check_text_folder(text, text_dim=small.network.text_dim)
    assert (tokenizer / "mean_std.pt").is_file() and (tokenizer / "image_mean_std.pt").is_file()


def test_released_cards_come_in_the_released_layout_and_the_nano_in_its_own(written: dict[str, Path]) -> None:
    for name in (SMALL, LARGE):
        weights = written[name] / name / "nemo"
        assert (open_checkpoint(weights).layout, (weights / "metadata.json").is_file()) == ("zarr", True)
        tokenizer = written[name] / "Cosmos-1.0-Tokenizer-CV8x8x8"
        assert {path.name for path in tokenizer.glob("*.jit")} >= {"encoder.jit", "decoder.jit"}
        assert (written[name] / "google-t5" / "t5-11b" / "config.json").is_file()
    weights = written[NANO] / NANO / "nemo"
    assert open_checkpoint(weights).layout == open_checkpoint(weights / "weights").layout == "torch_dist"
    assert (written[NANO] / "Cosmos-Nano-Tokenizer-CV8x8x8" / "tokenizer.safetensors").is_file()
    assert read_card_file(weights) == {}


@pytest.mark.parametrize("name", [*NAMES, PREDICT2])
def test_another_process_writes_the_same_bytes(name: str, written: dict[str, Path], tmp_path: Path) -> None:
    script = tmp_path / "standin.py"
    script.write_text(
        "import argparse, sys\nfrom cosmos_nemo.tools import standin\nparser = argparse.ArgumentParser()\n"
        "standin.add_arguments(parser)\nsys.exit(standin.run(parser.parse_args(sys.argv[1:])))"
    )
    launcher.run_ranks(1, script, name, str(tmp_path / "again"))
    if name not in written:
        assert run(name, tmp_path / "here") == 0
    again, first = content(tmp_path / "again"), content(written.get(name, tmp_path / "here"))
    assert again.keys() == first.keys()
    assert [path for path in first if first[path] != again[path]] == []


def test_another_seed_makes_other_weights_of_every_part(written: dict[str, Path], tmp_path: Path) -> None:
    assert run(NANO, tmp_path / "other", "--seed", 1) == 0
    first, other = content(written[NANO]), content(tmp_path / "other")
    assert first.keys() == other.keys()
    differing = {path for path in first if first[path] != other[path]}
    for part in ("__0_0.distcp", "tokenizer.safetensors", "model.safetensors", "mean_std.pt"):
        assert any(path.endswith(part) for path in differing), part


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_layout_is_found_in_a_hugging_face_cache(name: str, tmp_path: Path) -> None:
    assert run(name, tmp_path / "home", "--layout", "hub") == 0
    card = find_card(name)
    found = [locate(part(card), embedded=tmp_path, cache_dir=tmp_path / "home" / "hub") for part in PARTS]
    assert card_of(found[0], card) == standin_card(card)
    assert all("/snapshots/" in folder.as_posix() for folder in found)
    check_text_folder(found[2], text_dim=standin_card(card).network.text_dim)


@pytest.mark.parametrize("name", [SMALL, LARGE])
def test_a_standin_keeps_what_its_card_can_make(name: str) -> None:
    card = find_card(name)
    small = standin_card(card)
    assert (small.name, small.video, small.sources) == (card.name, card.video, card.sources)
    kept = ("rope_ratios_THW", "takes_given_mask", "text_length", "latent_channels", "patch_size", "base_fps")
    limits = ("max_latent_frames", "max_latent_height", "max_latent_width")
    for field in (*kept, *limits):
        assert getattr(small.network, field) == getattr(card.network, field), field
    assert small.tokenizer.temporal_compression == card.tokenizer.temporal_compression == 8
    assert sum(torch.Size(size).numel() for size in parameter_shapes(small.network).values()) < 20e6


def test_standins_of_models_of_different_size_differ_and_the_nano_is_itself() -> None:
    assert standin_card(CARDS[SMALL]).network != standin_card(CARDS[LARGE]).network
    assert standin_card(CARDS[NANO]) == CARDS[NANO]


def test_the_networks_weights_neither_grow_nor_mix_the_branches_of_the_modulation() -> None:
    shape = CARDS[NANO].network
    tensors = random_network(shape, seed=0)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    width, rank = shape.hidden_size, shape.adaln_lora_dim
    for name, tensor in tensors.items():
        values = tensor.float()
        if values.dim() == 1:
            assert bool((values == 1).all()), name
        elif name.endswith("adaLN.adaLN_modulation.2.weight"):
            for row in range(3):
                for column in range(3):
                    block = values[row * 3 * width :, column * rank :][: 3 * width, :rank]
                    assert bool(block.any()) == (row == column), name
        else:
            gain = (values @ torch.randn(values.shape[1], 64)).std()
            assert 0.05 < gain < 1.3, name
    assert (
        tensors["final_layer.linear.weight"].float().std() < tensors["x_embedder.proj.1.weight"].float().std()
    )


def test_the_text_encoder_takes_any_text_and_makes_numbers_around_one(written: dict[str, Path]) -> None:
    folder = written[SMALL] / "google-t5" / "t5-11b"
    stage = TextEncoder(folder=folder, text_length=512, text_dim=64, device=torch.device("cpu"))
    prompts = [
        "A robot walks.",
        "Ein Roboter läuft.",
        "机器人在走路 🤖",
        "a\tb\nc  \x00",
        " ".join("xyz" for _ in range(99)),
    ]
    with stage:
        text_BLD = stage(prompts)
    assert bool(torch.isfinite(text_BLD).all())
    lengths = text_BLD.any(dim=2).sum(dim=1)
    assert bool((lengths > 1).all()) and int(lengths[0]) == 5
    assert 0.5 < text_BLD[4, : lengths[4]].float().std() < 2
    assert not torch.equal(text_BLD[0], text_BLD[1])


def test_known_words_are_one_token_each(tmp_path: Path) -> None:
    from transformers import T5TokenizerFast

    write_text_encoder(tmp_path, text_dim=16, seed=0)
    tokenizer = T5TokenizerFast.from_pretrained(tmp_path)
    assert tokenizer.tokenize("The robot walks, slowly") == ["▁The", "▁robot", "▁walks", ",", "▁slowly"]
    ids = tokenizer("The robot walks, slowly").input_ids
    assert ids[-1] == tokenizer.eos_token_id == 1 and tokenizer.unk_token_id not in ids


def test_the_same_standin_again_is_there_and_left_alone(
    written: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in written[NANO].rglob("*")}
    assert run(NANO, written[NANO]) == 0
    assert "is there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in written[NANO].rglob("*")} == before


@pytest.mark.parametrize("arguments", [(SMALL,), (NANO, "--seed", 1), (NANO, "--layout", "hub")])
def test_a_folder_with_another_standin_is_refused(
    arguments: tuple[object, ...], written: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = arguments
    assert run(name, written[NANO], *options) == 2
    error = capsys.readouterr().err
    assert f"holds another stand-in, {NANO} (seed 0, layout folder)" in error


def test_a_folder_with_other_things_is_refused_and_an_empty_one_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    assert run(NANO, tmp_path / "used") == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert run(NANO, tmp_path / "empty") == 0
    assert (tmp_path / "empty" / NANO).is_dir()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_refused(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run(NANO, tmp_path / place) == 2
    assert str(tmp_path / place) in capsys.readouterr().err


def test_an_unknown_card_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("Cosmos-Nano", tmp_path / "new") == 2
    assert NANO in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cosmos_nemo.tools.standin_text.write_text_encoder", stops)
    with pytest.raises(KeyboardInterrupt):
        run(NANO, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Video2World and the interpolator, which share all but their networks."""
    folder = tmp_path_factory.mktemp("standin") / "seeing"
    assert run(VIDEO, BETWEEN, folder) == 0
    return folder


def test_models_that_start_from_images_come_with_all_that_their_doors_need(
    seeing: Path, tmp_path: Path
) -> None:
    assert {path.name for path in seeing.iterdir()} == {
        *(VIDEO, BETWEEN, "Cosmos-Tokenize1-CV8x8x8-720p", "Pixtral-12B"),
        *("google-t5", "nvidia", "meta-llama", "standin.json"),
    }
    for card in (find_card(VIDEO), find_card(BETWEEN)):
        for files in downloads_of(card):
            found = locate(files, assets_dir=seeing, embedded=tmp_path, cache_dir=tmp_path)
            assert found == seeing / files.assets_name
        weights = seeing / card.name
        assert card_of(weights, card) == standin_card(card)
        checkpoint = open_checkpoint(weights)
        assert checkpoint.shape("net.x_embedder.proj.1.weight")[1] == 72
        network_rules(standin_card(card).network, checkpoint)
    assert (seeing / "Cosmos-Tokenize1-CV8x8x8-720p" / "image_mean_std.pt").is_file()


def test_their_upsampler_lies_as_the_download_leaves_it_and_says_its_sizes(seeing: Path) -> None:
    folder = seeing / "Pixtral-12B"
    assert {path.name for path in folder.iterdir()} == {
        *("consolidated.safetensors", "params.json", "tokenizer.json", "card.json"),
    }
    card = with_overrides(find_card(VIDEO), read_card_file(folder))
    assert (card.upsampler, card.vision) == (NANO_PIXTRAL, NANO_VISION)
    assert card_of(folder, find_card("Cosmos-Nano-Video2World")).upsampler == NANO_PIXTRAL
    stage = ImageUpsampler(
        shape=card.upsampler, vision=card.vision, folder=folder, device=torch.device("cpu")
    )
    with stage as describe:
        said = describe(torch.zeros(90, 160, 3, dtype=torch.uint8))
    assert said == "".join(DESCRIPTION).replace("▁", " ").strip()


def test_the_message_names_the_scripts_that_take_the_folder(
    seeing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(VIDEO, BETWEEN, seeing) == 0
    shown = capsys.readouterr().out
    use = [f"general.py --cosmos_assets_dir {seeing}"]
    use += [f"{door}.py --checkpoint_dir {seeing}" for door in ("video2world", "world_interpolator")]
    assert shown.endswith(f"Use it with {' or '.join(use)}\n")


def test_the_upsampler_is_found_in_a_hugging_face_cache_with_its_tokenizer_beside(tmp_path: Path) -> None:
    name = "Cosmos-1.0-Diffusion-7B-Video2World"
    assert run(name, tmp_path / "home", "--layout", "hub") == 0
    card = find_card(name)
    for part in (*PARTS, upsampler_of):
        found = locate(part(card), embedded=tmp_path, cache_dir=tmp_path / "home" / "hub", download=False)
        assert found is not None and "/snapshots/" in found.as_posix()
    assert (found / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["Cosmos-Nano-Video2World", "Cosmos-Nano-WorldInterpolator"])
def test_a_nano_model_that_is_not_shipped_has_a_stand_in(name: str, tmp_path: Path) -> None:
    assert run(name, tmp_path / "new") == 0
    weights = locate(weights_of(find_card(name)), assets_dir=tmp_path / "new", embedded=tmp_path)
    network_rules(find_card(name).network, open_checkpoint(weights))
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        *(name, "Cosmos-Nano-Tokenizer-CV8x8x8", "Cosmos-Nano-T5", "standin.json"),
    }


@pytest.fixture(scope="module")
def predict2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sizes, which share all but their networks."""
    folder = tmp_path_factory.mktemp("standin") / "predict2"
    assert run(PREDICT2, LARGE2, folder) == 0
    return folder


def test_predict2_comes_with_all_that_its_commands_need(predict2: Path, tmp_path: Path) -> None:
    assert {path.name for path in predict2.iterdir()} == {
        *(PREDICT2, LARGE2, "Wan-AI", "google-t5", "nvidia", "meta-llama", "standin.json"),
    }
    for card in (find_card(PREDICT2), find_card(LARGE2)):
        for files in downloads_of(card):
            found = locate(files, assets_dir=predict2, embedded=tmp_path, cache_dir=tmp_path)
            assert found == predict2 / files.assets_name
        assert {path.name for path in (predict2 / card.name).iterdir()} == {"model.pt", "card.json"}
        small = card_of(predict2 / card.name, card)
        assert small == standin_card(card)
        stored = open_checkpoint(predict2 / card.name / "model.pt")
        assert stored.shape("net.x_embedder.proj.1.weight") == (small.network.hidden_size, 72)
        assert network_rules(small.network, stored).keys() == parameter_shapes(small.network).keys()
        check_text_folder(predict2 / "google-t5/t5-11b", text_dim=small.network.text_dim)
        assert isinstance(small.tokenizer, WanTokenizerShape)
        WanTokenizerStage(
            shape=small.tokenizer, folder=predict2 / "Wan-AI/Wan2.1-T2V-1.3B", device=torch.device("cpu")
        ).check()
    check_refiner(predict2 / "nvidia/Cosmos-Reason1-7B")


@pytest.mark.parametrize("name", [PREDICT2, LARGE2])
def test_a_standin_of_predict2_keeps_what_its_card_can_make(name: str) -> None:
    card = find_card(name)
    small = standin_card(card)
    assert (small.name, small.video, small.sources) == (card.name, card.video, card.sources)
    kept = ("family", "rope_ratios_THW", "takes_given_mask", "text_length", "latent_channels")
    for field in (*kept, "patch_size", "max_latent_frames", "max_latent_height", "max_latent_width"):
        assert getattr(small.network, field) == getattr(card.network, field), field
    assert small.tokenizer.temporal_compression == card.tokenizer.temporal_compression == 4
    assert sum(torch.Size(size).numel() for size in parameter_shapes(small.network).values()) < 20e6
    assert standin_card(CARDS[PREDICT2]).network != standin_card(CARDS[LARGE2]).network


def test_a_network_for_one_size_comes_in_a_file_of_its_name(tmp_path: Path) -> None:
    variants = [f"{PREDICT2}-480p-16fps", f"{PREDICT2}-720p-10fps"]
    assert run(*variants, tmp_path / "new") == 0
    folder = tmp_path / "new" / PREDICT2
    own = {f"model{name.removeprefix(PREDICT2)}.pt" for name in variants}
    assert {path.name for path in folder.iterdir()} == {"card.json", *own}
    for name in variants:
        card = find_card(name)
        found = network_in(folder, card)
        assert found.name == f"model{name.removeprefix(PREDICT2)}.pt"
        assert card_of(found, card) == standin_card(card)
        network_rules(standin_card(card).network, open_checkpoint(found))


@pytest.mark.parametrize(
    "names", [(PREDICT2, f"{PREDICT2}-480p-10fps"), (f"{PREDICT2}-480p-10fps", PREDICT2)]
)
def test_whichever_is_written_first_every_network_of_a_repository_is_there(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    assert run(*names, tmp_path / "new") == 0
    folder = tmp_path / "new" / PREDICT2
    assert {path.name for path in folder.glob("*.pt")} == {"model.pt", "model-480p-10fps.pt"}


@pytest.mark.parametrize("name", [PREDICT2, f"{LARGE2}-480p-10fps"])
def test_predict2_is_found_in_a_hugging_face_cache(name: str, tmp_path: Path) -> None:
    assert run(name, tmp_path / "home", "--layout", "hub") == 0
    card = find_card(name)
    for files in downloads_of(card):
        found = locate(files, embedded=tmp_path, cache_dir=tmp_path / "home" / "hub", download=False)
        assert found is not None and "/snapshots/" in found.as_posix()
    weights = locate(weights_of(card), embedded=tmp_path, cache_dir=tmp_path / "home" / "hub", download=False)
    assert weights is not None
    assert card_of(network_in(weights, card), card) == standin_card(card)


def test_a_nano_model_without_a_diffusion_decoder_keeps_its_sizes_and_has_two_folders(tmp_path: Path) -> None:
    card = CARDS["Cosmos-Nano-Autoregressive"]
    assert standin_card(card) == card
    assert run(card.name, tmp_path / "nano") == 0
    assert {path.name for path in (tmp_path / "nano").iterdir() if path.is_dir()} == {
        "Cosmos-Nano-Autoregressive",
        "Cosmos-Nano-Tokenizer-DV8x16x16",
    }
