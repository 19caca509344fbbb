//! Reasons to refuse a vocabulary or a text.

use std::path::PathBuf;

/// A reason to refuse a vocabulary or a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextFault {
    /// One of the two files of a byte-level vocabulary is not there.
    #[error("{}: there is no {lacks} beside it, and a byte-level tokenizer needs both", path.display())]
    MissingPart {
        /// The file that is there.
        path: PathBuf,
        /// Names of the one that is not.
        lacks: String,
    },
    /// A token that is larger than the end of texts, for a model that takes the row of the largest token for the text's.
    #[error(
        "{}: token `{token}` ({id}) is larger than the end of texts ({end}), but the model takes the row of a text's largest \
         token for that of its end", path.display()
    )]
    NotTheEnd {
        /// The tokenizer's file.
        path: PathBuf,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// The id of the end.
        end: u32,
    },
    /// A folder holds no tokenizer.
    #[error(
        "{}: the folder holds neither tokenizer.json, nor vocab.json with merges.txt, nor dict.txt with \
         vocab.bpe, nor vocab.txt",
        path.display()
    )]
    NoTokenizer {
        /// The folder.
        path: PathBuf,
    },
    /// A tokenizer is a model of SentencePiece.
    #[error(
        "{}: is a model of SentencePiece, which does not say which ids the tokens around a text have", path.display()
    )]
    SentencePiece {
        /// The file.
        path: PathBuf,
    },
    /// A model has no tokens to write captions between.
    #[error(
        "the model has no tokens `<bos>` and `<eos>`, between which captions are written: it knows {n_tokens} \
         tokens, as many as {}",
        path.display()
    )]
    NoCaptionBorders {
        /// The tokenizer.
        path: PathBuf,
        /// Its tokens, which are the model's.
        n_tokens: usize,
    },
    /// A caption or a statement has no words.
    #[error("the {what} {text:?} has no words, so there is nothing to read in it")]
    NoWords {
        /// The kind of the text.
        what: &'static str,
        /// The text.
        text: String,
    },
    /// An image has no number, which the official form of captions asks for.
    #[error(
        "image {id:?} has no number at the end of its name, so its caption has no official form"
    )]
    NoImageNumber {
        /// The image's name.
        id: String,
    },
    /// A tokenizer does not tell where words begin.
    #[error(
        "{}: does not tell where words begin: it is neither WordPiece nor byte-level, so whole words \
         cannot be masked",
        path.display()
    )]
    NoWordBoundaries {
        /// The tokenizer.
        path: PathBuf,
    },
}

impl TextFault {
    /// A hint for the user.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::MissingPart { .. } => Some(
                "RoBERTa's vocab.json and merges.txt are files of FacebookAI/roberta-base on the Hugging \
                 Face hub; GPT-2's vocab.bpe and fairseq's dict.txt are in fairseq's folder gpt2_bpe",
            ),
            Self::NoTokenizer { .. } => Some(
                "models with BERT's text encoder take the vocab.txt of bert-base-uncased, FLM the \
                 vocab.json and merges.txt of FacebookAI/roberta-base",
            ),
            Self::SentencePiece { .. } => Some(
                "tokenizer.json says all: in Python, `transformers.AutoTokenizer.from_pretrained(FOLDER, \
                 use_fast=True).save_pretrained(OUT)` writes it",
            ),
            Self::NoCaptionBorders { .. } => Some(
                "`vlmerge expand --to flm-caption` adds them to an FLM; `vlmerge finetune` with the objective \
                 captioning trains it",
            ),
            Self::NoWords { .. } => Some("leave it out of the data"),
            Self::NoImageNumber { .. } => Some("leave out --predictions"),
            Self::NoWordBoundaries { .. } => Some("mask single tokens: `whole_word: false`"),
            Self::NotTheEnd { .. } => Some(
                "give a tokenizer whose end is its last token, or name the end in the model's configuration: \
                 `eos_token_id` of `text_config`",
            ),
        }
    }
}
