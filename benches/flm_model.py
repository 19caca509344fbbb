"""FLM in plain PyTorch (eager, f32) beside `flm_speed`: speed and memory.

    cargo build --release --workspace --bin vlmerge --example flm_speed
    tests/with_torch.sh benches/flm_model.py FOLDER [--batch 8 --rounds 3 --threads 2]

Writes a checkpoint of the published shape with drawn weights to FOLDER once (`vlmerge synth`), runs both
programs in turn, each in a process of its own, and prints their JSON lines: seconds (median of the rounds),
peak memory, and the first number of the result, which must agree. Workloads:

* `forward`: the three streams of a batch of images and texts;
* `step`: a step of free language modeling (three parts), gradients of everything, no update;
* `caption`: greedy captions of a fixed number of tokens, by encoding anew at each token as the published
  program does, against the cache of keys and values.

* `pairs`: scores of texts of 9 to 19 tokens with each image by the ranking head, every pair a pass, as cross-encoding
  asks for. The image is encoded once for all of its texts. torch pads texts to 50 tokens, as the published program
  does, and reads them anew for each image. `products` is the speed of one product, and `floor` says how long the pass
  of each real token would take at that speed.

Written from the description of the model alone; nothing here is needed to build or test.
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
EXAMPLE = ROOT / "target/release/examples/flm_speed"
HEAD, PAD, HIDDEN, TOKENS = 64, 1, -10000.0, 50


class Weights:
    """The tensors of a checkpoint, by name."""

    def __init__(self, path):
        self.of = {name: tensor.float() for name, tensor in load_file(path).items() if tensor.is_floating_point()}
        self.side = round((self.of["vit_model.visual.positional_embedding"].shape[0] - 1) ** 0.5)
        self.patch = self.of["vit_model.visual.conv1.weight"].shape[-1]

    def count(self, prefix):
        rest = [name[len(prefix) :] for name in self.of if name.startswith(prefix)]
        return len({name.split(".")[0] for name in rest})

    def linear(self, name, x):
        return functional.linear(x, self.of[f"{name}.weight"], self.of[f"{name}.bias"])

    def norm(self, name, x, eps):
        weight = self.of[f"{name}.weight"]
        return functional.layer_norm(x, weight.shape, weight, self.of[f"{name}.bias"], eps)


def attend(q, k, v, bias=None):
    split = lambda x: x.unflatten(-1, (-1, HEAD)).transpose(1, 2)  # noqa: E731
    scores = split(q) @ split(k).transpose(-2, -1) * HEAD**-0.5
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1) @ split(v)).transpose(1, 2).flatten(2)


def vit(w, image):
    name = "vit_model.visual"
    x = functional.conv2d(image, w.of[f"{name}.conv1.weight"], stride=w.patch).flatten(2).transpose(1, 2)
    first = w.of[f"{name}.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat((first, x), 1) + w.of[f"{name}.positional_embedding"]
    x = w.norm(f"{name}.ln_pre", x, 1e-5)
    for index in range(w.count(f"{name}.transformer.resblocks.")):
        block = f"{name}.transformer.resblocks.{index}"
        y = w.norm(f"{block}.ln_1", x, 1e-5)
        qkv = functional.linear(y, w.of[f"{block}.attn.in_proj_weight"], w.of[f"{block}.attn.in_proj_bias"])
        x = x + w.linear(f"{block}.attn.out_proj", attend(*qkv.chunk(3, -1)))
        y = w.linear(f"{block}.mlp.c_fc", w.norm(f"{block}.ln_2", x, 1e-5))
        x = x + w.linear(f"{block}.mlp.c_proj", y * (1.702 * y).sigmoid())
    return w.norm(f"{name}.ln_post", x, 1e-5)


def embed(w, ids):
    name = "text_transformer.embeddings"
    token = (ids != PAD).long()
    at = token.cumsum(1) * token + PAD
    x = functional.embedding(ids, w.of[f"{name}.word_embeddings.weight"], PAD)
    x = x + functional.embedding(at, w.of[f"{name}.position_embeddings.weight"], PAD)
    return w.norm(f"{name}.LayerNorm", x + w.of[f"{name}.token_type_embeddings.weight"][0], 1e-5)


def attention(w, name, x, context, bias, eps):
    parts = (w.linear(f"{name}.self.{part}", x if part == "query" else context) for part in ("query", "key", "value"))
    return w.norm(f"{name}.output.LayerNorm", x + w.linear(f"{name}.output.dense", attend(*parts, bias)), eps)


def feed_forward(w, name, x, eps):
    inner = functional.gelu(w.linear(f"{name}.intermediate.dense", x))
    return w.norm(f"{name}.output.LayerNorm", x + w.linear(f"{name}.output.dense", inner), eps)


def text_layer(w, index, x, bias):
    name = f"text_transformer.encoder.layer.{index}"
    return feed_forward(w, name, attention(w, f"{name}.attention", x, x, bias, 1e-5), 1e-5)


def cross_layer(w, index, x, image, bias):
    name = f"cross_modal_text_layers.{index}"
    x = attention(w, f"{name}.attention", x, x, bias, 1e-12)
    return feed_forward(w, name, attention(w, f"{name}.crossattention", x, image, None, 1e-12), 1e-12)


def fusion_layer(w, half, index, x, context, bias):
    name = f"fusion_layers_{half}.{index}"
    return feed_forward(w, name, attention(w, f"{name}.crossattention", x, context, bias, 1e-12), 1e-12)


def masks(kept):
    """Biases of the forward stream, the reverse stream and the reconstructor, by their definitions."""
    b, t = kept.shape
    i, j = torch.arange(t)[:, None], torch.arange(t)[None]
    real = kept.bool()[:, None, :]
    forward = (j >= 1) & (j <= i) & real
    reverse = torch.where(kept.bool()[:, :, None], (j >= i) & real, forward)
    forward, reverse = forward.clone(), reverse.clone()
    forward[:, 0], reverse[:, 0] = kept.bool(), kept.bool()
    own = (i == j) & (i >= 1)
    both = torch.cat((forward & ~own, reverse & ~own), -1)
    return [(~mask)[:, None] * HIDDEN for mask in (forward, reverse, both)]


def image_side(w, image):
    return w.linear("cross_modal_image_transform", vit(w, image)) + w.of["token_type_embeddings.weight"][1]


def three_streams(w, image, ids, queries, kept):
    return streams(w, image_side(w, image), ids, queries, kept)


def streams(w, image, ids, queries, kept):
    forward, reverse, both = masks(kept)
    both = both[:, :, : queries.shape[1]]
    x, xr, f = embed(w, ids), embed(w, ids), embed(w, queries)
    n_text, n_bottom = w.count("text_transformer.encoder.layer."), w.count("fusion_layers_bottom.")
    for index in range(n_text):
        x, xr = text_layer(w, index, x, forward), text_layer(w, index, xr, reverse)
        if index >= n_text - n_bottom:
            f = fusion_layer(w, "bottom", index - n_text + n_bottom, f, torch.cat((x, xr), 1), both)
    to = lambda y, kind: w.linear("cross_modal_text_transform", y) + kind  # noqa: E731
    kinds = w.of["token_type_embeddings_flm.weight"]
    x, xr, f = to(x, w.of["token_type_embeddings.weight"][0]), to(xr, kinds[0]), to(f, kinds[1])
    n_cross, n_top = w.count("cross_modal_text_layers."), w.count("fusion_layers_top.")
    for index in range(n_cross):
        x, xr = cross_layer(w, index, x, image, forward), cross_layer(w, index, xr, image, reverse)
        if index >= n_cross - n_top:
            f = fusion_layer(w, "top", index - n_cross + n_top, f, torch.cat((x, xr), 1), both)
    return x, xr, f


def scores(w, x):
    y = functional.gelu(w.linear("lm_score.transform.dense", x))
    y = w.norm("lm_score.transform.LayerNorm", y, 1e-12)
    return functional.linear(y, w.of["lm_score.decoder.weight"], w.of["lm_score.bias"])


def free_loss(w, image, ids, queries, kept):
    x, xr, f = three_streams(w, image, ids, queries, kept)
    parts = ((f[:, 1:], ids[:, 1:]), (x[:, 1:-1], ids[:, 2:]), (xr[:, 2:], ids[:, 1:-1]))
    ce = lambda h, y: functional.cross_entropy(scores(w, h).flatten(0, 1), y.flatten(), ignore_index=PAD)  # noqa: E731
    return sum(ce(h, y) for h, y in parts) / len(parts)


def captions(w, image, first, n_tokens):
    """Greedy, encoding picture and text anew at each token."""
    ids = torch.tensor([[0, first]]).expand(len(image), 2)
    for _ in range(n_tokens):
        kept = torch.ones_like(ids)
        x, _, _ = three_streams(w, image, ids, ids, kept)
        ids = torch.cat((ids, scores(w, x[:, -1:]).argmax(-1)), 1)
    return ids


def pairs(w, image, n_texts):
    """Scores of texts with each image, in batches of 64 texts that are padded to the whole length."""
    vocabulary = w.of["text_transformer.embeddings.word_embeddings.weight"].shape[0]
    lengths = torch.tensor(sorted(caption_lengths(n_texts)))
    scores = []
    for one in image:
        encoded = image_side(w, one[None])
        for n in lengths.split(64):
            t = n.max().item()
            kept = torch.arange(TOKENS) < n[:, None]
            ids = torch.full(kept.shape, PAD)
            ids[:, :t] = 3 + torch.arange(len(n) * t).reshape(len(n), t) * 7919 % (vocabulary - 3)
            ids[:, 0] = 0
            ids[torch.arange(len(n)), n - 1] = 2
            ids = torch.where(kept, ids, PAD)
            of_all = encoded.expand(len(n), -1, -1)
            _, _, f = streams(w, of_all, ids, ids[:, :1], kept.long())
            pooled = w.linear("cross_modal_text_pooler_f.dense", f[:, 0]).tanh()
            scores.append(pooled.sum(-1))  # a ranking head that starts fresh has other numbers in each program
    return torch.cat(scores)


def caption_lengths(n_texts):
    return [9 + text * 5 % 11 for text in range(n_texts)]


def floor(w, n_images, n_texts, seconds_of_products):
    """Seconds that the products of all pairs take at the speed of one product: what depends on the text alone once,
    the image once, and for each pair the cross-modal layers of both streams and of the first query."""
    d, inner, patches = 768, 3072, w.side**2 + 1
    n_cross, n_top = w.count("cross_modal_text_layers."), w.count("fusion_layers_top.")
    n_text, n_bottom = w.count("text_transformer.encoder.layer."), w.count("fusion_layers_bottom.")
    feed, tokens = 2 * d * inner, sum(caption_lengths(n_texts))
    pair = n_cross * 2 * tokens * (4 * d * d + 2 * d * d + feed)  # own attention, the image's queries and output
    query = n_texts * (2 * d * d + feed)
    pair += n_top * (2 * tokens * 2 * d * d + query)
    text = n_text * 2 * tokens * (4 * d * d + feed) + n_bottom * (2 * tokens * 2 * d * d + query)
    image = patches * (w.count("vit_model.visual.transformer.resblocks.") * 12 * d * d + n_cross * 2 * d * d)
    rate = 20 * 512 * d * inner / seconds_of_products
    line = {
        "which": "floor",
        "gflop_per_pair": round(2e-9 * pair / n_texts, 3),
        "gflop_per_second": round(2e-9 * rate, 1),
        "pairs_per_second": round(rate * n_texts / pair, 2),
        "seconds": round((n_images * (pair + image) + text) / rate, 3),
    }
    print(json.dumps(line), flush=True)


def inputs(w, batch):
    side, vocabulary = w.side * w.patch, w.of["text_transformer.embeddings.word_embeddings.weight"].shape[0]
    n = torch.arange(batch * 3 * side * side, dtype=torch.float64)
    image = (n * 0.05 % (2 * torch.pi)).sin().float().reshape(batch, 3, side, side)
    lengths = torch.tensor([8 + text * 5 % (TOKENS - 7) for text in range(batch)])
    at = torch.arange(TOKENS)
    kept = (at < lengths[:, None]).long()
    ids = 2 + torch.arange(batch * TOKENS).reshape(batch, TOKENS) * 7919 % (vocabulary - 2)
    ids[:, 0] = 0
    ids[torch.arange(batch), lengths - 1] = 2
    queries = torch.full_like(ids, vocabulary - 1)
    queries[:, 0] = 0
    queries[torch.arange(batch), lengths - 1] = 2
    return image, torch.where(kept.bool(), ids, PAD), torch.where(kept.bool(), queries, 0), kept


def torch_line(path, which, batch, rounds, threads, n_tokens):
    w = Weights(path)
    image, ids, queries, kept = inputs(w, batch)

    def step():
        for tensor in w.of.values():
            tensor.requires_grad_(True)
            tensor.grad = None
        loss = free_loss(w, image, ids, queries, kept)
        loss.backward()
        return loss

    @torch.no_grad()
    def forward():
        return three_streams(w, image, ids, queries, kept)[2]

    @torch.no_grad()
    def caption():
        return captions(w, image, 2, n_tokens).float()[:, -1]

    @torch.no_grad()
    def of_pairs():
        return pairs(w, image, n_tokens)

    run = {"forward": forward, "step": step, "caption": caption, "pairs": of_pairs}[which]
    time_rounds(which, batch, rounds, threads, run)


def measure_pairs(path, given):
    """`given.batch` images with `given.texts` texts each, the speed of products, and the floor."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(given.threads)}
    if given.torch_texts:
        sizes = [f"--batch={given.batch}", f"--rounds={given.rounds}", f"--threads={given.threads}"]
        sizes.append(f"--tokens={given.torch_texts}")
        subprocess.run([sys.executable, __file__, given.folder, "--only", "pairs", *sizes], check=True)
    for which in ("pairs", "products"):
        own = [EXAMPLE, path, which, str(given.batch), str(given.rounds), str(given.texts)]
        output = subprocess.run(own, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
        print(output, end="", flush=True)
    floor(Weights(path), given.batch, given.texts, json.loads(output)["seconds"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20, help="tokens of each caption")
    parser.add_argument("--texts", type=int, default=256, help="texts that are ranked for each image")
    parser.add_argument("--torch-texts", type=int, default=64, help="and by torch, which takes longer; 0 for none")
    parser.add_argument("--which", nargs="*", default=("forward", "step", "caption"))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / "flm.safetensors"
    if not path.exists():
        subprocess.run([PROGRAM, "synth", "--family", "flm", path], check=True)
    if given.only:
        torch_line(path, given.only, given.batch, given.rounds, given.threads, given.tokens)
        return
    if "pairs" in given.which:
        measure_pairs(path, given)
    for which in (which for which in given.which if which != "pairs"):
        sizes = [f"--{name}={getattr(given, name)}" for name in ("batch", "rounds", "threads", "tokens")]
        subprocess.run([sys.executable, __file__, given.folder, "--only", which, *sizes], check=True)
        # Our step also with the inside of layers computed again, for less memory.
        for workload in (which, "checkpointed") if which == "step" else (which,):
            own = [EXAMPLE, path, workload, str(given.batch), str(given.rounds), str(given.tokens)]
            subprocess.run(own, check=True, env=os.environ | {"RAYON_NUM_THREADS": str(given.threads)})


if __name__ == "__main__":
    main()
