"""GPU memory and seconds for each row of the released models' memory tables, at full size.

python benchmarks/offload_memory.py FOLDER --model Cosmos-Predict1-7B-Text2World --rows 1 2 3 4 5
python benchmarks/offload_memory.py FOLDER --model Cosmos-Predict1-7B-Video2World --rows 1 2 3 4 5
python benchmarks/offload_memory.py FOLDER --model Cosmos-Predict2-2B-Video2World --rows 1 2 3 4 5

FOLDER gets (or holds) the network as a NeMo checkpoint of random weights, which is read as any other. The
other models are made on the GPU from a seed at their released sizes, in the stages themselves, so that
parking and residence are those of a run; their answers mean nothing: Llama Guard's counts as "safe", the
upsampler's, or the refiner's, is thrown away. Videos have the model's own size. Each row offloads one model
more (row 0: none). Reserved is what PyTorch's allocator held (torch.cuda.max_memory_reserved); nvidia-smi's
figure is the highest of five a second.
"""

import argparse
import gc
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from benchmarks.full_size_assets import T5_11B, write_network
from cosmos_nemo.catalog import CARDS, Family, ModelCard, Task, WanTokenizerShape, find_card
from cosmos_nemo.checkpoint.locate import weights_of
from cosmos_nemo.checkpoint.reader import Checkpoint, LazyTensor
from cosmos_nemo.checkpoint.refiner_names import refiner_shape, refiner_shapes
from cosmos_nemo.memory import PUBLISHED_OFFLOADS, predict
from cosmos_nemo.models.common.backend import choose_backend
from cosmos_nemo.models.face_detector.model import FaceDetector, FaceDetectorShape
from cosmos_nemo.models.video_tokenizer.model import VideoTokenizer, build_autoencoder
from cosmos_nemo.models.wan_tokenizer.model import WanTokenizer
from cosmos_nemo.models.wan_tokenizer.model import build_autoencoder as build_wan_autoencoder
from cosmos_nemo.parallel.groups import Groups, start_alone
from cosmos_nemo.parallel.startup import prepare_process
from cosmos_nemo.pipelines.base import DiffusionPipeline
from cosmos_nemo.pipelines.text2world import Text2World
from cosmos_nemo.pipelines.video2world import Video2World
from cosmos_nemo.request import Text2WorldRequest, Video2WorldRequest
from cosmos_nemo.stages.denoise import Denoise
from cosmos_nemo.stages.guardrail.content_filter import ContentFilter, SafetyClassifier
from cosmos_nemo.stages.guardrail.text_guard import TextGuard
from cosmos_nemo.stages.guardrail.video_guard import VideoGuard
from cosmos_nemo.stages.image_upsampler import ImageUpsampler
from cosmos_nemo.stages.language_model import empty_on_device, mistral_config
from cosmos_nemo.stages.pixtral_model import pixtral_config
from cosmos_nemo.stages.prompt_refiner import PromptRefiner
from cosmos_nemo.stages.prompt_upsampler import PromptUpsampler
from cosmos_nemo.stages.refiner_model import build_refiner
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.stages.wan_tokenizer import PUBLISHED_MEAN, PUBLISHED_STD, WanTokenizerStage
from cosmos_nemo.tools.standin_pixtral import write_pixtral
from cosmos_nemo.tools.standin_refiner import write_refiner
from cosmos_nemo.tools.standin_text import write_text_encoder
from cosmos_nemo.tools.standin_text_guard import write_llama_guard, write_word_lists
from cosmos_nemo.tools.standin_upsampler import write_upsampler

GIB = 2**30
DEVICE = torch.device("cuda", 0)
PROMPT = "A sleek, humanoid robot stands in a vast warehouse filled with neatly stacked cardboard boxes."
IMAGE_TOKEN = "[IMG]"
INPUT = "input.npy"
LLAMA_GUARD = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
REFINER: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_window_layers": 28,
    "max_position_embeddings": 128000,
    "sliding_window": 32768,
    "vocab_size": 152064,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
"""Qwen2.5-VL-7B; the rest of the vision tower's sizes are the stand-in's."""
FACE_DETECTOR = FaceDetectorShape()


def randomized(module: nn.Module, *, scale: float = 0.02) -> nn.Module:
    generators = {}
    for parameter in module.parameters():
        device = parameter.device
        generator = generators.setdefault(device, torch.Generator(device).manual_seed(0))
        parameter.requires_grad_(False).normal_(0, scale, generator=generator)
    return module


class FullTextGuard(TextGuard):
    def build(self) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(**LLAMA_GUARD)
        model = empty_on_device(lambda: LlamaForCausalLM(config), device=self.device, dtype=self.dtype)
        return randomized(model)

    def _answer(self, tokens: Tensor) -> str:
        super()._answer(tokens)
        return "safe"


class FullUpsampler(PromptUpsampler):
    def build(self) -> nn.Module:
        from transformers import MistralForCausalLM

        config = mistral_config(self.shape)
        model = empty_on_device(lambda: MistralForCausalLM(config), device=self.device, dtype=self.dtype)
        return randomized(model)

    def _cleaned(self, answer: str) -> str:
        return PROMPT


class FullImageUpsampler(ImageUpsampler):
    def build(self) -> nn.Module:
        from transformers import LlavaForConditionalGeneration

        config = pixtral_config(
            self.shape, self.vision, image_token=self._tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        )
        model = empty_on_device(
            lambda: LlavaForConditionalGeneration(config), device=self.device, dtype=self.dtype
        )
        return randomized(model)

    def _cleaned(self, answer: str) -> str:
        return PROMPT


class FullRefiner(PromptRefiner):
    def build(self) -> nn.Module:
        """As a real one, from a checkpoint whose tensors are drawn when they are read."""
        generator = torch.Generator(self.device).manual_seed(0)

        def drawn(size: tuple[int, ...]) -> LazyTensor:
            def load(index: tuple[slice, ...]) -> Tensor:
                values = torch.empty(size, dtype=self.dtype, device=self.device)
                return values.normal_(0, 0.02, generator=generator)[index]

            return LazyTensor(size, self.dtype, load)

        shapes = refiner_shapes(refiner_shape(self.folder))
        tensors = {name: drawn(size) for name, size in shapes.items()}
        checkpoint = Checkpoint(self.folder, layout="safetensors", tensors=tensors)
        return build_refiner(self.folder, checkpoint=checkpoint, device=self.device, dtype=self.dtype)

    def _cleaned(self, answer: str) -> str:
        return PROMPT


class FullTextEncoder(TextEncoder):
    def build(self) -> nn.Module:
        from transformers import T5Config, T5EncoderModel

        config = T5Config(**{**json.loads((self.folder / "config.json").read_text()), **T5_11B})
        with torch.device("meta"):
            model = T5EncoderModel(config)
        model = model.to(self.dtype).to_empty(device=self.device).eval()
        model.tie_weights()
        return randomized(model)

    @property
    def _identity(self) -> str:  # type: ignore[override]
        return "full size"


class FullTokenizer(Tokenizer):
    def build(self) -> VideoTokenizer:
        shape = self.shape
        autoencoder = build_autoencoder(shape, device=self.device, dtype=self.dtype, parts=self.parts)
        zeros = torch.zeros(shape.latent_channels, shape.statistics_frames)
        tokenizer = VideoTokenizer(randomized(autoencoder), mean_CT=zeros, std_CT=zeros + 1)
        return tokenizer.to(self.device)


class FullWanTokenizer(WanTokenizerStage):
    def build(self) -> WanTokenizer:
        autoencoder = build_wan_autoencoder(
            self.shape, device=self.device, dtype=self.dtype, parts=self.parts
        )
        statistics = {"mean_C": torch.tensor(PUBLISHED_MEAN), "std_C": torch.tensor(PUBLISHED_STD)}
        return WanTokenizer(randomized(autoencoder), **statistics).to(self.device)


class FullVideoGuard(VideoGuard):
    def build(self) -> nn.ModuleDict:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        with torch.device(self.device):
            siglip = SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).to(self.dtype)
            classifier = SafetyClassifier((SIGLIP["hidden_size"], 512, 256))
            detector = FaceDetector(FACE_DETECTOR)
        randomized(siglip)
        last = [m for m in classifier.modules() if isinstance(m, nn.Linear)][-1]
        last.bias.data[0] = 100.0  # every frame is Safe
        for head in detector.ClassHead.modules():
            if isinstance(head, nn.Conv2d):
                head.weight.data.zero_()
                head.bias.data = torch.tensor([9.0, -9.0] * (len(head.bias) // 2), device=self.device)
        content = ContentFilter(siglip, classifier).eval().requires_grad_(False)
        return nn.ModuleDict(
            {"content_filter": content, "face_detector": detector.eval().requires_grad_(False)}
        )


def write_small(folder: Path, card: ModelCard) -> None:
    """What the stages read beside weights: word lists, folders with tokenizers, a video to go on from."""
    write_word_lists(folder / "blocklist")
    write_llama_guard(folder / "guard", seed=0)
    write_text_encoder(folder / "t5", text_dim=card.network.text_dim, seed=0)
    if card.task is Task.TEXT2WORLD:
        write_upsampler(folder / "upsampler", seed=0)
        return
    if card.network.family is Family.PREDICT2:
        write_refiner(folder / "upsampler", seed=0)
        enlarge_refiner(folder / "upsampler" / "config.json")
    else:
        write_pixtral(folder / "upsampler", seed=0)
    num_frames = max(card.video.given_frames)
    frames = numpy.random.default_rng(0).integers(
        0, 256, (num_frames, card.video.height, card.video.width, 3), dtype=numpy.uint8
    )
    numpy.save(folder / INPUT, frames)


def enlarge_refiner(config: Path) -> None:
    """The tokens stay the stand-in's, whose tokenizer lies beside the file."""
    fields = json.loads(config.read_text())
    vision = {**fields["vision_config"], **REFINER.get("vision_config", {})}
    config.write_text(json.dumps({**fields, **REFINER, "vision_config": vision}))


def pipeline_of(
    card: ModelCard,
    folder: Path,
    small: Path,
    *,
    offload: frozenset[str],
    groups: Groups,
    backend: str,
    device: torch.device,
) -> DiffusionPipeline[Any, Any]:
    dtype = torch.bfloat16
    common: dict[str, Any] = {"device": device}
    is_text = card.task is Task.TEXT2WORLD
    kind: type[DiffusionPipeline[Any, Any]] = Text2World if is_text else Video2World
    return kind(
        text_guard=FullTextGuard(
            word_lists=small / "blocklist", folder=small / "guard", offload="guardrails" in offload, **common
        ),
        upsampler=upsampler_of(
            card, folder=small / "upsampler", offload="prompt_upsampler" in offload, **common
        ),
        text_encoder=FullTextEncoder(
            folder=small / "t5",
            text_length=card.network.text_length,
            text_dim=card.network.text_dim,
            dtype=dtype,
            offload="text_encoder" in offload,
            group=groups.replica,
            **common,
        ),
        denoise=Denoise(
            card=card,
            checkpoint=folder / weights_of(card).assets_name / weights_of(card).subfolder,
            groups=groups,
            backend=choose_backend(backend, {}),
            dtype=dtype,
            offload="denoise" in offload,
            **common,
        ),
        tokenizer=tokenizer_of(card, folder=small, dtype=dtype, offload="tokenizer" in offload, **common),
        video_guard=FullVideoGuard(folder=small, offload="guardrails" in offload, **common),
        ranks=groups.replica,
    )


def upsampler_of(card: ModelCard, **arguments: Any) -> FullUpsampler | FullImageUpsampler | FullRefiner:
    if card.network.family is Family.PREDICT2:
        return FullRefiner(**arguments)
    if card.task is Task.TEXT2WORLD:
        return FullUpsampler(shape=card.upsampler, **arguments)
    return FullImageUpsampler(shape=card.upsampler, vision=card.vision, **arguments)


def tokenizer_of(card: ModelCard, **arguments: Any) -> FullTokenizer | FullWanTokenizer:
    parts = ("decoder",) if card.task is Task.TEXT2WORLD else ("encoder", "decoder")
    if isinstance(card.tokenizer, WanTokenizerShape):
        return FullWanTokenizer(shape=card.tokenizer, parts=parts, **arguments)
    return FullTokenizer(shape=card.tokenizer, parts=parts, **arguments)


def request_of(card: ModelCard, small: Path, **changes: Any) -> Text2WorldRequest:
    video = card.video
    settings: dict[str, Any] = {
        "prompt": PROMPT,
        "sampler": card.sampler,
        "height": video.height,
        "width": video.width,
        "num_frames": video.num_frames,
        "fps": video.fps,
        **changes,
    }
    if card.task is Task.TEXT2WORLD:
        return Text2WorldRequest(**settings)
    return Video2WorldRequest(
        visual_input=small / INPUT, num_input_frames=max(video.given_frames), **settings
    )


class Smi:
    """The most memory that nvidia-smi showed while the block ran."""

    def __enter__(self) -> "Smi":
        self.file = tempfile.TemporaryFile("w+")
        query = [
            "nvidia-smi",
            f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}",
            "--query-gpu=memory.used",
            "--format=csv,noheader,nounits",
            "-lms",
            "200",
        ]
        self.process = subprocess.Popen(query, stdout=self.file)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait()
        self.file.seek(0)
        self.gib = max((int(line) for line in self.file if line.strip().isdigit()), default=0) / 1024


def measure(
    card: ModelCard, args: argparse.Namespace, small: Path, row: int, groups: Groups
) -> dict[str, Any]:
    offload = PUBLISHED_OFFLOADS[row - 1] if row else frozenset[str]()
    request = request_of(card, small, num_steps=args.num_steps)
    pipeline = pipeline_of(
        card, args.folder, small, offload=offload, groups=groups, backend=args.backend, device=DEVICE
    )
    started = time.perf_counter()
    with Smi() as smi:
        for _ in range(args.videos):
            pipeline(request)
    costs = {stage.name: vars(stage.costs) for stage in pipeline.stages}
    return {
        "model": card.name,
        "row": row,
        "videos": args.videos,
        "offload": sorted(offload),
        "reserved": max(c["peak_reserved_bytes"] for c in costs.values()) / GIB,
        "allocated": max(c["peak_bytes"] for c in costs.values()) / GIB,
        "predicted": predict(card, offload=offload, is_batch=args.videos > 1).peak / GIB,
        "nvidia_smi": smi.gib,
        "seconds": time.perf_counter() - started,
        "stages": costs,
    }


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['model']} row {row['row']}: reserved {row['reserved']:.1f}, allocated {row['allocated']:.1f}, "
        f"predicted {row['predicted']:.1f}, nvidia-smi {row['nvidia_smi']:.1f} GiB, {row['seconds']:.0f} s"
    )
    for name, c in row["stages"].items():
        print(
            f"  {name:<13}{c['seconds']:8.1f} s, of which loading {c['load_seconds']:6.1f} s; "
            f"allocated {c['peak_bytes'] / GIB:5.1f}, reserved {c['peak_reserved_bytes'] / GIB:5.1f} GiB"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="Cosmos-Predict1-7B-Text2World", choices=CARDS, metavar="MODEL")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 3, 4, 5], choices=range(6))
    parser.add_argument("--num_steps", type=int, default=2)
    parser.add_argument("--videos", type=int, default=1, help="more than one: the table of a batch")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", type=Path, help="where the rows go too")
    args = parser.parse_args(argv)
    prepare_process()
    card = find_card(args.model)
    if not (args.folder / weights_of(card).assets_name).is_dir():
        write_network(card, args.folder, DEVICE)
    groups = start_alone(DEVICE)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        small = Path(name)
        write_small(small, card)
        for row in args.rows:
            gc.collect()
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()
            rows.append(measure(card, args, small, row, groups))
            show(rows[-1])
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
