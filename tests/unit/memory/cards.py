"""Cards, offloads and stages that tests of the predicted memory share."""

from cosmos_nemo.catalog import ModelCard, find_card
from cosmos_nemo.memory import GIB, StageMemory, stage_memory
from cosmos_nemo.request import OFFLOADABLE

SMALL = find_card("Cosmos-1.0-Diffusion-7B-Text2World")
LARGE = find_card("Cosmos-1.0-Diffusion-14B-Text2World")
NANO = find_card("Cosmos-Nano-Text2World")
VIDEO, LARGE_VIDEO = (find_card(f"Cosmos-Predict1-{size}-Video2World") for size in ("7B", "14B"))
BETWEEN = find_card("Cosmos-Predict1-7B-WorldInterpolator")
NOTHING: frozenset[str] = frozenset()
EVERYTHING = frozenset(OFFLOADABLE)
THREE = frozenset({"text_encoder", "denoise", "tokenizer"})


def stage(card: ModelCard, name: str, **options: object) -> StageMemory:
    return next(stage for stage in stage_memory(card, **options) if stage.name == name)


def alone(stage: StageMemory) -> float:
    """GiB of a stage that is alone on its GPU."""
    return (stage.weights + stage.work) / GIB


def made(**sizes: tuple[int, int]) -> tuple[StageMemory, ...]:
    return tuple(StageMemory(name, *size) for name, size in sizes.items())


STAGES = made(
    text_guard=(100, 1),
    upsampler=(200, 2),
    text_encoder=(50, 3),
    denoise=(40, 70),
    tokenizer=(4, 300),
    video_guard=(7, 5),
)
