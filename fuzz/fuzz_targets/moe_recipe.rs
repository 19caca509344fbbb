//! Any text as a recipe of a mixture: parsed or refused, without a look at any model.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use merge::moe::MoeRecipe;

fuzz_target!(|text: &str| {
    if let Ok(recipe) = MoeRecipe::parse(text, Path::new("fuzz")) {
        assert!(recipe.experts_per_token <= recipe.experts.len());
        assert!(recipe.gated().len() <= recipe.experts.len() + recipe.shared_experts.len());
    }
});
