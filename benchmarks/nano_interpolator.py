"""Whether Cosmos-Nano-WorldInterpolator's frames lie between those it is given, from pixels alone.

PYTHONPATH=. python benchmarks/nano_interpolator.py --require
PYTHONPATH=. python benchmarks/nano_interpolator.py --mistake last_wrong

Each clip of the world is drawn at ten moments, the first and the last nine frames apart; the model is given
those two, and its eight others are compared with the eight that were drawn. Errors are how far the object's
middle lies from where it was drawn, in pixels of 128; "monotone": it never turns back, nor leaves the way
between the two. Bounces are left out: two frames do not say where between them the object turned. Shuffled,
clips are compared with other clips: what chance gives. "tokenizer alone" are the drawn clips, encoded and
decoded: no model can be better.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.nano_generate import MISTAKES_OF, Generator, nano_job
from benchmarks.nano_given import decoded
from benchmarks.nano_judge import Floats, Verdict, centres, judge
from benchmarks.nano_quality import Shares, add_general, add_output, at_least_one, general_flags, table
from cosmos_nemo.catalog import Task
from cosmos_nemo.job import PERSON_ERRORS, Job
from cosmos_nemo.stages.sheet import contact_sheet
from cosmos_nemo.training.nano.captions import PHRASINGS, caption
from cosmos_nemo.training.nano.clips import pair_times
from cosmos_nemo.training.nano.world import ALL_SCENES, Scene, draw_clips
from cosmos_nemo.training.prepare import encode_clips

MODEL = "Cosmos-Nano-WorldInterpolator"
MADE, SHUFFLED, TOKENIZER = "interpolated", "interpolated, shuffled", "tokenizer alone"
MOST_ERROR = 2.0
"""Pixels by which any frame's object may lie off."""
REQUIRED = {"under 2 px": 100.0, "monotone": 100.0, "colour": 98.0, "shape": 98.0}
"""Percent of the clips: all their frames nearer than MOST_ERROR, and so on."""
_SPAN = 9.0
"""Frames of a clip from the first given moment to the last: 11 to 20 pixels for what moves."""
_SLACK = 0.5
"""Pixels by which an object may seem to go back: the middle of a drawn one is not exact either."""
_CLIP_SEED = 7_000_003
_SHUFFLES = 100
_FRAMES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A drawn clip of ten frames, of which the first and the last are given."""

    scene: Scene
    prompt: str
    seed: int
    clip_THWC: Tensor


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a clip of ten frames shows beside the drawn one."""

    scene: Scene
    verdict: Verdict
    drawn: tuple[tuple[float, float], ...]
    """Where the object lies in each frame, row and column."""
    made: tuple[tuple[float, float], ...]


def choose_pairs(*, count: int, seed: int) -> list[Pair]:
    """All from the seed; every motion but bounces in turn."""
    dice = random.Random(seed)
    motions = sorted({scene.motion for scene in ALL_SCENES} - {"bounces"})
    scenes = [
        dice.choice([scene for scene in ALL_SCENES if scene.motion == motions[number % len(motions)]])
        for number in range(count)
    ]
    times_BT = pair_times(count, span=(_SPAN, _SPAN), seed=_CLIP_SEED + seed)
    clips = draw_clips(scenes, seed=_CLIP_SEED + seed, device=torch.device("cpu"), times_BT=times_BT)
    return [
        Pair(scene=scene, prompt=caption(scene, PHRASINGS[0]), seed=seed + number, clip_THWC=clip)
        for number, (scene, clip) in enumerate(zip(scenes, clips, strict=True))
    ]


def judged(pair: Pair, frames_THWC: Tensor) -> Result:
    frames = frames_THWC.numpy()
    return Result(
        scene=pair.scene,
        verdict=judge(frames),
        drawn=_as_tuples(centres(pair.clip_THWC.numpy())),
        made=_as_tuples(centres(frames)),
    )


def _as_tuples(places_T2: Floats) -> tuple[tuple[float, float], ...]:
    return tuple((float(row), float(column)) for row, column in places_T2)


def errors(drawn: Floats, made: Floats) -> Floats:
    """Pixels, of each frame between the given ones; infinite where no object is seen."""
    off_T = np.hypot(*(made - drawn)[1:-1].T)
    return np.where(np.isnan(off_T), np.inf, off_T)


def is_monotone(drawn: Floats, made: Floats) -> bool:
    """Whether the object goes from the first drawn place towards the last and never back or beyond.

    One that hardly moves has to stay within _SLACK of every place between the two.
    """
    way_2 = drawn[-1] - drawn[0]
    length = float(np.hypot(*way_2))
    if np.isnan(made).any() or np.isnan(length):
        return False
    if length < 2 * _SLACK:
        return bool(np.hypot(*(made - drawn.mean(axis=0)).T).max() <= length / 2 + 2 * _SLACK)
    along_T = (made - drawn[0]) @ way_2 / length
    is_between = (along_T > -_SLACK) & (along_T < length + _SLACK)
    return bool(is_between.all() and (np.diff(along_T) > -_SLACK).all())


def row(pairs: Iterable[tuple[Result, Result]]) -> Shares:
    """Of the second of each pair as an interpolation of the first's drawn clip."""
    pairs = list(pairs)
    found = [errors(np.array(told.drawn), np.array(made.made)) for told, made in pairs]
    monotone = [is_monotone(np.array(told.drawn), np.array(made.made)) for told, made in pairs]
    kept = {
        name: [getattr(told.scene, name) == getattr(made.verdict, name) for told, made in pairs]
        for name in ("colour", "shape")
    }
    near = [bool((off_T < MOST_ERROR).all()) for off_T in found]
    return {
        "videos": len(pairs),
        "mean error": float(np.mean(found)),
        "largest error": float(np.max(found)),
        "under 2 px": 100 * sum(near) / len(near),
        "monotone": 100 * sum(monotone) / len(monotone),
        **{name: 100 * sum(right) / len(right) for name, right in kept.items()},
    }


def rows_of(results: Sequence[Result], alone: Sequence[Result], *, seed: int) -> dict[str, Shares]:
    rows = {MADE: row(zip(results, results, strict=True))}
    if len(results) > 1:
        pairs: list[tuple[Result, Result]] = []
        for turn in range(_SHUFFLES):
            told = list(results)
            random.Random(seed + turn).shuffle(told)
            pairs += zip(told, results, strict=True)
        rows[SHUFFLED] = row(pairs) | {"videos": len(results)}
    rows[TOKENIZER] = row(zip(alone, alone, strict=True))
    return rows


def misses(rows: dict[str, Shares]) -> list[str]:
    """What --require asks for and the table does not show, a sentence each."""
    return [
        f"{column}: {rows[MADE][column]:.1f} % of the clips, {least:g} % required"
        for column, least in REQUIRED.items()
        if not rows[MADE][column] >= least
    ]


def make_and_judge(
    generator: Generator, pairs: Sequence[Pair], arguments: argparse.Namespace
) -> tuple[list[Result], list[Tensor]]:
    """All results, and the videos for the sheet."""
    videos = list(
        generator(
            [pair.prompt for pair in pairs],
            seeds=[pair.seed for pair in pairs],
            given_NTHWC=torch.stack([pair.clip_THWC[[0, -1]] for pair in pairs]),
            batch_size=arguments.batch_size,
            on_batch=lambda done, total: print(f"{done} of {total}", file=sys.stderr, flush=True),
        )
    )
    results = [judged(pair, frames_THWC) for pair, frames_THWC in zip(pairs, videos, strict=True)]
    return results, videos[: arguments.sheet_videos]


def through_tokenizer(generator: Generator, pairs: Sequence[Pair]) -> list[Result]:
    """Of the drawn clips, encoded and decoded."""
    task, results = Task.WORLD_INTERPOLATOR, []
    with generator.tokenizer as tokenizer:
        for pair in pairs:
            video_BCTHW = pair.clip_THWC.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            latent_BCTHW = encode_clips(tokenizer, video_BCTHW, task=task)
            results.append(judged(pair, decoded(tokenizer, latent_BCTHW, task=task)))
    return results


def report(
    job: Job,
    results: Sequence[Result],
    alone: Sequence[Result],
    arguments: argparse.Namespace,
    seconds: float,
) -> int:
    """Prints the table and writes what was asked for; the exit status."""
    rows, request = rows_of(results, alone, seed=arguments.seed), job.request
    print(
        f"{request.num_steps} steps, guidance {request.guidance:g}, seed {arguments.seed}, mistake "
        f"{arguments.mistake}, {job.device.type} {str(job.dtype)[6:]}: {len(results)} clips in "
        f"{seconds:.0f} s\nweights: {job.files.weights}\n"
    )
    print(table(rows))
    missed = misses(rows) if arguments.require else []
    for miss in missed:
        print(f"MISSED {miss}")
    if arguments.json:
        records = [asdict(result) for result in results]
        whole = {"settings": job.facts(request), "mistake": arguments.mistake, "seconds": seconds}
        whole |= {"rows": rows, "missed": missed, "results": records}
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0


def draw_sheet(videos: Sequence[Tensor], pairs: Sequence[Pair], path: Path) -> None:
    """A picture with all ten frames of each clip, the made ones below the drawn ones."""
    texts = []
    for frames, pair in zip(videos, pairs, strict=False):
        texts += [(f"drawn: {pair.prompt}", pair.clip_THWC.numpy()), ("interpolated", frames.numpy())]
    contact_sheet(texts, num_frames=_FRAMES_SHOWN).save(path)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=(MODEL,), default=MODEL, help=MODEL)
    parser.add_argument("--num_clips", type=at_least_one, default=50, help="50")
    add_output(parser)
    parser.add_argument(
        "--mistake",
        choices=MISTAKES_OF[Task.WORLD_INTERPOLATOR],
        default="none",
        help="make one deliberately",
    )
    add_general(parser.add_argument_group("as for inference/general.py"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0: a table, 1: --require is not met, 2: a flag or a checkpoint that cannot be."""
    arguments = parse(argv)
    try:
        job = nano_job(general_flags(arguments), device=arguments.device, model=MODEL)
    except PERSON_ERRORS as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    pairs = choose_pairs(count=arguments.num_clips, seed=arguments.seed)
    generator = Generator(job, mistake=arguments.mistake)
    started = time.perf_counter()
    results, videos = make_and_judge(generator, pairs, arguments)
    seconds = time.perf_counter() - started
    alone = through_tokenizer(generator, pairs)
    if arguments.sheet:
        draw_sheet(videos, pairs, arguments.sheet)
    return report(job, results, alone, arguments, seconds)


if __name__ == "__main__":
    sys.exit(main())
