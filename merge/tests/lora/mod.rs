//! Low-rank adapters as inputs of merges: closed forms, and the errors of adapters that do not fit.

mod combining;
mod large;
mod names;
mod plain;
mod refusals;
mod relatives;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::bf16;
use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::random::Draws;
use merge::{Error, MergePlan, MergeRecipe};
use safetensors::Dtype;

use fixtures::{self as fixture, Raw};

/// A folder with a base and adapters.
struct Folder(tempfile::TempDir);

fn raw(shape: &[usize], values: &[f32]) -> Raw {
    assert_eq!(values.len(), shape.iter().product::<usize>());
    Raw {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: bytemuck::cast_slice(values).to_vec(),
    }
}

fn halved(shape: &[usize], values: &[f32]) -> Raw {
    let bytes = (values.iter()).flat_map(|&value| bf16::from_f32(value).to_le_bytes());
    Raw {
        dtype: Dtype::BF16,
        shape: shape.to_vec(),
        bytes: bytes.collect(),
    }
}

/// Values that look random, from −1 to 1.
fn noise(seed: u64, shape: &[usize]) -> Vec<f32> {
    let mut values = vec![0.0; shape.iter().product()];
    Draws::new(seed, "noise").fill_uniform(0, &mut values);
    values.iter().map(|value| 2.0 * value - 1.0).collect()
}

fn owned(tensors: Vec<(&str, Raw)>) -> BTreeMap<String, Raw> {
    (tensors.into_iter())
        .map(|(name, raw)| (name.to_owned(), raw))
        .collect()
}

impl Folder {
    fn new(base: Vec<(&str, Raw)>) -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        fixture::write(&folder.path("base"), &owned(base));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.safetensors"))
    }

    /// Writes an adapter whose names have PEFT's prefix, with settings beside its kind.
    fn adapter(&self, name: &str, settings: &str, tensors: Vec<(&str, Raw)>) {
        let folder = self.0.path().join(name);
        std::fs::create_dir_all(&folder).expect("made");
        let kind = match settings.contains("peft_type") {
            true => "",
            false => "\"peft_type\": \"LORA\", ",
        };
        let settings = format!("{{{kind}{settings}}}");
        std::fs::write(folder.join("adapter_config.json"), settings).expect("written");
        let tensors = (tensors.into_iter())
            .map(|(name, raw)| (format!("base_model.model.{name}"), raw))
            .collect();
        fixture::write(&folder.join("adapter_model.safetensors"), &tensors);
    }

    /// `<name>` stands for a file, `+name` for an adapter in this folder.
    fn recipe(&self, yaml: &str) -> Result<MergeRecipe, Error> {
        let mut yaml = yaml.to_owned();
        while let Some((start, rest)) = yaml.split_once('<') {
            let (name, end) = rest.split_once('>').expect("<name>");
            yaml = format!("{start}{}{end}", self.path(name).display());
        }
        let yaml = yaml.replace("+", &format!("+{}/", self.0.path().display()));
        MergeRecipe::parse(&yaml, Path::new("recipe.yaml"))
    }

    fn plan(&self, yaml: &str) -> Result<MergePlan, Error> {
        MergePlan::resolve(&self.recipe(yaml)?).map(|(plan, _)| plan)
    }

    fn merge_to(&self, target: &str, yaml: &str) -> Result<BTreeMap<String, Raw>, Error> {
        let write = WriteOptions {
            force: true,
            ..WriteOptions::new(self.path(target))
        };
        let silent = &merge::progress::Silent;
        execute(&self.plan(yaml)?, &write, &RunOptions::default(), silent)?;
        Ok(fixture::tensors(&self.path(target)))
    }

    /// The base with an adapter.
    fn with(&self, adapter: &str) -> Result<BTreeMap<String, Raw>, Error> {
        let yaml = format!("merge_method: passthrough\nmodels:\n- model: <base>+{adapter}\n");
        self.merge_to("merged", &yaml)
    }

    fn fault(&self, adapter: &str) -> String {
        match self.with(adapter) {
            Ok(_) => panic!("{adapter} should be refused"),
            Err(error) => error.to_string(),
        }
    }
}

const R1: &str = r#""r": 1, "lora_alpha": 2"#;
