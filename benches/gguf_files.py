#!/usr/bin/env python3
"""Times GGUF files of half a billion parameters, written and read, with cp beside them, in turn, in one run.

    cargo build --release
    tests/with_torch.sh benches/gguf_files.py target/release/vlmerge FOLDER [ROUNDS]

FOLDER needs about 6 GB. The model has random weights in bf16 (1 GB); that of Q4_K has random blocks, which gguf-py does not
make of numbers. `cp` copies as many bytes as are written. Everything is read from a warm page cache, without hashes and
without waiting for the disk. Medians, and the largest peak of resident memory.
"""

import json
import pathlib
import statistics
import subprocess
import sys

import gguf
import numpy
import torch
from safetensors.torch import save_file

PROGRAM, FOLDER = str(pathlib.Path(sys.argv[1]).resolve()), pathlib.Path(sys.argv[2])
ROUNDS = int(sys.argv[3]) if len(sys.argv) > 3 else 3
HIDDEN, INNER, LAYERS, VOCABULARY, KEYS = 1024, 4096, 28, 32000, 256
CONFIG = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
}
QUIET = ["--no-hash", "--no-sync", "--force"]


def shapes():
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        start = f"model.layers.{layer}"
        for part, rows in (("q", HIDDEN), ("k", KEYS), ("v", KEYS), ("o", HIDDEN)):
            yield f"{start}.self_attn.{part}_proj.weight", (rows, HIDDEN)
        yield f"{start}.mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"{start}.mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"{start}.mlp.down_proj.weight", (HIDDEN, INNER)
        yield f"{start}.input_layernorm.weight", (HIDDEN,)
        yield f"{start}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def make():
    model = FOLDER / "model"
    model.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    save_file({name: (torch.randn(shape) * 0.02).bfloat16() for name, shape in shapes()}, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps(CONFIG))
    kind = gguf.GGMLQuantizationType.Q4_K
    writer = gguf.GGUFWriter(FOLDER / "q4_k.gguf", "of-nobody")
    draws = numpy.random.default_rng(1)
    for name, shape in shapes():
        if len(shape) == 2:
            blocks = draws.integers(0, 256, (shape[0], shape[1] // 256, 144), dtype=numpy.uint8)
            blocks[..., 1] &= 0x3B
            blocks[..., 3] &= 0x3B
            writer.add_tensor(name, blocks.reshape(shape[0], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# A process begins with the peak of the one that it was forked from, so that one without torch starts it.
RUNNER = """
import os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(status, time.perf_counter() - began, usage.ru_maxrss / 1024)
"""


def measured(*words):
    """Seconds and peak resident memory in MiB of a process."""
    runner = [sys.executable, "-S", "-c", RUNNER, *(str(word) for word in words)]
    status, seconds, peak = subprocess.run(runner, capture_output=True, text=True, check=True).stdout.split()
    assert status == "0", words
    return float(seconds), float(peak)


if not (FOLDER / "q4_k.gguf").exists():
    make()
COMMANDS = [
    ("written as it is", "model", "bf16.gguf", ["--no-tokenizer"]),
    ("written as q8_0", "model", "q8_0.gguf", ["--no-tokenizer", "--outtype", "q8_0"]),
    ("read, bf16", "bf16.gguf", "of_bf16.safetensors", []),
    ("read, Q8_0 to bf16", "q8_0.gguf", "of_q8_0.safetensors", []),
    ("read, Q4_K to bf16", "q4_k.gguf", "of_q4_k.safetensors", []),
]
times = {}
for number in range(ROUNDS + 1):
    for name, source, out, flags in COMMANDS:
        pair = measured(PROGRAM, "convert", FOLDER / source, FOLDER / out, *QUIET, *flags)
        copied = measured("cp", FOLDER / out, FOLDER / "copy")
        (FOLDER / "copy").unlink()
        if number > 0:
            times.setdefault(name, []).append((*pair, copied[0]))
print("| command | written | vlmerge | `cp` | ratio | peak |\n|---|---|---|---|---|---|")
for name, _, out, _ in COMMANDS:
    own, peak, copied = ([row[at] for row in times[name]] for at in range(3))
    n_bytes = (FOLDER / out).stat().st_size / 1e6
    ratio = statistics.median(a / b for a, b in zip(own, copied))
    print(f"| {name} | {n_bytes:,.0f} MB | {statistics.median(own):.2f} s | {statistics.median(copied):.2f} s | {ratio:.2f} | {max(peak):.0f} MiB |")
