"""Runs the notebook of the documents, and compares its outputs with those that it holds.

    python python/notebook.py [--write]     in an environment with vlmerge, nbclient, ipykernel and matplotlib

Texts must be equal. Numbers with a point or an exponent may differ by one in their last digit, or by a small share; durations by
anything. Pictures must be there. `--write` keeps the new outputs instead.
"""

import argparse
import math
import os
import pathlib
import re
import sys
import tempfile

import nbformat
from nbclient import NotebookClient

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"
# Processors add up in different orders.
TOLERANCE = 1e-4
NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?|-?\d+e[+-]?\d+")
DURATION = re.compile(r"\b[\d.]+ (?:ms|s)\b")


def executed(notebook):
    """Runs all cells in a folder of their own, which sees the repository's fixtures."""
    with tempfile.TemporaryDirectory(prefix="vlmerge-") as folder:
        os.symlink(REPOSITORY / "fixtures", f"{folder}/fixtures")
        os.environ["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
        os.environ["IPYTHONDIR"] = f"{folder}/.ipython"
        NotebookClient(notebook, timeout=120, coalesce_streams=True, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            # Notes and bars name places of this machine, and depend on its speed.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def shown(cell):
    """The text of a cell's outputs, and the number of its pictures."""
    text, n_pictures = "", 0
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        n_pictures += "image/png" in data
        text += output.get("text", "") if not data else "" if "image/png" in data else data["text/plain"] + "\n"
    return DURATION.sub("… s", text), n_pictures


def last_digit(number):
    """One in the last digit of a number as it is printed."""
    mantissa, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def is_same(left, right):
    pairs = zip(NUMBER.findall(left), NUMBER.findall(right))
    return NUMBER.sub("#", left) == NUMBER.sub("#", right) and all(
        math.isclose(float(a), float(b), rel_tol=TOLERANCE, abs_tol=1.01 * last_digit(a)) for a, b in pairs
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="keep the outputs in the notebook")
    arguments = parser.parse_args()
    held = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    executed(notebook)
    if arguments.write:
        notebook.metadata = {"kernelspec": held.metadata["kernelspec"], "language_info": {"name": "python"}}
        nbformat.write(notebook, NOTEBOOK)
        return
    faults = []
    for number, (old, new) in enumerate(zip(held.cells, notebook.cells), start=1):
        (expected, n_expected), (found, n_found) = shown(old), shown(new)
        if n_expected != n_found or not is_same(expected, found):
            faults.append(f"cell {number} of {NOTEBOOK.name} holds\n{expected}\nand gives\n{found}")
    if faults:
        sys.exit("\n".join(faults) + "\n`python/notebook.py --write` keeps the new outputs")
    print(f"{len(notebook.cells)} cells, outputs as they stand")


if __name__ == "__main__":
    main()
