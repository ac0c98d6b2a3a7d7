import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from cosmos_nemo.catalog import CARDS, ModelCard
from cosmos_nemo.checkpoint.families import door_for
from cosmos_nemo.checkpoint.locate import (
    HubFiles,
    LocateError,
    _ways_out,
    downloads_of,
    guardrail_of,
    locate,
    network_in,
    text_encoder_of,
    text_guard_of,
    tokenizer_of,
    upsampler_of,
    weights_of,
)

BIG = CARDS["Cosmos-1.0-Diffusion-7B-Text2World"]
NANO = CARDS["Cosmos-Nano-Text2World"]
PREDICT1 = CARDS["Cosmos-Predict1-14B-Text2World"]
VIDEO = CARDS["Cosmos-Predict1-7B-Video2World"]
NANO_VIDEO, NANO_BETWEEN = CARDS["Cosmos-Nano-Video2World"], CARDS["Cosmos-Nano-WorldInterpolator"]
OWN = CARDS["Cosmos-Predict1-7B-Text2World_post-trained"]
WEIGHTS, TOKENIZER, TEXT = weights_of(BIG), tokenizer_of(BIG), text_encoder_of(BIG)
UPSAMPLER, GUARDRAIL, TEXT_GUARD = upsampler_of(BIG), guardrail_of(BIG), text_guard_of(BIG)
CONTENT = {
    WEIGHTS: ("nemo/metadata.json",),
    TOKENIZER: ("encoder.jit", "decoder.jit", "mean_std.pt"),
    TEXT: ("config.json", "tokenizer.json", "pytorch_model.bin"),
    UPSAMPLER: ("model.pt", "tokenizer.json"),
    GUARDRAIL: ("blocklist/a", "video_content_safety_filter/safety_filter.pt", "face_blur_filter/r.pth"),
    TEXT_GUARD: ("config.json", "tokenizer.json", "model-1.safetensors"),
    weights_of(PREDICT1): ("model.pt", "config.json"),
    upsampler_of(VIDEO): ("params.json", "consolidated.safetensors", "tokenizer.json"),
}
CONTENT_IDS = [f"{files.flag} of {files.model}" for files in CONTENT]
SHA = "0123456789abcdef0123456789abcdef01234567"


def fill(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    return folder


def cached_repository(cache: Path, files: HubFiles, names: tuple[str, ...]) -> Path:
    repository = cache / files.hub_name
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(SHA)
    return fill(repository / "snapshots" / SHA, names)


def hub_error(kind: str, status: int) -> Exception:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return getattr(huggingface_hub.errors, kind)(f"{status} from the hub", response=response)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Empty ones, so that nothing of the machine is found."""
    places = {name: tmp_path / name for name in ("assets_dir", "embedded", "cache_dir")}
    for place in places.values():
        place.mkdir()
    return places


@pytest.fixture(autouse=True)
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The repositories asked from the hub, which always fails: no test touches the network."""
    asked: list[str] = []

    def model_info(self: object, repository: str, **options: object) -> SimpleNamespace:
        asked.append(repository)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return asked


def the_hub_has(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    siblings = [SimpleNamespace(rfilename=name, size=7, blob_id="b", lfs=None) for name in names]
    info = SimpleNamespace(sha=SHA, siblings=siblings)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)


def the_hub_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def model_info(*arguments: object, **options: object) -> SimpleNamespace:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("files", CONTENT, ids=CONTENT_IDS)
def test_each_place_is_preferred_to_those_after_it(
    files: HubFiles, places: dict[str, Path], tmp_path: Path, downloads: list[str]
) -> None:
    given = fill(tmp_path / "given", CONTENT[files])
    in_assets = fill(places["assets_dir"] / files.assets_name, CONTENT[files]) / files.subfolder
    in_package = fill(places["embedded"] / files.assets_name, CONTENT[files]) / files.subfolder
    in_cache = cached_repository(places["cache_dir"], files, CONTENT[files]) / files.subfolder

    assert locate(files, given=given, **places) == given
    assert locate(files, **places) == in_assets
    assert locate(files, **{**places, "assets_dir": None}) == in_package
    assert locate(files, **{**places, "assets_dir": None, "embedded": tmp_path}) == in_cache
    assert downloads == []


def test_the_folders_of_an_assets_folder_carry_the_names_of_the_repositories() -> None:
    assert WEIGHTS.assets_name == "Cosmos-1.0-Diffusion-7B-Text2World"
    assert TOKENIZER.assets_name == "Cosmos-1.0-Tokenizer-CV8x8x8"
    assert TEXT.assets_name == "google-t5/t5-11b"
    assert text_encoder_of(NANO).assets_name == "Cosmos-Nano-T5"


def test_a_relative_path_is_looked_up_in_the_assets_folder_before_the_working_folder(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    here = fill(tmp_path / "work" / "mine", ("decoder.jit",))
    assert locate(TOKENIZER, given=Path("mine"), **places).resolve() == here
    there = fill(places["assets_dir"] / "mine", ("decoder.jit",))
    assert locate(TOKENIZER, given=Path("mine"), **places) == there
    assert locate(TOKENIZER, given=here, **places) == here


def test_a_given_file_is_taken_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path, ("model.pt",))
    assert locate(WEIGHTS, given=tmp_path / "model.pt") == tmp_path / "model.pt"


def test_a_given_path_that_does_not_exist_is_an_error_even_if_the_cache_has_the_files(
    places: dict[str, Path],
) -> None:
    cached_repository(places["cache_dir"], WEIGHTS, CONTENT[WEIGHTS])
    with pytest.raises(LocateError, match=r"--nemo_checkpoint absent/weights does not exist") as caught:
        locate(WEIGHTS, given=Path("absent/weights"), **places)
    assert str(places["assets_dir"] / "absent/weights") in str(caught.value)
    assert WEIGHTS.repository in str(caught.value)


@pytest.mark.parametrize("files", CONTENT, ids=CONTENT_IDS)
def test_the_documented_name_is_looked_for_as_if_it_were_left_out(
    files: HubFiles, places: dict[str, Path], downloads: list[str]
) -> None:
    name = Path(files.assets_name)
    assert locate(files, given=name, download=False, **places) is None
    with pytest.raises(LocateError, match="no route to host"):
        locate(files, given=name, **places)
    assert downloads == [files.repository]
    cached = cached_repository(places["cache_dir"], files, CONTENT[files]) / files.subfolder
    assert locate(files, given=name, **places) == cached
    there = fill(places["assets_dir"] / name, CONTENT[files])
    assert locate(files, given=name, **places) == there


def test_a_part_that_a_model_comes_without_has_no_documented_name(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is empty, as a folder's own is."""
    monkeypatch.chdir(tmp_path)
    assert locate(upsampler_of(NANO), given=Path("."), **{**places, "assets_dir": None}) == Path(".")


def test_an_assets_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LocateError, match=r"--cosmos_assets_dir .*absent is no folder"):
        locate(WEIGHTS, assets_dir=tmp_path / "absent")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (WEIGHTS, ("model.pt",)),
        (TOKENIZER, ("encoder.jit", "mean_std.pt")),
        (TOKENIZER, ("decoder.jit",)),
        (TEXT, ("config.json", "tokenizer.json")),
    ],
)
def test_a_cached_repository_without_the_needed_files_is_downloaded(
    files: HubFiles, names: tuple[str, ...], places: dict[str, Path], downloads: list[str]
) -> None:
    cached_repository(places["cache_dir"], files, names)
    with pytest.raises(LocateError):
        locate(files, **places)
    assert downloads == [files.repository]


def test_a_download_that_was_stopped_is_taken_up_again_and_its_rest_used_if_that_fails(
    places: dict[str, Path],
    downloads: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached = cached_repository(places["cache_dir"], WEIGHTS, CONTENT[WEIGHTS]) / "nemo"
    fill(places["cache_dir"] / WEIGHTS.hub_name / "blobs", ("abc.incomplete",))
    assert locate(WEIGHTS, **places) == cached
    assert downloads == [WEIGHTS.repository] and "no route to host" in caplog.text
    offline(monkeypatch)
    assert locate(WEIGHTS, **places) == cached
    assert len(downloads) == 1


def test_the_folder_of_a_download_is_returned(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def snapshot_download(repository: str, *, local_files_only: bool = False, **options: object) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("nothing there")
        asked[repository] = options
        return str(fill(tmp_path / "fresh", CONTENT[TEXT]))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    the_hub_has(monkeypatch, *CONTENT[TEXT], "tf_model.h5")
    assert locate(TEXT, **places) == tmp_path / "fresh"
    assert asked[TEXT.repository]["cache_dir"] == places["cache_dir"]
    assert asked[TEXT.repository]["allow_patterns"] == list(CONTENT[TEXT])


def test_a_repository_without_the_needed_files_is_an_error(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    the_hub_has(monkeypatch, "model.pt")
    with pytest.raises(LocateError, match=r"on the hub has no nemo/ folder.*--nemo_checkpoint"):
        locate(WEIGHTS, **places)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_error("GatedRepoError", 401), r"accept its licence at https://huggingface.co/nvidia/.*HF_TOKEN"),
        (hub_error("GatedRepoError", 403), r"accept its licence at https://huggingface.co/nvidia/.*HF_TOKEN"),
        (hub_error("RepositoryNotFoundError", 401), r"HTTP 401.*HF_TOKEN"),
        (hub_error("RepositoryNotFoundError", 404), r"cannot be downloaded \(404 from the hub"),
        (ConnectionError("no route to host"), r"cannot be downloaded \(no route to host\)"),
        (OSError(28, "No space left on device"), r"No space left on device"),
    ],
)
def test_a_download_that_fails_says_why_and_the_way_out_in_one_sentence(
    error: Exception, message: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    the_hub_fails(monkeypatch, error)
    with pytest.raises(LocateError) as caught:
        locate(WEIGHTS, **places)
    text = str(caught.value)
    assert re.search(message, text) and WEIGHTS.repository in text
    assert f"python download/nemo.py --models {BIG.name}" in text
    assert "--nemo_checkpoint" in text and "\n" not in text


@pytest.mark.parametrize("files", CONTENT, ids=CONTENT_IDS)
def test_offline_and_missing_names_flag_repository_and_command(
    files: HubFiles, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, downloads: list[str]
) -> None:
    offline(monkeypatch)
    with pytest.raises(LocateError) as caught:
        locate(files, **places)
    door = "nemo.py" if files.model == BIG.name else "diffusion.py"
    for part in (files.repository, files.flag, "HF_HUB_OFFLINE", f"python download/{door}"):
        assert part in str(caught.value)
    assert downloads == []


@pytest.mark.parametrize("part", [weights_of, tokenizer_of, text_encoder_of])
def test_the_nano_files_are_never_asked_from_the_hub(
    part: Callable[..., HubFiles], places: dict[str, Path], downloads: list[str]
) -> None:
    with pytest.raises(LocateError, match="cosmos-nemo standin Cosmos-Nano-Text2World DIR"):
        locate(part(NANO), **places)
    assert downloads == []


@pytest.mark.parametrize("is_offline", [False, True])
@pytest.mark.parametrize("card", [BIG, NANO], ids=lambda card: card.name)
def test_without_downloads_missing_files_are_none_and_wrong_paths_still_errors(
    card: ModelCard,
    is_offline: bool,
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    downloads: list[str],
) -> None:
    if is_offline:
        offline(monkeypatch)
    files = weights_of(card)
    assert locate(files, download=False, **places) is None
    with pytest.raises(LocateError):
        locate(files, download=False, given=Path("absent"), **places)
    cached = cached_repository(places["cache_dir"], files, ("nemo/metadata.json",)) / "nemo"
    fill(places["cache_dir"] / files.hub_name / "blobs", ("abc.incomplete",))
    can_go_on = not is_offline and card is BIG
    assert locate(files, download=False, **places) == (None if can_go_on else cached)
    assert downloads == []


def test_a_cache_that_is_found_needs_no_warning(
    places: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    cached_repository(places["cache_dir"], TEXT, CONTENT[TEXT])
    with caplog.at_level(logging.WARNING):
        locate(TEXT, **places)
    assert not caplog.records


@pytest.mark.parametrize("part", [weights_of, tokenizer_of, text_encoder_of, upsampler_of])
def test_missing_predict1_files_name_their_own_download(
    part: Callable[..., HubFiles], places: dict[str, Path]
) -> None:
    with pytest.raises(LocateError) as caught:
        locate(part(PREDICT1), **places)
    command = "--model_sizes 14B --family predict1 --model_types Text2World --checkpoint_dir checkpoints"
    assert f"python download/diffusion.py {command}" in str(caught.value)
    assert "or --cosmos_assets_dir" in str(caught.value)
    assert "disable_guardrail" not in str(caught.value)


@pytest.mark.parametrize("part", [guardrail_of, text_guard_of])
@pytest.mark.parametrize("card", [BIG, PREDICT1], ids=lambda card: card.name)
def test_missing_guardrails_name_the_flag_that_does_without(
    part: Callable[..., HubFiles], card: ModelCard, places: dict[str, Path]
) -> None:
    with pytest.raises(LocateError) as caught:
        locate(part(card), **places)
    assert part(card).flag in str(caught.value) and "--disable_guardrail" in str(caught.value)


def test_only_the_needed_files_of_a_predict1_model_are_fetched(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def snapshot_download(repository: str, *, local_files_only: bool = False, **options: object) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("nothing there")
        asked.append(options["allow_patterns"])
        return str(fill(tmp_path / "fresh", ("model.pt", "config.json")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    the_hub_has(monkeypatch, "README.md", "config.json", "guardrail/a", "model.pt")
    assert locate(weights_of(PREDICT1), **places) == tmp_path / "fresh"
    assert asked == [["config.json", "model.pt"]]


def test_missing_weights_of_ones_own_say_where_to_put_them(
    places: dict[str, Path], downloads: list[str]
) -> None:
    with pytest.raises(LocateError) as caught:
        locate(weights_of(OWN), **places)
    text = str(caught.value)
    assert f"put model.pt or the NeMo folder at {places['assets_dir'] / OWN.name}" in text
    assert "standin" not in text and downloads == []
    with pytest.raises(LocateError, match=rf"at checkpoints/{OWN.name} and pass --cosmos_assets_dir"):
        locate(weights_of(OWN), **{**places, "assets_dir": None})


def test_weights_of_ones_own_are_found_in_the_assets_folder(places: dict[str, Path]) -> None:
    folder = fill(places["assets_dir"] / OWN.name, ("model.pt",))
    assert locate(weights_of(OWN), **places) == folder


def test_the_shared_parts_of_a_post_trained_model_come_through_its_base_models_door(
    places: dict[str, Path],
) -> None:
    with pytest.raises(LocateError, match=r"diffusion.py --model_sizes 7B --model_types Text2World"):
        locate(tokenizer_of(OWN), **places)


def test_a_folder_whose_download_was_stopped_is_an_error(places: dict[str, Path]) -> None:
    files = weights_of(PREDICT1)
    folder = fill(places["assets_dir"] / files.assets_name, ("config.json",))
    fill(folder, (".cache/huggingface/download/abc.incomplete",))
    with pytest.raises(LocateError, match=r"was not downloaded to the end: there is no model.pt"):
        locate(files, **places)
    fill(folder, ("model.pt",))
    assert locate(files, **places) == folder


def test_the_upsampler_of_a_task_that_starts_from_images_is_one_that_sees() -> None:
    for name, card in CARDS.items():
        if "Predict2" in name:
            continue
        files = upsampler_of(card)
        sees = "Text2World" not in name
        assert ("consolidated.safetensors" in files.allow) == sees, name
        if card.sources.upsampler:
            assert (files.assets_name == "Pixtral-12B") == sees, name
    assert "UpsamplePrompt1" in upsampler_of(PREDICT1).repository


def test_what_a_model_downloads_is_every_part_that_it_has_once() -> None:
    repositories = [files.repository for files in downloads_of(VIDEO)]
    assert len(set(repositories)) == len(repositories) == 7
    assert {"mistralai/Pixtral-12B-2409", "mistral-community/pixtral-12b"} < set(repositories)
    assert "mistral-community/pixtral-12b" not in {files.repository for files in downloads_of(BIG)}
    assert len(downloads_of(NANO)) == 3


@pytest.mark.parametrize("is_offline", [False, True])
def test_the_tokenizer_that_the_cache_has_elsewhere_is_put_beside_the_weights(
    is_offline: bool, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, downloads: list[str]
) -> None:
    if is_offline:
        offline(monkeypatch)
    files = upsampler_of(VIDEO)
    weights = cached_repository(places["cache_dir"], files, ("params.json", "consolidated.safetensors"))
    tokenizer = places["cache_dir"] / "models--mistral-community--pixtral-12b"
    fill(tokenizer, (f"snapshots/{SHA}/tokenizer.json",))
    fill(tokenizer, ("refs/main",))
    (tokenizer / "refs/main").write_text(SHA)
    assert locate(files, download=False, **places) is None
    assert not (weights / "tokenizer.json").exists(), "a dry run changes nothing"
    assert locate(files, **places) == weights
    assert (weights / "tokenizer.json").is_file() and downloads == []


def test_missing_pixtral_files_say_which_repository_has_the_tokenizer(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    files = upsampler_of(VIDEO)
    cached_repository(places["cache_dir"], files, ("params.json", "consolidated.safetensors"))
    with pytest.raises(LocateError) as caught:
        locate(files, **places)
    said = str(caught.value)
    assert "tokenizer.json of mistral-community/pixtral-12b" in said and "--prompt_upsampler_dir" in said
    assert "python download/diffusion.py --model_sizes 7B --model_types Video2World" in said


def test_a_download_of_pixtral_that_stopped_before_its_tokenizer_is_not_taken(
    places: dict[str, Path],
) -> None:
    files = upsampler_of(VIDEO)
    folder = fill(places["assets_dir"] / "Pixtral-12B", ("params.json", "consolidated.safetensors"))
    assert locate(files, **places) == folder, "by hand: what lies there is judged by who reads it"
    fill(folder, (".cache/huggingface/download/x.incomplete",))
    with pytest.raises(LocateError, match=r"no tokenizer\.json \(of mistral-community/pixtral-12b\)"):
        locate(files, **places)


@pytest.mark.parametrize("card", [NANO_VIDEO, NANO_BETWEEN], ids=lambda card: card.name)
def test_a_nano_model_that_the_package_lacks_says_so_unless_a_folder_has_it(
    card: ModelCard, places: dict[str, Path], downloads: list[str]
) -> None:
    files = weights_of(card)
    with pytest.raises(LocateError) as caught:
        locate(files, **places)
    assert f"{card.name} is not on the hub, and this installation of the package lacks it" in str(
        caught.value
    )
    assert f"cosmos-nemo standin {card.name} DIR" in str(caught.value) and downloads == []
    assert "train it on a GPU with `cosmos-nemo make-nano DIR`" in str(caught.value)
    folder = fill(places["embedded"] / card.name, ("nemo/.metadata",)) / "nemo"
    assert locate(files, **places) == folder
    for part in (tokenizer_of, text_encoder_of):
        assert part(card).repository == part(NANO).repository


@pytest.mark.parametrize(
    "name",
    ["Cosmos-Predict1-7B-WorldInterpolator_post-trained", "Cosmos-Predict1-7B-Video2World_post-trained-lora"],
)
def test_a_place_for_weights_of_ones_own_says_where_to_put_them(name: str, places: dict[str, Path]) -> None:
    with pytest.raises(LocateError, match=rf"put model\.pt or the NeMo folder at .*{name}"):
        locate(weights_of(CARDS[name]), **places)


PREDICT2 = [card for name, card in CARDS.items() if re.match("Cosmos-Predict2-.*-Video2World", name)]
TWO = CARDS["Cosmos-Predict2-2B-Video2World"]
REFINER, OTHER_REFINER = "nvidia/Cosmos-Reason1-7B", "Qwen/Qwen2.5-VL-7B-Instruct"
EVERY_PREDICT2 = pytest.mark.parametrize("card", PREDICT2, ids=lambda card: card.name)


@EVERY_PREDICT2
def test_of_predict2_each_model_has_its_own_file_of_a_shared_repository(card: ModelCard) -> None:
    size, variant = re.fullmatch(r"Cosmos-Predict2-(2B|14B)-Video2World(.*)", card.name).groups()
    files = weights_of(card)
    assert files.repository == f"nvidia/Cosmos-Predict2-{size}-Video2World"
    assert files.assets_name == f"Cosmos-Predict2-{size}-Video2World"
    own = f"model{variant or '-720p-16fps'}.pt"
    assert own in files.allow and own in files.needs[0]
    assert not any("natten" in name for name in files.allow)
    assert [other.name for other in PREDICT2 if variant and weights_of(other).allow == files.allow] == [
        f"Cosmos-Predict2-{other}-Video2World{variant}" for other in ("2B", "14B") if variant
    ]


@EVERY_PREDICT2
def test_the_download_that_predict2s_errors_name_is_one_that_has_the_model(card: ModelCard) -> None:
    size = "14B" if "-14B-" in card.name else "2B"
    assert door_for(card.name).startswith(f"python download/diffusion.py --model_sizes {size}")
    assert "--model_types Video2World" in door_for(card.name)


@EVERY_PREDICT2
def test_predict2_needs_wans_tokenizer_and_a_refiner_that_sees(card: ModelCard) -> None:
    assert tokenizer_of(card).assets_name == "Wan-AI/Wan2.1-T2V-1.3B"
    assert upsampler_of(card).assets_name == REFINER
    repositories = [files.repository for files in downloads_of(card)]
    assert len(set(repositories)) == len(repositories) == 6
    assert "mistralai/Pixtral-12B-2409" not in repositories


@pytest.mark.parametrize("size", ["2B", "14B"])
def test_a_text2image_of_predict2_needs_no_refiner(size: str) -> None:
    card = CARDS[f"Cosmos-Predict2-{size}-Text2Image"]
    assert [files.repository for files in downloads_of(card)] == [
        *(f"nvidia/{card.name}", "Wan-AI/Wan2.1-T2V-1.3B", "google-t5/t5-11b"),
        *("nvidia/Cosmos-Guardrail1", "meta-llama/Llama-Guard-3-8B"),
    ]
    assert weights_of(card).needs == (("model.pt",),)
    assert door_for(card.name).startswith(f"python download/diffusion.py --model_sizes {size}")
    assert "--model_types Text2Image" in door_for(card.name)


def test_the_refiner_may_be_another_model_that_is_named(places: dict[str, Path], tmp_path: Path) -> None:
    fill(places["assets_dir"] / OTHER_REFINER, ("config.json",))
    given = Path(OTHER_REFINER)
    files = upsampler_of(TWO, given)
    assert files.repository == OTHER_REFINER
    assert locate(files, given=given, **places) == places["assets_dir"] / OTHER_REFINER
    assert upsampler_of(TWO, tmp_path / "mine").repository == REFINER


def test_a_refiner_that_is_named_and_not_here_is_looked_for_on_the_hub(
    places: dict[str, Path], downloads: list[str]
) -> None:
    given = Path(OTHER_REFINER)
    files = upsampler_of(TWO, given)
    cached = cached_repository(places["cache_dir"], files, ("config.json", "tokenizer.json", "a.safetensors"))
    assert locate(files, given=given, **places) == cached
    with pytest.raises(LocateError, match="--prompt_upsampler_dir"):
        locate(files, given=given, **{**places, "cache_dir": places["embedded"]})
    assert downloads == [OTHER_REFINER]
    with pytest.raises(LocateError, match="--prompt_upsampler_dir Pixtral-12B does not exist"):
        locate(upsampler_of(TWO, Path("Pixtral-12B")), given=Path("Pixtral-12B"), **places)


VARIANT = CARDS["Cosmos-Predict2-2B-Video2World-480p-16fps"]


@pytest.mark.parametrize(
    ("card", "names", "found"),
    [
        (TWO, ("model.pt", "model-720p-16fps.pt"), "model.pt"),
        (TWO, ("model-720p-16fps.pt", "model-480p-16fps.pt"), "model-720p-16fps.pt"),
        (VARIANT, ("model-720p-16fps.pt", "model-480p-16fps.pt"), "model-480p-16fps.pt"),
    ],
)
def test_of_a_folder_with_several_networks_the_cards_own_is_taken(
    card: ModelCard, names: tuple[str, ...], found: str, tmp_path: Path
) -> None:
    assert network_in(fill(tmp_path, names), card) == tmp_path / found


def test_a_file_and_a_folder_of_another_layout_are_taken_as_they_are(tmp_path: Path) -> None:
    for names in (("model-480p-10fps.pt",), ("nemo/metadata.json",), ("network.safetensors",)):
        folder = fill(tmp_path / names[0].partition(".")[0].replace("/", "_"), names)
        assert network_in(folder / names[0], VARIANT) == folder / names[0]
        if "model" not in names[0]:
            assert network_in(folder, VARIANT) == folder
    assert network_in(fill(tmp_path / "predict1", ("model.pt",)), PREDICT1) == tmp_path / "predict1"


@pytest.mark.parametrize("other", ["model-720p-16fps.pt", "model-480p-16fps-natten.pt"])
def test_a_folder_with_other_networks_alone_names_them_and_the_ways_out(tmp_path: Path, other: str) -> None:
    with pytest.raises(LocateError) as caught:
        network_in(fill(tmp_path, (other,)), VARIANT)
    said = str(caught.value)
    assert f"holds {other}, but {VARIANT.name} is model-480p-16fps.pt" in said
    assert ("pass the path of a file" in said) == ("natten" not in other)
    assert "python download/diffusion.py" in said


def test_a_network_with_sparse_attention_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ("model-720p-16fps-natten.pt",))
    with pytest.raises(LocateError, match=r"sparse attention \(NATTEN\), which is not built"):
        network_in(tmp_path / "model-720p-16fps-natten.pt", VARIANT)


def test_a_refiner_that_no_download_brings_is_named_with_its_own_command(places: dict[str, Path]) -> None:
    files = upsampler_of(VARIANT, Path("Qwen/Qwen2.5-VL-7B-Instruct"))
    assert files.repository == "Qwen/Qwen2.5-VL-7B-Instruct" == files.assets_name
    assert upsampler_of(VARIANT, Path("elsewhere")).repository == "nvidia/Cosmos-Reason1-7B"
    assert "hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir" in _ways_out(files)


def test_a_model_without_a_diffusion_decoder_needs_neither_it_nor_its_tokenizer() -> None:
    names = [files.assets_name for files in downloads_of(CARDS["Cosmos-Nano-Autoregressive"])]
    assert names == ["Cosmos-Nano-Autoregressive", "Cosmos-Nano-Tokenizer-DV8x16x16"]
