"""Ctrl-C, progress, and what they leave behind."""

import contextlib
import io
import os
import signal
import threading
import time
import unittest
from unittest import mock

import numpy as np
import vlmerge

from files import InFolder, sparse


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Interrupted(InFolder):
    @contextlib.contextmanager
    def ctrl_c(self, seconds: float):
        """Sends the signal of Ctrl-C after a time, and expects that the work ends soon after."""
        sent = []

        def send() -> None:
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(seconds, send)
        timer.start()
        try:
            with self.assertRaises(KeyboardInterrupt):
                yield
        finally:
            timer.cancel()
            timer.join()
        self.assertTrue(sent, "the work ended before the signal")
        self.assertLess(time.monotonic() - sent[0], 5)

    def test_reading_stops_in_the_middle(self):
        # Eight gibibytes of zeros take many seconds to hash.
        path = sparse(self.in_folder("x.safetensors"), 8 << 30)
        with self.ctrl_c(0.3):
            vlmerge.inspect(path, hash=True)
        # The library goes on working after that.
        self.assertEqual(vlmerge.open(path).info("x").shape, (8 << 30,))

    def test_a_merge_stops_in_the_middle_and_leaves_nothing(self):
        for name in "ab":
            vlmerge.save({"w": np.ones(1 << 20, "f4")}, self.in_folder(f"{name}.safetensors"))

        def slow(tensors, base):
            time.sleep(0.5)
            return tensors[0]

        vlmerge.add_method("test_slow", slow)
        models = [{"model": self.in_folder(f"{name}.safetensors")} for name in "ab"]
        recipe = {"merge_method": "test_slow", "models": models}
        with self.ctrl_c(0.3):
            vlmerge.merge(recipe, self.in_folder("out.safetensors"))
        self.assertEqual(self.names(), ["a.safetensors", "b.safetensors"])

    def test_a_function_is_told_of_progress_and_may_stop_the_work(self):
        path = self.in_folder("x.safetensors")
        seen = []
        vlmerge.save({"w": np.zeros(1000, "f4")}, path, progress=lambda *of: seen.append(of))
        self.assertEqual(seen[-1], ("writing", 4000, 4000))

        class Enough(Exception):
            pass

        def stop(what, done, total):
            raise Enough(f"{what} of {total}")

        large = sparse(self.in_folder("large.safetensors"), 8 << 30)
        with self.assertRaises(Enough):
            vlmerge.inspect(large, hash=True, progress=stop)

    def test_a_line_is_shown_on_a_terminal_alone_and_wiped(self):
        path = sparse(self.in_folder("x.safetensors"), 1 << 29)
        with mock.patch("vlmerge._progress._PATIENCE_SECONDS", 0.0):
            for stream, options, is_shown in [
                (Terminal(), {}, True),
                (Terminal(), {"progress": False}, False),
                (io.StringIO(), {}, False),
            ]:
                with contextlib.redirect_stderr(stream):
                    vlmerge.inspect(path, stats=True, **options)
                self.assertEqual("vlmerge: " in stream.getvalue(), is_shown)
                if is_shown:
                    self.assertEqual(stream.getvalue().split("\r")[-2].strip(), "")


if __name__ == "__main__":
    unittest.main()
