//! Whole-tensor operations: arrays read on request, so that only a few are in memory at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use ndarray::{Array2, ArrayD, IxDyn};

use super::finite;
use crate::methods::{GramRef, GroupData};
use crate::plan::{Action, Entry, TensorRef};
use crate::{DType, Error, MergeFault, MergePlan, Result, decode_f64};

/// The merged tensor of an entry whose action is [`Action::Whole`]. Inputs that are not numbers are refused
/// if `is_checked`.
pub(super) fn merge(plan: &MergePlan, entry: &Entry, is_checked: bool) -> Result<ArrayD<f64>> {
    let Action::Whole {
        members,
        base,
        grams,
        kernel,
    } = &entry.action
    else {
        unreachable!("only whole-tensor entries come here");
    };
    let data = Data {
        plan,
        members,
        base: base.as_ref(),
        grams,
        name: &entry.name,
        is_checked,
    };
    let merged = kernel.merge(&data)?;
    if merged.len() != entry.info.n_elements() {
        return Err(MergeFault::ResultShape {
            slot: entry.name.clone(),
            found: merged.shape().to_vec(),
            expected: entry.info.shape.clone(),
        }
        .into());
    }
    Ok(merged)
}

/// Does the work of each entry, several at a time as the plan says, until one fails. Their threads are no workers of the
/// pool: one that waits for its own products never begins another entry, so that arrays stay few.
pub(super) fn each<T: Sync>(
    plan: &MergePlan,
    entries: &[T],
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    // A worker of the pool that waited here for others would be missing to them.
    let n_threads = match rayon::current_thread_index() {
        Some(_) => 1,
        None => plan.n_whole_at_once(rayon::current_num_threads()),
    };
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(entry).inspect_err(|_| next.store(entries.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..n_threads.min(entries.len()))
            .map(|_| scope.spawn(run))
            .collect();
        let own = run();
        // A panic of another thread is a bug and goes on as one.
        let others = others.into_iter().map(|other| {
            other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        others.fold(own, Result::and)
    })
}

/// The arrays of one group.
pub(super) struct Data<'a> {
    pub(super) plan: &'a MergePlan,
    pub(super) members: &'a [TensorRef],
    pub(super) base: Option<&'a TensorRef>,
    pub(super) grams: &'a [Option<GramRef>],
    pub(super) name: &'a str,
    pub(super) is_checked: bool,
}

impl GroupData for Data<'_> {
    fn member(&self, index: usize) -> Result<ArrayD<f64>> {
        self.array(&self.members[index])
    }

    fn base(&self) -> Result<ArrayD<f64>> {
        let missing = || Error::MethodNeeds {
            method: "this method",
            what: "a base_model",
        };
        self.array(self.base.ok_or_else(missing)?)
    }

    fn gram(&self, index: usize) -> Result<Array2<f64>> {
        match self.grams.get(index) {
            Some(Some(gram)) => self.plan.grams()[gram.store].read_symmetric(&gram.key),
            _ => Err(Error::MethodNeeds {
                method: "this method",
                what: "gram matrices",
            }),
        }
    }
}

impl Data<'_> {
    fn array(&self, tensor: &TensorRef) -> Result<ArrayD<f64>> {
        let source = &self.plan.sources()[tensor.source];
        let info = source.require(&tensor.key)?;
        let mut values = vec![0.0; info.n_elements()];
        let check = |bytes: &[u8]| match self.is_checked {
            true => finite::check(self.plan, tensor, info.dtype, 0, bytes),
            false => Ok(()),
        };
        if info.dtype == DType::F64 {
            source.read(&tensor.key, 0, bytemuck::cast_slice_mut(&mut values))?;
            check(bytemuck::cast_slice(&values))?;
        } else {
            let bytes = source.read_all(&tensor.key)?;
            check(&bytes)?;
            decode_f64(&tensor.key, info.dtype, &bytes, &mut values)?;
        }
        // One element per place of the shape, by the line above.
        ArrayD::from_shape_vec(IxDyn(&info.shape), values).map_err(|_| Error::ShapeMismatch {
            slot: self.name.to_owned(),
            key: tensor.key.clone(),
            found: info.shape.clone(),
            expected: info.shape.clone(),
        })
    }
}
