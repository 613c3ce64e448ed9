"""What only a checkout has: the peers and models that benchmarks measure against are not in a wheel."""

from __future__ import annotations

from typing import Any

from pageone import _native
from pageone.errors import UnsupportedError


def native(name: str) -> Any:
    """Return the native module ``name``, which the feature ``bench`` puts in; ``UnsupportedError`` in a wheel."""
    module = getattr(_native, name, None)
    if module is None:
        raise UnsupportedError(
            "the peers of this benchmark are not in the wheel; run it in a checkout, after `make build`"
        )
    return module
