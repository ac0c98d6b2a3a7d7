import re

import pytest

from cosmos_nemo.checkpoint import autoregressive, released
from cosmos_nemo.checkpoint.families import FAMILIES, choose_models, files_of
from cosmos_nemo.checkpoint.released import (
    HubFiles,
    guardrail,
    lacking,
    network,
    prompt_upsampler,
    text_encoder,
    text_guard,
    video_tokenizer,
    wanted,
)

T5 = text_encoder("google-t5/t5-11b", model="m")
ALL = [
    files
    for family in FAMILIES.values()
    for files in files_of(family, choose_models(family, None, list(family.types)))
] + autoregressive.files_of(list(autoregressive.MODELS))


@pytest.mark.parametrize(
    ("files", "names", "fetched"),
    [
        (network("a/b", folder="nemo", model="m"), ("nemo/x/0.0", "model.pt"), ("nemo/x/0.0",)),
        (
            network("a/b", model="m"),
            ("README.md", "config.json", "guardrail/model.pt", "model.pt"),
            ("config.json", "model.pt"),
        ),
        (T5, ("config.json", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"), ("config.json",)),
        (T5, ("pytorch_model.bin", "spiece.model"), ("pytorch_model.bin", "spiece.model")),
        (T5, ("pytorch_model.bin", "model.safetensors"), ("model.safetensors",)),
        (
            text_guard("a/b", model="m"),
            (
                *("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
                *("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
                *("original/consolidated.00.pth", "LICENSE"),
            ),
            ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "LICENSE"),
        ),
        (
            prompt_upsampler("a/b", model="m"),
            ("model.pt", "tokenizer.json", "guardrail/blocklist/a"),
            ("model.pt", "tokenizer.json"),
        ),
        (
            guardrail("a/b", model="m"),
            ("blocklist/a/b", "aegis/adapter.bin", "face_blur_filter/pytorch_model.bin", "blocklist"),
            ("blocklist/a/b", "face_blur_filter/pytorch_model.bin"),
        ),
        (
            video_tokenizer("a/b", model="m"),
            ("autoencoder.jit", "decoder.jit", "mean_std.pt", "model.pt"),
            ("decoder.jit", "mean_std.pt"),
        ),
    ],
)
def test_what_is_needed_is_wanted_and_nothing_else(
    files: HubFiles, names: tuple[str, ...], fetched: tuple[str, ...]
) -> None:
    assert tuple(wanted(files, names)) == fetched


def test_pickles_stay_where_only_another_folder_has_safetensors() -> None:
    files = guardrail("a/b", model="m")
    names = ["blocklist/model.safetensors", "face_blur_filter/pytorch_model.bin"]
    assert wanted(files, names) == names


@pytest.mark.parametrize(
    ("files", "names", "lacks"),
    [
        (T5, (), "config.json"),
        (T5, ("config.json", "tokenizer.json"), "*.safetensors or *.bin"),
        (T5, ("config.json", "tokenizer.json", "a/b.bin"), "*.safetensors or *.bin"),
        (T5, ("config.json", "tokenizer.json", "b.bin"), ""),
        (guardrail("a/b", model="m"), ("blocklist/x", "face_blur_filter/y"), "video_content_safety_filter"),
        (network("a/b", folder="nemo", model="m"), (), "nemo/ folder"),
        (network("a/b", folder="nemo", model="m"), ("x/0.0",), ""),
        (network("a/b", model="m"), ("guardrail/model.pt",), "model.pt"),
    ],
)
def test_what_a_copy_lacks_is_named(files: HubFiles, names: tuple[str, ...], lacks: str) -> None:
    assert lacking(files, names) == lacks


@pytest.mark.parametrize("files", ALL, ids=lambda files: files.repository)
def test_what_is_needed_is_also_fetched(files: HubFiles) -> None:
    for group in files.needs:
        examples = [pattern.replace("*", "x") + ("/x" if "." not in pattern else "") for pattern in group]
        assert wanted(files, examples), group


@pytest.mark.parametrize("files", ALL, ids=lambda files: files.repository)
def test_every_file_with_a_published_sum_is_fetched(files: HubFiles) -> None:
    assert wanted(files, files.md5) == list(files.md5)


def test_sums_and_revisions_are_well_formed_and_belong_to_repositories_that_are_fetched() -> None:
    known = {files.repository for files in ALL}
    assert set(released._MD5) | set(released._REVISIONS) <= known
    assert all(
        re.fullmatch("[0-9a-f]{32}", md5) for files in released._MD5.values() for md5 in files.values()
    )
    assert all(re.fullmatch("[0-9a-f]{40}", sha) for sha in released._REVISIONS.values())


def test_the_terms_that_are_to_be_accepted_are_those_of_the_gated_repositories() -> None:
    terms = {files.repository: files.terms for files in ALL}
    guard = terms["meta-llama/Llama-Guard-3-8B"]
    assert guard.accept and "Llama 3.1" in guard.name
    assert guard.page == "https://huggingface.co/meta-llama/Llama-Guard-3-8B"
    assert {repository for repository, one in terms.items() if not one.accept} == {
        *("google-t5/t5-11b", "Wan-AI/Wan2.1-T2V-1.3B", "mistral-community/pixtral-12b"),
    }


@pytest.mark.parametrize(
    ("repository", "folder"),
    [
        ("nvidia/Cosmos-Predict1-7B-Text2World", "Cosmos-Predict1-7B-Text2World"),
        ("nvidia/Cosmos-Guardrail1", "nvidia/Cosmos-Guardrail1"),
        ("google-t5/t5-11b", "google-t5/t5-11b"),
        ("meta-llama/Llama-Guard-3-8B", "meta-llama/Llama-Guard-3-8B"),
        ("mistralai/Pixtral-12B-2409", "Pixtral-12B"),
    ],
)
def test_folders_are_called_as_in_the_released_scripts(repository: str, folder: str) -> None:
    assert network(repository, model="m").assets_name == folder
