"""What tests put in the place of real things: groups without ranks, stages that write down what happens."""

import threading
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import CARDS, DiTShape
from cosmos_nemo.models.build import build_network
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.sampling.samplers import OnStep
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.denoise import Condition
from cosmos_nemo.stages.guardrail.outcome import Blocked
from cosmos_nemo.stages.parked import RESERVE

TINY = DiTShape(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    ffn_hidden_size=256,
    adaln_lora_dim=16,
    text_dim=32,
    text_length=12,
    max_latent_frames=16,
    max_latent_height=32,
    max_latent_width=32,
)
"""The network of golden/nemo_text_torch_dist."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class FakeGroup:
    """A process group of which only this rank exists: for what merely asks where it stands."""

    ranks: int
    here: int

    def size(self) -> int:
        return self.ranks

    def rank(self) -> int:
        return self.here


class Threads:
    """all_gather_into_tensor among threads that hold FakeGroups of one size; any other use is an error."""

    def __init__(self, ranks: int) -> None:
        self.shares: list[Tensor | None] = [None] * ranks
        self.barrier = threading.Barrier(ranks, timeout=20)

    def all_gather_into_tensor(self, whole: Tensor, share: Tensor, group: FakeGroup) -> None:
        self.shares[group.rank()] = share
        self.barrier.wait()
        whole.copy_(torch.cat([part for part in self.shares if part is not None]))
        self.barrier.wait()


def tiny_network(shape: DiTShape = TINY, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> DiT:
    """A network on one rank with random weights, none of them zero or small enough to hide a fault."""
    network = build_network(
        shape, backend=torch_backend(), pg_collection=start_alone(CPU).collection, device=CPU, dtype=dtype
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.ndim == 1
        parameter.copy_(1 + values / 4 if is_norm else values * parameter.shape[-1] ** -0.5)
    return network


class RecordedStage(Stage):
    """A stage of one small module that writes `name.enter`, `.build`, `.call` and `.exit` into a journal.

    And `.prefetch`. It is parked as every stage is, and can only be called while it is resident.
    """

    def __init__(self, name: str, journal: list[str], *, offload: bool = True, fails: bool = False) -> None:
        super().__init__(device=CPU, offload=offload, prefetches=True)
        self.name, self.journal, self.fails = name, journal, fails  # type: ignore[misc]

    @property
    def holds_weights(self) -> bool:
        return self.module is not None and all(p.numel() > 0 for p in self.module.parameters())

    def build(self) -> nn.Module:
        self.journal.append(f"{self.name}.build")
        return nn.Linear(2, 2)

    def prefetch(self, *, reserve: int = RESERVE) -> None:
        self.journal.append(f"{self.name}.prefetch")
        super().prefetch(reserve=reserve)

    def __enter__(self) -> Self:
        self.journal.append(f"{self.name}.enter")
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.journal.append(f"{self.name}.exit")

    def called(self) -> None:
        assert self.holds_weights, f"{self.name} is called, but not resident"
        self.journal.append(f"{self.name}.call")
        if self.fails:
            raise RuntimeError(f"{self.name} fails")


class RecordedTextEncoder(RecordedStage):
    """Embeds a prompt as ones times its length, [1, 3, 4]."""

    def __init__(self, journal: list[str], **options: Any) -> None:
        super().__init__("text_encoder", journal, **options)
        self.prompts: list[list[str]] = []

    def __call__(self, prompts: list[str]) -> Tensor:
        self.called()
        self.prompts.append(prompts)
        return torch.stack([torch.full((3, 4), float(len(prompt))) for prompt in prompts])


class RecordedDenoise(RecordedStage):
    """Makes the latent [1, 16, 2, 1, 1] of ones, after two steps; of as many frames as `num_latent_frames`.

    The latest call makes a latent of its own number, so that they can be told apart.
    """

    card = CARDS["Cosmos-1.0-Diffusion-7B-Text2World"]

    def __init__(self, journal: list[str], *, num_latent_frames: int = 2, **options: Any) -> None:
        super().__init__("denoise", journal, **options)
        self.num_latent_frames = num_latent_frames
        self.given: list[tuple[Any, Tensor, Tensor]] = []
        self.conditions: list[Condition | None] = []

    def __call__(
        self,
        request: Any,
        prompt_BLD: Tensor,
        negative_BLD: Tensor,
        *,
        condition: Condition | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        self.called()
        self.given.append((request, prompt_BLD, negative_BLD))
        self.conditions.append(condition)
        for step in (1, 2):
            if on_step is not None:
                on_step(step, 2)
        return torch.full((1, 16, self.num_latent_frames, 1, 1), float(len(self.given)))


class RecordedTokenizer(RecordedStage):
    """Decodes to frames of 8 x 8 pixels of seven times the latent's mean; encodes to the video's mean.

    With `numbers_frames`, frame t of the k-th decoding is k in red and t in green. Up to `together` ranks
    decode a latent of as many frames or more.
    """

    def __init__(
        self, journal: list[str], *, numbers_frames: bool = False, together: int = 1, **options: Any
    ) -> None:
        super().__init__("tokenizer", journal, **options)
        self.together, self.has_memory = together, True
        self.numbers_frames = numbers_frames
        self.latents: list[Tensor] = []
        self.videos: list[tuple[Tensor, bool | None]] = []

    def ranks_for(self, latent_BCTHW: Tensor, group: Any) -> int:
        return min(group.size(), self.together, latent_BCTHW.shape[2])

    def has_room(self, latent_BCTHW: Tensor, group: Any) -> bool:
        return self.has_memory

    def decode_together(self, latent_BCTHW: Tensor, group: Any) -> Tensor | None:
        assert group.rank() < self.ranks_for(latent_BCTHW, group)
        frames_THWC = self.decode(latent_BCTHW)
        return frames_THWC if group.rank() == 0 else None

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        self.called()
        self.latents.append(latent_BCTHW)
        level = round(7 * latent_BCTHW.mean().item())
        frames_THWC = torch.full((8 * latent_BCTHW.shape[2] - 7, 8, 8, 3), level, dtype=torch.uint8)
        if self.numbers_frames:
            frames_THWC[..., 0] = len(self.latents)
            frames_THWC[..., 1] = torch.arange(len(frames_THWC))[:, None, None]
        return frames_THWC

    def encode(self, video_BCTHW: Tensor, *, as_image: bool | None = None) -> Tensor:
        self.called()
        self.videos.append((video_BCTHW, as_image))
        num_latent_frames = (video_BCTHW.shape[2] - 1) // 8 + 1
        return video_BCTHW.mean().expand(1, 16, num_latent_frames, 1, 1)


class RecordedTextGuard(RecordedStage):
    """Blocks every text that holds `blocks`."""

    def __init__(self, journal: list[str], *, blocks: str = "\0", **options: Any) -> None:
        super().__init__("text_guard", journal, **options)
        self.blocks, self.texts = blocks, list[str]()

    def __call__(self, text: str) -> str:
        self.called()
        self.texts.append(text)
        if self.blocks in text:
            raise Blocked("text guard", f"it holds {self.blocks}")
        return text


class RecordedUpsampler(RecordedStage):
    """Makes "a cat, seen at length" of "a cat"."""

    def __init__(self, journal: list[str], **options: Any) -> None:
        super().__init__("upsampler", journal, **options)

    def __call__(self, prompt: str) -> str:
        self.called()
        return f"{prompt}, seen at length"


class RecordedImageUpsampler(RecordedStage):
    """Says of an image how bright its first pixel is."""

    def __init__(self, journal: list[str], **options: Any) -> None:
        super().__init__("upsampler", journal, **options)

    def __call__(self, image_HWC: Tensor) -> str:
        self.called()
        return f"a scene of brightness {int(image_HWC[0, 0, 0])}"


class RecordedVideoGuard(RecordedStage):
    """Returns the frames as they are, or made 9, or blocks them."""

    def __init__(self, journal: list[str], *, finds: str = "", **options: Any) -> None:
        super().__init__("video_guard", journal, **options)
        self.finds = finds

    def __call__(self, frames_THWC: Tensor) -> Tensor:
        self.called()
        if self.finds == "harm":
            raise Blocked("video content filter", "frame 3 is harm")
        return torch.full_like(frames_THWC, 9) if self.finds == "a face" else frames_THWC
