"""What Pillow, numpy and OpenCV make of small pictures: fixtures/augment.

    python tests/augment_reference.py fixtures/augment

Needs pillow 10.4.0, opencv-python-headless 4.8.1.78 and numpy 1.26. OpenCV 4 warps in fixed point, and so do we;
OpenCV 5 does it in floating point, which is another result. Pillow from 13 on resizes along columns first where that is
less work, which is another result too.

`pictures.safetensors` has the pictures, `p0`, `p1`, ... as (height, width, 3), and in `results.safetensors` is, for
every picture, `p0/<operation>[/<amount>]`. `crops.json` has hashes of parts of pictures, resized with each filter.
The operations follow the formulas of RandAugment, not any program.
"""

import hashlib
import json
import pathlib
import sys

import cv2
import numpy as np
from PIL import Image

FILL = (128, 128, 128)
SIZES = [(1, 1), (2, 9), (17, 23), (23, 17), (40, 33), (31, 70)]


def pictures():
    """Noise, waves that leave gray levels out, one color, and a ramp."""
    rng = np.random.default_rng(7)
    made = []
    for index, (height, width) in enumerate(SIZES):
        y, x = np.mgrid[0:height, 0:width]
        waves = 120 + 70 * np.sin(x / 5 + index)[..., None] * np.cos(y / np.array([3, 7, 4])[:, None, None]).transpose(1, 2, 0)
        kind = index % 3
        picture = waves if kind == 1 else waves + rng.normal(0, (90, 0, 25)[kind], (height, width, 3))
        made.append(np.clip(picture, 0, 255).astype(np.uint8))
    made.append(np.full((9, 8, 3), (0, 77, 255), np.uint8))
    made.append(np.arange(3 * 9 * 11, dtype=np.int64).reshape(9, 11, 3).astype(np.uint8))
    return made


def by_channel(picture, table_of):
    channels = [picture[..., c] for c in range(3)]
    return np.stack([table_of(c)[c] for c in channels], -1).astype(np.uint8)


def auto_contrast(picture):
    def table(channel):
        low, high = int(channel.min()), int(channel.max())
        levels = np.arange(256)
        if high <= low:
            return levels
        scale = 255 / (high - low)
        return np.clip(levels * scale - low * scale, 0, 255).astype(np.uint8)

    return by_channel(picture, table)


def equalize(picture):
    def table(channel):
        counts = np.bincount(channel.ravel(), minlength=256)
        filled = counts[counts != 0]
        step = filled[:-1].sum() // 255
        if step == 0:
            return np.arange(256)
        before = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return np.clip((step // 2 + before) // step, 0, 255)

    return by_channel(picture, table)


def brightness(picture, factor):
    return np.clip(picture * float(factor), 0, 255).astype(np.uint8)


def sharpness(picture, factor, wraps):
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    blurred = cv2.filter2D(picture, -1, kernel / 13).astype(np.float32)
    sharp = picture.astype(np.float32)
    inner = np.s_[1:-1, 1:-1]
    sharp[inner] = blurred[inner] + factor * (sharp[inner] - blurred[inner])
    return (sharp.astype(np.int32) & 255 if wraps else np.clip(sharp, 0, 255)).astype(np.uint8)


def warp(picture, matrix):
    height, width = picture.shape[:2]
    return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)


def rotation(picture, degrees):
    height, width = picture.shape[:2]
    return cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)


GEOMETRY = {
    "shear_x": lambda p, a: np.float32([[1, a, 0], [0, 1, 0]]),
    "shear_y": lambda p, a: np.float32([[1, 0, 0], [a, 1, 0]]),
    "translate_x": lambda p, a: np.float32([[1, 0, -a], [0, 1, 0]]),
    "translate_y": lambda p, a: np.float32([[1, 0, 0], [0, 1, -a]]),
    "rotate": rotation,
}
AMOUNTS = {
    "shear_x": [0.21, -0.21, 0.3, 0.017],
    "shear_y": [0.21, -0.21, -0.3, 0.09],
    "translate_x": [7.0, -7.0, 0.3, -9.97],
    "translate_y": [7.0, -7.0, 2.5, -0.01],
    "rotate": [21.0, -21.0, 30.0, 0.4],
}


def results(picture):
    yield "auto_contrast", auto_contrast(picture)
    yield "equalize", equalize(picture)
    for factor in (1.36, 0.1, 1.9):
        yield f"brightness/{factor}", brightness(picture, factor)
        yield f"sharpness/{factor}", sharpness(picture, factor, False)
        yield f"sharpness_wrapping/{factor}", sharpness(picture, factor, True)
    for name, matrix in GEOMETRY.items():
        for amount in AMOUNTS[name]:
            yield f"{name}/{amount}", warp(picture, matrix(picture, amount))


def write(path, arrays):
    """A safetensors file of u8 arrays."""
    header, data = {}, b""
    for name, array in sorted(arrays.items()):
        array = np.ascontiguousarray(array)
        header[name] = {"dtype": "U8", "shape": array.shape, "data_offsets": [len(data), len(data) + array.size]}
        data += array.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}
CROPS = [(0, 0, 31, 70), (3, 5, 20, 31), (0, 0, 1, 1), (1, 0, 16, 17), (30, 69, 1, 1), (2, 1, 29, 33), (5, 4, 24, 24)]
TO = [(16, 16), (48, 20), (7, 61)]


def crops(picture):
    """(top, left, height, width) of the largest picture, to (width, height)."""
    for top, left, height, width in CROPS:
        part = Image.fromarray(picture[top : top + height, left : left + width])
        for to in TO:
            for name, kind in FILTERS.items():
                resized = part.resize(to, kind)
                yield {
                    "part": [top, left, height, width],
                    "to": to,
                    "filter": name,
                    "sha256": hashlib.sha256(resized.tobytes()).hexdigest(),
                }


def main():
    out = pathlib.Path(sys.argv[1])
    made = pictures()
    write(out / "pictures.safetensors", {f"p{i}": p for i, p in enumerate(made)})
    write(out / "results.safetensors", {f"p{i}/{k}": v for i, p in enumerate(made) for k, v in results(p)})
    (out / "crops.json").write_text(json.dumps(list(crops(made[5])), indent=0) + "\n")


if __name__ == "__main__":
    main()
