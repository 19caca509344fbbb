"""Open, save, merge and compare checkpoints of any kind that the program `vlmerge` reads.

>>> import vlmerge
>>> checkpoint = vlmerge.open("model.ckpt")      # headers alone; no code of the file runs
>>> checkpoint["head.weight"]                    # a numpy array
>>> vlmerge.merge("recipe.yaml", "merged.safetensors")
"""

from . import _vlmerge
from ._checkpoint import Checkpoint, TensorInfo, load, open
from ._errors import (
    Error,
    ExistsError,
    InputError,
    MissingTensorError,
    NoFileError,
    Note,
    StoppedError,
    SystemFault,
)
from ._measures import diff, distance, grams, inspect
from ._merge import merge
from ._methods import add_method
from ._save import save

__version__: str = _vlmerge.VERSION

__all__ = [
    "Checkpoint",
    "Error",
    "ExistsError",
    "InputError",
    "MissingTensorError",
    "NoFileError",
    "Note",
    "StoppedError",
    "SystemFault",
    "TensorInfo",
    "add_method",
    "diff",
    "distance",
    "grams",
    "inspect",
    "load",
    "merge",
    "open",
    "save",
]
