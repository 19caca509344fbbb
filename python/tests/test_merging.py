"""Merging and measuring, held against the program."""

import json
import subprocess
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import vlmerge

from files import FIXTURES, SPECIFIC, InFolder, program


class Merging(InFolder):
    def models(self) -> dict:
        for name, value in [("base", 1.0), ("a", 2.0), ("b", 5.0)]:
            tensors = {
                "w": np.full((3, 2), value, "f4"),
                "v": np.full(4, value, "f2"),
                "n": np.array([7]),
            }
            vlmerge.save(tensors, self.in_folder(f"{name}.safetensors"))
        return {
            "merge_method": "linear",
            "models": [
                {"model": self.in_folder("a.safetensors"), "parameters": {"weight": 1.0}},
                {"model": self.in_folder("b.safetensors"), "parameters": {"weight": 3}},
            ],
        }

    def by_program(self, *words: Any) -> Any:
        done = subprocess.run(
            [program(), *map(str, words), "--json"], capture_output=True, text=True
        )
        self.assertIn(done.returncode, (0, 1), done.stderr)
        return json.loads(done.stdout)

    def test_a_recipe_merges_into_memory(self):
        merged = vlmerge.merge(self.models())
        # (2 + 3 · 5) / 4
        np.testing.assert_array_equal(merged["w"], np.full((3, 2), 4.25, "f4"))
        np.testing.assert_array_equal(merged["v"], np.full(4, 4.25, "f2"))
        np.testing.assert_array_equal(merged["n"], [7])
        self.assertEqual([merged[name].dtype for name in "wvn"], ["f4", "f2", "i8"])
        self.assertEqual(self.names(), ["a.safetensors", "b.safetensors", "base.safetensors"])

    def test_a_file_a_text_and_a_dictionary_are_one_recipe(self):
        recipe = self.models()
        text = json.dumps(recipe, default=str, indent=1)
        file = self.in_folder("recipe.yaml")
        file.write_text(text)
        first = vlmerge.merge(recipe)
        for form in [text, file, str(file)]:
            merged = vlmerge.merge(form)
            np.testing.assert_array_equal(merged["w"], first["w"])

    def test_the_written_file_is_that_of_the_program(self):
        recipe = self.in_folder("recipe.yaml")
        recipe.write_text(json.dumps(self.models(), default=str))
        one, other = self.in_folder("one.safetensors"), self.in_folder("other.safetensors")
        done = vlmerge.merge(recipe, one)
        said = self.by_program("merge", recipe, "--out", other)
        self.assertEqual(one.read_bytes(), other.read_bytes())
        for key in ["n_copied", "n_combined", "n_unchanged", "input_bytes", "output_bytes"]:
            self.assertEqual(done[key], said[key])
        self.assertEqual(done["files"], [str(one)])

    def test_a_folder_gets_a_model_card(self):
        done = vlmerge.merge(self.models(), self.in_folder("merged"), dtype="bf16")
        self.assertIn("README.md", {Path(file).name for file in done["files"]})
        merged = vlmerge.open(self.in_folder("merged"))
        self.assertEqual(merged.info("w").dtype, "BF16")
        self.assertEqual(merged["w"][0, 0], 4.25)

    def test_experts_of_one_model_merge(self):
        recipe = {
            "merge_method": "interpolate",
            "models": [{"model": SPECIFIC}],
            "parameters": {"ratio": 0.25},
        }
        merged = vlmerge.merge(recipe)
        specific = vlmerge.open(SPECIFIC)
        name = "transformer.blocks.0.norm1.{}weight"
        vision, language = (specific[name.format(of)] for of in ["v.", "l."])
        between = merged[name.format("")]
        share = np.abs(between - vision).sum() / np.abs(language - vision).sum()
        self.assertTrue(min(abs(share - 0.25), abs(share - 0.75)) < 1e-6, share)

    def test_faults_of_a_recipe_have_the_programs_text(self):
        recipe = self.models()
        recipe["merge_method"] = "average"
        with self.assertRaisesRegex(vlmerge.InputError, "no merge method `average`"):
            vlmerge.merge(recipe)
        with self.assertRaisesRegex(vlmerge.InputError, "unknown field `model`"):
            vlmerge.merge({"merge_method": "linear", "model": []})
        with self.assertRaises(FileNotFoundError):
            vlmerge.merge(self.in_folder("none.yaml"))
        with self.assertRaises(TypeError):
            vlmerge.merge({"merge_method": "linear", "models": [object()]})
        with self.assertRaisesRegex(ValueError, "need `out`"):
            vlmerge.merge(recipe, force=True)
        with self.assertRaisesRegex(ValueError, "in memory"):
            vlmerge.merge(recipe, self.in_folder("x.pt"), framework="torch")

    def test_infinities_in_an_input_are_an_error(self):
        recipe = self.models()
        vlmerge.save(
            {"w": np.full((3, 2), np.inf, "f4"), "v": np.ones(4, "f2"), "n": np.array([7])},
            self.in_folder("b.safetensors"),
            force=True,
        )
        with self.assertRaisesRegex(vlmerge.InputError, "b.safetensors"):
            vlmerge.merge(recipe)
        self.assertEqual(vlmerge.merge(recipe, allow_non_finite=True)["w"][0, 0], np.inf)

    def test_inspection_is_what_the_program_prints(self):
        for options, flags in [({}, []), ({"stats": True, "hash": True}, ["--stats", "--hash"])]:
            found = vlmerge.inspect(SPECIFIC, **options)
            self.assertEqual(found, self.by_program("inspect", SPECIFIC, *flags))
        self.assertEqual(found["layout"]["name"].split("/")[0], "vl_merging")

    def test_differences_are_what_the_program_prints(self):
        self.models()
        one, other = self.in_folder("a.safetensors"), self.in_folder("b.safetensors")
        found = vlmerge.diff(one, other, tolerance=0.5)
        self.assertEqual(found, self.by_program("diff", one, other, "--tolerance", 0.5))
        self.assertFalse(found["equal"])
        self.assertEqual(found["report"]["values"][0]["max_abs"], 3.0)
        self.assertTrue(vlmerge.diff(one, one)["equal"])
        with self.assertRaisesRegex(ValueError, "negative"):
            vlmerge.diff(one, one, tolerance=-1)

    def test_distances_are_what_the_program_prints(self):
        found = vlmerge.distance(SPECIFIC)
        self.assertEqual(found, self.by_program("distance", SPECIFIC))
        seed = FIXTURES / "ckpt" / "ufo_pretrain.ckpt"
        found = vlmerge.distance(SPECIFIC, seed=seed, metrics=["l2", "tssd(0.2)"], per=["all"])
        flags = ["--seed-checkpoint", seed, "--metric", "l2,tssd", "--keep", 0.2, "--per", "all"]
        self.assertEqual(found, self.by_program("distance", SPECIFIC, *flags))
        with self.assertRaisesRegex(vlmerge.InputError, "`metric` must be"):
            vlmerge.distance(SPECIFIC, metrics=["l1"])
        with self.assertRaisesRegex(ValueError, "unknown variant `head`"):
            vlmerge.distance(SPECIFIC, per=["head"])

    def test_gram_matrices_are_whole(self):
        full = np.array([[2.0, 1.0], [1.0, 3.0]])
        path = self.in_folder("grams.safetensors")
        vlmerge.save({"full": full, "packed": np.array([2.0, 1.0, 3.0])}, path)
        grams = vlmerge.grams(path)
        for name in ["full", "packed"]:
            np.testing.assert_array_equal(grams[name], full)
        vlmerge.save({"x": np.zeros((2, 3))}, path, force=True)
        with self.assertRaisesRegex(vlmerge.InputError, "`x` is no gram matrix"):
            vlmerge.grams(path)


if __name__ == "__main__":
    unittest.main()
