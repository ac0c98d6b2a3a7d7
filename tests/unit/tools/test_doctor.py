import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cosmos_nemo.catalog import CARDS, ModelCard, find_card
from cosmos_nemo.memory import DEVICE_OVERHEAD, GIB, PUBLISHED_OFFLOADS, predict
from cosmos_nemo.tools import doctor, doctor_machine
from cosmos_nemo.tools.doctor_hub import Access, Hub
from cosmos_nemo.tools.doctor_machine import Gpu, Machine, look
from cosmos_nemo.tools.doctor_report import report
from cosmos_nemo.tools.doctor_times import MEASURED, time_text
from cosmos_nemo.tools.doctor_verdict import bytes_to_fetch, runnable, stages_of
from tests.test_layering import ROOT

SMALL = find_card("Cosmos-1.0-Diffusion-7B-Text2World")
LARGE = find_card("Cosmos-1.0-Diffusion-14B-Text2World")
VIDEO = find_card("Cosmos-Predict1-7B-Video2World")
BETWEEN = find_card("Cosmos-Predict1-7B-WorldInterpolator")
PREDICT1 = find_card("Cosmos-Predict1-7B-Text2World")
NANO = find_card("Cosmos-Nano-Text2World")
ALL = (SMALL, LARGE, PREDICT1, NANO)
H200 = Gpu("NVIDIA H200", 140 * GIB, (9, 0))


def machine(*gpus: Gpu, host: int | None = 10**12, **changes: object) -> Machine:
    made = Machine(gpus=gpus, host_memory=host, missing={card.name: () for card in ALL})
    return replace(made, **changes)


def text(of: Machine, *cards: ModelCard) -> str:
    return "\n".join(report(of, cards or ALL))


def verdicts(of: Machine, card: ModelCard) -> list[str]:
    """The last column of a card's table."""
    lines = report(of, (card,))
    start = next(i for i, line in enumerate(lines) if line.endswith("on this machine"))
    column = lines[start].index("on this machine")
    return [line[column:] for line in lines[start + 1 : lines.index("", start)]]


def asked(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(arguments))


def test_a_large_gpu_runs_everything() -> None:
    assert runnable(machine(H200), ALL) == list(ALL)
    assert verdicts(machine(H200), LARGE) == ["fits"] * 6
    assert text(machine(H200)).splitlines()[-1] == f"can run now: {', '.join(card.name for card in ALL)}"


def test_a_card_fits_exactly_when_its_peak_and_the_overhead_do() -> None:
    for row, offload in enumerate([frozenset[str](), *PUBLISHED_OFFLOADS]):
        needed = predict(SMALL, offload=offload, is_batch=True).peak + DEVICE_OVERHEAD
        enough, short = (machine(Gpu("some", size, (9, 0))) for size in (needed, needed - 1))
        assert verdicts(enough, SMALL)[row] == "fits"
        assert verdicts(short, SMALL)[row] == "does not fit"


def test_a_gpu_on_which_only_some_rows_fit_runs_the_card() -> None:
    gpu = Gpu("some", 44 * GIB, (8, 9))
    assert verdicts(machine(gpu), SMALL) == ["does not fit"] * 3 + ["fits"] * 3
    assert SMALL in runnable(machine(gpu), ALL)


def test_a_gpu_that_is_too_small_for_everything_runs_the_nano_model_alone() -> None:
    assert runnable(machine(Gpu("tiny", 4 * GIB, (8, 6))), ALL) == [NANO]


def test_parked_weights_must_fit_the_host() -> None:
    found = verdicts(machine(H200, host=40 * GIB), SMALL)
    assert found == ["fits"] * 3 + ["host memory is too small"] * 3
    assert verdicts(machine(H200, host=None), SMALL) == ["fits"] * 6


def test_without_a_gpu_only_the_nano_models_run() -> None:
    assert runnable(machine(), ALL) == [NANO]
    assert "no GPU: the CPU runs the nano models" in text(machine())
    assert set(verdicts(machine(), SMALL)) == {"needs a GPU"}
    assert verdicts(machine(), NANO) == ["fits"]


def test_a_card_without_its_files_cannot_run_now() -> None:
    lacking = machine(H200, missing={SMALL.name: ("text_encoder", "guardrail"), NANO.name: ()})
    assert runnable(lacking, (SMALL, NANO)) == [NANO]
    assert f"{SMALL.name}  missing: text encoder, guardrail" in text(lacking, SMALL, NANO)
    assert "Cosmos-Nano-Text2World              complete" in text(lacking, SMALL, NANO)
    assert runnable(replace(lacking, missing={}), (NANO,)) == []
    assert "none of these models" in text(replace(lacking, missing={}), NANO)


def test_the_upsampler_may_be_missing() -> None:
    assert runnable(machine(H200, missing={SMALL.name: ("upsampler",)}), (SMALL,)) == [SMALL]


def test_broken_packages_run_nothing() -> None:
    broken = machine(H200, broken="no torch")
    assert runnable(broken, ALL) == []
    assert "no torch" in text(broken)


def test_cards_that_need_the_same_memory_share_a_table() -> None:
    lines = report(machine(H200), ALL)
    assert sum(line.endswith("on this machine") for line in lines) == 3
    first = next(i for i, line in enumerate(lines) if line.startswith(f"{SMALL.name}, "))
    assert lines[first + 1].startswith(f"{PREDICT1.name}, ")


def test_the_columns_are_aligned_and_have_the_predicted_numbers() -> None:
    lines = report(machine(H200), (SMALL,))
    rows = [line for line in lines if line.endswith("fits")]
    assert len({line.index("fits") for line in rows}) == 1
    for row, offload in zip(rows, [frozenset[str](), *PUBLISHED_OFFLOADS], strict=True):
        found = predict(SMALL, offload=offload, is_batch=True)
        assert row.split()[-3:-1] == [f"{found.peak / GIB:.1f}", f"{found.host / GIB:.1f}"]


def test_equal_gpus_are_counted() -> None:
    small = Gpu("NVIDIA A100", 80 * GIB, (8, 0))
    found = text(machine(H200, H200, small))
    assert "2 x NVIDIA H200, 140.0 GiB, compute capability 9.0" in found
    assert "NVIDIA A100, 80.0 GiB, compute capability 8.0" in found


def test_times_are_told_only_of_gpus_and_models_that_were_measured() -> None:
    shown = text(machine(H200))
    assert f"{SMALL.name}, measured on such a GPU: 269 seconds a video" in shown
    assert f"{LARGE.name}, no measurement of its seconds on such a GPU" in shown
    others = [Gpu("NVIDIA A100", 80 * GIB, (8, 0)), Gpu("NVIDIA H200 NVL", 140 * GIB, (9, 0))]
    for of in (machine(), *map(machine, others)):
        assert "seconds a video" not in text(of) and "no measurement" in text(of)


def test_every_measured_time_is_a_figure_of_the_performance_page_and_of_a_card() -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert MEASURED
    for row in MEASURED:
        assert f"| {row.seconds} |" in page and row.model in CARDS
        assert f"{row.seconds:.0f} seconds" in time_text(row.model, row.gpu)


def test_what_could_be_asked_is_shown_with_its_label() -> None:
    lines = report(machine(facts=(("ffmpeg", "here"), ("a longer label", "there"))), ALL)
    assert lines[:2] == ["ffmpeg          here", "a longer label  there"]


def test_this_machine_is_looked_at_without_a_failure() -> None:
    found = look((NANO, SMALL), checkpoint_dir=None)
    assert found.missing[NANO.name] == ()
    assert found.missing[SMALL.name] == (
        "network",
        "tokenizer",
        "text_encoder",
        "upsampler",
        "guardrail",
        "text_guard",
    )
    assert found.broken == "" and found.host_memory is not None and found.host_memory > GIB / 2
    facts = dict(found.facts)
    assert "cannot be told" not in "".join(facts.values())
    assert f"torch {__import__('torch').__version__}" in facts["packages"]
    assert "GiB free" in facts["cache"]


def test_a_probe_that_raises_is_a_line_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("broken\nsecond line")

    for name in (
        "_packages",
        "_driver",
        "_backends",
        "_cudnn",
        "_flash",
        "_ffmpeg",
        "_cache_folder",
        "_token",
        "_gpus",
        "_host_memory",
        "_parts",
    ):
        monkeypatch.setattr(doctor_machine, name, fail)
    found = look((NANO,), checkpoint_dir=None)
    failed = [label for label, answer in found.facts if answer == "cannot be told (OSError: broken)"]
    assert failed == [
        "packages",
        "driver",
        "back ends",
        "cuDNN",
        "attention",
        "ffmpeg",
        "cache",
        "HF token",
        "CUDA",
        "memory",
    ]
    assert found.gpus == () and found.host_memory is None
    assert runnable(found, (NANO,)) == []
    assert "missing: cannot be told (OSError: broken)" in text(found, NANO)


def test_a_network_that_does_not_import_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cosmos_nemo.models.build", None)
    found = look((NANO,), checkpoint_dir=None)
    assert "cannot be imported" in found.broken
    assert runnable(found, (NANO,)) == []


def test_the_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    for token, told in (("hf_secret", "set"), (None, "not set: models whose licence")):
        monkeypatch.setattr(huggingface_hub, "get_token", lambda token=token: token)
        found = look((NANO,), checkpoint_dir=None)
        assert dict(found.facts)["HF token"].startswith(told)
        assert "hf_secret" not in text(found, NANO)


def test_files_are_looked_for_in_the_checkpoint_folder(tmp_path: Path) -> None:
    folder = tmp_path / "google-t5/t5-11b"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert "text_encoder" in look((SMALL,), checkpoint_dir=tmp_path).missing[SMALL.name]
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_text("")
    found = look((SMALL,), checkpoint_dir=tmp_path)
    assert "text_encoder" not in found.missing[SMALL.name]
    assert dict(found.facts)["files in"].startswith(str(tmp_path))


def test_offline_the_hub_is_a_line_and_no_error() -> None:
    found = look((SMALL,), checkpoint_dir=None)
    assert found.hub.state == "not asked: HF_HUB_OFFLINE is set" and not found.hub.answers
    assert "\nhub          not asked: HF_HUB_OFFLINE is set\n" in text(found, SMALL)
    assert "on the hub" not in text(found, SMALL)


def test_a_hub_that_fails_in_another_way_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(doctor_machine, "ask_hub", fail)
    found = look((SMALL, NANO), checkpoint_dir=None)
    assert found.hub.state == "cannot be told (RuntimeError: can't start new thread)"
    assert runnable(found, (NANO,)) == [NANO]


def test_the_repositories_of_missing_parts_are_asked_for_with_what_belongs_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def record(wanted: list[object]) -> Hub:
        asked.extend(files.repository for files in wanted)
        return Hub()

    monkeypatch.setattr(doctor_machine, "ask_hub", record)
    found = look((VIDEO, NANO), checkpoint_dir=None)
    assert asked == list(found.repositories[VIDEO.name])
    assert {"nvidia/Cosmos-Predict1-7B-Video2World", "mistral-community/pixtral-12b"} <= set(asked)
    assert found.repositories[NANO.name] == ()


def test_megatron_is_imported_as_the_doors_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmos_nemo.parallel import startup

    def fail() -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(startup, "prepare_process", fail)
    broken = look((NANO,), checkpoint_dir=None).broken
    assert broken == "the network cannot be imported (IndexError: list index out of range)"


def lacking(*sizes: int | None, parts: tuple[str, ...] = ("network", "text_encoder"), free: int) -> Machine:
    """A machine without `parts`, whose repositories have these sizes on the hub; None: no answer."""
    names = tuple(f"owner/{index}" for index in range(len(sizes)))
    answers = {name: Access("may be fetched", True, size) for name, size in zip(names, sizes, strict=True)}
    return machine(
        H200,
        missing={SMALL.name: parts},
        repositories={SMALL.name: names},
        hub=Hub("reached", answers),
        free_disk=free,
    )


def test_the_disk_must_hold_what_is_missing() -> None:
    for free, no in ((30 * GIB, ""), (30 * GIB - 1, ", the disk is too small")):
        shown = text(lacking(10 * GIB, 20 * GIB, free=free), SMALL)
        assert f"missing: network, text encoder; 30.0 GiB to fetch{no}\n" in shown


def test_sizes_that_the_hub_does_not_tell_are_those_of_the_weights_at_least() -> None:
    weights = {stage.name: stage.weights for stage in stages_of(SMALL)}
    least = weights["denoise"] + weights["text_encoder"]
    assert bytes_to_fetch(lacking(10 * GIB, None, free=0), SMALL) == (least, False)
    assert bytes_to_fetch(lacking(90 * GIB, None, free=0), SMALL) == (90 * GIB, False)
    guards = lacking(None, parts=("guardrail", "text_guard"), free=0)
    assert bytes_to_fetch(guards, SMALL) == (weights["video_guard"] + weights["text_guard"], False)
    shown = text(lacking(None, None, free=10**12), SMALL)
    assert f"; at least {least / GIB:.1f} GiB to fetch\n" in shown


def test_a_disk_that_cannot_be_told_and_a_card_without_repositories_are_no_objection() -> None:
    of = replace(lacking(10 * GIB, free=0), free_disk=None)
    assert "10.0 GiB to fetch\n" in text(of, SMALL)
    assert "to fetch" not in text(machine(H200, missing={NANO.name: ("network",)}, free_disk=0), NANO)


def test_what_the_hub_says_of_each_repository_is_told() -> None:
    answers = {"a/open": Access("may be fetched", True, 3 * GIB), "b/shut": Access("gated: why", False, 5)}
    shown = text(machine(H200, hub=Hub("reached", answers)), SMALL)
    assert "\non the hub\n  a/open  may be fetched, 3.0 GiB\n  b/shut  gated: why\n" in shown


def test_a_folder_that_cannot_be_read_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmos_nemo.checkpoint import locate

    def fail(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(locate, "locate", fail)
    assert look((NANO,), checkpoint_dir=None).missing[NANO.name] == ("network", "tokenizer", "text_encoder")


def test_a_model_without_a_diffusion_decoder_lacks_none() -> None:
    parts = doctor_machine._parts(CARDS["Cosmos-Nano-Autoregressive"])
    assert list(parts) == ["network", "discrete_tokenizer"]


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_told(tmp_path: Path) -> None:
    assert doctor_machine._free_disk(tmp_path / "not/yet").endswith("GiB free")


def test_the_command_prints_and_succeeds_with_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked() == 0
    shown = capsys.readouterr().out
    for name, card in CARDS.items():
        assert (f"  {name} " in shown) == ("post-trained" not in card.name)
    assert max(map(len, shown.splitlines())) < 220


def test_the_command_fails_if_the_one_card_asked_for_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked("--model", SMALL.name) == 1
    shown = capsys.readouterr().out
    assert NANO.name not in shown and "none of these models" in shown


def test_a_model_or_folder_that_does_not_exist_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked("--model", "Cosmos-Nono") == 2
    assert "Nearest" in capsys.readouterr().err
    assert asked("--checkpoint_dir", str(tmp_path / "none")) == 2
    assert "is no folder" in capsys.readouterr().err


def test_a_persons_own_weights_can_be_asked_for_by_name() -> None:
    assert asked("--model", "Cosmos-Predict1-7B-Text2World_post-trained") == 1


def test_importing_the_command_imports_nothing_slow() -> None:
    program = (
        "import sys, cosmos_nemo.tools.doctor; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_tables_of_what_starts_from_images_count_encoder_and_upsampler() -> None:
    of = machine(H200)
    for card in (VIDEO, BETWEEN):
        lines = report(of, (card,))
        rows = [line for line in lines if line.endswith("fits")]
        for row, offload in zip(rows, [frozenset[str](), *PUBLISHED_OFFLOADS], strict=True):
            found = predict(card, offload=offload, is_batch=True)
            assert row.split()[-3:-1] == [f"{found.peak / GIB:.1f}", f"{found.host / GIB:.1f}"]
    assert "10 frames of 1280 x 704" in text(of, BETWEEN)


def test_pixtral_without_the_tokenizer_beside_it_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "Pixtral-12B"
    folder.mkdir()
    for name in ("params.json", "consolidated.safetensors"):
        (folder / name).write_bytes(b"x")
    assert "upsampler" in look((VIDEO,), checkpoint_dir=tmp_path).missing[VIDEO.name]
    (folder / "tokenizer.json").write_bytes(b"x")
    assert "upsampler" not in look((VIDEO,), checkpoint_dir=tmp_path).missing[VIDEO.name]


@pytest.mark.parametrize("name", ["Cosmos-Nano-Video2World", "Cosmos-Nano-WorldInterpolator"])
def test_a_nano_model_that_is_not_shipped_lacks_its_network_alone(name: str) -> None:
    missing = look((find_card(name),), checkpoint_dir=None).missing[name]
    assert set(missing) <= {"network"}


def test_an_autoregressive_model_is_told_with_its_own_parts_and_rows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from cosmos_nemo.tools.main import main

    assert main(["doctor", "--model", "Cosmos-Predict1-4B", "--checkpoint_dir", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "missing: network, tokenizer, discrete tokenizer, diffusion decoder, guardrail; at least" in shown
    assert (
        "+ diffusion_decoder" in shown
        and "+ token_generation" in shown
        and "text" not in shown.partition("files\n")[2].partition("predicted")[0]
    )
