"""Quantized models as the libraries write them: what those libraries make of the codes, beside what
`vlmerge convert --dequantize` does.

    tests/with_torch.sh tests/quantized_reference.py target/release/vlmerge
    tests/with_torch.sh tests/quantized_reference.py --write fixtures/quantized [CASE ...]

transformers, compressed-tensors and bitsandbytes quantize and dequantize on the CPU. The libraries of GPTQ and AWQ
need a GPU to be installed, so their published formulas are written here once more, in numpy. `--write` writes the
models and the numbers as fixtures of the Rust tests instead.
"""

import functools
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")

import numpy as np
import sparse_wheel
import torch
from safetensors.torch import load_file, save_file

FIXTURES = pathlib.Path(sys.argv[2]) if sys.argv[1] == "--write" else None
PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
torch.manual_seed(3)


def noise(*shape, scale=0.05):
    return torch.randn(*shape) * scale


def blocks(scales, high, wide, rows, columns):
    return scales.repeat_interleave(high, -2).repeat_interleave(wide, -1)[..., :rows, :columns]


def to_fp8(weight, scales):
    return (weight / scales).clamp(-448, 448).to(torch.float8_e4m3fn)


# ---- 8-bit floats -------------------------------------------------------------------------------------------------


def fp8_blocks():
    """DeepSeek and Qwen: blocks of 128 x 128, the last ones cut; transformers multiplies likewise."""
    weight = noise(130, 200)
    largest = torch.zeros(2, 2)
    for i in range(2):
        for j in range(2):
            largest[i, j] = weight[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128].abs().max()
    scales = largest / 448
    codes = to_fp8(weight, blocks(scales, 128, 128, 130, 200))
    expected = codes.float() * blocks(scales, 128, 128, 130, 200)
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales}
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return tensors, {"a.weight": expected}, config


def transformers_fp8():
    """Blocks that divide the weight, by transformers' own dequantization."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    class Quantizer:
        quantization_config = None

    scales = torch.rand(4, 2) * 0.01
    codes = to_fp8(noise(64, 64), blocks(scales, 16, 32, 64, 64))
    expected = Fp8Dequantize(Quantizer())._dequantize_one(codes, scales, torch.float32)
    tensors = {"a.weight": codes, "a.weight_scale_inv": scales}
    return tensors, {"a.weight": expected}, {"quant_method": "fp8", "weight_block_size": [16, 32]}


def compressed(codes, scales, strategy, kind="float", bits=8, zeros=None, **more):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    args = QuantizationArgs(num_bits=bits, type=kind, strategy=strategy, symmetric=zeros is None, **more)
    return dequantize(codes, scales, zeros, args=args, dtype=torch.float32).float()


def fp8_scales():
    """compressed-tensors: one scale, one per row, and one per group."""
    tensors, expected = {}, {}
    for name, strategy, shape, more in [
        ("one", "tensor", (1,), {}),
        ("rows", "channel", (24, 1), {}),
        ("groups", "group", (24, 4), {"group_size": 16}),
    ]:
        scales = torch.rand(shape) * 0.01 + 1e-4
        spread = scales.repeat_interleave(16, 1) if strategy == "group" else scales
        codes = to_fp8(noise(24, 64), spread)
        tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"] = codes, scales
        tensors[f"{name}.input_scale"] = torch.ones(1)
        expected[f"{name}.weight"] = compressed(codes, scales, strategy, **more)
    config = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    return tensors, expected, config


def int8_rows():
    """compressed-tensors' 8-bit integers, with zero points."""
    scales = torch.rand(24, 1) * 0.01
    zeros = torch.randint(-9, 9, (24, 1), dtype=torch.int8)
    codes = torch.randint(-128, 128, (24, 40), dtype=torch.int8)
    expected = compressed(codes, scales, "channel", kind="int", zeros=zeros)
    tensors = {"a.weight": codes, "a.weight_scale": scales, "a.weight_zero_point": zeros}
    config = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    return tensors, {"a.weight": expected}, config


def mxfp8():
    exponents = torch.randint(110, 125, (24, 2), dtype=torch.uint8)
    scales = torch.exp2(exponents.float() - 127)
    codes = to_fp8(noise(24, 64, scale=1.0), scales.repeat_interleave(32, 1) * 100)
    expected = compressed(codes, scales, "group", group_size=32)
    tensors = {"a.weight": codes, "a.weight_scale": exponents}
    return tensors, {"a.weight": expected}, {"quant_method": "compressed-tensors", "format": "mxfp8-quantized"}


# ---- 4-bit floats -------------------------------------------------------------------------------------------------


def mxfp4():
    """gpt-oss's experts, by transformers' own conversion."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    codes = torch.randint(0, 256, (3, 40, 2, 16), dtype=torch.uint8)
    exponents = torch.randint(115, 130, (3, 40, 2), dtype=torch.uint8)
    expected = convert_moe_packed_tensors(codes, exponents, dtype=torch.float32)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {f"{name}_blocks": codes, f"{name}_scales": exponents}
    return tensors, {name: expected.contiguous()}, {"quant_method": "mxfp4"}


def fours():
    """compressed-tensors' MXFP4 and NVFP4, and NVFP4 of ModelOpt."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    tensors, expected = {}, {}
    codes = torch.randint(0, 256, (24, 32), dtype=torch.uint8)
    values = unpack_fp4_from_uint8(codes, 24, 64, torch.float32)

    exponents = torch.randint(115, 130, (24, 2), dtype=torch.uint8)
    tensors |= {"mx.weight_packed": codes, "mx.weight_scale": exponents}
    expected["mx.weight"] = values * torch.exp2(exponents.float() - 127).repeat_interleave(32, 1)

    scales = (torch.rand(24, 4) * 200 + 1).to(torch.float8_e4m3fn)
    divisor = torch.tensor([371.5])
    tensors |= {"nv.weight_packed": codes.clone(), "nv.weight_scale": scales, "nv.weight_global_scale": divisor}
    tensors["nv.input_global_scale"] = torch.ones(1)
    spread = scales.float() / divisor
    expected["nv.weight"] = compressed(values, spread, "group", bits=4, group_size=16)

    factor = torch.tensor(0.00321)
    tensors |= {"opt.weight": codes.clone(), "opt.weight_scale": scales.clone(), "opt.weight_scale_2": factor}
    tensors["opt.input_scale"] = torch.ones(1)
    expected["opt.weight"] = values * (scales.float() * factor).repeat_interleave(16, 1)
    return tensors, expected, {"quant_method": "compressed-tensors"}


# ---- bitsandbytes ---------------------------------------------------------------------------------------------------


def bitsandbytes():
    """NF4, nested and plain, FP4, and 8-bit integers."""
    import bitsandbytes.functional as bnb

    tensors, expected = {}, {}
    for name, kind, nested, size in [("nf4", "nf4", False, 64), ("double", "nf4", True, 64), ("fp4", "fp4", False, 128)]:
        # The kernel for CPUs takes blocks row by row, so that rows must hold whole ones.
        weight = noise(20, 128)
        codes, state = bnb.quantize_4bit(weight, blocksize=size, compress_statistics=nested, quant_type=kind)
        tensors[f"{name}.weight"] = codes
        for key, value in state.as_dict(packed=True).items():
            tensors[f"{name}.weight.{key}"] = value
        expected[f"{name}.weight"] = bnb.dequantize_4bit(codes, state).float()
    weight = noise(24, 40)
    largest = weight.abs().amax(1)
    codes = torch.round(weight * 127 / largest[:, None]).to(torch.int8)
    tensors |= {"int8.weight": codes, "int8.SCB": largest, "int8.weight_format": torch.tensor(0, dtype=torch.uint8)}
    expected["int8.weight"] = bnb.int8_vectorwise_dequant(codes, largest)
    return tensors, expected, {"quant_method": "bitsandbytes"}


# ---- integers of few bits -------------------------------------------------------------------------------------------


def packed():
    """compressed-tensors' packed integers: symmetric, and with zero points."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    tensors, expected = {}, {}
    for name, bits, group, with_zeros in [("four", 4, 16, False), ("zeros", 4, 16, True), ("eight", 8, 64, False)]:
        half = 1 << (bits - 1)
        codes = torch.randint(-half, half, (20, 64), dtype=torch.int8)
        scales = torch.rand(20, 64 // group) * 0.01
        zeros = torch.randint(-half, half, scales.shape, dtype=torch.int8) if with_zeros else None
        tensors[f"{name}.weight_packed"] = pack_to_int32(codes, bits)
        tensors[f"{name}.weight_scale"] = scales
        tensors[f"{name}.weight_shape"] = torch.tensor([20, 64])
        if with_zeros:
            tensors[f"{name}.weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0).contiguous()
        expected[f"{name}.weight"] = compressed(codes, scales, "group", "int", bits, zeros, group_size=group)
    return tensors, expected, {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def bit_rows(values, bits):
    """Integers of few bits down the rows of a matrix as words of 32 bits, the first in the lowest bits."""
    rows, columns = values.shape
    words = np.zeros((rows * bits // 32, columns), dtype=np.uint64)
    for row in range(rows):
        at = row * bits
        value = values[row].astype(np.uint64) << np.uint64(at % 32)
        words[at // 32] |= value & np.uint64(0xFFFFFFFF)
        if at % 32 + bits > 32:
            words[at // 32 + 1] |= value >> np.uint64(32)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


def gptq(zero_offset=1):
    """AutoGPTQ's layout, `qlinear_cuda`: (code - (zero + 1)) * scale; v2 of GPTQModel has the zero as it is."""
    generator = np.random.default_rng(5)
    tensors, expected = {}, {}
    for name, bits, shuffled in [("two", 2, False), ("three", 3, False), ("four", 4, True), ("eight", 8, False)]:
        inputs, outputs, group = 64, 64, 32
        codes = generator.integers(0, 1 << bits, (inputs, outputs))
        zeros = generator.integers(0, (1 << bits) - 1, (inputs // group, outputs))
        scales = (generator.random((inputs // group, outputs)) * 0.01).astype(np.float16)
        groups = np.arange(inputs) // group
        if shuffled:
            generator.shuffle(groups)
        tensors[f"{name}.qweight"] = bit_rows(codes, bits)
        tensors[f"{name}.qzeros"] = bit_rows(zeros.T, bits).T.contiguous()
        tensors[f"{name}.scales"] = torch.from_numpy(scales)
        tensors[f"{name}.g_idx"] = torch.from_numpy(groups.astype(np.int32))
        numbers = (codes - (zeros[groups] + zero_offset)) * scales[groups].astype(np.float32)
        expected[f"{name}.weight"] = torch.from_numpy(numbers.astype(np.float32).T.copy())
    form = "gptq" if zero_offset else "gptq_v2"
    return tensors, expected, {"quant_method": "gptq", "checkpoint_format": form}


def awq():
    """AutoAWQ's layout, `dequantize_gemm`: eight outputs in a word, in the order 0 2 4 6 1 3 5 7."""
    generator = np.random.default_rng(6)
    inputs, outputs, group = 64, 32, 16
    codes = generator.integers(0, 16, (inputs, outputs))
    zeros = generator.integers(0, 16, (inputs // group, outputs))
    scales = (generator.random((inputs // group, outputs)) * 0.01).astype(np.float16)

    def pack(values):
        words = np.zeros((values.shape[0], values.shape[1] // 8), dtype=np.uint32)
        for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            words |= values[:, column::8].astype(np.uint32) << np.uint32(4 * place)
        return torch.from_numpy(words.view(np.int32).copy())

    tensors = {"a.qweight": pack(codes), "a.qzeros": pack(zeros), "a.scales": torch.from_numpy(scales)}
    groups = np.arange(inputs) // group
    numbers = (codes - zeros[groups]) * scales[groups].astype(np.float32)
    expected = {"a.weight": torch.from_numpy(numbers.astype(np.float32).T.copy())}
    return tensors, expected, {"quant_method": "awq", "bits": 4, "version": "gemm"}


# ---- sparse weights -------------------------------------------------------------------------------------------------

# Of a generator of its own, which leaves the draws of other cases as they are.
SPARSE_SCALES = torch.rand(24, 1, generator=torch.Generator().manual_seed(7)) * 0.01 + 1e-4


@functools.cache
def sparse_models():
    """Weights as the library packs them in both formats, with what it makes of them: any elements, in rows of whole bytes
    and others, an empty row and a vector; two of four elements, of numbers and of FP8."""
    some = {"a.weight": noise(20, 64), "odd.weight": noise(7, 13), "norm1.weight": noise(50)}
    some = {key: torch.where(torch.rand(value.shape) < 0.7, 0, value).bfloat16() for key, value in some.items()}
    some["a.weight"][3] = 0
    half = {"a.weight": noise(20, 32).bfloat16(), "eight.weight": to_fp8(noise(24, 64), SPARSE_SCALES)}
    return sparse_wheel.run({"sparse-bitmask": some, "sparse-24-bitmask": half})


def sparse():
    made = sparse_models()
    if made is None:
        return None
    tensors, numbers = made["sparse-bitmask"]
    # Early releases named the parts after the weight itself.
    for part in ["compressed", "bitmask", "shape", "row_offsets"]:
        tensors[f"odd.weight.{part}"] = tensors.pop(f"odd.{part}")
    config = {"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": {"format": "sparse-bitmask"}}
    return tensors, {key: value.float() for key, value in numbers.items()}, config


def sparse_24():
    made = sparse_models()
    if made is None:
        return None
    tensors, numbers = made["sparse-24-bitmask"]
    tensors["eight.weight_scale"] = SPARSE_SCALES
    numbers["eight.weight"] = compressed(numbers["eight.weight"], SPARSE_SCALES, "channel")
    config = {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}
    return tensors, {key: value.float() for key, value in numbers.items()}, config


CASES = {
    "fp8_blocks": fp8_blocks,
    "transformers_fp8": transformers_fp8,
    "fp8_scales": fp8_scales,
    "int8_rows": int8_rows,
    "mxfp8": mxfp8,
    "mxfp4": mxfp4,
    "fours": fours,
    "bitsandbytes": bitsandbytes,
    "packed": packed,
    "gptq": gptq,
    "gptq_v2": lambda: gptq(0),
    "awq": awq,
    "sparse": sparse,
    "sparse_24": sparse_24,
}
# What the library makes of these is compared bit for bit.
EXACT = ["sparse", "sparse_24"]
# Of the largest value: the last bits of a product or two. bitsandbytes on a CPU rounds a little otherwise.
TOLERANCE = 1e-6


def write(name, folder):
    made = CASES[name]()
    if made is None:
        return None, None
    tensors, expected, quantization = made
    model = folder / name
    model.mkdir(parents=True)
    tensors["norm.weight"] = torch.ones(8, dtype=torch.bfloat16)
    save_file({key: value.contiguous() for key, value in tensors.items()}, model / "model.safetensors")
    config = {"model_type": "llama", "quantization_config": quantization}
    (model / "config.json").write_text(json.dumps(config) + "\n")
    return model, expected


def check(name, folder):
    model, expected = write(name, folder)
    if model is None:
        return None
    target = folder / f"{name}-numbers"
    command = [PROGRAM, "convert", model, target, "--dequantize", "--dtype", "f32", "--quiet"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert run.returncode == 0, f"{name}: {run.stderr}"
    found = load_file(target / "model.safetensors")
    assert found.keys() == expected.keys() | {"norm.weight"}, f"{name}: {sorted(found)}"
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    worst, tolerance = 0.0, 0.0 if name in EXACT else TOLERANCE
    for key, value in expected.items():
        assert found[key].shape == value.shape, f"{name} {key}: {found[key].shape}, expected {value.shape}"
        worst = max(worst, float((found[key] - value).abs().max() / value.abs().max()))
    assert worst <= tolerance, f"{name}: off by {worst}"
    return worst


if FIXTURES is not None:
    for case in sys.argv[3:] or CASES:
        shutil.rmtree(FIXTURES / case, ignore_errors=True)
        _, numbers = write(case, FIXTURES)
        save_file({key: value.contiguous() for key, value in numbers.items()}, FIXTURES / f"{case}.safetensors")
    sys.exit()

with tempfile.TemporaryDirectory() as folder:
    for case in CASES:
        worst = check(case, pathlib.Path(folder))
        if worst is None:
            print(f"SKIPPED: {case}: {sparse_wheel.WHEEL} cannot be had")
        else:
            print(f"{case}: largest difference {worst:.1e} of the largest value")
print(f"{len(CASES)} looked at, 0 failed")
