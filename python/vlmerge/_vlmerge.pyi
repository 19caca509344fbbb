"""The compiled half; `vlmerge` documents it."""

import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

VERSION: str

_Path = Union[str, "os.PathLike[str]"]
_Report = Optional[Callable[[str, int, int], object]]

class Reader:
    @staticmethod
    def open(path: _Path, root: Optional[str], raw: bool, dequantize: bool) -> Reader: ...
    @property
    def path(self) -> str: ...
    @property
    def container(self) -> str: ...
    @property
    def metadata(self) -> Dict[str, str]: ...
    @property
    def aliases(self) -> Dict[str, str]: ...
    @property
    def notes(self) -> List[str]: ...
    @property
    def names(self) -> List[str]: ...
    def info(self, name: str) -> Tuple[str, List[int], int, Optional[str]]: ...
    def read(
        self,
        name: str,
        first: int,
        n: int,
        as_f32: bool,
        report: _Report,
    ) -> bytearray: ...

def save(
    tensors: Sequence[Tuple[str, str, List[int], memoryview]],
    aliases: Dict[str, str],
    target: Any,
    dtype: str,
    metadata: Dict[str, str],
    report: _Report,
) -> str: ...
def merge(
    recipe: Any,
    target: Any,
    dtype: str,
    allow_non_finite: bool,
    hash: bool,
    report: _Report,
) -> Tuple[Optional[Reader], Optional[str], List[str]]: ...
def inspect(
    path: _Path,
    root: Optional[str],
    raw: bool,
    statistics: bool,
    hashes: bool,
    report: _Report,
) -> Tuple[str, List[str]]: ...
def diff(
    left: _Path,
    right: _Path,
    tolerance: float,
    headers_only: bool,
    raw: bool,
    roots: Tuple[Optional[str], Optional[str]],
    report: _Report,
) -> Tuple[str, List[str]]: ...
def distance(
    path: _Path,
    other: Optional[_Path],
    seed: Optional[_Path],
    metrics: List[str],
    per: List[str],
    root: Optional[str],
    report: _Report,
) -> Tuple[str, List[str]]: ...
def grams(path: _Path, report: _Report) -> List[Tuple[str, int, bytearray]]: ...
def add_method(
    name: str,
    function: Callable[..., Any],
    is_elementwise: bool,
    base: str,
    n_models: Tuple[int, Optional[int]],
    parameters: List[Tuple[str, Union[float, bool, None], bool]],
) -> None: ...
