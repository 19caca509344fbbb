//! How long the texts of a batch are.

use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::images::ImageInput;
use evaluate::models::ModelInput;
use evaluate::text::{Padding, TextInput, TextRule, Tokenizer};
use train::batch::{Batch, MaskedWords};
use train::data::{self, Loader, Place};
use train::objectives::Needs;
use train::recipe::{Augmentation, Masking};

use crate::fixture::path;

/// More than any caption of the fixture has, in letters.
const LEN: usize = 128;

/// The first captions of the fixture with words masked.
fn batch(padding: Padding, n: usize) -> Batch {
    let examples = data::open(&path("arrow"), "coco", "train", None, true).expect("captions");
    let vocabulary = path("real/vocab.txt").display().to_string();
    let tokenizer = Tokenizer::open(&vocabulary).expect("a tokenizer");
    let input = ModelInput {
        image: ImageInput::square(48),
        text: TextInput {
            len: LEN,
            padding,
            rule: TextRule::Verbatim,
            padding_id: None,
            ends_at_largest: false,
            vocabulary: 101,
        },
    };
    let needs = Needs {
        text: true,
        masked_words: true,
        ..Needs::NOTHING
    };
    let masking = Masking {
        probability: 0.5,
        ..Masking::default()
    };
    let loader = Loader::new(
        Arc::from(examples),
        Some(Arc::new(tokenizer)),
        input,
        needs,
        3,
    )
    .augmented(&Augmentation::Square, masking)
    .expect("a loader");
    let indices: Vec<usize> = (0..n).collect();
    let loaded = loader.load(Place::default(), 0, &indices).expect("loaded");
    loaded.batch(&Device::Cpu, DType::F32).expect("a batch")
}

fn rows(batch: &Batch) -> [Vec<Vec<u32>>; 2] {
    let text = batch.text.as_ref().expect("texts");
    let kept = text
        .kept
        .to_dtype(DType::U32)
        .and_then(|kept| kept.to_vec2());
    [text.ids.to_vec2().expect("ids"), kept.expect("a mask")]
}

/// Where words are to be guessed, as row and column, and the words that were there.
fn guesses(words: &MaskedWords, len: usize) -> Vec<(u32, u32, u32)> {
    let places = words
        .places
        .iter()
        .map(|&place| (place / len as u32, place % len as u32));
    let with_labels = places.zip(&words.labels);
    with_labels
        .map(|((row, column), &label)| (row, column, label))
        .collect()
}

#[test]
fn a_batch_is_as_long_as_its_longest_text_unless_padding_counts() {
    for n in [1, 3, 8] {
        let (full, longest) = (batch(Padding::Full, n), batch(Padding::Longest, n));
        let [full_ids, full_kept] = rows(&full);
        let [ids, kept] = rows(&longest);
        let n_tokens = full_kept.iter().map(|row| row.iter().sum::<u32>() as usize);
        let len = n_tokens.max().expect("a text");
        assert!(len < LEN, "the fixture's captions are short");
        assert_eq!(full_ids[0].len(), LEN);
        for row in 0..n {
            assert_eq!(ids[row], full_ids[row][..len]);
            assert_eq!(kept[row], full_kept[row][..len]);
        }
        let words = |batch: &Batch| batch.masked_words.clone().expect("masked words");
        let (full, longest) = (words(&full), words(&longest));
        assert_eq!(guesses(&full, LEN), guesses(&longest, len));
        assert!(!longest.places.is_empty());
        assert_eq!(longest.ids.dims(), [n, len]);
        let masked: Vec<Vec<u32>> = longest.ids.to_vec2().expect("ids");
        let full: Vec<Vec<u32>> = full.ids.to_vec2().expect("ids");
        for row in 0..n {
            assert_eq!(masked[row], full[row][..len]);
        }
    }
}

#[test]
fn one_place_behind_the_longest_text_is_padding_where_the_first_such_place_counts() {
    for n in [1, 3, 8] {
        let (one, longest) = (batch(Padding::OneBeyond, n), batch(Padding::Longest, n));
        let ([ids, kept], [short_ids, short_kept]) = (rows(&one), rows(&longest));
        let len = short_ids[0].len();
        for row in 0..n {
            assert_eq!(ids[row].len(), len + 1);
            assert_eq!(ids[row][..len], short_ids[row], "{n}: {row}");
            assert_eq!(kept[row][..len], short_kept[row], "{n}: {row}");
            assert_eq!(kept[row][len], 0, "{n}: {row}");
        }
        // Guessed words stand where they stood.
        let guessed = |batch: &Batch, len| {
            let words = batch.masked_words.as_ref().expect("masked words");
            guesses(words, len)
        };
        assert_eq!(guessed(&one, len + 1), guessed(&longest, len));
    }
    let input = TextInput {
        len: 8,
        padding: Padding::OneBeyond,
        vocabulary: 101,
        rule: TextRule::Verbatim,
        padding_id: None,
        ends_at_largest: false,
    };
    // Never beyond the model's length.
    for (lengths, padded) in [
        (vec![3, 5], 6),
        (vec![7], 8),
        (vec![8, 2], 8),
        (vec![20], 8),
        (vec![], 0),
    ] {
        assert_eq!(
            input.padded_len(lengths.iter().copied()),
            padded,
            "{lengths:?}"
        );
    }
}
