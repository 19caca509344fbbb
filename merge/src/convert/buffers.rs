//! Index buffers with the values that a loader would give them.

use ndarray::{ArrayD, IxDyn};

use crate::Result;
use crate::layouts::Buffer;
use crate::methods::{GroupData, WholeKernel};
use crate::plan::{Action, Entry};

/// An entry for a rebuilt buffer.
pub(crate) fn entry(name: String, buffer: Buffer) -> Entry {
    Entry {
        name,
        info: buffer.info.clone(),
        action: Action::Whole {
            members: Vec::new(),
            base: None,
            grams: Vec::new(),
            kernel: std::sync::Arc::new(Rebuilt(buffer)),
        },
        why: "index buffer, rebuilt from the sizes".to_owned(),
    }
}

struct Rebuilt(Buffer);

impl WholeKernel for Rebuilt {
    fn merge(&self, _: &dyn GroupData) -> Result<ArrayD<f64>> {
        let Buffer { info, values } = &self.0;
        let values = values.iter().map(|&value| value as f64).collect();
        Ok(ArrayD::from_shape_vec(IxDyn(&info.shape), values)
            .expect("a buffer has a value for each place of its shape"))
    }

    fn peak_bytes(&self, _: &[usize], _: usize) -> u64 {
        16 * self.0.values.len() as u64
    }
}
