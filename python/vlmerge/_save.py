"""Writing arrays and tensors."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from . import _vlmerge
from ._checkpoint import Checkpoint, Path
from ._dtypes import FROM_NUMPY, FROM_TORCH
from ._progress import Progress, shown
from ._target import Target

if TYPE_CHECKING:
    from torch import Tensor

#: Metadata that vlmerge writes itself.
_OWN = ("format", "vlmerge.version", "vlmerge.recipe", "vlmerge.inputs", "vlmerge.aliases")

#: Dtype, shape, and data as bytes.
_Given = Tuple[str, List[int], NDArray[np.uint8]]


def _is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _of_torch(name: str, tensor: "Tensor") -> _Given:
    import torch

    dtype = FROM_TORCH.get(str(tensor.dtype))
    if dtype is None or tensor.layout != torch.strided or tensor.is_meta:
        what = "on the meta device" if tensor.is_meta else f"of {tensor.dtype}, {tensor.layout}"
        raise TypeError(f"`{name}`: a tensor {what} cannot be written")
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    data = np.empty(0, np.uint8) if flat.numel() == 0 else flat.view(torch.uint8).numpy()
    return dtype, list(tensor.shape), data


def _of_numpy(name: str, value: Any) -> _Given:
    array = np.asarray(value)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    dtype = FROM_NUMPY.get(little.dtype.str[1:])
    if dtype is None:
        raise TypeError(f"`{name}`: an array of {array.dtype} cannot be written")
    flat = np.ascontiguousarray(little).reshape(-1)
    return dtype, list(array.shape), flat.view(np.uint8)


def _place(value: Any) -> Tuple[Any, ...]:
    """What two names of one tensor have in common."""
    if _is_torch(value):
        # Others have no data of their own, and are refused later.
        if value.is_meta or str(value.layout) != "torch.strided":
            return ("name", id(value))
        place = (value.device, value.data_ptr(), value.dtype, value.stride(), value.is_conj())
        return ("torch", *place, tuple(value.shape)) if value.numel() else ("name", id(value))
    if isinstance(value, np.ndarray) and value.size:
        return ("numpy", value.ctypes.data, value.dtype.str, value.strides, value.shape)
    return ("name", id(value))


def save(
    tensors: "Mapping[str, Union[NDArray[Any], Tensor]]",
    path: Path,
    *,
    metadata: Optional[Mapping[str, str]] = None,
    force: bool = False,
    dtype: str = "keep",
    container: Optional[str] = None,
    shard_bytes: Optional[int] = None,
    sync: bool = True,
    progress: Progress = None,
) -> Dict[str, Any]:
    """Writes arrays of numpy and tensors of torch to a checkpoint file; returns the written files and sizes.

    The extension chooses the kind of file: `.safetensors`; `.pt`, `.pth` and `.bin` for torch (which
    `torch.load(weights_only=True)` opens), `.ckpt` with the weights under `state_dict`. `container` (`safetensors`,
    `torch`, `lightning`) chooses it whatever the extension. The file is written beside its target, synced (unless
    `sync=False`) and renamed. `shard_bytes` splits a safetensors file, with an index.

    Shapes and dtypes are kept; `dtype` (`f64`, `f32`, `bf16`, `f16`) rounds floats once. Names that hold the very same
    tensor are written as one tied tensor. Tensors of a card are copied to the processor first.

    Raises `ExistsError` unless `force=True`, `NoFileError` for a folder that is not there, `InputError`, and
    `TypeError` for anything but an array of numbers.
    """
    if isinstance(tensors, Checkpoint):
        raise TypeError(
            "a Checkpoint holds no arrays: pass its `arrays()` (bf16 as float32) or its `state_dict()`"
        )
    given: List[Tuple[str, str, List[int], memoryview]] = []
    aliases: Dict[str, str] = {}
    places: Dict[Tuple[Any, ...], str] = {}
    # As long as all of them live, no two have one place but the very same.
    values: List[Any] = []
    for name, value in tensors.items():
        values.append(value)
        if not isinstance(name, str):
            raise TypeError(f"names of tensors are strings, not {type(name).__name__}: {name!r}")
        known = places.setdefault(_place(value), name)
        if known != name:
            aliases[name] = known
            continue
        of = _of_torch(name, value) if _is_torch(value) else _of_numpy(name, value)
        dtype_of, shape, data = of
        given.append((name, dtype_of, shape, data.data))
    own = [key for key in metadata or {} if key in _OWN]
    if own:
        raise ValueError(f"metadata: vlmerge writes {', '.join(own)} itself; leave them out")
    target = Target(path, container, force, shard_bytes, sync)
    with shown(progress) as report:
        written = _vlmerge.save(given, aliases, target, dtype, dict(metadata or {}), report)
    found: Dict[str, Any] = json.loads(written)
    return found
