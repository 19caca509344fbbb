"""Checkpoint files for the tests, written here by the formats' descriptions, and places of the repository."""

import json
import os
import shutil
import struct
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, Dict, List, Tuple

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURES = REPOSITORY / "fixtures"

#: The checkpoint of the README: modality-specific, a torch file.
SPECIFIC = FIXTURES / "ckpt" / "all_moe_pretrain.ckpt"


def program() -> str:
    """The program that the wheel brings."""
    beside = Path(sys.executable).parent / "vlmerge"
    found = str(beside) if beside.exists() else shutil.which("vlmerge")
    if found is None:
        raise unittest.SkipTest("the program is not installed")
    return found


def safetensors(path: Path, tensors: Dict[str, Tuple[str, List[int], bytes]], **metadata: str) -> Path:
    """Writes a safetensors file."""
    header: Dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for name, (dtype, shape, data) in tensors.items():
        end = start + len(data)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)
    return path


def sparse(path: Path, n_bytes: int) -> Path:
    """Writes a safetensors file of one tensor of zeros that takes no room on the disk."""
    header = {"x": {"dtype": "U8", "shape": [n_bytes], "data_offsets": [0, n_bytes]}}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + n_bytes)
    return path


def read_safetensors(path: Path) -> Tuple[Dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


class InFolder(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vlmerge-"))
        self.addCleanup(shutil.rmtree, self.folder, True)

    def in_folder(self, name: str) -> Path:
        return self.folder / name

    def names(self) -> List[str]:
        return sorted(os.listdir(self.folder))
