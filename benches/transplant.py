"""`vlmerge transplant` beside mergekit-tokensurgeon: seconds and peak memory of orthogonal matching pursuit.

    cargo build --release --workspace
    tests/with_torch.sh benches/transplant.py FOLDER [--tokens 32000 --shared 16000 --width 1024 --k 64]

Writes two models with tied embeddings of drawn rows to FOLDER once; the rows of the tokens that only the donor has are
combinations of eight shared rows, and noise. Runs both programs with the same k, each in a process of its own, and prints
seconds and peak memory. The rows of both are compared: their cosines, for rows along which f32 cannot tell apart which of two
shared rows comes next differ.
"""

import argparse
import json
import pathlib
import sys

import measured
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/vlmerge"
KEY = "model.embed_tokens.weight"


def write(folder, words, rows):
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=words[0]).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=rows.shape[1], intermediate_size=16, num_hidden_layers=1, num_attention_heads=8,
        tie_word_embeddings=True,
    )
    made = LlamaForCausalLM(config)
    made.model.embed_tokens.weight.data = rows
    made.save_pretrained(folder)


def models_in(folder, given):
    torch.manual_seed(1)
    own = [f"w{i}" for i in range(given.tokens)]
    theirs = own[: given.shared] + [f"v{i}" for i in range(given.tokens - given.shared)]
    rows = torch.randn(given.tokens, given.width) * 0.02
    write(folder / "model", own, rows)
    donor = torch.randn(given.tokens, given.width) * 0.02
    for row in range(given.shared, given.tokens):
        parts = torch.randint(given.shared, (8,))
        donor[row] = (torch.randn(8, 1) * donor[parts]).sum(0) + torch.randn(given.width) * 0.005
    write(folder / "donor", theirs, donor)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=32000)
    parser.add_argument("--shared", type=int, default=16000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--k", type=int, default=64)
    given = parser.parse_args()
    folder = given.folder / f"{given.tokens}x{given.width}x{given.shared}"
    models_in(folder, given)
    pair = [folder / "model", folder / "donor"]
    ways = {
        "vlmerge": [PROGRAM, "transplant", *pair, folder / "ours", "--k", given.k, "--force", "--no-sync", "--quiet"],
        "vlmerge, no products kept": [
            PROGRAM, "transplant", *pair, folder / "without", "--k", given.k, "--force", "--no-sync", "--quiet", "--gram-memory", 0,
        ],
        "mergekit-tokensurgeon": [
            pathlib.Path(sys.executable).parent / "mergekit-tokensurgeon", *pair, folder / "theirs", "-a", "omp", "-k", given.k,
        ],
    }
    for name, words in ways.items():
        program = sys.executable if "mergekit" in name else PROGRAM
        started = lambda found: pathlib.Path(found).name == pathlib.Path(program).resolve().name
        seconds, processor, peak = measured.run([str(word) for word in words], started)
        line = {
            "program": name, "tokens": given.tokens, "shared": given.shared, "width": given.width, "k": given.k,
            "seconds": round(seconds, 1), "processor_seconds": round(processor, 1), "peak_mib": round(peak / 2**20),
        }
        print(json.dumps(line), flush=True)
    own, other, theirs = (load_file(folder / name / "model.safetensors")[KEY] for name in ("ours", "without", "theirs"))
    for name, rows in [("vlmerge and mergekit", theirs), ("vlmerge with and without products", other)]:
        cosine = torch.nn.functional.cosine_similarity(own[given.shared :].double(), rows[given.shared :].double())
        print(f"{name}: cosine of made rows {cosine.mean():.6f} in the mean, {cosine.min():.6f} at least")
        if not torch.equal(own[: given.shared], rows[: given.shared]):
            sys.exit(f"{name}: copied rows differ")


if __name__ == "__main__":
    main()
