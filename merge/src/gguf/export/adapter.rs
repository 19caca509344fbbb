//! A LoRA adapter as a GGUF file.
//!
//! Source: llama.cpp's `convert_lora_to_gguf.py`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::names;
use super::settings::Settings;
use super::view::{Export, Wanted};
use super::{GgufType, QUANTIZATION_VERSION, name_of, planned};
use crate::beside::Companions;
use crate::io::GgufHead;
use crate::lora::plain;
use crate::{ExportFault, MergePlan, Result};

/// How an adapter in PEFT's form becomes a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterExport {
    /// The folder of its base, of which config.json is read.
    pub base: PathBuf,
    /// The type of its factors.
    pub kind: GgufType,
}

impl AdapterExport {
    /// Says what happens to every factor of the adapter in `folder`: `lora_a` and `lora_b` stand beside the names of the
    /// weights that they change, and rows of `lora_b` are in the order of the base's.
    ///
    /// # Errors
    /// [`ExportFault`] for an adapter that is more than products, and for a base that is not written either.
    pub fn plan(&self, folder: &Path) -> Result<MergePlan> {
        let adapter = plain::open(folder)?;
        let config = Companions::of_model(&self.base)?.settings("config.json")?;
        let no_config = || ExportFault::NoConfig {
            path: self.base.clone(),
        };
        let config = config.ok_or_else(no_config)?;
        let settings = Settings::new(&self.base, &config)?;
        let mut head = GgufHead::default();
        head.text(super::super::ARCHITECTURE_KEY, settings.architecture.name);
        head.text("general.type", "adapter");
        head.text("general.name", &name_of(folder));
        head.u32("general.quantization_version", QUANTIZATION_VERSION);
        head.text("adapter.type", "lora");
        head.f32("adapter.lora.alpha", adapter.alpha as f32);
        let tensors = Arc::new(adapter.tensors);
        let mut export = Export::new(Arc::clone(&tensors));
        for factors in &adapter.factors {
            let weight = format!("{}.weight", factors.module);
            let parsed = names::of_hugging_face(settings.architecture, &weight);
            // Factors of experts would be one tensor of all of them.
            let parsed = parsed.filter(|parsed| parsed.expert.is_none());
            let parsed = parsed.ok_or_else(|| ExportFault::UnknownTensor {
                path: folder.into(),
                key: factors.first.clone(),
                architecture: settings.architecture.model_type,
            })?;
            for (key, ending, is_first) in [
                (&factors.first, "lora_a", true),
                (&factors.second, "lora_b", false),
            ] {
                let info = tensors.require(key)?;
                let turned = match is_first {
                    true => None,
                    false => settings.turned(folder, key, parsed.row.1, &info.shape)?,
                };
                let dtype = self.kind.dtype(info.dtype);
                let fills = info.shape.last().is_some_and(|&width| export.fills(width));
                let is_coded = self.kind == GgufType::Q8_0 && fills;
                let wanted = Wanted {
                    name: format!("{}.{ending}", parsed.gguf()),
                    dtype,
                    is_coded,
                    turned,
                    plus_one: false,
                    others: None,
                    is_row: false,
                };
                export.add(key, wanted)?;
            }
        }
        head.u32("general.file_type", self.kind.file_type(export.most()));
        let view = export.finish(&mut head);
        let recipe = format!("convert: {{ to: gguf adapter, type: {} }}", self.kind);
        planned(view, head, recipe, Vec::new())
    }
}
