//! Recognizes tensors with a row for every token.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Checkpoint;

/// The endings of the names of tensors with a row for every token.
pub(crate) const ROW_PER_TOKEN: [&str; 20] = [
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "embed_out.weight",
    "tok_embeddings.weight",
    "shared.weight",
    "lm_head.weight",
    "lm_head.bias",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
    "output_layer.weight",
    "predictions.decoder.weight",
    "predictions.decoder.bias",
    "predictions.bias",
    "mlm_score.decoder.weight",
    "mlm_score.decoder.bias",
    "mlm_score.bias",
    "vocab_projector.weight",
    "vocab_projector.bias",
];

/// The names under which any of the models has a row for every token.
pub(super) fn names_with_rows(models: &[Arc<Checkpoint>]) -> BTreeSet<String> {
    (models.iter())
        .flat_map(|model| model.tensors().map(|(name, _)| name))
        .filter(|name| has_row_per_token(name))
        .map(str::to_owned)
        .collect()
}

/// Whether a tensor has a row for every token, by its name.
pub(crate) fn has_row_per_token(name: &str) -> bool {
    let ends = |suffix: &str| {
        let start = name.strip_suffix(suffix);
        start.is_some_and(|start| start.is_empty() || start.ends_with('.'))
    };
    name == "output.weight" || ROW_PER_TOKEN.iter().any(|suffix| ends(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_and_heads_are_known_by_the_end_of_their_names() {
        assert!(has_row_per_token(
            "model.language_model.embed_tokens.weight"
        ));
        assert!(has_row_per_token("lm_head.weight"));
        assert!(has_row_per_token("output.weight"));
        assert!(!has_row_per_token("layers.0.output.weight"));
        assert!(!has_row_per_token("my_lm_head.weight"));
        assert!(!has_row_per_token("embed_positions.weight"));
    }
}
