"""Candidates for a ranking head that do not depend on any model: an image's own texts, and others at random.

    vlmerge evaluate MODEL --task retrieval … --limit 1000 --predictions DIR
    python tests/drawn_candidates.py DIR/SCORES.safetensors candidates.safetensors

Of the scores of any dual encoder only the order of images and texts is taken. With `--candidates N --candidates-from
candidates.safetensors` a ranking head is asked, for each image, of its own texts and of others up to N, and for each text of its own
image and N - 1 others; pairs that are asked for either stand in both lists.
"""

import array
import json
import pathlib
import random
import struct
import sys

SEED = 1


def main():
    source, target = map(pathlib.Path, sys.argv[1:])
    data = source.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])

    def ids(name):
        begin, end = header[name]["data_offsets"]
        assert header[name]["dtype"] == "I64", header[name]
        return array.array("q", data[8 + length + begin : 8 + length + end])

    images, texts, chance = ids("image_id"), ids("text_image_id"), random.Random(SEED)
    scores = array.array("f")
    for image in images:
        scores.extend(chance.random() + (image == text) for text in texts)
    parts = {
        "image_id": ("I64", [len(images)], images),
        "scores": ("F32", [len(images), len(texts)], scores),
        "text_image_id": ("I64", [len(texts)], texts),
    }
    described, place = {}, 0
    for name, (dtype, shape, values) in parts.items():
        end = place + len(values) * values.itemsize
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, values in parts.values():
            values.tofile(file)
    print(f"{target}: {len(images)} images, {len(texts)} texts")


if __name__ == "__main__":
    main()
