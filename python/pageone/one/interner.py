"""One canonical object per content, as ``sys.intern`` has it for strings."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from pageone.one.tree import SDTree

__all__ = ["Interner"]


class Interner:
    """Keeps one object per content: equal contents come back as the very same object.

    Strong (the default): contents come back as ``bytes``, kept as long as the interner (or until
    :meth:`discard`). With ``weak=True`` they come back as read-only ``memoryview`` s (Python has no weak references
    to ``bytes``), and a content is forgotten when nobody else holds its view any more. Contents are found by the SD
    tree: exactly, by all their bytes. Any thread may call; calls take turns.

    >>> interner = Interner()
    >>> a, b = interner.intern(b"x" * 1000), interner.intern(bytearray(b"x" * 1000))
    >>> a is b, len(interner)
    (True, 1)
    """

    __slots__ = ("_lock", "_objects", "_tree", "_weak")

    def __init__(self, *, weak: bool = False) -> None:
        self._weak = weak
        self._tree = SDTree(None)
        self._objects: dict[int, Any] = {}
        # Reentrant: a collection of garbage inside a call may bring the death of a view.
        self._lock = threading.RLock()

    def intern(self, content: Any) -> Any:
        """Return the canonical object with the bytes of ``content``, a bytes-like object.

        Raises ``TypeError`` for what has no bytes, ``ValueError`` above 64 MiB. Cost: one search, and two copies
        of a content that is new.
        """
        one = content if type(content) is bytes else bytes(memoryview(content))
        with self._lock:
            ids, _ = self._tree.intern([one])
            number = int(ids[0])
            known = self._objects.get(number)
            if self._weak and known is not None:
                known = known()
            if known is not None:
                return known
            if not self._weak:
                self._objects[number] = one
                return one
            view = memoryview(one)
            self._objects[number] = weakref.ref(view, self._forget(number, one))
            return view

    def _forget(self, number: int, content: bytes) -> Any:
        """Return what is called when the view of a content has died."""

        def died(reference: weakref.ref[memoryview]) -> None:
            with self._lock:
                # Interned again in the meantime, it has another view.
                if self._objects.get(number) is reference:
                    del self._objects[number]
                    self._tree.remove([content])

        return died

    def discard(self, content: Any) -> bool:
        """Forget a content; returns whether it was known. Objects handed out stay valid."""
        one = content if type(content) is bytes else bytes(memoryview(content))
        with self._lock:
            number = int(self._tree.find([one])[0])
            if number < 0:
                return False
            self._objects.pop(number, None)
            return bool(self._tree.remove([one])[0])

    def __len__(self) -> int:
        return len(self._tree)

    def __contains__(self, content: object) -> bool:
        return content in self._tree
