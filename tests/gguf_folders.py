"""GGUF files become model folders, in one file or in parts: transformers loads of them the model that they were made of.

    tests/with_torch.sh tests/gguf_folders.py target/release/vlmerge

1. Of every architecture that is written: the logits of the model, those of transformers' own GGUF loader where it has the
   architecture, and the same tokens of texts.
2. Vocabularies of SentencePiece: the tokens that SentencePiece itself makes, and those of transformers' own conversion.
3. Files in parts count themselves as those of gguf-py do.
4. A CLIP of both towers under clip.cpp's names, with gguf-py's bits.
"""

import json
import pathlib
import tempfile

import gguf
import numpy as np
import sentencepiece
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from gguf_reference import LLAMA3, LOADED, MODELS, SIZES, model, run, same
from safetensors.torch import load_file

TEXTS = ["the dog sleeps", " and  the quick\n\nfox's 12345 dogs <|end|>", "été 東京 🦊", ""]


def check_tokenizers(first, second, texts):
    for text in texts:
        one, other = first(text).input_ids, second(text).input_ids
        assert one == other, (text, one, other)
        assert first.decode(one) == second.decode(other), text


def check_folder(folder, name, own, plain):
    """A file becomes a folder of which transformers loads the same model, and the same tokenizer."""
    out, file = folder / f"{own.name}-again", f"{own.name}-F32.gguf"
    run("convert", own, folder / file, "--outtype", "f32")
    run("convert", folder / file, out)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not any(info[kind] for kind in ["missing_keys", "unexpected_keys", "mismatched_keys"]), (name, info)
    assert again.dtype == torch.float32 and (again.config.eos_token_id, again.config.bos_token_id) == (1, 0)
    assert again.generation_config.eos_token_id == 1
    ids = torch.randint(0, 300, (2, 11))
    with torch.no_grad():
        expected, found = plain(ids).logits, again(ids).logits
        assert torch.allclose(expected, found, atol=1e-5), (name, (expected - found).abs().max())
        if name in LOADED:
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=file, dtype=torch.float32)
            assert torch.allclose(loaded(ids).logits, found, atol=1e-5), name
    check_tokenizers(*(transformers.AutoTokenizer.from_pretrained(path) for path in [own, out]), TEXTS)
    second = transformers.AutoTokenizer.from_pretrained(out)
    assert (second.bos_token, second.eos_token, second.chat_template) == ("<|begin|>", "<|end|>", "{{ messages }}")
    if name == "llama3":
        of = again.config.rope_parameters
        assert {key: of[key] for key in LLAMA3} == LLAMA3, of
    run("convert", own, folder / "codes.gguf", "--outtype", "q8_0", "--force")
    run("convert", folder / "codes.gguf", folder / "codes", "--force")
    assert transformers.AutoConfig.from_pretrained(folder / "codes").dtype == torch.bfloat16


def in_parts(folder):
    """A file in parts: each counts itself as those of gguf-py do, and all are the model."""
    run("convert", folder / "llama", folder / "in-parts.gguf", "--max-shard-size", "60KB")
    paths = sorted(folder.glob("in-parts-*.gguf"))
    assert len(paths) > 2 and paths[0].name == f"in-parts-00001-of-{len(paths):05}.gguf", paths
    other = gguf.GGUFWriter(folder / "other.gguf", "of-nobody", split_max_tensors=1)
    for n in range(2):
        other.add_tensor(f"u{n}", np.ones(3, np.float32))
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.write_tensors_to_file()
    other.close()
    judge = gguf.GGUFReader(folder / "other-00001-of-00002.gguf")
    run("convert", folder / "llama", folder / "llama-BF16.gguf")
    n_tensors = len(gguf.GGUFReader(folder / "llama-BF16.gguf").tensors)
    names = []
    for number, path in enumerate(paths):
        reader = gguf.GGUFReader(path)
        names += [tensor.name for tensor in reader.tensors]
        assert sum(tensor.n_bytes for tensor in reader.tensors) <= 60000 or len(reader.tensors) == 1
        said = {key: reader.fields[key].contents() for key in reader.fields if key.startswith("split.")}
        assert said == {"split.no": number, "split.count": len(paths), "split.tensors.count": n_tensors}, said
        for key in said:
            assert reader.fields[key].types == judge.fields[key].types, key
        assert ("general.architecture" in reader.fields) == (number == 0)
    assert len(names) == len(set(names)) == n_tensors
    run("convert", folder / "llama-BF16.gguf", folder / "whole.safetensors", "--force")
    run("convert", paths[1], folder / "parts.safetensors", "--force")
    whole, parts = load_file(folder / "whole.safetensors"), load_file(folder / "parts.safetensors")
    assert sorted(whole) == sorted(parts) and all(torch.equal(whole[key], parts[key]) for key in whole)
    run("convert", paths[0], folder / "parts-again")
    transformers.AutoModelForCausalLM.from_pretrained(folder / "parts-again")
    print(f"written: a model in {len(paths)} parts")


def clips(folder):
    """A CLIP of both towers under clip.cpp's names: the names of gguf-py's table, with the layers of MLPs the other way
    round, and `t` in the place of `v` for texts."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 2)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    for act, end in [("quick_gelu", 99), ("gelu", 2)]:
        config = transformers.CLIPConfig(
            vision_config=dict(sizes, intermediate_size=96, image_size=32, patch_size=8, hidden_act=act),
            text_config=dict(sizes, intermediate_size=64, vocab_size=100, max_position_embeddings=16, hidden_act=act,
                             eos_token_id=end, bos_token_id=98, pad_token_id=99),
            projection_dim=24)
        made = transformers.CLIPModel(config).eval()
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(torch.randn_like(weight) * 0.2)
        own = folder / f"clip-{act}"
        made.save_pretrained(own)
        transformers.CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(own)
        (own / "vocab.json").write_text("{" + ", ".join(f'"w{n}": {n}' for n in range(100)) + "}")
        state = load_file(own / "model.safetensors")
        for kind in [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0]:
            out = folder / f"clip-{act}-{kind.name}.gguf"
            run("convert", own, out, "--outtype", kind.name.lower())
            reader = gguf.GGUFReader(out)
            fields = {key: field.contents() for key, field in reader.fields.items()}
            assert fields["general.architecture"] == "clip" and fields["clip.has_text_encoder"]
            assert fields["clip.use_gelu"] == (act == "gelu") and len(fields["tokenizer.ggml.tokens"]) == 100
            assert fields["clip.vision.image_size"] == 32 and fields["clip.text.context_length"] == 16
            assert np.allclose(fields["clip.vision.image_mean"], [0.1, 0.2, 0.3])
            found = {tensor.name: tensor for tensor in reader.tensors}
            for key, value in state.items():
                if key.endswith("position_ids"):
                    continue
                known = key
                if "_model." in key:
                    known = names.get_name("vision_tower.vision_model." + key.split(".", 1)[1].replace(
                        "token_embedding", "patch_embedding").replace("final_layer_norm", "post_layernorm"), (".weight", ".bias"))
                    known = known.replace("ffn_up", "x").replace("ffn_down", "ffn_up").replace("x", "ffn_down")
                    if key.startswith("text_model."):
                        known = known.replace("v.", "t.", 1).replace("patch_embd", "token_embd")
                tensor, value = found.pop(known), np.atleast_1d(value.float().numpy())
                wanted = Kind.F32
                if value.ndim == 4 and kind != Kind.F32:
                    wanted = Kind.F16
                elif value.ndim == 2:
                    wanted = kind if kind != Kind.Q8_0 or value.shape[-1] % 32 == 0 else Kind.F16
                assert tensor.tensor_type == wanted, (key, tensor.tensor_type, wanted)
                same(np.array(tensor.data).view(np.uint8).reshape(-1),
                     gguf.quants.quantize(value, wanted).view(np.uint8).reshape(-1), f"{act} {kind} {key}")
            assert not found, list(found)
        again = folder / f"clip-{act}-again"
        run("convert", folder / f"clip-{act}-F32.gguf", again)
        for key, value in load_file(again / "model.safetensors").items():
            assert torch.equal(value, state[key]), key
        loaded, info = transformers.CLIPModel.from_pretrained(again, output_loading_info=True)
        assert not any(info[kind] for kind in ["missing_keys", "unexpected_keys", "mismatched_keys"]), info
        inputs = dict(input_ids=torch.tensor([[98, 5, 7, 99, 99], [98, 3, 99, 99, 99]]), pixel_values=torch.randn(2, 3, 32, 32))
        with torch.no_grad():
            assert torch.allclose(made(**inputs).logits_per_image, loaded.eval()(**inputs).logits_per_image, atol=1e-5), act
        pictures = transformers.CLIPImageProcessor.from_pretrained(again)
        assert np.allclose(pictures.image_mean, [0.1, 0.2, 0.3]) and np.allclose(pictures.image_std, [0.4, 0.5, 0.6])
    print("written: CLIP of both towers under clip.cpp's names; a folder again")


def sentences(folder):
    """Vocabularies of SentencePiece, with a space before texts and, as Gemma's, without."""
    corpus = ["the quick brown fox jumps over the lazy dog, and the dog sleeps; 12 foxes don't"] * 20
    for name, has_prefix in [("llama", True), ("gemma2", False)]:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus), model_prefix=str(folder / name), vocab_size=340, model_type="bpe",
            byte_fallback=True, add_dummy_prefix=has_prefix, remove_extra_whitespaces=False, hard_vocab_limit=False,
            normalization_rule_name="identity", minloglevel=2)
        judge = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.model"))
        config, more = MODELS[name]
        made = transformers.AutoModelForCausalLM.from_config(config(**{**SIZES, **more, "vocab_size": 350}))
        own = folder / f"{name}-sp"
        made.save_pretrained(own)
        (folder / f"{name}.model").rename(own / "tokenizer.model")
        (own / "tokenizer_config.json").write_text(json.dumps(
            {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}))
        run("convert", own, folder / f"{name}-sp.gguf")
        run("convert", folder / f"{name}-sp.gguf", folder / f"{name}-sp-again")
        again = transformers.AutoTokenizer.from_pretrained(folder / f"{name}-sp-again")
        for text in TEXTS + ["  two spaces", "a\tb\u00a0c"]:
            ids = [1, *judge.encode(text)]
            assert again(text).input_ids == ids, (name, text, again(text).input_ids, ids)
            assert again.decode(ids, skip_special_tokens=True) == judge.decode(ids[1:]), (name, text)
        theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=f"{name}-sp.gguf")
        # transformers puts no second space before a text that begins with one.
        check_tokenizers(theirs, again, [text for text in TEXTS if text and not text.startswith(" ")])
    print("read: vocabularies of SentencePiece")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in MODELS:
            # transformers takes `mistral` in a model's name for an architecture, and then finds none of that name.
            own = folder / name.replace("mistral", "m")
            model(own, name)
            check_folder(folder, name, own, transformers.AutoModelForCausalLM.from_pretrained(own, dtype=torch.float32))
            print(f"a folder again: {name}")
        sentences(folder)
        in_parts(folder)
        clips(folder)
