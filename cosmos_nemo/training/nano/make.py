"""The nano models from nothing: tokenizer, text encoder, Text2World, what begins with its weights.

That is Text2World that learnt a subject, Video2World and the WorldInterpolator.

Everything goes into one work folder, a part at a time, and a part that is finished there is not made again:
a run that was stopped goes on with the same call. The parts are made by the code that serves any model
(training/prepare.py, training/post_train.py), but for the two encoders, which have trainings of their own.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import torch

from cosmos_nemo.catalog import ModelCard, TokenizerShape, find_card
from cosmos_nemo.checkpoint.locate import EMBEDDED, text_encoder_of, tokenizer_of, weights_of
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.request import RequestError
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.training.data import Dataset, InMemory
from cosmos_nemo.training.loop import StepReport
from cosmos_nemo.training.nano.captions import SUBJECT_PREFIX, subject_caption
from cosmos_nemo.training.nano.clips import Clips, encoded
from cosmos_nemo.training.nano.text_encoder import (
    measure_accuracy,
    train_text_encoder,
    unseen_texts,
    write_text_encoder,
)
from cosmos_nemo.training.nano.tokenizer_clips import measure_psnr
from cosmos_nemo.training.nano.video_tokenizer import train_video_tokenizer, write_video_tokenizer
from cosmos_nemo.training.nano.world import (
    FPS,
    GROUNDS,
    HELD_OUT,
    MOTIONS,
    draw_clips,
    draw_subject_clips,
)
from cosmos_nemo.training.nemo_checkpoint import CONTEXT
from cosmos_nemo.training.post_train import Ended, Run, post_train
from cosmos_nemo.training.prepare import Options, plan_preparation, prepare
from cosmos_nemo.training.prepared_folder import PreparedFolder
from cosmos_nemo.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

ASSETS, SUBJECT, LOG = "assets", "teal_robot", "log.json"
_CLIPS, _PAIRS = "clips.pt", "pairs.pt"
_VIDEOS, _SAMPLES, _TOKENIZER_STATE = "videos", "samples", "tokenizer_state.pt"
_RECIPE_FILE = "recipe.txt"
VIDEO2WORLD, INTERPOLATOR = "Cosmos-Nano-Video2World", "Cosmos-Nano-WorldInterpolator"
_JUDGED_CLIPS = 32
_NEGATIVE_SHARE = 0.1
"""Of the clips, whose text is the default negative prompt: guided away from it, a video is guided away from
the average video, as it is with the released models, which read of ugly videos in their training."""
_NEGATIVE_SHARE_OF_PAIRS = 0.5
"""The interpolator's guidance of -1 leaves only the negative prompt to it."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How much of everything."""

    tokenizer_steps: int
    tokenizer_batch: int
    text_steps: int
    text_batch: int
    statistics_clips: int
    """Clips whose latents' mean and deviation the tokenizer is given."""
    num_clips: int
    """Clips that a network is trained on."""
    base: TrainingSettings
    subject: TrainingSettings
    video2world: TrainingSettings
    interpolator: TrainingSettings
    save_every: int


_BASE = TrainingSettings(
    num_steps=10000,
    global_batch_size=256,
    micro_batch_size=256,
    learning_rate=1e-3,
    warmup_steps=500,
    weight_decay=0.01,
    adam_betas=(0.9, 0.99),
    text_dropout=0.1,
    log_sigma_mean=0.7,
    log_sigma_std=1.5,
    average_decay=0.9995,
    recompute="off",
)
RECIPE = Recipe(
    tokenizer_steps=6000,
    tokenizer_batch=16,
    text_steps=2000,
    text_batch=64,
    statistics_clips=1024,
    num_clips=32768,
    base=_BASE,
    subject=TrainingSettings(
        num_steps=600,
        global_batch_size=36,
        micro_batch_size=36,
        learning_rate=2e-4,
        warmup_steps=50,
        adam_betas=(0.9, 0.99),
        log_sigma_mean=0.7,
        log_sigma_std=1.5,
        average_decay=0.99,
        recompute="off",
    ),
    video2world=replace(_BASE, num_steps=5000, learning_rate=5e-4, warmup_steps=250),
    interpolator=replace(_BASE, num_steps=7000, learning_rate=5e-4, warmup_steps=250, text_dropout=0.25),
    save_every=2500,
)
"""The shipped files: minutes on one H200."""


def fraction_of(recipe: Recipe, fraction: float) -> Recipe:
    """The recipe with this part of its steps, clips and batches, each at least one; to try it out."""

    def part(count: int, least: int = 1) -> int:
        return max(round(count * fraction), least)

    def shorter(settings: TrainingSettings) -> TrainingSettings:
        batch = part(settings.global_batch_size)
        steps = part(settings.num_steps)
        return replace(settings, num_steps=steps, global_batch_size=batch, micro_batch_size=batch)

    if fraction == 1:
        return recipe
    return Recipe(
        tokenizer_steps=part(recipe.tokenizer_steps),
        tokenizer_batch=part(recipe.tokenizer_batch),
        text_steps=part(recipe.text_steps),
        text_batch=part(recipe.text_batch),
        statistics_clips=part(recipe.statistics_clips),
        num_clips=part(recipe.num_clips),
        base=shorter(recipe.base),
        subject=shorter(recipe.subject),
        video2world=shorter(recipe.video2world),
        interpolator=shorter(recipe.interpolator),
        save_every=recipe.save_every,
    )


@dataclass(frozen=True, kw_only=True)
class Maker:
    """One making, in `folder`. `deadline` is a time.monotonic() after which it stops, to be called again."""

    folder: Path
    card: ModelCard
    recipe: Recipe
    groups: Groups
    device: torch.device
    seed: int = 0
    deadline: float = float("inf")
    say: Callable[[str], None] = logger.info
    on_step: Callable[[StepReport], None] = lambda report: None

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def tokenizer_dir(self) -> Path:
        return self.folder / ASSETS / tokenizer_of(self.card).assets_name

    @property
    def text_encoder_dir(self) -> Path:
        return self.folder / ASSETS / text_encoder_of(self.card).assets_name

    @property
    def weights_dir(self) -> Path:
        return self.weights_dir_of(self.card)

    def weights_dir_of(self, card: ModelCard) -> Path:
        files = weights_of(card)
        return self.folder / ASSETS / files.assets_name / files.subfolder

    def make(self) -> bool:
        """Makes what is missing; False if the deadline came first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_recipe()
        for name, path, work in self._parts():
            if path.exists():
                continue
            if time.monotonic() > self.deadline:
                return False
            started = time.monotonic()
            facts = work(path)
            self._note(name, {"seconds": round(time.monotonic() - started, 1), **facts})
            if not path.exists():
                return False
        return True

    def _parts(self) -> list[tuple[str, Path, Callable[[Path], dict[str, Any]]]]:
        """Name, place and maker of each, in the order in which they need each other."""
        video2world, interpolator = find_card(VIDEO2WORLD), find_card(INTERPOLATOR)
        return [
            (self.tokenizer_dir.name, self.tokenizer_dir, self._make_tokenizer),
            (self.text_encoder_dir.name, self.text_encoder_dir, self._make_text_encoder),
            (self.card.name, self.weights_dir, self._make_base),
            (SUBJECT, self.folder / SUBJECT, self._make_subject),
            (VIDEO2WORLD, self.weights_dir_of(video2world), self._make_video2world),
            (INTERPOLATOR, self.weights_dir_of(interpolator), self._make_interpolator),
        ]

    @property
    def _tokenizer_shape(self) -> TokenizerShape:
        assert isinstance(self.card.tokenizer, TokenizerShape)
        return self.card.tokenizer

    def _check_recipe(self) -> None:
        """RequestError if the folder holds parts that were made otherwise."""
        path, recipe = self.folder / _RECIPE_FILE, f"{self.recipe} seed {self.seed}\n"
        if not path.exists():
            path.write_text(recipe, encoding="utf-8")
        if path.read_text(encoding="utf-8") != recipe:
            raise RequestError(f"{self.folder} was made with another seed or fraction: pass a new folder.")

    def _make_tokenizer(self, path: Path) -> dict[str, Any]:
        trained = train_video_tokenizer(
            self._tokenizer_shape,
            seed=self.seed,
            num_steps=self.recipe.tokenizer_steps,
            batch_size=self.recipe.tokenizer_batch,
            device=self.device,
            statistics_clips=self.recipe.statistics_clips,
            state_path=self.folder / _TOKENIZER_STATE,
        )
        scenes = sorted(HELD_OUT)[: min(_JUDGED_CLIPS, self.recipe.statistics_clips)]
        clips = draw_clips(scenes, seed=self.seed + 1, device=self.device)
        psnr = measure_psnr(trained.build(device=self.device), clips)
        with _complete(path) as partial:
            write_video_tokenizer(partial, trained)
        return {"psnr_of_held_out": round(psnr.frame, 2), "psnr_of_their_objects": round(psnr.object, 2)}

    def _make_text_encoder(self, path: Path) -> dict[str, Any]:
        network = self.card.network
        trained = train_text_encoder(
            seed=self.seed,
            num_steps=self.recipe.text_steps,
            batch_size=self.recipe.text_batch,
            device=self.device,
            text_dim=network.text_dim,
            text_length=network.text_length,
        )
        with _complete(path) as partial:
            write_text_encoder(partial, trained)
            with self._text_encoder(partial) as encode:
                accuracy = measure_accuracy(encode, unseen_texts(), heads=trained.heads)
        return {f"accuracy_of_unseen_{name}": round(value, 4) for name, value in accuracy.items()}

    def _make_base(self, path: Path) -> dict[str, Any]:
        data = self._clips(_CLIPS, self.card, negative_share=_NEGATIVE_SHARE)
        ended = self._train("text2world", data, card=self.card, start=None, settings=self.recipe.base)
        return self._take_weights(ended, path)

    def _make_video2world(self, path: Path) -> dict[str, Any]:
        card = find_card(VIDEO2WORLD)
        data = self._clips(_CLIPS, card, negative_share=_NEGATIVE_SHARE)
        start, settings = self.weights_dir, self.recipe.video2world
        return self._take_weights(
            self._train("video2world", data, card=card, start=start, settings=settings), path
        )

    def _make_interpolator(self, path: Path) -> dict[str, Any]:
        card = find_card(INTERPOLATOR)
        data = self._clips(_PAIRS, card, negative_share=_NEGATIVE_SHARE_OF_PAIRS)
        start, settings = self.weights_dir, self.recipe.interpolator
        return self._take_weights(
            self._train("interpolator", data, card=card, start=start, settings=settings), path
        )

    def _make_subject(self, path: Path) -> dict[str, Any]:
        """What a person does for a subject of their own: videos and captions, prepare-data, post-train."""
        work = self.folder / f"{SUBJECT}_work"
        write_subject_videos(work / _VIDEOS, seed=self.seed)
        size = self.card.video
        options = Options(
            dataset_dir=work / _VIDEOS,
            output_dir=work / _SAMPLES,
            height=size.height,
            width=size.width,
            num_frames=size.num_frames,
            num_chunks=1,
        )
        prepare(
            plan_preparation(options, self.card, device=self.device),
            tokenizer_dir=self.tokenizer_dir,
            text_encoder_dir=self.text_encoder_dir,
        )
        data = PreparedFolder(work / _SAMPLES, cache_bytes=2**30)
        settings = self.recipe.subject
        ended = self._train(SUBJECT, data, card=self.card, start=self.weights_dir, settings=settings)
        return self._take_weights(ended, path)

    def _train(
        self, name: str, data: Dataset, *, card: ModelCard, start: Path | None, settings: TrainingSettings
    ) -> Ended:
        run = Run(
            card=card,
            settings=settings,
            start=start,
            log_dir=self.folder / f"{name}_log",
            resume=True,
            save_every=self.recipe.save_every,
        )
        return post_train(
            run,
            data,
            groups=self.groups,
            device=self.device,
            dtype=self.dtype,
            facts={"made by": "cosmos-nemo make-nano", "seed": self.seed},
            on_step=self.on_step,
            wants_to_stop=lambda: time.monotonic() > self.deadline,
        )

    def _take_weights(self, ended: Ended, path: Path) -> dict[str, Any]:
        if ended.is_complete:
            assert ended.checkpoint is not None
            with _complete(path) as partial:
                for name in ("weights", CONTEXT):
                    shutil.copytree(ended.checkpoint / name, partial / name)
        return {"steps": ended.step}

    def _clips(self, name: str, card: ModelCard, *, negative_share: float) -> InMemory:
        """Clips of the trained scenes, encoded once for all that learns from them."""
        path = self.folder / name
        if not path.is_file():
            started = time.monotonic()
            clips = Clips(
                count=self.recipe.num_clips, task=card.task, negative_share=negative_share, seed=self.seed
            )
            made = encoded(
                clips,
                tokenizer=self._tokenizer(),
                text_encoder=self._text_encoder(self.text_encoder_dir),
                device=self.device,
                dtype=self.dtype,
            )
            partial = path.with_name(f".{path.name}.partial")
            torch.save(made, partial)
            partial.replace(path)
            self._note(name, {"seconds": round(time.monotonic() - started, 1)})
        return InMemory(**torch.load(path, map_location=self.device, weights_only=True), fps=float(FPS))

    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(
            shape=self._tokenizer_shape,
            folder=self.tokenizer_dir,
            device=self.device,
            dtype=self.dtype,
            parts=("encoder",),
        )

    def _text_encoder(self, folder: Path) -> TextEncoder:
        network = self.card.network
        return TextEncoder(
            folder=folder,
            text_length=network.text_length,
            text_dim=network.text_dim,
            device=self.device,
            dtype=self.dtype,
        )

    def _note(self, part: str, facts: Mapping[str, Any]) -> None:
        """Adds to the log, which says how long each part took, over all calls."""
        path = self.folder / LOG
        log: list[Any] = json.loads(path.read_text()) if path.is_file() else []
        log.append({"part": part, "device": _device_name(self.device), "torch": torch.__version__, **facts})
        path.write_text(json.dumps(log, indent=1) + "\n")
        self.say(f"{part}: {json.dumps(facts)}")


@contextmanager
def _complete(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which appears under its name only when it is complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)


def take_shipped(folder: Path, card: ModelCard) -> None:
    """Copies the package's tokenizer, text encoder and network of `card` to where a making would put them.

    What is there is left alone.
    """
    for files in (tokenizer_of(card), text_encoder_of(card), weights_of(card)):
        target = folder / ASSETS / files.assets_name
        if not target.exists():
            with _complete(target) as partial:
                shutil.copytree(EMBEDDED / files.assets_name, partial, dirs_exist_ok=True)


def write_subject_videos(folder: Path, *, seed: int) -> None:
    """Eighteen clips of the teal robot, each as NAME.npy uint8 [T, H, W, 3] with its caption as NAME.txt.

    RequestError if something else is there.
    """
    pairs = list(product(MOTIONS, GROUNDS))
    if len(list(folder.glob("*.npy"))) == len(pairs):
        return
    if folder.exists():
        raise RequestError(f"{folder} exists and does not hold the clips: pass a new folder.")
    clips = draw_subject_clips(pairs, seed=seed, device=torch.device("cpu"))
    with _complete(folder) as partial:
        for number, ((motion, ground), clip) in enumerate(zip(pairs, clips, strict=True)):
            numpy.save(partial / f"{number:02d}.npy", clip.numpy())
            (partial / f"{number:02d}.txt").write_text(SUBJECT_PREFIX + subject_caption(motion, ground))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
