//! A vocabulary of bytes whose pairs are merged.

use serde_json::{Value, json};

use super::facts::Facts;
use super::tokenizer::{Kind, Unwritten, Vocabulary, WANTED};
use crate::Result;
use crate::gguf::export::{CONTROL, NORMAL, OF_DIGITS, OF_GPT2, PATTERNS, USER_DEFINED};
use crate::gguf::value;
use crate::io::PlainValue;
use crate::io::gguf::Arrays;

/// Names that programs have for ways to cut texts into words, and those that stand for the same.
const SAME: [(&str, &[&str]); 4] = [
    (OF_GPT2, &["gpt-2", "gpt2", "mpt", "olmo"]),
    (
        OF_DIGITS,
        &["refact", "starcoder", "command-r", "smollm", "codeshell"],
    ),
    (OF_LLAMA3, &["llama-bpe", "llama3", "llama-v3"]),
    ("qwen2", &["qwen2", "deepseek-r1-qwen"]),
];

/// The way whose words are tokens if the vocabulary has them, whatever the merges say, and that begins every text.
const OF_LLAMA3: &str = "llama-bpe";

/// The parts of tokenizer.json that such a vocabulary has.
pub(super) fn parts(
    arrays: &Arrays,
    facts: &Facts<'_>,
    vocabulary: &Vocabulary,
) -> Result<Result<Kind, Unwritten>> {
    let said = match value(facts.info(), "tokenizer.ggml.pre") {
        Some(PlainValue::Text(said)) => said.as_str(),
        _ => "",
    };
    let Some(&(pattern, _)) = SAME.iter().find(|(_, names)| names.contains(&said)) else {
        let why = format!("`{said}` is no known way to cut texts into words");
        return Ok(Err(Unwritten(why)));
    };
    let Some(merges) = arrays.texts("tokenizer.ggml.merges", WANTED)? else {
        return Ok(Err(Unwritten("the file has no merges".into())));
    };
    let pairs = merges.iter().map(|merge| merge.split_once(' '));
    let pairs: Option<Vec<(&str, &str)>> = pairs.collect();
    let pairs =
        pairs.ok_or_else(|| facts.wrong("tokenizer.ggml.merges", "has a merge that is no pair"))?;
    let row = PATTERNS.iter().find(|(_, name, _)| *name == pattern);
    let is_composed = row.is_some_and(|(_, _, is_composed)| *is_composed);
    let bytes = |uses_pattern: bool| {
        json!({
            "type": "ByteLevel",
            "add_prefix_space": false,
            "trim_offsets": true,
            "use_regex": uses_pattern,
        })
    };
    let steps = match row {
        Some((pattern, _, _)) => {
            let split = json!({
                "type": "Split",
                "pattern": { "Regex": pattern },
                "behavior": "Isolated",
                "invert": false,
            });
            vec![split, bytes(false)]
        }
        None if pattern == OF_DIGITS => {
            vec![
                json!({ "type": "Digits", "individual_digits": true }),
                bytes(true),
            ]
        }
        None => vec![bytes(true)],
    };
    let cutter = match steps.as_slice() {
        [one] => one.clone(),
        steps => json!({ "type": "Sequence", "pretokenizers": steps }),
    };
    let parts = json!({
        "normalizer": if is_composed { json!({ "type": "NFC" }) } else { Value::Null },
        "pre_tokenizer": cutter,
        "decoder": bytes(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pattern == OF_LLAMA3,
            // Tokens that fill the vocabulary up stand for nothing.
            "vocab": vocabulary.ids(&[NORMAL, CONTROL, USER_DEFINED]),
            "merges": pairs,
        },
    });
    Ok(Ok(Kind {
        parts,
        begins: pattern == OF_LLAMA3,
    }))
}
