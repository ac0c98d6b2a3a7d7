import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.checkpoint.locate import text_encoder_of, tokenizer_of, weights_of
from tests.doors.fake_hub import SHA, fake_hub

ROOT = Path(__file__).parents[2]
SMALL, LARGE = "Cosmos-1.0-Diffusion-7B-Text2World", "Cosmos-1.0-Diffusion-14B-Text2World"
REPOSITORIES = {
    "nvidia/Cosmos-1.0-Tokenizer-CV8x8x8": {
        "encoder.jit": b"e",
        "decoder.jit": b"d",
        "mean_std.pt": b"m",
        "image_mean_std.pt": b"i",
    },
    "google-t5/t5-11b": {
        "config.json": b"{}",
        "tokenizer.json": b"{ }",
        "pytorch_model.bin": b"weights",
        "tf_model.h5": b"tensorflow",
    },
    f"nvidia/{SMALL}": {
        "nemo/metadata.json": b"7",
        "nemo/module.a/0.0": b"77",
        "model.pt": b"another format",
    },
    f"nvidia/{LARGE}": {"nemo/metadata.json": b"14"},
}
NEEDED = {
    f"{repository}/{name}"
    for repository, files in REPOSITORIES.items()
    for name in files
    if name not in ("tf_model.h5", "model.pt")
}


def download(
    *arguments: str, home: Path | None, endpoint: str = "http://127.0.0.1:9", **more: str
) -> tuple[int, str]:
    """Exit status and all that was printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **more}
    environment["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])
    if home is not None:
        environment["HF_HOME"] = str(home)
    done = subprocess.run(
        [sys.executable, str(ROOT / "download" / "diffusion_nemo.py"), *arguments],
        env=environment,
        cwd=ROOT / "tests",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    return done.returncode, done.stdout


def test_the_documented_command_fetches_what_the_models_need_and_nothing_else(tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES) as (endpoint, fetched):
        status, printed = download(home=tmp_path, endpoint=endpoint)
        assert status == 0, printed
        assert sorted(fetched) == sorted(NEEDED)
        assert (
            tmp_path / "hub" / f"models--nvidia--{SMALL}" / "snapshots" / SHA / "nemo/module.a/0.0"
        ).is_file()
        assert download(home=tmp_path, endpoint=endpoint)[0] == 0
        assert len(fetched) == len(NEEDED)


def test_one_model_can_be_chosen(tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES) as (endpoint, fetched):
        status, printed = download("--models", LARGE, home=tmp_path, endpoint=endpoint)
    assert status == 0, printed
    assert {name for name in NEEDED if SMALL not in name} == set(fetched)


def test_without_hf_home_it_says_so_and_exits_2() -> None:
    status, printed = download(home=None)
    assert status == 2 and "HF_HOME is not set" in printed and "Traceback" not in printed


@pytest.mark.parametrize("model", ["Cosmos-Nano-Text2World", "nonsense"])
def test_a_model_that_is_not_on_the_hub_exits_2(model: str, tmp_path: Path) -> None:
    status, printed = download("--models", model, home=tmp_path)
    assert status == 2 and f"invalid choice: '{model}'" in printed


def test_a_gated_model_names_licence_and_token_and_exits_1(tmp_path: Path) -> None:
    gated = frozenset({f"nvidia/{SMALL}"})
    with fake_hub(REPOSITORIES, gated=gated) as (endpoint, fetched):
        status, printed = download("--models", SMALL, home=tmp_path, endpoint=endpoint)
        assert status == 1 and "Traceback" not in printed
        assert (
            f"accept its licence at https://huggingface.co/nvidia/{SMALL}" in printed
            and "HF_TOKEN" in printed
        )
        assert not any(SMALL in name for name in fetched)
        assert (
            download("--models", SMALL, home=tmp_path, endpoint=endpoint, HF_TOKEN="hf_of_a_friend")[0] == 0
        )


def test_a_hub_that_cannot_be_reached_exits_1_with_a_sentence(tmp_path: Path) -> None:
    status, printed = download("--models", SMALL, home=tmp_path)
    assert status == 1 and "Traceback" not in printed
    assert "cannot be downloaded" in printed and "--tokenizer_dir" in printed


def test_a_dry_run_prints_everything_and_fetches_nothing(tmp_path: Path) -> None:
    status, printed = download("--dry_run", home=tmp_path)
    assert status == 0
    for card in (CARDS[SMALL], CARDS[LARGE]):
        for part in (weights_of, tokenizer_of, text_encoder_of):
            assert part(card).repository in printed
    assert printed.count("google-t5/t5-11b") == 1 and "*.h5" in printed and "nemo/*" in printed
    assert list(tmp_path.iterdir()) == []


def test_help_is_instant() -> None:
    started = time.perf_counter()
    status, printed = download("--help", home=None)
    assert status == 0 and "HF_TOKEN" in printed
    assert time.perf_counter() - started < 2
