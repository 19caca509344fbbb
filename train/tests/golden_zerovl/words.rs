//! Captions with words changed.

use evaluate::text::Tokenizer;
use fixtures::{Case, integers, list, number, text};
use train::augment::corrupted;

fixtures::golden_tests! {
    package: "train", set: "zerovl",
    captions_are_changed_as_published: "corrupt_caption" => corrupt_caption,
}

fn corrupt_caption(case: &Case) {
    let vocabulary = case.file("input");
    let tokenizer = Tokenizer::open(vocabulary.to_str().expect("UTF-8")).expect("a tokenizer");
    let tokenizer = tokenizer.with_special_as_text();
    let length = case.count("max_length").expect("a length");
    for example in list(&case.json("expected")) {
        let caption = text(&example["caption"]);
        let pieces = tokenizer.pieces(caption).expect("pieces");
        let expected = list(&example["tokens"]).iter().map(text);
        assert_eq!(pieces, expected.collect::<Vec<_>>(), "{caption:?}");
        let mut draws = list(&example["draws"]).iter().map(number);
        let mut picks = list(&example["picks"]).iter().map(text);
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let found = corrupted(
            &pieces,
            || draws.next().expect("a draw"),
            || picks.next().expect("an entry"),
        );
        assert_eq!((draws.next(), picks.next()), (None, None), "{caption:?}");
        assert_eq!(found, text(&example["result"]), "{caption:?}");
        let encoded = tokenizer.encode(&found, length).expect("encoded");
        let ids: Vec<i64> = encoded.ids.iter().map(|&id| i64::from(id)).collect();
        assert_eq!(ids, integers(&example["input_ids"]), "{found:?}");
        let n_tokens: i64 = integers(&example["attention_mask"]).iter().sum();
        assert_eq!(encoded.n_tokens as i64, n_tokens, "{found:?}");
    }
}
