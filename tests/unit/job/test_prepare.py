import json
import logging
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from cosmos_nemo.catalog import CARDS, CatalogError
from cosmos_nemo.checkpoint.fingerprint import fingerprint
from cosmos_nemo.checkpoint.locate import LocateError
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.cli import Invocation
from cosmos_nemo.cli.invocation import Batch
from cosmos_nemo.job import PERSON_ERRORS, Job, describe, prepare
from cosmos_nemo.job import files as files_module
from cosmos_nemo.job.stages import denoise_stage, pipeline_of, text_encoder_stage, tokenizer_stage
from cosmos_nemo.models.common.missing import BackendError
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.plan import Plan
from cosmos_nemo.request import (
    InterpolationRequest,
    RequestError,
    Setup,
    Text2WorldRequest,
    Video2WorldRequest,
)
from cosmos_nemo.stages.media import file_digest, write_video
from cosmos_nemo.stages.token_generation import LogitsError
from tests.fakes import CPU

NANO = CARDS["Cosmos-Nano-Text2World"]
RELEASED = "Cosmos-1.0-Diffusion-7B-Text2World"
"""Its files are nowhere here."""
PARTS = ("weights", "tokenizer", "text_encoder")
"""What the nano card needs: it comes without guardrails and without a prompt upsampler."""
REQUEST = Text2WorldRequest(prompt="a cat", height=32, width=48, num_frames=9, num_steps=2)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cosmos_nemo.tools.standin import write_standin

    folder = tmp_path_factory.mktemp("job") / "assets"
    write_standin([NANO], folder, seed=0, layout="folder")
    return folder


@pytest.fixture
def assets(written: Path, tmp_path: Path) -> Path:
    """Each test's own, of hard links: a file that changes must be removed first."""
    return Path(shutil.copytree(written, tmp_path / "assets", copy_function=os.link))


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def job_of(
    assets: Path | None,
    *,
    ranks: Ranks | None = None,
    environ: dict[str, str] | None = None,
    dry_run: bool = False,
    request: Text2WorldRequest | None = None,
    batch: Batch | None = None,
    **setup: Any,
) -> Job:
    request = request or REQUEST
    if assets is not None:
        request = replace(request, video_path=assets.parent / "out" / "cat.npy")
    invocation = Invocation(
        setup=Setup(model=setup.pop("model", NANO.name), assets_dir=assets, **setup),
        request=request,
        batch=batch,
        dry_run=dry_run,
    )
    return prepare(invocation, ranks=ranks or Ranks(), environ=environ or {})


def weights_of(assets: Path) -> Path:
    return assets / NANO.name / "nemo"


def tokenizer_of(assets: Path) -> Path:
    return assets / "Cosmos-Nano-Tokenizer-CV8x8x8"


def say(folder: Path, fields: dict[str, Any]) -> None:
    (folder / "card.json").write_text(json.dumps(fields))


def test_without_card_files_the_card_is_the_named_one(assets: Path) -> None:
    job = job_of(assets)
    assert job.card == NANO
    assert (job.plan, job.device, job.backend.name) == (Plan(), CPU, "torch")
    assert job.request.prompt == "a cat"
    assert tuple(job.files.found()) == job.needs == PARTS
    assert (job.files.weights, job.files.tokenizer) == (weights_of(assets), tokenizer_of(assets))


def test_the_card_files_of_weights_and_tokenizer_are_merged(assets: Path) -> None:
    say(weights_of(assets), {"video": {"max_frames": 17}, "network": {"base_fps": 30.0}})
    say(tokenizer_of(assets), {"tokenizer": {"statistics_frames": 16}, "video": {"fps": 12}})
    card = job_of(assets).card
    assert (card.video.max_frames, card.video.fps, card.network.base_fps) == (17, 12, 30.0)
    assert card.video.min_frames == NANO.video.min_frames
    assert card.name == NANO.name


def test_a_request_must_fit_the_card_with_its_card_file(assets: Path) -> None:
    fits = replace(REQUEST, num_frames=33)
    assert job_of(assets, request=fits).request.num_frames == 33
    say(weights_of(assets), {"video": {"max_frames": 17}})
    with pytest.raises(RequestError, match=r"--num_video_frames 33 .* from 9 to 17"):
        job_of(assets, request=fits)
    (weights_of(assets) / "card.json").unlink()
    say(tokenizer_of(assets), {"video": {"max_frames": 25}})
    with pytest.raises(RequestError, match="from 9 to 25"):
        job_of(assets, request=fits)


def test_a_card_file_may_widen_what_the_named_card_refuses(assets: Path) -> None:
    request = replace(REQUEST, num_frames=249)
    with pytest.raises(RequestError):
        job_of(assets, request=request)
    say(weights_of(assets), {"video": {"max_frames": 249}})
    assert job_of(assets, request=request).card.video.max_frames == 249


@pytest.mark.parametrize("place", [weights_of, tokenizer_of])
def test_a_card_file_with_an_unknown_field_is_refused(assets: Path, place: Any) -> None:
    say(place(assets), {"network": {"layers": 4}})
    with pytest.raises(CatalogError, match=r"network\.layers"):
        job_of(assets)


def test_a_card_file_with_sizes_that_the_tensors_do_not_have_is_refused(assets: Path) -> None:
    say(weights_of(assets), {"network": {"num_layers": 3}})
    with pytest.raises(CheckpointError):
        job_of(assets)


@pytest.mark.parametrize(
    ("part", "says"),
    [("network", "num_layers"), ("tokenizer", "channels"), ("text encoder", "d_model")],
)
def test_a_file_of_another_model_is_refused_in_a_dry_run_too(assets: Path, part: str, says: str) -> None:
    if part == "text encoder":
        config = assets / "Cosmos-Nano-T5" / "config.json"
        text = json.loads(config.read_text()) | {"d_model": 32}
        config.unlink()
        config.write_text(json.dumps(text))
    else:
        say(weights_of(assets), {part: {says: 8}})
    for dry_run in (False, True):
        with pytest.raises(CheckpointError):
            job_of(assets, dry_run=dry_run)


def test_an_unknown_model_and_an_unknown_back_end_are_errors_for_people() -> None:
    for setup in ({"model": "Cosmos-9B"}, {"backend": "jax"}, {"backend": "te"}, {"num_devices": 0}):
        with pytest.raises(PERSON_ERRORS):
            job_of(None, dry_run=True, **setup)
    assert set(PERSON_ERRORS) == {
        *(RequestError, CatalogError, CheckpointError, LocateError, BackendError, LogitsError)
    }
    assert all(issubclass(error, ValueError) for error in PERSON_ERRORS)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """(flag, download) of every look for files; only a download finds any."""
    seen: list[tuple[str, bool]] = []

    def locate(files: Any, *, download: bool, **_: Any) -> Path | None:
        seen.append((files.flag, download))
        if download:
            raise LocateError("downloaded")
        return None

    monkeypatch.setattr(files_module, "locate", locate)
    return seen


FLAGS = ["--nemo_checkpoint", "--tokenizer_dir", "--text_encoder_dir"]
HUB: dict[str, Any] = {"model": RELEASED, "guardrails": False}
"""A model that could be downloaded, and needs no more than the nano one."""


def test_a_run_without_files_downloads_after_all_else_is_checked(
    looked: list[tuple[str, bool]], tmp_path: Path
) -> None:
    with pytest.raises(LocateError, match="downloaded"):
        job_of(None, **HUB, request=replace(REQUEST, video_path=tmp_path / "cat.npy"))
    assert looked == [(flag, False) for flag in FLAGS] + [(FLAGS[0], True)]


@pytest.mark.parametrize(
    ("request_", "setup"),
    [
        (replace(REQUEST, height=33), {}),
        (replace(REQUEST, sampler="RES-2mid", num_steps=1), {}),
        (REQUEST, {"cp_size": 3}),
        (REQUEST, {"num_devices": 2}),
        (REQUEST, {"backend": "te"}),
        (replace(REQUEST, video_path=Path(__file__) / "cat.npy"), {}),
    ],
    ids=["size", "steps", "plan", "ranks", "back end", "output"],
)
def test_nothing_is_downloaded_for_a_request_that_cannot_be_served(
    looked: list[tuple[str, bool]], tmp_path: Path, request_: Text2WorldRequest, setup: dict[str, Any]
) -> None:
    if request_.video_path == REQUEST.video_path:
        request_ = replace(request_, video_path=tmp_path / "cat.npy")
    with pytest.raises((RequestError, BackendError)):
        job_of(None, request=request_, **HUB, **setup)
    assert not any(download for _, download in looked)


def test_a_dry_run_downloads_nothing_and_writes_nothing(
    looked: list[tuple[str, bool]], tmp_path: Path
) -> None:
    request = replace(REQUEST, video_path=tmp_path / "out" / "cat.npy")
    job = job_of(None, **HUB, dry_run=True, request=request)
    assert looked == [(flag, False) for flag in FLAGS]
    assert job.files.found() == {}
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_files_are_here_looks_once_and_reads_no_weight(
    assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = files_module.locate

    def locate(files: Any, *, download: bool, **options: Any) -> Path | None:
        seen.append(download)
        return real(files, download=download, **options)

    def read(*_: object) -> torch.Tensor:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(files_module, "locate", locate)
    monkeypatch.setattr(Checkpoint, "read", read)
    assert tuple(job_of(assets).files.found()) == PARTS
    assert len(seen) == 3


def test_only_rank_0_which_writes_the_video_must_be_able_to(assets: Path) -> None:
    # The output's folder is a file.
    (assets.parent / "out").write_text("")
    with pytest.raises(RequestError, match="--video_save_path"):
        job_of(assets, ranks=Ranks(num_ranks=2))
    assert job_of(assets, ranks=Ranks(rank=1, num_ranks=2)).plan == Plan(cfg=2)


def test_files_downloaded_late_bring_their_card_file(
    assets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = files_module.locate
    say(weights_of(assets), {"video": {"max_frames": 17}})

    def late(files: Any, *, download: bool, **options: Any) -> Path | None:
        return real(files, **options | {"assets_dir": assets}, download=False) if download else None

    monkeypatch.setattr(files_module, "locate", late)
    output = tmp_path / "cat.npy"
    assert job_of(None, request=replace(REQUEST, video_path=output)).card.video.max_frames == 17
    with pytest.raises(RequestError, match="from 9 to 17"):
        job_of(None, request=replace(REQUEST, video_path=output, num_frames=33))


def test_paths_that_are_given_are_taken(assets: Path, tmp_path: Path) -> None:
    given = {
        "nemo_checkpoint": tmp_path / "w",
        "tokenizer_dir": tmp_path / "k",
        "text_encoder_dir": tmp_path / "t",
    }
    weights_of(assets).rename(given["nemo_checkpoint"])
    tokenizer_of(assets).rename(given["tokenizer_dir"])
    (assets / "Cosmos-Nano-T5").rename(given["text_encoder_dir"])
    files = job_of(assets, **given).files
    assert (files.weights, files.tokenizer, files.text_encoder) == tuple(given.values())


def test_the_cache_folder_of_the_text_encoder_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(
        files_module, "locate", lambda files, **options: seen.update({files.flag: options.get("cache_dir")})
    )
    job_of(None, dry_run=True, t5_cache_dir=Path("t5"))
    assert seen == {"--nemo_checkpoint": None, "--tokenizer_dir": None, "--text_encoder_dir": Path("t5")}


def test_all_started_ranks_take_part_unless_fewer_are_asked_for(assets: Path) -> None:
    four = Ranks(num_ranks=4)
    assert job_of(assets, ranks=four).plan == Plan(cfg=2, cp=2)
    assert job_of(assets, ranks=four, num_devices=2, cp_size=2).plan == Plan(cp=2)
    assert job_of(assets, ranks=four, tensor_parallel=2, cfg_parallel="off").plan == Plan(cp=2, tp=2)
    alone = replace(REQUEST, guidance=0.0)
    assert job_of(assets, ranks=four, request=alone).plan == Plan(cp=4)


def test_a_number_of_steps_that_the_sampler_cannot_take_is_refused_by_flag(assets: Path) -> None:
    with pytest.raises(RequestError, match=r"--num_steps 1 --sampler RES-2mid: .*Ask for 2 or more"):
        job_of(assets, request=replace(REQUEST, sampler="RES-2mid", num_steps=1))


def test_more_ranks_than_were_started_are_refused_with_the_way_to_start_them(assets: Path) -> None:
    with pytest.raises(RequestError) as refused:
        job_of(assets, ranks=Ranks(num_ranks=2), num_devices=4)
    said = str(refused.value)
    assert "--num_devices 4 is more than the 2 rank(s) started" in said
    assert "torchrun --nproc_per_node=4" in said and "--num_devices 2" in said


def test_a_dry_run_plans_for_ranks_that_are_not_there() -> None:
    assert job_of(None, dry_run=True, num_devices=8, cp_size=8).plan == Plan(cp=8)
    with pytest.raises(RequestError, match="--cp_size 3"):
        job_of(None, dry_run=True, num_devices=8, cp_size=3)


def test_heads_that_do_not_divide_are_those_of_the_card_file(assets: Path) -> None:
    with pytest.raises(RequestError, match="--tensor_parallel 3 does not divide the 8 heads"):
        job_of(assets, dry_run=True, num_devices=3, tensor_parallel=3)


@pytest.mark.parametrize(
    ("visible", "local_rank", "hosted", "index"),
    [(1, 0, True, 0), (1, 3, False, 0), (4, 3, True, 3), (4, 3, False, 3), (2, 0, True, 0)],
)
def test_a_rank_takes_its_own_gpu_or_the_only_one_that_slurm_shows_it(
    assets: Path, monkeypatch: pytest.MonkeyPatch, visible: int, local_rank: int, hosted: bool, index: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    ranks = Ranks(rank=5, num_ranks=8, local_rank=local_rank, store_is_hosted=hosted)
    job = job_of(assets, ranks=ranks, backend="torch")
    assert job.device == torch.device("cuda", index)
    assert (job.dtype, job.text_encoder_dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize(("visible", "hosted"), [(2, True), (2, False), (1, True)])
def test_more_ranks_on_a_host_than_gpus_are_refused(
    assets: Path, monkeypatch: pytest.MonkeyPatch, visible: int, hosted: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    with pytest.raises(RequestError, match=rf"which shows {visible} GPU.* --nproc_per_node={visible}\)"):
        job_of(
            assets,
            ranks=Ranks(rank=2, num_ranks=4, local_rank=2, store_is_hosted=hosted),
            backend="torch",
        )


def test_on_the_cpu_everything_is_float32_but_a_text_encoder_that_is_asked_for(assets: Path) -> None:
    job = job_of(assets)
    assert (job.dtype, job.text_encoder_dtype) == (torch.float32, torch.float32)
    asked = job_of(assets, text_encoder_dtype="bfloat16")
    assert (asked.dtype, asked.text_encoder_dtype) == (torch.float32, torch.bfloat16)


def test_the_back_end_is_chosen_by_flag_and_environment(
    assets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    job_of(assets, environ={"NVTE_FUSED_ATTN": "0"})
    assert "NVTE_FUSED_ATTN=0" in caplog.text
    job_of(assets, backend="torch")
    assert "asked for" in caplog.text


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"COSMOS_NEMO_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c/text"),
        ({"COSMOS_NEMO_CACHE": "", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, None),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/cosmos_nemo/text"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/cosmos_nemo/text"),
        ({"HOME": "/h"}, "/h/.cache/cosmos_nemo/text"),
        ({}, None),
    ],
)
def test_the_text_cache_is_the_projects_then_the_users_folder_or_none(
    environ: dict[str, str], folder: str | None
) -> None:
    job = job_of(None, dry_run=True, environ=environ)
    assert job.text_cache == (Path(folder) if folder is not None else None)


def test_the_facts_say_how_to_make_the_video_again(assets: Path) -> None:
    job = job_of(assets, ranks=Ranks(num_ranks=4), text_encoder_dtype="bfloat16")
    facts = json.loads(json.dumps(job.facts(job.request)))
    assert facts["model"] == NANO.name
    request = facts["request"]
    assert (request["prompt"], request["seed"], request["num_frames"]) == ("a cat", 1, 9)
    assert request["video_path"] == str(job.request.video_path)
    again = Text2WorldRequest(**request | {"video_path": Path(request["video_path"])})
    assert again == job.request
    folders = {
        "weights": weights_of(assets),
        "tokenizer": tokenizer_of(assets),
        "text_encoder": assets / "Cosmos-Nano-T5",
    }
    read = {**folders, "weights": weights_of(assets) / "weights"}
    assert facts["files"] == {
        name: {"path": str(path), "fingerprint": fingerprint(read[name])} for name, path in folders.items()
    }
    assert facts["plan"] == {"cfg": 2, "cp": 2, "tp": 1, "replicas": 1}
    assert (facts["backend"], facts["device"]) == ("torch", "cpu")
    assert (facts["dtype"], facts["text_encoder_dtype"]) == ("float32", "bfloat16")
    assert (facts["rope_dtype"], facts["precision"]) == ("float32", "bf16")
    assert facts["guardrails"] == {"state": "the model comes without"}
    assert facts["prompt_upsampler"] == "off"


def test_the_fingerprint_of_a_nemo_checkpoint_is_the_same_for_each_of_its_folders(assets: Path) -> None:
    outer = job_of(assets).identities["weights"]["fingerprint"]
    inner = job_of(assets, nemo_checkpoint=weights_of(assets) / "weights").identities["weights"]
    assert inner == {"path": str(weights_of(assets) / "weights"), "fingerprint": outer}


def test_only_rank_0_which_writes_them_down_takes_fingerprints(assets: Path) -> None:
    assert set(job_of(assets).identities) == {"weights", "tokenizer", "text_encoder"}
    assert job_of(assets, ranks=Ranks(rank=1, num_ranks=2)).identities == {}
    assert job_of(None, dry_run=True, model=RELEASED).identities == {}


def test_the_facts_name_the_gpu(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = replace(job_of(assets), device=torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    facts = job.facts(job.request)
    assert (facts["device"], facts["dtype"]) == ("GPU 1", "bfloat16")


def test_a_description_says_sizes_calls_plan_and_files(assets: Path) -> None:
    text = describe(job_of(assets, dry_run=True, num_devices=2))
    assert "9 frames of 48 x 32 at 24 fps, seed 1, to " in text
    assert "latent 2 x 4 x 6, 12 tokens; RES, 2 steps, guidance 7: 6 network calls" in text
    assert "2 rank(s): guidance branches 2 x context parallel 1 x tensor parallel 1; back end torch" in text
    assert "in float32" in text
    assert f"network: {weights_of(assets)}" in text
    assert f"text encoder: {assets / 'Cosmos-Nano-T5'}" in text


def test_a_description_says_what_is_not_here_and_counts_calls_of_one_branch() -> None:
    request = replace(REQUEST, guidance=-1.0, sampler="EDM", num_steps=5)
    text = describe(job_of(None, dry_run=True, request=request, model=RELEASED))
    assert "5 steps, guidance -1: 5 network calls" in text
    for part in ("network", "tokenizer", "text encoder", "guardrails", "text guard"):
        assert f"{part}: not here" in text
    assert "prompt upsampler" not in text


@pytest.mark.parametrize("dry_run", [False, True])
def test_weights_of_ones_own_that_are_missing_are_not_looked_for_on_the_hub(
    dry_run: bool, tmp_path: Path
) -> None:
    name = "Cosmos-Predict1-7B-Text2World_post-trained"
    request = replace(REQUEST, video_path=tmp_path / "cat.npy")
    with pytest.raises(LocateError, match=rf"{name} is the name for weights of your own, and there are none"):
        job_of(None, dry_run=dry_run, request=request, model=name, guardrails=False)


@pytest.mark.parametrize("offloaded", ["text_encoder", "denoise", "tokenizer"])
def test_each_stage_is_parked_exactly_when_asked(assets: Path, offloaded: str) -> None:
    job, groups = job_of(assets, offload=frozenset([offloaded])), start_alone(CPU)
    stages = (text_encoder_stage(job, groups), denoise_stage(job, groups), tokenizer_stage(job))
    assert [stage.name for stage in stages] == ["text_encoder", "denoise", "tokenizer"]
    assert [stage.name for stage in stages if stage.offload] == [offloaded]


def test_stages_have_the_jobs_files_sizes_dtypes_and_groups(assets: Path) -> None:
    job = job_of(assets, text_encoder_dtype="bfloat16", environ={"COSMOS_NEMO_CACHE": "/c"})
    groups = start_alone(CPU)
    text, denoise = text_encoder_stage(job, groups), denoise_stage(job, groups)
    tokenizer = tokenizer_stage(job)
    assert (text.folder, text.text_length, text.text_dim) == (assets / "Cosmos-Nano-T5", 128, 64)
    assert (text.dtype, text.group) == (torch.bfloat16, groups.replica)
    assert text.cache is not None and text.cache.folder == Path("/c/text")
    assert (denoise.checkpoint, denoise.dtype) == (weights_of(assets), torch.float32)
    assert (denoise.card, denoise.groups, denoise.backend) == (job.card, groups, job.backend)
    assert denoise.rope_dtype == torch.float32
    assert (tokenizer.folder, tokenizer.dtype) == (tokenizer_of(assets), torch.float32)
    assert (tokenizer.shape, tuple(tokenizer.parts)) == (job.card.tokenizer, ("decoder",))
    assert {stage.device for stage in (text, denoise, tokenizer)} == {CPU}


def test_rounded_rotary_angles_reach_the_network_and_the_facts(assets: Path) -> None:
    job = job_of(assets, rope_dtype="bfloat16")
    assert denoise_stage(job, start_alone(CPU)).rope_dtype == torch.bfloat16
    assert job.facts(job.request)["rope_dtype"] == "bfloat16"


def test_without_a_cache_folder_the_text_encoder_has_no_cache(assets: Path) -> None:
    assert text_encoder_stage(job_of(assets), start_alone(CPU)).cache is None


BATCH_LINES = [
    '{"prompt": "a cat"}',
    "",
    '{"prompt": "a dog", "seed": 3}',
    "{",
    '{"prompt": "x", "seed": -1}',
]


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    path = tmp_path / "batch.jsonl"
    path.write_text("\n".join(BATCH_LINES))
    return Batch(path=path, folder=tmp_path / "videos")


def test_a_batch_has_a_request_for_each_good_line(assets: Path, batch: Batch) -> None:
    job = job_of(assets, batch=batch)
    assert [(r.prompt, r.seed, r.video_path.name) for r in job.requests] == [
        ("a cat", 1, "0.mp4"),
        ("a dog", 3, "2.mp4"),
    ]
    assert job.is_batch
    assert [line.number for line in job.bad_lines] == [4, 5]
    assert job.bad_lines[1].reason.startswith("--seed -1 must lie between")
    assert "--batch_input_path line 4: it is no JSON" in describe(job)


def test_a_description_of_a_batch_says_what_is_there_and_what_would_be_replaced(
    assets: Path, batch: Batch
) -> None:
    """Unless a model is not here: then nobody knows which video would be made."""
    job = job_of(assets, batch=batch, dry_run=True)
    made, other = (request.video_path for request in job.requests[:2])
    frames = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    for path, item in ((made, job.item_of(job.requests[0])), (other, "another")):
        write_video(frames, path.with_suffix(".npy"), fps=1, prompt="", manifest={"item": item})
        path.with_suffix(".npy").rename(path)
    text, before = describe(job), sorted(batch.folder.iterdir())
    assert "1 of 2 videos are there already" in text
    assert f"1 of the 2 videos in {batch.folder} are of other requests and will be replaced" in text
    without_weights = replace(job, files=replace(job.files, weights=None))
    assert "replaced" not in describe(without_weights)
    assert "replaced" not in describe(replace(job, is_batch=False))
    assert sorted(batch.folder.iterdir()) == before


def test_a_flag_that_no_line_can_be_served_with_is_refused(assets: Path, batch: Batch) -> None:
    with pytest.raises(RequestError, match="--height 33"):
        job_of(assets, batch=batch, request=replace(REQUEST, height=33))


def test_an_item_is_known_again_wherever_it_goes_and_on_any_number_of_ranks(
    assets: Path, batch: Batch
) -> None:
    job = job_of(assets, batch=batch)
    cat, dog = (job.item_of(request) for request in job.requests)
    assert cat != dog
    alone = job_of(assets, ranks=Ranks(num_ranks=4))
    assert alone.item_of(alone.request) == cat


@pytest.mark.parametrize(
    "changes",
    [
        {"request": replace(REQUEST, seed=2)},
        {"request": replace(REQUEST, num_steps=3)},
        {"request": replace(REQUEST, negative_prompt="")},
        {"rope_dtype": "bfloat16"},
        {"text_encoder_dtype": "bfloat16"},
        {"guardrails": False},
    ],
)
def test_an_item_that_would_look_or_be_judged_otherwise_is_another(
    assets: Path, changes: dict[str, Any]
) -> None:
    job, other = job_of(assets), job_of(assets, **changes)
    assert job.item_of(job.request) != other.item_of(other.request)


def test_an_item_in_8_bits_is_another(assets: Path) -> None:
    job = job_of(assets)
    rounded = replace(job, setup=replace(job.setup, precision="fp8"))
    assert job.item_of(job.request) != rounded.item_of(job.request)
    assert rounded.facts(job.request)["precision"] == "fp8"


def test_an_item_of_other_weights_is_another(assets: Path) -> None:
    before = job_of(assets)
    say(weights_of(assets), {"network": {"base_fps": 30.0}})
    after = job_of(assets)
    assert before.item_of(before.request) != after.item_of(after.request)


@pytest.mark.parametrize("given", ["guardrail_dir", "text_guard_dir"])
def test_half_a_guardrail_is_refused(assets: Path, given: str) -> None:
    with pytest.raises(RequestError, match="comes without guardrails: pass --"):
        job_of(assets, **{given: assets})


def test_a_prompt_upsampler_that_neither_card_nor_flag_names_is_refused(assets: Path) -> None:
    with pytest.raises(RequestError, match=r"comes without a prompt upsampler.*--prompt_upsampler_dir"):
        job_of(assets, upsamples=True)


def test_a_released_model_needs_its_guardrails_unless_they_are_disabled() -> None:
    assert job_of(None, dry_run=True, model=RELEASED).needs == (*PARTS, "guardrail", "text_guard")
    assert job_of(None, dry_run=True, model=RELEASED, guardrails=False).needs == PARTS
    upsampled = job_of(None, dry_run=True, model=RELEASED, guardrails=False, upsamples=True)
    assert upsampled.needs == (*PARTS, "upsampler")


def test_what_is_turned_off_is_no_stage_of_the_pipeline(assets: Path) -> None:
    pipeline = pipeline_of(job_of(assets), start_alone(CPU))
    assert [stage.name for stage in pipeline.stages] == ["text_encoder", "denoise", "tokenizer"]


def test_frames_that_the_weights_were_not_trained_on_are_remarked(assets: Path) -> None:
    assert "was trained on 33 frames: with --num_video_frames 9" in describe(job_of(assets, dry_run=True))
    assert "trained on" not in describe(job_of(assets, dry_run=True, request=replace(REQUEST, num_frames=33)))


NANO_V2W = CARDS["Cosmos-Nano-Video2World"]
NANO_BETWEEN = CARDS["Cosmos-Nano-WorldInterpolator"]


@pytest.fixture(scope="module")
def visual_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cosmos_nemo.tools.standin import write_standin

    folder = tmp_path_factory.mktemp("visual") / "assets"
    write_standin([NANO_V2W, NANO_BETWEEN], folder, seed=0, layout="folder")
    return folder


def make_video(path: Path, num_frames: int, *, value: int = 0) -> Path:
    numpy.save(path, numpy.full((num_frames, 8, 8, 3), value, numpy.uint8))
    return path


def going_on(path: Path, **fields: Any) -> Video2WorldRequest:
    sizes = {"height": 32, "width": 48, "num_frames": 17, "num_steps": 2}
    return Video2WorldRequest(**{"prompt": "a cat", "visual_input": path, **sizes, **fields})


def visual_job(assets: Path, request: Text2WorldRequest, **options: Any) -> Job:
    model = NANO_BETWEEN.name if isinstance(request, InterpolationRequest) else NANO_V2W.name
    return job_of(assets, request=request, model=model, **options)


def test_a_job_knows_what_its_video_starts_from(visual_assets: Path, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.npy", 9)
    job = visual_job(visual_assets, going_on(path, num_input_frames=9))
    assert job.visual_inputs[path].facts.num_frames == 9
    facts = job.facts(job.request)
    assert facts["request"]["visual_input"] == str(path)
    assert facts["visual_input_sha256"] == file_digest(path)
    json.dumps(facts)


def test_a_job_of_text2world_has_no_visual_input(assets: Path) -> None:
    job = job_of(assets)
    assert "visual_input_sha256" not in job.facts(job.request)


def test_an_item_is_told_by_what_its_visual_input_holds_not_by_its_name(
    visual_assets: Path, tmp_path: Path
) -> None:
    def item_of(request: Video2WorldRequest) -> str:
        job = visual_job(visual_assets, request)
        return job.item_of(job.request)

    path = make_video(tmp_path / "a.npy", 9)
    before = item_of(going_on(path))
    assert item_of(going_on(make_video(tmp_path / "same.npy", 9))) == before
    assert item_of(going_on(path, num_input_frames=9)) != before
    make_video(path, 9, value=1)
    assert item_of(going_on(path)) != before


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (going_on(Path("nowhere.png")), r"--conditioned_image_or_video_path nowhere\.png does not exist"),
        (going_on(Path("8.npy"), num_input_frames=9), "fewer than --num_input_frames 9"),
        (going_on(Path("8.npy"), num_input_frames=5), "--num_input_frames 5 must be 1 or 9"),
        (
            InterpolationRequest(
                prompt="x",
                visual_input=Path("8.npy"),
                height=32,
                width=48,
                num_frames=10,
                num_frame_pairs=8,
            ),
            r"8\.npy has 8 frame\(s\)",
        ),
    ],
)
def test_nothing_is_downloaded_for_a_visual_input_that_does_not_do(
    visual_assets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request_: Text2WorldRequest,
    says: str,
) -> None:
    seen = []
    monkeypatch.setattr(files_module, "locate", lambda files, **_: seen.append(files.flag))
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "8.npy", 8)
    with pytest.raises(RequestError, match=says):
        visual_job(visual_assets, request_)
    assert seen == FLAGS  # a second look would be the download


def test_only_rank_0_looks_at_visual_inputs_and_the_others_learn_of_them(
    visual_assets: Path, tmp_path: Path
) -> None:
    path, file = make_video(tmp_path / "a.npy", 9), tmp_path / "b.jsonl"
    lines = [path, tmp_path / "nowhere.png", path]
    file.write_text("".join(json.dumps({"prompt": "x", "visual_input": str(p)}) + "\n" for p in lines))
    batch = Batch(path=file, folder=tmp_path / "videos")
    first, other = (
        visual_job(visual_assets, going_on(Path()), batch=batch, ranks=Ranks(rank=rank, num_ranks=2))
        for rank in range(2)
    )
    assert [request.line_number for request in first.requests] == [1, 3]
    assert [str(line) for line in first.bad_lines] == [f'line 2: "visual_input" {lines[1]} does not exist.']
    assert (len(other.requests), other.bad_lines, other.visual_inputs) == (3, (), {})
    told = replace(other, **pickle.loads(pickle.dumps(first.from_rank_zero)))
    assert told.requests == first.requests and told.bad_lines == first.bad_lines
    assert [told.facts(r) for r in told.requests] == [first.facts(r) for r in first.requests]


def test_a_batch_without_a_good_visual_input_is_refused(visual_assets: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.jsonl"
    file.write_text('{"prompt": "x", "visual_input": "nowhere.png"}')
    with pytest.raises(RequestError, match=r'"visual_input" nowhere\.png does not exist'):
        visual_job(visual_assets, going_on(Path()), batch=Batch(path=file, folder=tmp_path / "o"))


def test_a_prompt_beside_the_upsampler_that_looks_at_a_frame_is_told_not_to_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    released = "Cosmos-Predict1-7B-Video2World"
    path = make_video(tmp_path / "a.npy", 9)
    for prompt, upsamples, is_told in (("p", True, True), ("", True, False), ("p", False, False)):
        caplog.clear()
        request = going_on(path, prompt=prompt, video_path=tmp_path / "o.mp4")
        job = job_of(
            None, dry_run=True, model=released, guardrails=False, upsamples=upsamples, request=request
        )
        assert ("--prompt is not used" in caplog.text) is is_told
        assert job.facts(job.request)["prompt_upsampler"] == (
            "on, describes the visual input" if upsamples else "off"
        )


def test_without_an_upsampler_the_prompt_of_a_visual_request_must_not_be_empty(
    visual_assets: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="--prompt is empty"):
        visual_job(visual_assets, going_on(make_video(tmp_path / "a.npy", 9), prompt=" "))


def test_a_card_file_that_makes_a_model_one_of_another_task_is_refused(assets: Path) -> None:
    say(weights_of(assets), {"task": "video2world"})
    with pytest.raises(RequestError, match=r"makes Cosmos-Nano-Text2World a model for video2world"):
        job_of(assets)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_the_flags_were_taken_for_is_said_by_one_rank(
    assets: Path, caplog: pytest.LogCaptureFixture, rank: int
) -> None:
    setup = Setup(model=NANO.name, assets_dir=assets)
    invocation = Invocation(setup=setup, request=REQUEST, dry_run=True, remarks=("9 is taken for 5",))
    prepare(invocation, ranks=Ranks(rank=rank, num_ranks=2), environ={})
    assert ("9 is taken for 5" in caplog.text) is (rank == 0)
