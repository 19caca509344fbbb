"""Opening and loading."""

import os
import pickle
import struct
import subprocess
import sys
import threading
import unittest
import warnings
import zipfile
from pathlib import Path

import numpy as np
import vlmerge

from files import SPECIFIC, InFolder, safetensors, sparse


class Evil:
    def __reduce__(self):
        return os.system, ("touch broken-in",)


class Reading(InFolder):
    def small(self) -> Path:
        values = np.arange(12, dtype="<f4").reshape(4, 3)
        # 1, -2, 0.15625 and infinity in bf16: the upper halves of their f32.
        halves = struct.pack("<4H", 0x3F80, 0xC000, 0x3E20, 0x7F80)
        return safetensors(
            self.in_folder("a.safetensors"),
            {
                "w": ("F32", [4, 3], values.tobytes()),
                "b": ("BF16", [2, 2], halves),
                "i": ("I64", [], struct.pack("<q", -7)),
                "m": ("BOOL", [3], b"\1\0\1"),
                "e": ("F16", [0, 5], b""),
                # 448 and -1.5 in E4M3: exponent bias 7, three bits of mantissa.
                "q": ("F8_E4M3", [2], b"\x7e\xbc"),
            },
            note="hello",
        )

    def test_names_shapes_and_dtypes_are_known_without_data(self):
        checkpoint = vlmerge.open(self.small())
        self.assertEqual(list(checkpoint), ["b", "e", "i", "m", "q", "w"])
        self.assertEqual(len(checkpoint), 6)
        self.assertIn("w", checkpoint)
        self.assertNotIn("v", checkpoint)
        self.assertNotIn(3, checkpoint)
        self.assertEqual(checkpoint.info("b"), ("BF16", (2, 2), 8, None))
        self.assertEqual(checkpoint.metadata["note"], "hello")
        self.assertEqual(checkpoint.container, "safetensors")
        self.assertTrue(checkpoint.path.endswith("a.safetensors"))

    def test_arrays_have_the_values_of_the_file(self):
        checkpoint = vlmerge.open(str(self.small()))
        np.testing.assert_array_equal(checkpoint["w"], np.arange(12).reshape(4, 3))
        self.assertEqual(checkpoint["w"].dtype, np.float32)
        self.assertEqual(checkpoint["i"].shape, ())
        self.assertEqual(checkpoint["i"], -7)
        np.testing.assert_array_equal(checkpoint["m"], [True, False, True])
        self.assertEqual((checkpoint["e"].shape, checkpoint["e"].dtype), ((0, 5), np.float16))
        checkpoint["w"][0, 0] = 5  # An array of its own, which may be written to.
        self.assertEqual(checkpoint["w"][0, 0], 0)

    def test_small_floats_come_as_float32_exactly(self):
        checkpoint = vlmerge.open(self.small())
        self.assertEqual(checkpoint["b"].dtype, np.float32)
        np.testing.assert_array_equal(checkpoint["b"], [[1, -2], [0.15625, np.inf]])
        np.testing.assert_array_equal(checkpoint["q"], [448, -1.5])
        self.assertEqual(checkpoint.raw("b"), struct.pack("<4H", 0x3F80, 0xC000, 0x3E20, 0x7F80))
        np.testing.assert_array_equal(checkpoint.rows("b", 1, 2), [[0.15625, np.inf]])

    def test_four_bit_floats_are_read_from_any_row(self):
        # E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and the same below zero; the low half of a byte comes first.
        codes = bytes((2 * i + 1) % 16 << 4 | 2 * i % 16 for i in range(9))
        table = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
        path = safetensors(self.in_folder("f4.safetensors"), {"f": ("F4", [6, 3], codes)})
        expected = np.array([table[i % 16] for i in range(18)], np.float32).reshape(6, 3)
        checkpoint = vlmerge.open(path)
        np.testing.assert_array_equal(checkpoint["f"], expected)
        for start in range(6):
            np.testing.assert_array_equal(checkpoint.rows("f", start, 6), expected[start:])

    def test_large_small_floats_are_decoded_piece_by_piece(self):
        bits = (np.arange(600_001, dtype=np.uint32) % 0x7F80).astype("<u2")
        path = safetensors(
            self.in_folder("b.safetensors"), {"b": ("BF16", [600_001], bits.tobytes())}
        )
        expected = (bits.astype(np.uint32) << 16).view(np.float32)
        checkpoint = vlmerge.open(path)
        np.testing.assert_array_equal(checkpoint["b"], expected)
        np.testing.assert_array_equal(checkpoint.rows("b", 3, 600_000), expected[3:600_000])

    def test_rows_are_those_of_the_tensor(self):
        checkpoint = vlmerge.open(self.small())
        np.testing.assert_array_equal(checkpoint.rows("w", 1, 3), [[3, 4, 5], [6, 7, 8]])
        self.assertEqual(checkpoint.rows("w", 2, 2).shape, (0, 3))
        for start, stop in [(-1, 2), (3, 2), (0, 5)]:
            with self.assertRaisesRegex(IndexError, "`w` has 4 rows"):
                checkpoint.rows("w", start, stop)
        with self.assertRaises(IndexError):
            checkpoint.rows("i", 0, 1)

    def test_a_missing_tensor_names_the_nearest(self):
        checkpoint = vlmerge.open(SPECIFIC)
        with self.assertRaises(KeyError) as caught:
            checkpoint["transformer.blocks.0.norm1.v.wieght"]
        self.assertIsInstance(caught.exception, vlmerge.MissingTensorError)
        self.assertIn("(nearest: `transformer.blocks.0.norm1.v.weight`)", str(caught.exception))
        self.assertIsNone(checkpoint.get("nothing"))

    def test_errors_have_the_class_and_the_text_of_their_cause(self):
        with self.assertRaises(FileNotFoundError) as caught:
            vlmerge.open(self.in_folder("none.safetensors"))
        self.assertIsInstance(caught.exception, vlmerge.Error)
        self.assertIn("none.safetensors: cannot open: No such file", str(caught.exception))
        self.assertEqual(caught.exception.errno, 2)
        cut = self.in_folder("cut.safetensors")
        cut.write_bytes(self.small().read_bytes()[:-1])
        with self.assertRaises(ValueError) as caught:
            vlmerge.open(cut)
        self.assertIsInstance(caught.exception, vlmerge.InputError)
        self.assertIn("cut.safetensors", str(caught.exception))
        words = self.in_folder("words.txt")
        words.write_text("no model")
        with self.assertRaisesRegex(vlmerge.InputError, "unknown kind of file"):
            vlmerge.open(words)

    def test_a_pickle_that_calls_something_is_refused_and_not_run(self):
        path = self.in_folder("evil.pt")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("evil/data.pkl", pickle.dumps({"w": Evil()}, protocol=2))
            archive.writestr("evil/version", "3\n")
        before = os.getcwd()
        os.chdir(self.folder)
        try:
            with self.assertRaisesRegex(vlmerge.InputError, "posix.system"):
                vlmerge.load(path)
        finally:
            os.chdir(before)
        self.assertEqual(self.names(), ["evil.pt"])

    def test_a_torch_file_is_loaded_without_torch(self):
        (self.folder / "torch.py").write_text("raise RuntimeError('torch was imported')")
        code = (
            "import sys, vlmerge\n"
            f"tensors = vlmerge.load({str(SPECIFIC)!r})\n"
            "vlmerge.save(tensors, 'copy.pt')\n"
            "assert 'torch' not in sys.modules\n"
            "print(len(tensors))\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.folder), *sys.path])}
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, cwd=self.folder, env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(int(done.stdout), len(vlmerge.open(SPECIFIC)))

    def test_a_table_for_notebooks_escapes_names(self):
        path = safetensors(self.in_folder("x.safetensors"), {"<b>": ("U8", [1], b"\0")})
        shown = vlmerge.open(path)._repr_html_()
        self.assertIn("<td>&lt;b&gt;</td><td>U8</td><td>[1]</td>", shown)
        self.assertNotIn("<b>", shown)
        self.assertIn("1 tensors, safetensors", repr(vlmerge.open(path)))

    def test_what_was_passed_over_in_a_folder_is_a_warning(self):
        self.small()
        safetensors(self.in_folder("model.safetensors"), {"x": ("U8", [1], b"\0")})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            vlmerge.open(self.folder)
        self.assertEqual([of.category for of in caught], [vlmerge.Note])
        self.assertIn("a.safetensors", str(caught[0].message))
        self.assertEqual(caught[0].filename, __file__)

    def test_threads_read_at_the_same_time(self):
        checkpoint = vlmerge.open(SPECIFIC)
        expected = checkpoint.arrays()
        found = {}

        def read(part: int) -> None:
            names = list(checkpoint)[part::4]
            found.update({name: checkpoint[name] for name in names})

        threads = [threading.Thread(target=read, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(set(found), set(expected))
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)

    def test_other_threads_run_while_the_library_works(self):
        path = sparse(self.in_folder("x.safetensors"), 1 << 29)
        worker = threading.Thread(target=vlmerge.inspect, args=(path,), kwargs={"hash": True})
        ticks = 0
        worker.start()
        while worker.is_alive():
            worker.join(0.005)
            ticks += 1
        # Hashing half a gibibyte takes a few hundred milliseconds; one tick, if the lock were held all the time.
        self.assertGreater(ticks, 10)

    @unittest.skipUnless(hasattr(os, "fork"), "this system forks no processes")
    def test_a_forked_process_is_told_so_instead_of_waiting_forever(self):
        path = self.small()
        vlmerge.open(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            code = 1
            try:
                vlmerge.open(path)
            except RuntimeError as error:
                code = 0 if "forked" in str(error) else 2
            finally:
                os._exit(code)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)


if __name__ == "__main__":
    unittest.main()
