//! Facts about architectures that programs which run GGUF files have in code, so that the metadata lack them.
//!
//! Source: `load_arch_hparams` of llama.cpp's models.

/// Each layer of this number of Gemma 2, and of Gemma 3, sees the whole text; the others see a window.
pub(super) const GEMMA2_EVERY: usize = 2;
pub(super) const GEMMA3_EVERY: usize = 6;

/// Each layer of this number of SmolLM3 does without positions.
pub(super) const SMOLLM3_EVERY: usize = 4;

/// Whether a layer, counted from 0, sees the whole text.
pub(super) const fn sees_all(layer: usize, every: usize) -> bool {
    (layer + 1).is_multiple_of(every)
}

/// Whether a layer of SmolLM3, counted from 0, turns queries and keys by their positions.
pub(super) const fn turns_positions(layer: usize) -> bool {
    !(layer + 1).is_multiple_of(SMOLLM3_EVERY)
}

/// Layers of the largest model of an architecture, whose queries are scaled by the width of the model for each head.
pub(super) fn largest_of(architecture: &str) -> Option<usize> {
    match architecture {
        "gemma2" => Some(46),
        "gemma3" => Some(62),
        _ => None,
    }
}
