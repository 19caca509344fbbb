//! Any text as a recipe: parsed or refused, and a parsed recipe survives being written.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use merge::{MergeRecipe, methods};

fuzz_target!(|text: &str| {
    let Ok(recipe) = MergeRecipe::parse(text, Path::new("fuzz")) else {
        return;
    };
    // The refusals of a method and of a choice of experts must hold for any recipe as well.
    let _ = methods::by_name(&recipe.merge_method, &recipe.parameters, recipe.as_published);
    let flaw = recipe.experts.as_ref().map(|choice| choice.flaw(0..64));
    let yaml = recipe.to_yaml().expect("what was parsed can be written");
    let again = MergeRecipe::parse(&yaml, Path::new("fuzz")).expect("what was written parses");
    let has_nan = format!("{recipe:?}").contains("NaN");
    assert!(has_nan || again == recipe, "{yaml}");
    assert_eq!(again.experts.as_ref().map(|choice| choice.flaw(0..64)), flaw);
});
