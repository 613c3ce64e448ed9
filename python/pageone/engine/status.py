"""What is known of a page, one byte each: named states, one table of transitions, and the back-off.

For: the engine. A status byte holds the :class:`State` in bits 0–3, the back-off level (0–7 periods) in bits 4–6 and
in bit 7 whether a transparent huge page maps it. All changes go through :func:`transition`, whose table is
:data:`TABLE`: a pair that is not in it is a bug and raises.

The states are those of the original (2017) less what only a kernel needs; its best rule is kept: *a queued page
belongs to the queue*, so a write while it is queued only flips ``QUEUED`` to ``CHANGED``. Its back-off is kept too, but
it forgets: a page that came to rest halves its level, where the original only ever counted up.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from pageone.errors import PageOneError

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

__all__ = ["HUGE_BIT", "LEVEL_MAX", "STATES", "TABLE", "Event", "State", "level", "state", "transition"]

HUGE_BIT = 0x80
LEVEL_MAX = 7  #: periods a page that keeps being written waits on top of the quiet ones, as in the original


class State(IntEnum):
    """Where a page is on its way."""

    ABSENT = 0  #: not resident, or never scanned, or the kernel's zero page from the start
    VOLATILE = 1  #: written not long ago: waits for its quiet periods and its back-off
    QUEUED = 2  #: at rest; belongs to the queue
    CHANGED = 3  #: written while queued; the queue will drop it
    UNIQUE = 4  #: read; its key is in the index and no equal page is known
    SHARED = 5  #: maps a frame
    ZERO = 6  #: given back to the kernel's zero page
    HELD = 7  #: has an equal page, but merging it is not worth its cost (mappings, huge page); may be taken up later
    REFUSED = 8  #: the system would not (pinned, locked, no memory); left alone until it is written
    FORKED = 9  #: other processes map it too, since a fork: to merge it would free nothing
    INHERITED = 10  #: maps a frame since a fork: else it would share the page of the process that merged it


class Event(IntEnum):
    """What happens to a page."""

    WRITTEN = 0  #: the kernel says it was written
    DUE = 1  #: its wait is over
    UNIQUE = 2  #: read, and no equal page is known
    SHARED = 3  #: merged, verified
    ZERO = 4  #: dropped, verified
    HELD = 5  #: has an equal page; not merged, by decision
    REFUSED = 6  #: not merged, by the system
    RETRY = 7  #: not merged, because it was written meanwhile or the target did not stop
    LOST = 8  #: no longer mapped, or untracked
    FORKED = 9  #: found to be shared with other processes since a fork
    INHERITED = 10  #: found to map a frame though nobody merged it here


_S, _E = State, Event
STATES = len(State)

#: ``(state, event) -> (next state, change of the back-off level)``; -9 stands for "halve", -8 for "forget".
HALVE, FORGET = -9, -8
TABLE: dict[tuple[State, Event], tuple[State, int]] = {
    (_S.ABSENT, _E.WRITTEN): (_S.VOLATILE, 0),
    (_S.VOLATILE, _E.WRITTEN): (_S.VOLATILE, 1),
    (_S.QUEUED, _E.WRITTEN): (_S.CHANGED, 1),
    (_S.CHANGED, _E.WRITTEN): (_S.CHANGED, 0),
    (_S.UNIQUE, _E.WRITTEN): (_S.VOLATILE, 1),
    (_S.SHARED, _E.WRITTEN): (_S.VOLATILE, 2),  # a merge in vain costs most: wait longest
    (_S.ZERO, _E.WRITTEN): (_S.VOLATILE, 2),
    (_S.HELD, _E.WRITTEN): (_S.VOLATILE, 1),
    (_S.REFUSED, _E.WRITTEN): (_S.VOLATILE, 1),
    (_S.VOLATILE, _E.DUE): (_S.QUEUED, HALVE),
    (_S.HELD, _E.DUE): (_S.QUEUED, 0),  # more of its huge page, or of the budget, has become free
    (_S.QUEUED, _E.UNIQUE): (_S.UNIQUE, 0),
    (_S.QUEUED, _E.SHARED): (_S.SHARED, 0),
    (_S.UNIQUE, _E.SHARED): (_S.SHARED, 0),  # the first of a pair, found unique in an earlier period
    (_S.HELD, _E.SHARED): (_S.SHARED, 0),
    (_S.QUEUED, _E.ZERO): (_S.ZERO, 0),
    (_S.QUEUED, _E.HELD): (_S.HELD, 0),
    (_S.UNIQUE, _E.HELD): (_S.UNIQUE, 0),
    (_S.QUEUED, _E.REFUSED): (_S.REFUSED, 0),
    (_S.UNIQUE, _E.REFUSED): (_S.REFUSED, 0),
    (_S.HELD, _E.REFUSED): (_S.REFUSED, 0),
    (_S.QUEUED, _E.RETRY): (_S.VOLATILE, 1),
    (_S.CHANGED, _E.RETRY): (_S.VOLATILE, 0),
    (_S.UNIQUE, _E.RETRY): (_S.VOLATILE, 1),
    (_S.HELD, _E.RETRY): (_S.VOLATILE, 1),
    (_S.SHARED, _E.RETRY): (_S.VOLATILE, 0),  # unmerged: its own page again
    **{(s, _E.FORKED): (_S.FORKED, 0) for s in (_S.QUEUED, _S.UNIQUE, _S.HELD)},
    (_S.FORKED, _E.WRITTEN): (_S.VOLATILE, 0),  # its copy is its own: the first write of it
    (_S.FORKED, _E.DUE): (_S.QUEUED, 0),  # the others have gone, or have copies of their own
    (_S.ABSENT, _E.INHERITED): (_S.INHERITED, 0),
    (_S.INHERITED, _E.WRITTEN): (_S.VOLATILE, 0),
    (_S.INHERITED, _E.SHARED): (_S.SHARED, 0),  # the process that merged it has gone or written it
    **{(s, _E.LOST): (_S.ABSENT, FORGET) for s in State},
}

_BAD = 0x0F  #: a state that does not exist: what the lookup table holds where TABLE has no entry


def _lookup() -> U8:
    table = np.zeros((len(Event), 256), np.uint8)
    for byte in range(256):
        now, wait, huge = byte & 15, byte >> 4 & LEVEL_MAX, byte & HUGE_BIT
        for event in Event:
            entry = TABLE.get((State(now), event)) if now < STATES else None
            if entry is None:
                table[event, byte] = _BAD
                continue
            after, change = entry
            if change == HALVE:
                wait_after = wait >> 1
            elif change == FORGET:
                wait_after = 0
            else:
                wait_after = min(LEVEL_MAX, wait + change)
            keeps_huge = after not in (State.ABSENT, State.SHARED, State.ZERO, State.INHERITED)
            table[event, byte] = after | wait_after << 4 | (huge if keeps_huge else 0)
    return table


LOOKUP: U8 = _lookup()


def state(status: U8) -> U8:
    """Return the state of each status byte."""
    return status & np.uint8(15)


def level(status: U8) -> U8:
    """Return the back-off level of each status byte, 0–7 periods."""
    return status >> np.uint8(4) & np.uint8(LEVEL_MAX)


def transition(status: U8, indices: I64, event: Event) -> tuple[U8, I64]:
    """Apply ``event`` to ``status[indices]`` (no index twice); return the new bytes and the change of counts per state.

    Cost: about 10 ns a page. Raises :class:`PageOneError` where :data:`TABLE` has no entry; then nothing is changed.
    """
    before = status[indices]
    table = LOOKUP[event]
    seen = np.bincount(before, minlength=256)
    bytes_seen = np.flatnonzero(seen)
    # most often all pages are in one state
    after = np.full(len(before), table[bytes_seen[0]]) if len(bytes_seen) == 1 else table[before]
    change = np.zeros(16, np.int64)
    np.add.at(change, table[bytes_seen] & 15, seen[bytes_seen])
    if change[_BAD]:
        wrong = sorted({State(int(b) & 15).name for b in bytes_seen if table[b] & 15 == _BAD})
        raise PageOneError(f"engine: event {event.name} on pages in state {', '.join(wrong)}; please report this")
    np.subtract.at(change, bytes_seen & 15, seen[bytes_seen])
    status[indices] = after
    return after, change[:STATES]
