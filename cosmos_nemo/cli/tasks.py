"""Which door serves which models."""

from cosmos_nemo.catalog import ModelCard, Task
from cosmos_nemo.request import RequestError

_DOORS = {
    Task.TEXT2WORLD: "a Text2World model: run it with inference/text2world.py or inference/general.py",
    Task.VIDEO2WORLD: "a Video2World model: run it with inference/video2world.py",
    Task.WORLD_INTERPOLATOR: "a WorldInterpolator model: run it with inference/world_interpolator.py",
    Task.AUTOREGRESSIVE: "an autoregressive model: run it with inference/base.py",
    Task.TEXT2IMAGE: "a Text2Image model: run it with inference/text2image.py",
}


def check_task(card: ModelCard, *tasks: Task) -> None:
    """RequestError, naming the right door, unless the model's task is one of the door's."""
    if card.task not in tasks:
        raise RequestError(f"{card.name} is {_DOORS[card.task]}.")
