"""Whether a nano Video2World goes on from the frames it is given, as its prompts say, from pixels alone.

PYTHONPATH=. python benchmarks/nano_video2world.py --require
PYTHONPATH=. python benchmarks/nano_video2world.py --model Cosmos-Nano-Predict2-Video2World --mistake mask_off

Half of the videos begin with one frame of a clip of the world, half with nine, of Predict2 five. Colour and
shape must hold to the end, "goes on" says that the object does not jump where the made frames begin. In the
row "another direction" the frame is one of a clip with another motion than the prompt's: what the prompt says
must come. In those called shuffled, a video is judged by the prompt and the frames of another: what chance
gives. "tokenizer alone" are the clips that the frames were taken from, encoded and decoded: no model can be
better, and fast bounces are blurred already, so that --require looks at the other motions.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.nano_generate import MISTAKES_OF, Generator, nano_job
from benchmarks.nano_judge import Verdict, centres, judge_to_the_end
from benchmarks.nano_quality import (
    SEEN,
    SHUFFLED,
    SHUFFLES,
    UNSEEN,
    Item,
    Shares,
    add_general,
    add_output,
    at_least_zero,
    choose_items,
    general_flags,
    shares,
    table,
)
from cosmos_nemo.catalog import Task
from cosmos_nemo.job import PERSON_ERRORS, Job
from cosmos_nemo.stages.sheet import contact_sheet
from cosmos_nemo.training.nano.captions import PHRASINGS, caption
from cosmos_nemo.training.nano.world import TRAINED, Scene, draw_clips

MODELS = ("Cosmos-Nano-Video2World", "Cosmos-Nano-Predict2-Video2World")
REQUIRED = {"colour": 98.0, "shape": 98.0, "motion": 95.0, "goes on": 95.0}
"""Percent right on the combinations of the training, bounces left out."""
MOST_LOST = 5.0
TURNED, BOUNCES, TOKENIZER = "another direction", "bounces", "tokenizer alone"
_NEAREST, _NEAREST_OF_BOUNCES = 8.0, 20.0
"""Pixels, down or across, from one frame to the next; the fastest bounce moves 17."""
_WATCHED = 12
"""Made frames through which the object is followed."""
_CLIP_SEED = 5_000_011
"""Of the clips that the frames are taken from: other clips than those of the training."""
_FRAMES_SHOWN = 5

Place = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A prompt, and the clip whose first frames are given with it."""

    item: Item
    num_given: int
    clip_THWC: Tensor


@dataclass(frozen=True, kw_only=True)
class Result:
    item: Item
    num_given: int
    verdict: Verdict
    given_place: Place
    """Of the object in the last given frame, row and column, NaN if there is none."""
    made_places: tuple[Place, ...]
    """In the first made ones."""


def choose_starts(
    *, counts: Sequence[int], num_seen: int, num_unseen: int, num_turned: int, seed: int
) -> list[Start]:
    """All from the seed; those of one number of given frames follow each other. counts: those numbers."""
    starts = [
        Start(item=item, num_given=counts[number % len(counts)], clip_THWC=_clip(item.scene, item.seed))
        for number, item in enumerate(choose_items(num_seen=num_seen, num_unseen=num_unseen, seed=seed))
    ]
    starts += turned_starts(count=num_turned, seed=seed)
    return sorted(starts, key=lambda start: start.num_given)


def turned_starts(*, count: int, seed: int) -> list[Start]:
    """First frames with prompts for a motion across the clip's own, to the side with the most room."""
    dice = random.Random(seed)
    scenes = [scene for scene in TRAINED if scene.motion.startswith("moves")]
    starts = []
    for number, scene in enumerate(dice.choices(scenes, k=count)):
        clip_THWC = _clip(scene, seed - 1 - number)
        turned = replace(scene, motion=_across(scene.motion, centres(clip_THWC[:2].numpy())[0]))
        item = Item(
            prompt=caption(turned, dice.choice(PHRASINGS)),
            scene=turned,
            combination=TURNED,
            is_phrasing_seen=True,
            seed=seed + number,
        )
        starts.append(Start(item=item, num_given=1, clip_THWC=clip_THWC))
    return starts


def _across(motion: str, place_2: Any) -> str:
    row, column = place_2
    if motion in ("moves up", "moves down"):
        return "moves to the right" if column < 64 else "moves to the left"
    return "moves down" if row < 64 else "moves up"


def _clip(scene: Scene, seed: int) -> Tensor:
    return draw_clips([scene], seed=_CLIP_SEED + seed, device=torch.device("cpu"))[0]


def judged(start: Start, frames_THWC: Tensor) -> Result:
    """What a video shows that begins with the start's frames."""
    frames = frames_THWC.numpy()
    given, *made = [
        (float(row), float(column))
        for row, column in (
            centres(start.clip_THWC.numpy())[start.num_given - 1],
            *centres(frames)[start.num_given : start.num_given + _WATCHED],
        )
    ]
    return Result(
        item=start.item,
        num_given=start.num_given,
        verdict=judge_to_the_end(frames),
        given_place=given,
        made_places=tuple(made),
    )


def goes_on(motion: str, given: Place, made: Sequence[Place]) -> bool:
    """Whether the places can be of one object in frames that follow each other, the given one first.

    More than one made frame counts: the tokenizer lets what was given shine through a few frames more.
    """
    most = _NEAREST_OF_BOUNCES if motion == BOUNCES else _NEAREST
    steps = np.abs(np.diff([given, *made], axis=0))
    return bool((steps <= most).all())


def row(pairs: Iterable[tuple[Result, Result]]) -> Shares:
    """Percent of the videos, the second of each pair, that are as the first's prompt and frames say."""
    pairs = list(pairs)
    found = shares((told.item.scene, made.verdict) for told, made in pairs)
    goes = [goes_on(told.item.scene.motion, told.given_place, made.made_places) for told, made in pairs]
    right = [
        does_go and asdict(told.item.scene) == asdict(made.verdict)
        for does_go, (told, made) in zip(goes, pairs, strict=True)
    ]
    del found["all"]
    return {**found, "goes on": 100 * sum(goes) / len(goes), "all": 100 * sum(right) / len(right)}


def rows_of(results: Sequence[Result], *, seed: int) -> dict[str, Shares]:
    """By combination and number of given frames, without bounces and with bounces alone, and shuffled."""
    rows: dict[str, Shares] = {}
    for combination in (SEEN, UNSEEN):
        group = [result for result in results if result.item.combination == combination]
        for num in sorted({result.num_given for result in group}):
            some = [result for result in group if result.num_given == num]
            bounces = [result for result in some if result.item.scene.motion == BOUNCES]
            name = _name(combination, num)
            for part_name, part in (
                (name, [result for result in some if result not in bounces]),
                (f"{name}, {BOUNCES}", bounces),
            ):
                if part:
                    rows[part_name] = row(zip(part, part, strict=True))
        if len(group) > 1:
            turns = [list(group) for _ in range(SHUFFLES)]
            for turn, told in enumerate(turns):
                random.Random(seed + turn).shuffle(told)
            pairs = [pair for told in turns for pair in zip(told, group, strict=True)]
            rows[f"{combination}{SHUFFLED}"] = row(pairs) | {"videos": len(group)}
    turned = [result for result in results if result.item.combination == TURNED]
    if turned:
        rows[TURNED] = row(zip(turned, turned, strict=True))
    return rows


def _name(combination: str, num_given: int) -> str:
    return f"{combination}, {num_given} frame{'s' * (num_given > 1)}"


def misses(rows: dict[str, Shares], *, counts: Sequence[int]) -> list[str]:
    """What --require asks for and the table does not show, a sentence each."""
    needed = [_name(combination, num) for combination in (SEEN, UNSEEN) for num in counts] + [TURNED]
    absent = [name for name in needed if name not in rows]
    if absent:
        return [f"there is no row {absent[0]!r}: pass more of --num_seen, --num_unseen and --num_turned"]
    found = []
    for name in needed:
        allowed = MOST_LOST if name.startswith(UNSEEN) else 0.0
        found += [
            f"{column}: {rows[name][column]:.1f} % ({name}), {least - allowed:g} % required"
            for column, least in REQUIRED.items()
            if rows[name][column] < least - allowed
        ]
    return found


def make_and_judge(
    generator: Generator, starts: Sequence[Start], arguments: argparse.Namespace
) -> tuple[list[Result], list[Tensor]]:
    """All results, and the videos for the sheet, in the order of the starts."""
    results: list[Result] = []
    kept: list[Tensor] = []
    for num in sorted({start.num_given for start in starts}):
        some = [start for start in starts if start.num_given == num]
        videos = generator(
            [start.item.prompt for start in some],
            seeds=[start.item.seed for start in some],
            given_NTHWC=torch.stack([start.clip_THWC[:num] for start in some]),
            batch_size=arguments.batch_size,
            on_batch=lambda done, total: print(f"{done} of {total}", file=sys.stderr, flush=True),
        )
        for start, frames_THWC in zip(some, videos, strict=True):
            results.append(judged(start, frames_THWC))
            if arguments.sheet and len(kept) < arguments.sheet_videos:
                kept.append(frames_THWC)
    return results, kept


def through_tokenizer(generator: Generator, starts: Sequence[Start]) -> list[Result]:
    """Of the starts' own clips, encoded and decoded."""
    results = []
    with generator.tokenizer as tokenizer:
        for start in starts:
            video_BCTHW = start.clip_THWC.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            results.append(judged(start, tokenizer.decode(tokenizer.encode(video_BCTHW))))
    return results


def tokenizer_rows(results: Sequence[Result]) -> dict[str, Shares]:
    bounces = [result for result in results if result.item.scene.motion == BOUNCES]
    others = [result for result in results if result not in bounces]
    parts = {TOKENIZER: others, f"{TOKENIZER}, {BOUNCES}": bounces}
    return {name: row(zip(part, part, strict=True)) for name, part in parts.items() if part}


def report(
    job: Job,
    results: Sequence[Result],
    alone: Sequence[Result],
    arguments: argparse.Namespace,
    seconds: float,
) -> int:
    """Prints the table and writes what was asked for; the exit status."""
    rows, request = rows_of(results, seed=arguments.seed), job.request
    print(
        f"{request.num_steps} steps, guidance {request.guidance:g}, seed {arguments.seed}, mistake "
        f"{arguments.mistake}, {job.device.type} {str(job.dtype)[6:]}: {len(results)} videos in "
        f"{seconds:.0f} s\nweights: {job.files.weights}\n"
    )
    print(table(rows | tokenizer_rows(alone)))
    missed = misses(rows, counts=job.card.video.given_frames) if arguments.require else []
    for miss in missed:
        print(f"MISSED {miss}")
    if arguments.json:
        records = [asdict(result) for result in results]
        whole = {"settings": job.facts(request), "mistake": arguments.mistake, "seconds": seconds}
        whole |= {"rows": rows | tokenizer_rows(alone), "missed": missed, "results": records}
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0


def draw_sheet(videos: Sequence[Tensor], results: Sequence[Result], path: Path) -> None:
    """A picture with some frames of each video below its prompt and the verdict."""
    texts = [
        (f"{result.item.prompt} - {', '.join(asdict(result.verdict).values())}", frames.numpy())
        for frames, result in zip(videos, results, strict=False)
    ]
    contact_sheet(texts, num_frames=_FRAMES_SHOWN).save(path)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help=MODELS[0])
    parser.add_argument(
        "--num_seen", type=at_least_zero, default=200, help="prompts of trained combinations; 200"
    )
    parser.add_argument("--num_unseen", type=at_least_zero, default=100, help="prompts of the others; 100")
    parser.add_argument("--num_turned", type=at_least_zero, default=50, help="frames of another motion; 50")
    add_output(parser)
    parser.add_argument(
        "--mistake", choices=MISTAKES_OF[Task.VIDEO2WORLD], default="none", help="make one deliberately"
    )
    add_general(parser.add_argument_group("as for inference/general.py"))
    arguments = parser.parse_args(argv)
    if arguments.num_seen + arguments.num_unseen + arguments.num_turned == 0:
        parser.error("--num_seen 0 --num_unseen 0 --num_turned 0 leaves nothing to judge")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """0: a table, 1: --require is not met, 2: a flag or a checkpoint that cannot be."""
    arguments = parse(argv)
    try:
        job = nano_job(general_flags(arguments), device=arguments.device, model=arguments.model)
    except PERSON_ERRORS as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    starts = choose_starts(
        counts=job.card.video.given_frames,
        num_seen=arguments.num_seen,
        num_unseen=arguments.num_unseen,
        num_turned=arguments.num_turned,
        seed=arguments.seed,
    )
    generator = Generator(job, mistake=arguments.mistake)
    started = time.perf_counter()
    results, kept = make_and_judge(generator, starts, arguments)
    seconds = time.perf_counter() - started
    alone = through_tokenizer(generator, [start for start in starts if start.item.combination != TURNED])
    if arguments.sheet:
        draw_sheet(kept, results, arguments.sheet)
    return report(job, results, alone, arguments, seconds)


if __name__ == "__main__":
    sys.exit(main())
