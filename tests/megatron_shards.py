"""Checkpoints of Megatron Core, made and judged by Megatron Core itself on processors alone.

    tests/with_torch.sh tests/megatron_shards.py target/release/vlmerge

Builds a small GPT on several tensor ranks and pipeline stages, gives it weights, computes its scores of some tokens, and
writes what `pretrain_gpt.py` writes for each rank (`args` are a namespace of the same names). `vlmerge convert` of the
folder must load strictly into the same GPT on one rank, which must give the same scores. Of models that transformers has,
`convert --to hf` makes a folder that transformers loads, and its model must give the same scores, too.
"""

import argparse
import contextlib
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")
# Nothing is compiled for models as small as these.
os.environ.update(TORCH_COMPILE_DISABLE="1", TORCHDYNAMO_DISABLE="1", TORCHINDUCTOR_COMPILE_THREADS="1")

import torch
import torch.distributed as dist
from safetensors.torch import load_file

import ranks

MODULES = ["megatron.core.models.gpt.gpt_layer_specs", "megatron.core.models.gpt.gpt_model"]

TOLERANCE = 1e-5  # of scores about 1 whose sums are over ranks in another order

HIDDEN, HEADS, TOKENS, LENGTH, LAYERS = 16, 4, 32, 8, 4

EPSILON = 3e-5

# Without the rows that fill the vocabulary up.
TRUE_TOKENS = 31


def start(rank, world, port, tensors, stages):
    """Megatron on this process, without a graphics card."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    dist.init_process_group("gloo")
    from megatron.core import parallel_state, tensor_parallel

    # There is no dropout, so that no generator of a card is needed.
    torch.cuda.current_device = lambda: "cpu"
    torch.Tensor.cuda = lambda tensor, *_: tensor
    tracker = argparse.Namespace(fork=lambda *_: contextlib.nullcontext())
    tensor_parallel.get_cuda_rng_tracker = lambda: tracker
    parallel_state.initialize_model_parallel(tensors, stages)
    return parallel_state


def build(case, parts, tensors, stages, parallel_state):
    """The parts of the model that this rank has."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    gated = case["gated"]
    config = TransformerConfig(
        num_layers=LAYERS // parts if stages == 1 else LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_query_groups=case["groups"],
        ffn_hidden_size=24,
        gated_linear_unit=gated,
        activation_func=torch.nn.functional.silu if gated else torch.nn.functional.gelu,
        add_bias_linear=case["bias"],
        add_qkv_bias=case["qkv_bias"],
        qk_layernorm=case["norms"],
        kv_channels=case["width"],
        normalization=case["norm"],
        layernorm_epsilon=EPSILON,
        use_cpu_initialization=True,
        pipeline_dtype=torch.float32,
        tensor_model_parallel_size=tensors,
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=parts if parts > 1 else None,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
    )
    models = []
    stage = parallel_state.get_pipeline_model_parallel_rank()
    for part in range(parts):
        if parts > 1:
            parallel_state.set_virtual_pipeline_model_parallel_world_size(parts)
            parallel_state.set_virtual_pipeline_model_parallel_rank(part)
        models.append(
            GPTModel(
                config=config,
                transformer_layer_spec=get_gpt_layer_local_spec(
                    qk_layernorm=case["norms"], normalization=case["norm"]
                ),
                vocab_size=TOKENS,
                max_sequence_length=LENGTH,
                pre_process=stage == 0 and part == 0,
                post_process=stage + 1 == stages and part + 1 == parts,
                share_embeddings_and_output_weights=case["tied"],
                position_embedding_type=case["positions"],
                rotary_base=case["base"],
                rope_scaling=case["stretched"],
                rope_scaling_factor=4.0,
                parallel_output=False,
            )
        )
    return models


def drawn(name, shape, rank):
    """Weights that go by their name, and of parts by their rank."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {rank}".encode()).digest()[:4], "little")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def is_split(name, parameter):
    return bool(getattr(parameter, "tensor_model_parallel", False)) or name.endswith(
        ("linear_qkv.bias", "linear_fc1.bias")
    )


def give_weights(models, stage, tensor_rank, tied):
    for part, model in enumerate(models):
        for name, parameter in model.named_parameters():
            known = name if "layers." not in name else f"{stage} {part} {name}"
            if tied and name == "output_layer.weight":
                known = "embedding.word_embeddings.weight"
            rank = tensor_rank if is_split(name, parameter) else 0
            parameter.data.copy_(drawn(known, parameter.shape, rank))


def inputs():
    tokens = torch.arange(LENGTH)[None] * 5 % TOKENS
    mask = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)[None, None]
    return tokens, torch.arange(LENGTH)[None], mask


def arguments(case):
    return argparse.Namespace(
        tensor_model_parallel_size=case["tensors"],
        pipeline_model_parallel_size=case["stages"],
        virtual_pipeline_model_parallel_size=case["parts"] if case["parts"] > 1 else None,
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        group_query_attention=True,
        num_query_groups=case["groups"],
        ffn_hidden_size=24,
        padded_vocab_size=TOKENS,
        num_experts=None,
        expert_model_parallel_size=1,
        swiglu=case["gated"],
        untie_embeddings_and_output_weights=not case["tied"],
        kv_channels=case["width"],
        normalization=case["norm"],
        norm_epsilon=EPSILON,
        position_embedding_type=case["positions"],
        rotary_base=case["base"],
        rotary_percent=1.0,
        rotary_interleaved=False,
        use_rope_scaling=case["stretched"],
        rope_scaling_factor=4.0,
        max_position_embeddings=LENGTH,
        vocab_size=None,
        params_dtype=torch.float32,
    )


def split(rank, port, folder, case):
    """One rank of the run: scores of the whole, and its file."""
    tensors, stages, parts = case["tensors"], case["stages"], case["parts"]
    state = start(rank, tensors * stages, port, tensors, stages)
    models = build(case, parts, tensors, stages, state)
    stage = state.get_pipeline_model_parallel_rank()
    tensor_rank = state.get_tensor_model_parallel_rank()
    give_weights(models, stage, tensor_rank, case["tied"])
    tokens, positions, mask = inputs()
    hidden = torch.zeros(LENGTH, 1, HIDDEN)
    for part in range(parts):
        if parts > 1:
            state.set_virtual_pipeline_model_parallel_rank(part)
        first, last = stage == 0 and part == 0, stage + 1 == stages and part + 1 == parts
        if not first:
            dist.recv(hidden, (rank - tensors) % (tensors * stages)) if stages > 1 else None
            models[part].set_input_tensor(hidden)
        out = models[part](tokens, positions, mask)
        if last:
            if tensor_rank == 0:
                torch.save(out, pathlib.Path(folder) / "scores.pt")
        elif stages > 1:
            dist.send(out.contiguous(), (rank + tensors) % (tensors * stages))
    name = f"mp_rank_{tensor_rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
    where = pathlib.Path(folder) / "iter_0000010" / name
    where.mkdir(parents=True)
    root = {"args": arguments(case), "checkpoint_version": 3.0, "iteration": 10}
    for part, model in enumerate(models):
        root["model" if parts == 1 else f"model{part}"] = model.state_dict_for_save_checkpoint()
    torch.save(root, where / "model_optim_rng.pt")
    dist.barrier()
    dist.destroy_process_group()


def whole(rank, port, folder, case):
    """The model on one rank, with the weights that the program put together."""
    state = start(rank, 1, port, 1, 1)
    [model] = build(case, 1, 1, 1, state)
    weights = load_file(pathlib.Path(folder) / "out.safetensors")
    mine = {name: tensor for name, tensor in model.state_dict().items() if torch.is_tensor(tensor)}
    assert set(weights) == set(mine), set(weights) ^ set(mine)
    model.load_state_dict(weights, strict=False)
    torch.save(model(*inputs()), pathlib.Path(folder) / "again.pt")
    dist.destroy_process_group()


def cases():
    usual = {"parts": 1, "groups": 2, "gated": True, "tied": False, "bias": True, "norms": False, "positions": "rope"}
    usual |= {"qkv_bias": True, "norm": "LayerNorm", "width": 4, "base": 10000, "stretched": False, "as": None}
    known = {**usual, "norm": "RMSNorm", "bias": False, "qkv_bias": False}
    yield "2 tensor ranks", {**usual, "tensors": 2, "stages": 1}
    yield "4 tensor ranks, a group each", {**usual, "tensors": 4, "stages": 1, "groups": 4}
    yield "not gated, learned positions", {**usual, "tensors": 2, "stages": 1, "gated": False, "positions": "learned_absolute"}
    yield "2 stages", {**usual, "tensors": 1, "stages": 2, "bias": False}
    yield "2 x 2, tied", {**usual, "tensors": 2, "stages": 2, "tied": True, "norms": True}
    yield "2 x 2, untied", {**usual, "tensors": 2, "stages": 2}
    yield "2 stages in turns, tied", {**usual, "tensors": 1, "stages": 2, "parts": 2, "tied": True}
    yield "2 x 2 in turns", {**usual, "tensors": 2, "stages": 2, "parts": 2}
    stretched = {"width": 8, "base": 1000000, "stretched": True}
    yield "a Llama, stretched", {**known, "tensors": 2, "stages": 2, **stretched, "as": "LlamaForCausalLM"}
    yield "a Llama with biases", {**known, "tensors": 1, "stages": 1, "bias": True, "qkv_bias": True, "as": "LlamaForCausalLM"}
    yield "a Qwen2, tied", {**known, "tensors": 2, "stages": 1, "tied": True, "qkv_bias": True, "as": "Qwen2ForCausalLM"}
    yield "a Qwen3", {**known, "tensors": 1, "stages": 2, "groups": 4, "norms": True, "width": 8, "as": "Qwen3ForCausalLM"}


def by_transformers(program, folder, case):
    """Scores of the folder that `convert --to hf` makes, by transformers, of the tokens that there are."""
    from transformers import AutoModelForCausalLM

    out = pathlib.Path(folder) / "hf"
    command = [program, "convert", folder, f"{out}/", "--to", "hf", "--run-arg", f"vocab_size={TRUE_TOKENS}"]
    subprocess.run(command, check=True, capture_output=True)
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, attn_implementation="eager")
    assert not any(report[kind] for kind in ["missing_keys", "unexpected_keys", "mismatched_keys"]), report
    assert type(model).__name__ == case["as"], type(model)
    with torch.no_grad():
        return model.eval()(inputs()[0]).logits


def refused(program, folder):
    """A model that transformers does not have is refused by the argument of the run, or by the tensor."""
    out = str(pathlib.Path(folder) / "hf") + "/"
    run = subprocess.run([program, "convert", folder, out, "--to", "hf"], capture_output=True, text=True)
    named = ["normalization=LayerNorm", "swiglu=false", "position_embedding_type=learned_absolute"]
    return run.returncode == 1 and any(name in run.stderr for name in named), run.stderr


def main():
    program, faults = os.path.abspath(sys.argv[1]), []
    wanted = sys.argv[2:]
    chosen = [(name, case) for name, case in cases() if not wanted or name in wanted]
    for name, case in chosen:
        with tempfile.TemporaryDirectory() as folder:
            ranks.start(split, (folder, case), case["tensors"] * case["stages"], MODULES)
            (pathlib.Path(folder) / "latest_checkpointed_iteration.txt").write_text("10")
            out = str(pathlib.Path(folder) / "out.safetensors")
            done = subprocess.run([program, "convert", folder, out], capture_output=True, text=True)
            if done.returncode:
                faults.append(f"{name}: {done.stderr}")
                continue
            ranks.start(whole, (folder, case), 1, MODULES)
            scores, again = (torch.load(pathlib.Path(folder) / file) for file in ["scores.pt", "again.pt"])
            off = (scores - again).abs().max().item()
            print(f"{name}: scores of {scores.abs().max():.2f} differ by {off:.1e}", flush=True)
            if not off <= TOLERANCE * scores.abs().max():
                faults.append(f"{name}: scores differ by {off}")
            if case["as"] is None:
                is_refused, said = refused(program, folder)
                if not is_refused:
                    faults.append(f"{name}: --to hf is not refused by its cause: {said}")
                continue
            off = (scores[..., :TRUE_TOKENS] - by_transformers(program, folder, case)).abs().max().item()
            print(f"{name}: scores of {case['as']} differ by {off:.1e}", flush=True)
            if not off <= TOLERANCE * scores.abs().max():
                faults.append(f"{name}: scores of {case['as']} differ by {off}")
    for fault in faults:
        print("FAULT", fault)
    if faults or not chosen:
        sys.exit(1)
    n_known = sum(case["as"] is not None for _, case in chosen)
    print(f"{len(chosen)} checkpoints of Megatron Core compute on one rank what they computed on all, {n_known} in transformers, too")


if __name__ == "__main__":
    main()
