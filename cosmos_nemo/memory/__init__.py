"""What making one video will need of GPU 0 and of the host, told before anything is allocated.

Weights are counted from the card's sizes, in bfloat16 as on a GPU. Work is what a stage needs beside its
weights; the constants in these files say which of it was measured and which is estimated from sizes. GPU 0 is
rank 0's, which has the text stages and the guards that the other ranks lack; the host's memory
is what all ranks together park.
Memory is in bytes, heights and widths in pixels of the video.
"""

from cosmos_nemo.memory.base import GIB, StageMemory
from cosmos_nemo.memory.frames import decode_shares, share_memory
from cosmos_nemo.memory.order import ORDER, order_of
from cosmos_nemo.memory.parameters import (
    language_parameters,
    network_parameters,
    token_parameters,
    vision_parameters,
)
from cosmos_nemo.memory.prediction import Prediction, predict
from cosmos_nemo.memory.published import PUBLISHED_OFFLOADS, published_offloads, published_rows
from cosmos_nemo.memory.stages import stage_memory
from cosmos_nemo.memory.tokens import token_generation_memory, token_stages, token_work
from cosmos_nemo.memory.totals import DEVICE_OVERHEAD, Use, host_bytes, peak, uses

__all__ = [
    "DEVICE_OVERHEAD",
    "GIB",
    "ORDER",
    "PUBLISHED_OFFLOADS",
    "Prediction",
    "StageMemory",
    "Use",
    "decode_shares",
    "host_bytes",
    "language_parameters",
    "network_parameters",
    "order_of",
    "peak",
    "predict",
    "published_offloads",
    "published_rows",
    "share_memory",
    "stage_memory",
    "token_generation_memory",
    "token_parameters",
    "token_stages",
    "token_work",
    "uses",
    "vision_parameters",
]
