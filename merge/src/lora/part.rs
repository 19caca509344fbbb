//! The part that a tensor of an adapter plays, by its name.
//!
//! | programs | a product | other updates |
//! |---|---|---|
//! | PEFT | `M.lora_A.weight`, `M.lora_B.weight`; `M.lora_embedding_A`, `…_B` | `M.hada_w1_a` …, `M.lokr_w1` … |
//! | kohya, LyCORIS | `lora_unet_M.lora_down.weight`, `….lora_up.weight`, M with `_` for `.` | `….hada_w1_a` …, `….lokr_w1` … |
//! | diffusers | `unet.M.lora.down.weight`, `unet.M.lora_linear_layer.down.weight`, `….processor.to_q_lora.down.weight` | |

/// PEFT's prefix of the names of the model that it wraps.
pub(super) const PREFIX: &str = "base_model.model.";

/// The endings of the first and the second factor's names.
const FACTORS: [(&str, &str, bool); 7] = [
    (".lora_A.weight", ".lora_B.weight", false),
    (".lora_A.default.weight", ".lora_B.default.weight", false),
    (".lora_embedding_A", ".lora_embedding_B", true),
    (".lora_down.weight", ".lora_up.weight", false),
    (".lora.down.weight", ".lora.up.weight", false),
    (
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
        false,
    ),
    ("_lora.down.weight", "_lora.up.weight", false),
];

/// Tensors of an update that is made of several, and of which the first that is there stands for all.
const HADAMARD: [&str; 6] = [
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
];
const KRONECKER: [&str; 7] = [
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
];

/// The part that a tensor of an adapter plays, by its name.
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
    Magnitude { module: &'a str },
    /// A tensor of a LoHa update.
    Hadamard { module: &'a str, name: &'static str },
    /// A tensor of a LoKr update.
    Kronecker { module: &'a str, name: &'static str },
    /// A number that goes with a module's update.
    Alpha,
    /// Rows of an embedding.
    Tokens { module: &'a str },
    /// A difference of a whole weight or bias.
    Difference { module: &'a str, is_bias: bool },
    /// A part that no update here has.
    Unknown(&'static str),
    /// A whole tensor of the base, by its name there.
    Whole(String),
}

impl<'a> Part<'a> {
    pub(super) fn of(key: &'a str) -> Self {
        let bare = key.strip_prefix(PREFIX).unwrap_or(key);
        for (first, second, is_embedding) in FACTORS {
            if let Some(module) = bare.strip_suffix(first) {
                let start = key.strip_suffix(first).unwrap_or(key);
                return Self::First {
                    module,
                    second: format!("{start}{second}"),
                    is_embedding,
                };
            }
            if let Some(start) = key.strip_suffix(second) {
                return Self::Second {
                    first: format!("{start}{first}"),
                };
            }
        }
        if let Some(module) = bare.strip_suffix(".lora_B.bias") {
            return Self::Bias { module };
        }
        let magnitudes = [
            ".lora_magnitude_vector.weight",
            ".lora_magnitude_vector.default.weight",
            ".lora_magnitude_vector",
            ".dora_scale",
        ];
        if let Some(module) = magnitudes.iter().find_map(|end| bare.strip_suffix(end)) {
            return Self::Magnitude { module };
        }
        if let Some((module, last)) = bare.rsplit_once('.') {
            if let Some(name) = HADAMARD.into_iter().find(|&name| name == last) {
                return Self::Hadamard { module, name };
            }
            if let Some(name) = KRONECKER.into_iter().find(|&name| name == last) {
                return Self::Kronecker { module, name };
            }
            match last {
                "alpha" => return Self::Alpha,
                "diff" => {
                    return Self::Difference {
                        module,
                        is_bias: false,
                    };
                }
                "diff_b" => {
                    return Self::Difference {
                        module,
                        is_bias: true,
                    };
                }
                _ => {}
            }
        }
        if let Some(module) = bare.strip_suffix(".token_adapter.trainable_tokens_delta") {
            return Self::Tokens { module };
        }
        if bare.ends_with(".lora_mid.weight") {
            return Self::Unknown("LoCon with `lora_mid`");
        }
        Self::Whole(
            bare.replacen(".modules_to_save.default.", ".", 1)
                .replacen(".modules_to_save.", ".", 1)
                .replacen(".token_adapter.base_layer.", ".", 1)
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
        let magnitude = Part::Magnitude { module: "q_proj" };
        assert_eq!(Part::of("q_proj.lora_magnitude_vector"), magnitude);
        let hadamard = Part::Hadamard {
            module: "lora_unet_mid",
            name: "hada_w1_a",
        };
        assert_eq!(Part::of("lora_unet_mid.hada_w1_a"), hadamard);
        assert_eq!(Part::of("lora_unet_mid.alpha"), Part::Alpha);
        let processor = Part::First {
            module: "unet.attn1.processor.to_q",
            second: "unet.attn1.processor.to_q_lora.up.weight".into(),
            is_embedding: false,
        };
        assert_eq!(
            Part::of("unet.attn1.processor.to_q_lora.down.weight"),
            processor
        );
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
