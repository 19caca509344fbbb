#!/usr/bin/env python3
"""Compares the statistics of `vlmerge score logs` and `score power` with scipy, and model cards with huggingface_hub.

    tests/with_torch.sh tests/score_reference.py target/release/vlmerge

Random logs of two models are judged by both: means, the standard error by clusters, McNemar's exact p, and the interval of the
bootstrap, which has an error of its own. huggingface_hub reads the card that `vlmerge card` writes. Exit code 1 if anything differs.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from huggingface_hub import ModelCard
from scipy import stats

PROGRAM = Path(sys.argv[1]).resolve()
STAMP = "2024-05-01T12-00-00.123456"
failures = []


def check(name, condition, why=""):
    print(("ok      " if condition else "DIFFERS ") + name + (f": {why}" if not condition else ""))
    if not condition:
        failures.append(name)


def run(*words):
    done = subprocess.run([str(PROGRAM), *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def write(folder, values, clusters):
    folder.mkdir()
    with open(folder / f"samples_task_{STAMP}.jsonl", "w") as file:
        for number, (value, cluster) in enumerate(zip(values, clusters)):
            json.dump(
                dict(doc_id=number, doc=dict(passage=int(cluster)), target=1, metrics=["acc"], filter="none", acc=float(value),
                     doc_hash=str(number), unused=float("nan")),
                file,
            )
            file.write("\n")


def compare(folder, name, one, other, clusters):
    write(folder / f"{name}a", one, clusters)
    write(folder / f"{name}b", other, clusters)
    words = ["score", "logs", folder / f"{name}a", folder / f"{name}b", "--json", "--resamples", 20000]
    is_clustered = len(set(clusters)) < len(one)
    if is_clustered:
        words += ["--cluster-by", "passage"]
    found = json.loads(run(*words))["contrasts"][0]
    off = other - one
    near = lambda key, value, tolerance: check(f"{name}: {key}", abs(found[key] - value) <= tolerance, (found[key], value))
    near("a", one.mean(), 1e-12)
    near("difference", off.mean(), 1e-12)
    labels = np.unique(clusters)
    sums = np.array([(off - off.mean())[clusters == label].sum() for label in labels])
    error = np.sqrt((sums**2).sum()) / len(off)
    near("standard_error", error, 1e-12)
    # The bootstrap of clusters by scipy: sums and counts of whole clusters are drawn.
    pairs = np.array([[off[clusters == label].sum(), (clusters == label).sum()] for label in labels])
    drawn = stats.bootstrap(
        (pairs[:, 0], pairs[:, 1]), lambda total, n, axis=-1: total.sum(axis=axis) / n.sum(axis=axis), paired=True, vectorized=True,
        n_resamples=20000, method="percentile", rng=np.random.default_rng(5), batch=500,
    ).confidence_interval
    # Ends of 20,000 draws are off by about 0.02 standard errors; values of judgements come in steps of 1 / n.
    room = 0.12 * error + 1 / len(off)
    for end, expected in (("low", drawn.low), ("high", drawn.high)):
        check(f"{name}: {end} of the interval", abs(found["interval"][end] - expected) < room, (found["interval"], drawn))
    if found["mcnemar"]:
        only = found["mcnemar"]["only_first"], found["mcnemar"]["only_second"]
        check(f"{name}: who is right alone", only == (int((off < 0).sum()), int((off > 0).sum())), only)
        p = stats.binomtest(only[0], sum(only), 0.5).pvalue
        check(f"{name}: McNemar", abs(found["mcnemar"]["p"] - p) <= 1e-9 * p + 1e-15, (found["mcnemar"]["p"], p))
        # With many differences, both tests agree roughly.
        z = off.mean() / error
        check(f"{name}: p", abs(found["p"] - 2 * stats.norm.sf(abs(z))) < 0.05, (found["p"], z))
    else:
        check(f"{name}: no McNemar", is_clustered or not set(np.concatenate([one, other])) <= {0.0, 1.0})


def main():
    draws = np.random.default_rng(11)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for number, (n, shift) in enumerate([(300, 0.0), (1000, 0.05), (2000, -0.1)]):
            hard = draws.random(n)
            one = (draws.random(n) < hard).astype(float)
            other = np.where(draws.random(n) < 0.3, draws.random(n) < hard + shift, one).astype(float)
            compare(folder, f"judgements{number}", one, other, np.arange(n))
            clusters = draws.integers(0, n // 5, n)
            effect = 0.4 * (draws.random(n // 5) - 0.5)[clusters]
            compare(folder, f"clusters{number}", one, np.clip(other + (draws.random(n) < effect), 0, 1), clusters)
            compare(folder, f"shares{number}", hard, np.clip(hard + draws.normal(shift, 0.1, n), 0, 1), np.arange(n))

        for share, points, alpha, power in [(0.1, 1, 0.05, 0.8), (0.3, 5, 0.01, 0.9), (0.05, 4, 0.1, 0.5)]:
            words = ["score", "power", "--difference", points, "--disagreement", share, "--alpha", alpha, "--power", power, "--json"]
            found = json.loads(run(*words))["answers"][0]["examples"]
            d = points / 100
            root = stats.norm.isf(alpha / 2) * share**0.5 + stats.norm.ppf(power) * (share - d * d) ** 0.5
            check(f"power at {share}, {points}", found == int(np.ceil((root / d) ** 2)), found)

        model = folder / "model"
        model.mkdir()
        (model / "README.md").write_text("---\nlicense: mit\ntags:\n- merge\n---\n# A model\n")
        results = dict(
            results=dict(arc_easy={"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.01, "exact_match,strict-match": 0.25}),
            configs=dict(arc_easy=dict(dataset_path="allenai/ai2_arc", dataset_name="ARC-Easy", test_split="test")),
        )
        (folder / "results.json").write_text(json.dumps(results))
        run("card", model, "--results", folder / "results.json")
        card = ModelCard.load(model / "README.md")
        read = {(r.task_type, r.dataset_type, r.dataset_config, r.dataset_split, r.metric_type, r.metric_value) for r in card.data.eval_results}
        expected = {
            ("text-generation", "allenai/ai2_arc", "ARC-Easy", "test", "acc", 0.5),
            ("text-generation", "allenai/ai2_arc", "ARC-Easy", "test", "exact_match", 0.25),
        }
        check("card: results", read == expected, read)
        check("card: the rest", card.data.license == "mit" and card.data.tags == ["merge"] and card.text.strip() == "# A model")
    if failures:
        sys.exit(f"{len(failures)} differences: {', '.join(failures)}")


main()
