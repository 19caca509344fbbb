//! The tiny models of a golden set.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use evaluate::models::Overrides;
use fixtures::Case;
use merge::execute::{RunOptions, in_memory};
use merge::io::OpenOptions;
use merge::progress::Silent;
use merge::recipe::{ModelRef, Parameter};
use merge::{Checkpoint, MergePlan, MergeRecipe};
use serde_json::Value;

/// An open checkpoint.
pub fn open(path: &Path) -> Arc<Checkpoint> {
    Arc::new(merge::io::open(path, &OpenOptions::default()).expect("the checkpoint opens"))
}

/// Sizes of a model of vl-merging that its tensors may not tell.
pub fn overrides(config: &Value) -> Overrides {
    let size = |name: &str| config[name].as_u64().map(|size| size as usize);
    Overrides {
        n_heads: size("num_heads"),
        fusion_start: size("vlffn_start_layer_index"),
        text_table_len: size("max_text_len_of_initckpt"),
        ..Overrides::default()
    }
}

/// The weights of a forward case: a file, or `A + B tensors from C`, where A is what a merge of C
/// gives: then that merge is made in memory.
pub fn weights_of(case: &Case) -> Arc<Checkpoint> {
    let named = case.text("weights");
    let Some((merged, _)) = named.split_once(" + ") else {
        return open(&case.file("weights"));
    };
    let merges = case.set().all_cases();
    let merge = merges.iter().find(|case| case["expected"] == merged);
    let merge = merge.unwrap_or_else(|| panic!("no case gives {merged}"));
    assert_eq!(merge["op"], "interpolate", "what this test can merge");
    let mut recipe = MergeRecipe {
        merge_method: "interpolate".to_owned(),
        models: vec![ModelRef::new(merge.file("input"))],
        ..MergeRecipe::default()
    };
    let ratio = merge.number("ratio").expect("a ratio");
    recipe.parameters.set("ratio", Parameter::Number(ratio));
    let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
    let made = in_memory(&plan, &RunOptions::default(), &Silent);
    Arc::new(made.expect("merged"))
}

/// The elements of a tensor, row after row.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).and_then(|t| t.flatten_all());
    flat.and_then(|t| t.to_vec1()).expect("numbers")
}
