//! Passes over tensors in bounded memory: fixed runs of elements, on all cores, in a fixed order.
//!
//! The runs depend on the tensors only, never on the number of threads, and results come back in
//! the order of the runs. Sums over them are therefore the same on every machine.

use rayon::prelude::*;

use crate::{Checkpoint, DType, Error, Progress, Result, TensorSource, decode_f64};

/// Elements of a run: large enough that a read costs little beside its bytes, small enough that
/// the `f64` copies of two tensors stay in a core's cache.
pub(crate) const RUN_ELEMENTS: usize = 32 * 1024;

/// Elements `first..first + len` of one of the tensors of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The number of the tensor, in the caller's order.
    pub(crate) item: usize,
    /// The first element, row-major.
    pub(crate) first: usize,
    /// The number of elements.
    pub(crate) len: usize,
}

/// Cuts tensors of these sizes into runs of at most `run_elements`. Empty tensors have none.
pub(crate) fn cut(sizes: impl IntoIterator<Item = usize>, run_elements: usize) -> Vec<Span> {
    let mut spans = Vec::new();
    for (item, size) in sizes.into_iter().enumerate() {
        for first in (0..size).step_by(run_elements) {
            let len = run_elements.min(size - first);
            spans.push(Span { item, first, len });
        }
    }
    spans
}

/// Applies `body` to every run on all cores, each thread with a state of its own, and returns the
/// results in the order of the runs.
pub(crate) fn map<State, T: Send>(
    spans: &[Span],
    progress: &dyn Progress,
    state: impl Fn() -> State + Sync + Send,
    body: impl Fn(&mut State, Span) -> Result<T> + Sync + Send,
) -> Result<Vec<T>> {
    spans
        .par_iter()
        .map_init(state, |state, &span| {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            body(state, span)
        })
        .collect()
}

/// Room for one run of a tensor, as stored and in `f64`.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) bytes: Vec<u8>,
    pub(crate) values: Vec<f64>,
    n_elements: usize,
}

impl Run {
    /// Reads `len` elements of tensor `index`, undecoded.
    pub(crate) fn read(
        &mut self,
        source: &dyn TensorSource,
        index: usize,
        first: usize,
        len: usize,
    ) -> Result<()> {
        let dtype = source.tensors()[index].info.dtype;
        self.bytes.resize(dtype.bytes_of(len), 0);
        self.n_elements = len;
        source.read(index, first, &mut self.bytes)
    }

    /// Reads the elements of `span` of the tensor `key`, undecoded.
    pub(crate) fn read_named(
        &mut self,
        checkpoint: &Checkpoint,
        key: &str,
        dtype: DType,
        span: Span,
    ) -> Result<()> {
        self.bytes.resize(dtype.bytes_of(span.len), 0);
        self.n_elements = span.len;
        checkpoint.read(key, span.first, &mut self.bytes)
    }

    /// Decodes the bytes read; booleans become 0 and 1, complex numbers their absolute values.
    pub(crate) fn decode(&mut self, key: &str, dtype: DType) -> Result<&mut [f64]> {
        if dtype == DType::C64 {
            self.values = moduli(&self.bytes);
            return Ok(&mut self.values);
        }
        // A boolean is stored as a byte.
        let dtype = match dtype {
            DType::Bool => DType::U8,
            dtype => dtype,
        };
        self.values.resize(self.n_elements, 0.0);
        decode_f64(key, dtype, &self.bytes, &mut self.values)?;
        Ok(&mut self.values)
    }
}

/// Absolute values of complex numbers.
pub(crate) fn moduli(bytes: &[u8]) -> Vec<f64> {
    let (numbers, _) = bytes.as_chunks::<8>();
    numbers
        .iter()
        .map(|&bytes| modulus(complex(bytes)))
        .collect()
}

/// Real and imaginary part.
pub(crate) fn complex([a, b, c, d, e, f, g, h]: [u8; 8]) -> [f64; 2] {
    [[a, b, c, d], [e, f, g, h]].map(|part| f64::from(f32::from_le_bytes(part)))
}

/// The absolute value of a complex number; not a number if a part is none.
pub(crate) fn modulus([real, imaginary]: [f64; 2]) -> f64 {
    match real.is_nan() || imaginary.is_nan() {
        true => f64::NAN,
        false => real.hypot(imaginary),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_every_element_once_and_skip_empty_tensors() {
        let span = |item, first, len| Span { item, first, len };
        assert_eq!(
            cut([5, 0, 1, 4], 2),
            [
                span(0, 0, 2),
                span(0, 2, 2),
                span(0, 4, 1),
                span(2, 0, 1),
                span(3, 0, 2),
                span(3, 2, 2)
            ]
        );
    }
}
