//! The set's adapters as folders that the library of adapters reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fixtures::{Case, Raw};
use serde_json::json;

/// Each adapter on the base, as `base+folder`.
pub fn on_base(case: &Case, base: &Path, adapters: &[PathBuf], folder: &Path) -> Vec<PathBuf> {
    let scale = case.number("lora_scale").unwrap_or(1.0);
    let models = adapters.iter().map(|adapter| {
        let own = folder.join(adapter.file_stem().expect("a name"));
        std::fs::create_dir(&own).expect("a folder");
        let factors = fixtures::tensors(adapter);
        let first = factors.iter().filter(|(key, _)| key.contains("lora_A"));
        let rank = first.clone().map(|(_, raw)| raw.shape[0]).max();
        let rank = rank.expect("factors");
        let module = |key: &String| {
            let module = key.split(".lora_").next().expect("a module");
            module.rsplit('.').next().expect("a name").to_owned()
        };
        let mut targets: Vec<String> = first.map(|(key, _)| module(key)).collect();
        targets.sort();
        targets.dedup();
        let config = json!({
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank as f64 * scale,
            "target_modules": targets,
        });
        std::fs::write(own.join("adapter_config.json"), config.to_string()).expect("written");
        let factors: BTreeMap<String, Raw> = (factors.into_iter())
            .map(|(key, raw)| (format!("base_model.model.{key}"), raw))
            .collect();
        fixtures::write(&own.join("adapter_model.safetensors"), &factors);
        PathBuf::from(format!("{}+{}", base.display(), own.display()))
    });
    models.collect()
}
