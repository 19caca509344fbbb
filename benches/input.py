"""Pictures a second and core, ours against Pillow and OpenCV: decode, random part to a square, RandAugment, normalize.

    cargo build --release --workspace --example input_speed
    python benches/input.py [--side 224] [--seconds 5] [--rounds 5] [FILE...]

Needs pillow, opencv-python-headless 4.8.1.78 and numpy. Without files it takes the JPEGs of `fixtures/raw`; `--photos N`
makes N smooth ones of 640 x 480 as COCO has them instead. Both take turns, on one thread each, and the ratio is that
of the medians (above 1: ours is faster).
"""

import argparse
import io
import math
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

import cv2
import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLE = ROOT / "target/release/examples/input_speed"
FILL = (128, 128, 128)
cv2.setNumThreads(1)


def by_channel(picture, table_of):
    return cv2.merge([np.take(table_of(channel), channel) for channel in cv2.split(picture)])


def auto_contrast(picture):
    def table(channel):
        low, high = int(channel.min()), int(channel.max())
        if high <= low:
            return np.arange(256, dtype=np.uint8)
        scale = 255 / (high - low)
        return np.clip(np.arange(256) * scale - low * scale, 0, 255).astype(np.uint8)

    return by_channel(picture, table)


def equalize(picture):
    def table(channel):
        counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel()
        filled = counts[counts != 0]
        step = filled[:-1].sum() // 255
        if step == 0:
            return np.arange(256, dtype=np.uint8)
        before = np.concatenate([[step // 2], counts[:-1]])
        return np.clip(np.cumsum(before) // step, 0, 255).astype(np.uint8)

    return by_channel(picture, table)


def brightness(picture):
    return np.clip(np.arange(256) * 1.36, 0, 255).astype(np.uint8)[picture]


KERNEL = np.ones((3, 3), np.float32)
KERNEL[1, 1] = 5
KERNEL /= 13


def sharpness(picture):
    blurred = cv2.filter2D(picture, -1, KERNEL).astype(np.float32)[1:-1, 1:-1]
    sharp = picture.astype(np.float32)
    sharp[1:-1, 1:-1] = blurred + 1.36 * (sharp[1:-1, 1:-1] - blurred)
    return np.clip(sharp, 0, 255).astype(np.uint8)


def warp(matrix_of):
    def apply(picture):
        height, width = picture.shape[:2]
        sign = random.choice((-1, 1))
        matrix = matrix_of(sign, width, height)
        return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)

    return apply


OPERATIONS = {
    "Identity": lambda picture: picture,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "ShearX": warp(lambda s, w, h: np.float32([[1, 0.21 * s, 0], [0, 1, 0]])),
    "ShearY": warp(lambda s, w, h: np.float32([[1, 0, 0], [0.21 * s, 1, 0]])),
    "TranslateX": warp(lambda s, w, h: np.float32([[1, 0, 7 * s], [0, 1, 0]])),
    "TranslateY": warp(lambda s, w, h: np.float32([[1, 0, 0], [0, 1, 7 * s]])),
    "Rotate": warp(lambda s, w, h: cv2.getRotationMatrix2D((w / 2, h / 2), 21 * s, 1)),
}
ALL = list(OPERATIONS.values())


def box(width, height):
    for _ in range(10):
        area = width * height * random.uniform(0.5, 1)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= width and h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def theirs(files, side, seconds):
    spent, n, start = np.zeros(4), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for data in files:
            t0 = time.perf_counter()
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            t1 = time.perf_counter()
            picture = picture.crop(box(*picture.size)).resize((side, side), Image.BICUBIC)
            if random.random() < 0.5:
                picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
            t2 = time.perf_counter()
            array = np.array(picture)
            for operation in random.choices(ALL, k=2):
                if random.random() < 0.5:
                    array = operation(array)
            t3 = time.perf_counter()
            values = np.ascontiguousarray(array.transpose(2, 0, 1)).astype(np.float32)
            values *= np.float32(2 / 255)
            values -= 1
            spent += np.diff([t0, t1, t2, t3, time.perf_counter()])
            n += 1
    rate = n / (time.perf_counter() - start)
    return rate, 1e6 * spent / n


def photograph(rng):
    """Smooth waves with noise, 640 x 480, about as large as a JPEG of COCO."""
    y, x = np.mgrid[0:480, 0:640]
    waves = [127 + 110 * np.sin(x / rng.uniform(9, 90) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(9, 90)) for _ in range(3)]
    picture = np.stack(waves, -1) + rng.normal(0, 9, (480, 640, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(out, format="JPEG", quality=90)
    return out.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = args.files or sorted((ROOT / "fixtures/raw").rglob("*.jpg"))
        if args.photos:
            rng = np.random.default_rng(0)
            paths = [pathlib.Path(folder) / f"{i}.jpg" for i in range(args.photos)]
            for path in paths:
                path.write_bytes(photograph(rng))
        files = [path.read_bytes() for path in paths]
        command = [EXAMPLE, str(args.side), str(args.seconds), *map(str, paths)]
        ours, others, lines, parts = [], [], "", None
        for _ in range(args.rounds):
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
            ours.append(float(lines[0].split()[0]))
            rate, parts = theirs(files, args.side, args.seconds)
            others.append(rate)
        print(f"{len(files)} JPEGs of {sum(map(len, files)) / len(files) / 1024:.0f} KiB; side {args.side}")
        print("ours:", lines[0])
        print(f"theirs: {others[-1]:.1f} pictures/s; us: decode {parts[0]:.0f}, crop {parts[1]:.0f}, augment {parts[2]:.0f}, normalize {parts[3]:.0f}")
        view = np.array(Image.open(io.BytesIO(files[0])).convert("RGB").resize((args.side, args.side), Image.BICUBIC))
        for line in lines[1:]:
            name, micros = line.split()
            fastest = 1e9
            for _ in range(50):
                start = time.perf_counter()
                OPERATIONS[name](view)
                fastest = min(fastest, time.perf_counter() - start)
            print(f"  {name}: {micros} us, theirs {1e6 * fastest:.0f} us")
        ours, others = statistics.median(ours), statistics.median(others)
        print(f"median of {args.rounds}: ours {ours:.1f}, theirs {others:.1f} pictures/s: {ours / others:.2f} x")


if __name__ == "__main__":
    main()
