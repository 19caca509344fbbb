//! One task's model again, from a merged file, the masks beside it, and the base.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::beside::Beside;
use crate::methods::each_element;
use crate::methods::{Chunk, ElementKernel, Elementwise, Passes, Real, Survey, Value};
use crate::plan::{Action, Entry, PlanBuilder, TensorRef};
use crate::provenance::{Hashes, InputFile, Provenance};
use crate::{Checkpoint, DType, MaskFault, MergePlan, Progress, Result, TensorInfo};

/// The key of the metadata that says what a file of masks holds.
pub(crate) const RECORD: &str = "vlmerge.masks";

/// The record in a file of masks. The mask of task `i` for a tensor is the tensor `i.NAME`, one bit an element, the
/// first in the lowest bit of a byte.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskRecord {
    /// The models, by as much of their paths as tells them apart.
    pub tasks: Vec<String>,
    /// The factor of each task's elements.
    pub factors: Vec<f64>,
    /// The files of the base; empty if the recipe itself made the base, `None` in masks of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Vec<InputFile>>,
}

impl MaskRecord {
    /// The record of a file.
    ///
    /// # Errors
    /// [`MaskFault::NotMasks`].
    pub fn of(masks: &Checkpoint) -> Result<Self> {
        let record = masks.info().metadata.get(RECORD);
        let record = record.and_then(|text| serde_json::from_str::<Self>(text).ok());
        let is_sound = |record: &Self| {
            record.tasks.len() == record.factors.len()
                && record.factors.iter().all(|factor| factor.is_finite())
        };
        let not_masks = || MaskFault::NotMasks {
            path: masks.path().into(),
        };
        Ok(record.filter(is_sound).ok_or_else(not_masks)?)
    }

    /// The number of a task: by its name, by its name without an ending, or by the number itself, from 0.
    fn number(&self, task: &str) -> Result<usize> {
        let stem = |name: &str| {
            name.rsplit_once('.')
                .map_or_else(|| name.to_owned(), |(stem, _)| stem.to_owned())
        };
        let by = |is: &dyn Fn(&String) -> bool| {
            let mut found = (self.tasks.iter().enumerate()).filter(|(_, name)| is(name));
            match (found.next(), found.next()) {
                (Some((index, _)), None) => Some(index),
                _ => None,
            }
        };
        let number = task
            .parse()
            .ok()
            .filter(|&index: &usize| index < self.tasks.len());
        let found = by(&|name| name == task).or_else(|| by(&|name| stem(name) == task));
        Ok(found.or(number).ok_or_else(|| MaskFault::UnknownTask {
            task: task.to_owned(),
            known: self.tasks.clone(),
        })?)
    }
}

/// The parts that make a task's model.
pub struct Restore {
    /// The merged file.
    pub merged: Arc<Checkpoint>,
    /// The masks that were written with it.
    pub masks: Arc<Checkpoint>,
    /// The base of the merge.
    pub base: Arc<Checkpoint>,
    /// The task.
    pub task: String,
}

impl Restore {
    /// The plan of `base + factor · mask · (merged − base)`; tensors without a mask are those of the merged file.
    ///
    /// # Errors
    /// [`MaskFault`] for masks of another merge, another base, or a task that does not exist; when the base cannot be
    /// read, which is hashed; and as [`PlanBuilder::finish`].
    pub fn plan(
        &self,
        dtype: impl Fn(DType) -> DType,
        progress: &dyn Progress,
    ) -> Result<MergePlan> {
        let record = MaskRecord::of(&self.masks)?;
        let task = record.number(&self.task)?;
        let inputs = self.check_origin()?;
        let notes = self.check_base(&record, &inputs, progress)?;
        let name = &record.tasks[task];
        let mut plan = PlanBuilder::new(format!("vlmerge task --task {name}"));
        let merged = plan.source(Arc::clone(&self.merged));
        let base = plan.side_source(Arc::clone(&self.base));
        // Its masks are read by their operations; here its file becomes one of the plan's.
        plan.side_source(Arc::clone(&self.masks));
        let mut n_masks = 0;
        for (key, info) in self.merged.tensors() {
            let tensor = |source| TensorRef {
                source,
                key: key.to_owned(),
            };
            let mask = format!("{task}.{key}");
            let action = match self.masks.get(&mask) {
                None => Action::Copy(tensor(merged)),
                Some(found) => {
                    n_masks += 1;
                    if found.dtype != DType::U8 || found.shape != [info.n_elements().div_ceil(8)] {
                        return Err(MaskFault::NotMasks {
                            path: self.masks.path().into(),
                        }
                        .into());
                    }
                    Action::Survey {
                        members: vec![tensor(merged)],
                        base: Some(tensor(base)),
                        survey: Arc::new(OfTask {
                            masks: Arc::clone(&self.masks),
                            key: mask,
                            factor: record.factors[task],
                        }),
                        is_double: false,
                    }
                }
            };
            let why = match action {
                Action::Copy(_) => "no mask".to_owned(),
                _ => format!("the share of {name}"),
            };
            plan.add(Entry {
                name: key.to_owned(),
                info: TensorInfo {
                    dtype: dtype(info.dtype),
                    shape: info.shape.clone(),
                },
                action,
                why,
            })?;
        }
        let n_own = self.masks.tensors().filter(|(key, _)| {
            let prefix = key.split('.').next();
            prefix.is_some_and(|prefix| prefix.parse() == Ok(task))
        });
        if n_own.count() != n_masks {
            return Err(self.foreign());
        }
        let beside = Beside {
            notes,
            ..Beside::default()
        };
        plan.beside(beside).finish()
    }

    /// Whether the merged file and the masks are of one merge, by their records of it; the inputs of that merge.
    fn check_origin(&self) -> Result<Vec<InputFile>> {
        let of = |file: &Checkpoint| Provenance::from_metadata(&file.info().metadata);
        let (Some(merged), Some(masks)) = (of(&self.merged), of(&self.masks)) else {
            return Err(self.foreign());
        };
        // `--dtype` changes the merged file and not the masks.
        let without_dtype = |recipe: &str| -> Vec<String> {
            let lines = recipe.lines().filter(|line| !line.starts_with("out_dtype"));
            lines.map(str::to_owned).collect()
        };
        let is_same = without_dtype(&merged.recipe) == without_dtype(&masks.recipe)
            && merged.inputs.len() == masks.inputs.len()
            && (merged.inputs.iter().zip(&masks.inputs))
                .all(|(one, other)| one.name == other.name && !one.differs_from(other));
        if !is_same {
            return Err(self.foreign());
        }
        Ok(masks.inputs)
    }

    /// Whether the base is that of the merge, by the hashes of its files, or else by their sizes; a note where hashes do
    /// not tell.
    fn check_base(
        &self,
        record: &MaskRecord,
        inputs: &[InputFile],
        progress: &dyn Progress,
    ) -> Result<Vec<String>> {
        let path = self.base.path().display();
        let recorded: Vec<&InputFile> = match &record.base {
            Some(base) if base.is_empty() => {
                return Ok(vec![format!(
                    "{path}: the recipe itself made the base of the merge, so there is no record to compare this file with"
                )]);
            }
            Some(base) => base.iter().collect(),
            // Masks of earlier builds list all inputs alike; the models of tasks are known by name.
            None => (inputs.iter())
                .filter(|input| !record.tasks.iter().any(|task| is_of(input, task)))
                .collect(),
        };
        let files = &self.base.info().files;
        let mut own = Provenance::new(String::new(), files);
        let hash = recorded.iter().find_map(|input| input.hash());
        if let Some(hash) = hash {
            own = own.with_hashes(Hashes::default().of(files, hash.kind, progress)?);
        }
        let is_any = |file: &InputFile, wanted: Option<bool>| {
            let mut found = recorded.iter().map(|input| file.is_same_as(input));
            found.any(|found| found == wanted)
        };
        let is_other = |file: &InputFile| !is_any(file, Some(true)) && !is_any(file, None);
        let is_part = record.base.is_some() && own.inputs.len() != recorded.len();
        if is_part || own.inputs.iter().any(is_other) {
            return Err(MaskFault::OtherBase {
                base: self.base.path().into(),
                masks: self.masks.path().into(),
            }
            .into());
        }
        let is_known = own.inputs.iter().all(|file| is_any(file, Some(true)));
        Ok(match (is_known, &record.base) {
            (true, Some(_)) => Vec::new(),
            (true, None) => vec![format!(
                "{path}: an input of the merge; an earlier build wrote the masks and did not record which input was the base"
            )],
            (false, _) => vec![format!(
                "{path}: only its size was compared with that of the base, because the merge ran with --no-hash or one of the two is remote"
            )],
        })
    }

    fn foreign(&self) -> crate::Error {
        MaskFault::Foreign {
            masks: self.masks.path().into(),
            merged: self.merged.path().into(),
        }
        .into()
    }
}

/// Whether an input is the file of a task's model, or lies in its folder; of both as much of the path is known as tells
/// it from others.
fn is_of(input: &InputFile, task: &str) -> bool {
    let (input, task) = (Path::new(&input.name), Path::new(task));
    let mut folders = input
        .ancestors()
        .filter(|path| !path.as_os_str().is_empty());
    folders.any(|path| path.ends_with(task)) || task.ends_with(input)
}

/// Reads the mask of one tensor.
struct OfTask {
    masks: Arc<Checkpoint>,
    key: String,
    factor: f64,
}

impl Survey for OfTask {
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        let bits = self.masks.read_all(&self.key)?;
        // The plan has checked its size; a file that changes since is refused when it is read.
        debug_assert_eq!(bits.len(), data.n_elements().div_ceil(8));
        Ok(Arc::new(Masked {
            bits,
            factor: self.factor,
        }))
    }

    fn kept_bytes(&self, n_elements: usize) -> u64 {
        n_elements as u64 / 8
    }
}

struct Masked {
    bits: Vec<u8>,
    factor: f64,
}

impl Elementwise for Masked {
    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        _: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        each_element(chunk, |index, base, deltas| {
            let at = chunk.first + index;
            let byte = self.bits.get(at / 8).copied().unwrap_or(0);
            let change = match (byte >> (at % 8) & 1 == 1, deltas) {
                (true, &[delta]) => self.factor * delta,
                _ => 0.0,
            };
            out[index] = T::from_f64(base + change);
        });
    }
}

/// Bits of a mask, the first in the lowest bit of a byte.
pub(crate) fn packed(mask: &[bool]) -> Vec<u8> {
    let byte = |bits: &[bool]| {
        let bits = bits.iter().enumerate();
        bits.fold(0, |byte, (index, &bit)| byte | u8::from(bit) << index)
    };
    mask.chunks(8).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_elements_are_scaled_and_others_are_the_base() {
        let mask = [true, false, false, true, false, false, false, false, true];
        let kernel = Masked {
            bits: packed(&mask),
            factor: 2.0,
        };
        let (base, merged) = ([1.0f32; 9], [4.0f32; 9]);
        let chunk = Chunk {
            members: &[&merged],
            base: Some(&base),
            paired: &[],
            first: 0,
        };
        let mut out = [0.0; 9];
        kernel.combine(&chunk, |x| x, &mut out);
        assert_eq!(out, mask.map(|is_own| if is_own { 7.0 } else { 1.0 }));
    }

    #[test]
    fn tasks_go_by_name_stem_or_number() {
        let record = MaskRecord {
            tasks: ["cars.pt", "dtd.pt", "dtd.safetensors"]
                .map(str::to_owned)
                .to_vec(),
            factors: vec![1.0; 3],
            base: None,
        };
        let of = |task: &str| record.number(task).ok();
        assert_eq!(
            [of("cars"), of("dtd.pt"), of("2")],
            [Some(0), Some(1), Some(2)]
        );
        // Two are called so.
        assert_eq!([of("dtd"), of("3")], [None, None]);
    }
}
