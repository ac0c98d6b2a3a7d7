"""What a guardrail may say. Four outcomes: passed, changed (faces blurred), blocked, unavailable.

Passed and changed are values that the guards return; the other two are raised, so that no caller can take
them for a pass. So is ItemError, of a prompt that a working guard cannot judge.
"""


class Blocked(Exception):
    """A guard refused a prompt or a video. The item is recorded, a batch goes on; exit status 3."""

    def __init__(self, by: str, reason: str) -> None:
        """by: the guard, e.g. "word lists"; reason: what it found, a clause for people."""
        super().__init__(by, reason)  # both, so that it survives pickling to other ranks
        self.by, self.reason = by, reason

    def __str__(self) -> str:
        return f"blocked by the {self.by}: {self.reason}"


class GuardrailUnavailable(Exception):
    """A guard failed, and would fail on the next prompt or video too. Never counts as a pass."""
