"""Whether the nano autoregressive model goes on from nine frames as they were going, from pixels alone.

PYTHONPATH=. python benchmarks/nano_autoregressive.py --require
PYTHONPATH=. python benchmarks/nano_autoregressive.py --mistake rope_axes

No prompt is read: the first nine frames of a clip of the world say what moves where. Colour and shape must
hold to the end, "goes on" says that the object does not jump where the made frames begin. In the rows called
shuffled, a video is judged by the clip of another: what chance gives. "tokenizer alone" are the clips
themselves, encoded and decoded: no model can be better, and fast bounces are blurred already, so that
--require looks at the other motions.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.nano_quality import SEEN, UNSEEN, Shares, add_output, at_least_zero, table
from benchmarks.nano_tokens import MISTAKES, MODEL, TokenGenerator, token_job
from benchmarks.nano_video2world import (
    Result,
    Start,
    choose_starts,
    draw_sheet,
    judged,
    rows_of,
    tokenizer_rows,
)
from cosmos_nemo.job import PERSON_ERRORS

REQUIRED = {"colour": 98.0, "motion": 95.0}
"""Percent right on the combinations of the training, bounces left out."""
MOST_LOST = 5.0
"""Points by which held-out combinations may be worse."""
NUM_GIVEN = 9


def misses(rows: dict[str, Shares]) -> list[str]:
    """What --require asks for and the table does not show, a sentence each."""
    found = []
    for combination, allowed in ((SEEN, 0.0), (UNSEEN, MOST_LOST)):
        name = f"{combination}, {NUM_GIVEN} frames"
        if name not in rows:
            return [f"there is no row {name!r}: pass more of --num_seen and --num_unseen"]
        found += [
            f"{column}: {rows[name][column]:.1f} % ({name}), {least - allowed:g} % required"
            for column, least in REQUIRED.items()
            if rows[name][column] < least - allowed
        ]
    return found


def make_and_judge(
    generator: TokenGenerator, starts: Sequence[Start], arguments: argparse.Namespace
) -> tuple[list[Result], list[Tensor]]:
    """All results, and the videos for the sheet, in the order of the starts."""
    videos = generator(
        torch.stack([start.clip_THWC[: start.num_given] for start in starts]),
        seeds=[start.item.seed for start in starts],
        batch_size=arguments.batch_size,
        on_batch=lambda done, total: print(f"{done} of {total}", file=sys.stderr, flush=True),
    )
    results, kept = [], []
    for start, frames_THWC in zip(starts, videos, strict=True):
        results.append(judged(start, frames_THWC))
        if arguments.sheet and len(kept) < arguments.sheet_videos:
            kept.append(frames_THWC)
    return results, kept


def report(
    generator: TokenGenerator,
    results: Sequence[Result],
    alone: Sequence[Result],
    arguments: argparse.Namespace,
    seconds: float,
) -> int:
    """Prints the table and writes what was asked for; the exit status."""
    job, sampling, rows = generator.job, generator.sampling(), rows_of(results, seed=arguments.seed)
    print(
        f"{sampling}, seed {arguments.seed}, mistake {arguments.mistake}, {job.device.type} "
        f"{str(job.dtype)[6:]}: {len(results)} videos in {seconds:.0f} s\nweights: {job.files.weights}\n"
    )
    print(table(rows | tokenizer_rows(alone)))
    missed = misses(rows) if arguments.require else []
    for miss in missed:
        print(f"MISSED {miss}")
    if arguments.json:
        whole: dict[str, Any] = {
            "settings": asdict(sampling) | {"model": job.card.name},
            "mistake": arguments.mistake,
            "seconds": seconds,
            "rows": rows | tokenizer_rows(alone),
            "missed": missed,
            "results": [asdict(result) for result in results],
        }
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=(MODEL,), default=MODEL, help=MODEL)
    parser.add_argument(
        "--num_seen", type=at_least_zero, default=200, help="clips of trained combinations; 200"
    )
    parser.add_argument("--num_unseen", type=at_least_zero, default=100, help="clips of the others; 100")
    add_output(parser)
    parser.add_argument("--mistake", choices=MISTAKES, default="none", help="make one deliberately")
    group = parser.add_argument_group("as for inference/base.py")
    group.add_argument("--checkpoint", help="a NeMo checkpoint of the network; the one in the package")
    group.add_argument("--assets_dir", help="a folder with one folder per repository; the package's")
    for flag in ("--temperature", "--top_p", "--top_k"):
        group.add_argument(flag, help="the model's")
    group.add_argument("--backend", help="te or torch; the best there is")
    arguments = parser.parse_args(argv)
    if arguments.num_seen + arguments.num_unseen == 0:
        parser.error("--num_seen 0 --num_unseen 0 leaves nothing to judge: pass at least one of them")
    return arguments


def base_flags(arguments: argparse.Namespace) -> list[str]:
    """The flags of inference/base.py that the arguments stand for; what was not given is left out."""
    given = {
        "--ar_model_dir": arguments.checkpoint,
        "--checkpoint_dir": arguments.assets_dir,
        "--temperature": arguments.temperature,
        "--top_p": arguments.top_p,
        "--top_k": arguments.top_k,
        "--backend": arguments.backend,
    }
    return [f"{flag}={value}" for flag, value in given.items() if value is not None]


def main(argv: Sequence[str] | None = None) -> int:
    """0: a table, 1: --require is not met, 2: a flag or a checkpoint that cannot be."""
    arguments = parse(argv)
    try:
        job = token_job(base_flags(arguments), device=arguments.device)
    except PERSON_ERRORS as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    starts = choose_starts(
        counts=(NUM_GIVEN,),
        num_seen=arguments.num_seen,
        num_unseen=arguments.num_unseen,
        num_turned=0,
        seed=arguments.seed,
    )
    generator = TokenGenerator(job, mistake=arguments.mistake)
    started = time.perf_counter()
    results, kept = make_and_judge(generator, starts, arguments)
    seconds = time.perf_counter() - started
    alone = [judged(start, generator.through_tokenizer(start.clip_THWC)) for start in starts]
    if arguments.sheet:
        draw_sheet(kept, results, arguments.sheet)
    return report(generator, results, alone, arguments, seconds)


if __name__ == "__main__":
    sys.exit(main())
