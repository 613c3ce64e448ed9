"""Sizes as people write and read them.

For: command modules. ``256MiB``, ``1G`` and ``4096`` in; ``1.25 GiB`` out.
"""

from __future__ import annotations

import re

from pageone.errors import UsageError

__all__ = ["parse_size", "size_text"]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str, *, multiple: int = 1) -> int:
    """Return the bytes that ``text`` says (binary units; ``256MiB``, ``256M``, ``0.25g``), rounded up to ``multiple``.

    Raises ``UsageError`` for anything that is not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    size = round(float(match.group(1)) * _UNITS[match.group(2).lower()]) if match else 0
    if size <= 0:
        raise UsageError(f"size {text!r}: give a positive number of bytes, such as 256MiB")
    return -(-size // multiple) * multiple


def size_text(size: float) -> str:
    """Return bytes in the unit that reads best, with its sign."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError
