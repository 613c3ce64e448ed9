"""The exceptions of PageONE: one tree, rooted at :class:`PageOneError`.

For: every module. Each error names its subject (a target, a file, an option) and the remedy, in one line.
"""

from __future__ import annotations


class PageOneError(Exception):
    """Base of all errors that PageONE raises on purpose.

    ``exit_code`` is what the command line ends with when the error reaches it: 2 for bad input found before
    anything was touched, 1 for a failure later.
    """

    exit_code = 1


class UsageError(PageOneError):
    """Bad input: an argument, option or file that cannot be used as given; nothing was touched."""

    exit_code = 2


class TargetError(PageOneError):
    """A target process cannot be used or was lost; the message names the PID, the cause and the remedy."""


class UnsupportedError(PageOneError):
    """This kernel, machine or user lacks something that the request needs; nothing was touched."""


class BadTargetError(UsageError, TargetError):
    """The process named can be no target at all (no such process, kernel thread, …); nothing was touched."""
