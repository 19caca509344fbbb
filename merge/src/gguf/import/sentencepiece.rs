//! A vocabulary of SentencePiece whose pairs are merged by scores.
//!
//! Source: `bpe_model.cc` of SentencePiece, which joins the pair whose whole has the highest score; `generate_merges` of
//! transformers, which takes the order of Gemma's tokens for that of its scores.

use serde_json::{Value, json};

use super::facts::Facts;
use super::tokenizer::{Kind, Unwritten, Vocabulary, WANTED};
use crate::Result;
use crate::gguf::export::{CONTROL, NORMAL, USER_DEFINED};
use crate::gguf::value;
use crate::io::PlainValue;
use crate::io::gguf::Arrays;

/// The types of tokens that SentencePiece alone has.
const UNKNOWN: i32 = 2;
const BYTE: i32 = 6;

/// The sign that stands for a space.
const SPACE: &str = "\u{2581}";

/// The parts of tokenizer.json that such a vocabulary has, with the token for unknown characters.
pub(super) fn parts(
    arrays: &Arrays,
    facts: &Facts<'_>,
    vocabulary: &Vocabulary,
    unknown: Option<&Value>,
) -> Result<Result<Kind, Unwritten>> {
    let scores = match arrays.floats("tokenizer.ggml.scores", WANTED)? {
        None => return Ok(Err(Unwritten("the file has no scores of tokens".into()))),
        Some(scores) => scores,
    };
    if scores.len() != vocabulary.tokens.len() || scores.iter().any(|score| score.is_nan()) {
        let found = format!(
            "has {} numbers for {} tokens, or one that is none",
            scores.len(),
            vocabulary.tokens.len()
        );
        return Err(facts.wrong("tokenizer.ggml.scores", &found));
    }
    let is_gemma = facts.architecture.has_norms_plus_one;
    let has_prefix = match value(facts.info(), "tokenizer.ggml.add_space_prefix") {
        Some(PlainValue::Bool(has_prefix)) => *has_prefix,
        _ => !is_gemma,
    };
    let unknown = match unknown {
        Some(token) => token.clone(),
        None => json!(
            vocabulary
                .of_kinds(&[UNKNOWN])
                .next()
                .map(|(_, token)| token)
        ),
    };
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let normalizer = match has_prefix {
        false => replace,
        true => json!({
            "type": "Sequence",
            "normalizers": [{ "type": "Prepend", "prepend": SPACE }, replace],
        }),
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if has_prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let has_bytes = vocabulary.of_kinds(&[BYTE]).next().is_some();
    let pairs = merges(vocabulary, &scores, is_gemma);
    let parts = json!({
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": has_bytes,
            "ignore_merges": false,
            "vocab": vocabulary.ids(&[NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE]),
            "merges": pairs,
        },
    });
    Ok(Ok(Kind {
        parts,
        begins: true,
    }))
}

/// The pairs of tokens whose whole is a token, the best first.
fn merges<'v>(
    vocabulary: &'v Vocabulary,
    scores: &[f32],
    by_place: bool,
) -> Vec<(&'v str, &'v str)> {
    let ids = vocabulary.ids(&[NORMAL]);
    let mut found = Vec::new();
    for (id, token) in vocabulary.of_kinds(&[NORMAL]) {
        let score = match by_place {
            true => -(id as f32),
            false => scores[id],
        };
        let halves = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at));
        for (one, other) in halves {
            if let (Some(&first), Some(&second)) = (ids.get(one), ids.get(other)) {
                found.push((score, first, second, (one, other)));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    found.into_iter().map(|(_, _, _, pair)| pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pair_whose_whole_has_the_highest_score_comes_first() {
        let tokens = ["<unk>", "a", "b", "c", "bc", "ab", "abc"];
        let vocabulary = Vocabulary {
            tokens: tokens.map(str::to_owned).to_vec(),
            kinds: vec![UNKNOWN, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL],
        };
        let scores = [0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0];
        let expected = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")];
        assert_eq!(merges(&vocabulary, &scores, false), expected);
        let by_place = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")];
        assert_eq!(merges(&vocabulary, &scores, true), by_place);
    }
}
