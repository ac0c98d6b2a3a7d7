from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import pytest

from cosmos_nemo.checkpoint import hub
from cosmos_nemo.checkpoint.families import beside, image_upsampler
from cosmos_nemo.checkpoint.hub import HubError, HubFile, Listing, UnreachableError, list_files
from cosmos_nemo.checkpoint.released import network, text_encoder

T5 = text_encoder("google-t5/t5-11b", model="m")
PIXTRAL = image_upsampler("mistralai/Pixtral-12B-2409", model="m")
TOKENIZER = beside(PIXTRAL)
NEMO = network("nvidia/N", folder="nemo", model="m")
SHA = "0123456789abcdef0123456789abcdef01234567"
LISTING = Listing(commit=SHA, files=(HubFile(path="nemo/a/0.0", size=3, blob="b1"),))


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def sibling(name: str, size: int | None, *, sha256: str | None = None) -> SimpleNamespace:
    lfs = SimpleNamespace(sha256=sha256) if sha256 else None
    return SimpleNamespace(rfilename=name, size=size, blob_id=f"git of {name}", lfs=lfs)


def answers(monkeypatch: pytest.MonkeyPatch, *siblings: SimpleNamespace) -> dict[str, object]:
    asked: dict[str, object] = {}

    def model_info(self: object, repository: str, **options: object) -> SimpleNamespace:
        asked.update(options, repository=repository)
        return SimpleNamespace(sha=SHA, siblings=list(siblings))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return asked


def fails(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    def call(*arguments: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, name, call)


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_the_listing_has_the_wanted_files_with_sizes_and_names_of_their_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = answers(
        monkeypatch,
        sibling("config.json", 3),
        sibling("tokenizer.json", None),
        sibling("pytorch_model.bin", 45_000, sha256="ff"),
        sibling("tf_model.h5", 45_000),
    )
    listing = list_files(T5)
    assert listing == Listing(
        commit=SHA,
        files=(
            HubFile(path="config.json", size=3, blob="git of config.json"),
            HubFile(path="tokenizer.json", size=0, blob="git of tokenizer.json"),
            HubFile(path="pytorch_model.bin", size=45_000, blob="ff"),
        ),
    )
    assert listing.size == 45_003
    assert (asked["repository"], asked["revision"], asked["files_metadata"]) == (T5.repository, None, True)


def test_a_pinned_repository_is_listed_at_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = network("nvidia/Cosmos-Predict2-2B-Text2Image", model="m")
    asked = answers(monkeypatch, sibling("model.pt", 3))
    list_files(pinned)
    assert asked["revision"] == pinned.revision and str(pinned.revision).startswith("acdb5fde")


def test_a_repository_without_what_is_needed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, sibling("model.pt", 3))
    with pytest.raises(HubError, match=r"nvidia/N on the hub has no nemo/ folder"):
        list_files(NEMO)


def test_a_hub_that_lists_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch)
    with pytest.raises(HubError, match=r"google-t5/t5-11b on the hub has no config.json"):
        list_files(T5)


@pytest.mark.parametrize("call", ["access", "folder", "again", "cache"])
def test_whatever_the_client_raises_is_one_sentence(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ConnectionError("broken\npipe")
    for name in ("get_hf_file_metadata", "snapshot_download", "hf_hub_download"):
        fails(monkeypatch, name, error)
    answers(monkeypatch, sibling("nemo/a/0.0", 3))
    calls = {
        "access": lambda: hub.check_access(NEMO, LISTING),
        "folder": lambda: hub.fetch_to_folder(NEMO, LISTING, ["nemo/a/0.0"], folder=tmp_path),
        "again": lambda: hub.fetch_again(NEMO, LISTING, "nemo/a/0.0", folder=tmp_path),
        "cache": lambda: hub.fetch_to_cache(NEMO, cache_dir=tmp_path),
    }
    with pytest.raises(HubError, match=r"^nvidia/N cannot be downloaded \(broken\)$"):
        calls[call]()


def test_an_error_without_words_is_named_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, "get_hf_file_metadata", TimeoutError())
    with pytest.raises(HubError, match=r"\(TimeoutError\)"):
        hub.check_access(NEMO, LISTING)


NO_HUB = "http://127.0.0.1:9"


def test_a_hub_that_is_out_of_reach_is_one_short_sentence_with_the_systems_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", NO_HUB)
    with pytest.raises(UnreachableError) as caught:
        list_files(T5)
    sentence = f"{T5.repository} cannot be downloaded ({NO_HUB} cannot be reached: Connection refused)"
    assert str(caught.value) == sentence
    assert caught.value.__cause__ is not None


def raised(error: Exception, *, while_handling: Exception) -> Exception:
    """`error` with the other one as its context."""
    try:
        raise while_handling
    except Exception:
        try:
            raise error
        except Exception as caught:
            return caught


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize(
    ("library", "kind", "below", "reason"),
    [
        ("requests", "ConnectionError", OSError(101, "Network is unreachable"), "Network is unreachable"),
        ("requests", "ConnectTimeout", TimeoutError("timed out"), "timed out"),
        ("requests", "ReadTimeout", ValueError("of urllib3"), "ReadTimeout"),
        ("requests.exceptions", "ProxyError", OSError("Tunnel failed: 403"), "Tunnel failed: 403"),
        ("httpx", "ConnectError", ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        ("httpx", "ReadTimeout", TimeoutError("timed out"), "timed out"),
    ],
)
def test_a_hub_is_out_of_reach_whichever_http_library_says_so(
    library: str,
    kind: str,
    below: Exception,
    reason: str,
    is_wrapped: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = getattr(pytest.importorskip(library), kind)("HTTPSConnectionPool(...): many words")
    error = raised(error, while_handling=below)
    if is_wrapped:
        nothing = huggingface_hub.errors.LocalEntryNotFoundError("nothing there")
        error = raised(nothing, while_handling=error)
    fails(monkeypatch, "get_hf_file_metadata", error)
    with pytest.raises(UnreachableError) as caught:
        hub.check_access(NEMO, LISTING)
    assert str(caught.value).endswith(f" cannot be reached: {reason})")


def test_a_full_disk_is_not_taken_for_a_missing_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, "snapshot_download", OSError(28, "No space left on device"))
    with pytest.raises(HubError, match="No space left") as caught:
        hub.fetch_to_folder(NEMO, LISTING, ["nemo/a/0.0"], folder=tmp_path)
    assert not isinstance(caught.value, UnreachableError)


def test_a_download_that_ends_early_without_an_error_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client returns a folder that was there before if it cannot reach the hub."""
    answers(monkeypatch, sibling("nemo/a/0.0", 3))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(HubError, match="was not downloaded to the end: there is no nemo/ folder"):
        hub.fetch_to_cache(NEMO, cache_dir=tmp_path)


def test_offline_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = answers(monkeypatch, sibling("nemo/a/0.0", 3))
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids"):
        hub.fetch_to_cache(NEMO, cache_dir=tmp_path)
    assert asked == {}


@pytest.mark.parametrize("place", [f"snapshots/{SHA}/nemo/a/0.0", "blobs/b1"])
@pytest.mark.parametrize(("content", "counts"), [("abc", True), ("ab", False)])
def test_a_cached_file_counts_in_its_size_be_it_from_another_commit(
    place: str, content: str, counts: bool, tmp_path: Path
) -> None:
    write(tmp_path / "models--nvidia--N" / place, content)
    assert hub.cached_paths(NEMO, LISTING, cache_dir=tmp_path) == ({"nemo/a/0.0"} if counts else set())


def test_a_cached_file_is_discarded_with_what_its_link_names(tmp_path: Path) -> None:
    repository = tmp_path / "models--nvidia--N"
    link = repository / f"snapshots/{SHA}/nemo/a/0.0"
    for blob in ("b1", "old", "other"):
        write(repository / "blobs" / blob, "ab")
    link.parent.mkdir(parents=True)
    link.symlink_to(repository / "blobs" / "old")
    for _ in range(2):  # what is gone is no error
        hub.discard_cached(NEMO, LISTING, "nemo/a/0.0", cache_dir=tmp_path)
        assert not link.is_symlink()
        assert [path.name for path in (repository / "blobs").iterdir()] == ["other"]
    hub.discard_cached(NEMO, Listing(commit=SHA, files=()), "nemo/a/0.0", cache_dir=tmp_path)


def test_a_file_whose_size_the_hub_does_not_tell_counts_if_it_is_there(tmp_path: Path) -> None:
    write(tmp_path / "a", "abc")
    assert hub.is_whole(tmp_path / "a", HubFile(path="a", size=0))
    assert not hub.is_whole(tmp_path / "b", HubFile(path="b", size=0))


def test_fetching_again_makes_room_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model.pt", "damaged")
    seen: list[bool] = []

    def hf_hub_download(repository: str, path: str, **options: object) -> None:
        seen.extend([(tmp_path / path).exists(), bool(options["force_download"])])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    hub.fetch_again(NEMO, LISTING, "model.pt", folder=tmp_path)
    assert seen == [False, True]


def test_hidden_files_are_no_part_of_a_copy(tmp_path: Path) -> None:
    for name in ("model.pt", "nemo/0.0", ".cache/huggingface/download/model.pt.metadata"):
        write(tmp_path / name, "")
    assert sorted(hub.names_in(tmp_path)) == ["model.pt", "nemo/0.0"]
    assert hub.unfinished_files(tmp_path) == []
    write(tmp_path / ".cache/huggingface/download/nemo/x.incomplete", "")
    assert len(hub.unfinished_files(tmp_path)) == 1


def cache_repository(cache: Path, name: str, **files: str) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    write(repository / "refs" / "main", SHA)
    for file, content in files.items():
        write(repository / "snapshots" / SHA / file.replace("__", "."), content)
    return repository / "snapshots" / SHA


WEIGHTS = {"params__json": "{}", "consolidated__safetensors": "weights"}


def test_a_tokenizer_of_another_repository_is_copied_beside_the_weights_before_they_count(
    tmp_path: Path,
) -> None:
    assert hub.put_together(PIXTRAL, cache_dir=tmp_path) is None
    folder = cache_repository(tmp_path, PIXTRAL.repository, **WEIGHTS)
    assert hub.cached(PIXTRAL, cache_dir=tmp_path) is hub.put_together(PIXTRAL, cache_dir=tmp_path) is None
    source = cache_repository(
        tmp_path, TOKENIZER.repository, tokenizer__json="words", config__json="of another model"
    )
    assert hub.cached(TOKENIZER, cache_dir=tmp_path) == source
    assert hub.cached(PIXTRAL, cache_dir=tmp_path) is None, "looking changes nothing"
    assert hub.put_together(PIXTRAL, cache_dir=tmp_path) == folder == hub.cached(PIXTRAL, cache_dir=tmp_path)
    names = ("consolidated.safetensors", "params.json", "tokenizer.json")
    assert sorted(path.name for path in folder.iterdir()) == list(names)
    assert (folder / "tokenizer.json").read_text() == "words"
    assert not (folder / "tokenizer.json").is_symlink()


def test_a_tokenizer_is_not_put_beside_weights_that_are_not_there(tmp_path: Path) -> None:
    cache_repository(tmp_path, TOKENIZER.repository, tokenizer__json="words")
    folder = cache_repository(tmp_path, PIXTRAL.repository, params__json="{}")
    assert hub.put_together(PIXTRAL, cache_dir=tmp_path) is None
    assert [path.name for path in folder.iterdir()] == ["params.json"]


def test_files_that_stand_alone_are_never_put_together(tmp_path: Path) -> None:
    cache_repository(tmp_path, T5.repository, config__json="{}")
    assert hub.put_together(T5, cache_dir=tmp_path) is None


def test_a_cache_that_may_only_be_read_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache_repository(tmp_path, PIXTRAL.repository, **WEIGHTS)
    cache_repository(tmp_path, TOKENIZER.repository, tokenizer__json="words")

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hub.shutil, "copyfile", refuse)
    assert hub.put_together(PIXTRAL, cache_dir=tmp_path) is None
    answers(monkeypatch, sibling("params.json", 2), sibling("consolidated.safetensors", 7))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(HubError, match=r"^mistral-community/pixtral-12b cannot be copied to .*denied"):
        hub.fetch_to_cache(PIXTRAL, cache_dir=tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["consolidated.safetensors", "params.json"]


def test_fetching_the_weights_fetches_the_tokenizer_and_puts_it_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {
        PIXTRAL.repository: WEIGHTS | {"tekken__json": "another tokenizer"},
        TOKENIZER.repository: {"tokenizer__json": "words", "model__safetensors": "weights"},
    }

    def model_info(self: object, repository: str, **options: object) -> SimpleNamespace:
        siblings = [sibling(name.replace("__", "."), 3) for name in contents[repository]]
        return SimpleNamespace(sha=SHA, siblings=siblings)

    asked = []

    def snapshot_download(repository: str, *, allow_patterns: list[str], **options: object) -> str:
        asked.append((repository, tuple(allow_patterns)))
        files = {n: c for n, c in contents[repository].items() if n.replace("__", ".") in allow_patterns}
        return str(cache_repository(tmp_path, repository, **files))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    folder = hub.fetch_to_cache(PIXTRAL, cache_dir=tmp_path)
    assert folder == hub.cached(PIXTRAL, cache_dir=tmp_path)
    assert asked == [
        (PIXTRAL.repository, ("params.json", "consolidated.safetensors")),
        (TOKENIZER.repository, ("tokenizer.json",)),
    ]
    assert (folder / "tokenizer.json").read_text() == "words"
    (folder / "tokenizer.json").unlink()
    hub.fetch_to_cache(PIXTRAL, cache_dir=tmp_path)
    assert len(asked) == 3, "the tokenizer is in the cache already"


def test_offline_the_error_says_that_the_tokenizer_is_looked_for_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"together with tokenizer\.json of mistral-community/pixtral"):
        hub.fetch_to_cache(PIXTRAL, cache_dir=tmp_path)
