"""Data sets as their libraries pack them: parquet files of `datasets` and pyarrow, shards of webdataset and clip_benchmark.

    tests/with_torch.sh tests/packed_reference.py target/release/vlmerge
    tests/with_torch.sh tests/packed_reference.py --write fixtures/packed [FOLDER OF PACKAGES …]

The first form packs drawn pictures with captions in many ways, lets `vlmerge data build` make arrow files of them, and
compares pictures, captions and ids with what was packed. The second writes small sets as fixtures of the Rust tests;
shards are
written by the exporter of clip_benchmark 1.6.2 with webdataset 1.0.2, whose folders the command names.
"""

import io
import json
import pathlib
import random
import subprocess
import sys
import tarfile
import tempfile
import types

import datasets
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from PIL import Image

COLORS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 210)}

# How parquet files differ that hold the same.
FORMS = {
    "snappy": {},
    "plain": {"compression": "none"},
    "gzip": {"compression": "gzip"},
    "lz4": {"compression": "lz4"},
    "second": {"data_page_version": "2.0"},
    "second_gzip": {"data_page_version": "2.0", "compression": "gzip"},
    "no_dictionary": {"use_dictionary": False},
    "small_pages": {"data_page_size": 64, "use_dictionary": False, "write_batch_size": 2},
    "small_dictionary": {"dictionary_pagesize_limit": 300, "data_page_size": 64, "write_batch_size": 2},
    "groups": {"row_group_size": 3, "write_page_checksum": True, "write_page_index": True},
    "deltas": {
        "use_dictionary": False,
        "data_page_version": "2.0",
        "column_encoding": {
            "image.bytes": "DELTA_LENGTH_BYTE_ARRAY",
            "caption.list.element": "DELTA_LENGTH_BYTE_ARRAY",
            "label": "DELTA_BINARY_PACKED",
        },
    },
}


def drawn(number, ending="png"):
    """A picture of one color with a spot, and the name of the color."""
    name = list(COLORS)[number % len(COLORS)]
    picture = Image.new("RGB", (8, 6), COLORS[name])
    picture.putpixel((number % 8, number // 8 % 6), (255, 255, 255))
    into = io.BytesIO()
    picture.save(into, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[ending], **({"lossless": True} if ending == "webp" else {}))
    return into.getvalue(), name


def rows(n):
    made = {"image": [], "caption": [], "label": [], "img_id": [], "filename": [], "split": []}
    for number in range(n):
        data, color = drawn(number)
        made["image"].append({"bytes": data, "path": f"{number}.png"})
        made["caption"].append([f"a {color} picture, number {number}"] + ["some " + color] * (number % 3))
        made["label"].append(number % len(COLORS))
        made["img_id"].append(str(100 + number))
        made["filename"].append(f"{number}.png")
        made["split"].append("val" if number % 4 == 3 else "test")
    return made


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "caption": datasets.List(datasets.Value("string")),
        "label": datasets.ClassLabel(names=list(COLORS)),
        "img_id": datasets.Value("string"),
        "filename": datasets.Value("string"),
        "split": datasets.Value("string"),
    }
)


def table(n):
    """As the library `datasets` types and annotates it."""
    return datasets.Dataset.from_dict(rows(n), features=FEATURES).data.table


def write_shard(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, data in samples:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            shard.addfile(about, io.BytesIO(data))


# ---- fixtures ---------------------------------------------------------------------------------------------------------


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in FORMS.items():
        pq.write_table(table(9), folder / f"{name}.parquet", **options)
    pq.write_table(table(9), folder / "zstd.parquet", compression="zstd")
    # As CIFAR-100 is on the hub: two columns of classes, a picture called `img`.
    cifar = datasets.Dataset.from_dict(
        {
            "img": rows(6)["image"],
            "fine_label": [number % 3 for number in range(6)],
            "coarse_label": [number % 2 for number in range(6)],
        },
        features=datasets.Features(
            {
                "img": datasets.Image(),
                "fine_label": datasets.ClassLabel(names=list(COLORS)),
                "coarse_label": datasets.ClassLabel(names=["warm", "cold"]),
            }
        ),
    )
    (folder / "cifar" / "data").mkdir(parents=True, exist_ok=True)
    for part in range(2):
        name = folder / "cifar" / "data" / f"test-{part:05}-of-00002.parquet"
        cifar.select(range(3 * part, 3 * part + 3)).to_parquet(name)
    # As Flickr30K is on the hub: all splits in files of one name.
    (folder / "flickr").mkdir(exist_ok=True)
    whole = datasets.Dataset.from_dict(rows(8), features=FEATURES)
    for part in range(2):
        name = folder / "flickr" / f"TEST-{part:05}-of-00002.parquet"
        whole.select(range(4 * part, 4 * part + 4)).to_parquet(name)
    # Web pictures, a caption a row and no id.
    flat = rows(3)
    flat = {"image": flat["image"], "text": [captions[0] for captions in flat["caption"]]}
    flat = datasets.Dataset.from_dict(flat, features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}))
    flat.to_parquet(folder / "flat" / "train-00000-of-00001.parquet")
    # The columns of our arrow files of questions, lists in lists.
    pictures = [picture["bytes"] for picture in rows(2)["image"]]
    questions = {
        "image": pictures,
        "questions": [["what color?", "is it red?"], ["what color?"]],
        "answers": [[["red"], ["yes", "no"]], [["green"]]],
        "answer_labels": [[[0], [2, 3]], [[1]]],
        "answer_scores": [[[1.0], [1.0, 0.3]], [[1.0]]],
        "image_id": [1, 2],
        "question_id": [[10, 11], [20]],
        "split": ["val", "val"],
    }
    (folder / "vqa").mkdir(exist_ok=True)
    pq.write_table(pa.table(questions), folder / "vqa" / "val-00000-of-00001.parquet")
    sys.path.extend(sys.argv[3:])
    # The exporter alone: the list of benchmarks asks for libraries that have no part in it.
    sys.modules["clip_benchmark.datasets.builder"] = types.SimpleNamespace(build_dataset=None)
    from clip_benchmark import webdataset_builder

    class Classes(list):
        classes = list(COLORS)
        templates = ["a {c} picture.", "{c}"]

    classes = Classes((drawn(number, "webp")[0], number % 3) for number in range(5))
    webdataset_builder.convert_dataset(classes, "test", str(folder / "wds_colors"), max_count=2, verbose=False)
    captions = [(drawn(number, "webp")[0], rows(4)["caption"][number]) for number in range(4)]
    webdataset_builder.convert_retrieval_dataset(captions, "test", str(folder / "wds_captions"), max_count=3, verbose=False)


# ---- what vlmerge makes of them -------------------------------------------------------------------------------------


def built(program, raw, split, folder):
    out = folder / "arrow"
    command = [program, "data", "build", "f30k", "--raw", raw, "--out", out, "--split", split, "--force"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pa.OSFile(str(out / f"f30k_caption_karpathy_{split}.arrow")) as file:
        return pyarrow.ipc.open_file(file).read_all().to_pydict()


def check(name, found, images, captions, ids):
    assert found["image"] == images, name
    assert found["caption"] == captions, name
    assert found["image_id"] == ids, name
    print(f"{name}: {len(images)} rows are those that were packed")


def compare(program):
    chance = random.Random(7)
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        n = 157
        made = rows(n)
        images = [picture["bytes"] for picture in made["image"]]
        whole = table(n).drop(["split"])
        for name, options in FORMS.items():
            raw = place / name
            (raw / "data").mkdir(parents=True)
            if "row_group_size" in options:
                options = {**options, "row_group_size": chance.randint(3, 40)}
            cut = chance.randint(1, n - 1)
            for part, rows_of in enumerate((whole.slice(0, cut), whole.slice(cut))):
                pq.write_table(rows_of, raw / "data" / f"test-{part:05}-of-00002.parquet", **options)
            check(name, built(program, raw, "test", raw), images, made["caption"], made["img_id"])
        raw = place / "hub"
        datasets.Dataset.from_dict(made, features=FEATURES).to_parquet(raw / "x" / "all.parquet")
        for split in ("test", "val"):
            mine = [index for index in range(n) if made["split"][index] == split]
            found = built(program, raw / "x", split, raw)
            check(f"split {split}", found, *([of[i] for i in mine] for of in (images, made["caption"], made["img_id"])))
        raw = place / "shards"
        for shard in range(12):
            samples = []
            for index in range(shard * 13, min(n, shard * 13 + 13)):
                samples.append((f"s{index:07}.png", images[index]))
                samples.append((f"s{index:07}.txt", "\n".join(made["caption"][index]).encode()))
            write_shard(raw / "test" / f"{shard}.tar", samples)
        write_shard(raw / "test" / "12.tar", [("s0000156.png", images[156]), ("s0000156.txt", "\n".join(made["caption"][156]).encode())])
        (raw / "test" / "nshards.txt").write_text("13\n")
        (raw / "dataset_type.txt").write_text("retrieval\n")
        ids = [f"s{index:07}" for index in range(n)]
        check("shards", built(program, raw, "test", raw), images, made["caption"], ids)


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write(pathlib.Path(sys.argv[2]))
    else:
        compare(pathlib.Path(sys.argv[1]).resolve())
