"""Makes the pictures of docs/recipes/study-clip.yaml: captions to pre-train a CLIP, and ten tasks of classification.

    python3 -m venv env && env/bin/pip install resvg-py==0.5.0 pillow==13.0.0 scikit-learn==1.7.2 easy-vqa==1.0
    env/bin/python tests/classes.py OUT [--side 48]

Needs npm for the packages of tests/pictures.py, which draws the emoji. What is drawn already is kept, so a run that was
stopped goes on. OUT then holds

| path | what |
|---|---|
| `raw/karpathy/dataset_coco.json`, `raw/{train,val}2014` | drawn concepts with captions, as `vlmerge data build coco` reads them |
| `tokenizer/vocab.json`, `tokenizer/merges.txt` | byte pairs of CLIP's kind, learned from those captions and the texts of the tasks |
| `classes/<task>/{train,val,test}/<class>/` | the pictures of a task |
| `classes/<task>/classes.tsv`, `templates.txt` | its texts |
| `LICENSES.md` | who made what; keep it with the pictures |

A hash of the plain emoji says where a concept goes, all skin tones and drawings with it: pictures of a test split are in no
train split, neither of their task nor of another nor of the captions. A test split has a concept in one drawing
alone, so that its pictures are independent of each other. Digits and shapes keep the order of their package; shapes have
that package's own test pictures.
"""

import argparse
import collections
import hashlib
import importlib.metadata
import json
import pathlib
import shutil

import pictures as emoji
from pictures import bytepairs, karpathy, link, share

import easy_vqa
from PIL import Image
from sklearn.datasets import load_digits

TEST_SHARE, VALIDATION_SHARE = 0.25, 0.06
# Most pictures of a split.
MOST = {"train": 1500, "val": 200, "test": 400}
VOCABULARY = 2000
TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}
THINGS = {
    34: "mammal", 35: "bird", 38: "sea animal", 39: "insect", 42: "fruit", 43: "vegetable", 44: "meal", 45: "meal",
    46: "dessert", 47: "drink", 51: "building", 54: "vehicle", 58: "clock", 59: "weather", 62: "sport", 63: "game",
    65: "clothing", 72: "book", 76: "office supply", 78: "tool", 81: "household item", 85: "arrow", 94: "key", 95: "letter",
    96: "geometric shape",
}  # fmt: skip
TURNS = ("upright", "turned left", "upside down", "turned right")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Persons, apart from families.
PERSONS = range(23, 30)


def split_of(picture):
    """Where a concept goes."""
    of = share(picture["plain"])
    return "test" if of < TEST_SHARE else "val" if of < TEST_SHARE + VALIDATION_SHARE else "train"


def emoji_tasks(pictures):
    """Tasks over drawn emoji: what the class of a picture is, or none; what it is called, and templates."""

    def gender(picture):
        if picture["kind"] != "person" or picture["subgroup"] not in PERSONS:
            return None
        return {0: "woman", 1: "man", None: "person"}[picture["gender"]]

    def color(picture):
        return emoji.colors(picture["path"])[0]

    def turn(picture):
        return TURNS[number(f"turn {picture['number']}") % len(TURNS)] if picture["kind"] != "sign" else None

    classes = {
        "kinds": (lambda p: p["kind"], ["a drawing of a {}", "{}"]),
        "things": (lambda p: THINGS.get(p["subgroup"]), ["a drawing of a {}", "{}"]),
        "colors": (color, ["a {} drawing", "something {}"]),
        "styles": (lambda p: p["style"], ["a drawing by {}", "{}"]),
        "tones": (lambda p: TONES.get(p["tone"]) if isinstance(p["tone"], int) else None, ["{} skin tone", "a person: {} skin tone"]),
        "genders": (gender, ["a drawing of a {}", "{}"]),
        "turns": (turn, ["a drawing that is {}", "{}"]),
    }  # fmt: skip
    for task, (of, templates) in classes.items():
        found = collections.defaultdict(list)
        for picture in pictures:
            name = of(picture)
            if name is not None:
                found[split_of(picture)].append((name, picture["code"], picture))
        yield task, templates, found


def number(text):
    """A number that goes with a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def chosen(task, split, entries):
    """Pictures of a split, as even over classes as can be; of a test split each concept once."""
    entries = sorted(entries, key=lambda entry: number(f"{task} {entry[0]} {entry[1]} {entry[2]['number']}"))
    of_classes, seen = collections.defaultdict(list), set()
    for name, concept, picture in entries:
        if split != "test" or concept not in seen:
            seen.add(concept)
            of_classes[name].append(picture)
    turns = [(at, name, picture) for name, of in of_classes.items() for at, picture in enumerate(of)]
    turns.sort(key=lambda turn: turn[:2])
    return [(name, picture) for _, name, picture in turns[: MOST[split]]]


def chosen_alike(task, found):
    """Classes that all splits have, and what is chosen of each split."""
    names = set.intersection(*({name for name, _, _ in found[split]} for split in MOST))
    while True:
        kept = {
            split: chosen(task, split, [entry for entry in found[split] if entry[0] in names]) for split in MOST
        }
        left = set.intersection(*({name for name, _ in kept[split]} for split in MOST))
        if left == names:
            return names, kept
        names = left


def put_picture(source, target, turn=0):
    """A picture in its class, turned by quarters."""
    if not turn:
        link(source, target)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        save(Image.open(source).convert("RGB").rotate(90 * turn), target)


def save(picture, target):
    """Writes a picture under another name first, so that no part of one stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    picture.save(part, format="PNG")
    part.rename(target)


def texts_of(folder, names, templates):
    """The texts of a task, and all of them filled in."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f"{slug(name)}\t{name}\n" for name in sorted(names))
    (folder / "classes.tsv").write_text("".join(lines))
    (folder / "templates.txt").write_text("".join(f"{template}\n" for template in templates))
    return [template.replace("{}", name) for name in names for template in templates]


def slug(name):
    """The name of a class's folder."""
    return name.replace(" ", "_")


def drawn_tasks(out, pictures):
    """The tasks over emoji; returns their texts."""
    texts = []
    for task, templates, found in emoji_tasks(pictures):
        folder, counts = out / "classes" / task, {}
        names, kept = chosen_alike(task, found)
        for split in MOST:
            counts[split] = len(kept[split])
            for name, picture in kept[split]:
                turn = TURNS.index(name) if task == "turns" else 0
                put_picture(picture["path"], folder / split / slug(name) / f"{picture['number']:06}.png", turn)
        texts += texts_of(folder, names, templates)
        print(task, len(names), "classes", counts)
    return texts


def digits_task(out, side):
    """The digits of scikit-learn: dark on white, in the order of the package."""
    folder, digits, counts = out / "classes/digits", load_digits(), collections.Counter()
    for index, (values, digit) in enumerate(zip(digits.images, digits.target)):
        # Its last 500 are by other writers than the rest.
        split = "test" if index >= len(digits.target) - MOST["test"] else "val" if index % 10 == 0 else "train"
        counts[split] += 1
        target = folder / split / DIGITS[digit] / f"{index:06}.png"
        if not target.exists():
            small = Image.new("L", (8, 8))
            small.putdata([int(255 - 255 * value / 16) for row in values for value in row])
            save(small.resize((side, side), Image.Resampling.BICUBIC).convert("RGB"), target)
    print("digits", 10, "classes", dict(counts))
    return texts_of(folder, DIGITS, ["the digit {}", "{}"])


def shapes_tasks(out, side):
    """The shapes of easy-vqa and their colours, as its questions tell them."""
    data, texts = pathlib.Path(easy_vqa.__file__).parent / "data", []
    for task, first, templates in (
        ("shapes", ("what shape",), ["a {}", "the shape of a {}"]),
        ("shape_colors", ("what color", "what is the color"), ["a {} shape", "the color {}"]),
    ):
        names, counts = set(), {}
        for split in MOST:
            of = "test" if split == "test" else "train"
            asked = json.loads((data / of / "questions.json").read_text())
            answers = {image: answer for question, answer, image in asked if question.startswith(first)}
            if split != "test":
                # Both tasks have the same share of pictures for validation.
                answers = {image: answer for image, answer in answers.items() if (image % 10 == 0) == (split == "val")}
            entries = [(answer, image, {"number": image}) for image, answer in answers.items()]
            kept = chosen(task, split, entries)
            counts[split] = len(kept)
            for name, picture in kept:
                names.add(name)
                target = out / "classes" / task / split / slug(name) / f"{picture['number']:06}.png"
                if not target.exists():
                    source = Image.open(data / of / "images" / f"{picture['number']}.png").convert("RGB")
                    save(source.resize((side, side), Image.Resampling.BICUBIC), target)
        texts += texts_of(out / "classes" / task, names, templates)
        print(task, len(names), "classes", counts)
    return texts


def licenses(out):
    """Adds the pictures that are no emoji, with the licences in their packages."""
    lines = (out / "LICENSES.md").read_text().rstrip().splitlines()
    at = max(index for index, line in enumerate(lines) if line.startswith("|")) + 1
    for package, license, author in (
        ("scikit-learn", "BSD-3-Clause; the digits by E. Alpaydin and C. Kaynak, CC-BY-4.0", "the scikit-learn developers"),
        ("easy-vqa", "MIT", "Victor Zhou"),
    ):
        found = importlib.metadata.distribution(package)
        texts = [path for path in found.files or [] if path.name.upper().startswith(("COPYING", "LICENSE"))]
        for path in texts[:1]:
            shutil.copyfile(found.locate_file(path), out / "licenses" / f"{package}.txt")
        text = f"licenses/{package}.txt" if texts else "in the package's metadata"
        line = f"| {package} | PyPI `{package}=={found.version}` | {license} | {text} | {author} |"
        lines.insert(at, line)
        at += 1
    (out / "LICENSES.md").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--side", type=int, default=48, help="pixels")
    arguments = parser.parse_args()
    out, side = arguments.out.resolve(), arguments.side
    pictures = emoji.drawn_pictures(out, side)
    licenses(out)
    captioned = [(picture, split_of(picture)) for picture in pictures]
    karpathy(out / "raw", captioned)
    texts = [text for picture, split in captioned if split == "train" for text in picture["texts"]]
    texts += drawn_tasks(out, pictures) + digits_task(out, side) + shapes_tasks(out, side)
    bytepairs.write(out / "tokenizer", texts, VOCABULARY, bytepairs.learned_of_words)
    print("captions", collections.Counter(split for _, split in captioned))


if __name__ == "__main__":
    main()
