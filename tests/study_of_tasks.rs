//! The table of merges of many tasks, in small: a tiny CLIP, two tasks of drawn pictures.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::program::{Said, ok, run, vlmerge};

const TOKENIZER: &str = "fixtures/clip/tokenizer/bpe_simple_vocab_16e6.txt.gz";

/// Pictures of one color, by class: task `colors`, and its halves for task `sides`.
fn tasks(folder: &Path) {
    let colors = [
        ("red", [200, 30, 30]),
        ("green", [30, 160, 60]),
        ("blue", [40, 60, 190]),
    ];
    for (split, n, first) in [("train", 8, 0), ("val", 4, 8), ("test", 8, 12)] {
        for (name, [red, green, blue]) in colors {
            for index in first..first + n {
                let shade = |value: u8| value.saturating_add((index as u8) * 2);
                let color = [shade(red), shade(green), shade(blue)];
                picture(&folder.join("colors").join(split).join(name), index, |_| {
                    color
                });
                let side = if (index + usize::from(red)) % 2 == 0 {
                    "left"
                } else {
                    "right"
                };
                picture(
                    &folder.join("sides").join(split).join(side),
                    index + 100 * usize::from(red),
                    |x| {
                        if (x < 8) == (side == "left") {
                            color
                        } else {
                            [250, 250, 250]
                        }
                    },
                );
            }
        }
    }
    std::fs::write(folder.join("sides/templates.txt"), "a color on the {}\n").expect("written");
}

/// A picture of 16 by 16 pixels, whose color depends on the column, as a BMP file.
fn picture(folder: &Path, index: usize, color: impl Fn(usize) -> [u8; 3]) {
    std::fs::create_dir_all(folder).expect("made");
    let mut file = b"BM".to_vec();
    // Size of the file, of the header, of its second part, width, height; one plane of 24 bits; the rest by default.
    for number in [
        54 + 768,
        0,
        54,
        40,
        16,
        16,
        1 | 24 << 16,
        0,
        768,
        0,
        0,
        0,
        0_u32,
    ] {
        file.extend(number.to_le_bytes());
    }
    file.extend((0..256).flat_map(|at| {
        let [red, green, blue] = color(at % 16);
        [blue, green, red]
    }));
    std::fs::write(folder.join(format!("{index:04}.bmp")), file).expect("written");
}

fn recipe(folder: &TempDir, more: &str) -> String {
    let of = folder.path().display();
    let synth = "synth: { family: clip, blocks: 1, width: 16, attention_heads: 2, text_blocks: 1, text_width: 16, \
                 text_attention_heads: 2, joint_width: 8, image_size: 16, patch_size: 8, text_len: 16, deviation: 0.2 }";
    let text = format!(
        "title: Two tasks\nclasses: {of}/classes\ndata: {{ build: {{ raw: fixtures/real/raw, sets: [coco] }}, tokenizer: {TOKENIZER} }}\n\
         init: {{ {synth} }}\n\
         pretrain:\n  data: {{ train: [{{ dataset: coco, split: train }}] }}\n  objectives: [{{ name: itc }}]\n  \
         optim: {{ flavor: torch, lr: 1e-3 }}\n  augmentation: square\n  length: {{ steps: 2 }}\n  batch_size: 8\n\
         finetune:\n  optim: {{ flavor: torch, lr: 1e-2, trainable: [vision_model, visual_projection] }}\n  augmentation: square\n  \
         length: {{ steps: 12 }}\n  batch_size: 8\n\
         tasks: [{{ dataset: colors }}, {{ dataset: sides, finetune: {{ length: {{ steps: 6 }} }} }}]\n\
         grams: {{ limit: 8 }}\nresamples: 400\nbaseline: averaging\nmethods:\n\
         - {{ name: averaging, method: linear, weight: 1.0 }}\n\
         - {{ method: task_arithmetic, weight: 1.0, lambda: [0.25, 1.0] }}\n\
         - {{ method: regmean, shrink: 0.5 }}\n\
         - {{ name: data-free regmean, method: regmean, grams: task_vectors }}\n\
         - {{ method: lines, parameters: {{ method: task_arithmetic, weight: 1.0, beta: 0.5 }} }}\n\
         - {{ method: emr }}\n{more}"
    );
    let path = folder.path().join("study.yaml");
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

fn study(recipe: &str, folder: &TempDir, settings: &[&str]) -> Said {
    let out = folder.path().join("out").display().to_string();
    let mut arguments = vec!["study", recipe, "--out", &out, "--json"];
    for setting in settings {
        arguments.extend(["--set", setting]);
    }
    vlmerge(&arguments)
}

fn row<'a>(table: &'a Value, name: &str) -> &'a Value {
    let rows = table["rows"].as_array().expect("rows");
    let found = rows.iter().find(|row| row["name"] == name);
    found.unwrap_or_else(|| panic!("no row {name}"))
}

fn value(score: &Value) -> f64 {
    score["value"].as_f64().expect("a number")
}

/// The accuracy that `evaluate` gives weights of the study on a task, with its interval.
fn evaluated(folder: &TempDir, weights: &[&str], task: usize) -> Value {
    let dataset = ["colors", "sides"][task];
    let weights: Vec<String> = weights
        .iter()
        .map(|path| format!("{{}}/out/steps/{path}"))
        .collect();
    let line = format!(
        "-q evaluate {} --task zero_shot_classes --data {{}}/classes --dataset {dataset} --split test \
         --tokenizer {TOKENIZER} --json --resamples 400 --seed {task}",
        weights.join(" ")
    );
    ok(run(&line, folder)).json()
}

#[test]
fn the_table_says_what_separate_evaluations_say() {
    let folder = TempDir::new().expect("a folder");
    tasks(&folder.path().join("classes"));
    let recipe = recipe(&folder, "");
    let said = ok(study(&recipe, &folder, &[])).json();
    let table = &said["table"];
    let names: Vec<&str> = (table["rows"].as_array().expect("rows").iter())
        .map(|row| row["name"].as_str().expect("a name"))
        .collect();
    let merges = [
        "averaging",
        "task_arithmetic",
        "regmean",
        "data-free regmean",
        "lines",
        "emr",
    ];
    assert_eq!(names[..4], ["pretrained", "fine-tuned", "colors", "sides"]);
    assert_eq!(names[4..], merges);

    for (task, copy) in [(0, "copy-colors"), (1, "copy-sides")] {
        let copy = format!("{copy}/model.safetensors");
        let restored = format!("task-5-emr-{}/model.safetensors", ["colors", "sides"][task]);
        let weights = [
            "merge-0-averaging/merged.safetensors",
            "pretrain/run/model.safetensors",
            copy.as_str(),
            "merge-2-regmean/merged.safetensors",
            "merge-3-data-free-regmean/merged.safetensors",
            "merge-4-lines/merged.safetensors",
            restored.as_str(),
        ];
        let report = evaluated(&folder, &weights, task);
        let rows = [
            "averaging",
            "pretrained",
            "fine-tuned",
            "regmean",
            "data-free regmean",
            "lines",
            "emr",
        ];
        for (at, name) in rows.into_iter().enumerate() {
            let score = &row(table, name)["scores"][task];
            let top1 = &report["results"][at]["measurements"][0];
            assert_eq!(top1["name"], "top1");
            assert_eq!(score["value"], top1["value"], "{name} on {task}");
            assert_eq!(score["interval"], top1["interval"], "{name} on {task}");
            if ["regmean", "data-free regmean", "lines", "emr"].contains(&name) {
                // The first model is the baseline.
                let difference = &report["comparisons"][at - 1]["differences"][0];
                assert_eq!(score["against"]["p"], difference["p"], "{name} on {task}");
                assert_eq!(
                    score["against"]["interval"], difference["interval"],
                    "{name} on {task}"
                );
            } else {
                assert_eq!(score["against"], Value::Null, "{name}");
            }
        }
    }

    // Means, normalized means, and Holm's correction, from the table's own numbers.
    let fine_tuned = row(table, "fine-tuned")["scores"].clone();
    let mut p = Vec::new();
    for of in table["rows"].as_array().expect("rows") {
        let scores: Vec<f64> = (0..2).map(|task| value(&of["scores"][task])).collect();
        let mean = (scores[0] + scores[1]) / 2.0;
        assert!((value(&of["mean"]) - mean).abs() < 1e-12);
        let shares = (0..2).map(|task| scores[task] / value(&fine_tuned[task]));
        let normalized = shares.sum::<f64>() / 2.0;
        assert!((value(&of["normalized_mean"]) - normalized).abs() < 1e-12);
        if let Some(test) = of["mean"]["against"].as_object() {
            p.push((
                test["p"].as_f64().expect("p"),
                test["p_holm"].as_f64().expect("p"),
            ));
            let difference = value(&of["mean"]) - value(&row(table, "averaging")["mean"]);
            assert!((test["difference"].as_f64().expect("a number") - difference).abs() < 1e-12);
        }
    }
    assert_eq!(p.len(), merges.len() - 1);
    p.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut least = 0.0_f64;
    for (rank, (p, corrected)) in p.iter().enumerate() {
        least = least.max((5 - rank) as f64 * p).min(1.0);
        assert!((least - corrected).abs() < 1e-12);
    }

    advice_is_compared_with_the_table(table, &folder);

    // The data and the cost of each merge.
    let data = |name: &str| {
        row(table, name)["cost"]["data"]
            .as_str()
            .expect("text")
            .to_owned()
    };
    assert_eq!(data("averaging"), "none");
    assert_eq!(data("regmean"), "pictures without labels");
    assert_eq!(data("data-free regmean"), "none");
    assert_eq!(data("task_arithmetic"), "labels to choose");
    assert_eq!(data("emr"), "which task it is");
    if cfg!(target_os = "linux") {
        let seconds = |name: &str| {
            row(table, name)["cost"]["processor_seconds"]
                .as_f64()
                .expect("a number")
        };
        assert!(seconds("averaging") > 0.0 && seconds("regmean") > seconds("averaging"));
        assert!(row(table, "averaging")["cost"]["peak_bytes"].as_u64() > Some(1 << 20));
    }
    let parameters = row(table, "task_arithmetic")["parameters"]
        .as_str()
        .expect("text");
    assert!(parameters.contains("(chosen)"), "{parameters}");

    // Files beside the page say the same, and nothing is done twice.
    let out = folder.path().join("out");
    let read = |name: &str| std::fs::read_to_string(out.join(name)).expect("written");
    let again: Value = serde_json::from_str(&read("table.json")).expect("JSON");
    assert_eq!(&again, table);
    assert!(read("table.md").contains("| data-free regmean |"));
    assert!(read("table.svg").starts_with("<svg xmlns"));
    let page = read("report.html");
    for shown in [
        "averaging (baseline)",
        "fine-tuned on sides",
        "corrected by Holm",
        "The order that advice predicts",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
    let again = ok(study(&recipe, &folder, &[])).json();
    assert_eq!(again["steps"]["run"], 0);
    assert_eq!(&again["table"], table);
}

/// The predictions of the study are those of `advise`, and their correlation with the means is that of the table's numbers.
fn advice_is_compared_with_the_table(table: &Value, folder: &TempDir) {
    let line = "-q advise --json --base {}/out/steps/pretrain/run/model.safetensors \
                {}/out/steps/copy-colors/model.safetensors {}/out/steps/copy-sides/model.safetensors";
    let advice = ok(run(line, folder)).json();
    let score = |method: &str, with: &Value| {
        let ranking = advice["ranking"].as_array().expect("a ranking");
        let found = (ranking.iter()).find(|of| of["method"] == method && of["with"] == *with);
        found.unwrap_or_else(|| panic!("no {method}"))["score"].clone()
    };
    let methods = table["agreement"]["methods"].as_array().expect("methods");
    let of = |name: &str| {
        let found = methods.iter().find(|of| of["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}"))
    };
    for (name, method, with) in [
        ("averaging", "linear", Value::Null),
        ("task_arithmetic", "task_arithmetic", Value::Null),
        ("regmean", "regmean", Value::Null),
        ("data-free regmean", "regmean", "grams: task_vectors".into()),
    ] {
        let prediction = &of(name)["prediction"];
        assert_eq!(prediction["score"], score(method, &with), "{name}");
        assert_eq!(
            of(name)["mean"],
            row(table, name)["mean"]["value"],
            "{name}"
        );
    }
    assert_eq!(methods.len(), 6);
    for name in ["lines", "emr"] {
        assert_eq!(of(name)["prediction"], Value::Null);
    }
    let ranks = |key: &str| -> Vec<f64> {
        let predicted = methods[..4].iter().map(|of| &of["prediction"][key]);
        predicted
            .map(|rank| rank.as_f64().expect("a rank"))
            .collect()
    };
    let (one, other) = (ranks("predicted"), ranks("measured"));
    assert!(one.is_sorted());
    // Ranks of four have the mean 2.5, with ties or without.
    let products = |a: &[f64], b: &[f64]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| (a - 2.5) * (b - 2.5)).sum()
    };
    let scale = (products(&one, &one) * products(&other, &other)).sqrt();
    let spearman = &table["agreement"]["spearman"];
    match scale > 0.0 {
        true => {
            let expected = products(&one, &other) / scale;
            assert!((value(spearman) - expected).abs() < 1e-12);
            let interval = &spearman["interval"];
            assert!(interval["low"].as_f64() <= interval["high"].as_f64());
        }
        false => assert_eq!(spearman, &Value::Null),
    }
}

#[test]
fn copies_that_were_fine_tuned_elsewhere_are_merged_as_they_are() {
    let folder = TempDir::new().expect("a folder");
    tasks(&folder.path().join("classes"));
    for (name, seed) in [("base", 1), ("one", 2), ("two", 3)] {
        let line = format!(
            "-q synth --family clip --blocks 1 --width 16 --attention-heads 2 --text-blocks 1 --text-width 16 \
             --text-attention-heads 2 --joint-width 8 --image-size 16 --patch-size 8 --text-len 16 --deviation 0.2 \
             --seed {seed} {{}}/{name}.safetensors"
        );
        ok(run(&line, &folder));
    }
    let of = folder.path().display();
    let text = format!(
        "title: Given copies\nclasses: {of}/classes\ndata: {{ tokenizer: {TOKENIZER} }}\ninit: {{ checkpoint: {of}/base.safetensors }}\n\
         tasks:\n- {{ dataset: colors, model: {of}/one.safetensors }}\n- {{ dataset: sides, model: {of}/two.safetensors }}\n\
         resamples: 200\nlimit: 9\nbaseline: pretrained\nmethods: [{{ method: ties, weight: 1.0, density: 0.5 }}]\n"
    );
    let path = folder.path().join("study.yaml");
    std::fs::write(&path, text).expect("written");
    let said = ok(study(&path.display().to_string(), &folder, &[])).json();
    assert_eq!(said["steps"]["run"], 4);
    // One method makes no order.
    let agreement = &said["table"]["agreement"];
    assert_eq!(agreement["spearman"], Value::Null);
    assert_eq!(agreement["methods"][0]["prediction"]["predicted"], 1.0);
    assert_eq!(
        row(&said["table"], "ties")["mean"]["against"]["p_holm"],
        row(&said["table"], "ties")["mean"]["against"]["p"]
    );
    let counts = &said["test"][0]["results"][0]["counts"];
    assert_eq!(counts["images"], 9);
}

#[test]
fn tables_that_cannot_be_are_refused_before_any_work() {
    let folder = TempDir::new().expect("a folder");
    let recipe = recipe(&folder, "");
    for (setting, expected) in [
        ("baselin=averaging", "the nearest is `baseline`"),
        ("baseline=ties", "`baseline`: ties is no row"),
        (
            "tasks=[{ dataset: colors }]",
            "one alone has nothing to be merged with",
        ),
        (
            "tasks=[{ dataset: colors }, { dataset: colors }]",
            "colors comes twice",
        ),
        ("tasks.0.dataset=../colors", "names no data set"),
        (
            "tasks.0.validation=test",
            "the test split `test` of colors is chosen on",
        ),
        (
            "tasks.0.train=test",
            "the test split `test` of colors is learned from",
        ),
        (
            "tasks.1.model=x.safetensors",
            "sides has a `model`, which is not fine-tuned",
        ),
        (
            "finetune.data={ folder: x }",
            "`finetune.data`: the study says that itself",
        ),
        ("finetune.optim.lrr=1", "the nearest is `lr`"),
        (
            "pretrain.init={ checkpoint: x }",
            "`pretrain.init`: the study says that itself",
        ),
        (
            "pretrain=null",
            "without `pretrain` give the pretrained model as `checkpoint`",
        ),
        ("methods=[]", "`methods`: there is none"),
        ("methods.1.method=task_arithmetik", "task_arithmetik"),
        ("methods.1.name=averaging", "averaging comes twice"),
        (
            "methods.1.name=pretrained",
            "pretrained is the name of another row",
        ),
        (
            "methods.1={ method: fisher }",
            "needs a file beside each model",
        ),
        (
            "methods.1={ method: slerp, t: 0.5 }",
            "two models, one of which may be the base",
        ),
        ("methods.1.weight=[1, 2]", "may have one list"),
        (
            "methods.4={ method: lines, beta: 1, parameters: { method: ties, beta: 2 } }",
            "has `beta` twice",
        ),
        ("resamples=10", "`resamples`"),
        ("limit=0", "at least one picture"),
    ] {
        let said = study(&recipe, &folder, &[setting]);
        assert_eq!(said.code, Some(2), "{setting}: {}", said.stderr);
        assert!(said.stderr.contains(expected), "{setting}: {}", said.stderr);
        assert!(!folder.path().join("out").exists(), "{setting}");
    }
}
