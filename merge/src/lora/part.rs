//! What an adapter's tensor is, by its name.

/// What PEFT puts before the names of the model that it wraps.
pub(super) const PREFIX: &str = "base_model.model.";

/// What an adapter's tensor is, by its name.
#[derive(Debug, PartialEq)]
pub(super) enum Part<'a> {
    /// `A` of a module.
    First {
        module: &'a str,
        /// The name of its `B`.
        second: String,
        is_embedding: bool,
    },
    /// `B` of a module.
    Second {
        /// The name of its `A`.
        first: String,
    },
    /// The bias of `B` of a module.
    Bias { module: &'a str },
    /// A magnitude of DoRA.
    Magnitude,
    /// A whole tensor of the base, by its name there.
    Whole(String),
}

impl<'a> Part<'a> {
    pub(super) fn of(key: &'a str) -> Self {
        let bare = key.strip_prefix(PREFIX).unwrap_or(key);
        let other = |end: &str, other: &str| {
            let start = key.strip_suffix(end).unwrap_or(key);
            format!("{start}{other}")
        };
        if let Some(module) = bare.strip_suffix(".lora_A.weight") {
            return Self::First {
                module,
                second: other(".lora_A.weight", ".lora_B.weight"),
                is_embedding: false,
            };
        }
        if let Some(module) = bare.strip_suffix(".lora_embedding_A") {
            return Self::First {
                module,
                second: other(".lora_embedding_A", ".lora_embedding_B"),
                is_embedding: true,
            };
        }
        if bare.ends_with(".lora_B.weight") {
            let first = other(".lora_B.weight", ".lora_A.weight");
            return Self::Second { first };
        }
        if bare.ends_with(".lora_embedding_B") {
            let first = other(".lora_embedding_B", ".lora_embedding_A");
            return Self::Second { first };
        }
        if let Some(module) = bare.strip_suffix(".lora_B.bias") {
            return Self::Bias { module };
        }
        if bare.contains(".lora_magnitude_vector") {
            return Self::Magnitude;
        }
        Self::Whole(
            bare.replacen(".modules_to_save.default.", ".", 1)
                .replacen(".modules_to_save.", ".", 1)
                .replacen(".base_layer.", ".", 1),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_an_adapter_are_known_by_their_names() {
        let module = "model.layers.0.q_proj";
        assert_eq!(
            Part::of("base_model.model.model.layers.0.q_proj.lora_A.weight"),
            Part::First {
                module,
                second: "base_model.model.model.layers.0.q_proj.lora_B.weight".into(),
                is_embedding: false,
            }
        );
        assert_eq!(
            Part::of("embed.lora_embedding_B"),
            Part::Second {
                first: "embed.lora_embedding_A".into()
            }
        );
        assert_eq!(
            Part::of("model.layers.0.q_proj.lora_B.bias"),
            Part::Bias { module }
        );
        assert_eq!(Part::of("q_proj.lora_magnitude_vector"), Part::Magnitude);
        for key in [
            "base_model.model.head.weight",
            "head.modules_to_save.default.weight",
            "head.modules_to_save.weight",
            "head.base_layer.weight",
        ] {
            assert_eq!(Part::of(key), Part::Whole("head.weight".into()), "{key}");
        }
    }
}
