"""`cosmos-nemo post-train` in this process, on one rank. As a person types it: tests/doors."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cosmos_nemo.catalog import find_card
from cosmos_nemo.checkpoint.names import parameter_shapes
from cosmos_nemo.tools import post_train
from cosmos_nemo.tools.main import main
from tests.parallel.train_worker import weights_in, write_start

NANO = find_card("Cosmos-Nano-Text2World")
Command = Callable[..., int]


@pytest.fixture(autouse=True)
def _handlers_end_with_the_test() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples"))


def write_samples(folder: Path, *, latent_frames: int = 2, num_frames: int = 9) -> Path:
    """Three clips of 9 frames of 32 x 48 as prepare-data writes them."""
    generator = torch.Generator().manual_seed(0)
    shape = NANO.network
    (folder / "prepared.json").write_text("{}")
    for name in range(3):
        latent = torch.randn(16, latent_frames, 4, 6, generator=generator)
        torch.save(latent, folder / f"{name}.video_latent.pth")
        text_LD = torch.randn(shape.text_length, shape.text_dim, generator=generator)
        torch.save(text_LD, folder / f"{name}.t5_text_embeddings.pth")
        torch.save(torch.ones(shape.text_length), folder / f"{name}.t5_text_mask.pth")
        info = {"height": 32, "width": 48, "fps": 24, "num_frames": num_frames}
        (folder / f"{name}.info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def command(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def run(*flags: str, data: Path = samples, model: str = NANO.name) -> int:
        return main(
            [
                *("post-train", "--model", model, "--data_path", str(data)),
                *("--log_dir", str(tmp_path / "log"), "--max_steps", "2", *flags),
            ]
        )

    return run


def checkpoint_in(folder: Path) -> Path:
    (found,) = folder.glob("log/default/*/checkpoints/epoch=*")
    return found


def test_a_run_from_scratch_writes_a_checkpoint_of_the_cards_size(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--from_scratch") == 0
    printed = capsys.readouterr().out
    path = checkpoint_in(tmp_path)
    assert path.name == "epoch=0-step=2"
    for part in (
        f"{NANO.name}, from scratch",
        "3 samples, latent 16 x 2 x 4 x 6, 24 fps: 0.333 epochs a step",
        "1 rank(s): data parallel 1 x context parallel 1 x tensor parallel 1; replicated optimizer",
        "memory predicted for each rank",
    ):
        assert part in printed
    weights = weights_in(path, NANO)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == parameter_shapes(NANO.network)
    assert all(weight.isfinite().all() for weight in weights.values())
    about = json.loads((path / "context" / "training.json").read_text())
    assert Path(about["data"]).name.startswith("samples") and "torch" in about["versions"]


def test_the_card_file_of_the_checkpoint_decides_the_size(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from cosmos_nemo.checkpoint.card_file import write_card_file

    small = replace(NANO, network=replace(NANO.network, num_layers=1))
    write_start(tmp_path / "start", small)
    write_card_file(tmp_path / "start", {"network": {"num_layers": 1}})
    assert command("--nemo_checkpoint", str(tmp_path / "start"), "--learning_rate", "0") == 0
    assert f"{NANO.name}, from {tmp_path / 'start'}" in capsys.readouterr().out
    path = checkpoint_in(tmp_path)
    assert json.loads((path / "card.json").read_text()) == {"network": {"num_layers": 1}}
    expected = weights_in(tmp_path / "start", small)
    assert all(torch.equal(w, expected[name]) for name, w in weights_in(path, small).items())


def test_every_flag_arrives_in_the_settings(command: Command, tmp_path: Path) -> None:
    flags = {
        "global_batch_size": "2",
        "learning_rate": "0.0002",
        "warmup_steps": "3",
        "weight_decay": "0.01",
        "clip_norm": "0.7",
        "text_dropout": "0.3",
        "log_sigma_mean": "-0.5",
        "log_sigma_std": "1.5",
        "high_noise_share": "0.25",
        "average": "host",
        "average_decay": "0.9",
        "average_every": "2",
        "seed": "4",
        "micro_batch_size": "2",
        "recompute": "off",
        "gradient_dtype": "bfloat16",
        "optimizer": "replicated",
    }
    assert command("--from_scratch", *(text for name, v in flags.items() for text in (f"--{name}", v))) == 0
    found = json.loads((checkpoint_in(tmp_path) / "context" / "training.json").read_text())["settings"]
    assert {name: str(found[name]) for name in flags} == flags
    assert (found["num_steps"], found["context_parallel"], found["tensor_parallel"]) == (2, 1, 1)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--from_scratch", "--dry_run") == 0
    assert "memory predicted for each rank" in capsys.readouterr().out
    assert not (tmp_path / "log").exists()


def test_a_dry_run_plans_for_the_ranks_that_the_flags_ask_for(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--from_scratch", "--dry_run", "--tensor_parallel", "4", "--cp_size", "2") == 0
    printed = capsys.readouterr().out
    assert "8 rank(s): data parallel 1 x context parallel 2 x tensor parallel 4" in printed


def test_a_dry_run_without_the_weights_does_not_claim_to_begin_from_scratch(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmos_nemo.checkpoint import locate

    monkeypatch.setattr(locate, "locate", lambda *_, **__: None)
    assert command("--dry_run") == 0
    assert "from scratch" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max_steps", "0"], "--max_steps 0 must be at least 1"),
        (["--learning_rate", "nan"], "--learning_rate nan"),
        (["--recompute", "half"], "--recompute half is unknown"),
        (["--average", "gpu"], "--average gpu is unknown"),
        (["--tensor_parallel", "3"], "--tensor_parallel 3 does not divide the 8 heads"),
        (["--cp_size", "2"], "does not divide the 1 rank"),
        (["--micro_batch_size", "2"], "--global_batch_size 1 is no multiple of the 2 samples"),
        (["--save_every", "-1"], "--save_every -1"),
        (["--keep_states", "-1"], "--keep_states -1"),
        (["--cache_gib", "nan"], "--cache_gib nan"),
        (["--seed", "-1"], "--seed -1"),
        (["--log_sigma_mean", "nan"], "--log_sigma_mean nan"),
        (["--high_noise_share", "1"], "--high_noise_share 1 must be"),
    ],
)
def test_a_broken_flag_ends_with_2_and_its_name_before_anything_is_read(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    assert command("--from_scratch", *flags, data=tmp_path / "absent") == 2
    errors = capsys.readouterr().err
    assert says in errors
    assert "Traceback" not in errors and len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_flags_are_judged_before_weights_are_looked_for(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the 7B model would be downloaded first, for a run that cannot be."""
    from cosmos_nemo.checkpoint import locate

    def look(*_: object, **__: object) -> None:
        raise AssertionError("weights are looked for")

    monkeypatch.setattr(locate, "locate", look)
    assert command("--recompute", "half") == 2
    assert "--recompute half" in capsys.readouterr().err


def test_the_distributed_optimizer_is_refused_without_cuda(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--from_scratch", "--optimizer", "distributed") == 2
    assert "--optimizer distributed needs CUDA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--from_scratch", "--nemo_checkpoint", "x"],
            "--from_scratch and --nemo_checkpoint exclude each other",
        ),
        (["--nemo_checkpoint", "absent"], "--nemo_checkpoint absent does not exist"),
        (["--from_scratch", "--resume", "absent"], "--resume absent holds no training_state"),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence_and_2(
    command: Command, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    assert command(*flags) == 2
    errors = capsys.readouterr().err
    assert says in errors and "Traceback" not in errors


def test_an_unknown_model_is_named(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--from_scratch", model="Cosmos-Nano") == 2
    assert "--model Cosmos-Nano is unknown. Nearest: Cosmos-Nano-Text2World" in capsys.readouterr().err


def test_data_of_another_model_is_refused(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    model = "Cosmos-1.0-Diffusion-7B-Text2World"
    assert command("--from_scratch", "--dry_run", model=model) == 2
    assert "made by another text encoder" in capsys.readouterr().err


def test_a_folder_without_samples_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--from_scratch", data=tmp_path) == 2
    assert "holds no samples" in capsys.readouterr().err
    assert command("--from_scratch", data=tmp_path / "absent") == 2
    assert "is no folder" in capsys.readouterr().err


def test_data_that_is_no_number_stops_with_a_sentence(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    write_samples(folder)
    for name in range(3):
        torch.save(torch.full((16, 2, 4, 6), float("nan")), folder / f"{name}.video_latent.pth")
    assert command("--from_scratch", data=folder) in (1, 2)
    errors = capsys.readouterr().err
    assert "the loss of step 1 is nan: lower --learning_rate, and look for broken latents" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("epoch=*"))


def test_a_stopped_run_ends_with_143_and_tells_how_to_go_on(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post_train, "_terminated", lambda: lambda: True)
    assert command("--from_scratch") == 143
    assert "stopped after step 1; the same command with --resume goes on" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--no_save"], ["--keep_states", "0"]])
def test_a_stopped_run_without_a_state_does_not_promise_to_go_on(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
) -> None:
    monkeypatch.setattr(post_train, "_terminated", lambda: lambda: True)
    assert command("--from_scratch", *flags) == 143
    printed = capsys.readouterr().out
    assert "stopped after step 1" in printed
    assert "--resume goes on" not in printed


def test_a_video2world_begins_with_the_weights_of_a_text2world(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_start(tmp_path / "start", NANO)
    card = find_card("Cosmos-Nano-Video2World")
    assert command("--nemo_checkpoint", str(tmp_path / "start"), model=card.name) == 0
    assert "of a network that is told no frames" in caplog.text
    path = checkpoint_in(tmp_path)
    assert json.loads((path / "context" / "training.json").read_text())["model"] == card.name
    before, after = weights_in(tmp_path / "start", NANO), weights_in(path, card)
    name = "x_embedder.proj.1.weight"
    assert after[name].shape == (256, 72) and after[name][:, 64:68].abs().max() > 0
    assert float((after[name][:, :64] - before[name][:, :64]).abs().max()) < 1e-4


def test_a_text2world_does_not_begin_with_the_weights_of_a_video2world(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_start(tmp_path / "start", find_card("Cosmos-Nano-Video2World"))
    assert command("--nemo_checkpoint", str(tmp_path / "start")) == 2
    assert "pass --model Cosmos-Nano-Video2World" in capsys.readouterr().err


def test_an_interpolator_is_trained_on_samples_that_were_prepared_for_it_alone(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "Cosmos-Nano-WorldInterpolator"
    assert command("--from_scratch", model=model) == 2
    assert f"prepare videos with --model {model}" in capsys.readouterr().err
    assert not (tmp_path / "log").exists()
    (tmp_path / "pairs").mkdir()
    pairs = write_samples(tmp_path / "pairs", latent_frames=3, num_frames=10)
    assert command("--from_scratch", data=pairs, model=model) == 0
    assert "latent 16 x 3 x 4 x 6" in capsys.readouterr().out
    assert checkpoint_in(tmp_path).name == "epoch=0-step=2"


PREDICT2 = find_card("Cosmos-Nano-Predict2-Video2World")


def test_a_predict2_is_trained_under_noise_levels_of_its_own(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--from_scratch", "--global_batch_size", "3", model=PREDICT2.name) == 0
    levels = "ln(sigma) from N(0.347, 1), 5 % of the samples from 200 to 100,000"
    assert f"noise levels: {levels}" in capsys.readouterr().out
    path = checkpoint_in(tmp_path)
    weights = weights_in(path, PREDICT2)
    shapes = parameter_shapes(PREDICT2.network)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == shapes
    about = json.loads((path / "context" / "training.json").read_text())
    assert about["model"] == PREDICT2.name
    # Half the logarithm of two latent frames.
    assert about["noise_levels"] == {"mean": pytest.approx(0.34657, abs=1e-5), "std": 1, "high_share": 0.05}
    assert command("--from_scratch", "--dry_run") == 0
    assert "noise levels: ln(sigma) from N(0, 1)\n" in capsys.readouterr().out


def test_a_predict2_goes_on_from_its_own_weights_and_not_from_those_of_the_other_family(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_start(tmp_path / "own", PREDICT2)
    flags = ("--learning_rate", "0", "--average", "off")
    assert command("--nemo_checkpoint", str(tmp_path / "own"), *flags, model=PREDICT2.name) == 0
    expected = weights_in(tmp_path / "own", PREDICT2)
    found = weights_in(checkpoint_in(tmp_path), PREDICT2)
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    write_start(tmp_path / "other", find_card("Cosmos-Nano-Video2World"))
    capsys.readouterr()
    assert command("--nemo_checkpoint", str(tmp_path / "other"), model=PREDICT2.name) == 2
    errors = capsys.readouterr().err
    assert "extra_pos_embedder" in errors or "Cosmos-Nano-Video2World" in errors, errors
    assert "Traceback" not in errors


def test_a_predict2_is_not_trained_on_samples_of_another_tokenizer(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "samples").mkdir()
    folder = write_samples(tmp_path / "samples")
    (folder / "prepared.json").write_text(json.dumps({"model": NANO.name}))
    assert command("--from_scratch", data=folder) == 0
    assert command("--from_scratch", data=folder, model=PREDICT2.name) == 2
    assert f"prepare the videos with --model {PREDICT2.name}" in capsys.readouterr().err


def test_a_released_name_is_planned_without_its_weights(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = find_card("Cosmos-Predict2-14B-Video2World-720p-16fps")
    generator = torch.Generator().manual_seed(0)
    for part, shape in (("video_latent", (16, 24, 88, 160)), ("t5_text_embeddings", (512, 1024))):
        torch.save(torch.randn(shape, generator=generator).bfloat16(), tmp_path / f"0.{part}.pth")
    torch.save(torch.ones(512), tmp_path / "0.t5_text_mask.pth")
    (tmp_path / "0.info.json").write_text(json.dumps({"fps": 16}))
    (tmp_path / "prepared.json").write_text("{}")
    flags = ("--from_scratch", "--dry_run", "--tensor_parallel", "8")
    assert command(*flags, data=tmp_path, model=card.name) == 0
    said = capsys.readouterr().out
    assert "latent 16 x 24 x 88 x 160, 16 fps" in said and "ln(sigma) from N(1.59, 1), 5 %" in said
