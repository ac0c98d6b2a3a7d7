"""What stands in the place of a stage that is turned off."""

from typing import Self, TypeVar

T = TypeVar("T")


class Skip:
    """A stage without weights that returns its input, so that pipelines need not ask what is turned on."""

    def __call__(self, value: T) -> T:
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def prefetch(self) -> None:
        pass
