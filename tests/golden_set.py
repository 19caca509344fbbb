"""Makes another golden set: the same form as the top of `fixtures/`, other sizes, names and seeds.

    tests/with_torch.sh tests/golden_set.py OUT [--width 40 --heads 5 --layers 6 --fusion-start 4 ...]
    VLMERGE_GOLDEN=OUT cargo test --release --workspace golden

Which keys a model has is read off `fixtures/ckpt`; every size and every number is drawn anew. Expected
numbers are computed here: merges by the formulas of `fixtures/README.md`'s sources in torch, passes, grams
and gradients by `benches/reference_model.py`. Nothing of vlmerge takes part.
"""

import argparse
import hashlib
import json
import pathlib
import re
import sys

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches"))
import reference_model  # noqa: E402

EXPERTS = ("v", "l", "vl")
BLOCK = re.compile(r"^transformer\.blocks\.(\d+)\.(.+)$")
INDEX = ("index", "mask_for_combining", "position_ids")


def expert_of(part):
    """(part without its expert, expert) of `attn.v.proj.weight`."""
    for expert in EXPERTS:
        for module in ("attn", "mlp", "norm1", "norm2"):
            if part.startswith(f"{module}.{expert}."):
                return f"{module}.{part[len(module) + len(expert) + 2:]}", expert
    return part, None


class Maker:
    def __init__(self, args):
        self.args = args
        self.out = pathlib.Path(args.out)
        self.draws = torch.Generator().manual_seed(args.seed)
        self.cases = []
        self.grid = args.image_size // args.patch_size
        self.old = json.loads((ROOT / "fixtures/config.json").read_text())
        for folder in ("ckpt", "merge", "forward", "convert", "relpos", "scores"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)

    # ---- sizes and weights ---------------------------------------------------------------------

    def config(self):
        a, config = self.args, dict(self.old)
        config.update(
            profile="other", hidden_size=a.width, num_heads=a.heads, num_layers=a.layers, vocab_size=a.vocabulary,
            patch_size=a.patch_size, image_size=a.image_size, max_text_len=a.text_len,
            max_text_len_of_initckpt=a.text_table_len, vlffn_start_layer_index=a.fusion_start,
            vqav2_label_size=a.answers, img_cls_label_size=a.classes,
        )
        (self.out / "config.json").write_text(json.dumps(config, indent=1))
        return config

    def rows(self):
        return (2 * self.grid - 1) ** 2 + 3 + 2 + 2 * self.args.text_table_len

    def shape(self, key, shape):
        """The shape of a key in the new sizes, from that in the old ones."""
        a, old = self.args, self.old
        if key == "relative_position_bias_table":
            return [self.rows(), a.heads * a.layers]
        if key.endswith("patch_embed.proj.weight"):
            return [a.width, 3, a.patch_size, a.patch_size]
        if key == "temporal_relative_position_bias_table":
            return [shape[0], a.heads * a.layers]
        if key.endswith("position_embeddings.weight"):
            return [a.text_len, a.width]
        width = old["hidden_size"]
        table = {
            width: a.width, 2 * width: 2 * a.width, 3 * width: 3 * a.width, 4 * width: 4 * a.width,
            old["vocab_size"]: a.vocabulary, old["vqav2_label_size"]: a.answers, old["img_cls_label_size"]: a.classes,
        }
        return [table.get(size, size) for size in shape]

    def draw(self, key, shape):
        x = torch.randn(shape, generator=self.draws, dtype=torch.float64)
        name = key.rsplit(".", 1)[-1]
        if "logit" in key:
            return torch.tensor(2.3) + 0.1 * x.float()
        if "gamma" in key:
            return (0.6 + 0.1 * x).float()
        if "norm" in key.lower() or ("classifier.1" in key and len(shape) == 1):
            return ((1 if name == "weight" else 0) + 0.1 * x).float()
        if len(shape) >= 2 and "embeddings" not in key and "table" not in key:
            fan_in = x[0].numel()
            return (x * 0.7 / fan_in**0.5).float()
        return (0.2 * x).float()

    def template(self, name):
        """Keys and shapes of a model, block by block, without index buffers."""
        tensors = load_file(ROOT / f"fixtures/ckpt/{name}.safetensors")
        outer = {k: list(v.shape) for k, v in tensors.items() if not BLOCK.match(k) and not any(i in k for i in INDEX)}
        kinds = {}
        for block in (0, self.old["num_layers"] - 1):
            parts = {}
            for key, value in tensors.items():
                found = BLOCK.match(key)
                if found and int(found[1]) == block:
                    parts[found[2]] = list(value.shape)
            kinds[block == 0] = parts
        return outer, kinds

    def model(self, name):
        outer, kinds = self.template(name)
        weights = {key: self.draw(key, self.shape(key, shape)) for key, shape in outer.items()}
        for block in range(self.args.layers):
            for part, shape in kinds[block < self.args.fusion_start].items():
                key = f"transformer.blocks.{block}.{part}"
                weights[key] = self.draw(key, self.shape(key, shape))
        return weights

    def save(self, name, tensors):
        save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, self.out / name)

    def case(self, **case):
        self.cases.append(case)

    # ---- merges --------------------------------------------------------------------------------

    def slots(self, weights):
        """{slot: {expert or None: tensor}} of the tensors that merges output, by block."""
        slots = {}
        for key, value in weights.items():
            found = BLOCK.match(key)
            if not found or found[2].startswith("gamma"):
                continue
            part, expert = expert_of(found[2])
            slots.setdefault(f"transformer.blocks.{found[1]}.{part}", {})[expert] = value
        return slots

    def used(self, slot, task, selects):
        block = int(BLOCK.match(slot)[1])
        deep = block >= self.args.fusion_start
        if not deep:
            return ["v", "l"]
        if not selects:
            return ["v", "l", "vl"]
        return {"irtr": ["v", "l"], "vqa": ["vl"], "nlvr2": ["vl"]}[task]

    def interpolated(self, weights, ratio, task=None, selects=False):
        out = {}
        for slot, copies in self.slots(weights).items():
            of = lambda e: copies.get(e, copies.get(None))
            used = self.used(slot, task, selects)
            if used == ["vl"]:
                out[slot] = of("vl")
            elif used == ["v", "l"]:
                out[slot] = ratio * of("v") + (1 - ratio) * of("l")
            else:
                out[slot] = 2 / 3 * ratio * of("v") + 2 / 3 * (1 - ratio) * of("l") + 1 / 3 * of("vl")
        return out

    def arithmetic(self, weights, central, scale, formula, task=None, selects=False):
        out = {}
        for slot, copies in self.slots(weights).items():
            used = self.used(slot, task, selects)
            of = lambda e: copies.get(e, copies.get(None))
            if used == ["vl"]:
                out[slot] = of("vl")
            elif formula == "paper":
                c = central[slot].double()
                out[slot] = (c + scale * sum(of(e).double() - c for e in used)).float()
            else:
                c = central[slot].clone()
                for e in used:
                    c = c + scale * (of(e) - c)
                out[slot] = c
        return out

    def regmean(self, weights, grams, task, shrink):
        experts = {"irtr": ["v", "l"], "vqa": ["vl"], "nlvr2": ["v", "l", "vl"]}[task]
        out = {}
        for slot, copies in self.slots(weights).items():
            deep = int(BLOCK.match(slot)[1]) >= self.args.fusion_start
            used = (experts if deep else ["v", "l"])
            of = lambda e: copies.get(e, copies.get(None))
            if copies.get("v") is None or of("v").ndim < 2:
                out[slot] = sum(of(e) for e in used) / len(used)
                continue
            total, weighted = 0, 0
            for e in used:
                key = re.sub(r"\.(attn|mlp)\.", rf".\1.{e}.", slot).removesuffix(".weight").removesuffix(".qkv")
                if key not in grams:
                    continue
                g = grams[key]
                g = shrink * g + (1 - shrink) * torch.diag(torch.diag(g))
                total, weighted = total + g, weighted + of(e).double() @ g
            out[slot] = torch.linalg.solve(total.T, weighted.T).T
        return out

    def merges(self, ufo, moe):
        a = self.args
        name = {"input": "ckpt/experts_of_all.safetensors", "central": "ckpt/seed_model.safetensors"}
        loose = {"rtol": 1e-6, "atol": 2e-6}
        params = {"vlffn_start_layer_index": a.fusion_start, "num_layers": a.layers}
        for index, ratio in enumerate((0.0, 0.3, 0.5, 0.85)):
            for task in (None, "irtr", "vqa"):
                file = f"merge/blend_{index}_{task}.safetensors"
                self.save(file, self.interpolated(moe, ratio, task, task is not None))
                self.case(id=f"blend/{index}/{task}", op="interpolate", input=name["input"], expected=file,
                          params={**params, "ratio": ratio, "only_activate_used_experts": task is not None, "task": task},
                          tolerance={"rtol": 1e-6, "atol": 1e-6})
        for formula in ("paper", "upstream_in_place"):
            for scale in (0.4, 1.0):
                for task in (None, "irtr", "vqa"):
                    file = f"merge/sum_{formula}_{scale}_{task}.safetensors"
                    self.save(file, self.arithmetic(moe, ufo, scale, formula, task, task is not None))
                    self.case(id=f"sum/{formula}/{scale}/{task}", op="arithmetic", formula=formula, **name, expected=file,
                              params={**params, "lambda_": scale, "only_activate_used_experts": task is not None, "task": task},
                              tolerance=loose)
        for dtype, word in ((torch.float16, "half"), (torch.bfloat16, "brain")):
            half = {k: v.to(dtype) for k, v in moe.items() if BLOCK.match(k)}
            self.save(f"merge/{word}.safetensors", half)
            self.save(f"merge/{word}_out.safetensors", self.interpolated(half, 0.4))
            eps = torch.finfo(dtype).eps
            self.case(id=f"{word}", op="interpolate", input=f"merge/{word}.safetensors", expected=f"merge/{word}_out.safetensors",
                      params={**params, "ratio": 0.4, "only_activate_used_experts": False, "task": None},
                      tolerance={"rtol": 2 * eps, "atol": 2 * eps})
        passing = {k: v for k, v in moe.items() if not BLOCK.match(k) or ".gamma_" in k}
        listed = {k: {"dtype": "F32", "shape": list(v.shape), "sha256": sha256(v)} for k, v in passing.items()}
        (self.out / "merge/passthrough.json").write_text(json.dumps(listed))
        last = a.layers - 1
        self.case(id="error/one", op="expect_error", input=name["input"], operation="interpolate",
                  remove=[f"transformer.blocks.{last}.mlp.vl.fc1.weight"], want="an error",
                  params={"ratio": 0.5, "only_activate_used_experts": False})
        self.case(id="error/two", op="expect_error", input=name["input"], operation="interpolate",
                  replace={"transformer.blocks.1.attn.v.proj.weight": "drop the last row"}, want="an error",
                  params={"ratio": 0.5, "only_activate_used_experts": False})
        self.case(id="error/three", op="expect_error", **name, operation="arithmetic", want="an error",
                  remove_from_central=["transformer.blocks.0.norm1.bias"], params={"lambda_": 1.0})

    # ---- passes --------------------------------------------------------------------------------

    def inputs(self):
        a, g = self.args, self.draws
        whole = lambda high, *shape: torch.randint(0, high, shape, generator=g)

        def mask(b):
            lengths = torch.randint(3, a.text_len + 1, (b,), generator=g)
            lengths[0] = a.text_len
            return (torch.arange(a.text_len)[None] < lengths[:, None]).long()

        image = lambda b: torch.rand(b, 3, a.image_size, a.image_size, generator=g) * 2 - 1
        b, pairs = 2, a.pairs
        masks, pair_masks = mask(b), mask(pairs)
        labels = torch.full((b, a.text_len), -100)
        labels[:, 1] = whole(a.vocabulary, b)
        return {
            "text_ids": whole(a.vocabulary, b, a.text_len) * masks, "text_masks": masks,
            "text_ids_mlm": whole(a.vocabulary, b, a.text_len) * masks, "text_labels_mlm": labels,
            "image": image(b), "image_1": image(b), "bool_masked_pos": whole(2, b, self.grid**2).bool(),
            "irtr_text_ids": whole(a.vocabulary, pairs, a.text_len) * pair_masks, "irtr_text_masks": pair_masks,
            "irtr_image": image(pairs), "vqa_targets": torch.rand(b, a.answers, generator=g),
            "nlvr2_labels": whole(2, b), "cls_labels": whole(a.classes, b),
        }

    def reference(self, weights):
        model = reference_model.Model(weights, self.args.heads, self.args.text_table_len)
        model.fusion_start = self.args.fusion_start
        return model

    def head(self, weights, name, x):
        """Linear, LayerNorm, GELU, linear: `name.0`, `.1`, `.3`."""
        x = functional.linear(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"])
        x = functional.layer_norm(x, x.shape[-1:], weights[f"{name}.1.weight"], weights[f"{name}.1.bias"], 1e-5)
        return functional.linear(functional.gelu(x), weights[f"{name}.3.weight"], weights[f"{name}.3.bias"])

    def passes(self, weights, inputs):
        model = self.reference(weights).eval()
        text_trace, image_trace, joint_trace = [], [], []
        ids, mask, image = inputs["text_ids"], inputs["text_masks"], inputs["image"]
        with torch.inference_mode():
            text = model.infer_text_ft(ids, mask, text_trace)
            pixels = model.infer_image_ft(image, image_trace)
            joint = model.infer(ids, mask, image, joint_trace)
            second = model.infer(ids, mask, inputs["image_1"], token_type=2)
            pair_text = model.infer_text_ft(inputs["irtr_text_ids"], inputs["irtr_text_masks"])[1]
            pair_image = model.infer_image_ft(inputs["irtr_image"])[1]
            vqa = self.head(weights, "vqa_classifier", joint[2])
            nlvr2 = self.head(weights, "nlvr2_classifier", torch.cat((joint[2], second[2]), 1))
        got = {
            "text_ft.text_feats": text[0], "text_ft.cls_feats": text[1], "text_ft.raw_cls_feats": text_trace[-1][:, 0],
            "image_ft.image_feats": pixels[0], "image_ft.cls_feats": pixels[1], "image.cls_feats": pixels[1],
            "vl.text_feats": joint[0], "vl.image_feats": joint[1], "vl.cls_feats": joint[2], "pooler": joint[2],
            "nlvr2_pass2.cls_feats": second[2], "vqa.logits": vqa, "nlvr2.logits": nlvr2,
            "irtr.similarity": pair_image @ pair_text.T,
            "loss_run.irtr.irtr_i2t_logits": weights["logit_scale"].exp() * pair_image @ pair_text.T,
        }
        for kind, trace in (("text_ft", text_trace), ("image_ft", image_trace), ("vl", joint_trace)):
            got |= {f"{kind}.block{i}": x for i, x in enumerate(trace)}
        return got

    def losses(self, weights, inputs):
        """{name: (loss, gradients)}."""
        out = {}
        for name in ("vqa", "nlvr2", "irtr"):
            own = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in weights.items()}
            model = self.reference(own)
            named = dict(model.named_parameters())
            heads = {k: v for k, v in own.items() if k not in named}
            ids, mask = inputs["text_ids"], inputs["text_masks"]
            if name == "irtr":
                text = model.infer_text_ft(inputs["irtr_text_ids"], inputs["irtr_text_masks"])[1]
                image = model.infer_image_ft(inputs["irtr_image"])[1]
                logits = heads["logit_scale"].exp() * image @ text.T
                own_rows = torch.arange(len(logits))
                loss = (functional.cross_entropy(logits, own_rows) + functional.cross_entropy(logits.T, own_rows)) / 2
            else:
                pooled = model.infer(ids, mask, inputs["image"])[2]
                if name == "vqa":
                    logits = self.head(heads, "vqa_classifier", pooled)
                    loss = functional.binary_cross_entropy_with_logits(logits, inputs["vqa_targets"]) * logits.shape[1]
                else:
                    second = model.infer(ids, mask, inputs["image_1"], token_type=2)[2]
                    logits = self.head(heads, "nlvr2_classifier", torch.cat((pooled, second), 1))
                    loss = functional.cross_entropy(logits, inputs["nlvr2_labels"])
            loss.backward()
            every = {**heads, **named}
            out[name] = loss.item(), {k: v.grad for k, v in every.items() if v.grad is not None}
        return out

    def forward(self, ufo, moe, inputs):
        self.save("forward/given.safetensors", inputs)
        merged = {**{k: v for k, v in moe.items() if not BLOCK.match(k) or ".gamma_" in k}, **self.interpolated(moe, 0.85)}
        described = "merge/blend_3_None.safetensors + merge/passthrough.json tensors from ckpt/experts_of_all.safetensors"
        losses = {}
        for name, weights, file in (("seed", ufo, "ckpt/seed_model.safetensors"), ("experts", moe, "ckpt/experts_of_all.safetensors"), ("blended", merged, described)):
            self.save(f"forward/{name}.safetensors", self.passes(weights, inputs))
            self.case(id=f"forward/{name}", op="forward", weights=file, arch="all_moe" if name == "experts" else "ufo",
                      inputs="forward/given.safetensors", expected=f"forward/{name}.safetensors", tolerance={"atol": 2e-5, "rtol": 2e-5})
            computed = self.losses(weights, inputs)
            losses[name] = {k: loss for k, (loss, _) in computed.items()}
            norms = {k: {key: g.norm().item() for key, g in gradients.items()} for k, (_, gradients) in computed.items()}
            (self.out / f"forward/{name}_grad_norms.json").write_text(json.dumps(norms))
            if name != "blended":
                for loss in ("irtr", "nlvr2"):
                    self.save(f"forward/{name}_slopes_{loss}.safetensors", computed[loss][1])
                    self.case(id=f"slopes/{name}/{loss}", op="gradient", weights=file, inputs="forward/given.safetensors", loss=loss,
                              expected=f"forward/{name}_slopes_{loss}.safetensors", tolerance={"rel_l2_per_tensor": 1e-3})
        (self.out / "forward/losses.json").write_text(json.dumps({"losses": losses}))

    # ---- grams and RegMean -----------------------------------------------------------------------

    def grams(self, moe):
        a, g = self.args, self.draws
        n, batch = a.samples, 5
        data = {"text_ids": torch.randint(0, a.vocabulary, (n, a.text_len), generator=g)}
        lengths = torch.randint(2, a.text_len + 1, (n,), generator=g)
        data["text_masks"] = (torch.arange(a.text_len)[None] < lengths[:, None]).long()
        for k in (0, 1):
            data[f"image{k}_u8"] = torch.randint(0, 256, (n, 3, a.image_size, a.image_size), generator=g).to(torch.uint8)
        self.save("merge/samples.safetensors", data)
        trained = {k: v for k, v in moe.items() if "classifier" not in k}
        trained["token_type_embeddings.weight"] = moe["token_type_embeddings.weight"][:2].clone()
        torch.save({"state_dict": trained}, self.out / "ckpt/experts_pretrain.ckpt")
        first, second = (data[f"image{k}_u8"].float() / 128 - 1 for k in (0, 1))
        for task in ("irtr", "vqa", "nlvr2"):
            model = self.reference(trained).eval()
            sums = reference_model.Grams(model)
            with torch.inference_mode():
                for start in range(0, n, batch):
                    rows = slice(start, start + batch)
                    ids, mask = data["text_ids"][rows], data["text_masks"][rows]
                    if task == "irtr":
                        model.infer_image_ft(first[rows])
                        model.infer_text_ft(ids, mask)
                    else:
                        model.infer(ids, mask, first[rows])
                    if task == "nlvr2":
                        model.infer(ids, mask, second[rows], token_type=2)
            file = f"merge/sums_{task}.safetensors"
            self.save(file, sums.sums)
            self.case(id=f"sums/{task}", op="gram", input="ckpt/experts_pretrain.ckpt", data="merge/samples.safetensors", expected=file,
                      params={"task": task, "batch_size": batch}, tolerance={"rel_frobenius": 1e-4})
            for shrink in (1.0, 0.6):
                out = f"merge/solved_{task}_{shrink}.safetensors"
                self.save(out, self.regmean(moe, sums.sums, task, shrink))
                self.case(id=f"solved/{task}/{shrink}", op="regmean", input="ckpt/experts_of_all.safetensors", gram=file, expected=out,
                          params={"task": task, "scaling_for_non_diag": shrink},
                          tolerance={"f64": {"rel_to_max_abs": 1e-9}, "f32": {"rtol": 1e-6, "atol": 1e-6}})
        self.case(id="error/four", op="expect_error", input="ckpt/experts_of_all.safetensors", gram="merge/sums_irtr.safetensors",
                  operation="regmean", params={"task": "vqa", "scaling_for_non_diag": 1.0}, want="an error")
        before = trained["token_type_embeddings.weight"]
        self.save("convert/types.safetensors", {"before": before, "after": torch.cat((before, before[1:2]))})
        self.case(id="types", op="nlvr2_token_type", input="ckpt/experts_pretrain.ckpt", expected="convert/types.safetensors", tolerance="exact")

    # ---- the rest --------------------------------------------------------------------------------

    def resized(self, ufo):
        """One image size more: the bias table bicubically, all else as it is."""
        a = self.args
        size, grid = a.image_size + 2 * a.patch_size, self.grid + 2
        old, new = 2 * self.grid - 1, 2 * grid - 1
        table = ufo["relative_position_bias_table"]
        offsets = table[: old * old].T.reshape(1, -1, old, old)
        offsets = functional.interpolate(offsets, (new, new), mode="bicubic", align_corners=False)
        changed = torch.cat((offsets.reshape(-1, new * new).T, table[old * old :]))
        after = {**ufo, "relative_position_bias_table": changed}
        listed = {k: {"dtype": "F32", "shape": list(v.shape), "sha256": sha256(v)} for k, v in after.items()}
        listing = {"tensors": listed, "changed": ["relative_position_bias_table"], "params": {"image_size": size}}
        (self.out / "convert/larger.json").write_text(json.dumps(listing))
        self.save("convert/larger.safetensors", {"relative_position_bias_table": changed})
        self.case(id="larger", op="convert", input="ckpt/seed_model.safetensors", expected_listing="convert/larger.json",
                  expected_tensors="convert/larger.safetensors", tolerance={"rtol": 1e-5, "atol": 5e-6})

    def indices(self):
        a = self.args
        sizes = f"im{a.image_size}_p{a.patch_size}_t{a.text_len}_i{a.text_table_len}"
        first = (2 * self.grid - 1) ** 2 + 3
        self.save("relpos/rows.safetensors", {
            f"{sizes}.relative_position_index": reference_model.patch_index(self.grid),
            f"{sizes}.text_relative_position_index": reference_model.token_index(a.text_len, a.text_table_len, first),
            f"{sizes}.table_rows": torch.tensor(self.rows()),
        })
        self.case(id="rows", op="relpos_index", expected="relpos/rows.safetensors", tolerance="exact")

    def make(self):
        self.config()
        ufo = self.model("ufo")
        moe = self.model("all_moe")
        # Experts are the seed and a difference.
        for key in moe:
            found = BLOCK.match(key)
            part, _ = expert_of(found[2]) if found else (key, None)
            seed = ufo[f"transformer.blocks.{found[1]}.{part}" if found else key]
            moe[key] = seed + 0.3 * (moe[key] - seed) if found else moe[key]
        self.save("ckpt/seed_model.safetensors", ufo)
        self.save("ckpt/experts_of_all.safetensors", moe)
        self.merges(ufo, moe)
        self.grams(moe)
        self.forward(ufo, moe, self.inputs())
        self.resized(ufo)
        self.indices()
        order = torch.randperm(len(self.cases), generator=self.draws)
        manifest = {"profile": "other", "config": "config.json", "cases": [self.cases[i] for i in order]}
        (self.out / "manifest.json").write_text(json.dumps(manifest, indent=1))


def sha256(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    for name, default in (
        ("width", 40), ("heads", 5), ("layers", 6), ("fusion-start", 4), ("patch-size", 8), ("image-size", 32),
        ("text-len", 9), ("text-table-len", 14), ("vocabulary", 83), ("answers", 13), ("classes", 5), ("pairs", 5),
        ("samples", 17), ("seed", 11),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    torch.set_num_threads(1)
    Maker(parser.parse_args()).make()


if __name__ == "__main__":
    main()
