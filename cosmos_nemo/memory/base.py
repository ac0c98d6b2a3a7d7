"""The memory of one stage, and the units of all."""

from dataclasses import dataclass

GIB = 2**30
BFLOAT16, FLOAT32 = 2, 4
"""Bytes of a number."""
_OFFLOAD_NAME = {
    "text_guard": "guardrails",
    "upsampler": "prompt_upsampler",
    "video_guard": "guardrails",
    "discrete_tokenizer": "tokenizer",
}
"""Where --offload calls a stage by another name."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one stage: of its weights, and on top of them while it runs."""

    name: str
    weights: int
    work: int

    @property
    def offload_name(self) -> str:
        """What --offload calls it."""
        return _OFFLOAD_NAME.get(self.name, self.name)

    def is_in(self, offload: frozenset[str]) -> bool:
        return self.offload_name in offload
