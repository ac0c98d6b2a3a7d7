"""The nano models from nothing: tokenizer, text encoder, Text2World, and Text2World that learnt a subject.

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
from torch import Tensor

from cosmos_nemo.catalog import ModelCard
from cosmos_nemo.checkpoint.locate import text_encoder_of, tokenizer_of, weights_of
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.request import DEFAULT_NEGATIVE_PROMPT, RequestError
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.training.data import Dataset, InMemory
from cosmos_nemo.training.loop import StepReport
from cosmos_nemo.training.nano.captions import PHRASINGS, SUBJECT_PREFIX, caption, subject_caption
from cosmos_nemo.training.nano.text_encoder import (
    measure_accuracy,
    train_text_encoder,
    unseen_texts,
    write_text_encoder,
)
from cosmos_nemo.training.nano.video_tokenizer import (
    measure_psnr,
    to_video,
    train_video_tokenizer,
    write_video_tokenizer,
)
from cosmos_nemo.training.nano.world import (
    FPS,
    GROUNDS,
    HELD_OUT,
    MOTIONS,
    TRAINED,
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
_CLIPS, _VIDEOS, _SAMPLES, _TOKENIZER_STATE = "clips.pt", "videos", "samples", "tokenizer_state.pt"
_RECIPE_FILE = "recipe.txt"
_AT_ONCE = 64
_JUDGED_CLIPS = 32
_NEGATIVE_SHARE = 0.1
"""Of the clips, whose text is the default negative prompt: guided away from it, a video is guided away from
the average video, as it is with the released models, which read of ugly videos in their training."""


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
    """Clips that the network is trained on."""
    base: TrainingSettings
    subject: TrainingSettings
    save_every: int


RECIPE = Recipe(
    tokenizer_steps=6000,
    tokenizer_batch=16,
    text_steps=2000,
    text_batch=64,
    statistics_clips=1024,
    num_clips=32768,
    base=TrainingSettings(
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
    ),
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
        files = weights_of(self.card)
        return self.folder / ASSETS / files.assets_name / files.subfolder

    def make(self) -> bool:
        """Makes what is missing; False if the deadline came first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = (
            (self.tokenizer_dir, self._make_tokenizer),
            (self.text_encoder_dir, self._make_text_encoder),
            (self.weights_dir, self._make_base),
            (self.folder / SUBJECT, self._make_subject),
        )
        self._check_recipe()
        for path, work in parts:
            if path.exists():
                continue
            if time.monotonic() > self.deadline:
                return False
            started = time.monotonic()
            facts = work(path)
            self._note(path.name, {"seconds": round(time.monotonic() - started, 1), **facts})
            if not path.exists():
                return False
        return True

    def _check_recipe(self) -> None:
        """RequestError if the folder holds parts that were made otherwise."""
        path, recipe = self.folder / _RECIPE_FILE, f"{self.recipe} seed {self.seed}\n"
        if not path.exists():
            path.write_text(recipe, encoding="utf-8")
        if path.read_text(encoding="utf-8") != recipe:
            raise RequestError(f"{self.folder} was made with another seed or fraction: pass a new folder.")

    def _make_tokenizer(self, path: Path) -> dict[str, Any]:
        trained = train_video_tokenizer(
            self.card.tokenizer,
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
        ended = self._train("text2world", self._clips(), start=None, settings=self.recipe.base)
        return self._take_weights(ended, path)

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
        ended = self._train(SUBJECT, data, start=self.weights_dir, settings=self.recipe.subject)
        return self._take_weights(ended, path)

    def _train(self, name: str, data: Dataset, *, start: Path | None, settings: TrainingSettings) -> Ended:
        run = Run(
            card=self.card,
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

    def _clips(self) -> InMemory:
        path = self.folder / _CLIPS
        if not path.is_file():
            started = time.monotonic()
            partial = path.with_name(f".{path.name}.partial")
            torch.save(self._encode_clips(), partial)
            partial.replace(path)
            self._note(_CLIPS, {"seconds": round(time.monotonic() - started, 1)})
        return InMemory(**torch.load(path, map_location=self.device, weights_only=True), fps=float(FPS))

    def _encode_clips(self) -> dict[str, Tensor]:
        """Clips of the trained scenes in equal shares, as InMemory has them."""
        dice = numpy.random.RandomState(self.seed)
        count, texts, latents, text_of = self.recipe.num_clips, _Texts(), [], []
        scenes = [TRAINED[i % len(TRAINED)] for i in range(count)]
        with self._tokenizer() as tokenizer:
            for start in range(0, count, _AT_ONCE):
                some = scenes[start : start + _AT_ONCE]
                clips = draw_clips(some, seed=self.seed * 1_000_003 + start, device=self.device)
                latents.append(tokenizer.encode(to_video(clips).to(self.dtype)).to(self.dtype))
                for scene in some:
                    phrasing = PHRASINGS[dice.randint(len(PHRASINGS))]
                    is_negative = dice.random_sample() < _NEGATIVE_SHARE
                    text_of.append(
                        texts.number(DEFAULT_NEGATIVE_PROMPT if is_negative else caption(scene, phrasing))
                    )
        with self._text_encoder(self.text_encoder_dir) as encode:
            embedded = torch.cat([encode([text]).to(self.dtype) for text in texts.all])
        return {
            "latents_NCTHW": torch.cat(latents),
            "texts_MLD": embedded,
            "text_of_N": torch.tensor(text_of, device=self.device),
        }

    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(
            shape=self.card.tokenizer,
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


class _Texts:
    """Texts in the order they were first met."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        if text not in self._numbers:
            self._numbers[text] = len(self.all)
            self.all.append(text)
        return self._numbers[text]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
