//! Where and how to write.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::io::{GgufHead, SourceFile};
use crate::{Error, Result, WriteFault};

/// The name that diffusers gives to the weights of each part of a pipeline.
const DIFFUSERS: &str = "diffusion_pytorch_model";

/// The kind of file to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputContainer {
    /// safetensors.
    Safetensors,
    /// A zip archive that `torch.load(weights_only=True)` opens: a flat dictionary of tensors.
    Torch,
    /// The same with the weights under `state_dict`, as Lightning has them.
    TorchLightning,
    /// The same with the weights under `model`, as EVE's program has them.
    TorchModel,
    /// GGUF, for which the plan has the settings of the model.
    Gguf,
}

impl OutputContainer {
    /// The kind of file that the extension of `path` stands for: `.safetensors`; `.pt`, `.pth` and
    /// `.bin` for torch; `.ckpt` for Lightning; `.th` with the weights under `model`; `.gguf`.
    ///
    /// # Errors
    /// [`WriteFault::UnknownOutput`](crate::WriteFault::UnknownOutput) for any other.
    pub fn from_extension(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => Ok(Self::Safetensors),
            Some("pt" | "pth" | "bin") => Ok(Self::Torch),
            Some("ckpt") => Ok(Self::TorchLightning),
            Some("th") => Ok(Self::TorchModel),
            Some("gguf") => Ok(Self::Gguf),
            _ => Err(Error::Write(WriteFault::UnknownOutput {
                path: path.into(),
            })),
        }
    }
}

/// Where and how to write.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// The target file.
    pub path: PathBuf,
    /// The kind of file; by the extension of `path` unless given.
    pub container: Option<OutputContainer>,
    /// Split into files of at most this many tensor bytes, with an index json.
    pub max_shard_bytes: Option<u64>,
    /// Replace an existing target.
    pub force: bool,
    /// Wait for the disk before the rename, so that not even a power cut leaves half a file.
    pub sync: bool,
    /// The output is the folder of `path`: it is made if it is not there, and what goes beside the
    /// weights is written, too.
    pub is_folder: bool,
    /// The facts beside the tensors of a GGUF file.
    pub gguf: Option<Arc<GgufHead>>,
}

impl WriteOptions {
    /// A model at `path`: the folder of a model where [`WriteOptions::means_folder`] says so, else one file.
    #[must_use]
    pub fn of_model(path: &Path, container: Option<OutputContainer>) -> Self {
        match Self::means_folder(path) {
            true => Self::in_folder(path, container),
            false => Self {
                container,
                ..Self::new(path)
            },
        }
    }

    /// Whether a target is a folder for a model, there or to be made: a path that ends with `/` or has no extension.
    #[must_use]
    pub fn means_folder(path: &Path) -> bool {
        let ends = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        ends || path.is_dir() || path.extension().is_none()
    }

    /// The weights of a model folder, called as loaders look for them.
    #[must_use]
    pub fn in_folder(folder: &Path, container: Option<OutputContainer>) -> Self {
        let name = match container {
            None | Some(OutputContainer::Safetensors) => "model.safetensors",
            Some(OutputContainer::Torch) => "pytorch_model.bin",
            Some(OutputContainer::TorchLightning) => "model.ckpt",
            Some(OutputContainer::TorchModel) => "model.th",
            Some(OutputContainer::Gguf) => "model.gguf",
        };
        Self {
            container,
            is_folder: true,
            ..Self::new(folder.join(name))
        }
    }

    /// In a model folder, weights are called as those of the inputs where loaders ask for that name: diffusers
    /// reads `diffusion_pytorch_model.safetensors` alone.
    #[must_use]
    pub fn called_like(mut self, inputs: &[SourceFile]) -> Self {
        let is_part = |file: &SourceFile| {
            let name = file.path.file_name().unwrap_or_default();
            name.as_encoded_bytes().starts_with(DIFFUSERS.as_bytes())
        };
        if let (true, true, Some(ending)) = (
            self.is_folder,
            inputs.iter().any(is_part),
            self.path.extension(),
        ) {
            let name = Path::new(DIFFUSERS).with_extension(ending);
            self.path.set_file_name(name);
        }
        self
    }

    /// In a model folder, weights are called `stem` where a library looks for that name.
    #[must_use]
    pub fn called(mut self, stem: Option<&str>) -> Self {
        if let (true, Some(stem), Some(ending)) = (self.is_folder, stem, self.path.extension()) {
            let stem = match ending.to_str() {
                Some("safetensors") => stem.to_owned(),
                _ => stem.replace("model", "pytorch_model"),
            };
            let name = Path::new(&stem).with_extension(ending);
            self.path.set_file_name(name);
        }
        self
    }

    /// A single new file at `path`, of the kind that its extension stands for, synced.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            container: None,
            max_shard_bytes: None,
            force: false,
            sync: true,
            is_folder: false,
            gguf: None,
        }
    }
}
