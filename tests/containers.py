"""Containers of arrays as their libraries write them: Flax's msgpack, NumPy's files, ONNX, HDF5.

    tests/with_torch.sh tests/containers.py target/release/vlmerge [SEED]
    tests/with_torch.sh tests/containers.py --write fixtures/containers

Flax is not needed: its files are msgpack with an extension, and transformers' rule for names is written here once more.
Nor is Keras: its files are groups of h5py, whose layout is written here.
"""

import pathlib
import subprocess
import sys
import tempfile

import h5py
import ml_dtypes
import msgpack
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

FIXTURES = pathlib.Path(sys.argv[2]) if sys.argv[1] == "--write" else None
PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
SEED = int(sys.argv[2]) if len(sys.argv) > 2 and FIXTURES is None else 5
rng = np.random.default_rng(SEED)


def run(*words, fails=False):
    done = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True)
    if fails != (done.returncode != 0):
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def tensor(array):
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def equal(folder, file, expected):
    out = folder / "out.safetensors"
    run("convert", file, out, "--force")
    own = load_file(out)
    assert sorted(own) == sorted(expected), (sorted(own), sorted(expected))
    for name, array in expected.items():
        value = tensor(array)
        assert own[name].dtype == value.dtype and own[name].shape == value.shape, (name, own[name].shape, value.shape)
        assert torch.equal(own[name].view(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), name


# ---- Flax ---------------------------------------------------------------------------------------------------------


def packed(array):
    data = msgpack.packb((array.shape, array.dtype.name, array.tobytes("C")), use_bin_type=True)
    return msgpack.ExtType(1, data)


def chunked(array, size):
    flat = array.reshape(-1)
    parts = {str(n): packed(flat[at : at + size]) for n, at in enumerate(range(0, flat.size, size))}
    shape = {str(n): size for n, size in enumerate(array.shape)}
    return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": parts}


def flax(folder):
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    dense, conv, half = draw(5, 7), draw(3, 2, 4, 6), draw(9, 3).astype(ml_dtypes.bfloat16)
    table, scale, bias, long = draw(11, 5), draw(5), draw(7), draw(4, 33)
    tree = {
        "text_model": {
            "embeddings": {"token_embedding": {"embedding": packed(table)}},
            "encoder": {"layers": {"0": {"mlp": {"fc1": {"kernel": packed(dense), "bias": packed(bias)}},
                                         "layer_norm1": {"scale": packed(scale)}}}},
        },
        "vision_model": {"patch": {"kernel": packed(conv)}, "half": {"kernel": packed(half)}},
        "long": chunked(long, 10),
        "logit_scale": packed(np.float32(2.5).reshape(())),
    }
    expected = {
        "text_model.embeddings.token_embedding.weight": table,
        "text_model.encoder.layers.0.mlp.fc1.weight": dense.T,
        "text_model.encoder.layers.0.mlp.fc1.bias": bias,
        "text_model.encoder.layers.0.layer_norm1.weight": scale,
        "vision_model.patch.weight": conv.transpose(3, 2, 0, 1),
        "vision_model.half.weight": half.T,
        "long": long,
        "logit_scale": np.float32(2.5).reshape(()),
    }
    file = folder / "flax_model.msgpack"
    for tree, prefix in [(tree, ""), ({"params": tree}, "")]:
        file.write_bytes(msgpack.packb(tree, strict_types=True))
        equal(folder, file, expected)
    whole = file.read_bytes()
    for cut in [1, 2, 50, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:cut])
        run("convert", file, folder / "cut.safetensors", "--force", fails=True)
    file.write_bytes(msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((2**40, 2**40), "float32", b"1234")))}))
    run("inspect", file, fails=True)
    print("Flax: read as transformers names it")


# ---- NumPy --------------------------------------------------------------------------------------------------------


def numpy(folder):
    arrays = {}
    for dtype in ["f4", "f2", "f8", "i1", "i2", "i4", "i8", "u1", "?"]:
        arrays[f"params/{np.dtype(dtype).name}"] = (rng.normal(size=(3, 5)) * 20).astype(dtype)
    arrays["params/columns"] = np.asfortranarray(rng.normal(size=(4, 6, 3)).astype(np.float32))
    arrays["scalar"] = np.float32(1.5).reshape(())
    arrays["empty"] = np.zeros((0, 4), np.float32)
    arrays["bf16"] = rng.normal(size=(4, 2)).astype(ml_dtypes.bfloat16)
    file = folder / "weights.npz"
    np.savez(file, **arrays)
    equal(folder, file, arrays)
    np.save(folder / "one.npy", arrays["params/columns"])
    equal(folder, folder / "one.npy", {"one": arrays["params/columns"]})

    np.savez_compressed(folder / "c.npz", **arrays)
    run("inspect", folder / "c.npz", fails=True)
    np.save(folder / "big.npy", np.ones(3, ">f4"))
    assert ">f4" in run("inspect", folder / "big.npy", fails=True)
    np.save(folder / "object.npy", np.array([{"a": 1}], object), allow_pickle=True)
    assert "|O" in run("inspect", folder / "object.npy", fails=True)
    damaged = bytearray(file.read_bytes())
    at = damaged.find(arrays["params/float32"].tobytes())
    damaged[at] ^= 1
    file.write_bytes(damaged)
    assert "CRC-32" in run("convert", file, folder / "d.safetensors", "--force", fails=True)
    print("NumPy: .npz and .npy")


# ---- ONNX ---------------------------------------------------------------------------------------------------------


def graph(initializers):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x],
                                               [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])], initializers))


def onnx_models(folder):
    arrays = {}
    for dtype in ["f4", "f2", "f8", "i1", "i2", "i4", "i8", "u1", "u8", "?"]:
        arrays[f"raw.{np.dtype(dtype).name}"] = (rng.normal(size=(3, 5)) * 20).astype(dtype)
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    for kind, dtype in [(TensorProto.FLOAT, "f4"), (TensorProto.DOUBLE, "f8"), (TensorProto.INT32, "i4"),
                        (TensorProto.INT64, "i8"), (TensorProto.INT8, "i1"), (TensorProto.FLOAT16, "f2")]:
        array = (rng.normal(size=(4, 3)) * 20).astype(dtype)
        name = f"typed.{np.dtype(dtype).name}"
        arrays[name] = array
        initializers.append(helper.make_tensor(name, kind, array.shape, array.reshape(-1)))
    file = folder / "model.onnx"
    file.write_bytes(graph(initializers).SerializeToString())
    equal(folder, file, arrays)

    large = {f"w{n}": rng.normal(size=(64, 40)).astype(np.float32) for n in range(3)}
    model = graph([numpy_helper.from_array(array, name) for name, array in large.items()])
    onnx.save_model(model, file, save_as_external_data=True, location="model.onnx_data", size_threshold=16)
    equal(folder, file, large)
    model = onnx.load(file, load_external_data=False)
    for location in ["../secret", "/etc/passwd", "gone"]:
        for initializer in model.graph.initializer:
            initializer.external_data[0].value = location
        file.write_bytes(model.SerializeToString())
        run("inspect", file, fails=True)
    (folder / "inner").mkdir()
    (folder / "secret").write_bytes(bytes(40000))
    (folder / "inner" / "link").symlink_to("../secret")
    for initializer in model.graph.initializer:
        initializer.external_data[0].value = "link"
    (folder / "inner" / "model.onnx").write_bytes(model.SerializeToString())
    assert "link" in run("inspect", folder / "inner" / "model.onnx", fails=True)
    print("ONNX: raw, typed and external data")


# ---- HDF5 ---------------------------------------------------------------------------------------------------------


def hdf5(folder):
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    # Keras 3: a group for each layer, variables by their numbers, and bf16 as opaque elements with a note.
    arrays = {"layers/dense/vars/0": draw(5, 7), "layers/dense/vars/1": draw(7), "optimizer/vars/0": np.int64(3).reshape(()),
              "layers/half/vars/0": draw(4, 3).astype(np.float16), "layers/brain/vars/0": draw(4, 3).astype(ml_dtypes.bfloat16)}
    file = folder / "model.weights.h5"
    with h5py.File(file, "w") as out:
        for name, array in arrays.items():
            is_bf16 = array.dtype == ml_dtypes.bfloat16
            made = out.create_dataset(name, data=array.view("V2") if is_bf16 else array)
            if is_bf16:
                made.attrs["dtype"] = "bfloat16"
            made.parent.attrs["name"] = "dense"
    equal(folder, file, arrays)
    with h5py.File(file) as there:
        for name, array in arrays.items():
            assert there[name][()].tobytes() == array.tobytes(), name

    # Both forms of the format, every dtype, and pieces: plain, compressed, shuffled, with checksums, cut at the edges.
    arrays = {f"types/{np.dtype(kind).name}": (rng.normal(size=(3, 5)) * 20).astype(kind)
              for kind in ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]}
    arrays |= {"empty": np.zeros((0, 4), np.float32), "scalar": np.float32(2.5).reshape(()), "compact": draw(3, 2)}
    ways = {"plain": {}, "gzip": {"compression": "gzip"}, "shuffled": {"compression": "gzip", "shuffle": True},
            "checked": {"fletcher32": True}}
    large = {"one": draw(900, 700), "cube": draw(30, 40, 50), "line": draw(100_003), "wide": draw(2, 300_000)}
    chunks = {"one": (64, 128), "cube": (7, 11, 13), "line": (4096,), "wide": (1, 70_000)}
    for version in ["earliest", "latest"]:
        with h5py.File(file, "w", libver=version) as out:
            expected = dict(arrays)
            for name, array in arrays.items():
                if name != "compact":
                    out[name] = array
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple(arrays["compact"].shape)
            made = h5py.h5d.create(out.id, b"compact", h5py.h5t.NATIVE_FLOAT, space, plist)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, arrays["compact"])
            for way, settings in ways.items():
                for name, array in large.items():
                    expected[f"{way}/{name}"] = array
                    out.create_dataset(f"{way}/{name}", data=array, chunks=chunks[name], **settings)
            for number in range(300):
                expected[f"many/{number}"] = np.full(2, number, np.float32)
                out[f"many/{number}"] = expected[f"many/{number}"]
        equal(folder, file, expected)

    refused = {"big": (np.ones(3, ">f4"), "big-endian"), "text": (np.array([b"ab"]), "string"),
               "pair": (np.zeros(2, [("a", "f4")]), "compound"), "raw": (np.zeros(2, "V2"), "opaque")}
    for name, (array, told) in refused.items():
        with h5py.File(file, "w") as out:
            out[name] = array
        assert told in run("inspect", file, fails=True), name
    with h5py.File(file, "w") as out:
        out["group/a"] = draw(3)
        out["link"] = h5py.SoftLink("/group")
    assert "too" in run("inspect", file, fails=True)
    with h5py.File(file, "w") as out:
        out["a"] = draw(3)
        out["away"] = h5py.ExternalLink("/etc/passwd", "/a")
    assert "/etc/passwd" in run("inspect", file, fails=True)
    with h5py.File(file, "w") as out:
        out.create_dataset("away", shape=(4,), dtype="f4", external=[("/etc/passwd", 0, 16)])
    assert "other files" in run("inspect", file, fails=True)
    with h5py.File(file, "w") as out:
        out.create_dataset("a", data=draw(40, 30), chunks=(8, 8), compression="gzip")
        out["b"] = draw(300)
    whole = file.read_bytes()
    for cut in [0, 7, 50, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:cut])
        run("convert", file, folder / "cut.safetensors", "--force", fails=True)
    print("HDF5: as Keras 3 writes it, both forms, whole and in pieces")


def write():
    """Small files of both forms for the tests in Rust, whose numbers count from zero."""
    FIXTURES.mkdir(exist_ok=True)
    count = lambda *shape: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    with h5py.File(FIXTURES / "keras.weights.h5", "w") as out:
        out["layers/dense/vars/0"], out["layers/dense/vars/1"] = count(4, 3), count(3)
        half = out.create_dataset("layers/half/vars/0", data=count(2, 2).astype(ml_dtypes.bfloat16).view("V2"))
        half.attrs["dtype"] = "bfloat16"
    with h5py.File(FIXTURES / "pieces.h5", "w", libver="latest") as out:
        out.create_dataset("a/pieces", data=count(11, 7), chunks=(4, 3), compression="gzip", shuffle=True)
        out["a/half"] = count(5).astype(np.float16)


if FIXTURES is not None:
    write()
    sys.exit()

with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    hdf5(folder)
    flax(folder)
    numpy(folder)
    onnx_models(folder)
