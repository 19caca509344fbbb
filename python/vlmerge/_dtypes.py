"""Dtypes of files, and what numpy and torch have for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional

import numpy as np

if TYPE_CHECKING:
    import torch

#: The numpy dtype of each dtype that numpy has. All others come as float32, which holds each of their values exactly.
TO_NUMPY: Dict[str, "np.dtype[Any]"] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}

FROM_NUMPY: Dict[str, str] = {dtype.str[1:]: name for name, dtype in TO_NUMPY.items()}

#: The name in torch of each dtype; older versions of torch lack some.
TO_TORCH: Dict[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}

FROM_TORCH: Dict[str, str] = {f"torch.{name}": dtype for dtype, name in TO_TORCH.items()}


def to_torch(dtype: str) -> "Optional[torch.dtype]":
    """The dtype of torch, if this version has it."""
    import torch

    found = getattr(torch, TO_TORCH.get(dtype, ""), None)
    return found if isinstance(found, torch.dtype) else None
