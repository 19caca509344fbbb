"""Checkpoints as mappings from names to arrays."""

from __future__ import annotations

import html
import math
import os
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterator,
    List,
    Literal,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
    Union,
    overload,
)

import numpy as np
from numpy.typing import NDArray

from . import _vlmerge
from ._dtypes import TO_NUMPY, to_torch
from ._errors import warn

if TYPE_CHECKING:
    from torch import Tensor

Path = Union[str, "os.PathLike[str]"]

#: Rows of the table that a notebook shows.
_SHOWN_ROWS = 200


class TensorInfo(NamedTuple):
    """What a file says of a tensor."""

    #: The dtype, as safetensors spells it: `F32`, `BF16`, `F8_E4M3`, ...
    dtype: str
    #: Sizes of the axes; empty for a scalar.
    shape: Tuple[int, ...]
    #: Size of the data.
    n_bytes: int
    #: The codes that the tensor is stored in, where `dtype` is only what they are read as, e.g. `Q4_K` of GGUF.
    stored_as: Optional[str]


class Checkpoint(Mapping[str, NDArray[Any]]):
    """The tensors of a checkpoint by name: names and shapes at once, data on request.

    `checkpoint[name]` reads the tensor into a new array. Where numpy has no dtype of the kind (bf16, 8-bit floats and
    narrower ones) the array is float32, which holds each value exactly; `info(name).dtype` has the dtype of the file,
    `raw(name)` its bytes, and `torch(name)` keeps the dtype.

    A tied tensor goes by one name; the mapping has its other names, too, and `aliases` lists them.

    A checkpoint may be used by several threads at once, which read without the interpreter's lock.
    """

    def __init__(self, reader: "_vlmerge.Reader") -> None:
        """For the library itself: users call `open`."""
        self._reader = reader
        self._aliases = reader.aliases
        self._names = sorted([*reader.names, *self._aliases])

    @property
    def path(self) -> str:
        """The file that was opened: of a folder the model in it, of a split model its index."""
        return self._reader.path

    @property
    def container(self) -> str:
        """The kind of file, e.g. `safetensors`, `torch_zip`, `gguf`, `sharded`; `memory` for a merge without `out`."""
        return self._reader.container

    @property
    def metadata(self) -> Dict[str, str]:
        """The metadata of the file: those of a safetensors header, or what vlmerge wrote into a torch file."""
        return self._reader.metadata

    @property
    def aliases(self) -> Dict[str, str]:
        """Other names of tied tensors, each with the name that the tensor goes by."""
        return dict(self._aliases)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            self._reader.info(name)
        except KeyError:
            return False
        return True

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The tensor as a new array of its shape.

        Raises `MissingTensorError` (a `KeyError`) with the nearest name, and `Error` when the file cannot be read.
        """
        shape = self.info(name).shape
        return self._array(name, 0, math.prod(shape), shape)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and size of a tensor, from the headers. Raises `MissingTensorError`."""
        dtype, shape, n_bytes, stored_as = self._reader.info(name)
        return TensorInfo(dtype, tuple(shape), n_bytes, stored_as)

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop`, without the latter: shape `(stop - start, ...)`; no other row is read.

        Raises `IndexError` unless `0 <= start <= stop <= info(name).shape[0]`.
        """
        shape = self.info(name).shape
        if not shape:
            raise IndexError(f"`{name}` is a scalar and has no rows")
        if not 0 <= start <= stop <= shape[0]:
            raise IndexError(f"`{name}` has {shape[0]} rows, and {start} to {stop} are asked for")
        row = math.prod(shape[1:])
        return self._array(name, start * row, (stop - start) * row, (stop - start, *shape[1:]))

    def raw(self, name: str) -> bytes:
        """The bytes of a tensor as safetensors has them: row-major, little-endian, in the dtype of `info(name)`."""
        info = self.info(name)
        return bytes(self._reader.read(name, 0, math.prod(info.shape), False, None))

    def torch(self, name: str) -> "Tensor":
        """The tensor as a new tensor of torch on the CPU, in its own dtype (bf16, too).

        A dtype that the installed torch lacks comes as float32. Raises `ImportError` without torch.
        """
        import torch

        info = self.info(name)
        dtype = to_torch(info.dtype)
        if dtype is None:
            return torch.from_numpy(self[name])
        n_elements = math.prod(info.shape)
        if n_elements == 0:
            return torch.empty(info.shape, dtype=dtype)
        data = self._reader.read(name, 0, n_elements, False, None)
        return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(info.shape)

    def state_dict(self) -> "Dict[str, Tensor]":
        """All tensors as those of torch, each in its own dtype; names of a tied tensor have one tensor."""
        tensors = {name: self.torch(name) for name in self._reader.names}
        return self._with_aliases(tensors)

    def arrays(self) -> Dict[str, NDArray[Any]]:
        """All tensors as arrays; names of a tied tensor have one array."""
        tensors = {name: self[name] for name in self._reader.names}
        return self._with_aliases(tensors)

    def _with_aliases(self, tensors: Dict[str, Any]) -> Dict[str, Any]:
        return {name: tensors[self._aliases.get(name, name)] for name in self._names}

    def _array(self, name: str, first: int, n: int, shape: Tuple[int, ...]) -> NDArray[Any]:
        dtype = TO_NUMPY.get(self.info(name).dtype)
        to = np.dtype("<f4") if dtype is None else dtype
        if n == 0:
            return np.empty(shape, to)
        data = self._reader.read(name, first, n, dtype is None, None)
        return np.frombuffer(data, to).reshape(shape)

    def __repr__(self) -> str:
        n = len(self._reader.names)
        return f"<vlmerge.Checkpoint {self.path!r}: {n} tensors, {self.container}>"

    def _repr_html_(self) -> str:
        cell = "<td>{}</td>".format
        lines: List[str] = []
        for name in self._names[:_SHOWN_ROWS]:
            info = self.info(name)
            dtype = info.stored_as or info.dtype
            of = self._aliases.get(name)
            note = "" if of is None else f"is {html.escape(of)}"
            cells = [html.escape(name), html.escape(dtype), str(list(info.shape)), note]
            lines.append(f"<tr>{''.join(map(cell, cells))}</tr>")
        more = len(self._names) - _SHOWN_ROWS
        rest = f"<p>and {more} more</p>" if more > 0 else ""
        head = "<tr><th>tensor</th><th>dtype</th><th>shape</th><th></th></tr>"
        title = f"{html.escape(self.path)}: {len(self._reader.names)} tensors, {self.container}"
        return f"<p>{title}</p><table>{head}{''.join(lines)}</table>{rest}"


def open(
    path: Path,
    *,
    root: Optional[str] = None,
    raw: bool = False,
    dequantize: bool = False,
) -> Checkpoint:
    """The checkpoint at `path`: a file, the index of a split model, a folder, or an address such as `hf://org/model`.

    It reads headers alone, whatever the size, and runs no code of the file. Files may be safetensors, torch files of
    any age, GGUF, NumPy, Flax, ONNX, and the folders of DeepSpeed, Megatron-LM and torch.distributed.

    `root` names the dictionary of a torch file that holds the weights, where the rule does not find it. `raw` keeps the
    names and shapes of a GGUF file. `dequantize` gives quantized weights as the numbers that they stand for.

    Raises `NoFileError`, `SystemFault`, and `InputError` for a file that is damaged, hostile or of no known kind.
    """
    checkpoint = Checkpoint(_vlmerge.Reader.open(path, root, raw, dequantize))
    warn(checkpoint._reader.notes)
    return checkpoint


@overload
def load(
    path: Path,
    *,
    framework: Literal["numpy"] = "numpy",
    root: Optional[str] = None,
) -> Dict[str, NDArray[Any]]: ...


@overload
def load(
    path: Path, *, framework: Literal["torch"], root: Optional[str] = None
) -> "Dict[str, Tensor]": ...


def load(
    path: Path,
    *,
    framework: Literal["numpy", "torch"] = "numpy",
    root: Optional[str] = None,
) -> Any:
    """All tensors of a checkpoint in memory, by name: `torch.load` that runs no code of the file, for any kind of file.

    With `framework="numpy"` as `Checkpoint.arrays` gives them, with `framework="torch"` as `Checkpoint.state_dict`.
    Only tensors are in the result; other values of a torch file are in `inspect(path)["values"]`.

    Raises as `open`.
    """
    checkpoint = open(path, root=root)
    return all_of(checkpoint, framework)


def all_of(checkpoint: Checkpoint, framework: str) -> Dict[str, Any]:
    """All tensors for one of the two frameworks."""
    if framework == "numpy":
        return checkpoint.arrays()
    if framework == "torch":
        return checkpoint.state_dict()
    raise ValueError(f"there is no framework `{framework}`; there are numpy and torch")
