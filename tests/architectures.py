#!/usr/bin/env python3
"""Merges tiny models of current architectures, and loads what comes out with transformers.

    tests/with_torch.sh tests/architectures.py target/release/vlmerge [--only NAME]

Each model is made twice with random weights. Three merges of the two (linear, slerp, task_arithmetic) are loaded, with no tensor
missing or unexpected, and give the logits of a model whose weights were merged here in torch. A merge of each with itself, whose
layers are repeated and reordered by slices, is loaded likewise, and must have the configuration that its layers say.
Architectures that the installed transformers does not have are skipped by name. Exit code 1 if anything differs.
"""

import argparse
import inspect
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES = dict(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, max_position_embeddings=32)
GROUPED = dict(SIZES, num_key_value_heads=1, head_dim=8)
MIXED = dict(GROUPED, num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, n_routed_experts=4)
BART = dict(
    vocab_size=64, d_model=16, encoder_layers=3, decoder_layers=4, encoder_ffn_dim=24, decoder_ffn_dim=24, encoder_attention_heads=2,
    decoder_attention_heads=2, max_position_embeddings=32, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
    forced_eos_token_id=2,
)
T5 = dict(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_decoder_layers=4, num_heads=2, decoder_start_token_id=0)
VISION = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8)

# Name, class of the model, class of its configuration, settings, and the stacks that slices cut with their layers.
CAUSAL = [
    ("llama", "LlamaForCausalLM", GROUPED), ("mistral", "MistralForCausalLM", GROUPED), ("qwen2", "Qwen2ForCausalLM", SIZES),
    ("qwen3", "Qwen3ForCausalLM", GROUPED), ("gemma", "GemmaForCausalLM", GROUPED), ("gemma2", "Gemma2ForCausalLM", GROUPED),
    ("gemma3_text", "Gemma3ForCausalLM", GROUPED), ("phi3", "Phi3ForCausalLM", dict(GROUPED, pad_token_id=0)),
    ("olmo2", "Olmo2ForCausalLM", SIZES), ("olmo3", "Olmo3ForCausalLM", GROUPED), ("granite", "GraniteForCausalLM", SIZES),
    ("cohere2", "Cohere2ForCausalLM", GROUPED), ("smollm3", "SmolLM3ForCausalLM", dict(GROUPED, pad_token_id=0)),
    ("glm4", "Glm4ForCausalLM", dict(GROUPED, pad_token_id=0)), ("starcoder2", "Starcoder2ForCausalLM", GROUPED),
    ("stablelm", "StableLmForCausalLM", SIZES), ("gpt2", "GPT2LMHeadModel", dict(vocab_size=64, n_embd=16, n_layer=4, n_head=2, n_positions=32)),
    ("gpt_neo", "GPTNeoForCausalLM", dict(vocab_size=64, hidden_size=16, num_layers=4, num_heads=2, attention_types=[[["global", "local"], 2]], max_position_embeddings=32)),
    ("gpt_neox", "GPTNeoXForCausalLM", SIZES), ("opt", "OPTForCausalLM", dict(SIZES, ffn_dim=24, word_embed_proj_dim=16)),
    ("bloom", "BloomForCausalLM", dict(vocab_size=64, hidden_size=16, n_layer=4, n_head=2)), ("mixtral", "MixtralForCausalLM", MIXED),
    ("qwen2_moe", "Qwen2MoeForCausalLM", dict(MIXED, shared_expert_intermediate_size=8)), ("qwen3_moe", "Qwen3MoeForCausalLM", MIXED),
    ("olmoe", "OlmoeForCausalLM", MIXED), ("granitemoe", "GraniteMoeForCausalLM", MIXED), ("gpt_oss", "GptOssForCausalLM", MIXED),
]
ENCODERS = [
    ("bert", "BertForMaskedLM", SIZES, "bert.encoder.layer"), ("roberta", "RobertaForMaskedLM", SIZES, "roberta.encoder.layer"),
    ("distilbert", "DistilBertForMaskedLM", dict(vocab_size=64, dim=16, hidden_dim=24, n_layers=4, n_heads=2, max_position_embeddings=32), "distilbert.transformer.layer"),
    ("modernbert", "ModernBertForMaskedLM", dict(SIZES, pad_token_id=0), "model.layers"), ("electra", "ElectraForMaskedLM", dict(SIZES, embedding_size=16), "electra.encoder.layer"),
]
SEQUENCES = [
    ("t5", "T5ForConditionalGeneration", T5, "decoder.block"), ("mt5", "MT5ForConditionalGeneration", T5, "encoder.block"),
    ("bart", "BartForConditionalGeneration", BART, "model.decoder.layers"), ("mbart", "MBartForConditionalGeneration", BART, "model.encoder.layers"),
    ("pegasus", "PegasusForConditionalGeneration", BART, "model.decoder.layers"), ("marian", "MarianMTModel", BART, "model.encoder.layers"),
    ("m2m_100", "M2M100ForConditionalGeneration", BART, "model.decoder.layers"), ("blenderbot", "BlenderbotForConditionalGeneration", BART, "model.decoder.layers"),
]
PICTURES = [
    ("vit", "ViTModel", VISION, "encoder.layer"), ("dinov2", "Dinov2Model", VISION, "encoder.layer"),
    ("clip", "CLIPModel", dict(text_config=dict(SIZES), vision_config=dict(VISION), projection_dim=16), "vision_model.encoder.layers"),
    ("siglip", "SiglipModel", dict(text_config=dict(SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2), vision_config=dict(VISION)), "text_model.encoder.layers"),
]


def stacks(names):
    """Stacks of layers by their names, as `model.layers` -> 4."""
    found = {}
    for name in names:
        parts = name.split(".")
        for at, part in enumerate(parts):
            if part.isdigit() and at > 0 and at + 2 < len(parts):
                found.setdefault(".".join(parts[:at]), set()).add(int(part))
                break
    return {prefix: len(layers) for prefix, layers in found.items() if layers == set(range(len(layers))) and len(layers) > 1}


def inputs(model):
    """What the model is asked: one batch of everything that it may take."""
    torch.manual_seed(0)
    ids = torch.randint(3, 60, (2, 7))
    config = model.config
    given = {}
    names = set(inspect.signature(model.forward).parameters)
    if "input_ids" in names:
        given["input_ids"] = ids
    if "decoder_input_ids" in names:
        given["decoder_input_ids"] = ids[:, :5]
    if "pixel_values" in names:
        size = getattr(config, "vision_config", config).image_size
        given["pixel_values"] = torch.rand(2, 3, size, size)
    return given


def outputs(model):
    with torch.no_grad():
        given = model.eval()(**inputs(model))
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        if getattr(given, name, None) is not None:
            return getattr(given, name)
    raise RuntimeError("no logits")


def load(kind, folder):
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    wrong = {key: sorted(report[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report.get(key)}
    if wrong:
        raise RuntimeError(f"loading says {wrong}")
    return model


def merged(method, base, a, b):
    """The merge in torch, tensor by tensor."""

    def one(w, x, y):
        if not w.is_floating_point():
            return w
        w, x, y = (t.double() for t in (w, x, y))
        if method == "linear":
            return (0.25 * x + 0.75 * y).float()
        if method == "task_arithmetic":
            return (w + 0.5 * (x - w) + 0.3 * (y - w)).float()
        u, v = x / x.norm().clamp(min=1e-8), y / y.norm().clamp(min=1e-8)
        dot = (u * v).sum().clamp(-1, 1)
        if dot.abs() > 0.9995:
            return (0.6 * x + 0.4 * y).float()
        angle = torch.arccos(dot)
        return ((torch.sin(0.6 * angle) * x + torch.sin(0.4 * angle) * y) / torch.sin(angle)).float()

    return {key: one(base[key], a[key], b[key]) for key in a}


RECIPES = {
    "linear": "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.25}}\n- {model: b, parameters: {weight: 0.75}}\n",
    "slerp": "merge_method: slerp\nbase_model: a\nmodels: [a, b]\nparameters: {t: 0.4}\n",
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.5}}\n- {model: b, parameters: {weight: 0.3}}\n",
}


def check(program, name, kind, settings, stack, folder):
    config_class = kind.config_class
    sample = {}
    for index, which in enumerate(("base", "a", "b")):
        torch.manual_seed(index)
        model = kind(config_class(**settings)).eval()
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.05 * torch.randn_like(value))
        model.save_pretrained(folder / which)
        sample[which] = load(kind, folder / which)

    def merge(recipe, out):
        (folder / "recipe.yaml").write_text(recipe)
        done = subprocess.run([program, "merge", "recipe.yaml", "--out", f"{out}/", "--quiet"], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{out}: {done.stderr.strip()}")

    states = {which: model.state_dict() for which, model in sample.items()}
    for method, recipe in RECIPES.items():
        merge(recipe, method)
        found = outputs(load(kind, folder / method))
        model = sample["base"]
        kept = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(merged(method, kept, states["a"], states["b"]))
        expected = outputs(model)
        model.load_state_dict(kept)
        difference = (found - expected).abs().max().item()
        if not difference < 1e-4 * max(1.0, expected.abs().max().item()):
            raise RuntimeError(f"{method}: logits differ by {difference:.3g}")
    # Loaded from a file, as the program sees it.
    from safetensors import safe_open

    with safe_open(folder / "a/model.safetensors", "pt") as file:
        own = stacks(file.keys())
    stack = stack or max(own, key=own.get)
    n = own[stack]
    order = [*range(0, n - 1), *range(1, n)]
    merge(
        f"merge_method: passthrough\nlayers: {stack}\nslices:\n- sources: [{{model: a, layer_range: [0, {n - 1}]}}]\n"
        f"- sources: [{{model: a, layer_range: [1, {n}]}}]\n",
        "slices",
    )
    model = load(kind, folder / "slices")
    with safe_open(folder / "slices/model.safetensors", "pt") as new, safe_open(folder / "a/model.safetensors", "pt") as old:
        n_new = stacks(new.keys())[stack]
        if n_new != len(order):
            raise RuntimeError(f"slices: {n_new} layers, not {len(order)}")
        for key in new.keys():
            if key.startswith(stack + "."):
                layer, rest = key[len(stack) + 1 :].split(".", 1)
                if not torch.equal(new.get_tensor(key), old.get_tensor(f"{stack}.{order[int(layer)]}.{rest}")):
                    raise RuntimeError(f"slices: {key} is not layer {order[int(layer)]}")
    types = getattr(sample["a"].config.get_text_config(), "layer_types", None)
    if types and len(types) == n and "vision" not in stack:
        found = model.config.get_text_config().layer_types
        if list(found) != [types[layer] for layer in order]:
            raise RuntimeError(f"slices: layer_types {found}")
    outputs(model)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=900)
    arguments = parser.parse_args()
    program = str(Path(arguments.program).resolve())
    torch.set_num_threads(1)
    cases = [(*case, None) for case in CAUSAL] + ENCODERS + SEQUENCES + PICTURES
    begun, failed, skipped, passed = time.time(), [], [], 0
    for name, kind, settings, stack in cases:
        if arguments.only not in name:
            continue
        if time.time() - begun > arguments.seconds:
            skipped.append(f"{name} (no time left)")
            continue
        kind = getattr(transformers, kind, None)
        if kind is None:
            skipped.append(name)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(program, name, kind, settings, stack, Path(folder))
                passed += 1
            except Exception as error:  # noqa: BLE001: every architecture is tried
                failed.append(name)
                print(f"FAILED {name}: {type(error).__name__}: {error}")
    print(f"{passed} architectures merged and loaded in {time.time() - begun:.0f} s; skipped: {', '.join(skipped) or 'none'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
