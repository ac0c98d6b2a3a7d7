import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.nano_generate import MISTAKES, SHIFT, Generator, nano_job, shifted, swapped_axes
from benchmarks.nano_judge import Verdict
from benchmarks.nano_quality import (
    Item,
    Result,
    choose_items,
    general_flags,
    main,
    misses,
    parse,
    rows_of,
    subject_items,
    subject_row,
    table,
)
from cosmos_nemo.catalog import CARDS
from cosmos_nemo.job import Job
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.pipelines.text2world import Text2World
from cosmos_nemo.stages.skip import Skip
from cosmos_nemo.tools.standin import write_standin
from cosmos_nemo.training.nano.captions import PHRASINGS, SUBJECT_NAME, UNSEEN_PHRASINGS, caption
from cosmos_nemo.training.nano.world import ALL_SCENES, HELD_OUT, TRAINED, Scene, draw_clips
from tests.fakes import CPU, tiny_network

PROMPTS = ("A red ball moves up on a gray background.", "A white square bounces on a dark background.")
SMALL = ("--height=64", "--width=64", "--num_video_frames=9", "--num_steps=2", "--seed=5", "--backend=torch")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano") / "assets"
    write_standin([CARDS["Cosmos-Nano-Text2World"]], folder, seed=0, layout="folder")
    return folder


def job_of(assets: Path, *flags: str) -> Job:
    return nano_job([f"--cosmos_assets_dir={assets}", *SMALL, *flags], device=CPU)


def make(job: Job, *, mistake: str = "none", batch_size: int = 2) -> Tensor:
    generator = Generator(job, mistake=mistake)
    return torch.stack(list(generator(PROMPTS, seeds=(5, 6), batch_size=batch_size)))


def far(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference in levels."""
    return (ours.int() - theirs.int()).abs().max().item()


@pytest.fixture
def lively(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in network that answers strongly to its text and its positions."""
    real = Generator.__init__

    def strengthened(self: Generator, job: Job, **options: Any) -> None:
        real(self, job, **options)
        self.denoise.reside()
        assert self.denoise.module is not None
        generator = torch.Generator().manual_seed(0)
        for parameter in self.denoise.module.parameters():
            scale = (
                3.0 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            )  # the norms of queries and keys
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))

    monkeypatch.setattr(Generator, "__init__", strengthened)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--guidance=0",),
        ("--negative_prompt=",),
        ("--sampler=EDM", "--guidance=3"),
        ("--subject_name=cat",),
    ],
)
def test_a_batch_of_one_is_the_pipelines_video(assets: Path, lively: None, flags: tuple[str, ...]) -> None:
    job = job_of(assets, *flags)
    generator = Generator(job)
    pipeline = Text2World(
        text_encoder=generator.text_encoder,
        denoise=generator.denoise,
        tokenizer=generator.tokenizer,
        text_guard=Skip(),
        upsampler=Skip(),
        video_guard=Skip(),
        ranks=start_alone(CPU).replica,
    )
    wanted, other = (pipeline(replace(job.request, prompt=prompt)).frames_THWC for prompt in PROMPTS)
    assert wanted is not None
    assert other is not None
    [found] = generator(PROMPTS[:1], seeds=(5,), batch_size=1)
    assert found.shape == wanted.shape == (9, 64, 64, 3)
    assert far(found, wanted) <= 1
    assert far(found, other) > 5


def test_a_video_does_not_depend_on_its_batch(assets: Path) -> None:
    job = job_of(assets)
    both, alone = make(job, batch_size=2), make(job, batch_size=1)
    assert far(both, alone) <= 1
    assert far(both[0], both[1]) > 50


@pytest.mark.parametrize("mistake", [name for name in MISTAKES if name != "none"])
def test_every_mistake_changes_every_video(assets: Path, lively: None, mistake: str) -> None:
    job = job_of(assets)
    for right, wrong in zip(make(job), make(job, mistake=mistake), strict=True):
        assert far(right, wrong) > 5


def test_the_shifted_mask_hides_the_beginning_and_shows_padding(assets: Path) -> None:
    stage = Generator(job_of(assets)).text_encoder
    with stage:
        right, found = stage(list(PROMPTS)), shifted(stage, PROMPTS)
        length = int(right[0].any(dim=1).sum())
        other = shifted(stage, ["The blue" + PROMPTS[0].removeprefix("A red"), PROMPTS[1]])
    assert not found[:, :SHIFT].any()
    assert found[0, length : length + SHIFT].any(dim=1).all()
    assert (found - right)[0, SHIFT:length].abs().max() > 1e-3
    # "A red" became "The blue", of which nothing is left.
    torch.testing.assert_close(other, found)


def test_rolled_text_would_be_no_mistake_at_all() -> None:
    network, text_BLD = tiny_network(seed=0), torch.randn(1, 12, 32)
    call = {
        "modulation": network.modulate(torch.zeros(1)),
        "positions": network.positions((2, 4, 4), fps=24),
    }
    right, rolled, lost = (
        network(torch.ones(1, 16, 2, 4, 4), text=network.encode_text(each), **call)
        for each in (text_BLD, text_BLD.roll(SHIFT, dims=1), text_BLD[:, SHIFT:])
    )
    torch.testing.assert_close(rolled, right)
    assert (lost - right).abs().max() > 1e-2


def test_swapped_axes_give_a_token_the_angles_of_its_mirror_image() -> None:
    network = tiny_network(seed=0)
    right = network.positions((3, 8, 6), fps=24)
    wrong = swapped_axes(network, (3, 8, 6), fps=24)
    assert wrong.grid_THW == (3, 4, 3)
    assert torch.equal(wrong.learned_s1D, right.learned_s1D)

    def place(t: int, h: int, w: int) -> int:
        return (t * 4 + h) * 3 + w

    for t, h, w in ((1, 2, 0), (0, 2, 1), (2, 0, 2)):
        assert torch.equal(wrong.rope.cos[place(t, h, w)], right.rope.cos[place(h, t, w)])
        assert not torch.equal(wrong.rope.sin[place(t, h, w)], right.rope.sin[place(t, h, w)])


def test_the_prompts_are_as_many_as_asked_and_a_third_in_unseen_phrasings() -> None:
    items = choose_items(num_seen=200, num_unseen=100, seed=4)
    assert Counter(item.combination for item in items) == {"trained": 200, "held out": 100}
    assert Counter(item.is_phrasing_seen for item in items) == {True: 200, False: 100}
    assert [item.seed for item in items] == list(range(4, 304))
    for item in items:
        assert item.scene in (TRAINED if item.combination == "trained" else HELD_OUT)
        phrasings = PHRASINGS if item.is_phrasing_seen else UNSEEN_PHRASINGS
        assert item.prompt in {caption(item.scene, phrasing) for phrasing in phrasings}
    assert len({item.scene for item in items if item.combination == "trained"}) == 200
    assert {item.scene for item in items if item.combination == "held out"} == HELD_OUT


def test_a_seed_gives_the_same_prompts_and_another_others() -> None:
    first = choose_items(num_seen=20, num_unseen=10, seed=1)
    assert choose_items(num_seen=20, num_unseen=10, seed=1) == first
    others = choose_items(num_seen=20, num_unseen=10, seed=2)
    assert [item.prompt for item in others] != [item.prompt for item in first]


def test_the_subjects_prompts_show_every_motion_on_every_ground() -> None:
    items = subject_items(count=50, seed=0)
    assert len({(item.scene.motion, item.scene.ground) for item in items}) == 18
    assert len({item.seed for item in items}) == 50
    assert all(item.prompt.startswith(f"A {SUBJECT_NAME} ") for item in items)


def result(item: Item, **wrong: str) -> Result:
    scene = replace(item.scene, **wrong)
    return Result(
        item=item,
        verdict=Verdict(scene.colour, scene.shape, scene.motion, scene.ground),
        has_figure=False,
    )


def test_the_table_counts_each_attribute_and_all_of_them() -> None:
    items = choose_items(num_seen=40, num_unseen=10, seed=0)
    seen = [item for item in items if item.combination == "trained"]
    results = [result(item) for item in items if item not in seen]
    results += [result(item, colour="unclear") for item in seen[:4]]
    results += [result(item, motion="unclear") for item in seen[4:10]]
    results += [result(item) for item in seen[10:]]
    rows = rows_of(results, seed=0)
    assert rows["trained"] == {
        "videos": 40,
        "colour": 90,
        "shape": 100,
        "motion": 85,
        "ground": 100,
        "all": 75,
    }
    assert rows["held out"]["all"] == 100
    assert rows["held out, unseen phrasing"]["videos"] == sum(
        not item.is_phrasing_seen for item in items if item.combination == "held out"
    )
    lines = table(rows).splitlines()
    assert lines[0] == "| combinations | videos | colour | shape | motion | ground | all |"
    assert "| trained | 40 | 90.0 | 100.0 | 85.0 | 100.0 | 75.0 |" in lines


def test_shuffled_prompts_score_at_chance() -> None:
    rows = rows_of([result(item) for item in choose_items(num_seen=290, num_unseen=32, seed=0)], seed=0)
    chance = {"colour": 1 / 6, "shape": 1 / 3, "motion": 1 / 6, "ground": 1 / 3, "all": 1 / 324}
    for name, share in chance.items():
        assert rows["trained, shuffled"][name] == pytest.approx(100 * share, abs=8)
        assert rows["trained"][name] == 100


def test_a_good_table_misses_nothing_and_a_bad_one_says_what() -> None:
    good = {"colour": 98.0, "shape": 90.0, "motion": 95.0, "ground": 98.0}
    held_out = {name: share - 5 for name, share in good.items()}
    assert misses({"trained": good, "held out": held_out}) == []
    [missed] = misses({"trained": good | {"motion": 94.9}, "held out": held_out})
    assert missed.startswith("motion: 94.9 % of trained combinations")
    [missed] = misses({"trained": good, "held out": held_out | {"shape": 84.0}})
    assert missed.startswith("shape: 84.0 % held out, 90.0 % trained")
    assert "pass --num_seen and --num_unseen" in misses({"trained": good})[0]


def test_the_subjects_row_counts_figures() -> None:
    results = [
        replace(result(item), has_figure=n % 5 > 0) for n, item in enumerate(subject_items(count=50, seed=0))
    ]
    results[0] = replace(results[0], verdict=replace(results[0].verdict, motion="unclear"))
    assert subject_row(results) == {"subject": {"videos": 50, "figure": 80, "motion": 98, "ground": 100}}


def drawing(
    scene_of: Callable[[str], Scene],
) -> Callable[..., Iterator[Tensor]]:
    """What stands for a generator that has learned: it draws the scene of the prompt."""

    def generate(
        _: Generator, prompts: Sequence[str], *, seeds: Sequence[int], **__: Any
    ) -> Iterator[Tensor]:
        for prompt, seed in zip(prompts, seeds, strict=True):
            yield draw_clips([scene_of(prompt)], seed=seed, device=CPU)[0]

    return generate


def by_prompt(prompt: str) -> Scene:
    phrasings = (*PHRASINGS, *UNSEEN_PHRASINGS)
    return next(s for s in ALL_SCENES if any(caption(s, phrasing) == prompt for phrasing in phrasings))


def always_red(prompt: str) -> Scene:
    return replace(by_prompt(prompt), colour="red")


@pytest.mark.parametrize(("scene_of", "status"), [(by_prompt, 0), (always_red, 1)])
def test_require_passes_a_model_that_has_learned_and_no_other(
    assets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scene_of: Callable[[str], Scene],
    status: int,
) -> None:
    monkeypatch.setattr(Generator, "__call__", drawing(scene_of))
    flags = [f"--assets_dir={assets}", "--num_seen=8", "--num_unseen=4", "--device=cpu", "--require"]
    assert main(flags) == status
    out = capsys.readouterr().out
    assert ("| trained | 8 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |" in out) == (status == 0)
    assert ("MISSED colour" in out) == (status == 1)


def test_the_script_prints_a_table_and_writes_its_files(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    sheet, record = tmp_path / "sheet.png", tmp_path / "all.json"
    flags = [f"--assets_dir={assets}", "--num_seen=2", "--num_unseen=1", "--num_steps=2", "--device=cpu"]
    flags += ["--num_video_frames=9", f"--sheet={sheet}", "--sheet_videos=2", f"--json={record}"]
    assert main(flags) == 0
    assert "| trained | 2 | 0.0 |" in capsys.readouterr().out
    written = json.loads(record.read_text())
    assert len(written["results"]) == 3
    assert written["results"][0]["verdict"].keys() == {"colour", "shape", "motion", "ground"}
    assert written["rows"]["held out"]["videos"] == 1
    with Image.open(sheet) as picture:
        assert picture.width > 5 * 128


def test_the_subject_mode_names_the_subject_to_the_model(
    assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def stop(self: Any, prompts: list[str]) -> Tensor:
        read.extend(prompts)
        raise InterruptedError

    monkeypatch.setattr("cosmos_nemo.stages.text_encoder.TextEncoder.__call__", stop)
    flags = ["--subject", "--num_subject=4", f"--assets_dir={assets}", "--device=cpu"]
    with pytest.raises(InterruptedError):
        main(flags)
    assert len(read) == 4
    assert all(p.startswith(f"A video of sks {SUBJECT_NAME}. A {SUBJECT_NAME} ") for p in read)


def test_what_is_not_given_is_left_to_the_model() -> None:
    assert general_flags(parse([])) == []
    assert general_flags(parse(["--guidance", "-3", "--negative_prompt", ""])) == [
        "--guidance=-3",
        "--negative_prompt=",
    ]


@pytest.mark.parametrize(
    "flags",
    [["--num_seen=0", "--num_unseen=0"], ["--num_seen=-1"], ["--batch_size=0"], ["--subject", "--require"]],
)
def test_flags_that_make_no_sense_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(flags)
    assert stopped.value.code == 2


def test_a_missing_folder_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--assets_dir={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err
