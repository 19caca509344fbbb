"""Uses of the package that a strict type checker must accept, and whose types it must know. Nothing runs this file."""

from typing import Any, Dict, List, Optional

import numpy as np
from numpy.typing import NDArray

import vlmerge


def reading() -> None:
    checkpoint: vlmerge.Checkpoint = vlmerge.open("model.pt", root="ema")
    names: List[str] = list(checkpoint)
    array: NDArray[Any] = checkpoint[names[0]]
    rows: NDArray[Any] = checkpoint.rows("x", 0, 2)
    dtype: str = checkpoint.info("x").dtype
    data: bytes = checkpoint.raw("x")
    loaded: Dict[str, NDArray[Any]] = vlmerge.load("model.pt")
    print(array, rows, dtype, data, loaded, checkpoint.metadata["vlmerge.recipe"])


def writing() -> None:
    done: Dict[str, Any] = vlmerge.save({"x": np.zeros(3)}, "x.safetensors", metadata={"a": "b"}, dtype="bf16")
    merged: Dict[str, NDArray[Any]] = vlmerge.merge("recipe.yaml")
    written: Dict[str, Any] = vlmerge.merge({"merge_method": "linear"}, "out/", force=True)
    print(done, merged, written)


def measuring() -> None:
    def told(what: str, done: int, total: int) -> None:
        print(what, done, total)

    grams: Dict[str, NDArray[np.float64]] = vlmerge.grams("coco.gram.safetensors", progress=told)
    found: Dict[str, Any] = vlmerge.distance("a.pt", "b.pt", metrics=["l2"], progress=False)
    print(grams, found, vlmerge.inspect("a.pt")["layout"], vlmerge.diff("a.pt", "b.pt")["equal"])


def adding() -> None:
    def mean(tensors: List[NDArray[Any]], base: Optional[NDArray[Any]]) -> NDArray[Any]:
        return np.asarray(sum(tensors) / len(tensors))

    vlmerge.add_method("plain_mean", mean)
    try:
        vlmerge.open("none")
    except vlmerge.Error as error:
        hint: Optional[str] = error.hint
        print(hint)
