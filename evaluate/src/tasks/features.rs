//! Features on disk, so that none is computed twice.

use std::path::{Path, PathBuf};

use merge::io::{OpenOptions, WriteOptions, Writer};
use merge::{DType, TensorInfo};

use crate::{Error, Result, ScoresFault};

/// The tensor in a file of features.
const FEATURES: &str = "features";

/// A folder of features of one model on one split.
#[derive(Clone, Debug)]
pub struct FeatureCache {
    folder: PathBuf,
    key: String,
}

impl FeatureCache {
    /// In `folder`; `key` stands for everything that the features depend on.
    #[must_use]
    pub fn new(folder: &Path, key: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            key: key.to_owned(),
        }
    }

    /// Whether features are on disk.
    #[must_use]
    pub fn has(&self, of: &str) -> bool {
        self.path(of).exists()
    }

    fn path(&self, of: &str) -> PathBuf {
        self.folder.join(format!("{}.{of}.safetensors", self.key))
    }

    /// Features of `n` items: those on disk, or else what `compute` returns, which is kept.
    ///
    /// # Errors
    /// When the file is of another number of items or cannot be read or written, and what
    /// `compute` returns.
    pub fn get(
        &self,
        of: &str,
        n: usize,
        compute: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let path = self.path(of);
        if path.exists() {
            return read(&path, n);
        }
        let values = compute()?;
        let create = std::fs::create_dir_all(&self.folder);
        create.map_err(|source| Error::io("create", &self.folder, source))?;
        let info = TensorInfo {
            dtype: DType::F32,
            shape: vec![n, values.len() / n.max(1)],
        };
        let tensors = [(FEATURES.to_owned(), info)];
        let writer = Writer::create(&tensors, &Default::default(), &WriteOptions::new(&path))?;
        writer.write(0, 0, bytemuck::cast_slice(&values))?;
        writer.finish(&Default::default())?;
        Ok(values)
    }
}

fn read(path: &Path, n: usize) -> Result<Vec<f32>> {
    let file = merge::io::open(path, &OpenOptions::default())?;
    let info = file.require(FEATURES)?;
    if info.shape.first() != Some(&n) || info.shape.len() != 2 || info.dtype != DType::F32 {
        return Err(ScoresFault::TensorShape {
            path: path.into(),
            key: FEATURES,
            found: info.shape.clone(),
            expected: format!("{n} features in f32"),
        }
        .into());
    }
    let mut values = vec![0.0; info.n_elements()];
    file.read(FEATURES, 0, bytemuck::cast_slice_mut(&mut values))?;
    Ok(values)
}
