//! Any bytes as PEFT's `adapter_config.json` beside an adapter of one module: merged or refused.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use merge::{MergePlan, MergeRecipe};

/// A safetensors file of f32 zeros.
fn file(path: &Path, tensors: &[(&str, [usize; 2])]) {
    let mut header = String::from("{");
    let mut n_bytes = 0;
    for (name, [rows, columns]) in tensors {
        let end = n_bytes + 4 * rows * columns;
        let comma = if n_bytes == 0 { "" } else { "," };
        header += &format!(
            r#"{comma}"{name}":{{"dtype":"F32","shape":[{rows},{columns}],"data_offsets":[{n_bytes},{end}]}}"#
        );
        n_bytes = end;
    }
    header.push('}');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + n_bytes, 0);
    std::fs::write(path, bytes).expect("written");
}

fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("vlmerge-fuzz-adapter-{}", std::process::id()));
    let (base, adapter) = (folder.join("base.safetensors"), folder.join("adapter"));
    std::fs::create_dir_all(&adapter).expect("a temporary folder");
    file(&base, &[("a.weight", [4, 4])]);
    let factors = [
        ("base_model.model.a.lora_A.weight", [2, 4]),
        ("base_model.model.a.lora_B.weight", [4, 2]),
    ];
    file(&adapter.join("adapter_model.safetensors"), &factors);
    std::fs::write(adapter.join("adapter_config.json"), bytes).expect("written");
    let yaml = format!(
        "merge_method: passthrough\nmodels: [{}+{}]",
        base.display(),
        adapter.display()
    );
    let recipe = MergeRecipe::parse(&yaml, Path::new("fuzz")).expect("a recipe");
    let _ = MergePlan::resolve(&recipe);
});
