//! FLM's tokens, texts and tables of who sees whom, case by case of `fixtures/flm/manifest.json`.

use std::path::PathBuf;

use evaluate::streams::{Span, SpanCorruption, forward, query_ids, reconstructor, reverse};
use evaluate::text::{CaptionText, Tokenizer};
use fixtures::{Case, Raw, Set, integers, list, text};
use merge::random::Draws;
use serde_json::Value;

fixtures::golden_tests! {
    package: "evaluate", set: "flm",
    texts_become_the_published_tokens: "tokenize" => tokenize,
    tokens_become_the_published_texts: "detokenize" => detokenize,
    captions_are_rewritten_as_published: "caption_text" => caption_text,
    queries_are_those_of_the_published_program: "query_ids" => queries,
    streams_see_what_the_published_ones_see: "masks" => masks,
    spans_hide_what_the_published_ones_hide: "span_corruption" => spans,
    spans_hide_as_much_as_the_published_ones: "span_statistics" => span_statistics,
}

/// The file of a case with this number in one of its lists, `input` or `expected`.
fn file(case: &Case, list_of: &str, nth: usize) -> PathBuf {
    case.set().path(text(&case[list_of][nth]))
}

fn expected(case: &Case) -> Value {
    case.set().json(text(&case["expected"][0]))
}

/// The case's own vocabulary, or else that of roberta-base.
fn tokenizer(case: &Case) -> Tokenizer {
    let path = match list(&case["input"]) {
        [] => fixtures::path("text/roberta"),
        _ => file(case, "input", 0),
    };
    let opened = Tokenizer::open(path.to_str().expect("UTF-8")).expect("a tokenizer");
    let added = case["params"]["added_tokens"].as_array();
    let added: Vec<&str> = added.into_iter().flatten().map(text).collect();
    opened.with_added(&added).expect("tokens are added")
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = integers(value).into_iter();
    ids.map(|id| u32::try_from(id).expect("an id")).collect()
}

fn tokenize(case: &Case) {
    let all = expected(case);
    let section = case.param("section");
    match section {
        Some(section) => assert_tokens(&tokenizer(case), &all, &all[section], case),
        None => {
            assert_tokens(&tokenizer(case), &all, &all, case);
            // Where no case names the section with added tokens, it is checked here.
            let has_case = case.set().cases("tokenize").iter().any(|other| {
                other["expected"] == case["expected"] && other.param("section").is_some()
            });
            if !has_case && all["with_bos_eos"].is_object() {
                let both = ["<bos>", "<eos>"];
                let tokenizer = tokenizer(case).with_added(&both).expect("tokens are added");
                assert_tokens(&tokenizer, &all, &all["with_bos_eos"], case);
            }
        }
    }
}

fn assert_tokens(tokenizer: &Tokenizer, all: &Value, section: &Value, case: &Case) {
    let max_len = case.count("max_length").expect("a length");
    for (token, id) in all["ids"].as_object().expect("ids") {
        assert_eq!(*id, tokenizer.id_of(token).expect("an id"), "{token}");
    }
    for (name, token) in [("bos", "<bos>"), ("eos", "<eos>")] {
        if section[name].is_u64() {
            assert_eq!(section[name], tokenizer.id_of(token).expect("an id"));
        }
    }
    let unknown = tokenizer.special().unknown.expect("an unknown token");
    for vector in list(&section["vectors"]) {
        let words = text(&vector["text"]);
        let own = ids(&vector["ids"]);
        let pieces = tokenizer.pieces(words).expect("pieces");
        assert_eq!(pieces.len(), list(&vector["pieces"]).len(), "{words:?}");
        for ((found, published), id) in pieces.iter().zip(list(&vector["pieces"])).zip(&own[1..]) {
            // A piece that is in no vocabulary is shown by its characters there, as unknown here.
            if *id != unknown {
                assert_eq!(found, published, "{words:?}");
            }
        }
        assert_eq!(
            tokenizer.count(words).expect("counted"),
            own.len(),
            "{words:?}"
        );
        let encoded = tokenizer.encode(words, max_len).expect("encoded");
        assert_eq!(encoded.ids, ids(&vector["padded_ids"]), "{words:?}");
        assert_eq!(vector["attention_mask_sum"], encoded.n_tokens, "{words:?}");
        let is_special: Vec<i64> = (encoded.ids.iter())
            .map(|id| i64::from(tokenizer.special().all().contains(id)))
            .collect();
        // The published mask marks what it put around the text alone, here all that are special.
        for (found, published) in is_special
            .iter()
            .zip(integers(&vector["special_tokens_mask"]))
        {
            assert!(*found >= published, "{words:?}");
        }
        assert_eq!(
            tokenizer.decode(&own),
            text(&vector["decoded"]),
            "{words:?}"
        );
        if let Some(decoded) = vector["decoded_skip_special"].as_str() {
            let kept = tokenizer.without_special(&own);
            assert_eq!(tokenizer.decode(&kept), decoded, "{words:?}");
        }
    }
}

fn detokenize(case: &Case) {
    let tokenizer = tokenizer(case);
    for example in list(&expected(case)) {
        let found = tokenizer.decode(&ids(&example["ids"]));
        assert_eq!(found, text(&example["text"]));
    }
}

fn caption_text(case: &Case) {
    let begun = CaptionText {
        begin: true,
        end: false,
    };
    for example in list(&expected(case)) {
        let words = text(&example["text"]);
        for (rule, name) in [
            (CaptionText::default(), "plain"),
            (begun, "bos_only"),
            (CaptionText::WRITING, "captioning"),
        ] {
            assert_eq!(rule.apply(words), text(&example[name]), "{words:?} {name}");
        }
    }
}

fn queries(case: &Case) {
    let file = expected(case);
    let mask = u32::try_from(file["mask_id"].as_u64().expect("an id")).expect("an id");
    let texts = list(&file["ids"]).iter().zip(list(&file["attention_mask"]));
    for ((own, mask_of), published) in texts.zip(list(&file["query_ids"])) {
        let n_tokens = integers(mask_of).iter().sum::<i64>() as usize;
        assert_eq!(query_ids(&ids(own), n_tokens, mask), ids(published));
    }
}

/// The rows of a tensor whose first dimension counts texts.
fn of_text(tensor: &Raw, nth: usize) -> Vec<u8> {
    let values = tensor.integers();
    let n = values.len() / tensor.shape[0];
    values[nth * n..][..n]
        .iter()
        .map(|&value| value as u8)
        .collect()
}

fn masks(case: &Case) {
    let tables = case.set().tensors(text(&case["expected"][0]));
    let len = case.count("max_text_len").expect("a length");
    for (nth, &n_tokens) in tables["lengths"].integers().iter().enumerate() {
        let n_tokens = n_tokens as usize;
        assert_eq!(
            forward(n_tokens, len),
            of_text(&tables["F"], nth),
            "F of {n_tokens}"
        );
        assert_eq!(
            reverse(n_tokens, len),
            of_text(&tables["G"], nth),
            "G of {n_tokens}"
        );
        let found = reconstructor(n_tokens, len);
        assert_eq!(found, of_text(&tables["K"], nth), "K of {n_tokens}");
    }
}

fn spans(case: &Case) {
    let draws = case.set().tensors(text(&case["input"][0]));
    let published = case.set().tensors(text(&case["expected"][0]));
    let prefix = case.param("prefix").expect("a prefix");
    let named = |name: &str| format!("{prefix}.{name}");
    let len = case.count("max_text_len").expect("a length");
    let corruption = SpanCorruption {
        rate: case.number("span_corruption_rate").expect("a rate"),
    };
    let tolerance = case.tolerance("", "pi");
    let [extra, coins] = ["m", "coin"].map(|name| draws[&named(name)].integers());
    let counted = published[&named("T")].integers();
    let [chances, coin_chances] = ["pi", "coin_p"].map(|name| published[&named(name)].values());
    for (nth, &n_tokens) in draws["lengths"].integers().iter().enumerate() {
        let mut seen = reconstructor(n_tokens as usize, len);
        for (row, seen) in seen.chunks_mut(2 * len).enumerate().skip(1) {
            let at = nth * len + row;
            let n_visible = seen.iter().filter(|&&sees| sees == 1).count();
            assert_eq!(counted[at], n_visible as i64 + 1, "text {nth}, row {row}");
            let difference = (corruption.chance(n_visible) - chances[at]).abs();
            assert!(
                difference <= tolerance,
                "text {nth}, row {row}: off by {difference}"
            );
            let span = Span {
                extra: extra[at] as usize,
                leans_left: coins[at] == 1,
            };
            // The coin is thrown where the number is odd.
            assert_eq!(coin_chances[at] == 0.5, span.extra % 2 == 1);
            span.hide(row, seen);
        }
        assert_eq!(seen, of_text(&published[&named("K")], nth), "text {nth}");
    }
}

fn span_statistics(case: &Case) {
    let published = expected(case);
    let n_tokens = case.count("n").expect("tokens");
    let n_samples = case.count("samples").expect("samples");
    let [mean_atol, row_atol] = ["mean_atol", "per_row_atol"].map(|name| case.tolerance("", name));
    let n_counted = (n_tokens - 1) as f64;
    for (rate, statistics) in published["rates"].as_object().expect("rates") {
        let corruption = SpanCorruption {
            rate: rate.parse().expect("a rate"),
        };
        let mut shares = vec![0.0; n_tokens];
        for sample in 0..n_samples {
            let mut draws = Draws::new(7, &format!("spans {rate} {sample}")).sequence();
            let mut seen = reconstructor(n_tokens, n_tokens);
            corruption.apply(&mut seen, n_tokens, &mut draws);
            for (share, row) in shares.iter_mut().zip(seen.chunks(2 * n_tokens)) {
                let n_visible: u32 = row.iter().map(|&sees| u32::from(sees)).sum();
                *share += (1.0 - f64::from(n_visible) / n_counted) / n_samples as f64;
            }
        }
        let mean = shares[1..].iter().sum::<f64>() / n_counted;
        let expected = fixtures::number(&statistics["mean_hidden_share"]);
        assert!(
            (mean - expected).abs() <= mean_atol,
            "rate {rate}: {mean} for {expected}"
        );
        for (row, expected) in list(&statistics["per_row"]).iter().enumerate() {
            let (found, expected) = (shares[row + 1], fixtures::number(expected));
            // Two means of as many samples differ, each by its own chance.
            assert!(
                (found - expected).abs() <= row_atol,
                "rate {rate}, row {}: {found} for {expected}",
                row + 1
            );
        }
    }
}

#[test]
fn the_vocabulary_of_the_repository_is_that_of_roberta_base() {
    let tokenizer = Tokenizer::open(fixtures::path("text/roberta").to_str().expect("UTF-8"));
    let tokenizer = tokenizer.expect("a tokenizer");
    let published = Set::of_repository("flm").json("tok/roberta.json");
    assert_eq!(published["vocab_size"], tokenizer.vocabulary_size());
    let joined = tokenizer.entries().join("\n");
    let hash = fixtures::sha256_of(joined.as_bytes());
    assert_eq!(published["sha256_of_tokens_joined_by_newline"], hash);
}
