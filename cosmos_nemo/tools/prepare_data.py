"""`cosmos-nemo prepare-data`: a folder of videos into the samples that `cosmos-nemo post-train` reads."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_nemo.catalog import CARDS, CatalogError, ModelCard, find_card, with_overrides
from cosmos_nemo.request import RequestError

if TYPE_CHECKING:
    import torch

    from cosmos_nemo.checkpoint.locate import HubFiles
    from cosmos_nemo.training.prepare import Options, Preparation

_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The card with what the files' card.json say, and where the two encoders lie; None: not here."""

    card: ModelCard
    tokenizer: Path | None
    text_encoder: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The published flags of NeMo's prepare_dataset.py, and ours."""
    parser.add_argument(
        "--dataset_path",
        type=Path,
        default=Path("video_dataset"),
        metavar="DIR",
        help='folder of .mp4 files, or .npy of uint8 [T, H, W, 3] with NAME.json {"fps": 24} (video_dataset)',
    )
    parser.add_argument(
        "--output_path",
        type=Path,
        default=Path("video_dataset_cached"),
        metavar="DIR",
        help="where the samples go (video_dataset_cached); the same command continues there",
    )
    parser.add_argument("--prompt", help="caption of every video that has no NAME.txt beside it")
    parser.add_argument(
        "--num_chunks", type=int, default=5, help="random windows per video, if it has so many; 5"
    )
    parser.add_argument(
        "--num_frames", type=int, help="frames per window, 8k+1, of Predict2 4k+1; the model's"
    )
    parser.add_argument("--height", type=int, help="pixels, a multiple of 16; the model's, 704")
    parser.add_argument("--width", type=int, help="pixels, a multiple of 16; the model's, 1280")
    parser.add_argument(
        "--keep_aspect", action="store_true", help="crop around the centre instead of stretching"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the windows; 0")
    parser.add_argument("--model", default=next(iter(CARDS)), metavar="CARD", help=", ".join(CARDS))
    parser.add_argument("--cosmos_assets_dir", default="", help="a folder with one folder per repository")
    parser.add_argument("--tokenizer_dir", default="", help="the video tokenizer's folder")
    parser.add_argument("--text_encoder_dir", default="", help="the T5 folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dry_run", action="store_true", help="say what would be made, make nothing")


def run(args: argparse.Namespace) -> int:
    """0 all samples are there; 2 bad flags, videos or weights; 130 interrupted; 1 if the disk fails."""
    from cosmos_nemo.checkpoint.locate import LocateError
    from cosmos_nemo.checkpoint.reader import CheckpointError
    from cosmos_nemo.stages.video_reading import VideoError
    from cosmos_nemo.training.data import DataError

    try:
        _serve(args)
    except (RequestError, CatalogError, LocateError, CheckpointError, VideoError, DataError) as error:
        print(f"cosmos-nemo prepare-data: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cosmos-nemo prepare-data: {args.output_path}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cosmos-nemo prepare-data: interrupted; the same command continues", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _serve(args: argparse.Namespace) -> None:
    from cosmos_nemo.training.prepare import check_output, plan_preparation

    device = _device(args.device)
    here = _locate(args, download=False)
    preparation = plan_preparation(_options(args, here.card), here.card, device=device)
    check_output(args.output_path, preparation.settings())
    print(_describe(preparation), flush=True)
    if args.dry_run:
        print(_describe_files(here))
        return
    files = _locate(args, download=True)
    if files.card != here.card:
        preparation = plan_preparation(_options(args, files.card), files.card, device=device)
    num_made = _prepare(preparation, files)
    print(f"{args.output_path}: {len(preparation.samples)} samples, {num_made} of them made now")


def _prepare(preparation: "Preparation", files: _Files) -> int:
    """How many samples it made, with a bar that counts them."""
    from tqdm import tqdm

    from cosmos_nemo.training.prepare import prepare

    assert files.tokenizer is not None and files.text_encoder is not None, "a download finds or raises"

    with tqdm(unit=" samples", leave=False, disable=None) as bar:

        def on_sample(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return prepare(
            preparation,
            tokenizer_dir=files.tokenizer,
            text_encoder_dir=files.text_encoder,
            on_sample=on_sample,
        )


def _options(args: argparse.Namespace, card: ModelCard) -> "Options":
    from cosmos_nemo.training.prepare import Options

    return Options(
        dataset_dir=args.dataset_path,
        output_dir=args.output_path,
        prompt=args.prompt,
        num_chunks=args.num_chunks,
        height=card.video.height if args.height is None else args.height,
        width=card.video.width if args.width is None else args.width,
        num_frames=card.video.num_frames if args.num_frames is None else args.num_frames,
        seed=args.seed,
        keep_aspect=args.keep_aspect,
    )


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: torch sees no GPU here. Pass --device cpu, or leave it out.")
    return torch.device(name)


def _locate(args: argparse.Namespace, *, download: bool) -> _Files:
    """The network's weights are only looked for, never fetched: their card.json may tell other sizes."""
    from cosmos_nemo.checkpoint.card_file import read_card_file
    from cosmos_nemo.checkpoint.locate import locate, text_encoder_of, tokenizer_of, weights_of

    card = find_card(args.model)

    def find(files: "HubFiles", given: str, *, download: bool) -> Path | None:
        return locate(files, given=_path(given), assets_dir=_path(args.cosmos_assets_dir), download=download)

    weights = find(weights_of(card), "", download=False)
    tokenizer = find(tokenizer_of(card), args.tokenizer_dir, download=download)
    text_encoder = find(text_encoder_of(card), args.text_encoder_dir, download=download)
    for path in (weights, tokenizer):
        if path is not None:
            card = with_overrides(card, read_card_file(path))
    return _Files(card=card, tokenizer=tokenizer, text_encoder=text_encoder)


def _describe(preparation: "Preparation") -> str:
    options, samples, missing = preparation.options, preparation.samples, preparation.missing
    lines = [
        f"{s.path.name}: {s.facts.num_frames} frames of {s.facts.width} x {s.facts.height} at "
        f"{s.facts.fps:g} fps, {len(s.starts)} windows"
        for s in preparation.sources
    ]
    captions = len({source.caption for source in preparation.sources})
    size = len(missing) * preparation.sample_bytes / 2**20
    lines.append(
        f"{len(samples)} samples of {options.num_frames} frames of {options.width} x {options.height}, "
        f"{captions} different captions, for {preparation.card.name}"
    )
    lines.append(
        f"{len(missing)} of them to make, {size:,.1f} MiB, to {options.output_dir} "
        f"on {preparation.device.type} in {str(preparation.dtype).removeprefix('torch.')}"
    )
    return "\n".join(lines)


def _describe_files(files: _Files) -> str:
    absent = "not here; a run would look for it on the hub"
    return f"tokenizer: {files.tokenizer or absent}\ntext encoder: {files.text_encoder or absent}"


def _path(text: str) -> Path | None:
    return Path(text) if text else None
