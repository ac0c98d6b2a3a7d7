"""benchmarks/nano_quality.py without the row of the tokenizer alone, which takes half of its time.

For tests that do not read that row: `python -m tests.nano_process FLAGS`. A process of its own, because
models that are run in a worker of pytest, beside thousands of other tests, have brought it down.
"""

import sys

from benchmarks import nano_interpolator, nano_quality, nano_video2world


def main() -> int:
    for script in (nano_video2world, nano_interpolator):
        script.through_tokenizer = lambda _, clips, judged=script.judged: [  # type: ignore[attr-defined]
            judged(clip, clip.clip_THWC) for clip in clips
        ]
    return nano_quality.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
