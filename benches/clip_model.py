"""CLIP by open_clip (PyTorch eager, f32) beside `towers_speed`: speed and memory.

    cargo build --release --workspace --example towers_speed
    tests/with_torch.sh -m pip install --target LIBRARIES --no-deps open-clip-torch==3.3.0 timm torchvision==0.23.0 ftfy wcwidth
    PYTHONPATH=LIBRARIES tests/with_torch.sh benches/clip_model.py FOLDER [--model ViT-B-32-quickgelu --batch 16 --rounds 3]

Writes a checkpoint of the published shape with the weights that open_clip draws, and its configuration, to FOLDER once,
runs both programs in turn, each in a process of its own, on features of images and of texts of 8 to 77 tokens, and on a
contrastive step without the update, and prints their JSON lines: seconds (median of the rounds), peak memory, and the
first number of the result, which must agree.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import open_clip
import torch
from rounds import time_rounds
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "target/release/examples/towers_speed"


def inputs(config, batch):
    side, tokens = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    last = config["text_cfg"]["vocab_size"] - 1
    n = torch.arange(batch * 3 * side * side, dtype=torch.float64)
    image = (n * 0.05 % (2 * torch.pi)).sin().float().reshape(batch, 3, side, side)
    ids = torch.arange(batch * tokens).reshape(batch, tokens) * 7919 % last
    for row in range(batch):
        length = 8 + row * 5 % (tokens - 7)
        ids[row, length - 1] = last
        ids[row, length:] = 0
    return image, ids


def checkpoint(folder, name):
    folder = folder / name
    path = folder / "open_clip_model.safetensors"
    if not path.exists():
        torch.manual_seed(1)
        model = open_clip.create_model(name, precision="fp32")
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
        (folder / "open_clip_config.json").write_text(json.dumps(facts))
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def torch_line(path, given):
    model = open_clip.create_model(given.model, precision="fp32")
    model.load_state_dict(load_file(path))
    image, ids = inputs(open_clip.get_model_config(given.model), given.batch)
    contrast = open_clip.ClipLoss()

    def step():
        model.zero_grad()
        loss = contrast(*model(image, ids))
        loss.backward()
        return loss

    @torch.no_grad()
    def features():
        if given.only == "image":
            return model.encode_image(image, normalize=True)
        return model.encode_text(ids, normalize=True)

    model.train(given.only == "step")
    run = step if given.only == "step" else features
    time_rounds(given.only, given.batch, given.rounds, given.threads, run)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--which", nargs="+", default=["image", "text", "step"], choices=("image", "text", "step"))
    parser.add_argument("--only", choices=("image", "text", "step"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    path = checkpoint(given.folder, given.model)
    if given.only:
        torch_line(path, given)
        return
    for which in given.which:
        sizes = ["--batch", str(given.batch), "--rounds", str(given.rounds), "--threads", str(given.threads)]
        own = [sys.executable, __file__, str(given.folder), "--only", which, "--model", given.model, *sizes]
        subprocess.run(own, check=True)
        own = [EXAMPLE, path, which, str(given.batch), str(given.rounds)]
        subprocess.run(own, check=True, env=os.environ | {"RAYON_NUM_THREADS": str(given.threads)})


if __name__ == "__main__":
    main()
