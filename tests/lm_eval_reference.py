#!/usr/bin/env python3
"""Runs lm-evaluation-harness on two tiny models, and compares `vlmerge score logs` and `search --score` with what it says.

    tests/with_torch.sh tests/lm_eval_reference.py target/release/vlmerge

The models are random, their tokenizer and the tasks are made here: nothing is downloaded. lm_eval writes its logs with
--log_samples. Means must be those of its results, the standard error of a run against one of zeros that of its `acc_stderr`, and
paired numbers those of scipy. A search with lm_eval as its program must find the number of the merge that it tries.
Where lmms-eval is installed, its own logger writes the same answers again. Exit code 1 if anything differs.
"""

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

PROGRAM = Path(sys.argv[1]).resolve()
N = 120
LETTERS = "abcdefgh"
failures = []

CHOICE = """\
task: choice
dataset_path: json
dataset_kwargs: {{ data_files: {{ validation: {data} }} }}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{ metric: acc, aggregation: mean, higher_is_better: true }}
  - {{ metric: acc_norm, aggregation: mean, higher_is_better: true }}
metadata: {{ version: 1.0 }}
"""

WRITE = """\
task: write
dataset_path: json
dataset_kwargs: {{ data_files: {{ validation: {data} }} }}
validation_split: validation
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{first}}}}"
generation_kwargs: {{ until: ["."], do_sample: false, max_gen_toks: 4 }}
filter_list:
  - name: first
    filter:
      - {{ function: regex, regex_pattern: "([a-h])" }}
      - {{ function: take_first }}
  - name: last
    filter:
      - {{ function: regex, regex_pattern: "([a-h])", group_select: -1 }}
      - {{ function: take_first }}
metric_list:
  - {{ metric: exact_match, aggregation: mean, higher_is_better: true }}
metadata: {{ version: 2.0 }}
"""

WORDS = """\
task: words
dataset_path: json
dataset_kwargs: {{ data_files: {{ validation: {data} }} }}
validation_split: validation
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - {{ metric: word_perplexity }}
metadata: {{ version: 3.0 }}
"""


def check(name, condition, why=""):
    print(("ok      " if condition else "DIFFERS ") + name + (f": {why}" if not condition else ""), flush=True)
    if not condition:
        failures.append(name)


def run(*words, code=0):
    done = subprocess.run([str(PROGRAM), *map(str, words)], capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def make_model(folder, seed):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "</s>", *" .?", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_tasks(folder):
    draws = random.Random(7)
    word = lambda: "".join(draws.choice(LETTERS) for _ in range(draws.randint(2, 5)))
    rows = []
    for number in range(N):
        choices = [word() for _ in range(2)]
        question = " ".join(word() for _ in range(3)) + "?"
        rows.append(dict(question=question, choices=choices, answer=draws.randrange(2), first=draws.choice(LETTERS), passage=number // 3))
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("write", WRITE), ("words", WORDS)):
        (folder / f"{name}.yaml").write_text(text.format(data=data))


def evaluate(model, out, tasks, names):
    """Runs lm_eval and writes its logs as its command line does, without the minute in which that reads thousands of tasks."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(out))
    found = simple_evaluate(
        model="hf", model_args=f"pretrained={model},dtype=float32", tasks=names, device="cpu", batch_size=64, bootstrap_iters=10,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False), log_samples=True, evaluation_tracker=tracker,
    )
    written = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=written)
    for name in names:
        tracker.save_results_samples(task_name=name, samples=written[name])


def samples(out, task):
    (path,) = out.rglob(f"samples_{task}_*.jsonl")
    return path, [json.loads(line) for line in path.read_text().splitlines()]


def results(out):
    (path,) = out.rglob("results_*.json")
    return json.loads(path.read_text())


def logs(folder, a, b):
    found = run("score", "logs", a, b, "--json", "--resamples", 2000)
    check("logs: the task without numbers of examples is named", "samples_words_" in found.stderr, found.stderr)
    contrasts = {(c["task"], c["metric"]): c for c in json.loads(found.stdout)["contrasts"]}
    expected = {("choice", "acc"), ("choice", "acc_norm"), ("write", "exact_match,first"), ("write", "exact_match,last")}
    check("logs: tasks and metrics", set(contrasts) == expected, set(contrasts))
    for task, metric in expected:
        contrast = contrasts[task, metric]
        name, _, filter = metric.partition(",")
        for which, out in (("a", a), ("b", b)):
            said = results(out)["results"][task][f"{name},{filter or 'none'}"]
            check(f"logs: {task} {metric} of {which}", abs(contrast[which] - said) < 1e-12, (contrast[which], said))
        values = [
            np.array([float(line[name]) for line in samples(out, task)[1] if line["filter"] == (filter or "none")]) for out in (a, b)
        ]
        off = values[1] - values[0]
        check(f"logs: {task} {metric} has all examples", contrast["n"] == len(off) == N, contrast["n"])
        error = stats.sem(off, ddof=0)
        check(f"logs: {task} {metric}: standard error", abs(contrast["standard_error"] - error) < 1e-12, (contrast["standard_error"], error))
        only = int((off < 0).sum()), int((off > 0).sum())
        found = contrast["mcnemar"]["only_first"], contrast["mcnemar"]["only_second"]
        check(f"logs: {task} {metric}: who is right alone", found == only, (found, only))
        p = stats.binomtest(only[0], sum(only), 0.5).pvalue if sum(only) else 1.0
        check(f"logs: {task} {metric}: McNemar", abs(contrast["mcnemar"]["p"] - p) < 1e-9, (contrast["mcnemar"]["p"], p))
    check("logs: the models differ", contrasts["choice", "acc"]["disagreement"] > 0.1, contrasts["choice", "acc"])

    clustered = json.loads(run("score", "logs", a, b, "--json", "--cluster-by", "passage", "--metric", "acc").stdout)["contrasts"][0]
    left, right = (np.array([float(line["acc"]) for line in samples(out, "choice")[1]]) for out in (a, b))
    off = right - left - (right - left).mean()
    error = np.sqrt((off.reshape(-1, 3).sum(axis=1) ** 2).sum()) / N
    check("logs: clusters of passages", clustered["n_clusters"] == N // 3, clustered)
    check("logs: standard error by clusters", abs(clustered["standard_error"] - error) < 1e-12, (clustered["standard_error"], error))

    # Against zeros the difference is the run itself, so its error is that of lm_eval, which divides by n - 1.
    path, lines = samples(a, "choice")
    zeros = folder / "zeros"
    zeros.mkdir()
    (zeros / path.name).write_text("".join(json.dumps(line | dict(acc=0.0, acc_norm=0.0)) + "\n" for line in lines))
    found = json.loads(run("score", "logs", zeros, path, "--json").stdout)["contrasts"]
    for contrast in found:
        said = results(a)["results"]["choice"][contrast["metric"] + "_stderr,none"]
        own = contrast["standard_error"] * (N / (N - 1)) ** 0.5
        check(f"logs: {contrast['metric']}_stderr of lm_eval", abs(own - said) < 1e-9, (own, said))

    # The file of results names its samples.
    (of_results,) = a.rglob("results_*.json")
    again = json.loads(run("score", "logs", of_results, b, "--json", "--resamples", 2000).stdout)["contrasts"]
    check("logs: by the file of results", {(c["task"], c["metric"]): c for c in again} == contrasts)
    power = json.loads(run("score", "power", "--logs", a, b, "--json").stdout)["answers"]
    check("power: all metrics have an answer", [p["fault"] for p in power] == [None] * 4, power)
    for answer in power:
        share = answer["spread"]["disagreement"]
        needed = lambda d: ((stats.norm.isf(0.025) * share**0.5 + stats.norm.ppf(0.8) * max(share - d * d, 0) ** 0.5) / d) ** 2
        # Null where even the largest difference takes more examples.
        d = answer["difference"]
        right = needed(share) > N if d is None else abs(needed(d / 100) - N) < 1e-6
        check(f"power: {answer['name']}", right, answer)


def search(folder, tasks, models):
    """One trial of a search, which lm_eval scores, against lm_eval on what `vlmerge merge` writes."""
    recipe = (
        f"merge_method: slerp\nbase_model: {models[0]}\nmodels: [{{ model: {models[0]} }}, {{ model: {models[1]} }}]\n"
        "parameters: { t: T }\ndtype: float32\n"
    )
    (folder / "search.yaml").write_text(recipe.replace("T", "{ search: [0, 1] }"))
    (folder / "half.yaml").write_text(recipe.replace("T", "0.5"))
    line = f"'{sys.executable}' '{Path(__file__).resolve()}' --evaluate {{model}} {{out}} '{tasks}'"
    key = "results.choice.acc,none"
    done = run("search", folder / "search.yaml", "--out", folder / "search.json", "--grid", 1, "--score", line, "--score-key", key, "--json")
    run("merge", folder / "half.yaml", "--out", f"{folder / 'half'}/")
    evaluate(folder / "half", folder / "out" / "half", tasks, ["choice"])
    expected = results(folder / "out" / "half")["results"]["choice"]["acc,none"]
    found = json.loads(done.stdout)
    check("search: the number is that of the merge", (found["best"] or {}).get("worth") == expected, (found, expected))
    check("search: no trial failed", found["failed"] == [], found["failed"])


def lmms(folder, a, b):
    if importlib.util.find_spec("lmms_eval") is None:
        print("SKIPPED: lmms-eval is not installed")
        return
    from lmms_eval.loggers.evaluation_tracker import EvaluationTracker

    outs = []
    for name, of in (("a", a), ("b", b)):
        out = folder / "lmms" / name
        tracker = EvaluationTracker(output_path=str(out))
        tracker.general_config_tracker.log_experiment_args("hf", f"pretrained={name}", "", "", "")
        lines = [
            dict(doc_id=line["doc_id"], doc=line["doc"], target=line["target"], arguments=["prompt"], resps=[["x"]], filtered_resps=["x"],
                 token_counts=[None], doc_hash=line["doc_hash"], acc=line["acc"], judged=dict(question_id=line["doc_id"], score=line["acc_norm"]))
            for line in samples(of, "choice")[1]
        ]
        tracker.save_results_aggregated(
            results=dict(results=dict(choice={"acc,none": 0}), versions=dict(choice=1.0)), samples=dict(choice=lines), datetime_str="20260101_120000"
        )
        tracker.save_results_samples(task_name="choice", samples=lines)
        outs.append(out)
    found = {c["metric"]: c for c in json.loads(run("score", "logs", *outs, "--json", "--resamples", 2000).stdout)["contrasts"]}
    known = {c["metric"]: c for c in json.loads(run("score", "logs", a, b, "--json", "--resamples", 2000).stdout)["contrasts"] if c["task"] == "choice"}
    for own, other in (("acc", "acc"), ("judged", "acc_norm")):
        same = all(found[own][key] == known[other][key] for key in ("n", "a", "b", "standard_error", "mcnemar"))
        check(f"lmms-eval: {own}", same, (found[own], known[other]))


def vlmevalkit(folder, a, b):
    """Tables as VLMEvalKit's `dump` writes them: pandas' CSV with all cells quoted, and JSON of records."""
    import pandas

    for ending in ("csv", "json"):
        paths = []
        for name, of in (("a", a), ("b", b)):
            lines = samples(of, "choice")[1]
            rows = [dict(index=line["doc_id"], question=line["doc"]["question"], hit=int(line["acc"]), log="Match Log:\n\"x\"") for line in lines]
            path = folder / f"{name}_choice_exact_matching_result.{ending}"
            table = pandas.DataFrame(rows)
            if ending == "csv":
                table.to_csv(path, index=False, encoding="utf-8", quoting=1)
            else:
                path.write_text(json.dumps(table.to_dict("records"), indent=4, ensure_ascii=False))
            paths.append(path)
        (found,) = json.loads(run("score", "logs", *paths, "--json").stdout)["contrasts"]
        expected = [results(of)["results"]["choice"]["acc,none"] for of in (a, b)]
        check(f"VLMEvalKit: {ending}", np.allclose([found["a"], found["b"]], expected, atol=1e-12), found)


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        models = [folder / "one", folder / "other"]
        for seed, model in enumerate(models):
            make_model(model, seed)
        tasks = folder / "tasks"
        tasks.mkdir()
        make_tasks(tasks)
        a, b = folder / "out" / "a", folder / "out" / "b"
        for model, out in zip(models, (a, b)):
            evaluate(model, out, tasks, ["choice", "write", "words"])
        logs(folder, a, b)
        lmms(folder, a, b)
        vlmevalkit(folder, a, b)
        search(folder, tasks, models)
    if failures:
        sys.exit(f"{len(failures)} differences: {', '.join(failures)}")


if sys.argv[1] == "--evaluate":
    evaluate(*sys.argv[2:], ["choice"])
else:
    main()
