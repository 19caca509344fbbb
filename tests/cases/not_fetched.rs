//! Files of pointers and pages, in place of files that were not fetched.

use std::path::Path;

use super::{Case, assert_says};
use crate::program::vlmerge_in;

#[test]
fn what_was_not_fetched_is_said_whatever_it_is_called() {
    let case = Case::new("lfs-pointer");
    for name in ["model.safetensors", "model.bin"] {
        let said = case.run(&["inspect", name]);
        assert_eq!(said.code, Some(1));
        assert_says(&said, "is a git-lfs pointer");
        assert_says(&said, "git lfs pull");
    }
    // Whatever else was not fetched: settings, tokenizers, data, recipes.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let fixture = |name: &str| root.join(name).display().to_string();
    let pointer = std::fs::read(case.inputs.join("model.safetensors")).expect("readable");
    let page = b"<!DOCTYPE html>\n<html><head></head></html>\n".to_vec();
    for (content, words) in [(&pointer, "is a git-lfs pointer"), (&page, "is a web page")] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let put = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(&path, content).expect("written");
            path.display().to_string()
        };
        let copied = |from: &str, to: &str| {
            let to = folder.path().join(to);
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("made");
            std::fs::copy(root.join(from), to).expect("copied");
        };
        for model in ["one", "two"] {
            for name in [
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            ] {
                copied(
                    &format!("mergekit/words_a/{name}"),
                    &format!("{model}/{name}"),
                );
            }
        }
        std::fs::create_dir(folder.path().join("weights")).expect("made");
        for name in ["config.json", "model.safetensors"] {
            copied(
                &format!("mergekit/words_a/{name}"),
                &format!("adapted/{name}"),
            );
        }
        copied(
            "quantized/adapter/adapter_model.safetensors",
            "adapter/adapter_model.safetensors",
        );
        let index = r#"{"weight_map": {"a": "part.safetensors"}}"#;
        std::fs::create_dir(folder.path().join("split")).expect("made");
        std::fs::write(
            folder.path().join("split/model.safetensors.index.json"),
            index,
        )
        .expect("written");
        let recipe = "merge_method: linear\nmodels: [one, two]\nparameters: {weight: 1}\ntokenizer_source: union\n";
        std::fs::write(folder.path().join("r.yaml"), recipe).expect("written");
        let checkpoint = fixture("ckpt/all_moe_pretrain.ckpt");
        let evaluate = |data: &str, tokenizer: &str| -> Vec<String> {
            [
                "evaluate",
                &checkpoint,
                "--text-table-len",
                "16",
                "--task",
                "retrieval",
                "--dataset",
                "f30k",
                "--split",
                "val",
                "--data",
                data,
                "--tokenizer",
                tokenizer,
            ]
            .map(str::to_owned)
            .into()
        };
        let words_of = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
        let (vocabulary, arrow) = (fixture("real/vocab.txt"), fixture("arrow"));
        let annotations = fixture("metrics/vqa_annotations.json");
        for (name, arguments) in [
            ("split/part.safetensors", words_of("inspect split")),
            (
                "adapter/adapter_config.json",
                words_of("merge adapted+adapter --out out --dry-run"),
            ),
            ("recipe.yaml", words_of("merge recipe.yaml --dry-run")),
            (
                "search.yaml",
                words_of("search search.yaml --task retrieval --data x --split val --out o"),
            ),
            ("run.yaml", words_of("pretrain run.yaml --out run")),
            ("study.yaml", words_of("study study.yaml --out study")),
            (
                "data/f30k_caption_karpathy_val.arrow",
                evaluate("data", &vocabulary),
            ),
            ("vocab.txt", evaluate(&arrow, "vocab.txt")),
            (
                "words/tokenizer.json",
                evaluate(&arrow, "words/tokenizer.json"),
            ),
            (
                "raw/karpathy/dataset_flickr30k.json",
                words_of("data build f30k --raw raw --out built"),
            ),
            (
                "results.json",
                words_of(&format!(
                    "score vqa --results results.json --annotations {annotations}"
                )),
            ),
            ("report.json", words_of("report report.json")),
            (
                "grams.safetensors",
                words_of(&format!(
                    "regmean {checkpoint} --grams grams.safetensors --dry-run"
                )),
            ),
            ("one/config.json", words_of("merge r.yaml --dry-run")),
            ("two/tokenizer.json", words_of("merge r.yaml --dry-run")),
        ] {
            let good = std::fs::read(folder.path().join(name)).ok();
            put(name);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let said = vlmerge_in(folder.path(), &arguments);
            assert!(
                matches!(said.code, Some(1 | 2)),
                "{arguments:?}: {}",
                said.stderr
            );
            assert!(
                said.stderr.contains(words),
                "{arguments:?}: {}",
                said.stderr
            );
            if content == &pointer {
                assert_says(&said, "git lfs pull");
            }
            if let Some(good) = good {
                std::fs::write(folder.path().join(name), good).expect("written");
            }
        }
    }
    let page = case.out.path().join("model.safetensors");
    std::fs::write(&page, "\n<!DOCTYPE html><html></html>").expect("written");
    let said = case.run(&["inspect", &page.display().to_string()]);
    assert_says(&said, "is a web page");
}
