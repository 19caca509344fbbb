"""A golden set of timm's vision transformers: tiny classifiers of each form with the configuration that timm saves,
what timm makes of them, gradients, position tables of other sizes, a picture, and what its names of architectures say.

    tests/with_torch.sh tests/timm_reference.py --write fixtures/vit [--seed 7]
    VLMERGE_GOLDEN=DIR cargo test --release --workspace golden      where DIR/vit is another set
"""

import argparse
import json
import os
import pathlib
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import numpy
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models._hub import save_for_hf

CLASSES = 7
SIDE, PATCH = 24, 8

# Each form, by an architecture of timm that has it, at tiny sizes.
FORMS = {
    "token": ("vit_base_patch16_224", dict(embed_dim=24, num_heads=3, mlp_ratio=2.0)),
    "mean": ("vit_medium_patch16_gap_240", dict(embed_dim=32, num_heads=2)),
    "registers": ("vit_medium_patch16_reg4_gap_256", dict(embed_dim=24, num_heads=2)),
    "token_registers": ("vit_small_patch14_reg4_dinov2", dict(embed_dim=24, num_heads=4)),
    "clip": ("vit_base_patch32_clip_quickgelu_224", dict(embed_dim=24, num_heads=3, mlp_ratio=2.0)),
    "tanh": ("vit_so400m_patch16_siglip_gap_256", dict(embed_dim=32, num_heads=4)),
}

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}


def model_of(form, seed):
    """A model whose every parameter is at work."""
    architecture, sizes = FORMS[form]
    torch.manual_seed(seed)
    model = timm.create_model(
        architecture, img_size=SIDE, patch_size=PATCH, depth=2, num_classes=CLASSES, **sizes,
        pretrained_cfg_overlay={"crop_pct": 0.8} if form == "token" else None,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("gamma"):
                parameter.copy_(0.5 + 0.2 * noise)
            else:
                parameter.copy_(0.15 * noise)
    return model


def forward(model, images):
    with torch.no_grad():
        tokens = model.forward_features(images)
        pooled = model.forward_head(tokens, pre_logits=True)
        outputs = {"tokens": tokens, "pooled": pooled, "logits": model.head(pooled)}
        return {name: tensor.clone().contiguous() for name, tensor in outputs.items()}


def gradients(model, images, labels):
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return loss.item(), {name: p.grad.clone().contiguous() for name, p in model.named_parameters()}


def architectures():
    """What timm's vision transformers of this module are built with, those whose forms are another aside."""
    found = {}
    for name in timm.list_models(module="vision_transformer") + timm.list_models(module="deit"):
        with torch.device("meta"):
            model = timm.create_model(name)
        if type(model).__name__ != "VisionTransformer" or type(model.blocks[0]).__name__ != "Block":
            continue
        block, pool = model.blocks[0], model.global_pool
        is_plain = type(block.mlp).__name__ == "Mlp" and type(block.attn).__name__ == "Attention"
        has_other = any("q_norm" in key or "norm.weight" in key for key in block.attn.state_dict())
        norms = [model.norm, model.fc_norm]
        is_normed = any(type(norm).__name__ == "LayerNorm" for norm in norms)
        if not is_plain or has_other or not is_normed or pool not in ("token", "avg"):
            continue
        act = block.mlp.act
        found[name] = {
            "heads": block.attn.num_heads,
            "width": model.embed_dim,
            "activation": {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh"}[type(act).__name__],
            "epsilon": block.norm1.eps,
            "global_pool": pool,
        }
    return found


def picture(seed):
    generator = numpy.random.default_rng(seed)
    small = generator.integers(0, 256, (9, 12, 3), dtype=numpy.uint8)
    return Image.fromarray(small).resize((67, 45), Image.Resampling.BICUBIC)


def write(target, seed):
    cases = []
    for folder in ["inputs", "forward", "grad", "pos_embed", "preprocess"]:
        (target / folder).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    images = torch.randn(3, 3, SIDE, SIDE)
    labels = torch.randint(0, CLASSES, (3,))
    save_file({"pixel_values": images, "label": labels}, target / "inputs/inputs.safetensors")
    image = picture(seed)
    image.save(target / "preprocess/picture.png")
    for number, form in enumerate(FORMS):
        model = model_of(form, seed + number)
        save_for_hf(model, target / form, safe_serialization=True)
        save_file(forward(model, images), target / f"forward/{form}.safetensors")
        cases.append({
            "id": f"forward/{form}", "op": "forward", "model": form, "input": "inputs/inputs.safetensors",
            "expected": f"forward/{form}.safetensors", "tolerance": TOLERANCE,
        })
        loss, grads = gradients(model, images, labels)
        save_file(grads, target / f"grad/{form}.safetensors")
        cases.append({
            "id": f"loss_grad/{form}", "op": "loss_grad", "model": form, "input": "inputs/inputs.safetensors",
            "expected": f"grad/{form}.safetensors", "params": {"loss": loss},
            "tolerance": {"loss": {"atol": 1e-6, "rtol": 1e-5}, "grad": {"rel_l2": 1e-4}},
        })
        n_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        for side in [2, 5]:
            table = resample_abs_pos_embed(model.pos_embed.detach(), [side, side], num_prefix_tokens=n_prefix)
            name = f"pos_embed/{form}_{side}.safetensors"
            save_file({"pos_embed": table.contiguous()}, target / name)
            cases.append({
                "id": f"pos_embed/{form}_{side}", "op": "pos_embed", "model": form, "expected": name,
                "params": {"image_size": side * PATCH}, "tolerance": {"atol": 1e-6, "rtol": 1e-5},
            })
        config = timm.data.resolve_data_config({"input_size": (3, SIDE, SIDE)}, model=model)
        pixels = timm.data.create_transform(**config)(image)
        save_file({"pixel_values": pixels}, target / f"preprocess/{form}.safetensors")
        cases.append({
            "id": f"preprocess/{form}", "op": "preprocess", "model": form, "input": "preprocess/picture.png",
            "expected": f"preprocess/{form}.safetensors", "tolerance": {"atol": 1e-6, "rtol": 0},
        })
    names = architectures()
    (target / "architectures.json").write_text(json.dumps(names, indent=1) + "\n")
    cases.append({"id": "architectures", "op": "architectures", "expected": "architectures.json"})
    manifest = {
        "versions": {"timm": timm.__version__, "torch": torch.__version__.split("+")[0]},
        "seed": seed,
        "cases": cases,
    }
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    sizes = {"side": SIDE, "patch": PATCH, "classes": CLASSES}
    (target / "config.json").write_text(json.dumps(sizes, indent=1) + "\n")
    print(f"{len(cases)} cases in {target}, {len(names)} architectures")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    write(arguments.write, arguments.seed)
