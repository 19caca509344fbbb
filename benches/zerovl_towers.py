"""ZeroVL's towers in plain PyTorch (eager, f32) beside `towers_speed`: speed and memory.

    cargo build --release --workspace --example towers_speed
    tests/with_torch.sh benches/zerovl_towers.py FOLDER [--batch 16 --rounds 3 --threads 2]

Writes a checkpoint of the published shape with drawn weights to FOLDER once (780 MB), runs both programs
in turn, each in a process of its own, on features of images and of texts and on a contrastive step
without the update, and prints their JSON lines: seconds (median of the rounds), peak memory, and the
first number of the result, which must agree. Written from docs of the models alone (ViT-B/16, BERT-base);
nothing here is needed to build or test.
"""

import argparse
import os
import pathlib
import subprocess
import sys

import torch
from rounds import time_rounds
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "target/release/examples/towers_speed"
WIDTH, HEADS, INNER, BLOCKS = 768, 12, 3072, 12
PATCH, SIDE, VOCABULARY, POSITIONS, TOKENS, JOINT = 16, 224, 30522, 512, 25, 512


def heads_of(x):
    b, n, _ = x.shape
    return x.reshape(b, n, HEADS, WIDTH // HEADS).transpose(1, 2)


def attend(q, k, v, mask=None):
    scores = heads_of(q) @ heads_of(k).transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
    if mask is not None:
        scores = scores + mask
    mixed = scores.softmax(dim=-1) @ heads_of(v)
    return mixed.transpose(1, 2).flatten(2)


class VitBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, INNER), "fc2": nn.Linear(INNER, WIDTH)})

    def forward(self, x):
        q, k, v = self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1)
        x = x + self.attn["proj"](attend(q, k, v))
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class Vit(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2 + 1, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.ModuleList(VitBlock() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, image):
        patches = self.patch_embed["proj"](image).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(image), -1, -1), patches), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class BertLayer(nn.Module):
    def __init__(self):
        super().__init__()
        linear = lambda: nn.Linear(WIDTH, WIDTH)  # noqa: E731
        norm = lambda: nn.LayerNorm(WIDTH, eps=1e-12)  # noqa: E731
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({"query": linear(), "key": linear(), "value": linear()}),
                "output": nn.ModuleDict({"dense": linear(), "LayerNorm": norm()}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = nn.ModuleDict({"dense": nn.Linear(INNER, WIDTH), "LayerNorm": norm()})

    def forward(self, x, mask):
        own, out = self.attention["self"], self.attention["output"]
        mixed = attend(own["query"](x), own["key"](x), own["value"](x), mask)
        x = out["LayerNorm"](x + out["dense"](mixed))
        inner = functional.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](inner))


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(VOCABULARY, WIDTH),
                "position_embeddings": nn.Embedding(POSITIONS, WIDTH),
                "token_type_embeddings": nn.Embedding(2, WIDTH),
                "LayerNorm": nn.LayerNorm(WIDTH, eps=1e-12),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(BertLayer() for _ in range(BLOCKS))})

    def forward(self, ids, kept):
        tables, n = self.embeddings, ids.shape[1]
        x = tables["word_embeddings"](ids) + tables["position_embeddings"].weight[:n]
        x = tables["LayerNorm"](x + tables["token_type_embeddings"].weight[0])
        mask = (1.0 - kept[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        return x[:, 0]


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        wrapped = lambda model: nn.ModuleDict({"model": nn.ModuleDict({"model": model})})  # noqa: E731
        self.image_encoder, self.text_encoder = wrapped(Vit()), wrapped(Bert())
        projection = lambda: nn.ModuleDict({"linear": nn.Linear(WIDTH, JOINT, bias=False)})  # noqa: E731
        self.image_projection, self.text_projection = projection(), projection()
        self.loss = nn.ParameterDict({"temperature": nn.Parameter(torch.tensor(0.07))})

    def image(self, image):
        return unit(self.image_projection["linear"](self.image_encoder["model"]["model"](image)))

    def text(self, ids, kept):
        return unit(self.text_projection["linear"](self.text_encoder["model"]["model"](ids, kept)))

    def step(self, image, ids, kept):
        logits = self.image(image) @ self.text(ids, kept).T / self.loss["temperature"].clamp(0.001, 0.5)
        own = torch.arange(len(image))
        return 0.5 * (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own))


def unit(z):
    return z / (z.norm(dim=-1, keepdim=True) + 1e-8)


def inputs(batch):
    n = torch.arange(batch * 3 * SIDE * SIDE, dtype=torch.float64)
    image = (n * 0.05 % (2 * torch.pi)).sin().float().reshape(batch, 3, SIDE, SIDE)
    lengths = [8 + text * 5 % (TOKENS - 7) for text in range(batch)]
    kept = torch.tensor([[int(at < length) for at in range(TOKENS)] for length in lengths])
    ids = torch.arange(batch * TOKENS).reshape(batch, TOKENS) * 7919 % (VOCABULARY - 1) * kept
    for row, length in enumerate(lengths):
        ids[row, length - 1] = VOCABULARY - 1
    return image, ids, kept


def checkpoint(folder):
    path = folder / "zerovl.safetensors"
    if not path.exists():
        torch.manual_seed(1)
        model = TwoTowers()
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)
        save_file(model.state_dict(), path)
    return path


def torch_line(path, which, batch, rounds, threads):
    model = TwoTowers().eval()
    model.load_state_dict(load_file(path))
    image, ids, kept = inputs(batch)

    def step():
        model.zero_grad()
        loss = model.step(image, ids, kept)
        loss.backward()
        return loss

    @torch.no_grad()
    def features():
        return model.image(image) if which == "image" else model.text(ids, kept)

    time_rounds(which, batch, rounds, threads, step if which == "step" else features)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("image", "text", "step"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint(given.folder)
    if given.only:
        torch_line(path, given.only, given.batch, given.rounds, given.threads)
        return
    for which in ("image", "text", "step"):
        sizes = ["--batch", str(given.batch), "--rounds", str(given.rounds), "--threads", str(given.threads)]
        subprocess.run([sys.executable, __file__, str(given.folder), "--only", which, *sizes], check=True)
        own = [EXAMPLE, path, which, str(given.batch), str(given.rounds)]
        subprocess.run(own, check=True, env=os.environ | {"RAYON_NUM_THREADS": str(given.threads)})


if __name__ == "__main__":
    main()
