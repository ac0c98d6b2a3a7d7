import hashlib
import os
from pathlib import Path

import pytest

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.checkpoint.hub import unfinished_blobs
from cosmos_nemo.checkpoint.locate import (
    LocateError,
    downloads_of,
    guardrail_of,
    locate,
    text_encoder_of,
    text_guard_of,
    tokenizer_of,
    upsampler_of,
    weights_of,
)
from tests.doors.downloading import NO_HUB, ROOT, run_door
from tests.doors.fake_hub import KEPT, SHA, fake_hub
from tests.doors.instant import help_of

SMALL, LARGE = "Cosmos-1.0-Diffusion-7B-Text2World", "Cosmos-1.0-Diffusion-14B-Text2World"
PARTS = (weights_of, tokenizer_of, text_encoder_of, upsampler_of, guardrail_of, text_guard_of)
REPOSITORIES = {
    "nvidia/Cosmos-1.0-Tokenizer-CV8x8x8": {
        "encoder.jit": b"e",
        "decoder.jit": b"d",
        "mean_std.pt": b"m",
        "image_mean_std.pt": b"i",
        "autoencoder.jit": b"both halves again",
    },
    "google-t5/t5-11b": {
        "config.json": b"{}",
        "tokenizer.json": b"{ }",
        "pytorch_model.bin": b"weights",
        "tf_model.h5": b"tensorflow",
        "README.md": b"# T5",
    },
    "nvidia/Cosmos-1.0-Prompt-Upsampler-12B-Text2World": {
        "model.pt": b"u",
        "tokenizer.json": b"{  }",
        "tokenizer_config.json": b"{   }",
        "guardrail/blocklist/custom/words": b"old",
    },
    "nvidia/Cosmos-Guardrail1": {
        "blocklist/custom/words": b"w",
        "video_content_safety_filter/safety_filter.pt": b"s",
        "face_blur_filter/Resnet50_Final.pth": b"r",
        "aegis/adapter.bin": b"not used",
    },
    "meta-llama/Llama-Guard-3-8B": {
        "config.json": b"{}",
        "tokenizer.json": b"{ }",
        "model-00001-of-00001.safetensors": b"l",
        "pytorch_model.bin": b"the same again",
        "original/consolidated.00.pth": b"and again",
    },
    f"nvidia/{SMALL}": {
        "nemo/metadata.json": b"7",
        "nemo/module.a/0.0": b"77",
        "model.pt": b"another format",
    },
    f"nvidia/{LARGE}": {"nemo/metadata.json": b"14"},
}
UNUSED = {
    "google-t5/t5-11b/tf_model.h5",
    "google-t5/t5-11b/README.md",
    "nvidia/Cosmos-1.0-Tokenizer-CV8x8x8/autoencoder.jit",
    "nvidia/Cosmos-1.0-Prompt-Upsampler-12B-Text2World/guardrail/blocklist/custom/words",
    "nvidia/Cosmos-Guardrail1/aegis/adapter.bin",
    "meta-llama/Llama-Guard-3-8B/pytorch_model.bin",
    "meta-llama/Llama-Guard-3-8B/original/consolidated.00.pth",
    f"nvidia/{SMALL}/model.pt",
}
SUMS = {"google-t5/t5-11b": {"pytorch_model.bin": hashlib.md5(b"weights").hexdigest()}}
"""In place of the published ones."""
NEEDED = {f"{id}/{name}" for id, files in REPOSITORIES.items() for name in files} - UNUSED


def download(
    *arguments: str, home: Path | None, sums: dict[str, dict[str, str]] | None = SUMS, **more: str
) -> tuple[int, str]:
    where = {} if home is None else {"HF_HOME": str(home)}
    return run_door("nemo.py", *arguments, sums=sums, **where, **more)


def snapshot(home: Path, repository: str) -> Path:
    return home / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / SHA


def test_the_documented_command_fetches_what_the_models_need_and_nothing_else(tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        status, printed = download(home=tmp_path, endpoint=endpoint)
        assert status == 0, printed
        assert sorted(moods.fetched) == sorted(NEEDED)
        shard = tmp_path / "hub" / f"models--nvidia--{SMALL}" / "snapshots" / SHA / "nemo/module.a/0.0"
        assert shard.read_bytes() == b"77"
        for model in (SMALL, LARGE):
            for part in PARTS:
                found = locate(part(CARDS[model]), cache_dir=tmp_path / "hub", embedded=tmp_path)
                assert found is not None and found.is_dir()
        status, printed = download(home=tmp_path, endpoint=endpoint)
        assert status == 0 and "0 bytes to fetch" in printed
        assert len(moods.fetched) == len(NEEDED)


def test_one_model_can_be_chosen(tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        status, printed = download("--models", LARGE, home=tmp_path, endpoint=endpoint)
    assert status == 0, printed
    assert {name for name in NEEDED if SMALL not in name} == set(moods.fetched)


def test_without_hf_home_it_says_so_and_exits_2() -> None:
    status, printed = download(home=None)
    assert status == 2 and "HF_HOME is not set" in printed


@pytest.mark.parametrize(
    "model", ["Cosmos-Nano-Text2World", "Cosmos-Predict1-7B-Text2World_post-trained", "nonsense"]
)
def test_a_model_without_a_nemo_folder_on_the_hub_exits_2(model: str, tmp_path: Path) -> None:
    status, printed = download("--models", model, home=tmp_path)
    assert status == 2 and f"invalid choice: '{model}'" in printed


@pytest.mark.parametrize("mood", ["gated", "refused"])
def test_a_gated_model_names_licence_and_token_and_the_others_are_fetched(mood: str, tmp_path: Path) -> None:
    repository = f"nvidia/{SMALL}"
    with fake_hub(REPOSITORIES, **{mood: frozenset({repository})}) as (endpoint, moods):
        status, printed = download("--models", SMALL, home=tmp_path, endpoint=endpoint)
        assert status == 1
        assert f"accept its licence at https://huggingface.co/{repository}" in printed
        assert "HF_TOKEN" in printed and f"HTTP {401 if mood == 'gated' else 403}" in printed
        assert printed.index("HTTP 40") < printed.index("-> "), "said before anything is fetched"
        assert "Missing, of 6 repositories" in printed
        assert set(moods.fetched) == {n for n in NEEDED if SMALL not in n and LARGE not in n}
        status, _ = download("--models", SMALL, home=tmp_path, endpoint=endpoint, HF_TOKEN="hf_of_a_friend")
        assert status == (0 if mood == "gated" else 1)


def test_a_hub_that_cannot_be_reached_exits_1_with_a_sentence_for_each_repository(tmp_path: Path) -> None:
    status, printed = download("--models", SMALL, home=tmp_path)
    reason = f"cannot be downloaded ({NO_HUB} cannot be reached: Connection refused)"
    assert status == 1 and printed.count(reason) == printed.count("cannot be downloaded (") == 2 * 6
    assert printed.count("HF_ENDPOINT") == printed.count("HF_HUB_OFFLINE") == 1
    assert printed.rstrip().splitlines()[-1].startswith(f"No answer from {NO_HUB}: ")
    assert list(tmp_path.iterdir()) == []


def test_offline_a_full_cache_is_complete_and_an_empty_one_is_not(tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES) as (endpoint, _):
        assert download("--models", SMALL, home=tmp_path, endpoint=endpoint)[0] == 0
    status, printed = download("--models", SMALL, home=tmp_path, HF_HUB_OFFLINE="1")
    assert status == 0 and printed.count(": complete in ") == 6, printed
    assert download("--models", SMALL, home=tmp_path)[0] == 0, "an unreachable hub is no reason to fail"
    status, printed = download("--models", LARGE, home=tmp_path, HF_HUB_OFFLINE="1")
    assert status == 1 and f"nvidia/{LARGE}: it is not in " in printed and "HF_HUB_OFFLINE" in printed


def test_a_transfer_that_breaks_off_is_taken_up_by_the_next_call(tmp_path: Path) -> None:
    name = "meta-llama/Llama-Guard-3-8B/model-00001-of-00001.safetensors"
    content = bytes(range(256)) * 44_000
    repositories = REPOSITORIES | {
        "meta-llama/Llama-Guard-3-8B": {
            **REPOSITORIES["meta-llama/Llama-Guard-3-8B"],
            "model-00001-of-00001.safetensors": content,
        }
    }
    with fake_hub(repositories, cut={name: max(KEPT)}) as (endpoint, moods):
        status, printed = download("--models", LARGE, home=tmp_path, endpoint=endpoint)
        if status:  # newer clients take it up themselves
            assert "meta-llama/Llama-Guard-3-8B cannot be downloaded" in printed
            (begun,) = unfinished_blobs(text_guard_of(CARDS[LARGE]), cache_dir=tmp_path / "hub")
            assert begun.stat().st_size in KEPT
            offline, printed = download("--models", LARGE, home=tmp_path, HF_HUB_OFFLINE="1")
            assert offline == 1 and printed.count(": complete in ") == 5
            status, printed = download("--models", LARGE, home=tmp_path, endpoint=endpoint)
    assert status == 0, printed
    assert moods.ranges in [{name: f"bytes={kept}-"} for kept in KEPT]
    guard = locate(text_guard_of(CARDS[LARGE]), cache_dir=tmp_path / "hub", embedded=tmp_path)
    assert (guard / "model-00001-of-00001.safetensors").read_bytes() == content


def test_the_published_sums_are_those_that_count(tmp_path: Path) -> None:
    name = "google-t5/t5-11b/pytorch_model.bin"
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        status, printed = download("--models", SMALL, home=tmp_path, endpoint=endpoint, sums=None)
    assert status == 1 and moods.fetched.count(name) == 2
    both = ("f890878d8a162e0045a25196e27089a3", SUMS["google-t5/t5-11b"]["pytorch_model.bin"])
    assert all(sum_ in printed.rstrip().splitlines()[-1] for sum_ in both)
    assert (snapshot(tmp_path, "google-t5/t5-11b") / "pytorch_model.bin.wrong-md5").exists()
    with pytest.raises(LocateError):
        locate(text_encoder_of(CARDS[SMALL]), cache_dir=tmp_path / "hub", embedded=tmp_path)


def test_a_file_with_a_wrong_sum_is_fetched_once_more(tmp_path: Path) -> None:
    wrong = {
        "google-t5/t5-11b/pytorch_model.bin": (b"Weights", 1),
        "meta-llama/Llama-Guard-3-8B/model-00001-of-00001.safetensors": (b"L", 1),
    }
    with fake_hub(REPOSITORIES, garbled=dict(wrong)) as (endpoint, moods):
        status, printed = download("--models", SMALL, home=tmp_path, endpoint=endpoint)
        assert status == 0, printed
        assert all(moods.fetched.count(name) == 2 for name in wrong)
        assert "has the MD5 sum" in printed and "has the SHA-256 sum" in printed
        fetched = len(moods.fetched)
        assert download("--models", SMALL, home=tmp_path, endpoint=endpoint)[0] == 0
        assert len(moods.fetched) == fetched
    assert (snapshot(tmp_path, "google-t5/t5-11b") / "pytorch_model.bin").read_bytes() == b"weights"


@pytest.mark.parametrize("damage", [b"weightS", b"wei"])
def test_a_cached_file_that_is_damaged_or_cut_short_is_fetched_again(tmp_path: Path, damage: bytes) -> None:
    name, repository = "pytorch_model.bin", "google-t5/t5-11b"
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        assert download("--models", SMALL, home=tmp_path, endpoint=endpoint)[0] == 0
        file = snapshot(tmp_path, repository) / name
        file.resolve().write_bytes(damage)
        os.utime(file, ns=(1, 1))
        status, printed = download("--models", SMALL, home=tmp_path, HF_HUB_OFFLINE="1")
        assert status == 1 and "pytorch_model.bin has the MD5 sum" in printed
        status, printed = download("--models", SMALL, home=tmp_path, endpoint=endpoint)
    assert status == 0, printed
    assert moods.fetched.count(f"{repository}/{name}") == 2 and file.read_bytes() == b"weights"


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_a_dry_run_lists_files_sizes_terms_and_space_and_fetches_nothing(flag: str, tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES, announced={f"nvidia/{SMALL}/nemo/module.a/0.0": 14_400_000_000}) as (
        endpoint,
        moods,
    ):
        status, printed = download(flag, home=tmp_path, endpoint=endpoint)
    assert status == 0, printed
    assert moods.fetched == [] and list(tmp_path.iterdir()) == []
    for card in (CARDS[SMALL], CARDS[LARGE]):
        assert all(part(card).repository in printed for part in PARTS)
    for name in NEEDED:
        assert name.split("/", 2)[2] in printed
    assert "tf_model.h5" not in printed
    assert "14.4 GB  nemo/module.a/0.0" in printed
    assert "Total: 14.4 GB, of which 14.4 GB to fetch" in printed and " free where " in printed


def test_a_dry_run_without_a_network_exits_1(tmp_path: Path) -> None:
    status, printed = download("--dry_run", home=tmp_path)
    assert status == 1 and "cannot be downloaded" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES, announced={f"nvidia/{SMALL}/nemo/module.a/0.0": 10**17}) as (endpoint, moods):
        status, printed = download("--models", SMALL, home=tmp_path, endpoint=endpoint)
    assert status == 1 and "The disk lacks" in printed and "HF_HOME" in printed
    assert moods.fetched == []


def test_help_waits_for_no_slow_library() -> None:
    assert "HF_TOKEN" in help_of(str(ROOT / "download/nemo.py"))


VIDEO = "Cosmos-1.0-Diffusion-7B-Video2World"
VIDEO_ONLY = {
    f"nvidia/{VIDEO}": {"nemo/metadata.json": b"72", "model.pt": b"another format"},
    "mistralai/Pixtral-12B-2409": {
        "params.json": b"{}",
        "consolidated.safetensors": b"p",
        "tekken.json": b"another tokenizer",
    },
    "mistral-community/pixtral-12b": {"tokenizer.json": b"words", "model-1.safetensors": b"again"},
}


def test_a_video2world_comes_with_an_upsampler_that_sees_and_is_found_in_the_cache(tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES | VIDEO_ONLY) as (endpoint, moods):
        status, printed = download("--models", VIDEO, home=tmp_path, endpoint=endpoint)
        assert status == 0, printed
        fetched = {name for name in NEEDED if "Text2World" not in name}
        assert set(moods.fetched) == fetched | {
            *(f"nvidia/{VIDEO}/nemo/metadata.json", "mistralai/Pixtral-12B-2409/params.json"),
            "mistralai/Pixtral-12B-2409/consolidated.safetensors",
            "mistral-community/pixtral-12b/tokenizer.json",
        }
        assert len(moods.fetched) == len(set(moods.fetched))
        for files in downloads_of(CARDS[VIDEO]):
            assert locate(files, cache_dir=tmp_path / "hub", embedded=tmp_path, download=False) is not None
        pixtral = snapshot(tmp_path, "mistralai/Pixtral-12B-2409")
        assert (pixtral / "tokenizer.json").read_bytes() == b"words"
        (pixtral / "tokenizer.json").unlink()
        status, printed = download("--models", VIDEO, home=tmp_path, endpoint=endpoint)
        assert status == 0 and "0 bytes to fetch" in printed and (pixtral / "tokenizer.json").is_file()
        status, printed = download("--models", VIDEO, home=tmp_path, HF_HUB_OFFLINE="1")
        assert status == 0 and printed.count(": complete in ") == 7, printed


def test_without_the_tokenizers_repository_pixtral_is_not_complete(tmp_path: Path) -> None:
    there = {name: files for name, files in (REPOSITORIES | VIDEO_ONLY).items() if "community" not in name}
    with fake_hub(there) as (endpoint, _):
        status, printed = download("--models", VIDEO, home=tmp_path, endpoint=endpoint)
    assert status == 1 and "mistral-community/pixtral-12b cannot be downloaded" in printed
    with pytest.raises(LocateError, match=r"mistral-community/pixtral-12b"):
        locate(upsampler_of(CARDS[VIDEO]), cache_dir=tmp_path / "hub", embedded=tmp_path)
