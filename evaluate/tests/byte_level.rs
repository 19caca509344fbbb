//! Vocabularies of bytes: how their files are read, and which files are refused.

use std::path::Path;

use evaluate::text::Tokenizer;
use evaluate::{Error, TextFault};

use crate::fixture::path;

const MERGES: &str = "#version: 0.2\nĠ a\na b\n";
const VOCABULARY: &str = r#"{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "Ġ": 6,
    "Ġa": 7, "ab": 8, "<mask>": 9}"#;

fn open(path: &Path) -> Result<Tokenizer, Error> {
    Tokenizer::open(path.to_str().expect("UTF-8"))
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).expect("written");
    }
    folder
}

fn refused(files: &[(&str, &str)]) -> Error {
    open(folder(files).path()).expect_err("refused")
}

#[test]
fn a_folder_and_either_of_its_files_open_the_same_vocabulary() {
    let files = folder(&[("vocab.json", VOCABULARY), ("merges.txt", MERGES)]);
    for name in ["", "vocab.json", "merges.txt"] {
        let tokenizer = open(&files.path().join(name)).expect("a tokenizer");
        let encoded = tokenizer.encode("ab a c", 8).expect("encoded");
        assert_eq!(encoded.ids, [0, 8, 7, 6, 3, 2, 1, 1], "{name:?}");
        assert_eq!((encoded.n_tokens, tokenizer.vocabulary_size()), (6, 10));
        assert_eq!(tokenizer.decode(&encoded.ids[..5]), "<s>ab a <unk>");
    }
}

#[test]
fn a_text_of_spaces_has_no_tokens() {
    let files = folder(&[("vocab.json", VOCABULARY), ("merges.txt", MERGES)]);
    let tokenizer = open(files.path()).expect("a tokenizer");
    assert_eq!(tokenizer.count("  \n ").expect("counted"), 2);
}

#[test]
fn tokens_are_added_behind_the_others_and_once() {
    let files = folder(&[("vocab.json", VOCABULARY), ("merges.txt", MERGES)]);
    let added = ["<bos>", "<eos>", "<mask>", "<bos>"];
    let tokenizer = (open(files.path()).expect("a tokenizer").with_added(&added)).expect("added");
    assert_eq!(tokenizer.vocabulary_size(), 12);
    let encoded = tokenizer.encode("<bos>  ab <eos>", 6).expect("encoded");
    assert_eq!(encoded.ids, [0, 10, 8, 11, 2, 1]);
    tokenizer.check_vocabulary(12).expect("its own vocabulary");
    assert!(matches!(
        tokenizer.check_vocabulary(11),
        Err(Error::OtherVocabulary {
            found: 12,
            expected: 11,
            ..
        })
    ));
}

#[test]
fn a_vocabulary_without_a_place_for_captions_writes_none() {
    let files = folder(&[("vocab.json", VOCABULARY), ("merges.txt", MERGES)]);
    let tokenizer = open(files.path()).expect("a tokenizer");
    let error = evaluate::writing::Ends::of(&tokenizer).expect_err("no borders");
    assert!(
        matches!(
            error,
            Error::Text(TextFault::NoCaptionBorders { n_tokens: 10, .. })
        ),
        "{error}"
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("expand")));
}

#[test]
fn a_model_of_captions_has_two_tokens_more_and_no_other_number() {
    use evaluate::text::{Padding, TextInput, TextKind, TextRule};
    let files = folder(&[("vocab.json", VOCABULARY), ("merges.txt", MERGES)]);
    let tokenizer = open(files.path()).expect("a tokenizer");
    let input = |vocabulary: usize| TextInput {
        len: 8,
        padding: Padding::Full,
        vocabulary,
        rule: TextRule::Ended,
        padding_id: None,
        ends_at_largest: false,
    };
    let read = |vocabulary: usize| {
        let fitting = tokenizer.for_input(&input(vocabulary)).expect("it fits");
        fitting
            .read(TextRule::Ended, TextKind::Caption, "ab .")
            .expect("words")
            .into_owned()
    };
    assert_eq!(read(10), "ab.");
    assert_eq!(read(12), "<bos> ab. <eos>");
    for vocabulary in [9, 11, 13, 16] {
        let error = tokenizer
            .for_input(&input(vocabulary))
            .expect_err("another vocabulary");
        assert!(
            matches!(error, Error::OtherVocabulary { found: 10, expected, .. } if expected == vocabulary),
            "{error}"
        );
    }
}

#[test]
fn fairseqs_dictionary_counts_in_gpt2s_ids() {
    // "a" is GPT-2's 64, "b" its 65, the space its 220; the two merges come behind the 256 bytes.
    let dict = "64 9\n65 8\n220 7\n256 3\n257 2\nmadeupword0000 0\n";
    let files = folder(&[("dict.txt", dict), ("vocab.bpe", MERGES)]);
    let tokenizer = open(files.path()).expect("a tokenizer");
    let entries = ["a", "b", "Ġ", "Ġa", "ab", "madeupword0000", "<mask>"];
    assert_eq!(tokenizer.entries()[4..], entries);
    let encoded = tokenizer.encode("ab a", 4).expect("encoded");
    assert_eq!(encoded.ids, [0, 8, 7, 2]);
}

#[test]
fn a_missing_file_is_named_with_where_it_comes_from() {
    for (file, content, lacks) in [
        ("vocab.json", VOCABULARY, "merges.txt or vocab.bpe"),
        ("dict.txt", "64 1\n", "merges.txt or vocab.bpe"),
        ("merges.txt", MERGES, "vocab.json or dict.txt"),
    ] {
        let error = refused(&[(file, content)]);
        assert!(
            matches!(error, Error::Text(TextFault::MissingPart { .. })),
            "{error}"
        );
        assert!(error.to_string().contains(lacks), "{error}");
        assert!(error.to_string().contains(file), "{error}");
        let hint = error.hint().expect("a hint");
        assert!(hint.contains("FacebookAI/roberta-base"), "{hint}");
    }
    let error = refused(&[("readme", "")]);
    assert!(
        matches!(error, Error::Text(TextFault::NoTokenizer { .. })),
        "{error}"
    );
}

#[test]
fn damaged_vocabularies_are_refused() {
    let ids = |content: &str| refused(&[("vocab.json", content), ("merges.txt", MERGES)]);
    let gap = VOCABULARY.replace("\"ab\": 8", "\"ab\": 4000000000");
    for (content, said) in [
        ("[]", "JSON object"),
        (&VOCABULARY[..40], "JSON object"),
        (&gap, "without gaps"),
        (&VOCABULARY.replace("\"b\": 5", "\"b\": 4"), "without gaps"),
        (&VOCABULARY.replace("\"ab\": 8", "\"a\": 8"), "without gaps"),
        (
            &VOCABULARY.replace("\"b\": 5", &format!("\"{}\": 5", "b".repeat(2000))),
            "longer than",
        ),
        (
            &VOCABULARY.replace("\"ab\"", "\"abc\""),
            "out of vocabulary",
        ),
    ] {
        let error = ids(content).to_string();
        assert!(
            error.contains(said) && error.contains("vocab.json"),
            "{error}"
        );
    }
    for token in ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] {
        let error = ids(&VOCABULARY.replace(token, "x"));
        assert!(matches!(error, Error::SpecialToken { .. }), "{error}");
        assert!(error.to_string().contains(token), "{error}");
    }
}

#[test]
fn damaged_lists_name_their_line() {
    let bytes_of = |line: &str| format!("#version: 0.2\nĠ a\n{line}\n");
    for line in ["ab", "a  b", "a b c", "", " b", "a "] {
        let merges = bytes_of(line);
        let error = refused(&[("vocab.json", VOCABULARY), ("merges.txt", &merges)]);
        assert!(
            matches!(error, Error::BadLine { line: 3, .. }),
            "{line:?}: {error}"
        );
    }
    for (line, said) in [
        ("99999 1", "make 259 tokens"),
        ("64 1", "repeats"),
        ("<pad> 1", "repeats"),
        ("<mask> 1", "repeats"),
        ("65", "no id"),
        ("65 x", "no id"),
        ("", "no id"),
    ] {
        let dict = format!("64 1\n{line}\n66 0\n");
        let error = refused(&[("dict.txt", &dict), ("merges.txt", MERGES)]);
        assert!(
            matches!(error, Error::BadLine { line: 2, .. }),
            "{line:?}: {error}"
        );
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn words_are_told_apart_in_both_kinds_of_vocabulary_and_in_no_other() {
    let whole = folder(&[(
        "tokenizer.json",
        r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
            "decoder": null, "model": {"type": "WordLevel", "unk_token": "<unk>",
            "vocab": {"<unk>": 0, "<pad>": 1, "</s>": 2}}}"#,
    )]);
    let error = open(whole.path()).expect("a tokenizer").word_boundaries();
    let error = error.expect_err("unknown words");
    assert!(
        matches!(error, Error::Text(TextFault::NoWordBoundaries { .. })),
        "{error}"
    );
    for name in ["text/vocab.txt", "text/roberta"] {
        let tokenizer = open(&path(name)).expect("a tokenizer");
        let words = tokenizer.word_boundaries().expect("words");
        assert_eq!(words.vocabulary_size(), tokenizer.vocabulary_size());
    }
}
