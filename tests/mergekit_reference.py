#!/usr/bin/env python3
"""Writes fixtures/mergekit: small models and what mergekit 0.1.5 makes of them, in float32 on a CPU.

    tests/with_torch.sh tests/mergekit_reference.py           writes the fixtures anew
    tests/with_torch.sh tests/mergekit_reference.py PROGRAM   compares PROGRAM with mergekit, here and now

Each case is a recipe that mergekit runs as it stands. Paths in it are relative to fixtures/mergekit.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy
import torch
import transformers
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file, save_file

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "mergekit"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 11,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
SEED = 7


def shapes():
    hidden, inner, vocabulary = 8, 12, 16
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(CONFIG["num_hidden_layers"]):
        start = f"model.layers.{layer}"
        for part in "qkvo":
            yield f"{start}.self_attn.{part}_proj.weight", (hidden, hidden)
        yield f"{start}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{start}.mlp.up_proj.weight", (inner, hidden)
        yield f"{start}.mlp.down_proj.weight", (hidden, inner)
        yield f"{start}.input_layernorm.weight", (hidden,)
        yield f"{start}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def write_models():
    random = numpy.random.default_rng(1)
    base = {name: random.normal(0, 0.5, shape).astype("float32") for name, shape in shapes()}
    models = {"base": base}
    for name, spread in [("a", 0.1), ("b", 0.3), ("c", 0.6)]:
        models[name] = {
            key: (value + random.normal(0, spread, value.shape)).astype("float32") for key, value in base.items()
        }
        # Some elements that were not trained, as in real fine-tunes.
        for key, value in models[name].items():
            untouched = random.random(value.shape) < 0.2
            value[untouched] = base[key][untouched]
    for name, tensors in models.items():
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: torch.from_numpy(value) for key, value in tensors.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


# Models whose vocabularies differ: tokens in other orders, tokens that others lack, an added token.
WORDS = {
    "words_base": (["<unk>", "the", "cat", "sat", "on", "mat"], []),
    "words_a": (["<unk>", "cat", "the", "dog", "sat", "ran"], ["<a>"]),
    "words_b": (["mat", "<unk>", "the", "dog", "bird", "ran", "cat"], []),
}


def write_words():
    random = numpy.random.default_rng(2)
    for name, (words, added) in WORDS.items():
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        tokens = words + added
        config = {**CONFIG, "num_hidden_layers": 1, "vocab_size": len(tokens)}
        shapes_of = {key: shape for key, shape in shapes() if "layers." not in key or "layers.0." in key}
        tensors = {}
        for key, shape in shapes_of.items():
            rows = len(tokens) if key in VOCABULARY else shape[0]
            tensors[key] = torch.from_numpy(random.normal(0, 0.5, (rows, *shape[1:])).astype("float32"))
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        settings = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        entries = [{"id": words.index("<unk>"), "content": "<unk>", **settings}]
        entries += [{"id": len(words) + index, "content": token, **settings} for index, token in enumerate(added)]
        tokenizer = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": entries,
            "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)}, "unk_token": "<unk>"},
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=2) + "\n")
        tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


VOCABULARY = ["model.embed_tokens.weight", "lm_head.weight"]


def our_tokens(recipe):
    """The tokens of a recipe with `tokenizer_source`, in the order in which vlmerge has them."""
    first = recipe.get("base_model", recipe["models"][0]["model"])
    words, added = WORDS[first]
    tokens = words + added
    if recipe["tokenizer_source"] == "union":
        for model in recipe["models"]:
            words, added = WORDS[model["model"]]
            # mergekit's order of new tokens is that of a hash table, so it cannot be taken.
            tokens += [word for word in words if word not in tokens]
            tokens += [token for token in added if token not in tokens]
    return tokens


def in_our_order(recipe, merged, folder):
    """mergekit's tensors with the rows of tokens where vlmerge has them."""
    if "tokenizer_source" not in recipe:
        return merged
    theirs = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    tokens = our_tokens(recipe)
    assert sorted(theirs) == sorted(tokens), "other tokens"
    order = [theirs[token] for token in tokens]
    return {key: value[order] if key in VOCABULARY else value for key, value in merged.items()}


def models(*names, **each):
    """Entries of a recipe; keyword arguments hold a value for each model."""
    entries = []
    for index, name in enumerate(names):
        entry = {"model": name}
        parameters = {key: values[index] for key, values in each.items()}
        if parameters:
            entry["parameters"] = parameters
        entries.append(entry)
    return entries


def delta(method, density=(0.5, 0.6, 0.7), weight=(0.5, 0.3, 0.4), extra=None, **shared):
    each = {"weight": list(weight)}
    if density:
        each["density"] = list(density)
    each.update(extra or {})
    recipe = {"merge_method": method, "base_model": "base", "models": models("a", "b", "c", **each)}
    if shared:
        recipe["parameters"] = shared
    return recipe


def cases():
    weights = {"weight": [0.5, 0.3, 0.4]}
    yield "linear", {"merge_method": "linear", "models": models("a", "b", "c", **weights)}
    yield "linear_as_given", {
        "merge_method": "linear",
        "models": models("a", "b", weight=[0.5, 0.3]),
        "parameters": {"normalize": False},
    }
    yield "slerp_gradients", {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 11]}, {"model": "b", "layer_range": [0, 11]}]}
        ],
        "parameters": {
            "t": [
                {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
                {"value": 0.5},
            ]
        },
    }
    yield "slerp_models", {"merge_method": "slerp", "base_model": "base", "models": models("base", "c"), "parameters": {"t": 0.3}}
    yield "nuslerp", {"merge_method": "nuslerp", "models": models("a", "c", weight=[0.4, 0.8])}
    yield "nuslerp_base", {"merge_method": "nuslerp", "base_model": "base", "models": models("a", "c", weight=[0.4, 0.8])}
    for name, row_wise in [("nuslerp_lines", False), ("nuslerp_columns", True)]:
        yield name, {
            "merge_method": "nuslerp",
            "models": models("b", "c", weight=[0.4, 0.8]),
            "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise},
        }
    yield "multislerp", {"merge_method": "multislerp", "models": models("a", "b", "c", **weights)}
    yield "multislerp_base", {"merge_method": "multislerp", "base_model": "base", "models": models("a", "b", "c", **weights)}
    yield "karcher", {"merge_method": "karcher", "models": models("a", "b", "c")}
    yield "task_arithmetic", delta("task_arithmetic", density=None, **{"lambda": 0.7})
    yield "ties", delta("ties")
    yield "ties_rescaled", delta("ties", density=(0.1, 0.3, 1.0), weight=(0.5, -0.3, 0.4), rescale=True, normalize=False)
    yield "dare_linear", delta("dare_linear")
    yield "dare_ties", delta("dare_ties", density=(0.5, 1.0, 0.7), **{"lambda": 0.8})
    yield "dare_plain", delta("dare_linear", rescale=False, normalize=True)
    gamma = {"gamma": [0.05, 0.1, 0.2]}
    yield "breadcrumbs", delta("breadcrumbs", extra=gamma)
    yield "breadcrumbs_ties", delta("breadcrumbs_ties", density=(0.9, 0.8, 0.7), extra=gamma)
    epsilon = {"epsilon": [0.1, 0.2, 0.05]}
    yield "della", delta("della", extra=epsilon)
    yield "della_linear", delta("della_linear", extra=epsilon)
    yield "sce", {"merge_method": "sce", "base_model": "base", "models": models("a", "b", "c"), "parameters": {"select_topk": 0.4}}
    yield "sce_all", {"merge_method": "sce", "base_model": "base", "models": models("a", "b", "c")}
    yield "model_stock", {"merge_method": "model_stock", "base_model": "base", "models": models("a", "b", "c")}
    yield "model_stock_lines", {
        "merge_method": "model_stock",
        "base_model": "base",
        "models": models("a", "b", "c"),
        "parameters": {"filter_wise": True},
        # Some lines lie near the pole of t, where float32 leaves five digits.
        "dtype": "float64",
        "out_dtype": "float32",
    }
    yield "nearswap", {"merge_method": "nearswap", "base_model": "base", "models": models("b"), "parameters": {"t": 0.1}}
    yield "arcee_fusion", {"merge_method": "arcee_fusion", "base_model": "base", "models": models("c")}
    yield "ram", {"merge_method": "ram", "base_model": "base", "models": models("a", "b", "c")}
    yield "ramplus_tl", {
        "merge_method": "ramplus_tl",
        "base_model": "base",
        "models": models("a", "b", "c"),
        "parameters": {"r": 0.3, "alpha": 2.5},
    }
    yield "passthrough", {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 6]}]},
            {"sources": [{"model": "c", "layer_range": [3, 11]}]},
        ],
    }
    yield "passthrough_scaled", {
        "merge_method": "passthrough",
        "models": [{"model": "a", "parameters": {"scale": [{"filter": "o_proj", "value": [0.0, 1.0]}, {"value": 1.0}]}}],
    }


    weights = {"weight": [0.5, 0.3]}
    yield "tokens_union", {
        "merge_method": "linear",
        "models": models("words_base", "words_a", "words_b", weight=[0.5, 0.3, 0.4]),
        "tokenizer_source": "union",
    }
    for source in ["base", "union"]:
        yield f"tokens_{source}_of_base", {
            "merge_method": "task_arithmetic",
            "base_model": "words_base",
            "models": models("words_a", "words_b", **weights),
            "tokenizer_source": source,
        }


def by_mergekit(recipe, folder):
    """What mergekit makes of a recipe, in float32 unless it says otherwise."""
    here = os.getcwd()
    os.chdir(FOLDER)
    try:
        # A generator of its own for each case, as each run of mergekit-yaml has.
        run_merge(
            MergeConfiguration.model_validate({"dtype": "float32", **recipe}),
            str(folder),
            MergeOptions(random_seed=SEED, copy_tokenizer=False, quiet=True, write_model_card=False),
        )
    finally:
        os.chdir(here)
    merged = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        merged.update(load_file(file))
    return in_our_order(recipe, merged, folder)


def text(name, recipe):
    """The recipe as a file: a YAML of mergekit's, and two keys of ours where masks are drawn."""
    drawn = recipe["merge_method"].startswith(("dare", "della"))
    ours = {"rng": "mergekit", "seed": SEED} if drawn else {}
    return yaml.safe_dump({**recipe, "dtype": recipe.get("dtype", "float32"), **ours}, sort_keys=False)


def write():
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    write_models()
    write_words()
    for name, recipe in cases():
        with tempfile.TemporaryDirectory() as folder:
            merged = by_mergekit(recipe, folder)
        (FOLDER / f"{name}.yaml").write_text(text(name, recipe))
        save_file({key: value.contiguous() for key, value in merged.items()}, FOLDER / f"{name}.safetensors")
        if "tokenizer_source" in recipe:
            tokens = {token: row for row, token in enumerate(our_tokens(recipe))}
            (FOLDER / f"{name}.tokens.json").write_text(json.dumps(tokens, indent=2) + "\n")
        print(f"{name}: {len(merged)} tensors")


def compare(program):
    worst = 0.0
    for name, recipe in cases():
        with tempfile.TemporaryDirectory() as folder:
            expected = by_mergekit(recipe, pathlib.Path(folder) / "mergekit")
            (pathlib.Path(folder) / "recipe.yaml").write_text(text(name, recipe))
            ours = pathlib.Path(folder) / "ours.safetensors"
            command = [program, "merge", f"{folder}/recipe.yaml", "--out", ours, "--quiet", "--no-sync"]
            subprocess.run(command, check=True, cwd=FOLDER, stdout=subprocess.DEVNULL)
            found = load_file(ours)
        assert sorted(found) == sorted(expected), f"{name}: other tensors"
        for key, value in expected.items():
            scale = value.abs().max().item() or 1.0
            difference = (found[key].double() - value.double()).abs().max().item() / scale
            worst = max(worst, difference)
            assert difference <= 1e-6, f"{name}: {key} differs by {difference:.2e}"
        print(f"{name}: agrees")
    print(f"all cases agree with mergekit; largest difference {worst:.1e} of the largest value")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compare(str(pathlib.Path(sys.argv[1]).resolve()))
    else:
        write()
