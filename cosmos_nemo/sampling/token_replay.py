"""A step that is run again and again: call by call, or as a CUDA graph."""

from collections.abc import Callable

import torch

Step = Callable[[int], None]
"""Reads and changes tensors of its own, which stay where they are; the argument is its bucket."""


class CallByCall:
    """Runs a step as it is."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, bucket: int) -> None:
        self._step(bucket)

    def close(self) -> None:
        """Nothing to free."""


class Replay:
    """Captures a step once for each bucket, and launches that from then on. Buckets follow one another.

    The first step of a bucket runs as it is: it makes what a capture must find made, such as workspaces and
    communicators, and counts as a step like any other. The second is captured, which runs nothing, and
    launched. A graph of the bucket before is freed, so there is one at a time.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step, self._device = step, device
        self._bucket: int | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, bucket: int) -> None:
        if bucket != self._bucket:
            self.close()
            self._step(bucket)
            self._bucket = bucket
            return
        if self._graph is None:
            self._graph = self._captured(bucket)
        self._graph.replay()

    def close(self) -> None:
        """Frees the graph, after the launches that are under way."""
        self._bucket = None
        if self._graph is not None:
            torch.cuda.synchronize(self._device)
            self._graph.reset()
            self._graph = None

    def _captured(self, bucket: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads, NCCL's watchdog or one that prefetches weights, may do what a capture must not.
        with torch.cuda.device(self._device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._step(bucket)
        return graph
