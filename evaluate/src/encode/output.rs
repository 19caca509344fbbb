//! Embeddings as a file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use merge::io::{WriteOptions, Writer};
use merge::{DType, TensorInfo};

use super::Rows;
use crate::{Error, Result};

/// The kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// One file with all features, and ids in its metadata.
    Safetensors,
    /// One array, with ids in `<name>.ids.json`.
    Npy,
}

impl Container {
    /// By the ending of a file's name.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "safetensors" => Some(Self::Safetensors),
            "npy" => Some(Self::Npy),
            _ => None,
        }
    }
}

/// Rows of features, their name, and the id of each row.
pub struct Embeddings {
    /// `image_features` or `text_features`.
    pub name: &'static str,
    /// One per row.
    pub ids: Vec<String>,
    /// The features.
    pub rows: Rows,
}

impl Embeddings {
    /// Writes features as safetensors: `<name>: (n, d)` in f32 each, with the ids of their rows in the
    /// metadata as `<name>.ids`, a JSON list. `image_of_text` goes into `text_image_id`, i64.
    ///
    /// # Errors
    /// When the target exists (without `force`) or the disk fails.
    pub fn write_safetensors(
        all: &mut [Self],
        image_of_text: Option<&[i64]>,
        mut metadata: BTreeMap<String, String>,
        path: &Path,
        force: bool,
    ) -> Result<()> {
        let mut tensors = Vec::new();
        for embeddings in all.iter() {
            let shape = vec![embeddings.rows.n_rows(), embeddings.rows.width()];
            let dtype = DType::F32;
            tensors.push((embeddings.name.to_owned(), TensorInfo { dtype, shape }));
            metadata.insert(format!("{}.ids", embeddings.name), json(&embeddings.ids));
        }
        if let Some(images) = image_of_text {
            let (dtype, shape) = (DType::I64, vec![images.len()]);
            tensors.push(("text_image_id".to_owned(), TensorInfo { dtype, shape }));
        }
        let options = WriteOptions {
            force,
            ..WriteOptions::new(path)
        };
        let writer = Writer::create(&tensors, &metadata, &options)?;
        for (index, embeddings) in all.iter_mut().enumerate() {
            embeddings
                .rows
                .read(|at, bytes| Ok(writer.write(index, at, bytes)?))?;
        }
        if let Some(images) = image_of_text {
            writer.write(all.len(), 0, bytemuck::cast_slice(images))?;
        }
        writer.finish(&metadata)?;
        Ok(())
    }

    /// Writes features as a NumPy array, `(n, d)` of `<f4`, and the ids beside it; returns the file of
    /// the ids.
    ///
    /// # Errors
    /// When a target exists (without `force`) or the disk fails.
    pub fn write_npy(&mut self, path: &Path, force: bool) -> Result<PathBuf> {
        let ids = ids_beside(path);
        merge::io::check_file_target(path, force)?;
        merge::io::write_file(&ids, json(&self.ids).as_bytes(), force)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.partial"));
        let failed = |source| Error::io("write", &partial, source);
        match std::fs::remove_file(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            _ => {}
        }
        let mut file = std::fs::File::create_new(&partial).map_err(failed)?;
        let head = npy_head(self.rows.n_rows(), self.rows.width());
        file.write_all(&head).map_err(failed)?;
        self.rows
            .read(|_, bytes| file.write_all(bytes).map_err(failed))?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&partial, path).map_err(failed)?;
        Ok(ids)
    }
}

/// The file of ids beside an array.
fn ids_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.ids.json"))
}

/// The head of an array of f32 in C order: magic, version, and a dictionary filled up with blanks so that
/// the numbers begin at a multiple of 64.
fn npy_head(n_rows: usize, width: usize) -> Vec<u8> {
    let dictionary =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {width}), }}");
    let mut head = b"\x93NUMPY\x01\x00".to_vec();
    let n = (10 + dictionary.len() + 1).next_multiple_of(64) - 10;
    head.extend((n as u16).to_le_bytes());
    head.extend(dictionary.as_bytes());
    head.resize(10 + n - 1, b' ');
    head.push(b'\n');
    head
}

/// Strings always have a JSON form.
fn json(ids: &[String]) -> String {
    serde_json::to_string(ids).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::npy_head;

    #[test]
    fn the_head_of_an_array_is_that_of_numpy() {
        let head = npy_head(3, 512);
        assert_eq!(head.len() % 64, 0);
        assert!(head.starts_with(b"\x93NUMPY\x01\x00"));
        let n = u16::from_le_bytes([head[8], head[9]]) as usize;
        assert_eq!(head.len(), 10 + n);
        let text = std::str::from_utf8(&head[10..]).expect("ASCII");
        assert!(text.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 512), }"));
        assert!(text.ends_with(" \n"));
    }
}
