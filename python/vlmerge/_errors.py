"""Exceptions, with the texts that the program prints."""

from __future__ import annotations

import os
import traceback
import warnings
from typing import Dict, List, Optional, Type


class Note(UserWarning):
    """Something that users should know of how a checkpoint was found or merged."""


class Error(Exception):
    """Anything that the library refuses. `hint` has the program's advice, where there is some.

    Hints name flags of the program; a parameter of the same name does the same here.
    """

    hint: Optional[str] = None


class InputError(Error, ValueError):
    """A file, a recipe or a value is wrong."""


class SystemFault(Error, OSError):
    """The operating system or another machine refuses; `errno` and `filename` as in every `OSError`."""

    def __str__(self) -> str:
        # An OSError with a number shows that instead of its text.
        return str(self.args[0]) if self.args else ""


class NoFileError(SystemFault, FileNotFoundError):
    """There is no such file or folder."""


class ExistsError(SystemFault, FileExistsError):
    """The target exists, and `force=True` is not given."""


class MissingTensorError(Error, KeyError):
    """A checkpoint has no tensor of this name; the text has the nearest one."""

    def __str__(self) -> str:
        # A KeyError shows its key as `repr` does.
        return str(self.args[0]) if self.args else ""


class StoppedError(Error):
    """The work was stopped before it was done."""


KINDS: Dict[str, Type[Error]] = {
    "value": InputError,
    "system": SystemFault,
    "no file": NoFileError,
    "exists": ExistsError,
    "tensor": MissingTensorError,
    "stopped": StoppedError,
}


def made(
    kind: str,
    text: str,
    hint: Optional[str],
    errno: Optional[int],
    path: Optional[str],
) -> Error:
    """The exception for an error of the library, which calls this."""
    error = KINDS[kind](text)
    error.hint = hint
    if isinstance(error, SystemFault):
        error.errno = errno
        error.filename = path
    if hint is not None and hasattr(error, "add_note"):
        error.add_note(f"hint: {hint}")
    return error


def warn(notes: List[str]) -> None:
    """Shows notes as warnings at the caller's line."""
    for note in notes:
        warnings.warn(note, Note, stacklevel=3)


def described(error: BaseException) -> str:
    """An exception in one line, with the place that raised it."""
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    ours = os.path.join(os.path.dirname(__file__), "_methods.py")
    own = [frame for frame in frames if frame.filename != ours]
    if not own:
        return text
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})"
