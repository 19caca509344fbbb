//! Tokens against the pure Python tokenizer of BERT, as recorded in `text/encodings.json`.

use evaluate::Error;
use evaluate::text::{TextInput, Tokenizer};
use serde_json::json;

use crate::fixture::{json as fixture, list, path};

fn shown(name: &str) -> String {
    path(name).to_str().expect("UTF-8").to_owned()
}

#[test]
fn encodings_are_those_of_bert() {
    let tokenizer = Tokenizer::open(&shown("text/vocab.txt")).expect("a vocabulary");
    let cases = fixture("text/encodings.json");
    assert_eq!(list(&cases).len(), 40);
    for case in list(&cases) {
        let text = case["text"].as_str().expect("a text");
        let max_len = case["max_len"].as_u64().expect("a length") as usize;
        let encoded = tokenizer.encode(text, max_len).expect("encoded");
        assert_eq!(json!(encoded.ids), case["ids"], "{text:?}");
        assert_eq!(json!(encoded.n_tokens), case["n_tokens"], "{text:?}");
        let n_tokens = tokenizer.count(text).expect("counted").min(max_len);
        assert_eq!(n_tokens, encoded.n_tokens, "{text:?}");
    }
    let ids = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(|token| tokenizer.id_of(token));
    assert_eq!(ids.map(|id| id.expect("an id")), [0, 1, 2, 3, 4]);
    assert_eq!(tokenizer.padding_id(), 0);
    let lines = std::fs::read_to_string(path("text/vocab.txt"))
        .expect("text")
        .lines()
        .count();
    assert_eq!(tokenizer.vocabulary_size(), lines);
}

#[test]
fn a_length_of_almost_nothing_is_kept() {
    let tokenizer = Tokenizer::open(&shown("text")).expect("a folder with a vocabulary");
    assert_eq!(tokenizer.encode("a man", 0).expect("encoded").ids, [0; 0]);
    assert_eq!(tokenizer.encode("a man", 1).expect("encoded").ids, [3]);
    assert_eq!(tokenizer.encode("a man", 2).expect("encoded").ids, [2, 3]);
}

/// Opens a tokenizer file of this name with this content.
fn open(name: &str, content: impl AsRef<[u8]>) -> Result<Tokenizer, Error> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join(name);
    std::fs::write(&file, content).expect("written");
    Tokenizer::open(file.to_str().expect("UTF-8"))
}

#[test]
fn tokenizer_json_says_the_same_as_its_vocabulary() {
    let plain = Tokenizer::open(&shown("text/vocab.txt")).expect("a vocabulary");
    let words = std::fs::read_to_string(path("text/vocab.txt")).expect("text");
    let words: serde_json::Map<_, _> = (words.lines().enumerate())
        .map(|(id, word)| (word.to_owned(), json!(id)))
        .collect();
    let special = |id: u32, token: &str| {
        json!({ "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true })
    };
    let file = json!({
        "version": "1.0",
        // As published files have them: ours to choose, so they must not matter.
        "truncation": { "direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0 },
        "padding": { "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null,
                     "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]" },
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"),
                         special(3, "[SEP]"), special(4, "[MASK]")],
        "normalizer": { "type": "BertNormalizer", "clean_text": true,
                        "handle_chinese_chars": true, "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
        "decoder": null,
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": words },
    });
    let tokenizer = open("tokenizer.json", file.to_string()).unwrap_or_else(|e| panic!("{e}"));
    for case in list(&fixture("text/encodings.json")) {
        let text = case["text"].as_str().expect("a text");
        let [a, b] = [&plain, &tokenizer].map(|t| t.encode(text, 20).expect("encoded"));
        assert_eq!(a, b, "{text:?}");
    }
}

#[test]
fn damaged_vocabularies_are_refused_by_line() {
    let long = format!("[PAD]\n{}\n", "x".repeat(2000));
    for (content, message) in [
        (
            "[PAD]\na\n[UNK]\na\n".as_bytes(),
            "line 4: repeats token \"a\" of line 2",
        ),
        (b"[PAD]\n\nb\n", "line 2: is blank"),
        (b"[PAD]\n\xff\n", "line 2: is not UTF-8"),
        (long.as_bytes(), "line 2: is longer than 1024 bytes"),
        (b"[PAD]\n[UNK]\n[CLS]\n[MASK]\n", "has no token [SEP]"),
        (b"", "line 1: is blank"),
    ] {
        let error = open("vocab.txt", content).expect_err(message).to_string();
        assert!(
            error.contains("vocab.txt: ") && error.contains(message),
            "{error}"
        );
    }
    let error = open("tokenizer.json", "{}")
        .expect_err("no tokenizer")
        .to_string();
    assert!(
        error.contains("tokenizer.json: is not a usable tokenizer"),
        "{error}"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let error = Tokenizer::open(folder.path().to_str().expect("UTF-8")).expect_err("empty");
    assert!(
        error.to_string().contains("holds neither tokenizer.json"),
        "{error}"
    );
}

#[test]
fn a_missing_file_is_not_asked_of_the_hub() {
    let error = Tokenizer::open("no/such/vocab.txt").expect_err("no file");
    let message = error.to_string();
    assert_eq!(
        message,
        "tokenizer no/such/vocab.txt: is no file, and such a name is not of the hub either"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("without a network"))
    );
}

/// A vocabulary of SentencePiece's unigram model in the form of XLM-R's: logarithms of how likely a piece is, and the
/// piece that words begin with.
const UNIGRAM: &str = r#"{"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [
        {"id": 0, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
        {"id": 1, "content": "<pad>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
        {"id": 2, "content": "</s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
        {"id": 3, "content": "<unk>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
        {"id": 11, "content": "<mask>", "special": true, "single_word": false, "lstrip": true, "rstrip": false, "normalized": false}],
    "normalizer": {"type": "NFKC"},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
    "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
    "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
    "model": {"type": "Unigram", "unk_id": 3, "byte_fallback": false, "vocab": [
        ["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁a", -1.0], ["▁", -2.0], ["man", -2.5], ["m", -3.0],
        ["a", -3.0], ["n", -3.0], ["▁man", -6.0], ["<mask>", 0.0]]}}"#;

#[test]
fn unigrams_of_sentence_piece_are_read_from_tokenizer_json() {
    let tokenizer = open("tokenizer.json", UNIGRAM).expect("a tokenizer");
    // `▁` and `man` are likelier together (-4.5) than `▁man` (-6).
    for (text, ids) in [
        ("a man", [0, 4, 5, 6, 2, 1, 1]),
        ("man a", [0, 5, 6, 4, 2, 1, 1]),
        ("a z", [0, 4, 5, 3, 2, 1, 1]),
        ("a a a a a a", [0, 4, 4, 4, 4, 4, 2]),
    ] {
        assert_eq!(
            tokenizer.encode(text, 7).expect("encoded").ids,
            ids,
            "{text}"
        );
    }
    assert_eq!(tokenizer.special().mask, Some(11));
    assert_eq!(tokenizer.vocabulary_size(), 12);
}

#[test]
fn models_of_sentence_piece_are_refused_by_name_with_what_to_take() {
    let model = b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02\x0a\x0c\x0a\x03<s>\x15\0\0\0\0\x18\x03";
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["sentencepiece.bpe.model", "beit3.spm"] {
        let folder = folder.path().join(name.replace('.', "_"));
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(folder.join(name), model).expect("written");
        for path in [folder.clone(), folder.join(name)] {
            let error = Tokenizer::open(path.to_str().expect("UTF-8")).expect_err("refused");
            let said = error.to_string();
            assert!(
                said.contains(name) && said.contains("SentencePiece"),
                "{said}"
            );
            assert!(
                error
                    .hint()
                    .is_some_and(|hint| hint.contains("tokenizer.json")),
                "{said}"
            );
        }
    }
}

#[test]
fn a_model_that_pools_the_largest_token_takes_texts_that_end_in_it_alone() {
    let input = |tokenizer: &Tokenizer, ends_at_largest| TextInput {
        len: 8,
        vocabulary: tokenizer.vocabulary_size(),
        ends_at_largest,
        ..TextInput::NONE
    };
    // BERT's words are larger than its separator, which stands at the end.
    let words = Tokenizer::open(&shown("real/vocab.txt")).expect("a vocabulary");
    let fitting = words
        .for_input(&input(&words, true))
        .expect("a vocabulary of its size");
    let said = fitting
        .encode("a red helicopter", 8)
        .expect_err("other rows")
        .to_string();
    assert!(
        said.contains("is larger than the end of texts (3)"),
        "{said}"
    );
    let other = words
        .for_input(&input(&words, false))
        .expect("a vocabulary of its size");
    assert_eq!(
        other.encode("a red helicopter", 8).expect("encoded").ids[0],
        2
    );
    // CLIP's end is its last token.
    let clip = shown("clip/tokenizer/bpe_simple_vocab_16e6.txt.gz");
    let clip = Tokenizer::open(&clip).expect("a list of merges");
    let fitting = clip
        .for_input(&input(&clip, true))
        .expect("a vocabulary of its size");
    let encoded = fitting.encode("a red helicopter", 8).expect("encoded");
    assert_eq!(encoded.ids[encoded.n_tokens - 1], 49407);
}
