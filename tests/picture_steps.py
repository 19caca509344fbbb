#!/usr/bin/env python3
"""Pillow does to pictures what the steps of ZeroVL's recipes do.

    tests/picture_steps.py target/release/examples/change_pictures

The program draws what is done to a picture, says it, and does it; here Pillow does the same, and every byte is
compared. Shares and ranges of what is drawn are compared with those of the published program, too. Makes a virtual
environment with Pillow and numpy once. Where it cannot be installed, says so and succeeds.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
ENVIRONMENT = CACHE / "vlmerge" / "pillow"
SIZES = [(61, 47), (40, 90), (97, 97), (33, 20), (5, 3), (1, 1), (300, 200)]
GREY = (128, 128, 128)


def restart_with_pillow():
    python = ENVIRONMENT / "bin" / "python"
    is_there = python.exists() and not subprocess.run([python, "-c", "import numpy, PIL"], capture_output=True).returncode
    if not is_there:
        try:
            subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", "pillow==13.0.0", "numpy"], check=True)
        except (subprocess.CalledProcessError, OSError):
            print(f"SKIPPED: {sys.argv[0]} needs Pillow, which could not be installed")
            return
    os.execv(python, [python, __file__, *sys.argv[1:], "--inside"])


def pictures():
    """Noise, waves, a ramp, one colour, and what is grey or nearly so."""
    import numpy as np

    rng = np.random.default_rng(11)
    for index, (width, height) in enumerate(SIZES):
        y, x = np.mgrid[0:height, 0:width]
        waves = np.stack([127 + 120 * np.sin(x / (3 + c) + index) * np.cos(y / (5 - c)) for c in range(3)], -1)
        made = {
            "noise": rng.integers(0, 256, (height, width, 3)),
            "waves": waves + rng.normal(0, 6, waves.shape),
            "ramp": (np.arange(3 * width * height) * 7 % 256).reshape(height, width, 3),
            "plain": np.broadcast_to([0, 77, 255], (height, width, 3)),
            "grey": np.repeat(waves[..., :1], 3, -1) + rng.integers(0, 2, waves.shape),
        }
        for name, values in made.items():
            yield f"{name}_{width}x{height}", np.clip(values, 0, 255).astype(np.uint8)


def listed():
    """Lists of steps; the first of each pair is its name."""
    blur = {"p": 1.0, "radius_min": 0.1, "radius_max": 2.0}
    return [
        ("resize", [{"resize": {"size": 37}}]),
        ("resize_bicubic", [{"resize_bicubic": {"size": 37}}]),
        ("center_crop", [{"center_crop": {"size": 32}}]),
        ("random_crop", [{"random_crop": {"size": 32}}]),
        ("random_resize_crop", [{"random_resize_crop": {"size": 32, "scale": [0.08, 1.0]}}]),
        ("random_flip", ["random_flip"]),
        ("color_jitter", [{"color_jitter": {"strength": 0.4}}]),
        ("strong_jitter", [{"color_jitter": {"strength": 1.3}}]),
        ("color_distortion", [{"color_distortion": {"strength": 1.0}}]),
        ("strong_distortion", [{"color_distortion": {"strength": 2.5}}]),
        ("gaussian_blur", [{"gaussian_blur": blur}]),
        ("wide_blur", [{"gaussian_blur": {"p": 1.0, "radius_min": 2.0, "radius_max": 40.0}}]),
        ("no_blur", [{"gaussian_blur": {"p": 1.0, "radius_min": 0.0, "radius_max": 0.0}}]),
        ("autoaug", ["autoaug"]),
        (
            "all",
            [
                {"random_resize_crop": {"size": 48, "scale": [0.6, 1.0]}},
                "random_flip",
                {"color_distortion": {"strength": 0.5}},
                {"gaussian_blur": {**blur, "p": 0.5}},
            ],
        ),
    ]


def policy(picture, change, index, is_negative):
    """An operation of AutoAugment, as ZeroVL's program asks Pillow for it."""
    from PIL import Image, ImageEnhance, ImageOps

    share = index / 9
    sign = -1 if is_negative else 1
    width, height = picture.size
    if change == "rotate":
        turned = picture.convert("RGBA").rotate(30 * share)
        return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert("RGB")
    moves = {
        "shear_x": (1, sign * 0.3 * share, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * 0.3 * share, 1, 0),
        "translate_x": (1, 0, sign * 150 / 331 * share * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, sign * 150 / 331 * share * height),
    }
    if change in moves:
        how = Image.Resampling.BICUBIC if change.startswith("shear") else Image.Resampling.NEAREST
        return picture.transform(picture.size, Image.Transform.AFFINE, moves[change], how, fillcolor=GREY)
    enhanced = {"color": "Color", "contrast": "Contrast", "sharpness": "Sharpness", "brightness": "Brightness"}
    if change in enhanced:
        return getattr(ImageEnhance, enhanced[change])(picture).enhance(1 + sign * 0.9 * share)
    if change == "posterize":
        return ImageOps.posterize(picture, [8, 8, 7, 7, 6, 6, 5, 5, 4, 4][index])
    if change == "solarize":
        return ImageOps.solarize(picture, 256 - 256 * share)
    plain = {"auto_contrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert}
    return plain[change](picture)


def changed(picture, change):
    """What Pillow makes of a picture."""
    import numpy as np
    from PIL import Image, ImageEnhance, ImageFilter, ImageOps

    if change == "mirrored":
        return ImageOps.mirror(picture)
    if change == "gray":
        grey = picture.convert("L")
        return Image.merge("RGB", [grey] * 3)
    ((name, value),) = change.items()
    if name == "resized":
        how = getattr(Image.Resampling, value["filter"].upper())
        return picture.resize((value["width"], value["height"]), how)
    if name == "center":
        return centered(picture, value)
    if name == "padded":
        width, height = picture.size
        larger = Image.new("RGB", (max(width, value), max(height, value)))
        larger.paste(picture, ((larger.size[0] - width) // 2, (larger.size[1] - height) // 2))
        return larger
    if name == "cut":
        left, top = value["left"], value["top"]
        return picture.crop((left, top, left + value["width"], top + value["height"]))
    if name == "policy":
        return policy(picture, **value)
    if name == "blurred":
        return picture.filter(ImageFilter.GaussianBlur(value))
    if name == "hue":
        hue, saturation, brightness = picture.convert("HSV").split()
        step = np.array(int(value * 255)).astype(np.uint8)
        turned = Image.fromarray(np.asarray(hue) + step)
        return Image.merge("HSV", (turned, saturation, brightness)).convert("RGB")
    enhanced = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color"}
    return getattr(ImageEnhance, enhanced[name])(picture).enhance(value)


def centered(picture, side):
    """torchvision's: smaller pictures are filled up with black, the larger half right and below."""
    from PIL import Image

    width, height = picture.size
    if width < side or height < side:
        left, top = max(side - width, 0) // 2, max(side - height, 0) // 2
        larger = Image.new("RGB", (max(width, side), max(height, side)))
        larger.paste(picture, (left, top))
        picture, (width, height) = larger, larger.size
    left, top = round((width - side) / 2), round((height - side) / 2)
    return picture.crop((left, top, left + side, top + side))


def check_draws(drawn):
    """Whether the parameters of the steps spread as the published program's do."""
    import math

    n = len(drawn["drawn_distortion"])
    kinds = [[c if isinstance(c, str) else next(iter(c)) for c in changes] for changes in drawn["drawn_distortion"]]
    expected = {"hue": 0.8, "brightness": 0.8, "gray": 0.2}
    for kind, share in expected.items():
        found = sum(kind in of for of in kinds) / n
        assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / n), (kind, found)
    firsts = [of[0] for of in kinds if "hue" in of]
    for kind in ("hue", "brightness", "contrast", "saturation"):
        share = firsts.count(kind) / len(firsts)
        assert abs(share - 0.25) < 5 * math.sqrt(0.1875 / len(firsts)), (kind, share)
    blurred = [changes[0]["blurred"] for changes in drawn["drawn_blur"] if changes]
    assert abs(len(blurred) / n - 0.5) < 5 * math.sqrt(0.25 / n), len(blurred)
    ranges = {
        "brightness": (0.2, 1.8), "contrast": (0.2, 1.8), "saturation": (0.2, 1.8), "hue": (-0.2, 0.2), "blurred": (0.1, 2.0),
    }  # fmt: skip
    values = {kind: [] for kind in ranges}
    values["blurred"] = blurred
    for changes in drawn["drawn_distortion"]:
        for change in changes:
            if not isinstance(change, str):
                ((kind, value),) = change.items()
                values[kind].append(value)
    for kind, (least, most) in ranges.items():
        found = values[kind]
        assert least <= min(found) and max(found) <= most, (kind, min(found), max(found))
        # The mean of uniform draws, within five of its standard deviations.
        middle, deviation = (least + most) / 2, (most - least) / math.sqrt(12 * len(found))
        assert abs(sum(found) / len(found) - middle) < 5 * deviation, (kind, sum(found) / len(found))


def check(program):
    import numpy as np
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for name, values in pictures():
            Image.fromarray(values).save(Path(folder) / f"{name}.png")
            for step, steps in listed():
                jobs += [{"name": step, "picture": f"{name}.png", "steps": steps, "key": f"{name} {step} {n}"} for n in range(4)]
        drawn = {
            "drawn_distortion": [{"color_distortion": {"strength": 1.0}}],
            "drawn_blur": [{"gaussian_blur": {"p": 0.5, "radius_min": 0.1, "radius_max": 2.0}}],
        }
        jobs += [{"name": k, "picture": "plain_1x1.png", "steps": s, "key": f"{k} {n}"} for k, s in drawn.items() for n in range(2000)]
        lines = [json.dumps({k: v for k, v in job.items() if k != "name"}) for job in jobs]
        (Path(folder) / "jobs.jsonl").write_text("\n".join(lines))
        said = subprocess.run([program, folder], check=True, capture_output=True, text=True).stdout.splitlines()
        assert len(said) == len(jobs), (len(said), len(jobs))
        worst, changes_of = {}, {}
        for number, (job, line) in enumerate(zip(jobs, said)):
            line = json.loads(line)
            if job["name"] in drawn:
                changes_of.setdefault(job["name"], []).append(line["changes"])
                continue
            picture = Image.open(Path(folder) / job["picture"]).convert("RGB")
            for change in line["changes"]:
                picture = changed(picture, change)
            found = np.frombuffer((Path(folder) / f"{number}.rgb").read_bytes(), np.uint8)
            assert picture.size == (line["width"], line["height"]), (job, picture.size, line)
            apart = np.abs(found.astype(int) - np.asarray(picture).ravel())
            n, largest, others, at = worst.get(job["name"], (0, 0, 0, None))
            if apart.max() > largest:
                at = (job["picture"], line["changes"])
            worst[job["name"]] = (n + 1, max(largest, int(apart.max())), others + int((apart > 0).sum()), at)
        check_draws(changes_of)
        for name, (n, largest, others, at) in worst.items():
            print(f"{name}: {n} pictures, {others} bytes differ, by {largest} at most" + (f", as in {at}" if at else ""))
        assert not any(largest for _, largest, _, _ in worst.values())
        print("Pillow gives the same bytes")


if sys.argv[-1] == "--inside":
    check(sys.argv[1])
else:
    restart_with_pillow()
