"""One canonical object per content, as ``sys.intern`` has it for strings."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Generic, Literal, TypeAlias, TypeVar, cast, overload

from pageone.one.tree import Buffer, SDTree

__all__ = ["Interner"]

# What is kept for a content: the object itself, or a reference to it.
_Kept: TypeAlias = "bytes | weakref.ref[memoryview]"
# What contents come back as.
Interned = TypeVar("Interned", bound="bytes | memoryview", covariant=True)


class Interner(Generic[Interned]):
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

    @overload
    def __init__(self: Interner[bytes], *, weak: Literal[False] = False) -> None: ...
    @overload
    def __init__(self: Interner[memoryview], *, weak: Literal[True]) -> None: ...
    def __init__(self, *, weak: bool = False) -> None:
        self._weak = weak
        self._tree = SDTree(None)
        self._objects: dict[int, _Kept] = {}
        # Reentrant: a collection of garbage inside a call may bring the death of a view.
        self._lock = threading.RLock()

    def intern(self, content: Buffer) -> Interned:
        """Return the canonical object with the bytes of ``content``, a bytes-like object.

        Raises ``TypeError`` for what has no bytes, ``ValueError`` above 64 MiB. Cost: one search, and two copies
        of a content that is new.
        """
        one = content if type(content) is bytes else bytes(memoryview(content))
        with self._lock:
            ids, _ = self._tree.intern([one])
            number = int(ids[0])
            kept = self._objects.get(number)
            known = kept() if isinstance(kept, weakref.ref) else kept
            if known is not None:
                return cast(Interned, known)
            if not self._weak:
                self._objects[number] = one
                return cast(Interned, one)
            view = memoryview(one)
            self._objects[number] = weakref.ref(view, self._forget(number, one))
            return cast(Interned, view)

    def _forget(self, number: int, content: bytes) -> Callable[[weakref.ref[memoryview]], None]:
        """Return what is called when the view of a content has died."""

        def died(reference: weakref.ref[memoryview]) -> None:
            with self._lock:
                # Interned again in the meantime, it has another view.
                if self._objects.get(number) is reference:
                    del self._objects[number]
                    self._tree.remove([content])

        return died

    def discard(self, content: Buffer) -> bool:
        """Forget a content; returns whether it was known. Objects handed out stay valid.

        Raises ``TypeError`` for what has no bytes. Cost: two searches.
        """
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
