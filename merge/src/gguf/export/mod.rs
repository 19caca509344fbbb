//! A Hugging Face model as a GGUF file: names, order of rows, settings, tokenizer.

mod adapter;
mod clip;
mod own;
mod rope;
mod sentencepiece;
mod settings;
mod tokenizer;
mod view;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use self::settings::Settings;
use self::view::{Export, Wanted};
use super::architectures::{Architecture, SHARED_EXPERT_GATE};
use super::names;
use crate::beside::Companions;
use crate::convert::Conversion;
use crate::io::GgufHead;
use crate::layouts;
use crate::{Checkpoint, DType, ExportFault, MergePlan, Result, model_config};

pub use adapter::AdapterExport;
pub(in crate::gguf) use rope::{Bands, attention_factor};
pub(in crate::gguf) use tokenizer::{CONTROL, NORMAL, OF_DIGITS, OF_GPT2, PATTERNS, USER_DEFINED};

/// The number of the version of quantized blocks in ggml.
const QUANTIZATION_VERSION: u32 = 2;

/// The types in which matrices are written. Tensors of one axis, such as norms and biases, are in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GgufType {
    /// As they are: f32, f16 or bf16.
    #[default]
    Keep,
    /// 32 bits.
    F32,
    /// 16 bits of IEEE.
    F16,
    /// 16 bits with the range of f32.
    Bf16,
    /// Blocks of 32 codes of 8 bits with a scale in f16.
    Q8_0,
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        })
    }
}

impl GgufType {
    /// The number of the type that most matrices have, in `general.file_type`.
    const fn file_type(self, most: DType) -> u32 {
        match (self, most) {
            (Self::F32, _) => 0,
            (Self::F16, _) => 1,
            (Self::Q8_0, _) => 7,
            (Self::Bf16, _) => 32,
            (Self::Keep, DType::F16) => 1,
            (Self::Keep, DType::BF16) => 32,
            (Self::Keep, _) => 0,
        }
    }

    /// The dtype of a matrix that is kept in `stored` here; of `Q8_0` that of what blocks do not fill.
    const fn dtype(self, stored: DType) -> DType {
        match (self, stored) {
            (Self::F32, _) => DType::F32,
            (Self::F16 | Self::Q8_0, _) => DType::F16,
            (Self::Bf16, _) => DType::BF16,
            (Self::Keep, DType::F16) => DType::F16,
            (Self::Keep, DType::BF16) => DType::BF16,
            (Self::Keep, _) => DType::F32,
        }
    }
}

/// How a model becomes a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgufExport {
    /// The type of matrices.
    pub kind: GgufType,
    /// Whether the tokenizer is written; without it no program makes tokens of texts.
    pub with_tokenizer: bool,
}

impl GgufExport {
    /// Says what happens to every tensor of a model whose folder has a config.json.
    ///
    /// # Errors
    /// [`ExportFault`] for settings, tensors and tokenizers that have no place in a GGUF file.
    pub fn plan(&self, source: Arc<Checkpoint>) -> Result<MergePlan> {
        let path = source.path().to_owned();
        let config = model_config::of(&source)?;
        let config = config.ok_or_else(|| ExportFault::NoConfig { path: path.clone() })?;
        let architecture = architecture_of(&path, &config)?;
        let mut head = GgufHead::default();
        head.text(super::ARCHITECTURE_KEY, architecture.name);
        head.text("general.type", "model");
        head.text("general.name", &name_of(&path));
        head.u32("general.quantization_version", QUANTIZATION_VERSION);
        let mut export = Export::new(Arc::clone(&source));
        let input = Input {
            source: &source,
            config: &config,
            companions: Companions::of_model(&path)?,
        };
        let mut notes = match architecture.name {
            "clip" => self.add_clip(&input, architecture, &mut head, &mut export)?,
            _ => self.add_language_model(&input, &mut head, &mut export)?,
        };
        head.u32("general.file_type", self.kind.file_type(export.most()));
        let left_out = export.left_out();
        if !left_out.is_empty() {
            notes.push(format!(
                "left out, for programs have them from elsewhere: {}",
                left_out.join(", ")
            ));
        }
        let view = export.finish(&mut head);
        let recipe = format!("convert: {{ to: gguf, type: {} }}", self.kind);
        planned(view, head, recipe, notes)
    }

    /// Adds the settings, the tokenizer and the tensors of a language model; returns notes for users.
    fn add_language_model(
        &self,
        input: &Input<'_>,
        head: &mut GgufHead,
        export: &mut Export,
    ) -> Result<Vec<String>> {
        let path = input.source.path();
        let settings = Settings::new(path, input.config)?;
        settings.write(head)?;
        let mut notes = settings.notes();
        if self.with_tokenizer {
            tokenizer::write(path, &input.companions, input.config, head)?;
        } else {
            head.text("tokenizer.ggml.model", "no_vocab");
            notes.push(NO_TOKENIZER.to_owned());
        }
        let n_unfilled = self.add_tensors(input.source, &settings, export)?;
        notes.extend(unfilled(n_unfilled));
        for made in settings.made()? {
            export.add_made(made);
        }
        Ok(notes)
    }

    /// Adds every tensor of the model; returns the number of matrices that blocks do not fill.
    fn add_tensors(
        &self,
        source: &Checkpoint,
        settings: &Settings,
        export: &mut Export,
    ) -> Result<usize> {
        let mut n_unfilled = 0;
        for (key, info) in source.tensors() {
            if settings.leaves_out(key) {
                export.leave_out(key);
                continue;
            }
            let unknown = || ExportFault::UnknownTensor {
                path: source.path().into(),
                key: key.to_owned(),
                architecture: settings.architecture.model_type,
            };
            if !info.dtype.is_float() {
                return Err(unknown().into());
            }
            let parsed = names::of_hugging_face(settings.architecture, key).ok_or_else(unknown)?;
            let turned = settings.turned(source.path(), key, parsed.row.1, &info.shape)?;
            // The first expert stands for all.
            if let Some(expert @ 1..) = parsed.expert {
                if expert >= settings.n_experts() {
                    return Err(unknown().into());
                }
                continue;
            }
            let others = parsed.expert.map(|_| settings.other_experts(&parsed));
            let is_norm = parsed.row.1.ends_with("norm") && parsed.ending == ".weight";
            let plus_one = settings.architecture.has_norms_plus_one && is_norm;
            let stored = source.stored_dtype(key).unwrap_or(info.dtype);
            let fills = (info.shape.last()).is_some_and(|&width| export.fills(width));
            let is_matrix = info.shape.len() > 1 && !parsed.is_of_router();
            let dtype = match is_matrix {
                false => DType::F32,
                true => self.kind.dtype(stored),
            };
            let is_coded = is_matrix && self.kind == GgufType::Q8_0;
            n_unfilled += usize::from(is_coded && !fills);
            let wanted = Wanted {
                name: parsed.gguf(),
                dtype,
                is_coded: is_coded && fills,
                turned,
                plus_one,
                others,
                is_row: parsed.row.1 == SHARED_EXPERT_GATE,
            };
            export.add(key, wanted)?;
        }
        Ok(n_unfilled)
    }
}

/// A model that is written.
struct Input<'a> {
    source: &'a Checkpoint,
    config: &'a Value,
    companions: Companions,
}

/// The note for users on a file without a tokenizer.
const NO_TOKENIZER: &str =
    "the file has no tokenizer: programs that run it need one from elsewhere";

/// The note for users on matrices that blocks do not fill.
fn unfilled(n_unfilled: usize) -> Option<String> {
    (n_unfilled > 0).then(|| {
        format!(
            "{n_unfilled} matrices have rows that blocks of 32 do not fill, and are written as F16"
        )
    })
}

/// The plan that copies a view into a GGUF file.
fn planned(
    view: Checkpoint,
    head: GgufHead,
    recipe: String,
    notes: Vec<String>,
) -> Result<MergePlan> {
    let layout = layouts::by_name("generic", &view)?;
    let plan = Conversion::default().plan(Arc::new(view), layout.as_ref())?;
    Ok(plan.into_gguf(head, recipe, notes))
}

/// The name of a model: that of its folder.
fn name_of(path: &Path) -> String {
    let folder = match path.is_dir() {
        true => Some(path),
        false => path.parent(),
    };
    let folder = folder.and_then(|folder| folder.canonicalize().ok());
    let name = folder.as_deref().and_then(Path::file_name);
    name.map_or_else(
        || "model".into(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// A setting that is a whole number.
fn integer(config: &Value, key: &str) -> Option<u32> {
    u32::try_from(config.get(key)?.as_u64()?).ok()
}

/// The architecture that a config.json names.
fn architecture_of(path: &Path, config: &Value) -> Result<&'static Architecture> {
    let said = config.get("model_type").and_then(Value::as_str);
    let said = said.unwrap_or_default();
    Architecture::of_model_type(said).ok_or_else(|| {
        ExportFault::Architecture {
            path: path.into(),
            model_type: said.to_owned(),
        }
        .into()
    })
}
