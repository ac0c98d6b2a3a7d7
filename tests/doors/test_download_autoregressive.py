import hashlib
from pathlib import Path

import pytest

from cosmos_nemo.checkpoint.autoregressive import MODELS, files_of
from tests.doors.commands import COMMANDS
from tests.doors.downloading import run_door
from tests.doors.fake_hub import fake_hub

[COMMAND] = [c for c in COMMANDS if c.script == "scripts/download_autoregressive_checkpoints.py"]
_GUARD = ("blocklist/custom/w", "video_content_safety_filter/safety_filter.pt", "face_blur_filter/R.pth")
_CONTENT = {
    **{
        f"nvidia/{model}": ("model.pt", "config.json", "guardrail/blocklist/w", "README.md")
        for model in MODELS.values()
    },
    "nvidia/Cosmos-Tokenize1-DV8x16x16-720p": ("encoder.jit", "decoder.jit", "autoencoder.jit", "model.pt"),
    "nvidia/Cosmos-Tokenize1-CV8x8x8-720p": (
        *("encoder.jit", "decoder.jit", "autoencoder.jit"),
        *("mean_std.pt", "image_mean_std.pt"),
    ),
    "nvidia/Cosmos-Predict1-7B-Decoder-DV8x16x16ToCV8x8x8-720p": (
        *("model.pt", "aux_vars.pt", "config.json"),
        "guardrail/blocklist/w",
    ),
    "nvidia/Cosmos-Guardrail1": (*_GUARD, "README.md"),
    "google-t5/t5-11b": ("config.json", "tokenizer.json", "pytorch_model.bin", "tf_model.h5"),
    "meta-llama/Llama-Guard-3-8B": ("config.json", "tokenizer.json", "model-1.safetensors"),
}
REPOSITORIES = {
    repository: {name: f"{repository}/{name}".encode() for name in names}
    for repository, names in _CONTENT.items()
}
SUMS = {
    repository: {
        name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in files.items()
    }
    for repository, files in REPOSITORIES.items()
}
_DECODER = "Cosmos-Predict1-7B-Decoder-DV8x16x16ToCV8x8x8-720p"
SHARED = {
    *(f"Cosmos-Tokenize1-DV8x16x16-720p/{name}" for name in ("encoder.jit", "decoder.jit")),
    *(
        f"Cosmos-Tokenize1-CV8x8x8-720p/{name}"
        for name in ("encoder.jit", "decoder.jit", "mean_std.pt", "image_mean_std.pt")
    ),
    *(f"{_DECODER}/{name}" for name in ("model.pt", "aux_vars.pt", "config.json")),
    *(f"nvidia/Cosmos-Guardrail1/{name}" for name in _GUARD),
}


def files_in(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if "/.cache/" not in name}


def test_the_documented_command_fetches_what_the_two_models_need_and_nothing_else(tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        home = {"HF_HOME": str(tmp_path / "home")}

        def run() -> tuple[int, str]:
            return run_door(
                "autoregressive.py", *COMMAND.argv, endpoint=endpoint, sums=SUMS, cwd=tmp_path, **home
            )

        status, printed = run()
        assert status == 0, printed
        networks = {
            f"Cosmos-Predict1-{size}/{name}" for size in ("4B", "12B") for name in ("model.pt", "config.json")
        }
        assert files_in(tmp_path / "checkpoints") == networks | SHARED
        fetched = len(moods.fetched)
        status, printed = run()
    assert status == 0 and "0 bytes to fetch" in printed and len(moods.fetched) == fetched


def test_models_that_read_a_prompt_bring_the_text_encoder_and_the_guard_of_prompts() -> None:
    of_prompts = {"google-t5/t5-11b", "meta-llama/Llama-Guard-3-8B"}
    for size, model in MODELS.items():
        repositories = [files.repository for files in files_of([size])]
        assert repositories[0] == f"nvidia/{model}"
        assert len(set(repositories)) == len(repositories)
        assert (of_prompts & set(repositories)) == (of_prompts if size in ("5B", "13B") else set())


def test_a_damaged_network_is_told_from_a_whole_one_by_its_published_sum(tmp_path: Path) -> None:
    other = {**SUMS, "nvidia/Cosmos-Predict1-4B": {"model.pt": "0" * 32}}
    flags = ("--model_sizes", "4B", "--checkpoint_dir", str(tmp_path / "c"))
    with fake_hub(REPOSITORIES) as (endpoint, _):
        home = str(tmp_path / "home")
        status, printed = run_door("autoregressive.py", *flags, endpoint=endpoint, sums=other, HF_HOME=home)
    assert status == 1 and "Cosmos-Predict1-4B" in printed and "model.pt" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model_sizes", "7B"), "invalid choice: '7B'"),
        (("--model_sizes",), "expected at least one argument"),
        (("--checkpoint_dir", __file__), "is a file. Name a folder"),
    ],
)
def test_flags_that_cannot_be_exit_2(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    status, printed = run_door("autoregressive.py", *arguments, HF_HOME=str(tmp_path))
    assert status == 2 and says in printed


def test_a_dry_run_lists_everything_and_fetches_nothing(tmp_path: Path) -> None:
    flags = ("--model_sizes", "5B", "--dry_run", "--checkpoint_dir", str(tmp_path / "c"))
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        status, printed = run_door(
            "autoregressive.py", *flags, endpoint=endpoint, sums=SUMS, HF_HOME=str(tmp_path / "home")
        )
    assert status == 0 and not moods.fetched and not (tmp_path / "c").exists()
    assert "google-t5/t5-11b" in printed and "aux_vars.pt" in printed
