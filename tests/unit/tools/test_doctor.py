import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cosmos_nemo.catalog import CARDS, ModelCard, find_card
from cosmos_nemo.memory import DEVICE_OVERHEAD, GIB, PUBLISHED_OFFLOADS, predict
from cosmos_nemo.tools import doctor
from cosmos_nemo.tools.doctor import Gpu, Machine, call_operations, look, report, runnable

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


def test_times_are_told_only_of_gpus_that_were_measured() -> None:
    assert f"{SMALL.name}, about 4.7 minutes" in text(machine(H200))
    for of in (machine(), machine(Gpu("NVIDIA A100", 80 * GIB, (8, 0)))):
        assert "minutes" not in text(of) and "not measured" in text(of)


def test_a_network_call_of_the_7b_has_the_operations_of_the_measured_one() -> None:
    assert call_operations(SMALL.network, 56_320) / 1e12 == pytest.approx(2209, rel=0.001)


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
        "_ffmpeg",
        "_cache_folder",
        "_token",
        "_gpus",
        "_host_memory",
        "_parts",
    ):
        monkeypatch.setattr(doctor, name, fail)
    found = look((NANO,), checkpoint_dir=None)
    failed = [label for label, answer in found.facts if answer == "cannot be told (OSError: broken)"]
    assert failed == [
        "packages",
        "driver",
        "back ends",
        "cuDNN",
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


def test_a_folder_that_cannot_be_read_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmos_nemo.checkpoint import locate

    def fail(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(locate, "locate", fail)
    assert look((NANO,), checkpoint_dir=None).missing[NANO.name] == ("network", "tokenizer", "text_encoder")


def test_a_model_without_a_diffusion_decoder_lacks_none() -> None:
    parts = doctor._parts(CARDS["Cosmos-Nano-Autoregressive"])
    assert list(parts) == ["network", "discrete_tokenizer"]


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_told(tmp_path: Path) -> None:
    assert doctor._free_disk(tmp_path / "not/yet").endswith("GiB free")


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


def test_a_clip_takes_one_call_a_step_on_three_latent_frames() -> None:
    tokens = 3 * 44 * 80
    seconds = 36 * call_operations(BETWEEN.network, tokens) / 563e12
    assert f"about {seconds / 60:.1f} minutes" in text(machine(H200), BETWEEN)


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
    assert "missing: network, tokenizer, discrete tokenizer, diffusion decoder, guardrail\n" in shown
    assert (
        "+ diffusion_decoder" in shown
        and "+ token_generation" in shown
        and "text" not in shown.partition("files\n")[2].partition("predicted")[0]
    )
