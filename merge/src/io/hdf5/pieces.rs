//! Datasets in pieces, compressed or not, read as if their elements were one after the other.

use std::io;

use hdf5_reader::error::{Error, Result};
use hdf5_reader::{Dataset, Datatype, H5Type, SliceInfo, SliceInfoElem};

use crate::io::read_at::ReadAt;

/// Bytes of elements that are asked for at once.
const N_BYTES: usize = 1 << 20;

/// A dataset whose elements have 1, 2, 4 or 8 bytes.
pub(super) struct Pieces {
    dataset: Dataset,
    shape: Vec<usize>,
    size: usize,
}

impl Pieces {
    pub(super) const fn new(dataset: Dataset, shape: Vec<usize>, size: usize) -> Self {
        Self {
            dataset,
            shape,
            size,
        }
    }

    fn read<const N: usize>(&self, at: SliceInfo, out: &mut [u8]) -> io::Result<()> {
        let found = self.dataset.read_slice::<Stored<N>>(&at);
        let found = found.map_err(io::Error::other)?;
        if found.len() * N != out.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (Stored(bytes), out) in found.iter().zip(out.chunks_exact_mut(N)) {
            out.copy_from_slice(bytes);
        }
        Ok(())
    }
}

impl ReadAt for Pieces {
    fn n_bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.size) as u64
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let (mut at, mut rest) = (offset as usize / self.size, out);
        while !rest.is_empty() {
            let n = rest.len().min(N_BYTES) / self.size;
            let (axes, taken) = next_box(&self.shape, at, n);
            let selections = axes
                .into_iter()
                .map(|[start, end]| SliceInfoElem::Slice {
                    start: start as u64,
                    end: end as u64,
                    step: 1,
                })
                .collect();
            let (part, after) = rest.split_at_mut(taken * self.size);
            let wanted = SliceInfo { selections };
            match self.size {
                1 => self.read::<1>(wanted, part)?,
                2 => self.read::<2>(wanted, part)?,
                4 => self.read::<4>(wanted, part)?,
                _ => self.read::<8>(wanted, part)?,
            }
            (at, rest) = (at + taken, after);
        }
        Ok(())
    }
}

/// The largest box of whole inner axes that begins at element `at` and has at most `n` elements: start and end along each
/// axis, and its number of elements.
fn next_box(shape: &[usize], at: usize, n: usize) -> (Vec<[usize; 2]>, usize) {
    let (mut inner, mut position, mut taken) = (1, at, None);
    let mut axes: Vec<[usize; 2]> = Vec::with_capacity(shape.len());
    for &size in shape.iter().rev() {
        let here = position % size;
        position /= size;
        axes.push(match taken {
            Some(_) => [here, here + 1],
            None if here == 0 && inner * size <= n => [0, size],
            None => {
                let some = (size - here).min((n / inner).max(1));
                taken = Some(some * inner);
                [here, here + some]
            }
        });
        inner *= size;
    }
    axes.reverse();
    (axes, taken.unwrap_or(inner))
}

/// The bytes of an element as they are stored.
#[derive(Clone)]
struct Stored<const N: usize>([u8; N]);

impl<const N: usize> H5Type for Stored<N> {
    fn hdf5_type() -> Datatype {
        Datatype::Opaque {
            size: N as u32,
            tag: String::new(),
        }
    }

    fn from_bytes(bytes: &[u8], _: &Datatype) -> Result<Self> {
        let own = bytes.get(..N).and_then(|own| own.try_into().ok());
        own.map(Self)
            .ok_or_else(|| Error::InvalidData(format!("{} bytes are no element", bytes.len())))
    }

    fn element_size(_: &Datatype) -> usize {
        N
    }
}

#[cfg(test)]
mod tests {
    use super::next_box;

    #[test]
    fn boxes_follow_each_other_and_leave_nothing_out() {
        let shape = [3, 4, 5];
        for n in [1, 2, 5, 7, 20, 60] {
            let mut at = 0;
            while at < 60 {
                let (axes, taken) = next_box(&shape, at, n.min(60 - at));
                let first = axes
                    .iter()
                    .zip(shape)
                    .fold(0, |sum, ([start, _], size)| sum * size + start);
                let product: usize = axes.iter().map(|[start, end]| end - start).product();
                assert_eq!((first, product), (at, taken), "{n}");
                assert!((1..=n).contains(&taken), "{taken} of {n}");
                at += taken;
            }
            assert_eq!(at, 60);
        }
        assert_eq!(next_box(&shape, 0, 60), (vec![[0, 3], [0, 4], [0, 5]], 60));
        assert_eq!(next_box(&shape, 23, 60), (vec![[1, 2], [0, 1], [3, 5]], 2));
    }
}
