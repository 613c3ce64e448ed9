"""Stubs of ``pageone._native.queue``."""

from typing import Generic, TypeVar

_Item = TypeVar("_Item")

class BatchQueue(Generic[_Item]):
    """An unbounded lock-free first-in first-out queue of Python objects; any thread may call. Nothing waits."""

    def __init__(self) -> None: ...
    def push(self, item: _Item) -> None:
        """Append an object."""

    def pop(self) -> _Item | None:
        """Take out the oldest object; None when there is none."""

    def __len__(self) -> int: ...
