"""EVE in plain PyTorch (eager, f32) beside `eve_speed`: speed and memory.

    cargo build --release --workspace --bin vlmerge --example eve_speed
    tests/with_torch.sh benches/eve_model.py FOLDER [--batch 8 --rounds 3 --threads 2 --which moe forward step pairs]

Writes a checkpoint of the published Base shape at 224 px with drawn weights to FOLDER once (`vlmerge synth`, 1.9 GB),
runs both programs in turn, each in a process of its own, and prints their JSON lines: seconds (median of the rounds),
peak memory, and the first number of the result, which must agree. Workloads:

* `moe`: the mixture of experts of the last block on tokens of images with texts. torch dispatches as the published
  program does, by a dense table of tokens, experts and places;
* `forward`: images with texts of 40 tokens through all blocks;
* `step`: gradients of everything from a batch of pairs that match, balance of the routers included, no update;
* `pairs`: scores of texts with one image by the matching head, as re-ranking asks for: each pair is a pass. `products` is
  the speed of one product, and `floor` says how long the products of all pairs take at that speed.

Both programs have the published room for tokens at each expert and no noise, so they drop the same ones and results
agree; `kept` says which share of all choices had room. Written from the description of the model alone; nothing here is
needed to build or test.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import torch
from rounds import time_rounds
from safetensors.torch import load_file
from torch.nn import functional

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/vlmerge"
EXAMPLE = ROOT / "target/release/examples/eve_speed"
HEADS, TOKENS, BALANCE = 12, 40, 0.001


class Weights:
    """The tensors of a checkpoint, by name."""

    def __init__(self, path):
        self.of = {name: tensor.float() for name, tensor in load_file(path).items() if tensor.is_floating_point()}
        self.patch = self.of["backbone.patch_embed.weight"].shape[-1]
        self.side = round((len(self.of["backbone.pos_embed_vision"]) - 1) ** 0.5) * self.patch
        self.n_image = len(self.of["backbone.pos_embed_vision"])
        self.vocabulary, self.width = self.of["backbone.word_embedding.weight"].shape
        self.kept = []
        self.n_blocks = 1 + max(int(name.split(".")[3]) for name in self.of if ".encoder.layers." in name)

    def has(self, name):
        return f"{name}.weight" in self.of

    def linear(self, name, x):
        return functional.linear(x, self.of[f"{name}.weight"], self.of.get(f"{name}.bias"))

    def norm(self, name, x):
        weight = self.of[f"{name}.weight"]
        return functional.layer_norm(x, weight.shape, weight, self.of[f"{name}.bias"], 1e-6)

    def feed(self, name, x):
        inner = self.linear(f"{name}.fc1", x)
        return self.linear(f"{name}.fc2", inner * torch.sigmoid(1.702 * inner))


def attention(w, name, x, added):
    b, n, d = x.shape
    bias = torch.cat((w.of[f"{name}.q_bias"], torch.zeros(d), w.of[f"{name}.v_bias"]))
    qkv = functional.linear(x, w.of[f"{name}.qkv.weight"], bias).reshape(b, n, 3, HEADS, d // HEADS)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    shares = (q * (d // HEADS) ** -0.5 @ k.transpose(-2, -1) + added).softmax(-1)
    return w.linear(f"{name}.proj", (shares @ v).transpose(1, 2).reshape(b, n, d))


def mixture(w, name, x, n_image):
    """Two of many experts for each token, by dense tables of tokens, experts and places. Also the balance loss."""
    tags = [w.of[f"{name}.vision_embed"], w.of[f"{name}.text_embed"]]
    h = torch.cat((x[:, :n_image] + tags[0], x[:, n_image:] + tags[1]), 1).reshape(-1, x.shape[-1])
    scores = functional.linear(h, w.of[f"{name}.gate.wg.weight"])
    gates = scores.softmax(-1)
    n_experts = gates.shape[1]
    capacity = max(4, -(-2 * len(h) // n_experts))
    first = functional.one_hot(gates.argmax(-1), n_experts)
    second = functional.one_hot(scores.masked_fill(first.bool(), float("-inf")).argmax(-1), n_experts)
    balance = n_experts * (gates.mean(0) * first.float().mean(0)).sum()
    places = [first.cumsum(0) - 1, second.cumsum(0) - 1 + first.sum(0)]
    kept = [mask * (place < capacity) for mask, place in zip((first, second), places)]
    w.kept.append((kept[0].sum() + kept[1].sum()).item() / (2 * len(h)))
    own = [(gates * mask).sum(-1) for mask in kept]
    total = (own[0] + own[1]).clamp(min=torch.finfo(torch.float32).eps)
    combine = sum(
        torch.einsum("se,sc->sec", (one / total)[:, None] * mask, functional.one_hot((place * mask).sum(-1), capacity).float())
        for one, mask, place in zip(own, kept, places)
    )
    dispatched = torch.einsum("sec,sd->ecd", combine.bool().float(), h)
    answers = [w.feed(f"{name}.experts.experts.{expert}", dispatched[expert]) for expert in range(n_experts)]
    return torch.einsum("sec,ecd->sd", combine, torch.stack(answers)).reshape(x.shape), balance


def fused(w, image, ids, kept):
    """All tokens of images with texts after the last norm, and the mean balance loss of the mixtures."""
    of = lambda name: w.of[f"backbone.{name}"]  # noqa: E731
    patches = functional.conv2d(image, of("patch_embed.weight"), of("patch_embed.bias"), stride=w.patch)
    patches = patches.flatten(2).transpose(1, 2)
    class_token = of("class_embedding_vision").expand(len(image), 1, -1)
    seen = torch.cat((class_token, patches), 1) + of("pos_embed_vision") + of("type_embed_vision")
    words = w.norm("backbone.layer_norm_text", of("word_embedding.weight")[ids])
    words = words + of("pos_embed_text")[: ids.shape[1]] + of("type_embed_text")
    x = w.norm("backbone.pre_layrnorm", torch.cat((seen, words), 1))
    n_image, losses = w.n_image, []
    all_kept = torch.cat((torch.ones(len(ids), n_image, dtype=torch.bool), kept), 1)
    added = torch.zeros(all_kept.shape).masked_fill(~all_kept, float("-inf"))[:, None, None]
    for block in range(w.n_blocks):
        name = f"backbone.encoder.layers.{block}"
        scales = [w.of[f"{name}.gamma_{nth}"] for nth in (1, 2)]
        x = x + scales[0] * attention(w, f"{name}.attn", w.norm(f"{name}.norm1", x), added)
        if w.has(f"{name}.norm2_vl"):
            y, balance = mixture(w, f"{name}.mlp_moe.moe", w.norm(f"{name}.norm2_vl", x), n_image)
            losses.append(balance)
        else:
            parts = (("imag", x[:, :n_image]), ("text", x[:, n_image:]))
            y = torch.cat([w.feed(f"{name}.mlp_{of}", w.norm(f"{name}.norm2_{of}", part)) for of, part in parts], 1)
        x = x + scales[1] * y
    return w.norm("backbone.norm", x), torch.stack(losses).mean()


def scattered(n):
    """Numbers between -2 and 2 that depend on their place only, and so far apart that routers choose evenly."""
    at = torch.arange(n, dtype=torch.int64)
    return ((at * at * 7919 + at * 104729) % 1000003).double().div(1000003).mul(4).sub(2).float()


def inputs(w, batch):
    image = scattered(batch * 3 * w.side**2).reshape(batch, 3, w.side, w.side)
    return image, *texts(w, batch)


def texts(w, batch):
    lengths = torch.tensor([8 + text * 5 % (TOKENS - 7) for text in range(batch)])
    kept = torch.arange(TOKENS) < lengths[:, None]
    ids = torch.arange(batch * TOKENS).reshape(batch, TOKENS) * 7919 % w.vocabulary
    return torch.where(kept, ids, 0), kept


def tokens(w, batch):
    """What the mixture alone is given."""
    return scattered(batch * (w.n_image + TOKENS) * w.width).reshape(batch, -1, w.width)


def torch_line(path, given):
    w = Weights(path)
    name = f"backbone.encoder.layers.{w.n_blocks - 1}.mlp_moe.moe"
    image, ids, kept = inputs(w, given.batch)
    x = tokens(w, given.batch)

    def loss_of(image, ids, kept):
        states, balance = fused(w, image, ids, kept)
        logits = w.linear("itm_head", states[:, w.n_image])
        return functional.cross_entropy(logits, torch.ones(len(ids), dtype=torch.long)) + BALANCE * balance

    def moe():
        with torch.no_grad():
            return mixture(w, name, x, w.n_image)[0]

    def forward():
        with torch.no_grad():
            return fused(w, image, ids, kept)[0]

    def step():
        for tensor in w.of.values():
            tensor.requires_grad_(True)
            tensor.grad = None
        loss = loss_of(image, ids, kept)
        loss.backward()
        return loss

    def pairs():
        of_texts, kept = texts(w, given.texts)
        scores = []
        with torch.no_grad():
            for part, real in zip(of_texts.split(16), kept.split(16)):
                states, _ = fused(w, image[:1].expand(len(part), -1, -1, -1), part, real)
                scores.append(w.linear("itm_head", states[:, w.n_image])[:, 1])
        return torch.cat(scores)

    run = {"moe": moe, "forward": forward, "step": step, "pairs": pairs}[given.only]
    time_rounds(given.only, given.batch, given.rounds, given.threads, run)
    print(json.dumps({"which": "kept", "share": round(sum(w.kept) / len(w.kept), 3)}), flush=True)


def floor(w, n_texts, seconds_of_products):
    """Seconds that the products of pairs take at the speed of one product."""
    d, inner = w.width, 4 * w.width
    n_mixtures = sum(w.has(f"backbone.encoder.layers.{block}.norm2_vl") for block in range(w.n_blocks))
    n = w.n_image + TOKENS
    pair = n * (w.n_blocks * 4 * d * d + (w.n_blocks + n_mixtures) * 2 * d * inner) + w.n_blocks * 2 * n * n * d
    rate = 20 * 512 * d * inner / seconds_of_products
    line = {
        "which": "floor",
        "gflop_per_pair": round(2e-9 * pair, 2),
        "gflop_per_second": round(2e-9 * rate, 1),
        "pairs_per_second": round(rate / pair, 2),
        "seconds": round(n_texts * pair / rate, 3),
    }
    print(json.dumps(line), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=64, help="texts that are scored with the image")
    parser.add_argument("--which", nargs="*", default=("moe", "forward", "step", "pairs"))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / "eve.safetensors"
    if not path.exists():
        made = ["synth", "--family", "eve", "--size", "base", "--image-size", "224", "--heads", "retrieval", path]
        subprocess.run([PROGRAM, *made], check=True)
    if given.only:
        torch_line(path, given)
        return
    environment = os.environ | {"RAYON_NUM_THREADS": str(given.threads)}

    def ours(which):
        line = [EXAMPLE, path, which, str(given.batch), str(given.rounds), str(given.texts)]
        output = subprocess.run(line, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
        print(output, end="", flush=True)
        return json.loads(output)

    for which in given.which:
        sizes = [f"--{name}={getattr(given, name)}" for name in ("batch", "rounds", "threads", "texts")]
        subprocess.run([sys.executable, __file__, given.folder, "--only", which, *sizes], check=True)
        ours(which)
    if "pairs" in given.which:
        floor(Weights(path), given.texts, ours("products")["seconds"])


if __name__ == "__main__":
    main()
