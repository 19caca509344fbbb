"""Makes another golden set of methods of task vectors: the form of `fixtures/methods`, other sizes, numbers of models and
seeds. Units in another order and statistics of experts are left out.

    tests/with_torch.sh tests/golden_methods.py OUT [--seed 77 --width 18 --layers 4 --models 5]
    VLMERGE_GOLDEN=OUT cargo test --release --workspace golden::methods

Expected numbers are computed here by numpy in float64, from the papers' formulas. Nothing of vlmerge takes part.
"""

import argparse
import json
import math
import pathlib

import numpy as np
from safetensors.numpy import save_file

LETTERS = "abcdefgh"


def svd(matrix):
    return np.linalg.svd(matrix, full_matrices=False)


def polar(matrix):
    """The nearest matrix with orthonormal rows or columns; directions that the matrix lacks stay empty."""
    u, s, v = svd(matrix)
    rank = int((s > 1e-6 * s[0]).sum())
    return u[:, :rank] @ v[:rank]


def joined(parts, shape):
    """`polar(U) diag(S) polar(V)` of triples of a left vector, a value and a right vector."""
    if not parts:
        return np.zeros(shape)
    left, values, right = zip(*parts)
    return polar(np.stack(left, 1)), np.array(values), polar(np.stack(right))


def tsv_m(weights=None, least=0):
    def merge(tasks):
        shape = tasks[0].shape
        rank = max(min(shape) // len(tasks), least)
        parts = []
        for index, task in enumerate(tasks):
            u, s, v = svd(task * (weights[index] if weights else 1.0))
            parts += [(u[:, k], s[k], v[k]) for k in range(rank) if s[k] > 1e-10 * s[0]]
        if not parts:
            return np.zeros(shape)
        left, values, right = joined(parts, shape)
        return left @ np.diag(values) @ right

    return merge


def iso_c(tasks):
    u, s, v = svd(sum(tasks))
    return s.mean() * u @ v


def iso_cts(fraction):
    def merge(tasks):
        n, rank = len(tasks), min(tasks[0].shape)
        own = round((rank - int(rank * fraction)) / n) * n
        own = own if own <= rank else rank // n * n
        common, each = rank - own, own // n
        u, s, v = svd(sum(tasks))
        parts = [(u[:, k], s[k], v[k]) for k in range(common)]
        for task in tasks:
            rest = task - u[:, :common] @ (u[:, :common].T @ task)
            a, values, b = svd(rest)
            largest = svd(task)[1][0]
            parts += [(a[:, k], values[k], b[k]) for k in range(each) if values[k] > 1e-10 * largest]
        left, values, right = joined(parts, tasks[0].shape)
        return values.sum() / rank * left @ right

    return merge


def squares(tasks, least=0.0):
    """`C` and `B` of WUDI; task vectors of zeros take no part unless norms have a least value."""
    gram, target = 0.0, 0.0
    for task in tasks:
        norm = max((task**2).sum(), least)
        if norm > 0:
            gram = gram + task.T @ task / norm
            target = target + task @ task.T @ task / norm
    return gram, target


def wudi_ridge(ridge):
    def merge(tasks):
        gram, target = squares(tasks)
        return np.linalg.solve(gram + ridge * np.eye(len(gram)), target.T).T

    return merge


def wudi_pinv(tasks):
    gram, target = squares(tasks)
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-10 * values.max()
    return target @ (vectors[:, kept] / values[kept]) @ vectors[:, kept].T


def wudi_adam(iterations):
    def merge(tasks):
        merged = sum(tasks).copy()
        first, second = np.zeros_like(merged), np.zeros_like(merged)
        gram, target = squares(tasks)
        for step in range(1, iterations + 1):
            gradient = 2 * (merged @ gram - target)
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            root = np.sqrt(second / (1 - 0.999**step)) + 1e-8
            merged = merged - 1e-5 * (first / (1 - 0.9**step)) / root
        return merged

    return merge


def optmerge(iterations, rate):
    def merge(tasks):
        rank = min(tasks[0].shape) // len(tasks)
        gram, target = 0.0, 0.0
        for task in tasks:
            norm = (task**2).sum()
            if norm > 0:
                u, s, v = svd(task)
                u, s, v = u[:, :rank], s[:rank], v[:rank]
                gram = gram + v.T @ np.diag(s**2) @ v / norm
                target = target + u @ np.diag(s**3) @ v / norm
        merged = sum(tasks) / len(tasks)
        step = np.zeros_like(merged)
        for _ in range(iterations):
            step = 0.9 * step + 2 * (merged @ gram - target)
            merged = merged - rate * step
        return merged

    return merge


def swudi(filtered, rank, start):
    def merge(tasks):
        gram, target = squares(tasks, 1e-12)
        values, vectors = np.linalg.eigh(gram)
        values, vectors = np.maximum(values[::-1], 1e-8), vectors[:, ::-1]
        factors = np.where(np.arange(len(values)) < rank(values), filtered(values), 0.0)
        begin = {"sum": sum(tasks), "mean": sum(tasks) / len(tasks), "zero": 0 * tasks[0]}[start]
        solved = target @ (vectors * (factors / values)) @ vectors.T
        return begin - begin @ (vectors * factors) @ vectors.T + solved

    return merge


def actmat(weights, ridge):
    def merge(tasks):
        pairs = list(zip(weights, tasks))
        gram = sum(weight * task.T @ task for weight, task in pairs)
        target = sum(weight * task @ task.T @ task for weight, task in pairs)
        return target @ np.linalg.inv(gram + ridge * np.eye(len(gram)))

    return merge


def cart(rank, factor):
    def merge(tasks):
        mean = sum(tasks) / len(tasks)
        full = min(mean.shape)
        kept = math.ceil(rank * full) if rank <= 1 else min(rank, full)
        merged = mean.copy()
        for task in tasks:
            u, s, v = svd(task - mean)
            merged += factor * u[:, :kept] @ np.diag(s[:kept]) @ v[:kept]
        return merged

    return merge


def tall_masks(tasks, share):
    return np.abs(tasks) > share * np.abs(tasks.sum(0) - tasks)


def clipped(rows, below, above):
    n = rows.shape[1]
    ordered = np.sort(rows, axis=1)
    low, high = ordered[:, int(n * below)], ordered[:, int(n * (1 - above) - 1)]
    return np.clip(rows, low[:, None], high[:, None])


def stretched(rows):
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    return (rows - low) / (high - low)


def pcb(flat, clamp, ratio, is_root, weight):
    sizes = clipped(np.abs(flat), clamp, clamp)
    common = flat.sum(0) if is_root else (np.sign(flat) * stretched(sizes)).sum(0)
    shares = np.exp(len(flat) * stretched(sizes) ** 2) * np.tanh(flat * common)
    shares = stretched(clipped(shares, 1 - ratio, 0))
    return (weight * np.sign(flat) * sizes * shares).sum(0) / np.maximum(shares.sum(0), 1e-12)


def emr(tasks):
    sign = np.where(tasks.mean(0) > 0, 1.0, -1.0)
    masks = tasks * sign > 0
    return masks, sign * np.abs(masks * tasks).max(0)


def largest(flat, share):
    n = flat.shape[1]
    cut = np.sort(np.abs(flat), axis=1)[:, n - int(n * share) - 1]
    return flat * (np.abs(flat) >= cut[:, None])


def agreed(flat):
    sign = np.sign(flat.sum(0))
    return flat * np.where(sign > 0, flat > 0, flat < 0)


def mean_of_kept(flat):
    return flat.sum(0) / np.maximum((flat != 0).sum(0), 1)


class Maker:
    """Writes inputs, and a case at a time."""

    def __init__(self, out, arguments):
        self.root = out / "methods"
        for name in ("inputs", "expected", "parts"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.random = np.random.default_rng(arguments.seed)
        self.cases = []
        self.letters = LETTERS[: arguments.models]
        self.layers = arguments.layers
        width = arguments.width
        shapes = {
            "conv.weight": (5, 4, 3, 3),
            "conv.bias": (5,),
            "embed.weight": (width + 3, 12),
            "head.weight": (4, width + 10),
        }
        for layer in range(arguments.layers):
            shapes[f"layers.{layer}.attn.weight"] = (width, width)
            shapes[f"layers.{layer}.norm.weight"] = (width,)
            shapes[f"layers.{layer}.fc1.weight"] = (width + 12, width)
            shapes[f"layers.{layer}.fc2.weight"] = (width, width + 12)
        normal = lambda shape: self.random.normal(size=shape)
        base = {name: (0.3 * normal(shape)).astype(np.float32) for name, shape in shapes.items()}
        shared = {name: 0.01 * normal(shape) for name, shape in shapes.items()}
        self.base = {name: value.astype(np.float64) for name, value in base.items()}
        self.names = sorted(base)
        self.tasks = {}
        save_file(base, self.root / "inputs/base.safetensors")
        for letter in self.letters:
            model = {
                name: (value + shared[name] + 0.02 * normal(value.shape)).astype(np.float32)
                for name, value in base.items()
            }
            if letter == "c":
                name = "layers.1.attn.weight"
                model[name] = base[name].copy()
            save_file(model, self.root / f"inputs/model_{letter}.safetensors")
            self.tasks[letter] = {name: model[name].astype(np.float64) - self.base[name] for name in base}
        self.flat = np.stack([
            np.concatenate([self.tasks[letter][name].ravel() for name in self.names]) for letter in self.letters
        ])

    def case(self, name, method, parameters, change=None, models=None, aux=None, inputs=None, expected=None, atol=3e-7):
        if change is not None:
            expected = {key: self.base[key] + change[key] for key in self.base}
        files = {}
        for folder, tensors in (("expected", expected), ("parts", aux)):
            if tensors is not None:
                files[folder] = f"{folder}/{name}.safetensors"
                save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, self.root / files[folder])
        models = [f"inputs/model_{letter}.safetensors" for letter in models or self.letters]
        self.cases.append({
            "id": name,
            "method": method,
            "params": parameters,
            "inputs": inputs or {"base": "inputs/base.safetensors", "models": models},
            "expected": files.get("expected"),
            "aux": files.get("parts"),
            "tolerance": {"atol": atol, "rtol": 0.0},
        })

    def by_matrix(self, merge, scale=1.0, models=None, exclude=(), keeps_base=False, with_conv=False, weights=None):
        """The change by a method of matrices; other tensors take the mean, or keep the base."""
        change = {}
        for name, base in self.base.items():
            tasks = [self.tasks[letter][name] for letter in models or self.letters]
            if (base.ndim == 2 and name not in exclude) or (with_conv and base.ndim > 2):
                merged = merge([task.reshape(len(task), -1) for task in tasks])
                change[name] = scale * merged.reshape(base.shape)
            elif keeps_base:
                change[name] = np.zeros_like(base)
            else:
                factors = weights or [1.0 / len(tasks)] * len(tasks)
                change[name] = scale * sum(factor * task for factor, task in zip(factors, tasks))
        return change

    def by_element(self, merge):
        stacked = lambda name: np.stack([self.tasks[letter][name] for letter in self.letters])
        return {name: merge(stacked(name)) for name in self.base}

    def unflat(self, values):
        change, first = {}, 0
        for name in self.names:
            size = self.base[name].size
            change[name] = values[first : first + size].reshape(self.base[name].shape)
            first += size
        return change

    def matrices(self):
        some, mean = "abd", {"vectors": "mean"}
        plain = {"exclude": [], **mean}
        self.case("tsvm", "tsv_m", {"alpha": 1.0, **plain}, self.by_matrix(tsv_m()))
        excluded = {"alpha": 0.6, "exclude": ["embed.weight"], **mean}
        change = self.by_matrix(tsv_m(), 0.6, some, ["embed.weight"])
        self.case("tsvm_excl", "tsv_m", excluded, change, some)
        factors = [0.5, 1.5, 0.7]
        change = self.by_matrix(tsv_m(factors), models=some, weights=[factor / 3 for factor in factors])
        self.case("tsvm_alphas", "tsv_m", {"alpha": factors, **plain}, change, some)
        change = self.by_matrix(tsv_m(factors, 1), models=some, keeps_base=True)
        parameters = {"weights": factors, "vectors": "zero", "min_rank_one": True}
        self.case("tsvm_weights", "tsv_m", parameters, change, some)
        self.case("isoc", "iso_c", {"scaling_factor": 1.3, **plain}, self.by_matrix(iso_c, 1.3))
        for fraction in (0.0, 0.3, 0.8, 1.0):
            parameters = {"scaling_factor": 1.1, "common_space_fraction": fraction, **plain}
            change = self.by_matrix(iso_cts(fraction), 1.1)
            self.case(f"isocts_{fraction}", "iso_cts", parameters, change, atol=2e-6)
        parameters = {"solver": "closed_form", "ridge": 1e-3, "scale": 1.0, "conv": "flatten [out,-1]", **mean}
        self.case("wudi_ridge", "wudi", parameters, self.by_matrix(wudi_ridge(1e-3), with_conv=True))
        parameters = {"solver": "pinv", "pinv_rtol": 1e-10, "scale": 0.9, **mean}
        self.case("wudi_pinv", "wudi", parameters, self.by_matrix(wudi_pinv, 0.9, "abc"), "abc")
        parameters = {"solver": "adam", "iterations": 50, "lr": 1e-5, "scale": 1.0, **mean}
        self.case("wudi_adam", "wudi", parameters, self.by_matrix(wudi_adam(50)))
        parameters = {"iterations": 60, "lr": 1e-3, "momentum": 0.9, "scale": 1.0, **mean}
        self.case("optmerge", "optmerge", parameters, self.by_matrix(optmerge(60, 1e-3)))
        weights = [1.0, 2.0, 0.5, 1.5, 0.2, 1.0, 3.0, 0.7][: len(self.letters)]
        parameters = {"weights": weights, "ridge": 1e-4, "pinv_rtol": "default", "vectors": "weighted mean"}
        shares = [weight / sum(weights) for weight in weights]
        change = self.by_matrix(actmat(weights, 1e-4), exclude=["embed.weight"], weights=shares)
        self.case("actmat", "actmat", {**parameters, "exclude": ["embed.weight"]}, change)
        for rank, factor in ((0.3, 0.8), (6, 0.5)):
            parameters = {"vectors": "zero", "pruning_rank": rank, "scaling_coeffs": factor}
            self.case(f"cart_{rank}", "cart", parameters, self.by_matrix(cart(rank, factor), keeps_base=True))

    def eigenvalues(self):
        plain = {"min_eigenvalue": 1e-8, "vectors": "mean"}
        filtered = lambda values: 1 - np.exp(-values * 120)
        rank = lambda values: max(1, int(len(values) * 0.5 + 0.999))
        parameters = {"exp_time": 120.0, "truncate_rank_ratio": 0.5, "init_mode": "sum", "scale": 0.7, **plain}
        self.case("swudi", "swudi", parameters, self.by_matrix(swudi(filtered, rank, "sum"), 0.7), atol=3e-6)
        share = lambda values: values / values.sum()
        rules = {
            "participation_sqrt": lambda values: math.ceil(np.sqrt(values).sum() ** 2 / values.sum()),
            "participation": lambda values: math.ceil(values.sum() ** 2 / (values**2).sum()),
            "stable_rank": lambda values: math.ceil(((values / values[0]) ** 2).sum()),
            "entropy": lambda values: math.ceil(np.exp(-(share(values) * np.log(share(values))).sum())),
            "cumvar_0.9": lambda values: int((np.cumsum(share(values)) < 0.9).sum()) + 1,
        }
        for rule, rank in rules.items():
            parameters = {"auto_rank_method": rule, "init_mode": "mean", "scale": 1.0, "filter": "none", **plain}
            change = self.by_matrix(swudi(np.ones_like, rank, "mean"))
            self.case(f"aswudi_{rule}", "aswudi", parameters, change, atol=3e-6)

    def elements(self):
        n = len(self.letters)
        for least, share, scale in ((2, 0.4, 0.3), (n - 1, 0.25, 1.0), (n, 0.5, 1.0)):
            keep = lambda tasks: tall_masks(tasks, share).sum(0) >= least
            change = self.by_element(lambda tasks: scale * tasks.sum(0) * keep(tasks))
            self.case(f"consensus_{least}", "consensus_ta", {"k": least, "tall_lambda": share, "scale": scale}, change, atol=5e-7)
        masks = self.by_element(lambda tasks: tall_masks(tasks, 0.5))
        aux = {
            f"{letter}.{name}": mask[index].astype(np.uint8)
            for name, mask in masks.items()
            for index, letter in enumerate(self.letters)
        }
        self.case("tall", "tall_mask", {"tall_lambda": 0.5}, aux=aux)
        change = self.by_element(lambda tasks: tasks.sum(0) * tall_masks(tasks, 0.5)[-1])
        parameters = {"tall_lambda": 0.5, "restore": self.letters[-1]}
        self.case("tall_restore", "tall_mask", parameters, change, atol=5e-7)
        for variant, clamp, ratio, weight in (("root", 0.001, 0.2, 1.1), ("vision", 0.02, 0.1, 0.9)):
            parameters = {"variant": variant, "pcb_ratio": ratio, "clamp": clamp, "scale": weight}
            merged = pcb(self.flat, clamp, ratio, variant == "root", weight)
            self.case(f"pcb_{variant}", "pcb", parameters, self.unflat(merged))
        share = 0.07
        cut = np.sort(np.abs(self.flat), axis=1)[:, self.flat.shape[1] - int(share * self.flat.shape[1])]
        kept = np.abs(self.flat) > cut[:, None]
        merged = (kept * self.flat).sum(0) / np.maximum(1, kept.sum(0))
        parameters = {"mode": "dataless", "sparsity": share}
        self.case("localize", "localize_and_stitch", parameters, self.unflat(merged))

    def emr(self):
        unified = self.by_element(emr)
        own, kept, own_mean, kept_mean = (np.zeros(len(self.letters)) for _ in range(4))
        aux = {}
        for name, (masks, tau) in unified.items():
            for index, letter in enumerate(self.letters):
                aux[f"mask.{letter}.{name}"] = masks[index].astype(np.uint8)
                sizes = np.abs(self.tasks[letter][name]), np.abs(masks[index] * tau)
                own[index] += sizes[0].sum()
                kept[index] += sizes[1].sum()
                own_mean[index] += sizes[0].mean()
                kept_mean[index] += sizes[1].mean()
        factors = own_mean / kept_mean
        aux.update(rescalers=factors, rescalers_paper=own / kept)
        change = {name: tau for name, (_, tau) in unified.items()}
        self.case("emr", "emr", {"output": "unified"}, change, aux=aux)
        change = {name: factors[-1] * masks[-1] * tau for name, (masks, tau) in unified.items()}
        self.case("emr_task", "emr", {"output": "task", "task": self.letters[-1]}, change, atol=5e-7)

    def lines(self):
        def scaled(change, alpha, beta):
            depth = lambda name: int(name.split(".")[1]) / (self.layers - 1) if name.startswith("layers.") else 0.0
            return {name: (alpha + beta * depth(name)) * value for name, value in change.items()}

        size = lambda change: sum(np.abs(value).sum() for value in change.values())
        total = self.by_element(lambda tasks: tasks.sum(0))
        trimmed = self.unflat(mean_of_kept(agreed(largest(self.flat, 0.3))))
        for name, merged, change in (("sum", "sum", total), ("ties", "ties k=30 mean", trimmed)):
            alpha = size(total) / (len(self.letters) * size(change))
            parameters = {"merged": merged, "alpha": "auto", "beta": 0.6, "num_blocks": self.layers, "norm": "L1"}
            self.case(f"lines_{name}", "lines", parameters, scaled(change, alpha, 0.6), atol=5e-7)
        parameters = {"merged": "one model", "alpha": 0.2, "beta": 0.8, "num_blocks": self.layers}
        self.case("lines_single", "lines", parameters, scaled(self.tasks["b"], 0.2, 0.8), "b")

    def knots(self):
        shapes = {"layers.0.q.weight": (22, 14), "layers.0.v.weight": (14, 22), "layers.1.q.weight": (22, 14)}
        base = {name: (0.3 * self.random.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
        save_file(base, self.root / "inputs/lora_base.safetensors")
        tasks = {name: [] for name in base}
        for letter in self.letters:
            factors = {}
            for name, (rows, columns) in shapes.items():
                a = (0.1 * self.random.normal(size=(3, columns))).astype(np.float32)
                b = (0.1 * self.random.normal(size=(rows, 3))).astype(np.float32)
                if letter == "b" and ".v." in name:
                    b = np.zeros_like(b)
                module = name.removesuffix(".weight")
                factors.update({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b})
                tasks[name].append(2.0 * b.astype(np.float64) @ a.astype(np.float64))
            save_file(factors, self.root / f"inputs/lora_{letter}.safetensors")
        left, aligned = {}, {}
        for name, own in tasks.items():
            u, s, _ = svd(np.concatenate(own, 1))
            left[name] = u[:, s > 1e-5]
            aligned[name] = [left[name].T @ task for task in own]
        flat = np.stack([
            np.concatenate([aligned[name][index].ravel() for name in sorted(base)]) for index in range(len(self.letters))
        ])
        loras = [f"inputs/lora_{letter}.safetensors" for letter in self.letters]
        for percent, mask, combine, scale in ((25, "ties", "mean", 0.7), (100, "tv", "sum", 0.5), (60, "tv", "mean", 1.0)):
            kept = flat if percent == 100 else largest(flat, percent / 100)
            kept = agreed(kept) if mask == "ties" else kept
            merged = scale * (mean_of_kept(kept) if combine == "mean" else kept.sum(0))
            expected, first = {}, 0
            for name in sorted(base):
                part = aligned[name][0]
                inner = merged[first : first + part.size].reshape(part.shape)
                expected[name] = base[name].astype(np.float64) + left[name] @ inner
                first += part.size
            parameters = {
                "merge_method": mask, "topK": percent, "merging_type": combine, "sign_resolve_mode": "sum_of_values",
                "concat_across_output": True, "scale": scale, "lora_scale": 2.0,
            }
            inputs = {"base": "inputs/lora_base.safetensors", "loras": loras}
            self.case(f"knots_{percent}", "knots", parameters, inputs=inputs, expected=expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--width", type=int, default=18)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--models", type=int, default=5)
    arguments = parser.parse_args()
    maker = Maker(arguments.out, arguments)
    for part in (maker.matrices, maker.eigenvalues, maker.elements, maker.emr, maker.lines, maker.knots):
        part()
    manifest = {"profile": "made by numpy", "format": 1, "cases": maker.cases}
    (maker.root / "manifest.json").write_text(json.dumps(manifest, indent=1))
    print(f"{len(maker.cases)} cases in {maker.root}")


main()
