"""Builds wheels: maturin's backend, with the program beside the module.

The program is built by cargo in the folder that all builds share, stripped, and put where maturin takes scripts from. Run
as a script, this file does that alone, and prints the oldest glibc that the program runs on.

    vlmerge_build.py [TARGET]       for another kind of machine, with zig as the linker: `aarch64-unknown-linux-gnu`
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "python" / "vlmerge.data" / "scripts"

#: The wheel's program is no larger. It has 53 MB now, and 40 MB are wanted.
MOST_BYTES = 56_000_000

#: The glibc that zig links for.
ZIG_GLIBC = (2, 28)


def target_folder() -> Path:
    """Where cargo puts what it builds."""
    import json

    run = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"]
    said = subprocess.run(run, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    return Path(json.loads(said)["target_directory"])


def put_program(target: Optional[str] = None) -> Path:
    """Builds the program, which cargo strips, and copies it to the wheel's scripts."""
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    program = SCRIPTS / "vlmerge"
    command, folder = ["build"], target_folder()
    if target is not None:
        with_glibc = f"{target}.{ZIG_GLIBC[0]}.{ZIG_GLIBC[1]}"
        command, folder = ["zigbuild", "--target", with_glibc], folder / target
    subprocess.run(["cargo", *command, "--release", "--locked"], cwd=REPOSITORY, check=True)
    shutil.copy(folder / "release" / "vlmerge", program)
    n_bytes = program.stat().st_size
    if n_bytes > MOST_BYTES:
        sys.exit(f"{program}: {n_bytes} bytes stripped, {MOST_BYTES} are the most")
    return program


def least_glibc(program: Path) -> Tuple[int, int]:
    """The newest version of glibc that a symbol of the program asks for, such as `(2, 34)`."""
    run = ["readelf", "--version-info", "--wide", str(program)]
    said = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"Name: GLIBC_(\d+)\.(\d+)", said)
    return max((int(major), int(minor)) for major, minor in found)


def tag(target: Optional[str]) -> str:
    """Builds the program, and returns the glibc of the wheel's tag, such as `2_34`."""
    least = least_glibc(put_program(target))
    if target is not None:
        if least > ZIG_GLIBC:
            sys.exit(f"the program asks for glibc {least}, zig was to link for {ZIG_GLIBC}")
        least = ZIG_GLIBC
    return f"{least[0]}_{least[1]}"


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
    print(tag(sys.argv[1] if len(sys.argv) > 1 else None))
