//! `vocab.txt`: one token a line, its id the line's number from 0.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, Tokenizer};

use crate::{Error, Result};

/// The longest token that is read.
const MAX_TOKEN_BYTES: usize = 1024;

/// Tokens that stay whole wherever they stand.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// The tokenizer of BERT uncased over this vocabulary.
pub fn bert_uncased(path: &Path, bytes: &[u8]) -> Result<Tokenizer> {
    let ids = check(path, bytes)?;
    let id_of = |token: &str| match ids.get(token) {
        Some(&id) => Ok((token.to_owned(), id)),
        None => Err(Error::SpecialToken {
            path: path.into(),
            token: token.into(),
        }),
    };
    for token in SPECIAL {
        id_of(token)?;
    }
    let unusable = |error: Box<dyn std::error::Error + Send + Sync>| Error::Tokenizer {
        path: path.into(),
        fault: error.to_string(),
    };
    let model = WordPiece::builder()
        .vocab(WordPiece::read_bytes(bytes).map_err(unusable)?)
        .unk_token("[UNK]".into())
        .max_input_chars_per_word(100)
        .build()
        .map_err(unusable)?;
    let mut tokenizer = Tokenizer::new(model);
    let normalizer = BertNormalizer::new(true, true, None, true);
    (tokenizer.with_normalizer(Some(normalizer))).map_err(unusable)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    let frame = BertProcessing::new(id_of("[SEP]")?, id_of("[CLS]")?);
    tokenizer.with_post_processor(Some(frame));
    let special = SPECIAL.map(|token| AddedToken::from(token, true));
    tokenizer.add_special_tokens(special).map_err(unusable)?;
    Ok(tokenizer)
}

/// The lines of the file as tokens: text, of bounded length, none of them twice.
fn check<'a>(path: &Path, bytes: &'a [u8]) -> Result<HashMap<&'a str, u32>> {
    let mut ids = HashMap::new();
    let lines = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    for (index, line) in lines.split(|&byte| byte == b'\n').enumerate() {
        let bad = |fault: String| Error::BadLine {
            path: path.into(),
            line: index + 1,
            fault,
        };
        if line.len() > MAX_TOKEN_BYTES {
            return Err(bad(format!("is longer than {MAX_TOKEN_BYTES} bytes")));
        }
        let token = std::str::from_utf8(line).map_err(|_| bad("is not UTF-8".into()))?;
        let token = token.trim_end();
        let id = u32::try_from(index).map_err(|_| bad("is one line too many".into()))?;
        if token.is_empty() {
            return Err(bad(
                "is blank, so the tokens after it have unsure ids".into()
            ));
        }
        if let Some(first) = ids.insert(token, id) {
            return Err(bad(format!(
                "repeats token {token:?} of line {}",
                first + 1
            )));
        }
    }
    Ok(ids)
}
