"""Builds wheels: maturin's backend, with the program beside the module.

The program is built by cargo in the folder that all builds share, stripped, and put where maturin takes scripts from. Run
as a script, this file does that alone, and prints the oldest glibc that the program runs on.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Optional

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "python" / "vlmerge.data" / "scripts"

#: The wheel's program is no larger. It has 56 MB now, and 40 MB are wanted.
MOST_BYTES = 60_000_000


def target_folder() -> Path:
    """Where cargo puts what it builds."""
    import json

    run = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"]
    said = subprocess.run(run, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    return Path(json.loads(said)["target_directory"])


def put_program() -> Path:
    """Builds the program, and copies it, stripped, to the wheel's scripts."""
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=REPOSITORY, check=True)
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    program = SCRIPTS / "vlmerge"
    shutil.copy(target_folder() / "release" / "vlmerge", program)
    subprocess.run(["strip", str(program)], check=True)
    n_bytes = program.stat().st_size
    if n_bytes > MOST_BYTES:
        sys.exit(f"{program}: {n_bytes} bytes stripped, {MOST_BYTES} are the most")
    return program


def least_glibc(program: Path) -> str:
    """The newest version of glibc that a symbol of the program asks for, such as `2_34`."""
    run = ["objdump", "-T", str(program)]
    said = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    versions = {tuple(map(int, found)) for found in re.findall(r"GLIBC_(\d+)\.(\d+)", said)}
    major, minor = max(versions)
    return f"{major}_{minor}"


def get_requires_for_build_wheel(config_settings: Optional[Dict[str, Any]] = None) -> Any:
    import maturin

    return maturin.get_requires_for_build_wheel(config_settings)


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Optional[Dict[str, Any]] = None
) -> Any:
    import maturin

    # maturin asks for the folder of the scripts here, too.
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    return maturin.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def build_wheel(
    wheel_directory: str,
    config_settings: Optional[Dict[str, Any]] = None,
    metadata_directory: Optional[str] = None,
) -> Any:
    import maturin

    put_program()
    return maturin.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Optional[Dict[str, Any]] = None) -> Any:
    raise RuntimeError("there is no source archive: build the wheel from a clone of the repository")


if __name__ == "__main__":
    print(least_glibc(put_program()))
