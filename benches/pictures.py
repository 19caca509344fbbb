"""Decode and bicubic resize, ours and Pillow's: equal bit by bit? how fast on one core?

    cargo build --release -p vlmerge-evaluate --example decode_pictures
    python benches/pictures.py [--side 384] [--repeats 20] [--n 200] [FILE...]

Needs pillow and numpy. Without files it makes pictures itself: many sizes, all kinds of files, random
and smooth content. Prints every difference, then the ratio of the times of both (above 1: ours is
faster). Ours is the example `decode_pictures` of the crate `evaluate`; both run on one thread.
"""

import argparse
import hashlib
import io
import pathlib
import subprocess
import tempfile
import time

import numpy as np
from PIL import Image, ImageFile

ImageFile.MAXBLOCK = 1 << 24  # or Pillow fails to write some of them
EXAMPLE = pathlib.Path(__file__).parent.parent / "target/release/examples/decode_pictures"


def content(rng, width, height):
    """Smooth color waves with noise: compresses like a photograph, and clips here and there."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        127 + 140 * np.sin(x / rng.uniform(3, 90) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(3, 90))
        for _ in range(3)
    ]
    picture = np.stack(waves, -1) + rng.normal(0, rng.choice([0, 4, 40]), (height, width, 3))
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def write(rng, picture, index):
    kind = index % 14
    save = {"format": "JPEG", "quality": int(rng.integers(20, 100))}
    if kind in (0, 1, 2):
        save["subsampling"] = kind
    elif kind == 3:
        save["progressive"] = True
    elif kind == 4:
        picture = picture.convert("L")
    elif kind == 5:
        picture = picture.convert("CMYK")
    elif kind == 6:
        save["restart_marker_blocks"] = 3
    elif kind == 7:
        save.update(progressive=True, subsampling=0, optimize=True)
    else:
        save = {"format": "PNG"}
        if kind == 9:
            picture = picture.convert("RGBA")
        elif kind == 10:
            picture = picture.convert("P")
        elif kind == 11:
            picture = picture.convert("1")
        elif kind == 12:
            save = {"format": "GIF"}
        elif kind == 13:
            save = {"format": "BMP"}
    out = io.BytesIO()
    picture.save(out, **save)
    return out.getvalue()


def pillow(path, side, repeats):
    data = path.read_bytes()
    decode = resize = float("inf")
    for _ in range(max(repeats, 1)):
        start = time.perf_counter()
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        picture.load()
        middle = time.perf_counter()
        square = picture.resize((side, side), Image.BICUBIC)
        resize = min(resize, 1e3 * (time.perf_counter() - middle))
        decode = min(decode, 1e3 * (middle - start))
    sha = lambda image: hashlib.sha256(image.tobytes()).hexdigest()
    return sha(picture), sha(square), decode, resize


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--n", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = args.files
        if not files:
            rng = np.random.default_rng(0)
            sizes = [(640, 480), (1280, 960), (500, 375), (1, 1), (3, 700), (700, 3), (384, 384), (384, 50), (17, 384)]
            for index in range(args.n):
                width, height = sizes[index // 14 % 40] if index // 14 % 40 < len(sizes) else rng.integers(1, 900, 2)
                path = pathlib.Path(folder) / f"{index:04}"
                path.write_bytes(write(rng, content(rng, int(width), int(height)), index))
                files.append(path)
        command = [EXAMPLE, str(args.side), str(args.repeats), *map(str, files)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        n_different, ours, theirs = 0, np.zeros(2), np.zeros(2)
        ours_jpeg, theirs_jpeg = np.zeros(2), np.zeros(2)
        for path, line in zip(files, lines, strict=True):
            _, decoded, resized, *times = line.split()[:5]
            expected = pillow(path, args.side, args.repeats)
            if (decoded, resized) != expected[:2]:
                n_different += 1
                print(f"{path}: decoded {decoded == expected[0]}, resized {resized == expected[1]}: {line}")
            ours += [float(t) for t in times]
            theirs += expected[2:]
            if path.read_bytes()[:2] == b"\xff\xd8":
                ours_jpeg += [float(t) for t in times]
                theirs_jpeg += expected[2:]
    print(f"{len(files)} pictures, {n_different} differ; side {args.side}")
    for what, a, b in [("all", ours, theirs), ("JPEG", ours_jpeg, theirs_jpeg)]:
        print(f"{what}: decode {a[0]:.1f} ms, Pillow {b[0]:.1f} ms; resize {a[1]:.1f} ms, Pillow {b[1]:.1f} ms; "
              f"together {b.sum() / a.sum():.2f} x Pillow's speed")


if __name__ == "__main__":
    main()
