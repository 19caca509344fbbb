"""The examples of README and of the pages in docs run as they stand."""

import os
import re
import unittest

from files import FIXTURES, REPOSITORY, InFolder

EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Documents(InFolder):
    def setUp(self) -> None:
        super().setUp()
        os.symlink(FIXTURES, self.in_folder("fixtures"))
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)

    def run_examples(self, document: str, least: int) -> None:
        text = (REPOSITORY / document).read_text()
        examples = EXAMPLE.findall(text)
        self.assertGreaterEqual(len(examples), least)
        names: dict = {}
        for example in examples:
            line = text[: text.index(example)].count("\n")
            exec(compile("\n" * line + example, document, "exec"), names)

    def test_readmes_example_runs(self):
        self.run_examples("README.md", 1)
        self.assertTrue(self.in_folder("merged.safetensors").exists())

    def test_the_pages_examples_run(self):
        self.run_examples("docs/python.md", 5)

    def test_examples_of_other_pages_run(self):
        for page in ["from-torch-load", "fusionbench", "extend"]:
            with self.subTest(page):
                self.run_examples(f"docs/{page}.md", 1)


if __name__ == "__main__":
    unittest.main()
