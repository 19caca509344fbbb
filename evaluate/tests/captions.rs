//! Captions: odd words, intervals, and hypotheses that are right or wrong altogether.

use evaluate::metrics::bootstrap::Bootstrap;
use evaluate::metrics::captions::{BleuCounts, Captioned, judge, sample, tokenize};

use crate::fixture::value;
use crate::golden::captions::captioned;

/// Answers of the official tool to probes, beyond the recorded cases: words with marks inside,
/// numbers, addresses, abbreviations before letters, digits and ends.
#[test]
fn odd_words_are_split_as_the_official_tool_splits_them() {
    for (raw, expected) in [
        (
            "y'all O'Reilly's rock'n'roll",
            "y' all o'reilly 's rock 'n' roll",
        ),
        (
            "shouldn't've cant'a milann't",
            "should n't 've cant a milann t",
        ),
        ("THEY'RE DAY'S Hawai'i", "they 're day 's hawai'i"),
        ("No. 5, no. Fig. 2a; fig. tree", "no. 5 no fig. 2a fig tree"),
        (
            "U.S.-made a.k.a. St.-x Ph.D. cat.Dog",
            "u.s.-made a.k.a. st.-x ph.d. cat.dog",
        ),
        ("wash. Wash. ill. Ill. ore", "wash wash. ill ill. ore"),
        (
            "w/o black/white a/b/c/d A/C",
            "w/o black/white a/b/c / d a/c",
        ),
        (
            "$1,000.50 US$5 -5 5+5 1.5x 2.5-inch",
            "$ 1,000.50 us$ 5 -5 5 +5 1.5 x 2.5-inch",
        ),
        (
            "a@b.com, #tag @me www.foo.com/x?y foo.org.",
            "a@b.com, #tag @me www.foo.com/x?y foo.org",
        ),
        (":-) :D colors:Dark", ":--rrb- :d colors dark"),
        ("AT&amp;T H&M's a&b &lt;b&gt;", "at&t h&m 's a & b < b >"),
        (
            "(555) 555-1234 or 1 1/2",
            "-lrb-555-rrb-\u{a0}555-1234 or 1\u{a0}1/2",
        ),
        (
            "'em ’em ’s ’90s '90s '10 '10.",
            "'em ’em 's ’90s '90s '10 10",
        ),
    ] {
        assert_eq!(tokenize(raw), expected, "{raw:?}");
    }
}

#[test]
fn any_text_has_tokens_without_spaces_or_panics() {
    use proptest::prelude::*;
    proptest!(|(raw in "\\PC{0,60}")| {
        let tokens = tokenize(&raw);
        prop_assert!(tokens.is_empty() || tokens.split(' ').all(|token| !token.is_empty()));
        prop_assert!(!tokens.contains('\n'));
    });
}

#[test]
fn a_text_without_end_takes_time_in_proportion() {
    // A tenth of a second; were every rule to look at all that is left, minutes.
    let started = std::time::Instant::now();
    for word in ["a,", "a@b", "é", "<a ", "'", "1/2-"] {
        assert!(!tokenize(&word.repeat(20_000)).is_empty() || word == "'");
    }
    assert!(started.elapsed().as_secs() < 30);
}

#[test]
fn a_draw_is_the_score_of_the_images_drawn() {
    // Of one image taken over and over every draw is the image itself.
    let images = captioned(&fixtures::json("metrics/captions.json")["items"]);
    let one = &judge(&images)[..1];
    let sample = sample(&[one, one, one].concat());
    let alone = BleuCounts::new(&images[0].caption, &images[0].references).score(4);
    assert!((value(&sample, "bleu_4") - alone).abs() < 1e-9);
    let draws = Bootstrap::new(100, 0).expect("allowed").resample(&sample);
    let interval = draws.interval(3).expect("defined on every draw");
    assert!((interval.low - alone).abs() < 1e-9 && (interval.high - alone).abs() < 1e-9);
}

#[test]
fn scores_of_whole_copies_are_full_and_of_strangers_nothing() {
    let said = [
        "a small dog sleeps on a red sofa",
        "two boats in a calm harbor at dawn",
    ];
    let of = |captions: [&str; 2]| {
        let pair = |(caption, reference): (&str, &str)| Captioned {
            caption: caption.into(),
            references: vec![reference.into()],
        };
        let images: Vec<_> = captions.into_iter().zip(said).map(pair).collect();
        sample(&judge(&images))
    };
    let same = of(said);
    for name in ["bleu_1", "bleu_4", "rouge_l"] {
        assert!((value(&same, name) - 1.0).abs() < 1e-8, "{name}");
    }
    assert!((value(&same, "cider") - 10.0).abs() < 1e-8);
    let other = of(["nothing of this kind", "nor of that"]);
    for name in ["bleu_1", "rouge_l", "cider"] {
        assert!(value(&other, name) < 1e-9, "{name}");
    }
}

#[test]
fn words_with_apostrophes_are_split_as_the_official_tool_splits_them() {
    let recorded = fixtures::json("metrics/ptb_apostrophes.json");
    let cases = fixtures::list(&recorded["cases"]);
    assert!(cases.len() > 1000);
    for case in cases {
        let [raw, expected] = [0, 1].map(|nth| fixtures::text(&case[nth]));
        assert_eq!(tokenize(raw), expected, "{raw:?}");
    }
}
