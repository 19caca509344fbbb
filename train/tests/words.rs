//! Which words are to be guessed.

use evaluate::text::{Tokenizer, WordBoundaries};
use merge::random::Draws;
use train::augment::{MaskedText, TokenKinds, WordMasking};

use crate::fixture::path;

const PADDING: u32 = 0;
const UNKNOWN: u32 = 1;
const FIRST: u32 = 2;
const LAST: u32 = 3;
const MASK: u32 = 4;
const N_IDS: usize = 3000;

/// Ids from 2000 on go on with a word.
fn pieces() -> TokenKinds {
    let continues = (0..N_IDS).map(|id| id >= 2000).collect();
    TokenKinds {
        words: Some(WordBoundaries::marked(continues)),
        n_ids: N_IDS,
        mask: MASK,
        padding: PADDING,
        borders: [FIRST, LAST],
        special: vec![PADDING, UNKNOWN, FIRST, LAST, MASK],
    }
}

/// A text of words with these numbers of pieces, filled up to `len`. No id occurs twice.
fn text(words: &[usize], len: usize) -> Vec<u32> {
    let mut ids = vec![FIRST];
    let mut piece = 2000;
    for (word, &n_pieces) in words.iter().enumerate() {
        ids.push(100 + word as u32);
        for _ in 1..n_pieces {
            ids.push(piece);
            piece += 1;
        }
    }
    ids.push(LAST);
    ids.resize(len, PADDING);
    ids
}

fn masked(masking: &WordMasking, ids: &[u32], index: usize) -> MaskedText {
    let name = format!("example {index} of epoch 0");
    masking.apply(&pieces(), ids, &mut Draws::new(9, &name).sequence())
}

/// Asserts what holds for every masked text.
fn assert_sound(ids: &[u32], masked: &MaskedText) {
    assert_eq!(masked.ids.len(), ids.len());
    assert_eq!(masked.places.len(), masked.labels.len());
    assert!(masked.places.is_sorted());
    for (place, (&before, &after)) in ids.iter().zip(&masked.ids).enumerate() {
        match masked.places.iter().position(|&p| p as usize == place) {
            Some(index) => {
                assert_eq!(masked.labels[index], before);
                assert!(!pieces().is_special(before), "{place}: {before}");
            }
            None => assert_eq!(before, after, "{place}"),
        }
    }
}

#[test]
fn the_budget_is_a_share_of_the_padded_length() {
    // Single pieces and no padding: every choice counts. 40 · 0.15 = 6, 40 · 0.25 = 10.
    let ids = text(&[1; 38], 40);
    for (probability, budget) in [(0.15, 6), (0.25, 10), (0.001, 1)] {
        let masking = WordMasking {
            probability,
            ..WordMasking::default()
        };
        for index in 0..200 {
            let masked = masked(&masking, &ids, index);
            assert_sound(&ids, &masked);
            assert_eq!(masked.places.len(), budget);
        }
    }
    // A half is rounded to the even number: 30 · 0.15 = 4.5, 50 · 0.15 = 7.5.
    for (len, budget) in [(30, 4), (50, 8)] {
        let ids = text(&vec![1; len - 2], len);
        let masked = masked(&WordMasking::default(), &ids, 0);
        assert_eq!(masked.places.len(), budget);
    }
}

#[test]
fn all_pieces_of_a_word_are_chosen_or_none() {
    let words = [3, 1, 2, 1, 4, 1, 1, 2, 7, 1];
    let ids = text(&words, 40);
    for index in 0..500 {
        let masked = masked(&WordMasking::default(), &ids, index);
        assert_sound(&ids, &masked);
        assert!(masked.places.len() <= 6);
        let mut first = 1;
        for n_pieces in words {
            let range = first..first + n_pieces as u32;
            let n = masked.places.iter().filter(|p| range.contains(p)).count();
            assert!(n == 0 || n == n_pieces, "{n} of {n_pieces}");
            // The longest word exceeds the budget of 6.
            assert!(n < 7);
            first += n_pieces as u32;
        }
    }
}

#[test]
fn words_behind_one_that_does_not_fit_are_still_taken() {
    // A budget of 6 is always filled: by single pieces, whatever the word of five is.
    let mut words = vec![1; 33];
    words.insert(7, 5);
    let ids = text(&words, 40);
    let mut with_long = 0;
    for index in 0..500 {
        let masked = masked(&WordMasking::default(), &ids, index);
        assert_eq!(masked.places.len(), 6);
        with_long += i32::from(masked.labels.contains(&107));
    }
    // It fits only if it is first or second of 34 in order: 500 · 2/34, five standard errors.
    assert!((with_long - 29).abs() < 27, "{with_long}");
}

#[test]
fn choices_that_fall_on_padding_are_lost_unless_it_is_excluded() {
    let ids = text(&[1; 8], 40);
    let n = 20_000;
    let mean = |masking: &WordMasking| {
        let counts = (0..n).map(|index| masked(masking, &ids, index).places.len());
        counts.sum::<usize>() as f64 / n as f64
    };
    // 6 of 38 candidates, of which 8 are tokens: hypergeometric with a mean of 6 · 8/38 and a
    // variance of 6 · 8/38 · 30/38 · 32/37; five standard errors.
    let expected = 6.0 * 8.0 / 38.0;
    let error = 5.0 * (expected * 30.0 / 38.0 * 32.0 / 37.0 / n as f64).sqrt();
    let found = mean(&WordMasking::default());
    assert!((found - expected).abs() < error, "{found} {expected}");
    // Of ten tokens that are no padding 1.5, rounded to the even 2.
    let exclude_padding = WordMasking {
        counts_padding: false,
        ..WordMasking::default()
    };
    for index in 0..100 {
        let masked = masked(&exclude_padding, &ids, index);
        assert_sound(&ids, &masked);
        assert_eq!(masked.places.len(), 2);
    }
}

#[test]
fn the_random_variant_chooses_each_token_with_the_probability() {
    let masking = WordMasking {
        whole_word: false,
        ..WordMasking::default()
    };
    let ids = text(&[2; 10], 40);
    let n = 10_000;
    let mut counts = [0_i32; 40];
    for index in 0..n {
        let masked = masked(&masking, &ids, index);
        assert_sound(&ids, &masked);
        for place in masked.places {
            counts[place as usize] += 1;
        }
    }
    // Five standard errors of sqrt(n · 0.15 · 0.85).
    for (place, &count) in counts.iter().enumerate() {
        match (1..21).contains(&place) {
            true => assert!((count - 1500).abs() < 179, "{place}: {count}"),
            false => assert_eq!(count, 0, "{place}"),
        }
    }
}

#[test]
fn eight_in_ten_become_the_mask_one_another_token_one_stays() {
    let ids = text(&[1; 38], 40);
    let masking = WordMasking {
        probability: 0.5,
        ..WordMasking::default()
    };
    let (mut n, mut masks, mut same, mut others) = (0, 0, 0, Vec::new());
    for index in 0..2000 {
        let masked = masked(&masking, &ids, index);
        for (&place, &label) in masked.places.iter().zip(&masked.labels) {
            n += 1;
            match masked.ids[place as usize] {
                MASK => masks += 1,
                id if id == label => same += 1,
                id => others.push(id),
            }
        }
    }
    assert_eq!(n, 2000 * 20);
    let is_share = |count: usize, share: f64| {
        let error = 5.0 * (f64::from(n) * share * (1.0 - share)).sqrt();
        (count as f64 - f64::from(n) * share).abs() < error
    };
    // A random token may be the mask or the same again, once in 3000.
    assert!(is_share(masks, 0.8 + 0.1 / N_IDS as f64), "{masks}");
    assert!(is_share(same, 0.1 + 0.1 / N_IDS as f64), "{same}");
    assert!(is_share(others.len(), 0.1 - 0.2 / N_IDS as f64));
    // Uniform over all ids: mean 1499.5, deviation N / sqrt(12).
    let mean = others.iter().map(|&id| f64::from(id)).sum::<f64>() / others.len() as f64;
    let error = 5.0 * N_IDS as f64 / (12.0 * others.len() as f64).sqrt();
    assert!((mean - 1499.5).abs() < error, "{mean}");
    assert!(others.iter().all(|&id| (id as usize) < N_IDS));
}

#[test]
fn unknown_words_are_never_to_be_guessed() {
    let mut ids = text(&[1; 38], 40);
    ids[5..30].fill(UNKNOWN);
    for whole_word in [true, false] {
        let masking = WordMasking {
            probability: 0.9,
            whole_word,
            ..WordMasking::default()
        };
        for index in 0..100 {
            assert_sound(&ids, &masked(&masking, &ids, index));
        }
    }
}

#[test]
fn a_text_without_words_has_nothing_to_guess() {
    let ids = text(&[], 12);
    for whole_word in [true, false] {
        for counts_padding in [true, false] {
            let masking = WordMasking {
                whole_word,
                counts_padding,
                ..WordMasking::default()
            };
            let masked = masked(&masking, &ids, 0);
            assert_eq!((masked.ids, masked.places), (ids.clone(), vec![]));
        }
    }
}

#[test]
fn the_same_key_masks_the_same_and_another_epoch_other_words() {
    let ids = text(&[1, 2, 1, 3, 1, 1, 2, 1, 1, 1], 16);
    let by_key = |seed: u64, epoch: usize, example: usize| {
        let name = format!("example {example} of epoch {epoch}");
        let mut draws = Draws::new(seed, &name).sequence();
        WordMasking::default().apply(&pieces(), &ids, &mut draws)
    };
    assert_eq!(by_key(1, 2, 3), by_key(1, 2, 3));
    let differs = |other: &dyn Fn(usize) -> MaskedText| {
        (0..20).filter(|&i| other(i) != by_key(1, 2, i)).count() > 10
    };
    assert!(differs(&|i| by_key(1, 3, i)));
    assert!(differs(&|i| by_key(2, 2, i)));
    assert!(differs(&|i| by_key(1, 2, i + 20)));
}

#[test]
fn pieces_are_read_off_a_tokenizer() {
    let file = path("text/vocab.txt");
    let words = std::fs::read_to_string(&file).expect("the fixture is there");
    let words: Vec<&str> = words.lines().collect();
    let tokenizer = Tokenizer::open(&file.to_string_lossy()).expect("a vocabulary");
    let pieces = TokenKinds::read(&tokenizer, true).expect("special tokens");
    let expected: Vec<bool> = words.iter().map(|word| word.starts_with("##")).collect();
    assert!(expected.contains(&true));
    assert_eq!(pieces.words, Some(WordBoundaries::marked(expected)));
    assert_eq!(words[pieces.mask as usize], "[MASK]");
    for special in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] {
        let id = words.iter().position(|&word| word == special);
        assert!(pieces.is_special(id.expect("it is there") as u32));
    }
}

#[test]
fn words_of_a_byte_level_vocabulary_are_chosen_whole() {
    let tokenizer = Tokenizer::open(&path("text/roberta").to_string_lossy()).expect("a vocabulary");
    let kinds = TokenKinds::read(&tokenizer, true).expect("special tokens");
    let text = "supercalifragilistic frisbees, 1234567890!";
    let encoded = tokenizer.encode(text, 24).expect("encoded");
    let masking = WordMasking {
        counts_padding: false,
        ..WordMasking::default()
    };
    let (words, _) = masking.words(&kinds, &encoded.ids);
    let shown = words
        .iter()
        .map(|word| tokenizer.decode(&encoded.ids[word.clone()]));
    let shown: Vec<String> = shown.collect();
    assert_eq!(
        shown,
        ["supercalifragilistic", " frisbees", ",", " 1234567890", "!"]
    );
    // Each word was more than one token, except for the marks.
    assert!(
        words[0].len() > 1 && words[1].len() > 1 && words[3].len() > 1,
        "{words:?}"
    );
}
