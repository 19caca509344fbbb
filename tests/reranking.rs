//! Re-ranking from the command line: an EVE chooses by features and ranks what it chose by image and text together.

use serde_json::Value;
use tempfile::TempDir;

use crate::csv_tables::table;
use crate::program::{Said, ok, run};

const SYNTH: &str = "-q synth --family eve --heads retrieval --blocks 3 --width 8 --attention-heads 2 --ffn-width 12 \
                     --mixtures 1 --experts 4 --patch-size 4 --image-size 8 --vocabulary 101 --text-len 16 --pair-len 12 \
                     --deviation 0.5";

fn evaluate(model: &str, folder: &TempDir, more: &str) -> Said {
    let line = format!(
        "-q evaluate {model} --heads 2 --pair-len 12 --task retrieval --data {{}} --dataset toy --split valid \
         --tokenizer fixtures/real/vocab.txt --json {more}"
    );
    run(&line, folder)
}

/// Names and values of a report's numbers.
fn numbers(report: &Value) -> Vec<(String, f64)> {
    let measurements = report["results"][0]["measurements"].as_array();
    let measurements = measurements.expect("numbers").iter();
    let number = |found: &Value| {
        let name = found["name"].as_str().expect("a name").to_owned();
        (name, found["value"].as_f64().expect("a number"))
    };
    measurements.map(number).collect()
}

fn folder() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let captions: Vec<String> = (0..12).map(|n| format!("a man on {n} trees")).collect();
    let rows = captions.iter().enumerate();
    let rows: Vec<_> = rows
        .map(|(n, caption)| (n / 2, n as i64 / 2, caption.as_str(), n as i64))
        .collect();
    table(&folder, "toy", &rows);
    ok(run(&format!("{SYNTH} {{}}/eve.safetensors"), &folder));
    folder
}

#[test]
fn the_best_by_features_are_ranked_once_more_and_the_report_says_so() {
    let folder = folder();
    let model = "{}/eve.safetensors";
    let dual = ok(evaluate(model, &folder, "")).json();
    let said = ok(evaluate(
        model,
        &folder,
        "--rerank 3 --out {}/three.json --predictions {}/three",
    ));
    let three = said.json();
    assert_ne!(numbers(&three), numbers(&dual));
    ok(run("-q report {}/three.json --out {}/three.md", &folder));
    let page = std::fs::read_to_string(folder.path().join("three.md")).expect("a page");
    assert!(page.contains("the 3 best texts of each image"), "{page}");
    // The file of scores is judged by the new ones, as the run was.
    let files = std::fs::read_dir(folder.path().join("three")).expect("predictions");
    let file = files.flatten().next().expect("a file").path();
    let judged = ok(run(
        &format!("--json score retrieval --scores {}", file.display()),
        &folder,
    ));
    let judged = numbers(&judged.json());
    for (name, value) in numbers(&three) {
        let same = judged.iter().find(|(other, _)| *other == name);
        assert_eq!(same.map(|(_, value)| *value), Some(value), "{name}");
    }
    // Ties among items that were not ranked again count as the flag says.
    let tied = |ties: &str| {
        let more = format!("--rerank 1 --rerank-rest tied --ties {ties}");
        numbers(&ok(evaluate(model, &folder, &more)).json())
    };
    let (best, worst) = (tied("optimistic"), tied("pessimistic"));
    assert!(
        best.iter()
            .zip(&worst)
            .any(|(best, worst)| best.1 > worst.1)
    );
}

#[test]
fn what_re_ranking_cannot_do_is_refused_by_name() {
    let folder = folder();
    let model = "{}/eve.safetensors";
    let refused = |said: Said, words: &[&str]| {
        assert_ne!(said.code, Some(0), "{}", said.stdout);
        for word in words {
            assert!(said.stderr.contains(word), "no {word}: {}", said.stderr);
        }
    };
    refused(
        evaluate(model, &folder, "--rerank 7"),
        &["shortlist of 7", "6 images", "between 1 and 6"],
    );
    refused(evaluate(model, &folder, "--rerank 0"), &["--rerank"]);
    refused(
        evaluate(model, &folder, "--rerank-rest tied"),
        &["--rerank"],
    );
    refused(
        evaluate(model, &folder, "--rerank 2 --rerank-rest last"),
        &["similarity", "tied"],
    );
    let zerovl = fixtures::json("zerovl/config.json");
    let line = format!(
        "-q evaluate fixtures/zerovl/ckpt/model.safetensors --image-heads {} --text-heads {} --task retrieval --data {{}} \
         --dataset toy --split valid --tokenizer fixtures/real/vocab.txt --rerank 2",
        zerovl["vision"]["heads"], zerovl["text"]["heads"]
    );
    refused(
        run(&line, &folder),
        &["zerovl", "texts together with images"],
    );
}
