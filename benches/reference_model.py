"""The vl-merging model in plain PyTorch (eager, f32): a yardstick for speed and memory.

    tests/with_torch.sh benches/reference_model.py check FOLDER
    tests/with_torch.sh benches/reference_model.py time CHECKPOINT [--pass image --batch 8 --threads 2 ...]
    tests/with_torch.sh benches/reference_model.py outputs CHECKPOINT OUT.safetensors

`check` compares passes and grams with the expected numbers of a folder that has config.json, ckpt/,
forward/ and merge/. `time` prints one JSON line: units per second (images, texts or pairs), the median
of the rounds, process CPU seconds and peak memory; with `--grams` every batch also adds the f64 products
of each linear layer's input to a sum, by hooks, as published. `outputs` writes fixed inputs and the
features of the three passes, for comparison at full size. Sizes are read from the checkpoint
(`vlmerge synth --size base --layout agnostic FILE` makes one); nothing here is needed to build or test.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

import measured
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

TEXT, IMAGE, JOINT = "l", "v", "vl"


class Attention(nn.Module):
    """Self-attention with a bias on its scores; the key has no bias."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x, mask, bias, fused=False):
        b, n, d = x.shape
        qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = functional.linear(x, self.qkv.weight, qkv_bias)
        q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (b, h, n, e)
        if fused:
            if mask is not None:
                bias = bias.unsqueeze(0).masked_fill(~mask[:, None, None, :], float("-inf"))
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1) + bias.unsqueeze(0)
            if mask is not None:
                scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
            out = scores.softmax(dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between."""

    def __init__(self, width, inner):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """One block, with shared parts or one of each expert."""

    def __init__(self, width, heads, inner, experts):
        super().__init__()

        def one_each(make):
            return nn.ModuleDict({expert: make() for expert in experts}) if experts else make()

        self.norm1 = one_each(lambda: nn.LayerNorm(width, eps=1e-6))
        self.attn = one_each(lambda: Attention(width, heads))
        self.norm2 = one_each(lambda: nn.LayerNorm(width, eps=1e-6))
        self.mlp = one_each(lambda: Mlp(width, inner))
        self.gamma_1 = nn.Parameter(torch.empty(width))
        self.gamma_2 = nn.Parameter(torch.empty(width))

    def forward(self, x, expert, mask, bias, fused=False):
        def part(module):
            return module[expert] if isinstance(module, nn.ModuleDict) else module

        x = x + self.gamma_1 * part(self.attn)(part(self.norm1)(x), mask, bias, fused)
        return x + self.gamma_2 * part(self.mlp)(part(self.norm2)(x))


def patch_index(grid):
    """Rows of the bias table for an image with its class token."""
    side = 2 * grid - 1
    axis = torch.arange(grid)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    y, x = y.flatten(), x.flatten()
    index = torch.empty(grid * grid + 1, grid * grid + 1, dtype=torch.long)
    index[1:, 1:] = (y[:, None] - y[None, :] + grid - 1) * side + (x[:, None] - x[None, :] + grid - 1)
    index[0, :] = side * side
    index[:, 0] = side * side + 1
    index[0, 0] = side * side + 2
    return index


def token_index(length, table_length, first):
    """Rows of the bias table for a text; `first` is the first row of the text part."""
    position = torch.arange(length)
    index = first + 2 + table_length - 2 + (position[None, :] - position[:, None])
    index[0, :] = first + 2 * table_length - 1
    index[:, 0] = first + 2 * table_length
    index[0, 0] = first + 2 * table_length + 1
    return index


def keep(trace, *parts):
    """Adds a hidden state to `trace`, where there is one."""
    if trace is not None:
        trace.append(torch.cat(parts, dim=1))


class Model(nn.Module):
    """The multiway transformer with its embeddings and the projections of retrieval."""

    def __init__(self, weights, heads, text_table_len, fused=False):
        super().__init__()
        width, _, self.patch, _ = weights["transformer.patch_embed.proj.weight"].shape
        self.heads = heads or width // 64
        self.fused = fused
        depth = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("transformer.blocks."))
        rows = weights["relative_position_bias_table"].shape[0]
        self.grid = (round((rows - 2 * text_table_len - 5) ** 0.5) + 1) // 2
        self.text_len = weights["text_embeddings.position_embeddings.weight"].shape[0]
        experts = [
            [m for m in (IMAGE, TEXT, JOINT) if f"transformer.blocks.{i}.attn.{m}.q_bias" in weights]
            for i in range(depth)
        ]
        fc1 = "transformer.blocks.0.mlp.v.fc1.weight" if experts[0] else "transformer.blocks.0.mlp.fc1.weight"
        inner = weights[fc1].shape[0]
        self.fusion_start = min((i for i in range(depth) if JOINT in experts[i]), default=depth - 2)

        with torch.device("meta"):
            self.build(weights, width, rows, depth, inner, experts)

        own = dict(self.named_parameters())
        missing = sorted(set(own) - set(weights))
        if missing:
            raise SystemExit(f"the checkpoint has no {missing[0]} and {len(missing) - 1} others")
        self.load_state_dict({key: weights[key] for key in own}, assign=True)  # no second copy

        first = (2 * self.grid - 1) ** 2 + 3
        image, text = patch_index(self.grid), token_index(self.text_len, text_table_len, first)
        joint = torch.empty(len(text) + len(image), len(text) + len(image), dtype=torch.long)
        joint[: len(text), : len(text)], joint[len(text) :, len(text) :] = text, image
        joint[: len(text), len(text) :], joint[len(text) :, : len(text)] = first, first + 1
        self.index = {TEXT: text, IMAGE: image, JOINT: joint}

    def build(self, weights, width, rows, depth, inner, experts):
        """The modules, without values."""
        self.text_embeddings = nn.Module()
        self.text_embeddings.word_embeddings = nn.Embedding(*weights["text_embeddings.word_embeddings.weight"].shape)
        self.text_embeddings.token_type_embeddings = nn.Embedding(2, width)
        self.text_embeddings.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.token_type_embeddings = nn.Embedding(*weights["token_type_embeddings.weight"].shape)
        self.transformer = nn.Module()
        self.transformer.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.transformer.patch_embed = nn.Module()
        self.transformer.patch_embed.proj = nn.Conv2d(3, width, self.patch, self.patch)
        self.transformer.blocks = nn.ModuleList(Block(width, self.heads, inner, e) for e in experts)
        self.transformer.norm = nn.LayerNorm(width, eps=1e-6)
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, self.heads * depth))
        self.pooler = nn.Module()
        self.pooler.dense = nn.Linear(width, width)
        self.ifm_text_proj = nn.Module()
        self.ifm_text_proj.fc = nn.Linear(width, width, bias=False)
        self.ifm_image_proj = nn.Module()
        self.ifm_image_proj.fc = nn.Linear(width, width, bias=False)

    def biases(self, kind):
        """Position biases of every block, (h, n, n) each."""
        index = self.index[kind]
        rows = functional.embedding(index, self.relative_position_bias_table)  # (n, n, h * blocks)
        return rows.permute(2, 0, 1).split(self.heads)

    def embed_text(self, ids):
        part = self.text_embeddings
        x = part.LayerNorm(part.word_embeddings(ids) + part.token_type_embeddings.weight[0])
        return x + self.token_type_embeddings.weight[0]

    def embed_image(self, image, token_type=1):
        x = self.transformer.patch_embed.proj(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.transformer.cls_token.expand(len(x), -1, -1), x), dim=1)
        return x + self.token_type_embeddings.weight[min(token_type, len(self.token_type_embeddings.weight) - 1)]

    def one_modality(self, x, mask, kind, trace):
        for i, (block, bias) in enumerate(zip(self.transformer.blocks, self.biases(kind))):
            x = block(x, kind, mask, bias, self.fused)
            keep(trace, x)
        return self.transformer.norm(x)

    def infer_text_ft(self, ids, mask, trace=None):
        """Text features and the unit vector of retrieval."""
        feats = self.one_modality(self.embed_text(ids), mask.bool(), TEXT, trace)
        return feats, functional.normalize(self.ifm_text_proj.fc(feats[:, 0]), dim=-1)

    def infer_image_ft(self, image, trace=None):
        """Image features and the unit vector of retrieval."""
        feats = self.one_modality(self.embed_image(image), None, IMAGE, trace)
        return feats, functional.normalize(self.ifm_image_proj.fc(feats[:, 0]), dim=-1)

    def infer(self, ids, mask, image, trace=None, token_type=1):
        """Features of text and image together, and the pooled one."""
        text, pixels, mask = self.embed_text(ids), self.embed_image(image, token_type), mask.bool()
        t = text.shape[1]
        whole = torch.cat((mask, torch.ones(pixels.shape[:2], dtype=torch.bool)), dim=1)
        for i, (block, bias) in enumerate(zip(self.transformer.blocks, self.biases(JOINT))):
            if i < self.fusion_start:
                text = block(text, TEXT, mask, bias[:, :t, :t], self.fused)
                pixels = block(pixels, IMAGE, None, bias[:, t:, t:], self.fused)
                keep(trace, text, pixels)
            else:
                x = torch.cat((text, pixels), dim=1) if i == self.fusion_start else x
                x = block(x, JOINT, whole, bias, self.fused)
                keep(trace, x)
        x = self.transformer.norm(x)
        return x[:, :t], x[:, t:], torch.tanh(self.pooler.dense(x[:, 0]))


class Grams:
    """Sums of `X^T X` in f64 over the inputs of attention, projection, fc1 and fc2, by hooks."""

    def __init__(self, model):
        self.sums = {}
        for name, module in model.named_modules():
            if isinstance(module, Attention) or name.rsplit(".", 1)[-1] in ("fc1", "fc2", "proj") and ".blocks." in name:
                module.register_forward_pre_hook(self.hook(name))

    def hook(self, name):
        def add(_, inputs):
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).to(torch.float64)
            self.sums[name] = self.sums.get(name, 0.0) + (rows.T @ rows).cpu()

        return add


def check(folder):
    """Compares with expected numbers; exits 1 when one is off."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    sizes = config["num_heads"], config["max_text_len_of_initckpt"]
    inputs = load_file(folder / "forward/inputs.safetensors")
    bad = 0

    def compare(name, got, expected, worst):
        nonlocal bad
        bad += worst > 1
        print(f"{'ok ' if worst <= 1 else 'BAD'} {name}: {worst:.3f} of the tolerance, {tuple(got.shape)}")

    def close(name, got, expected):
        worst = ((got - expected).abs() / (1e-5 + 1e-5 * expected.abs())).max().item()
        compare(name, got, expected, worst)

    for variant in ("ufo", "all_moe"):
        expected = load_file(folder / f"forward/{variant}.safetensors")
        weights = load_file(folder / f"ckpt/{variant}.safetensors")
        for fused in (False, True):
            model = Model(weights, *sizes, fused=fused).eval()
            ids, mask, image = inputs["text_ids"], inputs["text_masks"], inputs["image"]
            text_trace, image_trace, joint_trace = [], [], []
            with torch.inference_mode():
                text = model.infer_text_ft(ids, mask, text_trace)
                pixels = model.infer_image_ft(image, image_trace)
                joint = model.infer(ids, mask, image, joint_trace)
            got = {"text_ft.text_feats": text[0], "text_ft.cls_feats": text[1]}
            got |= {"image_ft.image_feats": pixels[0], "image_ft.cls_feats": pixels[1]}
            got |= {"vl.text_feats": joint[0], "vl.image_feats": joint[1], "vl.cls_feats": joint[2]}
            for kind, trace in (("text_ft", text_trace), ("image_ft", image_trace), ("vl", joint_trace)):
                got |= {f"{kind}.block{i}": x for i, x in enumerate(trace)}
            for name, value in got.items():
                close(f"{variant}{' sdpa' if fused else ''} {name}", value, expected[name])

    data = load_file(folder / "merge/gram_inputs.safetensors")
    weights = load_file(folder / "ckpt/all_moe.safetensors")
    weights["token_type_embeddings.weight"] = weights["token_type_embeddings.weight"][:2].clone()
    first, second = (data[f"image{k}_u8"].float() / 128 - 1 for k in (0, 1))
    for task in ("irtr", "vqa", "nlvr2"):
        model = Model(weights, *sizes).eval()
        grams = Grams(model)
        with torch.inference_mode():
            for start in range(0, len(first), 4):
                rows = slice(start, start + 4)
                ids, mask = data["text_ids"][rows], data["text_masks"][rows]
                if task == "irtr":
                    model.infer_image_ft(first[rows])
                    model.infer_text_ft(ids, mask)
                else:
                    model.infer(ids, mask, first[rows])
                if task == "nlvr2":
                    model.infer(ids, mask, second[rows], token_type=2)
        expected = load_file(folder / f"merge/gram_{task}.safetensors")
        if set(expected) != set(grams.sums):
            raise SystemExit(f"grams of {task}: {sorted(set(expected) ^ set(grams.sums))[:4]}")
        worst = max(((grams.sums[k] - g).norm() / g.norm()).item() for k, g in expected.items()) / 1e-4
        compare(f"grams {task}", torch.empty(len(expected)), None, worst)
    print(f"{bad} off")
    sys.exit(bad > 0)


def fixed_inputs(model, vocabulary, batch):
    """Inputs that depend on their place only: ids, mask (from 8 tokens to all), images."""
    side = model.grid * model.patch
    ids = (torch.arange(batch * model.text_len) * 7919 % vocabulary).reshape(batch, -1)
    lengths = 8 + torch.arange(batch) * 5 % (model.text_len - 7)
    mask = (torch.arange(model.text_len)[None, :] < lengths[:, None]).long()
    count = batch * 3 * side * side
    image = torch.sin(torch.arange(count, dtype=torch.float64) * 0.05 % (2 * torch.pi)).float()
    return ids * mask, mask, image.reshape(batch, 3, side, side)


def opened(args):
    """The model of a checkpoint; the file's own copy is gone when this returns."""
    torch.set_num_threads(args.threads)
    model = Model(load_file(args.checkpoint), args.heads, args.text_table_len, args.attention == "sdpa").eval()
    return model.requires_grad_(False)


def measure(args):
    """Times one pass and prints a JSON line."""
    model = opened(args)
    vocabulary = model.text_embeddings.word_embeddings.num_embeddings
    ids, mask, image = fixed_inputs(model, vocabulary, args.batch)
    grams = Grams(model) if args.grams else None
    run = {
        "image": lambda: model.infer_image_ft(image),
        "text": lambda: model.infer_text_ft(ids, mask),
        "joint": lambda: model.infer(ids, mask, image),
    }[args.which]
    wall, cpu = [], []
    with torch.inference_mode():
        for _ in range(args.rounds + 1):
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
    seconds = statistics.median(wall[1:])
    print(json.dumps({
        "engine": f"torch {torch.__version__} {args.attention}",
        "pass": args.which, "grams": grams is not None,
        "batch": args.batch, "image_size": model.grid * model.patch, "text_len": model.text_len,
        "threads": args.threads, "rounds": args.rounds,
        "seconds": round(seconds, 4), "fastest_seconds": round(min(wall[1:]), 4),
        "per_second": round(args.batch / seconds, 3),
        "cpu_seconds": round(statistics.median(cpu[1:]), 4),
        "peak_rss_bytes": measured.peak_of(),
        "load": round(os.getloadavg()[0], 2),
    }))  # fmt: skip


def outputs(args):
    """Writes fixed inputs and what the passes make of them."""
    model = opened(args)
    ids, mask, image = fixed_inputs(model, model.text_embeddings.word_embeddings.num_embeddings, args.batch)
    with torch.inference_mode():
        text, pixels, joint = model.infer_text_ft(ids, mask), model.infer_image_ft(image), model.infer(ids, mask, image)
    found = {"text_ids": ids, "text_masks": mask, "image": image}
    found |= {"text_ft.text_feats": text[0], "text_ft.cls_feats": text[1]}
    found |= {"image_ft.image_feats": pixels[0], "image_ft.cls_feats": pixels[1]}
    found |= {"vl.text_feats": joint[0], "vl.image_feats": joint[1], "vl.cls_feats": joint[2]}
    save_file({key: value.contiguous() for key, value in found.items()}, args.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("check").add_argument("folder")
    for verb in ("time", "outputs"):
        part = verbs.add_parser(verb)
        part.add_argument("checkpoint")
        if verb == "outputs":
            part.add_argument("out")
        else:
            part.add_argument("--pass", dest="which", choices=("image", "text", "joint"), default="image")
            part.add_argument("--rounds", type=int, default=5)
            part.add_argument("--grams", action="store_true")
        part.add_argument("--batch", type=int, default=2 if verb == "outputs" else 8)
        part.add_argument("--threads", type=int, default=2)
        part.add_argument("--heads", type=int, help="attention heads [default: width / 64]")
        part.add_argument("--text-table-len", type=int, default=196)
        part.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    args = parser.parse_args()
    if args.verb == "check":
        check(args.folder)
    elif args.verb == "time":
        measure(args)
    else:
        outputs(args)


if __name__ == "__main__":
    main()
