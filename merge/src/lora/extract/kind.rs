//! The tensors that get factors, and the form of these, judged by names and shapes alone.

use super::ExtractOptions;
use crate::TensorInfo;

/// Modules that look up rows, beside those whose names have `embed` in them.
const EMBEDDINGS: [&str; 4] = ["wte", "wpe", "shared", "emb"];

/// The form in which a module's factors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `W = B A`, kernels of convolutions flattened.
    Linear,
    /// `W = (B A)ᵀ`, of a linear layer.
    Transposed,
    /// `W = (B A)ᵀ`, of an embedding, under names of its own.
    Embedding,
}

/// The treatment of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It gets factors.
    Product(Form),
    /// It does not, for this reason.
    Rest(&'static str),
}

impl Kind {
    pub(super) fn of(name: &str, info: &TensorInfo, options: &ExtractOptions) -> Self {
        if !info.dtype.is_float() {
            return Self::Rest("no floats");
        }
        match info.shape.len() {
            0 | 1 => Self::Rest("one axis"),
            _ if !name.ends_with(".weight") => Self::Rest("no weight of a module"),
            2 if is_embedding(module(name)) => match options.embeddings {
                true => Self::Product(Form::Embedding),
                false => Self::Rest("an embedding"),
            },
            2 if options.fan_in_fan_out => Self::Product(Form::Transposed),
            _ => Self::Product(Form::Linear),
        }
    }
}

/// Whether a module looks up rows, by the last part of its name. `embed_out` is GPT-NeoX's head.
fn is_embedding(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or_default();
    EMBEDDINGS.contains(&last) || last.contains("embed") && last != "embed_out"
}

/// The module of a tensor.
pub(super) fn module(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(module, _)| module)
}

/// Whether a tensor's module can be kept whole: one that has nothing but its weight and bias.
pub(super) fn can_be_whole(name: &str) -> bool {
    name.ends_with(".weight") || name.ends_with(".bias")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_are_known_by_the_last_part_of_their_modules_names() {
        for module in [
            "model.embed_tokens",
            "transformer.wpe",
            "bert.embeddings.word_embeddings",
        ] {
            assert!(is_embedding(module), "{module}");
        }
        for module in [
            "patch_embed.proj",
            "time_embedding.linear_1",
            "embed_out",
            "lm_head",
        ] {
            assert!(!is_embedding(module), "{module}");
        }
    }
}
