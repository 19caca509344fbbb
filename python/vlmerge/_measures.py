"""What the verbs `inspect`, `diff` and `distance` print with `--json`, and gram matrices."""

from __future__ import annotations

import json
from typing import Any, Dict, Optional, Sequence

import numpy as np
from numpy.typing import NDArray

from . import _vlmerge
from ._checkpoint import Path
from ._errors import warn
from ._progress import Progress, shown


def inspect(
    path: Path,
    *,
    root: Optional[str] = None,
    raw: bool = False,
    stats: bool = False,
    hash: bool = False,
    progress: Progress = None,
) -> Dict[str, Any]:
    """What `vlmerge inspect --json` prints: the layout and why it was chosen, sizes, parameters by part and expert,
    dtypes, quantization, metadata, provenance, values and Python objects beside the tensors, and a list of tensors.

    `stats` adds minimum, maximum, mean, deviation, zeros and non-finite elements of each tensor; `hash` the SHA-256 of
    its row-major little-endian bytes. Without both it reads headers alone. Raises as `open`.
    """
    with shown(progress) as report:
        found, notes = _vlmerge.inspect(path, root, raw, stats, hash, report)
    warn(notes)
    return _read(found)


def diff(
    left: Path,
    right: Path,
    *,
    tolerance: float = 0.0,
    headers_only: bool = False,
    raw: bool = False,
    root: Optional[str] = None,
    other_root: Optional[str] = None,
    progress: Progress = None,
) -> Dict[str, Any]:
    """What `vlmerge diff --json` prints: `equal`, and in `report` tensors that only one checkpoint has, those of
    another shape or dtype, and how far apart values are. Elements up to `tolerance` apart count as equal. Raises as
    `open`.
    """
    with shown(progress) as report:
        found, notes = _vlmerge.diff(
            left, right, tolerance, headers_only, raw, (root, other_root), report
        )
    warn(notes)
    return _read(found)


def distance(
    path: Path,
    other: Optional[Path] = None,
    *,
    seed: Optional[Path] = None,
    metrics: Sequence[str] = ("cosine", "l2", "ssd"),
    per: Sequence[str] = ("cell", "block", "all"),
    root: Optional[str] = None,
    progress: Progress = None,
) -> Dict[str, Any]:
    """What `vlmerge distance --json` prints: distances between the experts of one checkpoint, or between two
    checkpoints, of the weights or, with `seed`, of the weights minus those of the seed.

    Metrics are `cosine`, `l2`, `ssd`, and `tssd(0.2)` for each share of elements that it keeps; pools (`per`) are
    `tensor`, `cell`, `module`, `block` and `all`. Sums are in float64. Raises as `open`, and `InputError` for
    checkpoints without anything to compare.
    """
    with shown(progress) as report:
        found, notes = _vlmerge.distance(path, other, seed, list(metrics), list(per), root, report)
    warn(notes)
    return _read(found)


def grams(path: Path, *, progress: Progress = None) -> Dict[str, NDArray[np.float64]]:
    """The gram matrices `X'X` of a file of `vlmerge gram`, by the name of their layer: symmetric, float64, shape
    `(inputs, inputs)`; packed triangles are unpacked. Raises as `open`, and `InputError` for a tensor that is no gram
    matrix.
    """
    with shown(progress) as report:
        found = _vlmerge.grams(path, report)
    return {
        name: np.frombuffer(data, "<f8").reshape(width, width) for name, width, data in found
    }


def _read(text: str) -> Dict[str, Any]:
    found: Dict[str, Any] = json.loads(text)
    return found
