#!/usr/bin/env python3
"""Compares `vlmerge transplant` with mergekit-tokensurgeon on tiny random models with two tokenizers that are made here.

    tests/with_torch.sh tests/transplant_reference.py target/release/vlmerge

For each method and option all rows of the embeddings and of the head are compared, and the ids of config.json; transformers
loads the output and runs it with the donor's tokenizer. Where mergekit 0.1.5 does otherwise than it says (docs/transplant.md),
numpy computes what is meant. Exit code 1 if anything differs.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from mergekit.scripts.tokensurgeon import main as tokensurgeon
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PROGRAM = Path(sys.argv[1]).resolve()
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Rows are about 0.2 times the root of their width long; mergekit computes in f32.
TOLERANCE = 2e-4
TEXTS = {
    "model": "the cat sat on the mat and the dog sat on the cat while a rat ran past the mat again and again",
    "donor": "the cat and the dog ran over the hill and the rat chatted with another cat about hats and chatter on the mat",
}
failures = []


def check(name, condition, why=""):
    print(("ok      " if condition else "DIFFERS ") + name + (f": {why}" if why and not condition else ""))
    if not condition:
        failures.append(name)


def tokenizer(folder, text, size, special):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special.values()), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator([text] * 4, trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    return inner


def model(folder, seed, width, n_tokens, tied, special):
    """A Llama with a few more rows than tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=n_tokens + 3, hidden_size=width, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=tied, bos_token_id=special[0], eos_token_id=special[1], pad_token_id=None,
    )
    made = LlamaForCausalLM(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(folder)


def make(folder, name, seed, width, tied=False):
    texts = {"model": ("<s>", "</s>"), "donor": ("<|begin|>", "<|end|>")}
    kind = name.split("-")[0]
    bos, eos = texts[kind]
    inner = tokenizer(folder / name, TEXTS[kind], 330, dict(bos_token=bos, eos_token=eos))
    ids = [inner.token_to_id(bos), inner.token_to_id(eos)]
    model(folder / name, seed, width, inner.get_vocab_size(), tied, ids)


def ours(folder, pair, out, *flags):
    words = [PROGRAM, "transplant", folder / pair[0], folder / pair[1], f"{folder / out}/", "--json", *flags]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        check(out, False, done.stderr)
        return None, None
    return load_file(folder / out / "model.safetensors"), json.loads(done.stdout)["transplant"]


def theirs(folder, pair, out, *flags):
    words = [folder / pair[0], folder / pair[1], folder / out, *flags]
    tokensurgeon.main([str(word) for word in words], standalone_mode=False)
    made = {}
    for file in sorted((folder / out).glob("*.safetensors")):
        made.update(load_file(file))
    return made


def compare(folder, name, pair, own_flags, their_flags=None):
    name = f"{name}, {pair[0]} and {pair[1]}"
    out = name.replace(" ", "_").replace(",", "")
    made, report = ours(folder, pair, f"{out}-ours", *own_flags)
    if made is None:
        return None
    expected = theirs(folder, pair, f"{out}-theirs", *(their_flags or own_flags))
    for key in sorted(expected):
        if key not in made:
            check(f"{name}: {key} is there", False)
            continue
        same_shape = made[key].shape == expected[key].shape
        is_table = key in (EMBEDDINGS, HEAD)
        if not same_shape:
            check(f"{name}: {key}", False, f"{made[key].shape} and {expected[key].shape}")
        elif is_table:
            worst = (made[key].double() - expected[key].double()).abs().max().item()
            check(f"{name}: {key}", worst <= TOLERANCE, f"{worst}")
        elif not torch.equal(made[key], expected[key]):
            check(f"{name}: {key} is that of the model", False)
    check(f"{name}: the same tensors", made.keys() == expected.keys(), str(made.keys() ^ expected.keys()))
    own, other = (json.loads((folder / f"{out}-{who}" / "config.json").read_text()) for who in ("ours", "theirs"))
    for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "hidden_size"):
        check(f"{name}: {key}", own.get(key) == other.get(key), f"{own.get(key)} and {other.get(key)}")
    return report


def tables(folder, pair):
    own, donor = (load_file(folder / name / "model.safetensors") for name in pair)
    vocabularies = [json.loads((folder / name / "tokenizer.json").read_text()) for name in pair]
    vocabularies = [{**v["model"]["vocab"], **{a["content"]: a["id"] for a in v["added_tokens"]}} for v in vocabularies]
    roles = {"<|begin|>": "<s>", "<|end|>": "</s>"}
    shared = [(i, vocabularies[0][roles.get(t, t)]) for t, i in vocabularies[1].items() if roles.get(t, t) in vocabularies[0]]
    return own, donor, vocabularies, sorted(shared)


def closed_forms(folder, pair):
    """What mergekit 0.1.5 gets wrong: the rotation of landmark_pca, and the order of weighted_mean for embeddings."""
    own, donor, vocabularies, shared = tables(folder, pair)
    a_ids, b_ids = zip(*shared)
    made, report = ours(folder, pair, "landmark", "--method", "landmark_pca")
    pieces, _ = ours(folder, pair, "weighted", "--method", "subword", "--subword-method", "weighted_mean")
    if made is None or pieces is None:
        return
    split = Tokenizer.from_file(str(folder / pair[0] / "tokenizer.json"))
    missing = sorted(set(vocabularies[1].values()) - set(a_ids))
    names = {i: t for t, i in vocabularies[1].items()}
    for key in (EMBEDDINGS, HEAD):
        a, b = donor[key].double().numpy(), own[key].double().numpy()
        from_mean, to_mean = a[list(a_ids)].mean(0), b[list(b_ids)].mean(0)
        a0, b0 = a[list(a_ids)] - from_mean, b[list(b_ids)] - to_mean
        n = min(a.shape[1], b.shape[1])
        va = np.linalg.svd(a0, full_matrices=False)[2][:n].T
        vb = np.linalg.svd(b0, full_matrices=False)[2][:n].T
        u, _, vt = np.linalg.svd((a0 @ va).T @ (b0 @ vb))
        expected = (a[missing] - from_mean) @ va @ (u @ vt) @ vb.T + to_mean
        worst = np.abs(made[key].double().numpy()[missing] - expected).max()
        check(f"landmark_pca by numpy: {key}", worst < TOLERANCE, f"{worst}")
        for token in missing:
            text = names[token].replace("Ġ", " ")
            ids = split.encode(text, add_special_tokens=False).ids
            weights = np.arange(1, len(ids) + 1, dtype=float)
            weights = weights[::-1] if key == HEAD else weights
            expected = (weights[:, None] * b[ids]).sum(0) / weights.sum()
            worst = np.abs(pieces[key].double().numpy()[token] - expected).max()
            if worst > TOLERANCE:
                check(f"weighted_mean by numpy: {key} of {text!r}", False, f"{worst}")
        check(f"weighted_mean by numpy: {key}, {len(missing)} rows", len(missing) > 20)
    held = report["tables"][0]["held_out"]
    check("shared tokens are held out", held is not None and held["n_tokens"] > 10, str(held))


def loads(folder, out, donor):
    made = AutoModelForCausalLM.from_pretrained(folder / out)
    split = AutoTokenizer.from_pretrained(folder / out)
    ids = split("the cat chatted with the rat", return_tensors="pt").input_ids
    theirs = AutoTokenizer.from_pretrained(folder / donor)("the cat chatted with the rat", return_tensors="pt").input_ids
    check("transformers splits texts as the donor", torch.equal(ids, theirs))
    logits = made(input_ids=ids).logits
    check("transformers runs the output", torch.isfinite(logits).all().item() and logits.shape[-1] == made.config.vocab_size)
    check("generation ends with the donor's token", made.generation_config.eos_token_id == split.eos_token_id)


def main():
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, "model", 1, 32)
        make(folder, "model-tied", 2, 32, tied=True)
        make(folder, "donor", 3, 40)
        make(folder, "donor-tied", 4, 24, tied=True)
        pairs = [("model", "donor"), ("model-tied", "donor"), ("model", "donor-tied"), ("model-tied", "donor-tied")]
        for pair in pairs:
            report = compare(folder, "omp", pair, ["--method", "omp", "--k", 6], ["-a", "omp", "-k", 6])
        check("rows are made", report is not None and report["tables"][0]["n_made"] > 20, str(report))
        pair = pairs[0]
        for scheme in ("distance_proportional", "barycentric", "least_squares"):
            for cosine in ([], ["--cosine-similarity"]):
                flags = ["--approximation-method", "common_interpolation", "--k", 8, "--weight-scheme", scheme, *cosine]
                compare(folder, " ".join(str(flag) for flag in ["common", scheme, *cosine]), pair, flags)
        for method in ("mean", "sum", "first_last"):
            compare(folder, f"subword {method}", pair, ["--approximation-method", "subword", "--subword-method", method])
        compare(folder, "mean", pair, ["--approximation-method", "mean"])
        compare(folder, "zero", pairs[1], ["--approximation-method", "zero"])
        compare(folder, "scaled", pair, ["-a", "omp", "--k", 6, "--new-vocab-scale", 0.5])
        # mergekit takes the one for the other.
        compare(folder, "prefixes", pair, ["-a", "omp", "--k", 6, "--prefix-match", "embed"], ["-a", "omp", "--k", 6, "--prefix-match", "lm_head"])
        compare(folder, "magikarp", pair, ["-a", "omp", "--k", 6, "--magikarp"])
        closed_forms(folder, pair)
        loads(folder, "omp_model_and_donor-ours", "donor")
    print(f"{len(failures)} differ" if failures else "all agree")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
