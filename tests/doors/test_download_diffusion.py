import hashlib
import os
import re
import runpy
from pathlib import Path

import pytest

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.checkpoint.hub import unfinished_files
from cosmos_nemo.checkpoint.locate import downloads_of, locate, upsampler_of
from tests.doors.commands import COMMANDS
from tests.doors.downloading import ROOT, run_door
from tests.doors.fake_hub import KEPT, fake_hub
from tests.doors.instant import help_of

DOCUMENTED = [c for c in COMMANDS if c.script == "scripts/download_diffusion_checkpoints.py"]
SMALL = ("--model_sizes", "7B", "--model_types", "Text2World")
MODEL = "Cosmos-Predict1-7B-Text2World"
BETWEEN = ("--model_types", "WorldInterpolator")

_CONTENT = {
    "google-t5/t5-11b": ("config.json", "tokenizer.json", "pytorch_model.bin", "tf_model.h5", "README.md"),
    "meta-llama/Llama-Guard-3-8B": (
        *("config.json", "tokenizer.json", "model-1.safetensors"),
        *("original/consolidated.00.pth", "pytorch_model.bin"),
    ),
    "nvidia/Cosmos-Guardrail1": (
        *("blocklist/custom/words", "video_content_safety_filter/safety_filter.pt"),
        *("face_blur_filter/Resnet50_Final.pth", "README.md"),
    ),
    "nvidia/Cosmos-Tokenize1-CV8x8x8-720p": (
        *("encoder.jit", "decoder.jit", "autoencoder.jit", "model.pt"),
        *("mean_std.pt", "image_mean_std.pt", "config.json"),
    ),
    "nvidia/Cosmos-UpsamplePrompt1-12B-Text2World": ("model.pt", "tokenizer.json", "guardrail/blocklist/w"),
    "mistralai/Pixtral-12B-2409": ("params.json", "consolidated.safetensors", "tekken.json", "README.md"),
    "mistral-community/pixtral-12b": ("tokenizer.json", "config.json", "model-1.safetensors"),
    "Wan-AI/Wan2.1-T2V-1.3B": ("Wan2.1_VAE.pth", "diffusion_pytorch_model.safetensors"),
    "nvidia/Cosmos-Reason1-7B": ("config.json", "tokenizer.json", "model-1.safetensors"),
    **{
        f"nvidia/Cosmos-Predict1-{name}": ("model.pt", "config.json", "README.md", "guardrail/blocklist/w")
        for name in (
            *("7B-Text2World", "14B-Text2World", "7B-Video2World", "14B-Video2World"),
            *("7B-WorldInterpolator",),
        )
    },
    **{
        f"nvidia/Cosmos-Predict2-{size}-Video2World": (
            *("model-720p-16fps.pt", "model-480p-10fps.pt", "model-720p-16fps-natten.pt"),
            "tokenizer/tokenizer.pth",
        )
        for size in ("2B", "14B")
    },
}
REPOSITORIES = {
    repository: {name: f"{repository}/{name}".encode() for name in names}
    for repository, names in _CONTENT.items()
}
SUMS = {
    repository: {
        name: hashlib.md5(content, usedforsecurity=False).hexdigest()
        for name, content in files.items()
        if name.endswith((".pt", ".bin", ".pth"))
    }
    for repository, files in REPOSITORIES.items()
}
SHARED = (
    *("google-t5/t5-11b/config.json", "google-t5/t5-11b/tokenizer.json"),
    "google-t5/t5-11b/pytorch_model.bin",
    *("meta-llama/Llama-Guard-3-8B/config.json", "meta-llama/Llama-Guard-3-8B/tokenizer.json"),
    "meta-llama/Llama-Guard-3-8B/model-1.safetensors",
    *("nvidia/Cosmos-Guardrail1/blocklist/custom/words",),
    "nvidia/Cosmos-Guardrail1/video_content_safety_filter/safety_filter.pt",
    "nvidia/Cosmos-Guardrail1/face_blur_filter/Resnet50_Final.pth",
)
TOKENIZER = tuple(
    f"Cosmos-Tokenize1-CV8x8x8-720p/{name}"
    for name in ("encoder.jit", "decoder.jit", "mean_std.pt", "image_mean_std.pt")
)
UPSAMPLER = tuple(f"Cosmos-UpsamplePrompt1-12B-Text2World/{name}" for name in ("model.pt", "tokenizer.json"))
PIXTRAL = tuple(f"Pixtral-12B/{n}" for n in ("params.json", "consolidated.safetensors", "tokenizer.json"))
PREDICT2_ONLY = (
    "Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth",
    *(f"nvidia/Cosmos-Reason1-7B/{n}" for n in ("config.json", "tokenizer.json", "model-1.safetensors")),
)


def predict1(*names: str) -> tuple[str, ...]:
    return tuple(f"Cosmos-Predict1-{name}/{file}" for name in names for file in ("model.pt", "config.json"))


FETCHED = {
    "000": (*predict1("7B-Text2World", "14B-Text2World"), *TOKENIZER, *UPSAMPLER, *SHARED),
    "002": (
        *predict1("7B-Video2World", "14B-Video2World", "7B-WorldInterpolator"),
        *(*TOKENIZER, *PIXTRAL, *SHARED),
    ),
    "003": (
        *(f"Cosmos-Predict2-{size}-Video2World/model-720p-16fps.pt" for size in ("2B", "14B")),
        *(*PREDICT2_ONLY, *SHARED),
    ),
}


def download(
    *arguments: str,
    folder: Path,
    endpoint: str = "http://127.0.0.1:9",
    sums: dict[str, dict[str, str]] | None = SUMS,
    **more: str,
) -> tuple[int, str]:
    """With an HF_HOME of its own, and the sums of the files made up here."""
    home = str(folder.parent / "home")
    place = ("--checkpoint_dir", str(folder))
    return run_door("diffusion.py", *arguments, *place, endpoint=endpoint, sums=sums, HF_HOME=home, **more)


def files_in(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if "/.cache/" not in name}


def test_there_is_a_command_of_each_document_with_a_download() -> None:
    assert [command.document for command in DOCUMENTED] == ["000", "002", "003"]


@pytest.mark.parametrize("command", DOCUMENTED, ids=lambda command: command.document)
def test_the_documented_commands_fetch_what_the_models_need_and_nothing_else(command, tmp_path: Path) -> None:
    assert command.argv[-2:] == ("--checkpoint_dir", "checkpoints")
    with fake_hub(REPOSITORIES) as (endpoint, moods):

        def run() -> tuple[int, str]:
            home = {"HF_HOME": str(tmp_path / "home")}
            return run_door("diffusion.py", *command.argv, endpoint=endpoint, sums=SUMS, cwd=tmp_path, **home)

        status, printed = run()
        assert status == 0, printed
        assert files_in(tmp_path / "checkpoints") == set(FETCHED[command.document])
        fetched = len(moods.fetched)
        assert fetched == len(FETCHED[command.document])
        status, printed = run()
        assert status == 0 and "0 bytes to fetch" in printed and len(moods.fetched) == fetched
        if command.document == "003":
            assert moods.revisions["nvidia/Cosmos-Predict2-2B-Video2World"].startswith("f50c09f5d8ab")
    assert not (tmp_path / "home").exists() or not list((tmp_path / "home").rglob("blobs"))


def test_the_terms_are_said_first_and_inference_finds_every_part_in_the_folder(tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES) as (endpoint, _):
        status, printed = download(*SMALL, folder=tmp_path / "c", endpoint=endpoint)
    assert status == 0, printed
    for repository in (f"nvidia/{MODEL}", "meta-llama/Llama-Guard-3-8B", "nvidia/Cosmos-Guardrail1"):
        page = f"https://huggingface.co/{repository}"
        assert printed.index(page) < printed.index(" to fetch")
    assert "Nothing to accept: google-t5/t5-11b" in printed
    for files in downloads_of(CARDS[MODEL]):
        found = locate(files, assets_dir=tmp_path / "c", embedded=tmp_path, cache_dir=tmp_path)
        assert found == tmp_path / "c" / files.assets_name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("--model_sizes", "14B", "--model_types", "Video2World"),
            "Add --family predict1 or --family predict2",
        ),
        (("--model_sizes", "14B"), "--family"),
        (("--model_sizes", "7B", "2B"), "mixes two families"),
        (("--family", "predict2", "--model_sizes", "7B"), "--model_sizes 7B is not in --family predict2"),
        (("--family", "predict1", "--model_sizes", "2B"), "--model_sizes 2B is not in --family predict1"),
        (("--family", "predict2", "--model_types", "Text2World"), "It is in --family predict1"),
        (("--model_types", "Text2Image"), "It is in --family predict2"),
        (("--model_sizes", "2B", "--model_types", "WorldInterpolator"), "not in --family predict2"),
        (
            ("--family", "predict1", "--model_sizes", "14B", "--model_types", "WorldInterpolator"),
            "--model_types WorldInterpolator exists in 7B only",
        ),
        (
            ("--model_sizes", "7B", "14B", "--model_types", "WorldInterpolator"),
            "--model_sizes 14B has none of --model_types WorldInterpolator",
        ),
        (("--model_sizes", "13B"), "invalid choice: '13B'"),
        (("--model_types", "Text2Worlds"), "invalid choice: 'Text2Worlds'"),
        (("--model_sizes",), "expected at least one argument"),
        (("--family", "predict3"), "invalid choice: 'predict3'"),
        (("--famil", "predict1"), "unrecognized arguments"),
        (("--checkpoint_dir", __file__), "is a file"),
    ],
)
def test_flags_that_contradict_each_other_exit_2(
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    door = Path(__file__).parents[2] / "download" / "diffusion.py"
    monkeypatch.setattr("sys.argv", [str(door), "--checkpoint_dir", str(tmp_path / "c"), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(door), run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and says in said, said
    assert not (tmp_path / "c").exists()


def test_a_gated_repository_is_named_with_its_page_and_the_others_are_fetched(tmp_path: Path) -> None:
    guard = "meta-llama/Llama-Guard-3-8B"
    with fake_hub(REPOSITORIES, gated=frozenset({guard})) as (endpoint, moods):
        status, printed = download(*SMALL, folder=tmp_path / "c", endpoint=endpoint)
        assert status == 1
        assert f"accept its licence at https://huggingface.co/{guard}" in printed and "HF_TOKEN" in printed
        assert f"nvidia/{MODEL}/model.pt" in moods.fetched
        assert printed.rstrip().splitlines()[-1].startswith(f"  {guard} may not be")
        status, _ = download(*SMALL, folder=tmp_path / "c", endpoint=endpoint, HF_TOKEN="hf_of_a_friend")
        assert status == 0


def test_a_repository_that_is_not_there_does_not_stop_the_others(tmp_path: Path) -> None:
    there = {name: files for name, files in REPOSITORIES.items() if "Upsample" not in name}
    with fake_hub(there) as (endpoint, moods):
        status, printed = download(*SMALL, folder=tmp_path / "c", endpoint=endpoint)
    assert status == 1 and "404" in printed
    assert printed.count("nvidia/Cosmos-UpsamplePrompt1-12B-Text2World cannot be downloaded") == 2
    assert f"nvidia/{MODEL}/model.pt" in moods.fetched


def test_a_repository_without_its_weights_is_an_error(tmp_path: Path) -> None:
    emptied = REPOSITORIES | {f"nvidia/{MODEL}": {"config.json": b"{}"}}
    with fake_hub(emptied) as (endpoint, _):
        status, printed = download(*SMALL, folder=tmp_path / "c", endpoint=endpoint)
    assert status == 1 and f"nvidia/{MODEL} on the hub has no model.pt" in printed


def test_a_transfer_that_breaks_off_is_taken_up_by_the_next_call(tmp_path: Path) -> None:
    name, content = f"nvidia/{MODEL}/model.pt", bytes(range(256)) * 44_000
    repositories = REPOSITORIES | {f"nvidia/{MODEL}": {"model.pt": content}}
    sums = SUMS | {f"nvidia/{MODEL}": {"model.pt": hashlib.md5(content).hexdigest()}}
    folder = tmp_path / "c"
    with fake_hub(repositories, cut={name: max(KEPT)}) as (endpoint, moods):
        status, printed = download(*SMALL, folder=folder, endpoint=endpoint, sums=sums)
        if status:  # newer clients take it up themselves
            assert f"nvidia/{MODEL} cannot be downloaded" in printed
            assert not (folder / MODEL / "model.pt").exists()
            (begun,) = unfinished_files(folder / MODEL)
            assert (kept := begun.stat().st_size) in KEPT
            status, printed = download(*SMALL, folder=folder, sums=sums, HF_HUB_OFFLINE="1")
            assert status == 1 and f"nvidia/{MODEL}: there is no model.pt" in printed
            status, printed = download(*SMALL, folder=folder, endpoint=endpoint, sums=sums)
            assert f"{(len(content) - kept) / 1000:.1f} kB to fetch" in printed
    assert status == 0, printed
    assert moods.ranges in [{name: f"bytes={kept}-"} for kept in KEPT]
    assert (folder / MODEL / "model.pt").read_bytes() == content


def test_a_file_with_a_wrong_sum_is_fetched_once_more(tmp_path: Path) -> None:
    name = f"nvidia/{MODEL}/model.pt"
    garbage = bytes(len(REPOSITORIES[f"nvidia/{MODEL}"]["model.pt"]))
    with fake_hub(REPOSITORIES, garbled={name: (garbage, 1)}) as (endpoint, moods):
        status, printed = download(*SMALL, folder=tmp_path / "c", endpoint=endpoint)
    assert status == 0, printed
    assert moods.fetched.count(name) == 2
    assert hashlib.md5(garbage).hexdigest() in printed


def test_a_file_whose_sum_stays_wrong_is_named_with_both_sums_and_set_aside(tmp_path: Path) -> None:
    name, folder = f"nvidia/{MODEL}/model.pt", tmp_path / "c" / MODEL
    published, is_md5 = "0" * 32, SUMS[f"nvidia/{MODEL}"]["model.pt"]
    sums = SUMS | {f"nvidia/{MODEL}": {"model.pt": published}}
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        status, printed = download(*SMALL, folder=tmp_path / "c", endpoint=endpoint, sums=sums)
    assert status == 1 and moods.fetched.count(name) == 2
    last = printed.rstrip().splitlines()[-1]
    assert str(folder / "model.pt") in last and published in last and is_md5 in last
    assert not (folder / "model.pt").exists() and (folder / "model.pt.wrong-md5").exists()
    assert (tmp_path / "c" / "google-t5/t5-11b/pytorch_model.bin").exists()


def test_the_published_sums_are_those_that_count(tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES) as (endpoint, _):
        status, printed = download(*SMALL, folder=tmp_path / "c", endpoint=endpoint, sums=None)
    assert status == 1
    for published in (
        *("fe9ed68e16cf37b10e7414c9b3ee81e1", "52d7a6b8b1ac44d856b4c1ea3f8c8c74"),
        *("f07680ad7eefae57d698778e2a0c7c96", "9f19fd3312fc1198e4905ada02e68bce"),
        "f890878d8a162e0045a25196e27089a3",
    ):
        assert published in printed


def test_offline_a_full_folder_is_complete_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with fake_hub(REPOSITORIES) as (endpoint, _):
        assert download(*SMALL, folder=folder, endpoint=endpoint)[0] == 0
    status, printed = download(*SMALL, folder=folder, HF_HUB_OFFLINE="1")
    assert status == 0 and printed.count(": complete in ") == 6, printed
    assert download(*SMALL, folder=folder)[0] == 0, "an unreachable hub is no reason to fail"

    (folder / MODEL / "model.pt").write_bytes(b"nvidia/Cosmos-Predict1-7B-Text2World/model.pT")
    (folder / "google-t5/t5-11b/tokenizer.json").unlink()
    status, printed = download(*SMALL, folder=folder, HF_HUB_OFFLINE="1")
    assert status == 1 and printed.count(": complete in ") == 4
    assert re.search(r"model\.pt has the MD5 sum \w+, not the published", printed)
    assert "google-t5/t5-11b: there is no tokenizer.json" in printed and "HF_HUB_OFFLINE is set" in printed


def test_a_damaged_file_is_fetched_again_though_its_size_is_right(tmp_path: Path) -> None:
    folder, name = tmp_path / "c", f"nvidia/{MODEL}/model.pt"
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        assert download(*SMALL, folder=folder, endpoint=endpoint)[0] == 0
        whole = (folder / MODEL / "model.pt").read_bytes()
        (folder / MODEL / "model.pt").write_bytes(bytes(len(whole)))
        status, printed = download(*SMALL, folder=folder, endpoint=endpoint)
    assert status == 0, printed
    assert moods.fetched.count(name) == 2 and (folder / MODEL / "model.pt").read_bytes() == whole


def test_a_damaged_file_without_a_published_sum_is_fetched_again_too(tmp_path: Path) -> None:
    guard = "meta-llama/Llama-Guard-3-8B"
    folder, name = tmp_path / "c", f"{guard}/model-1.safetensors"
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        assert download(*SMALL, folder=folder, endpoint=endpoint)[0] == 0
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(bytes(len(whole)))
        status, printed = download(*SMALL, folder=folder, HF_HUB_OFFLINE="1")
        assert status == 1 and "has the SHA-256 sum" in printed
        status, printed = download(*SMALL, folder=folder, endpoint=endpoint)
        assert status == 0, printed
        fetched = len(moods.fetched)
        assert download(*SMALL, folder=folder, endpoint=endpoint)[0] == 0
    assert moods.fetched.count(name) == 2 and (folder / name).read_bytes() == whole
    assert len(moods.fetched) == fetched


@pytest.mark.parametrize("part", ["model.pt", "config.json"])
def test_half_a_file_with_an_old_date_is_fetched_again(tmp_path: Path, part: str) -> None:
    """The client takes a file for its own if it is no newer than its record, whatever its size."""
    folder, name = tmp_path / "c", f"nvidia/{MODEL}/{part}"
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        assert download(*SMALL, folder=folder, endpoint=endpoint)[0] == 0
        file = folder / MODEL / part
        whole = file.read_bytes()
        file.write_bytes(whole[:10])
        os.utime(file, ns=(10**18, 10**18))
        status, printed = download(*SMALL, folder=folder, endpoint=endpoint)
    assert status == 0, printed
    assert moods.fetched.count(name) == 2 and file.read_bytes() == whole


def test_files_that_were_brought_by_hand_are_not_fetched(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    for name in ("model.pt", "config.json"):
        (folder / MODEL).mkdir(parents=True, exist_ok=True)
        (folder / MODEL / name).write_bytes(REPOSITORIES[f"nvidia/{MODEL}"][name])
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        status, printed = download(*SMALL, folder=folder, endpoint=endpoint)
    assert status == 0, printed
    assert f"nvidia/{MODEL}/model.pt" not in moods.fetched


def test_a_dry_run_lists_files_sizes_and_space_and_fetches_nothing(tmp_path: Path) -> None:
    announced = {f"nvidia/{MODEL}/model.pt": 14_400_000_000}
    with fake_hub(REPOSITORIES, announced=announced) as (endpoint, moods):
        status, printed = download(*SMALL, "--dry-run", folder=tmp_path / "c", endpoint=endpoint)
    assert status == 0, printed
    assert moods.fetched == [] and list(tmp_path.iterdir()) == []
    assert "14.4 GB  model.pt" in printed and str(tmp_path / "c" / MODEL) in printed
    assert re.search(r"Total: 14\.4 GB, of which 14\.4 GB to fetch; [\d.,]+ [GM]B free where ", printed)
    assert "autoencoder.jit" not in printed and "tf_model.h5" not in printed


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(tmp_path: Path) -> None:
    with fake_hub(REPOSITORIES, announced={f"nvidia/{MODEL}/model.pt": 10**17}) as (endpoint, moods):
        for more in ((), ("--dry_run",)):
            status, printed = download(*SMALL, *more, folder=tmp_path / "c", endpoint=endpoint)
            assert status == 1 and "The disk lacks" in printed and "--checkpoint_dir" in printed
    assert moods.fetched == [] and not (tmp_path / "c").exists()


def test_help_waits_for_no_slow_library_and_says_which_models_run() -> None:
    runs = "This version runs Text2World, Video2World, WorldInterpolator of predict1"
    assert runs in help_of(str(ROOT / "download/diffusion.py"))


def test_the_interpolator_alone_comes_with_an_upsampler_that_sees_and_its_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with fake_hub(REPOSITORIES, gated=frozenset({"mistralai/Pixtral-12B-2409"})) as (endpoint, moods):
        status, printed = download(*BETWEEN, folder=folder, endpoint=endpoint)
        assert status == 1
        page = "https://huggingface.co/mistralai/Pixtral-12B-2409"
        assert printed.index(page) < printed.index(" to fetch") and f"accept its licence at {page}" in printed
        status, printed = download(*BETWEEN, folder=folder, endpoint=endpoint, HF_TOKEN="hf_of_a_friend")
        assert status == 0, printed
        fetched = len(moods.fetched)
        assert download(*BETWEEN, folder=folder, endpoint=endpoint)[0] == 0 and len(moods.fetched) == fetched
    assert files_in(folder) == {*predict1("7B-WorldInterpolator"), *TOKENIZER, *PIXTRAL, *SHARED}
    for files in downloads_of(CARDS["Cosmos-Predict1-7B-WorldInterpolator"]):
        found = locate(files, assets_dir=folder, embedded=tmp_path, cache_dir=tmp_path)
        assert found == folder / files.assets_name
    status, printed = download(*BETWEEN, folder=folder, HF_HUB_OFFLINE="1")
    assert status == 0 and printed.count(": complete in ") == 7, printed


def test_each_of_two_repositories_in_one_folder_answers_for_its_own_files(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with fake_hub(REPOSITORIES) as (endpoint, moods):
        assert download(*BETWEEN, folder=folder, endpoint=endpoint)[0] == 0
        (folder / "Pixtral-12B/tokenizer.json").unlink()
        status, printed = download(*BETWEEN, folder=folder, HF_HUB_OFFLINE="1")
        assert status == 1 and "mistral-community/pixtral-12b: there is no tokenizer.json" in printed
        assert "mistralai/Pixtral-12B-2409: complete in " in printed
        assert download(*BETWEEN, folder=folder, endpoint=endpoint)[0] == 0
        weights = folder / "Pixtral-12B/consolidated.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(bytes(len(whole)))
        status, printed = download(*BETWEEN, folder=folder, HF_HUB_OFFLINE="1")
        assert status == 1 and "mistral-community/pixtral-12b: complete in " in printed
        assert re.search(r"mistralai/Pixtral-12B-2409: \S+ has the SHA-256 sum", printed)
        assert download(*BETWEEN, folder=folder, endpoint=endpoint)[0] == 0
    assert weights.read_bytes() == whole
    assert moods.fetched.count("mistralai/Pixtral-12B-2409/params.json") == 1


def test_what_a_video2world_needs_is_found_where_the_documented_command_put_it(tmp_path: Path) -> None:
    command = next(command for command in DOCUMENTED if command.document == "002")
    with fake_hub(REPOSITORIES) as (endpoint, _):
        home = {"HF_HOME": str(tmp_path / "home")}
        run_door("diffusion.py", *command.argv, endpoint=endpoint, sums=SUMS, cwd=tmp_path, **home)
    folder = tmp_path / "checkpoints"
    for name in ("7B-Video2World", "14B-Video2World", "7B-WorldInterpolator"):
        card = CARDS[f"Cosmos-Predict1-{name}"]
        for files in downloads_of(card):
            found = locate(files, assets_dir=folder, embedded=tmp_path, cache_dir=tmp_path)
            assert found == folder / files.assets_name
        assert (folder / upsampler_of(card).assets_name / "tokenizer.json").is_file()
