//! Reading any range of a strided tensor in row-major order.
//!
//! The range is cut into boxes of whole axes. Within a box the storage is walked from its first
//! to its last byte, whatever the order of the axes, through a window of bounded size.

use std::cmp::Reverse;
use std::io;

use crate::io::read_at::ReadAt;

/// Bytes of storage held at once.
const WINDOW_BYTES: usize = 256 << 10;

/// Read ahead if at least one in this many bytes of the span is wanted.
const DENSE: u64 = 8;

/// An axis: how many elements, and how many elements apart in storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Axis {
    size: u64,
    stride: u64,
}

/// Where the elements of a tensor lie in its storage, in elements.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Strided {
    offset: u64,
    /// Outermost first; neighbors that together are one axis are joined, and none has size 1.
    axes: Vec<Axis>,
}

impl Strided {
    /// Takes sizes and strides of equal number whose product of sizes fits 63 bits.
    pub(crate) fn new(offset: u64, sizes: &[usize], strides: &[u64]) -> Self {
        let mut axes: Vec<Axis> = Vec::new();
        for (&size, &stride) in sizes.iter().zip(strides) {
            let size = size as u64;
            match axes.last_mut() {
                _ if size == 1 => {}
                Some(outer) if stride.checked_mul(size) == Some(outer.stride) => {
                    *outer = Axis {
                        size: outer.size * size,
                        stride,
                    };
                }
                _ => axes.push(Axis { size, stride }),
            }
        }
        Self { offset, axes }
    }

    /// One after the last element of the storage that is touched; `None` when that overflows.
    /// An empty tensor touches none.
    pub(crate) fn end(&self) -> Option<u64> {
        if self.axes.iter().any(|axis| axis.size == 0) {
            return Some(0);
        }
        self.axes
            .iter()
            .try_fold(self.offset.checked_add(1)?, |end, axis| {
                end.checked_add((axis.size - 1).checked_mul(axis.stride)?)
            })
    }

    /// First element in storage, if the elements lie there one after the other.
    pub(crate) fn contiguous(&self) -> Option<u64> {
        match self.axes[..] {
            [] | [Axis { stride: 1, .. }] => Some(self.offset),
            _ => None,
        }
    }

    /// Reads elements `first..` until `out` is full. `base` is where the storage begins in the
    /// source and `n_bytes` its size.
    pub(crate) fn read(
        &self,
        storage: Span<'_>,
        element_bytes: usize,
        first: u64,
        out: &mut [u8],
    ) -> io::Result<()> {
        let mut window = Window {
            storage,
            start: 0,
            bytes: Vec::new(),
        };
        let mut at = first;
        let mut rest = out;
        while !rest.is_empty() {
            let n = (rest.len() / element_bytes) as u64;
            let (offset, axes) = self.next_box(at, n);
            let taken: u64 = axes.iter().map(|axis| axis.size).product();
            let (part, remaining) = rest.split_at_mut(taken as usize * element_bytes);
            read_box(&mut window, element_bytes, offset, &axes, part)?;
            rest = remaining;
            at += taken;
        }
        Ok(())
    }

    /// The largest box of whole inner axes that begins at row-major position `at` and has at most
    /// `n` elements: its offset in storage and its axes.
    fn next_box(&self, at: u64, n: u64) -> (u64, Vec<Axis>) {
        let mut inner = 1;
        let mut position = at;
        let mut offset = self.offset;
        let mut taken: Option<Vec<Axis>> = None;

        for (index, axis) in self.axes.iter().enumerate().rev() {
            let here = position % axis.size;
            offset += here * axis.stride;
            position /= axis.size;
            if taken.is_none() && (here != 0 || inner * axis.size > n) {
                // Only a part of this axis, and all of those within.
                let size = (axis.size - here).min(n / inner);
                let mut axes = vec![Axis { size, ..*axis }];
                axes.extend(&self.axes[index + 1..]);
                taken = Some(axes);
            }
            inner = inner.saturating_mul(axis.size);
        }

        (offset, taken.unwrap_or_else(|| self.axes.clone()))
    }
}

/// The bytes of a storage within a source.
#[derive(Clone, Copy)]
pub(crate) struct Span<'a> {
    pub(crate) source: &'a dyn ReadAt,
    pub(crate) start: u64,
    pub(crate) n_bytes: u64,
}

/// A part of the storage held in memory.
struct Window<'a> {
    storage: Span<'a>,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// Bytes `at..at + n` of the storage; if they are not at hand, `ahead` bytes are read.
    fn get(&mut self, at: u64, n: usize, ahead: usize) -> io::Result<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        if at < self.start || at + n as u64 > end {
            let left = self.storage.n_bytes - at;
            let n_read = (n.max(ahead) as u64).min(left) as usize;
            self.bytes.resize(n_read, 0);
            self.start = at;
            let position = self.storage.start + at;
            let whole = self.storage.start..self.storage.start + self.storage.n_bytes;
            let read = (self.storage.source).read_part(&mut self.bytes, position, whole);
            if read.is_err() {
                self.bytes.clear();
            }
            read?;
        }
        let start = (at - self.start) as usize;
        Ok(&self.bytes[start..start + n])
    }
}

/// An axis of a box, with its distance in storage and in the output, in elements.
#[derive(Clone, Copy)]
struct BoxAxis {
    size: u64,
    stride: u64,
    out_stride: u64,
}

fn read_box(
    window: &mut Window<'_>,
    element_bytes: usize,
    offset: u64,
    axes: &[Axis],
    out: &mut [u8],
) -> io::Result<()> {
    let mut out_stride = 1;
    let mut axes: Vec<BoxAxis> = (axes.iter().rev())
        .map(|axis| {
            let this = BoxAxis {
                size: axis.size,
                stride: axis.stride,
                out_stride,
            };
            out_stride *= axis.size;
            this
        })
        .filter(|axis| axis.size > 1)
        .collect();
    // Widest strides outermost: the storage is then passed from front to back.
    axes.sort_by_key(|axis| Reverse(axis.stride));
    let n_wanted: u64 = (axes.iter().filter(|axis| axis.stride > 0))
        .map(|axis| axis.size)
        .product();
    let span: u64 = 1 + axes
        .iter()
        .map(|axis| (axis.size - 1) * axis.stride)
        .sum::<u64>();
    let ahead = match span <= n_wanted.saturating_mul(DENSE) {
        true => WINDOW_BYTES,
        false => 0,
    };
    let inner = axes.pop().unwrap_or(BoxAxis {
        size: 1,
        stride: 1,
        out_stride: 1,
    });
    let mut index = vec![0u64; axes.len()];
    let (mut from, mut to) = (offset, 0u64);
    loop {
        read_line(window, element_bytes, from, inner, ahead, to, out)?;
        // The next position of the outer axes, as an odometer turns.
        let mut turned = false;
        for (axis, count) in axes.iter().zip(&mut index).rev() {
            *count += 1;
            from += axis.stride;
            to += axis.out_stride;
            if *count < axis.size {
                turned = true;
                break;
            }
            from -= axis.stride * axis.size;
            to -= axis.out_stride * axis.size;
            *count = 0;
        }
        if !turned {
            return Ok(());
        }
    }
}

/// Copies one line of elements along `axis`, from element `from` to output element `to`.
fn read_line(
    window: &mut Window<'_>,
    element_bytes: usize,
    from: u64,
    axis: BoxAxis,
    ahead: usize,
    to: u64,
    out: &mut [u8],
) -> io::Result<()> {
    let width = element_bytes as u64;
    // Elements whose span fits the window; at least one.
    let piece = match axis.stride {
        0 => axis.size,
        stride => 1 + (WINDOW_BYTES as u64 / width - 1) / stride,
    };
    let is_sparse = axis.stride > DENSE;
    let piece = if is_sparse && ahead == 0 { 1 } else { piece };
    let mut done = 0;
    while done < axis.size {
        let n = piece.min(axis.size - done);
        let n_bytes = ((n - 1) * axis.stride + 1) * width;
        let at = (from + done * axis.stride) * width;
        let bytes = window.get(at, n_bytes as usize, ahead)?;
        let out_at = ((to + done * axis.out_stride) * width) as usize;
        let steps = [axis.stride, axis.out_stride].map(|stride| (stride * width) as usize);
        scatter(bytes, &mut out[out_at..], n as usize, element_bytes, steps);
        done += n;
    }
    Ok(())
}

/// Copies `n` elements that stand `steps` bytes apart in source and target.
fn scatter(from: &[u8], to: &mut [u8], n: usize, element_bytes: usize, steps: [usize; 2]) {
    if steps == [element_bytes; 2] {
        to[..n * element_bytes].copy_from_slice(&from[..n * element_bytes]);
        return;
    }
    match element_bytes {
        1 => scatter_sized::<1>(from, to, n, steps),
        2 => scatter_sized::<2>(from, to, n, steps),
        4 => scatter_sized::<4>(from, to, n, steps),
        _ => scatter_sized::<8>(from, to, n, steps),
    }
}

fn scatter_sized<const N: usize>(from: &[u8], to: &mut [u8], n: usize, steps: [usize; 2]) {
    let (mut source, mut target) = (0, 0);
    for _ in 0..n {
        to[target..target + N].copy_from_slice(&from[source..source + N]);
        source += steps[0];
        target += steps[1];
    }
}
