"""TorchScript archives: a small CLIP, traced and scripted by torch in half precision, is read as its state dict, and
`expand` makes the same FLM of it as of the state dict, and of CLIP as transformers saves it. Of one with the buffers of
OpenAI's archives `forward` gives what torch gives, and so does transformers with what `convert` writes.

    tests/with_torch.sh tests/torchscript.py target/release/vlmerge
    tests/with_torch.sh tests/torchscript.py --write fixtures/torchscript
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import warnings
import zipfile

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import torch
from safetensors.torch import load_file, save_file
from torch import nn

WIDTH, TEXT_WIDTH, HEADS, BLOCKS, PATCH, SIDE, WORDS, LENGTH = 16, 8, 2, 3, 4, 12, 40, 7


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, HEADS)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, blocks):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width) for _ in range(blocks)))

    def forward(self, x):
        return self.resblocks(x)


class Visual(nn.Module):
    def __init__(self):
        super().__init__()
        # A convolution keeps a list of numbers beside its weights.
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = Transformer(WIDTH, BLOCKS)
        self.ln_post = nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.randn(WIDTH, TEXT_WIDTH))

    def forward(self, image):
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_post(self.transformer(self.ln_pre(x).transpose(0, 1)).transpose(0, 1))
        return x[:, 0] @ self.proj


class Clip(nn.Module):
    """A CLIP under OpenAI's names, with numbers as buffers as their archives have them."""

    def __init__(self):
        super().__init__()
        self.visual = Visual()
        self.transformer = Transformer(TEXT_WIDTH, 1)
        self.token_embedding = nn.Embedding(WORDS, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, TEXT_WIDTH))
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.randn(TEXT_WIDTH, TEXT_WIDTH))
        self.logit_scale = nn.Parameter(torch.ones([]))
        self.register_buffer("input_resolution", torch.tensor(SIDE))
        self.register_buffer("context_length", torch.tensor(LENGTH))

    def forward(self, image, text):
        x = self.token_embedding(text) + self.positional_embedding
        x = self.ln_final(self.transformer(x.transpose(0, 1)).transpose(0, 1))
        return self.visual(image), x[:, -1] @ self.text_projection, self.logit_scale


def clip():
    torch.manual_seed(7)
    model = Clip().eval()
    # So that half precision holds every number exactly.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn(parameter.shape)).half().float())
    return model


def traced(model, path):
    image, text = torch.randn(1, 3, SIDE, SIDE), torch.zeros(1, LENGTH, dtype=torch.long)
    module = torch.jit.trace(model, (image, text), check_trace=False)
    # As the published archives are: traced in f32, and then cut to half precision.
    torch.jit.save(module.half(), path)


def scripted(model, path):
    torch.jit.save(torch.jit.script(model).half(), path)


def without_places(path):
    """Takes out where on this machine each line of code came from; torch still loads the rest."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist() if ".debug_pkl" not in entry.filename]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries:
            plain = zipfile.ZipInfo(entry.filename, date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(plain, content, compress_type=entry.compress_type)
    torch.jit.load(path)


def roberta():
    torch.manual_seed(8)
    width = TEXT_WIDTH
    tensors = {
        "embeddings.word_embeddings.weight": torch.randn(WORDS, width),
        "embeddings.position_embeddings.weight": torch.randn(LENGTH + 2, width),
        "embeddings.token_type_embeddings.weight": torch.randn(1, width),
        "embeddings.LayerNorm.weight": torch.randn(width),
        "embeddings.LayerNorm.bias": torch.randn(width),
    }
    for layer in range(2):
        for name, shape in [
            ("attention.self.query", (width, width)),
            ("attention.self.key", (width, width)),
            ("attention.self.value", (width, width)),
            ("attention.output.dense", (width, width)),
            ("attention.output.LayerNorm", (width,)),
            ("intermediate.dense", (4 * width, width)),
            ("output.dense", (width, 4 * width)),
            ("output.LayerNorm", (width,)),
        ]:
            tensors[f"encoder.layer.{layer}.{name}.weight"] = torch.randn(shape)
            tensors[f"encoder.layer.{layer}.{name}.bias"] = torch.randn(shape[0])
    return tensors


def transformers_clip(model, folder):
    """The same weights in transformers' CLIP, whole and its image part alone, as it saves them."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

    config = CLIPConfig(
        text_config=dict(
            hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=1, num_attention_heads=HEADS,
            vocab_size=WORDS, max_position_embeddings=LENGTH, hidden_act="gelu", projection_dim=TEXT_WIDTH,
        ),
        vision_config=dict(
            hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=HEADS,
            image_size=SIDE, patch_size=PATCH, hidden_act="gelu", projection_dim=TEXT_WIDTH,
        ),
        projection_dim=TEXT_WIDTH,
    )
    whole = CLIPModel(config).eval()
    weights = model.state_dict()
    own = whole.state_dict()
    for tower, prefix in [("vision_model", "visual."), ("text_model", "")]:
        n_blocks = BLOCKS if prefix else 1
        for block in range(n_blocks):
            theirs, ours = f"{tower}.encoder.layers.{block}.", f"{prefix}transformer.resblocks.{block}."
            for end in ["weight", "bias"]:
                parts = weights[f"{ours}attn.in_proj_{end}"].chunk(3)
                for part, values in zip("qkv", parts):
                    own[f"{theirs}self_attn.{part}_proj.{end}"].copy_(values)
                for their, our in [
                    ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
                ]:
                    own[f"{theirs}{their}.{end}"].copy_(weights[f"{ours}{our}.{end}"])
    for their, our in [
        ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("vision_model.pre_layrnorm.weight", "visual.ln_pre.weight"),
        ("vision_model.pre_layrnorm.bias", "visual.ln_pre.bias"),
        ("vision_model.post_layernorm.weight", "visual.ln_post.weight"),
        ("vision_model.post_layernorm.bias", "visual.ln_post.bias"),
        ("visual_projection.weight", "visual.proj"),
        ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.final_layer_norm.weight", "ln_final.weight"),
        ("text_model.final_layer_norm.bias", "ln_final.bias"),
    ]:
        value = weights[our]
        own[their].copy_(value.T if our == "visual.proj" else value)
    # That the two programs compute the same says that the names above are right.
    image = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        pooled = whole.vision_model(pixel_values=image).pooler_output
        features = whole.visual_projection(pooled)
        difference = (features - model.visual(image)).abs().max()
    assert difference < 1e-4, difference
    whole.save_pretrained(folder / "clip")
    vision = CLIPVisionModelWithProjection(config.vision_config)
    vision.vision_model.load_state_dict(whole.vision_model.state_dict())
    vision.save_pretrained(folder / "vision")


def vlmerge(*arguments):
    run = subprocess.run([PROGRAM, *map(str, arguments), "--quiet"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def expanded(source, folder):
    out = folder / f"flm of {source.parent.name} {source.name}.safetensors"
    sizes = ["--text-blocks", "2", "--cross-blocks", "1", "--seed", "3"]
    vlmerge("expand", source, out, "--to", "flm-pretrain", "--text", folder / "roberta.safetensors", *sizes)
    return load_file(out)


def read_as_the_state_dict(path, model, folder):
    out = folder / "read.safetensors"
    vlmerge("convert", path, out, "--force")
    found, expected = load_file(out), {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, tensor in expected.items():
        assert same(found[name], tensor), name


def refused(path, *words):
    run = subprocess.run([PROGRAM, "inspect", str(path)], capture_output=True, text=True)
    assert run.returncode != 0, path
    for word in words:
        assert word in run.stderr, run.stderr


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class OpenaiBlock(nn.Module):
    """A block of OpenAI's models: a head for each 64 of the width, QuickGELU."""

    def __init__(self, width, inner, mask):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, inner))
        self.mlp.add_module("gelu", QuickGelu())
        self.mlp.add_module("c_proj", nn.Linear(inner, width))
        self.ln_2 = nn.LayerNorm(width)
        self.attn_mask = mask

    def forward(self, x):
        y = self.ln_1(x)
        mask = self.attn_mask.to(x) if self.attn_mask is not None else None
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class OpenaiTower(nn.Module):
    def __init__(self, width, inner, blocks, mask=None):
        super().__init__()
        self.resblocks = nn.Sequential(*(OpenaiBlock(width, inner, mask) for _ in range(blocks)))

    def forward(self, x):
        return self.resblocks(x)


class OpenaiVisual(nn.Module):
    def __init__(self, width, inner, joint):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, PATCH, stride=PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = OpenaiTower(width, inner, 2)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, joint) / width**0.5)

    def forward(self, image):
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x)))[:, 0] @ self.proj


class Openai(nn.Module):
    """A CLIP as OpenAI's archives hold them, with all three numbers as buffers."""

    def __init__(self, width=128, text_width=64, inner=32, joint=16):
        super().__init__()
        self.visual = OpenaiVisual(width, inner, joint)
        mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
        self.transformer = OpenaiTower(text_width, inner, 1, mask)
        self.token_embedding = nn.Embedding(WORDS, text_width)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.randn(text_width, joint) / text_width**0.5)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        for name, number in [("input_resolution", SIDE), ("context_length", LENGTH), ("vocab_size", WORDS)]:
            self.register_buffer(name, torch.tensor(number))

    def features(self, image, text):
        x = self.token_embedding(text) + self.positional_embedding
        x = self.ln_final(self.transformer(x))
        return self.visual(image), x[torch.arange(x.shape[0]), text.argmax(dim=-1)] @ self.text_projection

    def forward(self, image, text):
        return self.features(image, text)


def openai():
    """The model with weights that half precision holds, but for norms, which stay in single precision."""
    torch.manual_seed(11)
    model = Openai().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_((parameter + 0.1 * torch.randn(parameter.shape)).half().float())
    return model


def openai_archive(path):
    """As published: matrices in half precision, norms in single."""
    model = openai()
    image, text = torch.randn(1, 3, SIDE, SIDE), torch.zeros(1, LENGTH, dtype=torch.long)
    module = torch.jit.trace(model, (image, text), check_trace=False)
    for name, parameter in module.named_parameters():
        if "ln_" not in name:
            parameter.data = parameter.data.half()
    torch.jit.save(module, path)


def openai_numbers():
    """Inputs, and what torch makes of them."""
    model = openai()
    torch.manual_seed(12)
    image = torch.randn(3, 3, SIDE, SIDE)
    text = torch.randint(2, WORDS - 1, (3, LENGTH))
    for row, end in enumerate([LENGTH - 1, 3, 5]):
        text[row, 0], text[row, end], text[row, end + 1 :] = 1, WORDS - 1, 0
    with torch.no_grad():
        images, texts = model.features(image, text)
        unit = [x / x.norm(dim=-1, keepdim=True) for x in (images, texts)]
        logits = model.logit_scale.exp() * unit[0] @ unit[1].T
    inputs = {"pixel_values": image, "input_ids": text}
    return inputs, {"image_features": images, "text_features": texts, "logits_per_image": logits}


def openai_is_run_and_converted(folder):
    archive, inputs = folder / "openai.pt", folder / "inputs.safetensors"
    openai_archive(archive)
    given, expected = openai_numbers()
    save_file(given, inputs)
    vlmerge("forward", archive, "--inputs", inputs, "--pass", "unmasked", "--out", folder / "found.safetensors")
    found = load_file(folder / "found.safetensors")
    for name, tensor in expected.items():
        difference = (found[name] - tensor).abs().max()
        assert difference < 1e-4, (name, difference)
    from transformers import CLIPModel

    vlmerge("convert", archive, f"{folder}/hf/", "--to", "hf")
    theirs = CLIPModel.from_pretrained(folder / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        out = theirs(input_ids=given["input_ids"], pixel_values=given["pixel_values"])
    difference = (out.logits_per_image - expected["logits_per_image"]).abs().max()
    assert difference < 1e-4, difference


class Holder(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.own(x) if hasattr(self, "own") else x


class Lists(nn.Module):
    numbers: list[int]
    flags: list[bool]
    scales: list[float]
    names: dict[str, int]
    kept: list[torch.Tensor]

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 2)
        self.numbers, self.flags, self.scales = [1, 2], [True], [0.5]
        self.names, self.kept = {"a": 1}, [torch.ones(2), torch.zeros(1)]

    def forward(self, x):
        return self.line(x) + self.kept[0] * self.scales[0]


def main():
    model = clip()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        save_file(roberta(), folder / "roberta.safetensors")
        save_file(model.state_dict(), folder / "clip.safetensors")
        expected = expanded(folder / "clip.safetensors", folder)
        assert expected["vit_model.visual.conv1.weight"].dtype == torch.float32
        for way in [traced, scripted]:
            path = folder / f"{way.__name__}.pt"
            way(clip(), path)
            read_as_the_state_dict(path, model, folder)
            found = expanded(path, folder)
            assert found.keys() == expected.keys()
            assert all(same(found[name], tensor) for name, tensor in expected.items()), way
        openai_is_run_and_converted(folder)
        transformers_clip(model, folder)
        for part in ["clip", "vision"]:
            found = expanded(folder / part / "model.safetensors", folder)
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                # The image part alone has no text part, of which an FLM keeps what it never uses.
                is_of_text = name.startswith(("vit_model.positional_embedding", "vit_model.ln_final."))
                if not (part == "vision" and is_of_text):
                    assert same(found[name], tensor), (part, name)
        # Lists and dictionaries of a script stand with their types beside them.
        lists = torch.jit.script(Lists())
        torch.jit.save(lists, folder / "lists.pt")
        out = folder / "lists.safetensors"
        vlmerge("convert", folder / "lists.pt", out)
        assert set(load_file(out)) == {"line.weight", "line.bias", "kept.0", "kept.1"}, set(load_file(out))
        # What has no names, and what only code can read.
        frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(2, 2)).eval()))
        torch.jit.save(frozen, folder / "frozen.pt")
        refused(folder / "frozen.pt", "frozen.pt", "no tensors by name", "frozen")
        torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
        quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), dtype=torch.qint8)
        torch.jit.save(torch.jit.script(quantized), folder / "quantized.pt")
        refused(folder / "quantized.pt", "quantized.pt", "0._packed_params")
    print("TorchScript archives are read as their state dicts, and CLIP by three spellings makes one FLM")


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        target = pathlib.Path(sys.argv[2])
        target.mkdir(parents=True, exist_ok=True)
        traced(clip(), target / "clip_half.pt")
        without_places(target / "clip_half.pt")
        halves = {k: v.half() if v.is_floating_point() else v for k, v in clip().state_dict().items()}
        save_file(halves, target / "clip_half.safetensors")
        openai_archive(target / "openai.pt")
        without_places(target / "openai.pt")
        inputs, outputs = openai_numbers()
        save_file(inputs, target / "openai_inputs.safetensors")
        save_file(outputs, target / "openai_outputs.safetensors")
    else:
        PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
        main()
