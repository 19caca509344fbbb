//! Memory of numbers that goes back to the system with its last owner.

use memmap2::MmapMut;

/// The fewest numbers that have pages of their own: 1 MiB.
const LARGE: usize = 1 << 18;

/// Numbers on the heap, or, when they are many, on pages of their own. A heap that large vectors come from and return to in
/// another order keeps gaps between them, which count as memory of the program.
#[derive(Debug)]
pub(super) enum Numbers {
    Heap(Vec<f32>),
    Pages(MmapMut),
}

impl Numbers {
    /// `n` zeros.
    pub(super) fn zeros(n: usize) -> Self {
        let pages = (n >= LARGE).then(|| MmapMut::map_anon(n * size_of::<f32>()));
        match pages {
            Some(Ok(pages)) => Self::Pages(pages),
            // The heap reports the fault where the system has no pages.
            Some(Err(_)) | None => Self::Heap(vec![0.0; n]),
        }
    }

    pub(super) fn values(&self) -> &[f32] {
        match self {
            Self::Heap(values) => values,
            Self::Pages(pages) => bytemuck::cast_slice(pages),
        }
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Heap(values) => values,
            Self::Pages(pages) => bytemuck::cast_slice_mut(pages),
        }
    }

    /// The number of elements.
    pub(super) fn len(&self) -> usize {
        self.values().len()
    }
}

impl Default for Numbers {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_numbers_begin_as_zeros_and_keep_what_is_written() {
        for n in [0, 1, LARGE - 1, LARGE, LARGE + 1] {
            let mut numbers = Numbers::zeros(n);
            assert_eq!(matches!(numbers, Numbers::Pages(_)), n >= LARGE);
            assert_eq!(numbers.len(), n);
            assert!(numbers.values().iter().all(|&value| value == 0.0));
            if let Some(last) = numbers.values_mut().last_mut() {
                *last = 2.5;
                assert_eq!(numbers.values()[n - 1], 2.5);
            }
        }
    }
}
