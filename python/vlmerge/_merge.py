"""Merging by a recipe."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Dict, Literal, Mapping, NamedTuple, Optional, Union, overload

from numpy.typing import NDArray

from . import _vlmerge
from ._checkpoint import Checkpoint, Path, all_of
from ._errors import warn
from ._progress import Progress, shown
from ._target import Target

if TYPE_CHECKING:
    from torch import Tensor

#: A file of YAML, text of YAML (with a line break), or the same as a dictionary.
Recipe = Union[Path, Mapping[str, Any]]


class _Given(NamedTuple):
    text: Optional[str]
    path: Path


def _given(recipe: Recipe) -> _Given:
    if isinstance(recipe, Mapping):
        # JSON is YAML. Paths may stand for names of files.
        text = json.dumps(recipe, default=os.fspath, ensure_ascii=False, indent=1, allow_nan=False)
        return _Given(text, "recipe")
    if isinstance(recipe, str) and "\n" in recipe:
        return _Given(recipe, "recipe")
    return _Given(None, recipe)


@overload
def merge(
    recipe: Recipe,
    out: None = None,
    *,
    framework: Literal["numpy"] = "numpy",
    dtype: str = "keep",
    allow_non_finite: bool = False,
    progress: Progress = None,
) -> Dict[str, NDArray[Any]]: ...


@overload
def merge(
    recipe: Recipe,
    out: None = None,
    *,
    framework: Literal["torch"],
    dtype: str = "keep",
    allow_non_finite: bool = False,
    progress: Progress = None,
) -> "Dict[str, Tensor]": ...


@overload
def merge(
    recipe: Recipe,
    out: Path,
    *,
    force: bool = False,
    dtype: str = "keep",
    container: Optional[str] = None,
    shard_bytes: Optional[int] = None,
    allow_non_finite: bool = False,
    hash: bool = True,
    sync: bool = True,
    progress: Progress = None,
) -> Dict[str, Any]: ...


def merge(
    recipe: Recipe,
    out: Optional[Path] = None,
    *,
    framework: Literal["numpy", "torch"] = "numpy",
    force: bool = False,
    dtype: str = "keep",
    container: Optional[str] = None,
    shard_bytes: Optional[int] = None,
    allow_non_finite: bool = False,
    hash: bool = True,
    sync: bool = True,
    progress: Progress = None,
) -> Any:
    """Merges checkpoints by a recipe, as `vlmerge merge` does: the same plan, the same checks, the same bytes.

    `recipe` is the path of a YAML file, YAML as a text of several lines, or a dictionary of the same form. All keys are
    in docs/recipes.md of the repository.

    Without `out` the result is a dictionary of all tensors: arrays (bf16 and narrower floats as float32, exactly), or
    with `framework="torch"` tensors in the dtype of the merge. It takes twice the memory of the output for a moment.

    With `out`, a file or a folder for a model with its configuration and tokenizer, the result is written and a summary
    returned: `files`, numbers of tensors `n_copied`, `n_combined`, `n_unchanged`, `n_dropped`, bytes, `seconds`.
    `dtype` (`f32`, `bf16`, `f16`) rounds the output once. `hash=False` leaves the hashes of the inputs out.

    Raises `Error` with the text that the program prints; notes are warnings of the class `Note`.
    """
    if out is not None and framework != "numpy":
        raise ValueError("`framework` is for a merge in memory, without `out`")
    of_file = (force, container, shard_bytes, hash, sync) != (False, None, None, True, True)
    if out is None and of_file:
        raise ValueError("`force`, `container`, `shard_bytes`, `hash` and `sync` need `out`")
    target = None if out is None else Target(out, container, force, shard_bytes, sync)
    is_hashed = hash and out is not None
    with shown(progress) as report:
        merged, written, notes = _vlmerge.merge(
            _given(recipe), target, dtype, allow_non_finite, is_hashed, report
        )
    warn(notes)
    if merged is None:
        return json.loads(written or "{}")
    return all_of(Checkpoint(merged), framework)
