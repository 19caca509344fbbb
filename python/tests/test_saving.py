"""Writing arrays."""

import unittest

import numpy as np
import vlmerge

from files import InFolder, read_safetensors


class Saving(InFolder):
    def test_every_dtype_of_numpy_comes_back(self):
        dtypes = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]
        tensors = {name: np.arange(6).reshape(2, 3).astype(name) for name in dtypes}
        tensors["big endian"] = np.arange(3, dtype=">f4")
        tensors["turned"] = np.arange(6, dtype="f4").reshape(2, 3).T
        tensors["scalar"] = np.float64(0.1)
        tensors["empty"] = np.zeros((0, 2), "f4")
        for ending in ["safetensors", "pt", "ckpt"]:
            path = self.in_folder(f"all.{ending}")
            done = vlmerge.save(tensors, path)
            self.assertEqual(done["files"], [str(path)])
            loaded = vlmerge.load(path)
            self.assertEqual(set(loaded), set(tensors))
            for name, array in tensors.items():
                np.testing.assert_array_equal(loaded[name], array)
                self.assertEqual(loaded[name].dtype.newbyteorder("="), array.dtype.newbyteorder("="))

    def test_the_file_says_what_was_written(self):
        path = self.in_folder("a.safetensors")
        vlmerge.save({"x": np.array([1.5, -2], "f4")}, path, metadata={"who": "we"})
        header, data = read_safetensors(path)
        self.assertEqual(header["x"], {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]})
        self.assertEqual(data, np.array([1.5, -2], "<f4").tobytes())
        self.assertEqual(header["__metadata__"]["who"], "we")
        self.assertEqual(header["__metadata__"]["vlmerge.recipe"], "vlmerge.save")

    def test_floats_are_rounded_once_and_integers_stay(self):
        path = self.in_folder("a.safetensors")
        # Just above the tie of two neighbors in bf16, 1 + 2^-8: rounded to f32 first it would be the tie, which goes down.
        tensors = {"x": np.array([1 + 2**-8 + 2**-40]), "n": np.array([3])}
        vlmerge.save(tensors, path, dtype="bf16")
        checkpoint = vlmerge.open(path)
        self.assertEqual(checkpoint.info("x").dtype, "BF16")
        self.assertEqual(checkpoint["x"][0], 1 + 2**-7)
        self.assertEqual(checkpoint.info("n").dtype, "I64")

    def test_two_names_of_one_array_are_one_tensor(self):
        table = np.ones((4, 2), "f4")
        for ending in ["safetensors", "pt"]:
            path = self.in_folder(f"tied.{ending}")
            vlmerge.save({"embed": table, "head": table, "copy": table.copy()}, path)
            checkpoint = vlmerge.open(path)
            self.assertEqual(list(checkpoint), ["copy", "embed", "head"])
            self.assertEqual(len(checkpoint.aliases), 1)
            loaded = checkpoint.arrays()
            self.assertIs(loaded["embed"], loaded["head"])
            self.assertIsNot(loaded["embed"], loaded["copy"])

    def test_arrays_that_live_one_after_the_other_are_tensors_of_their_own(self):
        class Fresh(dict):
            def items(self):
                for index in range(50):
                    # Turned, so that the array itself is not kept for its bytes.
                    yield f"x{index:02}", np.full((2, 3), index, "f4").T

        path = self.in_folder("a.safetensors")
        vlmerge.save(Fresh(), path)
        loaded = vlmerge.load(path)
        self.assertEqual(vlmerge.open(path).aliases, {})
        for index in range(50):
            np.testing.assert_array_equal(loaded[f"x{index:02}"], np.full((3, 2), index))
        with self.assertRaisesRegex(TypeError, "state_dict"):
            vlmerge.save(vlmerge.open(path), self.in_folder("b.safetensors"))

    def test_a_target_is_replaced_only_if_asked(self):
        path = self.in_folder("a.pt")
        vlmerge.save({"x": np.zeros(1)}, path)
        with self.assertRaises(FileExistsError) as caught:
            vlmerge.save({"x": np.ones(1)}, path)
        self.assertEqual(str(caught.exception), f"{path}: already exists")
        self.assertEqual(caught.exception.hint, "pass --force to replace it")
        vlmerge.save({"x": np.ones(1)}, path, force=True)
        self.assertEqual(vlmerge.load(path)["x"], 1)
        self.assertEqual(self.names(), ["a.pt"])

    def test_shards_have_an_index(self):
        tensors = {name: np.full(100, index, "f4") for index, name in enumerate("abc")}
        done = vlmerge.save(tensors, self.in_folder("m.safetensors"), shard_bytes=500)
        self.assertEqual(len(done["files"]), 4)
        loaded = vlmerge.load(self.in_folder("m.safetensors.index.json"))
        np.testing.assert_array_equal(loaded["c"], tensors["c"])

    def test_what_cannot_be_written_is_an_error_and_leaves_nothing(self):
        path = self.in_folder("a.safetensors")
        one = {"x": np.zeros(1)}
        for tensors, options, error, text in [
            ({"x": np.array(["a"])}, {}, TypeError, "`x`: an array of <U1"),
            ({"x": np.array([None])}, {}, TypeError, "`x`: an array of object"),
            ({"x": np.zeros(1, "c16")}, {}, TypeError, "complex128"),
            ({3: np.zeros(1)}, {}, TypeError, "names of tensors are strings"),
            (one, {"dtype": "f8"}, ValueError, "unknown variant `f8`"),
            (one, {"container": "zip"}, ValueError, "there is no `zip`"),
            (one, {"metadata": {"vlmerge.recipe": ""}}, ValueError, "vlmerge.recipe itself"),
            (one, {"shard_bytes": 0}, ValueError, "above 0"),
        ]:
            with self.assertRaisesRegex(error, text):
                vlmerge.save(tensors, path, **options)
        with self.assertRaisesRegex(vlmerge.InputError, "a.txt"):
            vlmerge.save(one, self.in_folder("a.txt"))
        with self.assertRaises(FileNotFoundError):
            vlmerge.save(one, self.in_folder("none/a.pt"))
        self.assertEqual(self.names(), [])

    def test_infinities_are_written_as_they_are(self):
        path = self.in_folder("a.safetensors")
        vlmerge.save({"x": np.array([np.nan, -np.inf], "f4")}, path)
        np.testing.assert_array_equal(vlmerge.load(path)["x"], [np.nan, -np.inf])


if __name__ == "__main__":
    unittest.main()
