//! OpenAI's list of merges, from which CLIP's vocabulary follows.

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use super::{ClipFlavor, END_OF_WORD};
use crate::text::byte_level::{Vocabulary, alphabet};
use crate::text::{MAX_TOKENIZER_BYTES, read};
use crate::{Error, Result};

/// Merges of the list that count: those that 49,152 tokens have beside 256 bytes, as they are and at the end of a word.
/// Two tokens stand around a text.
const N_MERGES: usize = 49_152 - 256 - 2;

/// The longest pair that is read.
const MAX_PAIR_BYTES: usize = 2048;

/// Whether a file is called like OpenAI's list of merges.
#[must_use]
pub fn is_list_of_merges(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("bpe_simple_vocab") && name.contains(".txt"))
}

/// The pairs of OpenAI's list, `bpe_simple_vocab_16e6.txt.gz` or the same unpacked: behind a line that says its version,
/// as many as count.
///
/// # Errors
/// [`Error::Tokenizer`] for a file that is no such list.
pub fn read_merges(path: &Path) -> Result<Vec<(String, String)>> {
    let bad = |fault: String| Error::Tokenizer {
        path: path.into(),
        fault,
    };
    let bytes = read(path)?;
    let text = match bytes.starts_with(&[0x1f, 0x8b]) {
        true => {
            let mut text = Vec::new();
            let decoder = GzDecoder::new(bytes.as_slice());
            (decoder.take(MAX_TOKENIZER_BYTES).read_to_end(&mut text))
                .map_err(|error| bad(format!("it cannot be unpacked: {error}")))?;
            text
        }
        false => bytes,
    };
    let text = String::from_utf8(text).map_err(|_| bad("it is not UTF-8".into()))?;
    let mut pairs = Vec::with_capacity(N_MERGES);
    for (index, line) in text.lines().enumerate().skip(1).take(N_MERGES) {
        match line.split_once(' ') {
            Some((left, right))
                if !left.is_empty()
                    && !right.is_empty()
                    && !right.contains(' ')
                    && line.len() <= MAX_PAIR_BYTES =>
            {
                pairs.push((left.to_owned(), right.to_owned()));
            }
            _ => {
                let fault = "is no pair of tokens with one space between them";
                return Err(bad(format!("line {} {fault}", index + 1)));
            }
        }
    }
    Ok(pairs)
}

/// The vocabulary that follows from merges: every byte, every byte at the end of a word, every pair that is joined, and
/// the two tokens around a text.
#[must_use]
pub fn vocabulary(merges: Vec<(String, String)>, flavor: ClipFlavor) -> Vocabulary {
    let bytes = || alphabet::in_order_of_gpt2();
    let at_the_end = bytes().map(|byte| format!("{byte}{END_OF_WORD}"));
    let joined = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let tokens = (bytes().map(String::from))
        .chain(at_the_end)
        .chain(joined)
        .chain(flavor.borders().map(str::to_owned));
    Vocabulary {
        ids: tokens.zip(0..).collect(),
        merges,
    }
}
