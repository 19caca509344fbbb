//! Two runs of other programs, as a user compares them.

use std::path::Path;

use serde_json::{Value, json};

use crate::program::{Said, ok, run, vlmerge};

const STAMP: &str = "2024-05-01T12-00-00.123456";

/// Lines of lm-evaluation-harness: one for each value.
fn lines(values: &[f64], change: &dyn Fn(usize, &mut Value)) -> String {
    let line = |(index, value): (usize, &f64)| {
        let mut line = json!({
            "doc_id": index,
            "doc": { "question": format!("q{index}"), "passage": index / 4 },
            "target": "1",
            "arguments": [["prompt"]],
            "resps": [[["x", false]]],
            "filter": "none",
            "metrics": ["acc"],
            "doc_hash": format!("hash{index}"),
            "prompt_hash": "p",
            "target_hash": "t",
            "acc": value,
        });
        change(index, &mut line);
        format!("{line}\n")
    };
    values.iter().enumerate().map(line).collect()
}

fn write(folder: &Path, run: &str, task: &str, text: &str) {
    let folder = folder.join(run).join("org__model");
    std::fs::create_dir_all(&folder).expect("a folder");
    let name = format!("samples_{task}_{STAMP}.jsonl");
    std::fs::write(folder.join(name), text).expect("written");
}

fn results(folder: &Path, run: &str, value: &Value) {
    let path = folder.join(run).join("org__model");
    let path = path.join(format!("results_{STAMP}.json"));
    std::fs::write(path, value.to_string()).expect("written");
}

/// 400 examples of which A has the first 200 right, and B `n_more` more.
fn two_runs(n_more: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let right = |n: usize| {
        (0..400)
            .map(|i| f64::from(u8::from(i < n)))
            .collect::<Vec<_>>()
    };
    write(folder.path(), "a", "arc", &lines(&right(200), &|_, _| {}));
    write(
        folder.path(),
        "b",
        "arc",
        &lines(&right(200 + n_more), &|_, _| {}),
    );
    folder
}

#[test]
fn the_better_model_is_named_and_a_tie_is_said_to_be_one() {
    let folder = two_runs(40);
    let said = ok(run("score logs {}/a {}/b --json", &folder)).json();
    let contrast = &said["contrasts"][0];
    assert_eq!(contrast["task"], "arc");
    assert_eq!(contrast["n"], 400);
    assert_eq!(
        (contrast["a"].as_f64(), contrast["b"].as_f64()),
        (Some(0.5), Some(0.6))
    );
    assert_eq!(contrast["mcnemar"]["only_second"], 40);
    // 2 · 2⁻⁴⁰
    let p = contrast["mcnemar"]["p"].as_f64().expect("p");
    assert!((p / (2.0f64).powi(-39) - 1.0).abs() < 1e-9, "{p}");
    assert_eq!(contrast["better"], "b");
    // √(0.1 · 0.9 / 400)
    let error = contrast["standard_error"].as_f64().expect("an error");
    assert!((error - 0.015).abs() < 1e-12, "{error}");
    let low = contrast["interval"]["low"].as_f64().expect("low");
    assert!((low - (0.1 - 1.96 * 0.015)).abs() < 0.005, "{low}");

    let folder = two_runs(3);
    let said = ok(run("score logs {}/a {}/b", &folder));
    assert!(
        said.stdout
            .contains("arc acc: the data cannot tell which is better"),
        "{}",
        said.stdout
    );
    assert!(
        said.stdout
            .contains("examples would tell such a difference, and there are 400")
    );
    let same = ok(run("score logs {}/a {}/a", &folder));
    assert!(same.stdout.contains("B - A is +0.0000"), "{}", same.stdout);
}

#[test]
fn clusters_widen_the_interval() {
    let folder = tempfile::tempdir().expect("a folder");
    // All four questions of a passage go together.
    let values = |more: &[usize]| {
        (0..400)
            .map(|i| f64::from(u8::from(i / 4 < 50 || more.contains(&(i / 4)))))
            .collect::<Vec<_>>()
    };
    write(folder.path(), "a", "arc", &lines(&values(&[]), &|_, _| {}));
    write(
        folder.path(),
        "b",
        "arc",
        &lines(&values(&[60, 61, 62]), &|_, _| {}),
    );
    let alone = ok(run("score logs {}/a {}/b --json", &folder)).json();
    let together = ok(run(
        "score logs {}/a {}/b --cluster-by passage --json",
        &folder,
    ))
    .json();
    let of = |said: &Value, key: &str| said["contrasts"][0][key].as_f64().expect("a number");
    assert_eq!(
        (of(&together, "n_clusters"), of(&together, "n")),
        (100.0, 400.0)
    );
    assert!((of(&together, "design_effect") - 4.0).abs() < 1e-9);
    assert!((of(&together, "standard_error") / of(&alone, "standard_error") - 2.0).abs() < 1e-9);
    assert_eq!(together["contrasts"][0]["mcnemar"], Value::Null);
    assert_eq!(together["contrasts"][0]["better"], Value::Null);
    let missing = run("score logs {}/a {}/b --cluster-by chapter", &folder);
    assert!(
        missing.stderr.contains("has no `chapter`"),
        "{}",
        missing.stderr
    );
}

#[test]
fn other_examples_and_other_versions_are_refused_unless_asked_for() {
    let values = [1.0, 0.0, 1.0, 1.0];
    let plain = lines(&values, &|_, _| {});
    let refused = |write_b: &dyn Fn(&Path), expected: &str| -> Said {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), "a", "arc", &plain);
        results(
            folder.path(),
            "a",
            &json!({ "versions": { "arc": 1.0 }, "n-shot": { "arc": 0 } }),
        );
        write_b(folder.path());
        let said = run("score logs {}/a {}/b", &folder);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        assert!(
            said.stderr.contains(expected),
            "{expected}: {}",
            said.stderr
        );
        run("score logs {}/a {}/b --common", &folder)
    };
    let fewer = refused(
        &|folder| write(folder, "b", "arc", &lines(&values[..3], &|_, _| {})),
        "arc: 1 examples are in the first run alone and 0 in the second; one of them is 3",
    );
    assert!(
        fewer.stderr.contains("1 examples of A alone"),
        "{}",
        fewer.stderr
    );
    assert!(fewer.stdout.contains("arc"), "{}", fewer.stdout);
    let other = refused(
        &|folder| {
            write(
                folder,
                "b",
                "arc",
                &lines(&values, &|index, line| {
                    if index == 2 {
                        line["doc_hash"] = json!("another");
                    }
                }),
            );
        },
        "arc: 1 of 4 examples have other contents in the two runs; one of them is 2",
    );
    assert_eq!(other.code, Some(0), "{}", other.stderr);
    for (key, value, expected) in [
        (
            "versions",
            2.0,
            "arc: the version is 1.0 in the first run and 2.0 in the second",
        ),
        ("n-shot", 5.0, "the number of shots is 0 in the first run"),
    ] {
        let other = refused(
            &|folder| {
                write(folder, "b", "arc", &plain);
                results(folder, "b", &json!({ key: { "arc": value } }));
            },
            expected,
        );
        assert_eq!(other.code, Some(0), "{}", other.stderr);
    }
    let task = refused(
        &|folder| {
            write(folder, "b", "arc", &plain);
            write(folder, "b", "mmlu", &plain);
        },
        "`mmlu` is in",
    );
    assert_eq!(task.code, Some(0), "{}", task.stderr);
}

#[test]
fn results_under_a_name_of_their_own_say_the_version_too() {
    // As `lm_eval --output_path out/mine.json` writes them.
    let folder = two_runs(40);
    for (name, version) in [("a", 1.0), ("b", 2.0)] {
        let path = folder.path().join(name).join("org__model");
        let text = json!({ "versions": { "arc": version } }).to_string();
        std::fs::write(path.join(format!("mine_{STAMP}.json")), text).expect("written");
    }
    for line in [
        "score logs {}/a {}/b".to_owned(),
        format!("score logs {{}}/a/org__model/mine_{STAMP}.json {{}}/b"),
    ] {
        let said = run(&line, &folder);
        assert_eq!(said.code, Some(1), "{}", said.stdout);
        assert!(
            said.stderr
                .contains("the version is 1.0 in the first run and 2.0 in the second"),
            "{}",
            said.stderr
        );
    }
}

#[test]
fn several_tasks_have_a_mean_and_filters_are_metrics_of_their_own() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, n) in [("a", 100), ("b", 160)] {
        let right: Vec<f64> = (0..200).map(|i| f64::from(u8::from(i < n))).collect();
        write(folder.path(), name, "arc", &lines(&right, &|_, _| {}));
        let filtered = |filter: &str| lines(&right, &|_, line| line["filter"] = json!(filter));
        write(
            folder.path(),
            name,
            "gsm8k",
            &(filtered("strict-match") + &filtered("flexible-extract")),
        );
    }
    let said = ok(run("score logs {}/a {}/b --json", &folder)).json();
    let metrics: Vec<&str> = (said["contrasts"].as_array().expect("contrasts").iter())
        .map(|contrast| contrast["metric"].as_str().expect("a name"))
        .collect();
    assert_eq!(metrics, ["acc", "acc,strict-match", "acc,flexible-extract"]);
    let overall = &said["overall"];
    assert!((overall["difference"].as_f64().expect("a number") - 0.3).abs() < 1e-12);
    assert_eq!(overall["better"], "b");
    // A task whose numbers are no numbers of single examples, as of word_perplexity, is named and left out.
    for name in ["a", "b"] {
        let text = lines(&[0.0; 3], &|_, line| {
            line["metrics"] = json!(["word_perplexity"]);
            line["word_perplexity"] = json!([-12.5, 3]);
        });
        write(folder.path(), name, "wikitext", &text);
    }
    let with_words = ok(run("score logs {}/a {}/b --json", &folder));
    assert_eq!(with_words.json()["contrasts"], said["contrasts"]);
    assert!(
        with_words.stderr.contains("left out: ") && with_words.stderr.contains("samples_wikitext_"),
        "{}",
        with_words.stderr
    );
    let one = ok(run(
        "score logs {}/a {}/b --json --metric acc,strict-match --common",
        &folder,
    ));
    assert!(one.stdout.contains("acc,strict-match"), "{}", one.stdout);
}

#[test]
fn lines_of_lmms_eval_and_tables_of_vlmevalkit_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for (name, score) in [("a", 0.0), ("b", 1.0)] {
        std::fs::create_dir(at(name)).expect("a folder");
        let line = |id: usize| {
            let line = json!({
                "doc_id": id, "doc": { "category": "color" }, "target": 1, "filtered_resps": ["yes"], "doc_hash": id.to_string(),
                "mme_perception_score": { "question_id": "x", "score": score }, "bleu": ["a", "b"], "nan": f64::NAN.to_string(),
            });
            format!("{line}\n")
        };
        let text: String = (0..20).map(line).collect();
        std::fs::write(at(name).join("20240501_120000_samples_mme.jsonl"), text).expect("written");
        let rows: String = (0..20)
            .map(|i| format!("{i}\t\"what, \"\"so\"\"\"\t{score}\tc{}\n", i / 5))
            .collect();
        let table = format!("index\tquestion\thit\tcategory\n{rows}");
        std::fs::write(at(&format!("{name}_MMBench_result.tsv")), &table).expect("written");
        let rows: Vec<Value> = (0..20)
            .map(|i| json!({ "index": i, "question": "q", "hit": score }))
            .collect();
        std::fs::write(at(&format!("{name}.json")), json!(rows).to_string()).expect("written");
        let column = |value: f64| {
            (0..20)
                .map(|i| (i.to_string(), json!(value)))
                .collect::<serde_json::Map<_, _>>()
        };
        let ids: serde_json::Map<_, _> = (0..20).map(|i| (i.to_string(), json!(i))).collect();
        std::fs::write(
            at(&format!("{name}_columns.json")),
            json!({ "index": ids, "hit": column(score) }).to_string(),
        )
        .expect("written");
        std::fs::write(at(&format!("{name}.xlsx")), "PK").expect("written");
    }
    for (line, metric) in [
        ("score logs {}/a {}/b --json", "mme_perception_score"),
        (
            "score logs {}/a_MMBench_result.tsv {}/b_MMBench_result.tsv --json",
            "hit",
        ),
        ("score logs {}/a.json {}/b.json --json", "hit"),
        (
            "score logs {}/a_columns.json {}/b_columns.json --json",
            "hit",
        ),
    ] {
        let said = ok(run(line, &folder)).json();
        let contrast = &said["contrasts"][0];
        assert_eq!(
            (&contrast["metric"], &contrast["n"]),
            (&json!(metric), &json!(20)),
            "{line}"
        );
        assert_eq!(contrast["difference"], 1.0, "{line}");
    }
    let clustered = ok(run(
        "score logs {}/a_MMBench_result.tsv {}/b_MMBench_result.tsv --cluster-by category --json",
        &folder,
    ));
    assert_eq!(clustered.json()["contrasts"][0]["n_clusters"], 4);
    let refused = run("score logs {}/a.xlsx {}/b.xlsx", &folder);
    assert!(
        refused.stderr.contains("is a spreadsheet") && refused.stderr.contains("PRED_FORMAT"),
        "{}",
        refused.stderr
    );
}

#[test]
fn damaged_logs_are_refused_by_line() {
    let good = lines(&[1.0, 0.0], &|_, _| {});
    for (text, expected) in [
        (format!("{good}{{\n"), "line 3 is no JSON"),
        (format!("{good}[1]\n"), "line 3 is no object"),
        (format!("{good}{{\"acc\": 1}}\n"), "line 3 names no example"),
        (
            good.clone() + &good,
            "line 3 says `acc` of example 0 once more",
        ),
        (
            good.replace("\"acc\":1.0", "\"acc\":NaN")
                .replace("\"acc\":0.0", "\"acc\":null"),
            "no example has a number",
        ),
        (
            good.replace("\"acc\":1.0", "\"x\":1.0"),
            "has no `acc`, which it names as a metric",
        ),
        (String::new(), "no example has a number"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("a.jsonl"), &text).expect("written");
        let said = run("score logs {}/a.jsonl {}/a.jsonl", &folder);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        assert!(
            said.stderr.contains(expected),
            "{expected}: {}",
            said.stderr
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    let said = run("score logs {} {}", &folder);
    assert!(said.stderr.contains("--log_samples"), "{}", said.stderr);
}

#[test]
fn power_says_how_many_examples_tell_a_difference() {
    // (1.959964 √0.1 + 0.841621 √(0.1 − 0.0001))² / 0.0001 = 7846.5.
    let said = vlmerge(&[
        "score",
        "power",
        "--difference",
        "1",
        "--disagreement",
        "0.1",
        "--json",
    ]);
    assert_eq!(ok(said).json()["answers"][0]["examples"], 7847);
    let said = vlmerge(&[
        "score",
        "power",
        "--examples",
        "7847",
        "--disagreement",
        "0.1",
        "--json",
    ]);
    let difference = ok(said).json()["answers"][0]["difference"]
        .as_f64()
        .expect("points");
    assert!((difference - 1.0).abs() < 1e-3, "{difference}");
    let folder = two_runs(40);
    let said = ok(run(
        "score power --logs {}/a {}/b --difference 5 --json",
        &folder,
    ))
    .json();
    assert_eq!(said["answers"][0]["spread"]["disagreement"], 0.1);
    // Of two metrics the models agree on one everywhere, and differ by less than 20 points on the other.
    let folder = two_runs(40);
    for (run, n_right) in [("a", 200), ("b", 240)] {
        let right = |index: usize| f64::from(u8::from(index < n_right));
        let values: Vec<f64> = (0..400).map(right).collect();
        let text = lines(&values, &|_, line| {
            line["metrics"] = json!(["same", "acc"]);
            line["same"] = json!(1.0);
        });
        write(folder.path(), run, "arc", &text);
    }
    let said = ok(run("score power --logs {}/a {}/b --json", &folder));
    assert!(said.stderr.contains("arc same: "), "{}", said.stderr);
    let answers = said.json()["answers"].clone();
    let (acc, same) = (&answers[0], &answers[1]);
    assert_eq!(
        (&acc["name"], &same["name"]),
        (&json!("arc acc"), &json!("arc same"))
    );
    let fault = same["fault"].as_str().expect("a fault");
    assert!(fault.contains("share above 0"), "{fault}");
    assert_eq!(same["difference"], Value::Null);
    assert_eq!(acc["fault"], Value::Null);
    let difference = acc["difference"].as_f64().expect("points");
    assert!((4.0..5.0).contains(&difference), "{difference}");
    let said = ok(run("score power --logs {}/a {}/b", &folder));
    assert!(said.stdout.contains("no answer"), "{}", said.stdout);
    let said = run("score power --logs {}/a {}/b --difference 20", &folder);
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(
        said.stderr
            .contains("arc acc: models that differ on 10.00%"),
        "{}",
        said.stderr
    );
    for (line, expected) in [
        ("score power --difference 1", "--disagreement"),
        (
            "score power --difference 20 --disagreement 0.1",
            "cannot be 20.00 points apart",
        ),
        (
            "score power --difference 0 --disagreement 0.1",
            "a difference of 0",
        ),
        (
            "score power --difference 1 --disagreement 1.5",
            "a share above 0",
        ),
    ] {
        let said = run(line, &folder);
        assert_ne!(said.code, Some(0), "{line}");
        assert!(said.stderr.contains(expected), "{line}: {}", said.stderr);
    }
}

#[test]
fn results_go_into_the_head_of_a_card() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("merged");
    std::fs::create_dir(&model).expect("a folder");
    std::fs::write(
        model.join("README.md"),
        "---\nlicense: mit\n---\n# Merged\n",
    )
    .expect("written");
    let results = json!({
        "results": { "arc": { "alias": "arc", "acc,none": 0.25, "acc_stderr,none": 0.1 } },
        "configs": { "arc": { "dataset_path": "allenai/ai2_arc" } },
    });
    std::fs::write(folder.path().join("results.json"), results.to_string()).expect("written");
    ok(run("card {}/merged --results {}/results.json", &folder));
    let card = std::fs::read_to_string(model.join("README.md")).expect("a card");
    for part in [
        "license: mit\nmodel-index:\n",
        "name: merged",
        "type: allenai/ai2_arc",
        "value: 0.25",
        "---\n# Merged\n",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    std::fs::write(folder.path().join("empty.json"), "{}").expect("written");
    let said = run("card {}/merged --results {}/empty.json", &folder);
    assert!(said.stderr.contains("holds no numbers"), "{}", said.stderr);
    assert_eq!(
        std::fs::read_to_string(model.join("README.md")).expect("a card"),
        card
    );
}
