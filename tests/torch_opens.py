"""torch and safetensors open what vlmerge writes, and find the tensors of the input in it.

    tests/with_torch.sh tests/torch_opens.py target/release/vlmerge
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open
from safetensors.torch import load_file

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = REPOSITORY / "fixtures"
PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())


def vlmerge(*arguments):
    subprocess.run([PROGRAM, *map(str, arguments), "--quiet"], check=True, stdout=subprocess.DEVNULL)


def opened(path):
    if path.suffix == ".safetensors":
        content = load_file(path)
        with safe_open(path, "pt") as file:
            aliases = json.loads((file.metadata() or {}).get("vlmerge.aliases", "{}"))
        assert not aliases.keys() & content.keys()
        return {**content, **{name: content[of] for name, of in aliases.items()}}
    content = torch.load(path, weights_only=True)
    torch.load(path, weights_only=True, mmap=True)
    return content["state_dict"] if path.suffix == ".ckpt" else content


def same(a, b):
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
    )


def families(content):
    """Names of each tensor that has several, by torch's own account."""
    found = {}
    for name, tensor in content.items():
        if tensor.numel():
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            found.setdefault(place, set()).add(name)
    return {frozenset(names) for names in found.values() if len(names) > 1}


def flat(content, prefix=""):
    """Tensors of nested dictionaries by dotted name, as vlmerge names them."""
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")


def main():
    n_tensors = n_files = 0
    inputs = [FIXTURES / "ckpt/all_moe_pretrain.ckpt", FIXTURES / "ckpt/ufo.safetensors"]
    valid = FIXTURES / "corpus/torch/valid"
    inputs += [valid / name for name in ("zip_dtypes.pt", "zip_views.pt", "zip_scalar_empty.pt", "zip_special_values.pt", "zip_float8.pt", "legacy_dtypes.pt")]
    with tempfile.TemporaryDirectory() as folder:
        tied = pathlib.Path(folder) / "tied.pt"
        words = torch.arange(24.0).reshape(4, 6)
        # A tied head, and views of other elements, of another shape, or in another order, which are not tied.
        views = {"rows": words[1:], "flat": words.reshape(-1), "turned": words.t()}
        torch.save({"lm_head.weight": words, "embed_tokens.weight": words, **views}, tied)
        for source in [*inputs, tied]:
            if source.suffix == ".safetensors":
                expected = load_file(source)
            else:
                expected = torch.load(source, weights_only=source.suffix != ".ckpt")
                expected = dict(flat(expected.get("state_dict", expected)))
            for extension in ("safetensors", "pt", "bin", "ckpt"):
                target = pathlib.Path(folder) / f"out.{extension}"
                vlmerge("convert", source, target, "--force")
                found = opened(target)
                assert found.keys() == expected.keys(), (source, extension, found.keys() ^ expected.keys())
                wanted = families(expected)
                assert families(found) == wanted, (source, extension, families(found) ^ wanted)
                for name, tensor in expected.items():
                    assert same(found[name], tensor), (source, extension, name)
                n_tensors += len(expected)
                n_files += 1

        # A merge, computed by torch in f32 with the published order of operations.
        source = FIXTURES / "ckpt/all_moe_pretrain.ckpt"
        weights = torch.load(source, weights_only=False)["state_dict"]
        target = pathlib.Path(folder) / "merged.ckpt"
        vlmerge("interpolate", source, "--ratio", "0.3", "--out", target)
        merged = opened(target)
        key = "transformer.blocks.{}.attn.{}qkv.weight"
        v, l = (weights[key.format(3, e)] for e in ("v.", "l."))
        assert torch.equal(merged[key.format(3, "")], 0.3 * v + (1 - 0.3) * l)
        v, l, vl = (weights[key.format(11, e)] for e in ("v.", "l.", "vl."))
        expected = 2 / 3 * 0.3 * v + 2 / 3 * (1 - 0.3) * l + 1 / 3 * vl
        assert torch.equal(merged[key.format(11, "")], expected)
    print(f"torch {torch.__version__} opened {n_files} files: {n_tensors} tensors bit-equal, and a merge equal to its own")


main()
