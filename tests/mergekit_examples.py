#!/usr/bin/env python3
"""Runs recipes in the forms in which mergekit's examples and model cards publish them, by both programs, and compares.

    tests/with_torch.sh tests/mergekit_examples.py target/release/vlmerge [--only NAME ...]

The recipes are the files of `mergekit_examples/`, as mergekit 0.1.5 reads them; vlmerge gets them unchanged, but for the two keys that
make it draw mergekit's random masks. Models, adapters and tokenizers are made here, of a few thousand numbers. Of each recipe the tensors
are compared, what the configuration says of sizes, the tokens and the chat template.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

# Bars of progress would fill the log.
os.environ["TQDM_DISABLE"] = "1"

import torch
import transformers
import yaml
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import MergeOptions, run_merge
from mergekit.scripts.multimerge import main as run_stages
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny_models

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

HERE = Path(__file__).resolve().parent
RECIPES = HERE / "mergekit_examples"
MODELS = HERE.parent / "fixtures" / "mergekit"
SEED = 7
# Several roundings of the type that mergekit computes in; vlmerge computes in f32 and rounds once.
TOLERANCES = {"F32": 2e-6, "F16": 4e-3, "BF16": 3e-2}
# Of the elements of a model in 16 bits this many may differ by more: where a cut of ties goes through values that are equal in 16 bits, and
# not in 32, the programs keep others.
CUT = 0.01
SIZES = ("num_hidden_layers", "num_layers", "num_decoder_layers", "depth", "vocab_size", "hidden_size", "layer_types")


def write_models(folder):
    """The models that the recipes name."""
    for name, own in (("base", "base"), ("chat", "a"), ("code", "b"), ("math", "c")):
        shutil.copytree(MODELS / own, folder / "org" / name)
        write_tokens(folder / "org" / name)
    for name, own in (("base", "words_base"), ("one", "words_a"), ("two", "words_b")):
        shutil.copytree(MODELS / own, folder / "words" / name)
        settings = folder / "words" / name / "tokenizer_config.json"
        template = "{% for message in messages %}" + ("" if name == "two" else "<s>") + "{{ message['content'] }}{% endfor %}"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": template}))
    rows = {row[0]: row for row in tiny_models.MODELS}
    for family, row in (("vl", "qwen3_vl"), ("gemma", "gemma3"), ("t5", "t5"), ("smol", "smolvlm")):
        _, kind, settings, _ = rows[row]
        for seed, name in enumerate(("base", "one", "two")):
            model = tiny_models.make(getattr(transformers, kind), settings, seed)
            model.save_pretrained(folder / family / name)
            if family == "gemma":
                as_published(folder / family / name / "model.safetensors")
    write_adapters(folder)


def as_published(file):
    """Calls the tensors of a vision tower as published files have them, which are the names that mergekit knows."""
    renamed = {key.replace("vision_tower.", "vision_tower.vision_model."): value for key, value in load_file(file).items()}
    save_file(renamed, file, {"format": "pt"})


def write_tokens(folder):
    """A tokenizer of the 16 words that the models have embeddings for."""
    words = {f"word{row}": row for row in range(15)} | {"<unk>": 15}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}))


def write_adapters(folder):
    import peft

    for seed, name in enumerate(("lora-one", "lora-two")):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "org" / "base")
        settings = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], use_rslora=seed == 1)
        model = peft.get_peft_model(model, settings)
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "lora_B" in key:
                    value.copy_(0.2 * torch.randn_like(value))
        model.save_pretrained(folder / "org" / name)


def by_mergekit(text, name, out):
    """What mergekit makes of a recipe, in a folder."""
    # Models of one name in two folders must not be taken for each other.
    LoaderCache().loaders.clear()
    documents = list(yaml.safe_load_all(text))
    if len(documents) == 1:
        options = MergeOptions(random_seed=SEED, quiet=True, write_model_card=False, lora_merge_cache="lora-cache")
        run_merge(MergeConfiguration.model_validate(documents[0]), str(out), options)
        return out
    stages = Path(f"{out}-stages")
    Path(f"{name}.multi.yaml").write_text(text)
    command = [f"{name}.multi.yaml", "-I", str(stages), "--quiet", "--random-seed", str(SEED), "--no-write-model-card"]
    is_last_named = all("name" in document for document in documents)
    run_stages.main([*command, *([] if is_last_named else ["--out-path", str(out)])], standalone_mode=False)
    return stages / documents[-1]["name"] if is_last_named else out


def by_vlmerge(program, text, name, out):
    documents = list(yaml.safe_load_all(text))
    if any(document["merge_method"].startswith(("dare", "della")) for document in documents):
        text = "\n---\n".join(yaml.safe_dump({**document, "rng": "mergekit", "seed": SEED}, sort_keys=False) for document in documents)
    Path(f"{name}.yaml").write_text(text)
    command = [program, "merge", f"{name}.yaml", "--out", f"{out}/", "--no-sync"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return out


def tensors(folder):
    found, dtypes = {}, {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
        with safe_open(file, "pt") as opened:
            dtypes.update({key: opened.get_slice(key).get_dtype() for key in opened.keys()})
    return found, dtypes


def without_model(name):
    return ".".join(part for part in name.split(".") if part != "model")


def compare_tensors(found_in, expected_in, rows):
    """Compares two folders; `rows` brings mergekit's rows of tokens into the order of ours."""
    (found, dtypes), (expected, _) = tensors(found_in), tensors(expected_in)
    # mergekit writes a class's names in memory where it knows no others.
    ours = {without_model(key): key for key in found}
    theirs = {without_model(key): key for key in expected}
    if sorted(ours) != sorted(theirs):
        raise RuntimeError(f"other tensors: {sorted(set(ours) ^ set(theirs))}")
    worst, n_cut, n_all = 0.0, 0, 0
    for key, name in ours.items():
        value, wanted = found[name], expected[theirs[key]]
        if rows is not None and key.endswith(("embed_tokens.weight", "lm_head.weight")):
            wanted = wanted[rows]
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise RuntimeError(f"{name} is {value.dtype} {list(value.shape)}, not {wanted.dtype} {list(wanted.shape)}")
        tolerance = TOLERANCES[dtypes[name]]
        scale = wanted.double().abs().max().item() or 1.0
        difference = (value.double() - wanted.double()).abs() / scale
        cut = difference > tolerance
        n_cut += int(cut.sum())
        n_all += cut.numel()
        if cut.any() and dtypes[name] == "F32":
            raise RuntimeError(f"{name} differs by {difference.max():.2e} of its largest value")
        worst = max(worst, difference[~cut].max().item() if (~cut).any() else 0.0)
    if n_cut > CUT * n_all:
        raise RuntimeError(f"{n_cut} of {n_all} elements differ by more than {worst:.2e} of the largest value")
    return worst, n_cut


def sizes(config):
    """What a configuration says of sizes, at its top and in its parts."""
    found = {key: config[key] for key in SIZES if key in config}
    parts = {key: sizes(value) for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)}
    return found | {key: value for key, value in parts.items() if value}


def compare_configs(found_in, expected_in):
    kind = transformers.AutoConfig
    ours, theirs = (sizes(kind.from_pretrained(folder).to_dict()) for folder in (found_in, expected_in))
    if ours != theirs:
        raise RuntimeError(f"config.json says {ours}, mergekit's {theirs}")


def compare_tokenizers(found_in, expected_in):
    """Where mergekit's rows of tokens are in ours."""
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (found_in, expected_in))
    own, other = ours.get_vocab(), theirs.get_vocab()
    if sorted(own) != sorted(other):
        raise RuntimeError(f"other tokens: {sorted(set(own) ^ set(other))}")
    conversation = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    if theirs.chat_template:
        texts = [tokenizer.apply_chat_template(conversation, tokenize=False) for tokenizer in (ours, theirs)]
        if texts[0] != texts[1]:
            raise RuntimeError(f"the chat template writes {texts[0]!r}, mergekit's {texts[1]!r}")
    n_rows = json.loads((expected_in / "config.json").read_text())["vocab_size"]
    order = {own[token]: other[token] for token in own}
    return [order.get(row, row) for row in range(n_rows)]


def check(program, path, folder):
    text, name = path.read_text(), path.stem
    expected = by_mergekit(text, name, folder / f"mergekit-{name}")
    found = by_vlmerge(program, text, name, folder / f"ours-{name}")
    has_tokens = "tokenizer" in text
    rows = compare_tokenizers(found, expected) if has_tokens else None
    compare_configs(found, expected)
    return compare_tensors(found, expected, rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--only", nargs="*", help="names of recipes")
    arguments = parser.parse_args()
    program = str(Path(arguments.program).resolve())
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    begun, failed, n = time.time(), [], 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_models(folder)
        os.chdir(folder)
        for path in sorted(RECIPES.glob("*.yaml")):
            if arguments.only and path.stem not in arguments.only:
                continue
            n += 1
            try:
                worst, n_cut = check(program, path, folder)
                print(f"{path.stem}: agrees; largest difference {worst:.1e} of the largest value" + (f", {n_cut} elements beyond" if n_cut else ""))
            except Exception as error:  # noqa: BLE001: every recipe is tried
                failed.append(path.stem)
                print(f"FAILED {path.stem}: {type(error).__name__}: {error}")
        os.chdir(HERE)
    print(f"{n - len(failed)} of {n} recipes agree with mergekit in {time.time() - begun:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
