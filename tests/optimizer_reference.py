#!/usr/bin/env python3
"""Writes fixtures/optim: steps of AdamW in both flavors, clipping and schedules, computed by torch.

    tests/with_torch.sh tests/optimizer_reference.py

The published flavor is written out here with torch's tensor operations; the other is torch.optim.AdamW.
"""
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(__file__).parent.parent / "fixtures" / "optim"
LR, BETAS, EPSILON = 1e-3, (0.9, 0.98), 1e-8
DECAY = {"matrix": 0.01, "wide": 0.3, "bias": 0.0}
SHAPES = {"matrix": (7, 5), "wide": (3, 11), "bias": (13,)}
STEPS = 8


def published_step(t, p, g, m, v, lr, decay):
    m.mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
    v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
    size = lr * math.sqrt(1 - BETAS[1] ** t) / (1 - BETAS[0] ** t)
    p.addcdiv_(m, v.sqrt() + EPSILON, value=-size)
    if decay:
        p.sub_(p * (lr * decay))


def rate(t):
    """Another rate for each step, so that a fixed one would be noticed."""
    return LR * (1 + 0.25 * t)


def adamw():
    torch.manual_seed(0)
    start = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    # Sizes over many orders, down to where the two places of epsilon differ.
    grads = [
        {name: torch.randn(s) * 10.0 ** torch.randint(-8, 2, s).float() for name, s in SHAPES.items()}
        for _ in range(STEPS)
    ]
    out = {f"start.{name}": p.clone() for name, p in start.items()}
    for t, step in enumerate(grads):
        out |= {f"gradient.{t}.{name}": g for name, g in step.items()}

    ours = {name: p.clone() for name, p in start.items()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in start.items()}
    theirs = {name: torch.nn.Parameter(p.clone()) for name, p in start.items()}
    groups = [{"params": [theirs[name]], "weight_decay": decay} for name, decay in DECAY.items()]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPSILON, foreach=False)
    for t, step in enumerate(grads):
        for name, p in ours.items():
            published_step(t + 1, p, step[name], *moments[name], rate(t), DECAY[name])
            out[f"published.{t}.{name}"] = p.clone()
        for group in optimizer.param_groups:
            group["lr"] = rate(t)
        for name, p in theirs.items():
            p.grad = step[name].clone()
        optimizer.step()
        out |= {f"torch.{t}.{name}": p.detach().clone() for name, p in theirs.items()}
    for name, (m, v) in moments.items():
        out |= {f"first_moment.{name}": m, f"second_moment.{name}": v}
    save_file(out, OUT / "adamw.safetensors")


def clipping():
    torch.manual_seed(1)
    parts = [torch.nn.Parameter(torch.zeros(n)) for n in (70001, 5, 300)]
    for p in parts:
        p.grad = torch.arange(p.numel()).remainder(17) / 8 - 1
    norms = {}
    for bound in (1.0, 1e6):
        grads = [p.grad.clone() for p in parts]
        norm = torch.nn.utils.clip_grad_norm_(parts, bound)
        factor = float((parts[0].grad[0] / grads[0][0]).item())
        norms[str(bound)] = {"norm": float(norm), "factor": factor}
        for p, g in zip(parts, grads):
            p.grad = g
    return norms


def published_rate(u, peak, end, warmup, total, power):
    if u < warmup:
        return peak * u / max(1, warmup)
    if u > total:
        return end
    x = (u - warmup) / (total - warmup)
    if power == "cosine":
        return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * x)))
    return peak * ((1 - x) ** power * (1 - end / peak) + end / peak)


def scaling():
    """The scale after each step of torch's scaler on a row of good and overflowing steps."""
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=3)
    good = [True, True, True, True, False, True, True, False, False, True, True, True, True, True, True]
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], lr=0.0)
    scales = []
    for fine in good:
        scaler.scale(p.sum() * 0)
        p.grad = torch.tensor([1.0 if fine else math.inf])
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return {"growth_steps": 3, "finite": good, "scales": scales}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    adamw()
    schedules = []
    for peak, end, warmup, total, decay in [
        (1e-4, 0.0, 0.1, 200, 1), (3e-5, 1e-6, 25, 200, 1), (1e-3, 1e-5, 0.15, 130, 2),
        (2e-4, 0.0, 0, 50, 0.5), (5e-5, 0.0, 10, 100, "cosine"),
    ]:
        steps = int(total * warmup) if isinstance(warmup, float) else warmup
        rates = [published_rate(u, peak, end, steps, total, decay) for u in range(0, total + 10, 3)]
        schedules.append({"peak": peak, "end": end, "warmup": warmup, "total": total, "decay": decay,
                          "every": 3, "rates": rates})
    numbers = {"decay": DECAY, "rates": [rate(t) for t in range(STEPS)], "clip": clipping(),
               "schedules": schedules, "scaling": scaling()}
    (OUT / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")


main()
