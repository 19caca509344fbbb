"""Where and how to write."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional, Union


class Target(NamedTuple):
    """What the library asks of an output."""

    path: Union[str, "os.PathLike[str]"]
    container: Optional[str]
    force: bool
    shard_bytes: Optional[int]
    sync: bool
