//! Captions against the official scorers and the official tokenizer, as the set `metrics` records them.

use evaluate::metrics::captions::{Captioned, judge, sample, tokenize};
use serde_json::Value;

use fixtures::{Set, list, number};

/// The scorers add in another order; measured: 3e-15.
const TOLERANCE: f64 = 1e-12;

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// The tokenized captions of a corpus.
pub fn captioned(items: &Value) -> Vec<Captioned> {
    let of_image = |item: &Value| Captioned {
        caption: text(&item["hyp_tok"]),
        references: list(&item["refs_tok"]).iter().map(text).collect(),
    };
    list(items).iter().map(of_image).collect()
}

fn assert_close(what: &str, found: f64, expected: &Value) {
    let expected = number(expected);
    let is_close = (found - expected).abs() <= TOLERANCE * expected.abs().max(1e-3);
    assert!(is_close, "{what}: {found}, expected {expected}");
}

/// Number by number, of the corpus and of each image.
fn assert_official(name: &str, corpus: &Value) {
    let judged = judge(&captioned(&corpus["items"]));
    let sample = sample(&judged);
    let expected = &corpus["expected"];
    let keys = [
        ("bleu_1", "Bleu_1"),
        ("bleu_2", "Bleu_2"),
        ("bleu_3", "Bleu_3"),
        ("bleu_4", "Bleu_4"),
        ("rouge_l", "ROUGE_L"),
        ("cider", "CIDEr"),
    ];
    assert_eq!(sample.quantities.len(), keys.len());
    for (quantity, (own, official)) in sample.quantities.iter().zip(keys) {
        assert_eq!(quantity.name, own);
        assert_eq!(sample.n_cases(quantity), judged.len() as u64);
        let found = sample.value(quantity).expect("there are images");
        assert_close(
            &format!("{name}, {own}"),
            found,
            &expected["corpus"][official],
        );
    }
    let images = list(&expected["per_image"]);
    assert_eq!(images.len(), judged.len());
    for (judged, image) in judged.iter().zip(images) {
        let what = |score: &str| format!("{name}, image {}, {score}", image["image_id"]);
        for n in 1..=4 {
            let official = format!("Bleu_{n}");
            assert_close(&what(&official), judged.bleu.score(n), &image[&official]);
        }
        assert_close(&what("ROUGE_L"), judged.rouge_l, &image["ROUGE_L"]);
        assert_close(&what("CIDEr"), judged.cider, &image["CIDEr"]);
    }
}

#[test]
fn scores_are_official_for_the_corpus_and_each_image() {
    let corpus = Set::open("metrics").json("captions.json");
    assert_official("captions.json", &corpus);
}

#[test]
fn scores_are_official_for_small_and_odd_corpora() {
    let corpora = Set::open("metrics").json("captions_small.json");
    let corpora = list(&corpora["cases"]);
    assert!(!corpora.is_empty(), "corpora");
    for corpus in corpora {
        assert_official(corpus["name"].as_str().expect("a name"), corpus);
    }
}

#[test]
fn tokens_are_official() {
    let cases = Set::open("metrics").json("ptb_tokenizer.json");
    let cases = list(&cases["cases"]);
    assert!(!cases.is_empty(), "cases");
    for case in cases {
        let raw = text(&case["raw"]);
        assert_eq!(tokenize(&raw), case["tok"], "{raw:?}");
    }
}
