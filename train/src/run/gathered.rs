//! Weights of other ranks' experts, on their way into a checkpoint of the first rank.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Var};
use evaluate::ranks::given_to_first;
use merge::Checkpoint;
use merge::io::OpenOptions;

use super::ExpertVariables;
use super::in_turn::write_in_turn;
use crate::collective::{Collective, said_by_all};
use crate::{Error, Result};

/// A file of other ranks' experts, in a folder that goes when this is dropped.
pub(super) struct Gathered {
    folder: PathBuf,
    file: Arc<Checkpoint>,
}

impl Gathered {
    /// Brings the experts that the first rank lacks to it, a tensor at a time, by way of a file in `folder`, which it makes.
    /// All ranks call this together; the others give and receive nothing. `None` where ranks share no experts out.
    ///
    /// # Errors
    /// When a rank is gone, or the disk of the first one fails.
    pub(super) fn bring(
        experts: &ExpertVariables,
        variables: &BTreeMap<String, Var>,
        collective: &dyn Collective,
        folder: &Path,
    ) -> Result<Option<Self>> {
        if !experts.are_shared_out() {
            return Ok(None);
        }
        let lacking: Vec<String> = experts.others().keys().cloned().collect();
        let wanted = said_by_all(collective, &lacking)?.swap_remove(0);
        let brought = |name: &String| -> Result<Vec<f32>> {
            let own = match variables.get(name) {
                Some(variable) => {
                    let tensor = variable.as_detached_tensor().to_device(&Device::Cpu)?;
                    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?
                }
                None => Vec::new(),
            };
            brought_to_first(collective, &own)
        };
        if !collective.is_first() {
            for name in &wanted {
                brought(name)?;
            }
            return Ok(None);
        }
        // Whatever the disk does, the others wait until all is brought.
        let made = fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e));
        let path = folder.join("others.safetensors");
        let shapes = experts.others().clone();
        let written = write_in_turn(&path, shapes, &BTreeMap::new(), |at| {
            Ok(Cow::Owned(brought(&wanted[at])?))
        });
        made?;
        written?;
        Ok(Some(Self {
            folder: folder.into(),
            file: Arc::new(merge::io::open(&path, &OpenOptions::default())?),
        }))
    }

    /// The weights, by the model's names.
    pub(super) fn file(&self) -> &Arc<Checkpoint> {
        &self.file
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        // Files that stay are removed when the run is resumed.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Numbers of a variable that one rank alone holds, at the first rank; nothing elsewhere.
///
/// # Errors
/// When a rank is gone.
pub(super) fn brought_to_first(collective: &dyn Collective, own: &[f32]) -> Result<Vec<f32>> {
    let all = given_to_first(collective, bytemuck::cast_slice(own).to_vec())?;
    let brought = all.iter();
    let brought = brought.flat_map(|bytes| bytemuck::pod_collect_to_vec::<u8, f32>(bytes));
    Ok(brought.collect())
}
