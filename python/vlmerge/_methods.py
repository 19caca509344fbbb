"""Merge methods that are functions over arrays."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Literal, Mapping, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from . import _vlmerge
from ._errors import described

__all__ = ["add_method", "call", "described"]

#: The default of a parameter; `None` where a recipe must give a number.
Default = Union[float, bool, None]


def add_method(
    name: str,
    function: Callable[..., NDArray[Any]],
    *,
    kind: Literal["elementwise", "tensor"] = "elementwise",
    base: Literal["none", "optional", "required"] = "none",
    min_models: int = 1,
    max_models: Optional[int] = None,
    parameters: Optional[Mapping[str, Default]] = None,
    per_model: Optional[Mapping[str, Default]] = None,
) -> None:
    """Makes a function a merge method, which recipes of this process then name: `merge_method: name`.

    `function(tensors, base, **parameters)` gets a list with an array for each model, in the order of the recipe, and
    the base's array or `None`. It returns the merged array, of the same shape.

    With `kind="elementwise"` arrays are pieces of one axis, of any length, in float32 (float64 where an input is, or
    the recipe says `dtype: float64`): element `i` of the result may depend on the elements `i` alone. With
    `kind="tensor"` they are whole tensors in float64. The result is rounded to the dtype of the output. Tensors of
    integers are not merged; they must agree.

    `parameters` are keyword arguments that a recipe gives for all models, with their defaults; `per_model` those that
    each model has, which come as lists. A default of `None` is a parameter that recipes must give.

    Everything else is as for every method: the plan checks names, shapes and dtypes first, infinities and NaNs in
    inputs and in the result are errors, and an exception of the function is an `InputError` that names the tensor.

    The function may be called from several threads, one at a time as the interpreter lets them, so it is slow beside
    a method of vlmerge. It cannot call vlmerge itself. A second method of the same name takes the place of the first;
    the names of vlmerge's methods are refused with an `InputError`.
    """
    if not callable(function):
        raise TypeError("a merge method is a function")
    if kind not in ("elementwise", "tensor"):
        raise ValueError(f"kind: there is no `{kind}`; there are elementwise and tensor")
    if min_models < 1 or (max_models is not None and max_models < min_models):
        raise ValueError(f"from {min_models} to {max_models} models is no range")
    shared = dict(parameters or {})
    both = [name for name in per_model or {} if name in shared]
    if both:
        raise ValueError(f"{', '.join(both)}: a parameter is of all models or of each")
    given: List[Tuple[str, Default, bool]] = [(key, value, False) for key, value in shared.items()]
    given += [(key, value, True) for key, value in (per_model or {}).items()]
    _vlmerge.add_method(
        name, function, kind == "elementwise", base, (min_models, max_models), given
    )


def call(
    function: Callable[..., Any],
    tensors: List[bytearray],
    base: Optional[bytearray],
    parameters: Dict[str, Any],
    dtype: str,
    shape: List[int],
) -> bytes:
    """Calls a function and checks its result, for the library."""

    def array(data: bytearray) -> NDArray[Any]:
        return np.frombuffer(data, dtype).reshape(shape)

    of_base = None if base is None else array(base)
    result = np.asarray(function([array(data) for data in tensors], of_base, **parameters))
    if result.dtype.kind not in "fiub":
        raise TypeError(f"the result is an array of {result.dtype}, not of real numbers")
    if result.shape != tuple(shape):
        raise ValueError(f"the result has shape {result.shape}, expected {tuple(shape)}")
    return result.astype(dtype, order="C", copy=False).tobytes()
