//! The rule that picks the matrices of a method, and the treatment of all other tensors.

use std::sync::Arc;

use crate::ParamKind;
use crate::Result;
use crate::methods::kernels::weighted::Deltas;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec};
use crate::methods::{GroupShape, Operation};

/// `matrix` as all these methods take it.
pub(in crate::methods) const MATRIX: ParameterSpec = ParameterSpec::shared(
    "matrix",
    Kind::Choice {
        names: &["auto", "yes", "no"],
        yes: "yes",
        no: "no",
    },
    Fallback::Text("auto"),
);

/// `conv` as all these methods take it.
pub(in crate::methods) const CONV: ParameterSpec = ParameterSpec::shared(
    "conv",
    Kind::Choice {
        names: &["vector", "flatten"],
        yes: "",
        no: "",
    },
    Fallback::Text("vector"),
);

/// `vectors` as all these methods take it.
pub(in crate::methods) const VECTORS: ParameterSpec = ParameterSpec::shared(
    "vectors",
    Kind::Choice {
        names: &["mean", "base"],
        yes: "",
        no: "",
    },
    Fallback::Text("mean"),
);

/// Rows and columns of a tensor that is a matrix to a method, `(out, in)`.
pub(in crate::methods) fn matrix_of(group: &GroupShape<'_>) -> Option<(usize, usize)> {
    let [rows, others @ ..] = group.shape else {
        return None;
    };
    let columns: usize = others.iter().product();
    let is_flattened = others.len() > 1 && group.values.text("conv") == Some("flatten");
    let is_matrix = match (others.len(), group.values.text("matrix")) {
        (1, Some("yes")) => true,
        (1, Some("no")) => false,
        (1, _) => group.slot.kind == ParamKind::LinearWeight && !is_table(&group.slot.key),
        (_, Some("yes")) => is_flattened,
        (_, Some("no")) => false,
        _ => {
            let is_weight = matches!(group.slot.kind, ParamKind::LinearWeight | ParamKind::Other);
            is_flattened && is_weight && !is_table(&group.slot.key)
        }
    };
    (is_matrix && rows * columns > 0).then_some((*rows, columns))
}

/// Whether a name is that of a head, or of a table of embeddings or positions.
pub(crate) fn is_table(key: &str) -> bool {
    // SigLIP's names for the pooling of images and the projection of texts.
    if key.starts_with("vision_model.head.") || key.starts_with("text_model.head.") {
        return false;
    }
    let names = ["head", "heads", "classifier", "wte", "wpe"];
    let mut segments = key.split('.');
    segments.any(|segment| {
        names.contains(&segment)
            || segment.ends_with("_head")
            || segment.contains("embed")
            || segment.contains("position")
    })
}

/// The operation for a tensor that is no matrix: the base with the task vectors times `factors`, or the base alone
/// where `vectors` says so.
pub(in crate::methods) fn of_vector(
    group: &GroupShape<'_>,
    factors: impl FnOnce() -> Result<Vec<f64>>,
) -> Result<Operation> {
    match group.values.text("vectors") {
        Some("base") => Ok(Operation::TakeBase),
        _ => Ok(Operation::Elementwise(Arc::new(Deltas(factors()?)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_tables_are_told_by_their_names() {
        for name in [
            "head.weight",
            "lm_head.weight",
            "model.embed_tokens.weight",
            "h.wte.weight",
            "visual.position_table",
        ] {
            assert!(is_table(name), "{name}");
        }
        for name in [
            "blocks.0.attn.qkv.weight",
            "layers.1.mlp.fc1.weight",
            "text_projection.weight",
            "vision_model.head.attention.out_proj.weight",
            "text_model.head.weight",
        ] {
            assert!(!is_table(name), "{name}");
        }
    }
}
