"""Merge methods that are functions of Python."""

import unittest

import numpy as np
import vlmerge

from files import InFolder


class Methods(InFolder):
    def recipe(self, method: str, dtype: str = "f4", n: int = 70_000, **parameters) -> dict:
        for name, seed in [("base", 0), ("a", 1), ("b", 2), ("c", 3)]:
            values = np.random.default_rng(seed).standard_normal((n // 7, 7))
            tensors = {"w": values.astype(dtype), "v": values[0].astype(dtype), "n": np.array([5])}
            vlmerge.save(tensors, self.in_folder(f"{name}.safetensors"), force=True)
        models = [{"model": self.in_folder(f"{name}.safetensors")} for name in "abc"]
        return {"merge_method": method, "models": models, "parameters": parameters}

    def given(self, name: str) -> list:
        return [vlmerge.load(self.in_folder(f"{of}.safetensors"))[name] for of in "abc"]

    def test_an_elementwise_function_merges_pieces_of_any_length(self):
        lengths = set()

        def median(tensors, base):
            self.assertIsNone(base)
            lengths.update(len(tensor) for tensor in tensors)
            return np.median(tensors, axis=0)

        vlmerge.add_method("test_median", median)
        merged = vlmerge.merge(self.recipe("test_median"))
        for name in ["w", "v"]:
            expected = np.median(self.given(name), axis=0).astype("f4")
            np.testing.assert_array_equal(merged[name], expected)
        np.testing.assert_array_equal(merged["n"], [5])
        self.assertGreater(len(lengths), 2)

    def test_a_function_of_whole_tensors_sees_their_shape_in_float64(self):
        def by_column(tensors, base):
            shape, dtype = tensors[0].shape, tensors[0].dtype
            self.assertEqual(dtype, np.float64)
            self.assertIn(shape, [(10_000, 7), (7,)])
            return np.stack(tensors).mean(axis=0) - tensors[0].mean(axis=0)

        vlmerge.add_method("test_by_column", by_column, kind="tensor")
        merged = vlmerge.merge(self.recipe("test_by_column"))
        given = np.stack(self.given("w")).astype("f8")
        expected = given.mean(axis=0) - given[0].mean(axis=0)
        np.testing.assert_array_equal(merged["w"], expected.astype("f4"))

    def test_a_base_and_parameters_reach_the_function(self):
        def towards(tensors, base, share, weight, is_on):
            assert is_on is True
            change = sum(w * (tensor - base) for w, tensor in zip(weight, tensors))
            return base + share * change

        vlmerge.add_method(
            "test_towards",
            towards,
            base="required",
            parameters={"share": 0.5, "is_on": True},
            per_model={"weight": None},
        )
        recipe = self.recipe("test_towards", share=0.25)
        with self.assertRaisesRegex(vlmerge.InputError, "base_model"):
            vlmerge.merge(recipe)
        recipe["base_model"] = self.in_folder("base.safetensors")
        with self.assertRaisesRegex(vlmerge.InputError, "test_towards needs `weight`"):
            vlmerge.merge(recipe)
        for model, weight in zip(recipe["models"], [1, 2, 0]):
            model["parameters"] = {"weight": weight}
        merged = vlmerge.merge(recipe)
        base = vlmerge.load(self.in_folder("base.safetensors"))["w"]
        a, b, _ = self.given("w")
        expected = base + 0.25 * ((a - base) + 2 * (b - base))
        np.testing.assert_allclose(merged["w"], expected, rtol=2e-6, atol=1e-6)
        recipe["parameters"]["other"] = 1
        with self.assertRaisesRegex(vlmerge.InputError, "test_towards has no parameter `other`"):
            vlmerge.merge(recipe)

    def test_bf16_is_computed_in_f32_and_rounded_once(self):
        recipe = self.recipe("test_mean")
        for name in "abc":
            path = self.in_folder(f"{name}.safetensors")
            vlmerge.save(vlmerge.load(path), path, dtype="bf16", force=True)
        vlmerge.add_method("test_mean", lambda tensors, base: sum(tensors) / np.float32(3))
        path = self.in_folder("out.safetensors")
        vlmerge.merge(recipe, path)
        merged = vlmerge.open(path)
        self.assertEqual(merged.info("w").dtype, "BF16")
        a, b, c = self.given("w")
        exact = (a + b + c) / np.float32(3)
        # Half a unit of the eighth bit.
        self.assertTrue(np.all(np.abs(merged["w"] - exact) <= 2**-8 * np.abs(exact)))
        # A kernel of the library gives the same bits but for the order of its products.
        linear = {**recipe, "merge_method": "linear"}
        linear["models"] = [{**of, "parameters": {"weight": 1}} for of in recipe["models"]]
        close = vlmerge.merge(linear)["w"]
        np.testing.assert_allclose(merged["w"], close, rtol=2**-7, atol=1e-6)

    def test_what_a_function_does_wrong_names_method_and_tensor(self):
        def broken(tensors, base):
            return tensors[0] / {}["nothing"]

        cases = [
            (broken, r"cannot merge `\w`: test_wrong fails: KeyError: 'nothing' \(.*test_methods"),
            (lambda tensors, base: tensors[0][:-1], "the result has shape"),
            (lambda tensors, base: 1.0, r"the result has shape \(\)"),
            (lambda tensors, base: tensors[0] * 1j, "complex"),
            (lambda tensors, base: None, "object, not of real numbers"),
            (lambda tensors: tensors[0], "takes 1 positional argument but 2 were given"),
            (lambda tensors, base: tensors[0] * np.inf, r"`\w` has values that are infinite"),
        ]
        for kind in ["elementwise", "tensor"]:
            for function, text in cases:
                vlmerge.add_method("test_wrong", function, kind=kind)
                out = self.in_folder("out.safetensors")
                with self.assertRaisesRegex(vlmerge.InputError, text):
                    vlmerge.merge(self.recipe("test_wrong", n=70), out)
                self.assertFalse(out.exists())

    def test_models_of_other_shapes_are_refused_before_the_function_is_called(self):
        vlmerge.add_method("test_never", lambda tensors, base: self.fail("called"))
        recipe = self.recipe("test_never", n=70)
        vlmerge.save({"w": np.zeros((3, 3), "f4")}, self.in_folder("b.safetensors"), force=True)
        with self.assertRaises(vlmerge.InputError):
            vlmerge.merge(recipe)
        vlmerge.add_method("test_never", lambda tensors, base: self.fail("called"), max_models=2)
        with self.assertRaisesRegex(vlmerge.InputError, "test_never merges"):
            vlmerge.merge(self.recipe("test_never", n=70))

    def test_a_function_cannot_call_the_library(self):
        def nested(tensors, base):
            vlmerge.load(self.in_folder("a.safetensors"))
            return tensors[0]

        vlmerge.add_method("test_nested", nested)
        with self.assertRaisesRegex(vlmerge.InputError, "cannot call vlmerge"):
            vlmerge.merge(self.recipe("test_nested", n=70))

    def test_names_of_methods_are_not_taken_twice(self):
        for name, text in [
            ("ties", "a method of vlmerge has this name"),
            ("Mine", "lower case"),
            ("", "lower case"),
            ("a" * 65, "1 to 64"),
        ]:
            with self.assertRaisesRegex(vlmerge.InputError, text):
                vlmerge.add_method(name, lambda tensors, base: tensors[0])
        for options in [
            {"kind": "matrix"},
            {"base": "maybe"},
            {"min_models": 0},
            {"parameters": {"x": 1.0}, "per_model": {"x": 1.0}},
            {"parameters": {"x": float("nan")}},
        ]:
            with self.assertRaises(ValueError):
                vlmerge.add_method("test_options", lambda tensors, base: tensors[0], **options)
        with self.assertRaises(TypeError):
            vlmerge.add_method("test_options", 3)


if __name__ == "__main__":
    unittest.main()
