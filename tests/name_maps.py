"""Weights under the names of other libraries: what their arrays compute, beside what transformers' classes compute with
what `vlmerge convert --to hf` makes of them. Loading is strict.

    tests/with_torch.sh tests/name_maps.py target/release/vlmerge

Neither TensorFlow nor JAX is needed: their files are arrays. The passes are written here over these arrays, with their
axes.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

import h5py
import msgpack
import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForPreTraining, CLIPConfig, CLIPModel, SiglipModel
from transformers.utils import logging

PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 5
WIDTH, HEADS, FFN, LAYERS, VOCABULARY, LENGTH, PATCH, SIDE = 64, 4, 96, 2, 50, 12, 4, 12
# Sums in another order, in f32, of numbers near 1.
TOLERANCE = 2e-5
rng = np.random.default_rng(SEED)
torch.manual_seed(SEED)
logging.disable_progress_bar()
# Of tokens that the small vocabularies lack.
logging.set_verbosity_error()
IDS = torch.randint(3, VOCABULARY - 1, (3, LENGTH))
PICTURES = torch.randn(3, 3, SIDE, SIDE)


def run(*words, fails=False):
    done = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True)
    if fails != (done.returncode != 0):
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def draw(*shape):
    return (rng.normal(size=shape) * 0.2).astype(np.float32)


def near(found, expected, what):
    worst = float((found - expected).abs().max())
    assert worst <= TOLERANCE, f"{what}: off by {worst}"
    return worst


def strictly(model, folder, config=None):
    more = {} if config is None else {"config": config}
    loaded, info = model.from_pretrained(folder, output_loading_info=True, **more)
    for kind in ["missing_keys", "unexpected_keys", "mismatched_keys"]:
        assert not info[kind], f"{kind}: {info[kind]}"
    return loaded.eval()


def converted(folder, file):
    out = folder / "hf"
    shutil.rmtree(out, ignore_errors=True)
    run("convert", file, out, "--to", "hf")
    return out


# ---- passes over (in, out) matrices ---------------------------------------------------------------------------------


def dense(x, layer):
    kernel, bias = layer
    return x @ kernel + bias


def norm(x, layer, epsilon):
    return F.layer_norm(x, x.shape[-1:], *layer, eps=epsilon)


def attend(x, onto, parts, is_causal=False):
    """`parts`: queries, keys, values and output as (kernel, bias)."""
    split = lambda of: of.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    q, k, v = (split(dense(of, part)) for of, part in zip([x, onto, onto], parts))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    return dense(mixed.transpose(1, 2).flatten(2), parts[3])


def block(x, get, activation, epsilon, is_causal=False):
    y = norm(x, get("norm1"), epsilon)
    x = x + attend(y, y, [get(part) for part in ["q", "k", "v", "out"]], is_causal)
    y = norm(x, get("norm2"), epsilon)
    return x + dense(activation(dense(y, get("fc1"))), get("fc2"))


def patches(kernel):
    """What a convolution (height, width, in, out) makes of the pictures."""
    n = SIDE // PATCH
    parts = PICTURES.reshape(3, 3, n, PATCH, n, PATCH)
    return torch.einsum("bchpwq,pqcd->bhwd", parts, kernel).flatten(1, 2)


# ---- BERT -----------------------------------------------------------------------------------------------------------


def bert_arrays():
    """As TensorFlow names them."""
    arrays = {"bert/embeddings/word_embeddings": draw(VOCABULARY, WIDTH),
              "bert/embeddings/position_embeddings": draw(LENGTH, WIDTH),
              "bert/embeddings/token_type_embeddings": draw(2, WIDTH)}

    def layer(name, *shape):
        arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = draw(*shape), draw(shape[-1])

    def scaling(name):
        arrays[f"{name}/LayerNorm/gamma"], arrays[f"{name}/LayerNorm/beta"] = 1 + draw(WIDTH), draw(WIDTH)

    scaling("bert/embeddings")
    for n in range(LAYERS):
        name = f"bert/encoder/layer_{n}"
        for part in ["query", "key", "value"]:
            layer(f"{name}/attention/self/{part}", WIDTH, WIDTH)
        layer(f"{name}/attention/output/dense", WIDTH, WIDTH)
        scaling(f"{name}/attention/output")
        layer(f"{name}/intermediate/dense", WIDTH, FFN)
        layer(f"{name}/output/dense", FFN, WIDTH)
        scaling(f"{name}/output")
    layer("bert/pooler/dense", WIDTH, WIDTH)
    layer("cls/predictions/transform/dense", WIDTH, WIDTH)
    scaling("cls/predictions/transform")
    arrays["cls/predictions/output_bias"] = draw(VOCABULARY)
    arrays["cls/seq_relationship/output_weights"] = draw(2, WIDTH)
    arrays["cls/seq_relationship/output_bias"] = draw(2)
    return arrays


def bert_pass(arrays):
    """Scores of tokens and of the next sentence."""
    a = {key: torch.from_numpy(value) for key, value in arrays.items()}
    layer = lambda name: (a[f"{name}/kernel"], a[f"{name}/bias"])
    scaled = lambda x, name: norm(x, (a[f"{name}/LayerNorm/gamma"], a[f"{name}/LayerNorm/beta"]), 1e-12)
    words = a["bert/embeddings/word_embeddings"]
    x = words[IDS] + a["bert/embeddings/position_embeddings"] + a["bert/embeddings/token_type_embeddings"][0]
    x = scaled(x, "bert/embeddings")
    for n in range(LAYERS):
        name = f"bert/encoder/layer_{n}"
        parts = [layer(f"{name}/attention/self/{part}") for part in ["query", "key", "value"]]
        x = scaled(x + attend(x, x, [*parts, layer(f"{name}/attention/output/dense")]), f"{name}/attention/output")
        wide = F.gelu(dense(x, layer(f"{name}/intermediate/dense")))
        x = scaled(x + dense(wide, layer(f"{name}/output/dense")), f"{name}/output")
    pooled = torch.tanh(dense(x[:, 0], layer("bert/pooler/dense")))
    tokens = scaled(F.gelu(dense(x, layer("cls/predictions/transform/dense"))), "cls/predictions/transform")
    tokens = tokens @ words.T + a["cls/predictions/output_bias"]
    return tokens, pooled @ a["cls/seq_relationship/output_weights"].T + a["cls/seq_relationship/output_bias"]


def check_bert(folder, arrays, what):
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                        intermediate_size=FFN, max_position_embeddings=LENGTH)
    model = strictly(BertForPreTraining, folder, config)
    with torch.no_grad():
        found = model(IDS)
    tokens, following = bert_pass(arrays)
    worst = max(near(found.prediction_logits, tokens, what), near(found.seq_relationship_logits, following, what))
    print(f"{what}: all names known, largest difference {worst:.1e}")


def tensorflow(folder):
    arrays = bert_arrays()
    beside = {"global_step": np.int64(7)}
    for key in ["bert/pooler/dense/kernel", "bert/pooler/dense/bias"]:
        beside |= {f"{key}/adam_m": draw(2), f"{key}/adam_v": draw(2)}
    file = folder / "bert.npz"
    np.savez(file, **arrays, **beside)
    check_bert(converted(folder, file), arrays, "TensorFlow's BERT in .npz")
    np.savez(file, **{f"{key}:0": value for key, value in arrays.items()})
    check_bert(converted(folder, file), arrays, "the same with the numbers of outputs")

    np.savez(file, **arrays, **{"bert/encoder/layer_0/adapter/kernel": draw(2, 2), "new": draw(2)})
    told = run("convert", file, folder / "refused", "--to", "hf", fails=True)
    assert "`bert/encoder/layer_0/adapter/kernel`, `new`" in told, told
    assert not (folder / "refused").exists()
    broken = dict(arrays)
    broken["bert/pooler/dense/kernel"] = draw(WIDTH)
    np.savez(file, **broken)
    told = run("convert", file, folder / "refused", "--to", "hf", fails=True)
    assert "`bert/pooler/dense/kernel`" in told and "(in, out)" in told, told


def packed(array):
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes("C")), use_bin_type=True))


def nested(arrays):
    tree = {}
    for key, value in arrays.items():
        *parts, last = key.split("/")
        place = tree
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = packed(value)
    return tree


def flax_bert(folder):
    arrays = bert_arrays()
    spelled = {}
    for key, value in arrays.items():
        name = key.replace("/gamma", "/scale").replace("/beta", "/bias").replace("/layer_", "/layer/")
        if name.endswith("_embeddings"):
            name += "/embedding"
        if name == "cls/seq_relationship/output_weights":
            name, value = "cls/seq_relationship/kernel", np.ascontiguousarray(value.T)
        name = name.replace("seq_relationship/output_bias", "seq_relationship/bias")
        spelled[name.replace("predictions/output_bias", "predictions/bias")] = value
    file = folder / "flax_model.msgpack"
    file.write_bytes(msgpack.packb(nested(spelled), strict_types=True))
    check_bert(converted(folder, file), arrays, "Flax's BERT in .msgpack")
    file.write_bytes(msgpack.packb(nested({**spelled, "bert/extra/kernel": draw(2, 2)}), strict_types=True))
    assert "`bert.extra.weight`" in run("convert", file, folder / "refused", "--to", "hf", fails=True)


def saved(file, arrays, group, model):
    """As Keras saves the variables of transformers' TensorFlow classes: each under its layer and its full name."""
    with h5py.File(file, "w") as out:
        out.attrs["layer_names"] = [group]
        for key, value in arrays.items():
            out[f"{key.split('/')[0] if '___' in key else group}/{model}/{key}:0"] = value


def keras_bert(folder):
    arrays = bert_arrays()
    spelled = {}
    for key, value in arrays.items():
        name = key.replace("/layer_", "/layer_._").replace("cls/predictions/output_bias", "cls/predictions/bias")
        if name.endswith("word_embeddings"):
            name += "/weight"
        elif name.endswith("_embeddings"):
            name += "/embeddings"
        if name == "cls/seq_relationship/output_weights":
            name, value = "cls/seq_relationship/kernel", np.ascontiguousarray(value.T)
        name = name.replace("seq_relationship/output_bias", "seq_relationship/bias")
        name = name.replace("cls/predictions", "mlm___cls/predictions").replace("cls/seq", "nsp___cls/seq")
        spelled[name] = value
    file = folder / "tf_model.h5"
    saved(file, spelled, "bert", "tf_bert_for_pre_training")
    check_bert(converted(folder, file), arrays, "transformers' TensorFlow BERT in .h5")


# ---- CLIP -----------------------------------------------------------------------------------------------------------


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def clip_arrays():
    """As transformers' Flax class names them."""
    arrays = {"logit_scale": np.array(2.5, np.float32), "visual_projection/kernel": draw(WIDTH, 32),
              "text_projection/kernel": draw(WIDTH, 32),
              "text_model/embeddings/token_embedding/embedding": draw(VOCABULARY, WIDTH),
              "text_model/embeddings/position_embedding/embedding": draw(LENGTH, WIDTH),
              "vision_model/embeddings/class_embedding": draw(WIDTH),
              "vision_model/embeddings/patch_embedding/kernel": draw(PATCH, PATCH, 3, WIDTH),
              "vision_model/embeddings/position_embedding/embedding": draw((SIDE // PATCH) ** 2 + 1, WIDTH)}

    def scaling(name):
        arrays[f"{name}/scale"], arrays[f"{name}/bias"] = 1 + draw(WIDTH), draw(WIDTH)

    for tower in ["text_model", "vision_model"]:
        for n in range(LAYERS):
            name = f"{tower}/encoder/layers/{n}"
            shapes = {f"self_attn/{part}_proj": (WIDTH, WIDTH) for part in ["q", "k", "v", "out"]}
            for part, shape in {**shapes, "mlp/fc1": (WIDTH, FFN), "mlp/fc2": (FFN, WIDTH)}.items():
                arrays[f"{name}/{part}/kernel"], arrays[f"{name}/{part}/bias"] = draw(*shape), draw(shape[-1])
            scaling(f"{name}/layer_norm1")
            scaling(f"{name}/layer_norm2")
    for name in ["text_model/final_layer_norm", "vision_model/pre_layrnorm", "vision_model/post_layernorm"]:
        scaling(name)
    return arrays


def clip_pass(arrays):
    """Directions of the pictures and of the texts, whose last token is the largest."""
    a = {key: torch.from_numpy(value) for key, value in arrays.items()}
    pair = lambda name, first: (a[f"{name}/{first}"], a[f"{name}/bias"])
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "fc1": "mlp/fc1", "fc2": "mlp/fc2",
             **{part: f"self_attn/{part}_proj" for part in ["q", "k", "v", "out"]}}

    def blocks(x, tower, is_causal):
        for n in range(LAYERS):
            get = lambda part: pair(f"{tower}/encoder/layers/{n}/{names[part]}",
                                    "scale" if part.startswith("norm") else "kernel")
            x = block(x, get, quick_gelu, 1e-5, is_causal)
        return x

    scaled = lambda x, name: norm(x, pair(name, "scale"), 1e-5)
    x = patches(a["vision_model/embeddings/patch_embedding/kernel"])
    first = a["vision_model/embeddings/class_embedding"].expand(3, 1, -1)
    x = torch.cat([first, x], 1) + a["vision_model/embeddings/position_embedding/embedding"]
    x = blocks(scaled(x, "vision_model/pre_layrnorm"), "vision_model", False)
    pictures = scaled(x[:, 0], "vision_model/post_layernorm") @ a["visual_projection/kernel"]
    x = a["text_model/embeddings/token_embedding/embedding"][texts()]
    x = blocks(x + a["text_model/embeddings/position_embedding/embedding"], "text_model", True)
    texts_ = scaled(x, "text_model/final_layer_norm")[:, -1] @ a["text_projection/kernel"]
    return F.normalize(pictures, dim=-1), F.normalize(texts_, dim=-1)


def texts():
    ids = IDS.clone()
    ids[:, -1] = VOCABULARY - 1
    return ids


def clip_config():
    tower = {"hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
             "projection_dim": 32}
    return CLIPConfig(
        projection_dim=32,
        vision_config={**tower, "image_size": SIDE, "patch_size": PATCH},
        text_config={**tower, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "eos_token_id": VOCABULARY - 1,
                     "bos_token_id": 0, "pad_token_id": 1},
    )


def check_towers(model, expected, what):
    with torch.no_grad():
        found = model(input_ids=texts(), pixel_values=PICTURES)
    worst = max(near(found.image_embeds, expected[0], what), near(found.text_embeds, expected[1], what))
    print(f"{what}: all names known, largest difference {worst:.1e}")


def flax_clip(folder):
    arrays = clip_arrays()
    file = folder / "flax_model.msgpack"
    file.write_bytes(msgpack.packb(nested(arrays), strict_types=True))
    model = strictly(CLIPModel, converted(folder, file), clip_config())
    check_towers(model, clip_pass(arrays), "Flax's CLIP in .msgpack")


def keras_clip(folder):
    arrays = clip_arrays()
    spelled = {}
    for key, value in arrays.items():
        name = key.replace("/layers/", "/layers_._").replace("position_embedding/embedding", "position_embedding/embeddings")
        name = name.replace("token_embedding/embedding", "token_embedding/weight")
        if "norm" in name:
            name = name.replace("/scale", "/gamma").replace("/bias", "/beta")
        spelled[f"clip/{name}"] = value.reshape(1) if key == "logit_scale" else value
    file = folder / "tf_model.h5"
    saved(file, spelled, "clip", "tf_clip_model")
    model = strictly(CLIPModel, converted(folder, file), clip_config())
    assert model.logit_scale == 2.5
    check_towers(model, clip_pass(arrays), "transformers' TensorFlow CLIP in .h5")


def openai_clip(folder):
    """OpenAI's names in .npz: queries, keys and values packed as (out, in), projections as (in, out)."""
    arrays = clip_arrays()
    turned = lambda name: np.ascontiguousarray(arrays[f"{name}/kernel"].T)
    spelled = {"logit_scale": arrays["logit_scale"], "text_projection": arrays["text_projection/kernel"],
               "visual.proj": arrays["visual_projection/kernel"],
               "token_embedding.weight": arrays["text_model/embeddings/token_embedding/embedding"],
               "positional_embedding": arrays["text_model/embeddings/position_embedding/embedding"],
               "visual.class_embedding": arrays["vision_model/embeddings/class_embedding"],
               "visual.positional_embedding": arrays["vision_model/embeddings/position_embedding/embedding"]}
    kernel = arrays["vision_model/embeddings/patch_embedding/kernel"]
    spelled["visual.conv1.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    norms = {"ln_final": "text_model/final_layer_norm", "visual.ln_pre": "vision_model/pre_layrnorm",
             "visual.ln_post": "vision_model/post_layernorm"}
    for prefix, tower in [("", "text_model"), ("visual.", "vision_model")]:
        for n in range(LAYERS):
            to, name = f"{prefix}transformer.resblocks.{n}", f"{tower}/encoder/layers/{n}"
            norms |= {f"{to}.ln_1": f"{name}/layer_norm1", f"{to}.ln_2": f"{name}/layer_norm2"}
            own = [f"{name}/self_attn/{part}_proj" for part in ["q", "k", "v"]]
            spelled[f"{to}.attn.in_proj_weight"] = np.concatenate([turned(part) for part in own])
            spelled[f"{to}.attn.in_proj_bias"] = np.concatenate([arrays[f"{part}/bias"] for part in own])
            for key, part in [("attn.out_proj", "self_attn/out_proj"), ("mlp.c_fc", "mlp/fc1"), ("mlp.c_proj", "mlp/fc2")]:
                spelled[f"{to}.{key}.weight"] = turned(f"{name}/{part}")
                spelled[f"{to}.{key}.bias"] = arrays[f"{name}/{part}/bias"]
    for to, name in norms.items():
        spelled[f"{to}.weight"], spelled[f"{to}.bias"] = arrays[f"{name}/scale"], arrays[f"{name}/bias"]
    file = folder / "clip.npz"
    np.savez(file, **spelled)
    model = strictly(CLIPModel, converted(folder, file), clip_config())
    check_towers(model, clip_pass(arrays), "OpenAI's CLIP in .npz")


# ---- SigLIP ---------------------------------------------------------------------------------------------------------


def siglip_arrays():
    """As big_vision names them; attention has an axis of heads."""
    width = WIDTH // HEADS
    arrays = {"t": draw(1), "b": draw(1), "img/embedding/kernel": draw(PATCH, PATCH, 3, WIDTH),
              "img/embedding/bias": draw(WIDTH), "img/pos_embedding": draw(1, (SIDE // PATCH) ** 2, WIDTH),
              "img/MAPHead_0/probe": draw(1, 1, WIDTH), "txt/Embed_0/embedding": draw(VOCABULARY, WIDTH),
              "txt/pos_embedding": draw(1, LENGTH, WIDTH), "txt/head/kernel": draw(WIDTH, WIDTH), "txt/head/bias": draw(WIDTH)}

    def scaling(name):
        arrays[f"{name}/scale"], arrays[f"{name}/bias"] = 1 + draw(WIDTH), draw(WIDTH)

    def attention(name):
        for part in ["query", "key", "value"]:
            arrays[f"{name}/{part}/kernel"], arrays[f"{name}/{part}/bias"] = draw(WIDTH, HEADS, width), draw(HEADS, width)
        arrays[f"{name}/out/kernel"], arrays[f"{name}/out/bias"] = draw(HEADS, width, WIDTH), draw(WIDTH)

    def mlp(name):
        for n, shape in enumerate([(WIDTH, FFN), (FFN, WIDTH)]):
            arrays[f"{name}/Dense_{n}/kernel"], arrays[f"{name}/Dense_{n}/bias"] = draw(*shape), draw(shape[-1])

    for tower in ["img/Transformer", "txt/Encoder_0"]:
        for n in range(LAYERS):
            name = f"{tower}/encoderblock_{n}"
            scaling(f"{name}/LayerNorm_0")
            scaling(f"{name}/LayerNorm_1")
            attention(f"{name}/MultiHeadDotProductAttention_0")
            mlp(f"{name}/MlpBlock_0")
        scaling(f"{tower}/encoder_norm")
    attention("img/MAPHead_0/MultiHeadDotProductAttention_0")
    scaling("img/MAPHead_0/LayerNorm_0")
    mlp("img/MAPHead_0/MlpBlock_0")
    return arrays


def siglip_pass(arrays):
    a = {key: torch.from_numpy(value) for key, value in arrays.items()}
    activation = lambda x: F.gelu(x, approximate="tanh")

    def part(name):
        """Kernel and bias as matrices: heads come after each other."""
        kernel, bias = a.get(f"{name}/kernel", a.get(f"{name}/scale")), a[f"{name}/bias"]
        if name.endswith("/out"):
            kernel = kernel.flatten(0, 1)
        elif kernel.dim() == 3:
            kernel = kernel.flatten(1)
        return kernel, bias.flatten()

    names = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_1", "fc1": "MlpBlock_0/Dense_0", "fc2": "MlpBlock_0/Dense_1"}
    heads = {"q": "query", "k": "key", "v": "value", "out": "out"}
    names |= {short: f"MultiHeadDotProductAttention_0/{name}" for short, name in heads.items()}

    def tower(x, name):
        for n in range(LAYERS):
            x = block(x, lambda key: part(f"{name}/encoderblock_{n}/{names[key]}"), activation, 1e-6)
        return norm(x, part(f"{name}/encoder_norm"), 1e-6)

    x = patches(a["img/embedding/kernel"]) + a["img/embedding/bias"] + a["img/pos_embedding"]
    x = tower(x, "img/Transformer")
    head = lambda key: part(f"img/MAPHead_0/{names[key]}")
    x = attend(a["img/MAPHead_0/probe"].expand(3, 1, -1), x, [head(key) for key in heads])
    y = norm(x, head("norm1"), 1e-6)
    pictures = (x + dense(activation(dense(y, head("fc1"))), head("fc2")))[:, 0]
    x = tower(a["txt/Embed_0/embedding"][texts()] + a["txt/pos_embedding"], "txt/Encoder_0")
    return F.normalize(pictures, dim=-1), F.normalize(dense(x[:, -1], part("txt/head")), dim=-1)


def siglip(folder):
    arrays = siglip_arrays()
    expected = siglip_pass(arrays)
    file = folder / "siglip.npz"
    np.savez(file, **{f"params/{key}": value for key, value in arrays.items()})
    check_towers(strictly(SiglipModel, converted(folder, file)), expected, "big_vision's SigLIP in .npz")
    stacked = {}
    for key, value in arrays.items():
        if "encoderblock_0" in key:
            layers = [arrays[key.replace("encoderblock_0", f"encoderblock_{n}")] for n in range(LAYERS)]
            stacked[key.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
        elif "encoderblock_" not in key:
            stacked[key] = value
    np.savez(file, **stacked)
    check_towers(strictly(SiglipModel, converted(folder, file)), expected, "the same with all layers in one array")


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    for check in [tensorflow, flax_bert, keras_bert, flax_clip, keras_clip, openai_clip, siglip]:
        check(folder)
