"""Progress of long work: a line on a terminal or in a notebook, or a function of the user."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator, Optional, Union

#: `None`: a line on a terminal and in notebooks. `False`: nothing. A function: called with the name of the work and
#: two numbers, done and in all (bytes, or things of a kind), about every 50 ms and at the end. It may raise to stop the
#: work.
Progress = Union[None, bool, Callable[[str, int, int], object]]

_Report = Callable[[str, int, int], object]

#: Work that takes less time shows no line.
_PATIENCE_SECONDS = 0.5

_WIDTH = 78


def _is_shown() -> bool:
    stream = sys.stderr
    if stream is None:
        return False
    if stream.isatty():
        return True
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


class _Line:
    """One line on stderr that is written over."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._began < _PATIENCE_SECONDS:
            return
        share = 100 * done // total if total else 100
        self._write(f"vlmerge: {what} {share}%")

    def _write(self, text: str) -> None:
        text = text[:_WIDTH]
        if text != self._shown:
            sys.stderr.write("\r" + text.ljust(len(self._shown)))
            sys.stderr.flush()
            self._shown = text

    def close(self) -> None:
        if self._shown:
            self._write("")
            sys.stderr.write("\r")
            sys.stderr.flush()


@contextmanager
def shown(progress: Progress) -> Iterator[Optional[_Report]]:
    """The function that the library reports to."""
    if callable(progress):
        yield progress
    elif progress is False or not _is_shown():
        yield None
    else:
        line = _Line()
        try:
            yield line
        finally:
            line.close()
