"""Tensors of torch, where it is installed."""

import importlib.util
import unittest

import numpy as np
import vlmerge

from files import SPECIFIC, InFolder


@unittest.skipUnless(importlib.util.find_spec("torch"), "torch is not installed")
class Torch(InFolder):
    def test_a_torch_file_loads_as_torch_loads_it(self):
        import torch

        loaded = vlmerge.load(SPECIFIC, framework="torch")
        expected = torch.load(SPECIFIC, weights_only=True, map_location="cpu")["state_dict"]
        self.assertEqual(set(loaded), set(expected))
        for name, tensor in expected.items():
            self.assertEqual(loaded[name].dtype, tensor.dtype)
            self.assertTrue(torch.equal(loaded[name], tensor), name)

    def test_every_dtype_keeps_its_bits_both_ways(self):
        import torch

        names = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64"
        names += " float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz uint16 uint32 uint64"
        tensors = {}
        for name in names.split():
            dtype = getattr(torch, name)
            tensors[name] = torch.arange(6).reshape(2, 3).to(torch.float32).to(dtype)
        tensors["turned"] = torch.arange(6.0).reshape(2, 3).t().to(torch.bfloat16)
        tensors["scalar"] = torch.tensor(0.1, dtype=torch.bfloat16)
        tensors["empty"] = torch.zeros(0, 3, dtype=torch.bfloat16)
        tensors["parameter"] = torch.nn.Parameter(torch.ones(2))
        for ending in ["safetensors", "pt"]:
            path = self.in_folder(f"all.{ending}")
            vlmerge.save(tensors, path)
            for name, tensor in vlmerge.open(path).state_dict().items():
                given = tensors[name].detach().contiguous()
                self.assertEqual((tensor.dtype, tensor.shape), (given.dtype, given.shape))
                if given.numel():
                    as_bytes = lambda of: of.reshape(-1).view(torch.uint8)  # noqa: E731
                    self.assertTrue(torch.equal(as_bytes(tensor), as_bytes(given)), name)
        loaded = torch.load(self.in_folder("all.pt"), weights_only=True)
        self.assertEqual(set(loaded), set(tensors))
        self.assertTrue(torch.equal(loaded["bfloat16"], tensors["bfloat16"]))

    def test_tied_tensors_stay_tied(self):
        import torch

        table = torch.ones(4, 2, dtype=torch.bfloat16)
        path = self.in_folder("tied.pt")
        vlmerge.save({"embed": table, "head": table}, path)
        loaded = vlmerge.load(path, framework="torch")
        self.assertEqual(loaded["embed"].data_ptr(), loaded["head"].data_ptr())
        by_torch = torch.load(path, weights_only=True)
        self.assertEqual(by_torch["embed"].data_ptr(), by_torch["head"].data_ptr())

    def test_a_merge_gives_bf16_tensors(self):
        import torch

        for name, value in [("a", 1.0), ("b", 2.0)]:
            tensors = {"w": torch.full((3,), value, dtype=torch.bfloat16)}
            vlmerge.save(tensors, self.in_folder(f"{name}.pt"))
        recipe = {
            "merge_method": "linear",
            "models": [
                {"model": self.in_folder(f"{name}.pt"), "parameters": {"weight": 1}}
                for name in "ab"
            ],
        }
        merged = vlmerge.merge(recipe, framework="torch")["w"]
        self.assertTrue(torch.equal(merged, torch.full((3,), 1.5, dtype=torch.bfloat16)))
        np.testing.assert_array_equal(vlmerge.merge(recipe)["w"], [1.5] * 3)

    def test_tensors_without_data_of_their_own_are_refused(self):
        import torch

        for tensor, text in [
            (torch.empty(2, device="meta"), "meta device"),
            (torch.ones(2).to_sparse(), "sparse"),
            (torch.ones(2, dtype=torch.complex128), "complex128"),
        ]:
            with self.assertRaisesRegex(TypeError, text):
                vlmerge.save({"x": tensor}, self.in_folder("x.pt"))


if __name__ == "__main__":
    unittest.main()
