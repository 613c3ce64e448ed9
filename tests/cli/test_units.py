from __future__ import annotations

import pytest

from pageone.cli.units import parse_size, size_text
from pageone.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("256MiB", 256 << 20),
        ("256M", 256 << 20),
        ("0.25g", 1 << 28),
        ("1 kib", 1024),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "MiB", "1XB", "1e9", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="positive number"):
        parse_size(text)


def test_a_size_is_rounded_up_to_whole_pages() -> None:
    assert parse_size("4097", multiple=4096) == 8192


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (-(3 << 20), "-3.0 MiB"), (5 << 40, "5,120.0 GiB")],
)
def test_sizes_are_told_in_the_unit_that_reads_best(size: int, text: str) -> None:
    assert size_text(size) == text
