"""The nano models from nothing: tokenizers, text encoder, the networks.

First Text2World and what begins with its weights: Text2World that learnt a subject, Video2World, the
WorldInterpolator. Then Predict2's tokenizer and Video2World, and the discrete tokenizer and autoregressive
network.

Everything goes into one work folder, a part at a time, and a part that is finished there is not made again:
a run that was stopped goes on with the same call. The parts are made by the code that serves any model
(training/prepare.py, training/post_train.py), but for tokenizers, text encoder and autoregressive network,
which have trainings of their own.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import torch

from cosmos_nemo.catalog import ModelCard, TokenizerShape, TokenModel, WanTokenizerShape, find_card
from cosmos_nemo.checkpoint.locate import (
    EMBEDDED,
    discrete_tokenizer_of,
    text_encoder_of,
    tokenizer_of,
    weights_of,
)
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.request import RequestError
from cosmos_nemo.stages.discrete_tokenizer import DiscreteTokenizerStage
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer_choice import AnyTokenizer, tokenizer_for
from cosmos_nemo.training.data import Dataset, InMemory
from cosmos_nemo.training.loop import StepReport
from cosmos_nemo.training.nano.captions import SUBJECT_PREFIX, subject_caption
from cosmos_nemo.training.nano.clips import Clips, encoded
from cosmos_nemo.training.nano.discrete_tokenizer import train_discrete_tokenizer, write_discrete_tokenizer
from cosmos_nemo.training.nano.losses import Losses
from cosmos_nemo.training.nano.recipe import Recipe
from cosmos_nemo.training.nano.text_encoder import (
    measure_accuracy,
    train_text_encoder,
    unseen_texts,
    write_text_encoder,
)
from cosmos_nemo.training.nano.token_transformer import (
    encoded_ids,
    measure_prediction,
    train_token_transformer,
    training_facts,
    write_token_transformer,
)
from cosmos_nemo.training.nano.tokenizer_clips import AnyTokenizer as PixelTokenizer
from cosmos_nemo.training.nano.tokenizer_clips import measure_psnr
from cosmos_nemo.training.nano.tokenizer_training import TrainingStopped
from cosmos_nemo.training.nano.video_tokenizer import train_video_tokenizer, write_video_tokenizer
from cosmos_nemo.training.nano.wan_tokenizer import train_wan_tokenizer, write_wan_tokenizer
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
_CLIPS, _PAIRS, _WAN_CLIPS, _TOKENS = "clips.pt", "pairs.pt", "wan_clips.pt", "tokens.pt"
_VIDEOS, _SAMPLES = "videos", "samples"
_TOKENIZER_STATE, _WAN_TOKENIZER_STATE = "tokenizer_state.pt", "wan_tokenizer_state.pt"
_DISCRETE_TOKENIZER_STATE, _AUTOREGRESSIVE_STATE = "discrete_tokenizer_state.pt", "autoregressive_state.pt"
_AUTOREGRESSIVE_LOG = "autoregressive_log"
_RECIPE_FILE = "recipe.txt"
VIDEO2WORLD, INTERPOLATOR = "Cosmos-Nano-Video2World", "Cosmos-Nano-WorldInterpolator"
PREDICT2, AUTOREGRESSIVE = "Cosmos-Nano-Predict2-Video2World", "Cosmos-Nano-Autoregressive"
_JUDGED_CLIPS = 32
_JUDGED_TOKEN_CLIPS = 256
_NEGATIVE_SHARE = 0.1
"""Of the clips, whose text is the default negative prompt: guided away from it, a video is guided away from
the average video, as it is with the released models, which read of ugly videos in their training."""
_NEGATIVE_SHARE_OF_PAIRS = 0.5
"""The interpolator's guidance of -1 leaves only the negative prompt to it."""


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
    only: frozenset[str] = frozenset()
    """Names of parts; the others must be there. Empty: all."""
    say: Callable[[str], None] = logger.info
    on_step: Callable[[StepReport], None] = lambda report: None

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def tokenizer_dir(self) -> Path:
        return self.tokenizer_dir_of(self.card)

    def tokenizer_dir_of(self, card: ModelCard) -> Path:
        return self.folder / ASSETS / tokenizer_of(card).assets_name

    @property
    def discrete_tokenizer_dir(self) -> Path:
        return self.folder / ASSETS / discrete_tokenizer_of(find_card(AUTOREGRESSIVE)).assets_name

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
        self.check_recipe()
        for name, path, work in self._parts():
            if path.exists():
                continue
            if self.only and name not in self.only:
                continue
            if self._is_late():
                return False
            started = time.monotonic()
            try:
                facts = work(path)
            except TrainingStopped as stopped:
                facts = {"steps": stopped.step}
            self._note(name, {"seconds": round(time.monotonic() - started, 1), **facts})
            if not path.exists():
                return False
        return True

    def _is_late(self) -> bool:
        return time.monotonic() > self.deadline

    def check_only(self) -> None:
        """RequestError for a name in `only` that no part has, or that needs one which is nowhere."""
        known = [name for name, _, _ in self._parts()]
        for name in sorted(self.only.difference(known)):
            raise RequestError(f"--only {name} is no part of this: {', '.join(known)}.")
        for name in sorted(self.only):
            for needed in self._needs(name):
                if needed not in self.only and not (EMBEDDED / needed).is_dir():
                    raise RequestError(
                        f"{name} needs {needed}, which is not in the package: add it to --only."
                    )

    def _needs(self, name: str) -> list[str]:
        """What a part is made from."""
        predict2 = find_card(PREDICT2)
        tokenizer, text = self.tokenizer_dir.name, self.text_encoder_dir.name
        wan, discrete = self.tokenizer_dir_of(predict2).name, self.discrete_tokenizer_dir.name
        if name in (tokenizer, text, wan, discrete):
            return []
        if name == AUTOREGRESSIVE:
            return [discrete]
        if name == PREDICT2:
            return [wan, text]
        return [tokenizer, text] if name == self.card.name else [tokenizer, text, self.card.name]

    def _parts(self) -> list[tuple[str, Path, Callable[[Path], dict[str, Any]]]]:
        """Name, place and maker of each, in the order in which they need each other."""
        video2world, interpolator, predict2 = map(find_card, (VIDEO2WORLD, INTERPOLATOR, PREDICT2))
        wan_dir, discrete_dir = self.tokenizer_dir_of(predict2), self.discrete_tokenizer_dir
        autoregressive_dir = self.weights_dir_of(find_card(AUTOREGRESSIVE))
        return [
            (self.tokenizer_dir.name, self.tokenizer_dir, self._make_tokenizer),
            (self.text_encoder_dir.name, self.text_encoder_dir, self._make_text_encoder),
            (self.card.name, self.weights_dir, self._make_base),
            (SUBJECT, self.folder / SUBJECT, self._make_subject),
            (VIDEO2WORLD, self.weights_dir_of(video2world), self._make_video2world),
            (INTERPOLATOR, self.weights_dir_of(interpolator), self._make_interpolator),
            (wan_dir.name, wan_dir, self._make_wan_tokenizer),
            (PREDICT2, self.weights_dir_of(predict2), self._make_predict2),
            (discrete_dir.name, discrete_dir, self._make_discrete_tokenizer),
            (AUTOREGRESSIVE, autoregressive_dir, self._make_autoregressive),
        ]

    def check_recipe(self) -> None:
        """RequestError if the folder holds parts that were made otherwise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        only = f" only {' '.join(sorted(self.only))}" if self.only else ""
        path, recipe = self.folder / _RECIPE_FILE, f"{self.recipe} seed {self.seed}{only}\n"
        if not path.exists():
            path.write_text(recipe, encoding="utf-8")
        if path.read_text(encoding="utf-8") != recipe:
            raise RequestError(
                f"{self.folder} was made with another seed, fraction or --only: pass a new folder."
            )

    def _make_tokenizer(self, path: Path) -> dict[str, Any]:
        shape = self.card.tokenizer
        assert isinstance(shape, TokenizerShape)
        trained = train_video_tokenizer(
            shape,
            seed=self.seed,
            num_steps=self.recipe.tokenizer_steps,
            batch_size=self.recipe.tokenizer_batch,
            device=self.device,
            statistics_clips=self.recipe.statistics_clips,
            state_path=self.folder / _TOKENIZER_STATE,
            wants_to_stop=self._is_late,
        )
        with _complete(path) as new:
            write_video_tokenizer(new, trained)
        return self._psnr(trained.build(device=self.device))

    def _make_wan_tokenizer(self, path: Path) -> dict[str, Any]:
        shape = find_card(PREDICT2).tokenizer
        assert isinstance(shape, WanTokenizerShape)
        trained = train_wan_tokenizer(
            shape,
            seed=self.seed,
            num_steps=self.recipe.wan_tokenizer_steps,
            batch_size=self.recipe.wan_tokenizer_batch,
            device=self.device,
            statistics_clips=self.recipe.statistics_clips,
            state_path=self.folder / _WAN_TOKENIZER_STATE,
            wants_to_stop=self._is_late,
        )
        with _complete(path) as new:
            write_wan_tokenizer(new, trained)
        return self._psnr(trained.build(device=self.device))

    def _make_discrete_tokenizer(self, path: Path) -> dict[str, Any]:
        trained = train_discrete_tokenizer(
            self._tokens.tokenizer,
            seed=self.seed,
            num_steps=self.recipe.discrete_tokenizer_steps,
            batch_size=self.recipe.discrete_tokenizer_batch,
            device=self.device,
            state_path=self.folder / _DISCRETE_TOKENIZER_STATE,
            wants_to_stop=self._is_late,
        )
        with _complete(path) as new:
            write_discrete_tokenizer(new, trained)
        return self._psnr(trained.build(device=self.device))

    @property
    def _tokens(self) -> TokenModel:
        tokens = find_card(AUTOREGRESSIVE).tokens
        assert tokens is not None
        return tokens

    def _psnr(self, tokenizer: PixelTokenizer) -> dict[str, Any]:
        scenes = sorted(HELD_OUT)[: min(_JUDGED_CLIPS, self.recipe.statistics_clips)]
        psnr = measure_psnr(tokenizer, draw_clips(scenes, seed=self.seed + 1, device=self.device))
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
        with _complete(path) as new:
            write_text_encoder(new, trained)
            with self._text_encoder(new) as encode:
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

    def _make_predict2(self, path: Path) -> dict[str, Any]:
        card, settings = find_card(PREDICT2), self.recipe.predict2
        count = self.recipe.predict2_clips
        data = self._clips(_WAN_CLIPS, card, negative_share=_NEGATIVE_SHARE, count=count)
        return self._take_weights(
            self._train("predict2", data, card=card, start=None, settings=settings), path
        )

    def _make_autoregressive(self, path: Path) -> dict[str, Any]:
        collection, settings = self.groups.collection, self.recipe.autoregressive
        shape, tokens = self._tokens.network, self._encoded_tokens()
        with Losses(self.folder / _AUTOREGRESSIVE_LOG, title=AUTOREGRESSIVE) as losses:
            trained = train_token_transformer(
                shape,
                tokens["trained"].to(self.device),
                settings=settings,
                seed=self.seed,
                pg_collection=collection,
                state_path=self.folder / _AUTOREGRESSIVE_STATE,
                on_step=losses.add,
                wants_to_stop=self._is_late,
            )
        held_out = tokens["held_out"].to(self.device)
        prediction = measure_prediction(trained, held_out, pg_collection=collection)
        facts = training_facts(settings, prediction)
        with _complete(path) as new:
            write_token_transformer(
                new, trained, model=AUTOREGRESSIVE, facts={"model": AUTOREGRESSIVE, **facts}
            )
        return {
            "steps": settings.num_steps,
            "loss_of_held_out": round(prediction.loss, 4),
            "accuracy_of_held_out": round(prediction.accuracy, 4),
        }

    def _encoded_tokens(self) -> dict[str, torch.Tensor]:
        """Of clips of the trained scenes in equal shares, and of others of the held-out ones.

        Encoded in float32, as on a CPU: what bfloat16 rounds away would move tokens to their neighbours.
        """
        path = self.folder / _TOKENS
        if not path.is_file():
            started, count = time.monotonic(), self.recipe.token_clips
            stage = DiscreteTokenizerStage(
                shape=self._tokens.tokenizer,
                folder=self.discrete_tokenizer_dir,
                device=self.device,
                dtype=torch.float32,
                parts=("encoder",),
            )
            judged = min(_JUDGED_TOKEN_CLIPS, count)
            scenes = {
                "trained": [TRAINED[number % len(TRAINED)] for number in range(count)],
                "held_out": [sorted(HELD_OUT)[number % len(HELD_OUT)] for number in range(judged)],
            }
            with stage as tokenizer:
                made = {
                    name: encoded_ids(
                        some, encode=tokenizer.encode, seed=self.seed + turn, device=self.device
                    )
                    for turn, (name, some) in enumerate(scenes.items())
                }
            _save(made, path)
            used = len(made["trained"].unique())
            self._note(path.name, {"seconds": round(time.monotonic() - started, 1), "codes_in_use": used})
        saved: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return saved

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
            wants_to_stop=self._is_late,
        )

    def _take_weights(self, ended: Ended, path: Path) -> dict[str, Any]:
        if ended.is_complete:
            assert ended.checkpoint is not None
            with _complete(path) as new:
                for name in ("weights", CONTEXT):
                    shutil.copytree(ended.checkpoint / name, new / name)
        return {"steps": ended.step}

    def _clips(
        self, name: str, card: ModelCard, *, negative_share: float, count: int | None = None
    ) -> InMemory:
        """Clips of the trained scenes, encoded once for all that learns from them."""
        path = self.folder / name
        if not path.is_file():
            started = time.monotonic()
            clips = Clips(
                count=count or self.recipe.num_clips,
                task=card.task,
                negative_share=negative_share,
                seed=self.seed,
            )
            made = encoded(
                clips,
                tokenizer=self._tokenizer(card),
                text_encoder=self._text_encoder(self.text_encoder_dir),
                device=self.device,
                dtype=self.dtype,
            )
            _save(made, path)
            self._note(name, {"seconds": round(time.monotonic() - started, 1)})
        return InMemory(**torch.load(path, map_location=self.device, weights_only=True), fps=float(FPS))

    def _tokenizer(self, card: ModelCard) -> AnyTokenizer:
        return tokenizer_for(
            card.tokenizer,
            folder=self.tokenizer_dir_of(card),
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
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    unfinished.rename(folder)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.partial")
    torch.save(tensors, unfinished)
    unfinished.replace(path)


def take_shipped(folder: Path, *, but: frozenset[str]) -> None:
    """Copies the package's models to where a making would put them, all but those with these names.

    What is there is left alone.
    """
    for source in sorted(EMBEDDED.iterdir()):
        target = folder / ASSETS / source.name
        if source.name not in but and source.is_dir() and not target.exists():
            with _complete(target) as new:
                shutil.copytree(source, new, dirs_exist_ok=True)


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
    with _complete(folder) as new:
        for number, ((motion, ground), clip) in enumerate(zip(pairs, clips, strict=True)):
            numpy.save(new / f"{number:02d}.npy", clip.numpy())
            (new / f"{number:02d}.txt").write_text(SUBJECT_PREFIX + subject_caption(motion, ground))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
