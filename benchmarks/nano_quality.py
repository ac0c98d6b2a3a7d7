"""Whether the nano model makes what its prompts say: the share of videos judged right, from pixels alone.

PYTHONPATH=. python benchmarks/nano_quality.py --require
PYTHONPATH=. python benchmarks/nano_quality.py --model Cosmos-Nano-Video2World --require
PYTHONPATH=. python benchmarks/nano_quality.py --model Cosmos-Nano-Predict2-Video2World --require
PYTHONPATH=. python benchmarks/nano_quality.py --model Cosmos-Nano-WorldInterpolator --require
PYTHONPATH=. python benchmarks/nano_quality.py --model Cosmos-Nano-Autoregressive --require
PYTHONPATH=. python benchmarks/nano_quality.py --mistake guidance_sign
PYTHONPATH=. python benchmarks/nano_quality.py --subject --checkpoint POST_TRAINED

One row of the table is for combinations of colour, shape, motion and ground that the model was trained on,
one for combinations held out; below each, the part of it in phrasings that were never trained on, a third of
all prompts. In the rows called shuffled each video is judged by the prompt of another: what chance gives.
Video number i starts from the noise of seed + i. --mistake makes one deliberately, which the table must show.

--model, which comes first, judges another nano model, with the flags of benchmarks/nano_video2world.py,
benchmarks/nano_interpolator.py and benchmarks/nano_autoregressive.py.
"""

import argparse
import importlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.nano_generate import MISTAKES, MODEL, Generator, nano_job
from benchmarks.nano_judge import ATTRIBUTES, Verdict, judge, judge_figure, shows_teal_figure
from cosmos_nemo.job import PERSON_ERRORS, Job
from cosmos_nemo.stages.sheet import contact_sheet
from cosmos_nemo.training.nano.captions import (
    PHRASINGS,
    SUBJECT_NAME,
    UNSEEN_PHRASINGS,
    caption,
    subject_caption,
)
from cosmos_nemo.training.nano.world import GROUNDS, HELD_OUT, MOTIONS, TRAINED, Scene

REQUIRED = {"colour": 98.0, "motion": 95.0, "shape": 90.0, "ground": 98.0}
"""Percent right on the combinations of the training."""
MOST_LOST = 5.0
"""Points by which held-out combinations may be worse."""
SEEN, UNSEEN, PHRASED, SHUFFLED = "trained", "held out", ", unseen phrasing", ", shuffled"
FRAMES_SHOWN = 5
SISTERS = {
    "Cosmos-Nano-Video2World": "benchmarks.nano_video2world",
    "Cosmos-Nano-Predict2-Video2World": "benchmarks.nano_video2world",
    "Cosmos-Nano-WorldInterpolator": "benchmarks.nano_interpolator",
    "Cosmos-Nano-Autoregressive": "benchmarks.nano_autoregressive",
}
"""The scripts that judge the other models."""
SHUFFLES = 100

Choice = TypeVar("Choice")
Shares = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt and what its video must show."""

    prompt: str
    scene: Scene
    combination: str
    is_phrasing_seen: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class Result:
    item: Item
    verdict: Verdict
    has_figure: bool


def choose_items(*, num_seen: int, num_unseen: int, seed: int) -> list[Item]:
    """The prompts, in random order, all from the seed; scenes repeat only when all have had their turn."""
    dice = random.Random(seed)
    scenes = [(scene, SEEN) for scene in _draw(TRAINED, num_seen, dice)]
    scenes += [(scene, UNSEEN) for scene in _draw(sorted(HELD_OUT), num_unseen, dice)]
    dice.shuffle(scenes)
    return [
        _item(scene, combination, number=number, seed=seed, dice=dice)
        for number, (scene, combination) in enumerate(scenes)
    ]


def subject_items(*, count: int, seed: int) -> list[Item]:
    """Prompts for the subject, without the phrase that names it: each motion on each ground in turn."""
    dice = random.Random(seed)
    places = [(motion, ground) for motion in MOTIONS for ground in GROUNDS]
    return [
        Item(
            prompt=subject_caption(motion, ground),
            scene=Scene("", "", motion, ground),
            combination="subject",
            is_phrasing_seen=True,
            seed=seed + number,
        )
        for number, (motion, ground) in enumerate(_draw(places, count, dice))
    ]


def _item(scene: Scene, combination: str, *, number: int, seed: int, dice: random.Random) -> Item:
    is_phrasing_seen = number % 3 != 2
    phrasing = dice.choice(PHRASINGS if is_phrasing_seen else UNSEEN_PHRASINGS)
    return Item(
        prompt=caption(scene, phrasing),
        scene=scene,
        combination=combination,
        is_phrasing_seen=is_phrasing_seen,
        seed=seed + number,
    )


def _draw(choices: Sequence[Choice], count: int, dice: random.Random) -> list[Choice]:
    drawn: list[Choice] = []
    while len(drawn) < count:
        drawn += dice.sample(choices, len(choices))
    return drawn[:count]


def rows_of(results: Sequence[Result], *, seed: int) -> dict[str, Shares]:
    """Of each group of results, in percent: each attribute right, and all of them; "videos": how many."""
    rows: dict[str, Shares] = {}
    for combination in (SEEN, UNSEEN):
        group = [result for result in results if result.item.combination == combination]
        phrased = [result for result in group if not result.item.is_phrasing_seen]
        for name, part in ((combination, group), (f"{combination}{PHRASED}", phrased)):
            if part:
                rows[name] = shares((result.item.scene, result.verdict) for result in part)
        if len(group) > 1:
            pairs = [pair for turn in range(SHUFFLES) for pair in _shuffled(group, seed=seed + turn)]
            rows[f"{combination}{SHUFFLED}"] = shares(pairs) | {"videos": len(group)}
    return rows


def shares(pairs: Iterable[tuple[Scene, Verdict]]) -> Shares:
    """Percent of the verdicts that agree with their scenes."""
    right = [
        {name: getattr(scene, name) == getattr(verdict, name) for name in ATTRIBUTES}
        for scene, verdict in pairs
    ]
    found = {name: 100 * sum(each[name] for each in right) / len(right) for name in ATTRIBUTES}
    found["all"] = 100 * sum(all(each.values()) for each in right) / len(right)
    return {"videos": len(right), **found}


def _shuffled(results: Sequence[Result], *, seed: int) -> list[tuple[Scene, Verdict]]:
    scenes = [result.item.scene for result in results]
    random.Random(seed).shuffle(scenes)
    return [(scene, result.verdict) for scene, result in zip(scenes, results, strict=True)]


def misses(rows: dict[str, Shares]) -> list[str]:
    """What --require asks for and the table does not show, a sentence each."""
    if SEEN not in rows or UNSEEN not in rows:
        return ["both trained and held-out combinations are needed: pass --num_seen and --num_unseen above 0"]
    found = [
        f"{name}: {rows[SEEN][name]:.1f} % of trained combinations, {least:g} % required"
        for name, least in REQUIRED.items()
        if rows[SEEN][name] < least
    ]
    found += [
        f"{name}: {rows[UNSEEN][name]:.1f} % held out, {rows[SEEN][name]:.1f} % trained; "
        f"at most {MOST_LOST:g} points less required"
        for name in REQUIRED
        if rows[UNSEEN][name] < rows[SEEN][name] - MOST_LOST
    ]
    return found


def table(rows: dict[str, Shares]) -> str:
    columns = list(next(iter(rows.values())))
    lines = [f"| combinations | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{row[column]:.{_decimals(column)}f}" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _decimals(column: str) -> int:
    """Of a count, of pixels and of percent."""
    if column == "videos":
        return 0
    return 2 if column.endswith("error") else 1


def subject_row(results: Sequence[Result]) -> dict[str, Shares]:
    """Percent of the videos that show the figure, and that figure's motion and ground."""
    found = shares((result.item.scene, result.verdict) for result in results)
    figure = 100 * sum(result.has_figure for result in results) / len(results)
    return {
        "subject": {
            "videos": found["videos"],
            "figure": figure,
            "motion": found["motion"],
            "ground": found["ground"],
        }
    }


def make_and_judge(
    generator: Generator, items: Sequence[Item], arguments: argparse.Namespace
) -> tuple[list[Result], list[Tensor]]:
    """All results, and the videos for the sheet."""
    look: Callable[..., Verdict] = judge_figure if arguments.subject else judge
    videos = generator(
        [item.prompt for item in items],
        seeds=[item.seed for item in items],
        batch_size=arguments.batch_size,
        on_batch=lambda done, total: print(f"{done} of {total}", file=sys.stderr, flush=True),
    )
    results: list[Result] = []
    kept: list[Tensor] = []
    for item, frames_THWC in zip(items, videos, strict=True):
        if arguments.sheet and len(kept) < arguments.sheet_videos:
            kept.append(frames_THWC)
        frames = frames_THWC.numpy()
        results.append(Result(item=item, verdict=look(frames), has_figure=shows_teal_figure(frames)))
    return results, kept


def draw_sheet(videos: Sequence[Tensor], results: Sequence[Result], path: Path) -> None:
    """A picture with some frames of each video below its prompt and the verdict."""
    shown = zip(videos, results, strict=False)
    texts = [(f"{result.item.prompt} - {_said(result)}", frames.numpy()) for frames, result in shown]
    contact_sheet(texts, num_frames=FRAMES_SHOWN).save(path)


def _said(result: Result) -> str:
    words = list(asdict(result.verdict).values()) + ["teal figure"] * result.has_figure
    return f"{'right' if _is_right(result) else 'WRONG'}: {', '.join(words)}"


def _is_right(result: Result) -> bool:
    if result.item.combination == "subject":
        return result.has_figure
    return asdict(result.verdict) == asdict(result.item.scene)


def report(job: Job, results: Sequence[Result], arguments: argparse.Namespace, seconds: float) -> int:
    """Prints the table and writes what was asked for; the exit status."""
    rows = subject_row(results) if arguments.subject else rows_of(results, seed=arguments.seed)
    request = job.request
    settings = (
        f"{request.num_steps} steps, guidance {request.guidance:g}, seed {arguments.seed}, "
        f"mistake {arguments.mistake}, {job.device.type} {str(job.dtype)[6:]}"
    )
    print(f"{settings}: {len(results)} videos in {seconds:.0f} s\nweights: {job.files.weights}\n")
    print(table(rows))
    print(f"\nteal figure in {sum(result.has_figure for result in results)} of {len(results)} videos")
    missed = misses(rows) if arguments.require else []
    for miss in missed:
        print(f"MISSED {miss}")
    if arguments.json:
        records = [asdict(result) for result in results]
        whole: dict[str, Any] = {
            "settings": job.facts(request),
            "mistake": arguments.mistake,
            "seconds": seconds,
        }
        whole |= {"rows": rows, "missed": missed, "results": records}
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=(MODEL,), default=MODEL, help=", ".join((MODEL, *SISTERS)))
    parser.add_argument(
        "--num_seen", type=at_least_zero, default=200, help="prompts of trained combinations; 200"
    )
    parser.add_argument("--num_unseen", type=at_least_zero, default=100, help="prompts of the others; 100")
    add_output(parser)
    parser.add_argument("--subject", action="store_true", help="prompts for the post-trained subject instead")
    parser.add_argument("--subject_name", default=SUBJECT_NAME, help=f"with --subject; {SUBJECT_NAME}")
    parser.add_argument("--num_subject", type=at_least_one, default=50, help="prompts of --subject; 50")
    parser.add_argument("--mistake", choices=MISTAKES, default="none", help="make one deliberately")
    add_general(parser.add_argument_group("as for inference/general.py"))
    arguments = parser.parse_args(argv)
    if not arguments.subject and arguments.num_seen + arguments.num_unseen == 0:
        parser.error("--num_seen 0 --num_unseen 0 leaves nothing to judge: pass at least one of them")
    if arguments.subject and arguments.require:
        parser.error("--require has no effect with --subject: leave one of them out")
    return arguments


def add_output(parser: argparse.ArgumentParser) -> None:
    """What every one of these scripts can be told about how it makes and judges."""
    parser.add_argument("--seed", type=at_least_zero, default=0, help="of prompts, phrasings and noise; 0")
    parser.add_argument("--batch_size", type=at_least_one, default=20, help="videos made at a time; 20")
    parser.add_argument("--device", type=torch.device, help="cpu or cuda; a GPU where there is one")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="a picture of the first videos")
    parser.add_argument("--sheet_videos", type=at_least_one, default=24, help="how many are on it; 24")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--require", action="store_true", help="exit with 1 unless the model is good enough")


def add_general(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--checkpoint", help="a NeMo checkpoint of the network; the one in the package")
    group.add_argument("--assets_dir", help="a folder with one folder per repository; the package's")
    group.add_argument("--num_steps", help="35")
    group.add_argument("--guidance", help="the model's")
    group.add_argument("--negative_prompt", help="what to avoid; the request's default")
    group.add_argument("--num_video_frames", help="the model's, 33")
    group.add_argument("--backend", help="te or torch; the best there is")
    group.add_argument("--precision", help="bf16 or fp8; bf16")


def general_flags(arguments: argparse.Namespace) -> list[str]:
    """The flags of inference/general.py that the arguments stand for; what was not given is left out."""
    given = {
        "--nemo_checkpoint": arguments.checkpoint,
        "--cosmos_assets_dir": arguments.assets_dir,
        "--num_steps": arguments.num_steps,
        "--guidance": arguments.guidance,
        "--negative_prompt": arguments.negative_prompt,
        "--num_video_frames": arguments.num_video_frames,
        "--backend": arguments.backend,
        "--precision": arguments.precision,
        "--subject_name": arguments.subject_name if getattr(arguments, "subject", False) else None,
    }
    return [f"{flag}={value}" for flag, value in given.items() if value is not None]


def at_least_zero(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} must be 0 or more")
    return number


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be 1 or more")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """0: a table, 1: --require is not met, 2: a flag or a checkpoint that cannot be."""
    asked = list(sys.argv[1:] if argv is None else argv)
    model = asked[1] if asked[:1] == ["--model"] and len(asked) > 1 else ""
    if model in SISTERS:
        return int(importlib.import_module(SISTERS[model]).main(asked))
    arguments = parse(asked)
    try:
        job = nano_job(general_flags(arguments), device=arguments.device)
    except PERSON_ERRORS as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if arguments.subject:
        items = subject_items(count=arguments.num_subject, seed=arguments.seed)
    else:
        items = choose_items(
            num_seen=arguments.num_seen, num_unseen=arguments.num_unseen, seed=arguments.seed
        )
    started = time.perf_counter()
    results, kept = make_and_judge(Generator(job, mistake=arguments.mistake), items, arguments)
    if arguments.sheet:
        draw_sheet(kept, results, arguments.sheet)
    return report(job, results, arguments, time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
