"""GGUF files beside gguf-py and transformers: what they make of a file, and what vlmerge does.

    tests/with_torch.sh tests/gguf_reference.py target/release/vlmerge

1. gguf-py writes files of every type of elements, of odd sizes, whole and in parts; vlmerge reads the numbers that gguf-py
   dequantizes, bit by bit.
2. vlmerge writes tiny models; gguf-py reads the bits that its own quantizer gives, and transformers loads them as the model
   that they were made of. `gguf_folders.py` makes folders of such files again.
3. A LoRA adapter that vlmerge writes changes the weights as PEFT's does.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

transformers.logging.set_verbosity_error()
PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 7
torch.manual_seed(SEED)
rng = np.random.default_rng(SEED)


def run(*words, fails=False, cwd=None):
    done = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, cwd=cwd)
    if fails != (done.returncode != 0):
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def same(a, b, what):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, f"{what}: {a.shape} {b.shape}"
    assert a.dtype == b.dtype, f"{what}: {a.dtype} {b.dtype}"
    differ = a.view(np.uint8) != b.view(np.uint8)
    nan = np.isnan(a) & np.isnan(b) if a.dtype.kind == "f" else np.zeros(a.shape, bool)
    assert not differ.reshape(*a.shape, -1).any(-1)[~nan].any(), what


# ---- reading ------------------------------------------------------------------------------------------------------

CODED = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K,
         Kind.Q8_K, Kind.IQ4_NL, Kind.IQ4_XS, Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4]
PLAIN = [np.float32, np.float16, np.float64, np.int8, np.int16, np.int32, np.int64]
REFUSED = [Kind.IQ2_XXS, Kind.IQ2_XS, Kind.IQ3_XXS, Kind.IQ1_S, Kind.IQ3_S, Kind.IQ2_S, Kind.IQ1_M, Kind.NVFP4]


def codes(kind, rows):
    """Random bytes as blocks, so that every code occurs; scales are numbers."""
    elements, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, n_bytes), dtype=np.uint8)
    scale = rng.normal(size=(rows, 1)).astype(np.float16).view(np.uint8)
    other = rng.normal(size=(rows, 1)).astype(np.float16).view(np.uint8)
    if kind in (Kind.Q4_0, Kind.Q5_0, Kind.Q8_0, Kind.IQ4_NL, Kind.IQ4_XS):
        blocks[:, :2] = scale
    elif kind in (Kind.Q4_1, Kind.Q5_1, Kind.Q4_K, Kind.Q5_K):
        blocks[:, :4] = np.hstack([scale, other])
    elif kind == Kind.Q2_K:
        blocks[:, -4:] = np.hstack([scale, other])
    elif kind in (Kind.Q3_K, Kind.Q6_K, Kind.TQ1_0, Kind.TQ2_0):
        blocks[:, -2:] = scale
    elif kind == Kind.MXFP4:
        blocks[:, 0] = rng.integers(0, 250, rows)  # beyond it, products are infinite
    elif kind == Kind.Q8_K:
        blocks[:, :4] = rng.normal(size=(rows, 1)).astype(np.float32).view(np.uint8)
    return blocks


def numbers(blocks, kind):
    if kind != Kind.Q8_K:
        return gguf.quants.dequantize(blocks, kind)
    # gguf-py knows its size alone: a scale in f32, signed bytes, sums.
    blocks = blocks.reshape(-1, 292)
    return blocks[:, :4].copy().view(np.float32) * blocks[:, 4:260].view(np.int8).astype(np.float32)


def reading(folder):
    for shape in [(3, 256), (5, 768), (1, 256), (2, 3, 512)]:
        writer = gguf.GGUFWriter(folder / "all.gguf", "of-nobody")
        writer.add_string("text", "é\n")
        writer.add_array("numbers", list(range(300)))
        expected = {}
        for kind in CODED:
            n_rows = int(np.prod(shape[:-1]))
            per_row = shape[-1] // gguf.GGML_QUANT_SIZES[kind][0]
            blocks = codes(kind, n_rows * per_row).reshape(*shape[:-1], -1)
            writer.add_tensor(f"a.{kind.name}", blocks, raw_dtype=kind)
            expected[f"a.{kind.name}"] = numbers(blocks, kind).reshape(shape)
        for dtype in PLAIN:
            values = (rng.normal(size=(3, 7)) * 50).astype(dtype)
            writer.add_tensor(f"b.{np.dtype(dtype).name}", values)
            expected[f"b.{np.dtype(dtype).name}"] = values
        bf16 = gguf.quants.quantize(rng.normal(size=(3, 7)).astype(np.float32), Kind.BF16)
        writer.add_tensor("c", bf16, raw_dtype=Kind.BF16)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        compare(folder, expected, bf16)
    print("read: the numbers of gguf-py, bit by bit:", ", ".join(kind.name for kind in CODED))

    split = gguf.GGUFWriter(folder / "part.gguf", "of-nobody", split_max_tensors=2)
    expected = {f"t{n}": rng.normal(size=(n + 1, 3)).astype(np.float32) for n in range(5)}
    for name, values in expected.items():
        split.add_tensor(name, values)
    split.write_header_to_file()
    split.write_kv_data_to_file()
    split.write_tensors_to_file()
    split.close()
    for opened in ["part-00001-of-00003.gguf", "part-00003-of-00003.gguf"]:
        run("convert", folder / opened, folder / "whole.safetensors", "--force")
        for name, values in load_file(folder / "whole.safetensors").items():
            same(values.numpy(), expected.pop(name) if opened[6] == "3" else expected[name], name)
    (folder / "part-00002-of-00003.gguf").unlink()
    assert "part 2 of 3 is not there" in run("inspect", folder / "part-00001-of-00003.gguf", fails=True)
    other = gguf.GGUFWriter(folder / "other.gguf", "of-nobody", split_max_tensors=3)
    for n in range(8):
        other.add_tensor(f"u{n}", np.ones((n + 1, 3), np.float32))
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.write_tensors_to_file()
    other.close()
    (folder / "other-00002-of-00003.gguf").rename(folder / "part-00002-of-00003.gguf")
    said = run("inspect", folder / "part-00001-of-00003.gguf", fails=True)
    assert "part-00002-of-00003.gguf" in said and "`split.tensors.count` are 8" in said, said
    said = run("inspect", folder / "part-00003-of-00003.gguf", fails=True)
    assert "split.tensors.count" in said, said
    print("read: a model in three parts; a missing and a foreign one are refused")

    for kind in REFUSED:
        elements, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        writer = gguf.GGUFWriter(folder / "q.gguf", "of-nobody")
        writer.add_tensor("w", rng.integers(0, 256, (2, n_bytes), dtype=np.uint8), raw_dtype=kind)
        writer.add_tensor("x", np.ones(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert kind.name in run("inspect", folder / "q.gguf")
        (folder / "q.yaml").write_text("merge_method: linear\nmodels: [{model: q.gguf, parameters: {weight: 1}}]\n")
        for words in [["convert", "q.gguf", "q.safetensors"], ["convert", "q.gguf", "q.safetensors", "--dry-run"],
                      ["merge", "q.yaml", "--out", "q.safetensors", "--dry-run"], ["diff", "q.gguf", "q.gguf"],
                      ["distance", "q.gguf", "q.gguf"], ["extract-lora", "q.gguf", "q.gguf", "--rank", 1, "--out", "q"]]:
            said = run(*words, fails=True, cwd=folder)
            assert kind.name in said and "`w`" in said and "llama-quantize" in said, said
            assert not (folder / "q.safetensors").exists() and not (folder / "q").exists(), words
        run("diff", "q.gguf", "q.gguf", "--headers-only", cwd=folder)
    print("refused by name, before any work:", ", ".join(kind.name for kind in REFUSED))


def compare(folder, expected, bf16):
    run("convert", folder / "all.gguf", folder / "all.safetensors", "--force")
    own = load_file(folder / "all.safetensors")
    assert sorted(own) == sorted([*expected, "c"]), sorted(own)
    # Codes are written as bf16 unless f32 is asked for.
    same(own["c"].view(torch.int16).numpy().view(np.uint16), bf16.view(np.uint16).reshape(3, 7), "c")
    for name in expected:
        if name.startswith("b."):
            same(own[name].numpy(), expected[name], name)
    run("convert", folder / "all.gguf", folder / "all.safetensors", "--force", "--dtype", "f32")
    own = load_file(folder / "all.safetensors")
    for name in expected:
        if name.startswith("a."):
            same(own[name].numpy(), expected[name].astype(np.float32), name)


def pictures(folder):
    """The image tower of LLaVA with its projector, as llama.cpp's table of names has them; and as the first converters,
    which called the layers of MLPs the other way round."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 2)
    tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8))
    state = {f"vision_tower.{key if key.startswith('vision_model.') else 'vision_model.' + key}": value.numpy()
             for key, value in tower.state_dict().items() if "position_ids" not in key}
    for layer, shape in [(1, (40, 32)), (2, (40, 40))]:
        state[f"multi_modal_projector.linear_{layer}.weight"] = rng.normal(size=shape).astype(np.float32)
        state[f"multi_modal_projector.linear_{layer}.bias"] = rng.normal(size=shape[:1]).astype(np.float32)
    for is_old in [False, True]:
        writer = gguf.GGUFWriter(folder / "mmproj.gguf", "clip")
        writer.add_string("clip.projector_type", "mlp")
        for key, value in state.items():
            # The converter of LLaVA calls the layers of its projector by their places in a list.
            parts = re.fullmatch(r"multi_modal_projector.linear_(\d)(.*)", key)
            name = f"mm.{2 * int(parts[1]) - 2}{parts[2]}" if parts else names.get_name(key, (".weight", ".bias"))
            assert name, key
            if is_old and "ffn_" in name:
                name = name.replace("ffn_up", "ffn_x").replace("ffn_down", "ffn_up").replace("ffn_x", "ffn_down")
            writer.add_tensor(name, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        run("convert", folder / "mmproj.gguf", folder / "tower.safetensors", "--force")
        own = load_file(folder / "tower.safetensors")
        assert sorted(own) == sorted(state), set(own) ^ set(state)
        for key, value in own.items():
            same(value.numpy(), state[key], key)
    print("read: the image tower of LLaVA under its names")


# ---- writing ------------------------------------------------------------------------------------------------------

SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=320,
             max_position_embeddings=128)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
MODELS = {
    "llama": (transformers.LlamaConfig, dict(num_key_value_heads=2)),
    "llama3": (transformers.LlamaConfig, dict(num_key_value_heads=4, rope_parameters=LLAMA3)),
    "llama-tied": (transformers.LlamaConfig, dict(num_key_value_heads=1, tie_word_embeddings=True)),
    "mistral": (transformers.MistralConfig, dict(num_key_value_heads=2, head_dim=32, sliding_window=None)),
    "qwen2": (transformers.Qwen2Config, dict(num_key_value_heads=2)),
    "qwen3": (transformers.Qwen3Config, dict(num_key_value_heads=2, head_dim=128)),  # the only width that transformers reads
    "gemma2": (transformers.Gemma2Config, dict(num_key_value_heads=2, head_dim=256, query_pre_attn_scalar=256)),
}
MODELS["gemma3"] = (transformers.Gemma3TextConfig, dict(
    num_key_value_heads=2, head_dim=256, query_pre_attn_scalar=256, num_hidden_layers=7, sliding_window=4))
MODELS["phi3"] = (transformers.Phi3Config, dict(num_key_value_heads=2, pad_token_id=0, sliding_window=None))
LONG = dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.5, original_max_position_embeddings=64,
            short_factor=[1.0, 1.1, 1.2, 1.5], long_factor=[1.0, 2.0, 3.5, 4.0])
MODELS["phi3-long"] = (transformers.Phi3Config, dict(num_key_value_heads=4, pad_token_id=None, rope_parameters=LONG,
                                                    original_max_position_embeddings=64))
MODELS["granite"] = (transformers.GraniteConfig, dict(num_key_value_heads=2, attention_multiplier=0.3, logits_scaling=8.0,
                                                     embedding_multiplier=12.0, residual_multiplier=0.22))
MODELS["smollm3"] = (transformers.SmolLM3Config, dict(num_key_value_heads=2, num_hidden_layers=5, pad_token_id=None))
MIXED = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
MODELS["mixtral"] = (transformers.MixtralConfig, dict(num_key_value_heads=2, num_local_experts=4))
MODELS["qwen2_moe"] = (transformers.Qwen2MoeConfig, dict(num_key_value_heads=2, shared_expert_intermediate_size=64, **MIXED))
MODELS["qwen3_moe"] = (transformers.Qwen3MoeConfig, dict(num_key_value_heads=2, head_dim=16, norm_topk_prob=True, **MIXED))
LOADED = {"llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"}
TURNED, SHIFTED = {"llama", "granite", "smollm3"}, {"gemma2", "gemma3"}


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|begin|>", "<|end|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(["the quick brown fox jumps over the lazy dog, and the dog sleeps"] * 9, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|begin|>", eos_token="<|end|>",
                                                chat_template="{{ messages }}")


def model(folder, name, dtype=torch.bfloat16):
    config, more = MODELS[name]
    config = config(**{**SIZES, **more})
    made = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, weight in made.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.3 + ("norm" in key) * 1.0)
    made = made.to(dtype)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return made


def writing(folder):
    for name in MODELS:
        # transformers takes `mistral` in a model's name for an architecture, and then finds none of that name.
        own = folder / name.replace("mistral", "m")
        made = model(own, name)
        stored = load_file(own / "model.safetensors")
        state = {key: value.float().numpy() for key, value in stored.items()}
        for kind in [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0]:
            out = folder / f"{name}-{kind.name}.gguf"
            run("convert", own, out, "--outtype", kind.name.lower())
            check_file(out, name, kind, state, made.config)
            back = folder / "back.safetensors"
            if kind != Kind.Q8_0:
                run("convert", out, back, "--force")
                check_back(load_file(back), stored, kind, name)
        run("convert", own, folder / "kept.gguf", "--force")
        if name in LOADED:
            plain = transformers.AutoModelForCausalLM.from_pretrained(own, dtype=torch.float32)
            check_transformers(folder, f"{name}-F32.gguf", plain)
        print(f"written: {name}: bits of gguf-py{', loaded by transformers' if name in LOADED else ''}")


# What picks experts stays in f32.
ROUTER = r"(mlp|block_sparse_moe)\.(gate|shared_expert_gate)\.weight$"


def stacked(state):
    """The matrices of experts as one, as gguf-py's table of names has them."""
    experts = {}
    for key in sorted(state, key=lambda key: [int(part) if part.isdigit() else 0 for part in key.split(".")]):
        parts = re.fullmatch(r"(.*experts)\.\d+\.(\w+\.weight)", key)
        experts.setdefault(f"{parts[1]}.{parts[2]}" if parts else key, []).append(state[key])
    return {key: np.stack(values) if ".experts." in key else values[0] for key, values in experts.items()}


def check_file(out, name, kind, state, config):
    reader = gguf.GGUFReader(out)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    arch = fields["general.architecture"]
    n_layers = config.num_hidden_layers
    assert fields[f"{arch}.block_count"] == n_layers and fields[f"{arch}.embedding_length"] == 64
    assert fields[f"{arch}.attention.head_count_kv"] == config.num_key_value_heads
    assert fields["tokenizer.ggml.model"] == "gpt2" and len(fields["tokenizer.ggml.tokens"]) == 320
    assert fields["tokenizer.ggml.bos_token_id"] == 0 and fields["tokenizer.ggml.eos_token_id"] == 1
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    key = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}
    assert fields["general.file_type"] == key[kind.name]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], n_layers)
    found = {tensor.name: tensor for tensor in reader.tensors}
    for key, value in stacked(state).items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        known = names.get_name(key, try_suffixes=(".weight", ".bias"))
        tensor = found.pop(known)
        heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
        if arch in TURNED and ("q_proj" in key or "k_proj" in key):
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if arch in SHIFTED and key.endswith("norm.weight"):
            value = value + 1
        value = value[0] if key.endswith("shared_expert_gate.weight") else value
        wanted = kind if value.ndim > 1 and not re.search(ROUTER, key) else Kind.F32
        assert tensor.tensor_type == wanted, (key, tensor.tensor_type)
        assert list(tensor.shape)[::-1] == list(value.shape)
        same(np.array(tensor.data).view(np.uint8).reshape(-1),
             gguf.quants.quantize(value, wanted).view(np.uint8).reshape(-1), f"{name} {key}")
    if name == "llama3":
        factors = found.pop("rope_freqs.weight").data
        inverse, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = 1.0 / 500000.0 ** (torch.arange(0, 16, 2).float() / 16)
        assert np.allclose(factors, (plain / inverse).numpy(), rtol=1e-6), factors
    if name == "phi3-long":
        for length in ["short", "long"]:
            same(np.array(found.pop(f"rope_factors_{length}.weight").data),
                 np.array(config.rope_parameters[f"{length}_factor"], np.float32), length)
        assert fields["phi3.rope.dimension_count"] == 8 and fields["phi3.rope.scaling.original_context_length"] == 64
        assert abs(fields["phi3.rope.scaling.attn_factor"] - (1 + np.log(2) / np.log(64)) ** 0.5) < 1e-6
    if arch == "phi3":
        assert fields["phi3.attention.sliding_window"] == 0
    if arch == "gemma3":
        assert fields["gemma3.rope.freq_base"] == 1e6 and fields["gemma3.rope.freq_base_swa"] == 1e4
        assert fields["gemma3.attention.sliding_window"] == 4
    if arch == "granite":
        scales = [fields[f"granite.{key}"] for key in ["attention.scale", "embedding_scale", "residual_scale", "logit_scale"]]
        assert np.allclose(scales, [0.3, 12.0, 0.22, 8.0]), scales
    assert not found, list(found)


def check_back(own, stored, kind, name):
    """The file read again has the names of Hugging Face and its bits, rounded as the file is."""
    state = dict(stored)
    for key, value in own.items():
        wanted = state.pop(key).float()
        if value.dim() > 1 and not re.search(ROUTER, key):
            wanted = wanted.to({Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}[kind])
        elif name in SHIFTED:
            wanted = (wanted + 1) - 1
        assert value.dtype == wanted.dtype, (key, value.dtype)
        assert torch.equal(value, wanted), (name, kind, key)
    assert set(state) <= {"lm_head.weight"}, list(state)


def check_transformers(folder, file, made):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    own = loaded.state_dict()
    for key, value in made.state_dict().items():
        assert torch.allclose(own[key], value.float(), atol=1e-6), (file, key)
    ids = torch.randint(0, 300, (2, 11))
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, made(ids).logits, atol=1e-4), file


# ---- adapters -----------------------------------------------------------------------------------------------------


def adapters(folder):
    for name in ["llama", "qwen2"]:
        base = transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        for rslora in [False, True]:
            settings = LoraConfig(r=4, lora_alpha=10, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"],
                                  use_rslora=rslora)
            peft = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32),
                                  settings)
            with torch.no_grad():
                for key, weight in peft.named_parameters():
                    if "lora_" in key:
                        weight.copy_(torch.randn_like(weight))
            peft.save_pretrained(folder / "adapter")
            run("convert", folder / "adapter", folder / "adapter.gguf", "--base", folder / name, "--force")
            reader = gguf.GGUFReader(folder / "adapter.gguf")
            fields = {key: field.contents() for key, field in reader.fields.items()}
            assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
            found = {tensor.name: tensor.data for tensor in reader.tensors}
            names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[fields["general.architecture"].upper()], 2)
            merged, n = peft.merge_and_unload().state_dict(), 0
            for key, value in base.state_dict().items():
                known = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if f"{known}.lora_a" not in found:
                    continue
                a, b = found.pop(f"{known}.lora_a"), found.pop(f"{known}.lora_b")
                change = torch.tensor(fields["adapter.lora.alpha"] / a.shape[0] * (b @ a))
                heads = base.config.num_attention_heads if "q_proj" in key else base.config.num_key_value_heads
                if name == "llama" and ("q_proj" in key or "k_proj" in key):
                    change = change.reshape(heads, -1, 2, change.shape[1]).swapaxes(1, 2).reshape(change.shape)
                assert torch.allclose(value + change, merged[key], atol=1e-4), key
                n += 1
            assert n == 8 and not found, (n, list(found))
    print("written: adapters change weights as PEFT does")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        reading(folder)
        pictures(folder)
        writing(folder)
        adapters(folder)
