//! Settings of ranking and of writing: flags of every verb that measures.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use evaluate::metrics::reranking::Rest;
use evaluate::writing::Writing;

use crate::args::number::parse_positive;
use crate::output::UsageError;

/// The items that are ranked, and the way in which texts are written.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Ranking and writing")]
pub struct JudgingArgs {
    /// Ask a ranking head of the N best texts of each image and the N best images of each text alone, by the
    /// scores of another model; pairs that are not asked come behind all others
    #[arg(long, value_name = "N", value_parser = parse_positive, requires = "candidates_from")]
    pub candidates: Option<usize>,
    /// The scores that candidates are chosen by: a file of `evaluate --task retrieval --predictions DIR`
    #[arg(long, value_name = "FILE", requires = "candidates")]
    pub candidates_from: Option<PathBuf>,
    /// Rank the K best texts of each image and the K best images of each text once more, by the matching head that
    /// reads image and text together
    #[arg(long, value_name = "K", value_parser = parse_positive, conflicts_with = "candidates")]
    pub rerank: Option<usize>,
    /// Order of the items behind the K best: the one that they had, or all tied as published, where --ties decides
    /// [default: similarity]
    #[arg(long, value_name = "HOW", requires = "rerank")]
    pub rerank_rest: Option<Rest>,
    /// Texts that are pursued at once for an image; 1 is greedy [default: 1]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub beams: Option<usize>,
    /// Divide the logarithm of a caption's probability by its number of tokens to this power [default: 0]
    #[arg(long, value_name = "POWER", requires = "beams")]
    pub length_penalty: Option<f64>,
    /// Tokens after which a caption ends, whatever it says [default: 30]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub max_tokens: Option<usize>,
}

impl JudgingArgs {
    /// The settings of writing captions.
    pub fn writing(&self) -> Result<Writing> {
        let usual = Writing::default();
        let length_penalty = self.length_penalty.unwrap_or(usual.length_penalty);
        if !length_penalty.is_finite() {
            return Err(UsageError("--length-penalty must be a number".into()).into());
        }
        Ok(Writing {
            beams: self.beams.unwrap_or(usual.beams),
            length_penalty,
            max_tokens: self.max_tokens.unwrap_or(usual.max_tokens),
        })
    }

    /// The number of items of each query that are ranked once more, and the order of the others.
    pub fn rerank(&self) -> Option<(usize, Rest)> {
        let rest = self.rerank_rest.unwrap_or_default();
        self.rerank.map(|k| (k, rest))
    }
}
