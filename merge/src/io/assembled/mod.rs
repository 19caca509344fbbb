//! One model whose tensors lie in pieces over several files, as trainers on many devices leave them.

mod holder;
mod packed;

use std::collections::BTreeSet;
use std::ops::Range;

pub(crate) use holder::Holder;
use packed::Packed;

use super::{Aliases, SourceInfo, TensorEntry, TensorSource};
use crate::{AssemblyFault, DType, Result};

/// The most bytes of a source that one read takes where rows of it lie apart in the tensor.
const READ_BYTES: usize = 1 << 20;

/// The most pieces of a tensor, so that no file makes comparing them take long.
const MAX_PIECES: usize = 1 << 16;

/// A box of elements: where it begins and how many it has, per axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The shape that the box lies in.
    pub(crate) within: Vec<usize>,
    /// The index of its first element.
    pub(crate) start: Vec<usize>,
}

impl Block {
    /// The whole of a shape.
    pub(crate) fn whole(shape: &[usize]) -> Self {
        Self {
            within: shape.to_vec(),
            start: vec![0; shape.len()],
        }
    }

    /// The place of an element of the box in row-major order. `at` is its index within the box.
    fn place(&self, at: &[usize]) -> usize {
        let axes = self.within.iter().zip(&self.start).zip(at);
        axes.fold(0, |place, ((size, start), at)| place * size + start + at)
    }

    /// Whether a box of `size` stays within its shape.
    fn holds(&self, size: &[usize]) -> bool {
        self.within.len() == size.len()
            && self.start.len() == size.len()
            && (self.within.iter().zip(&self.start).zip(size)).all(|((within, start), size)| {
                start.checked_add(*size).is_some_and(|end| end <= *within)
            })
    }
}

/// A part of a tensor, and where a file holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// How many elements per axis; never zero.
    pub(crate) size: Vec<usize>,
    /// Where it goes. All pieces of a tensor lie within one shape, which may be another than the tensor's if the
    /// number of elements is the same, such as one axis for a tensor that was flattened.
    pub(crate) to: Block,
    /// Who holds it, by the number among [`Assembled`]'s holders.
    pub(crate) source: usize,
    /// The tensor of the holder.
    pub(crate) tensor: usize,
    /// Where it is in that tensor, of which the shape may differ likewise.
    pub(crate) from: Block,
}

impl Piece {
    /// The whole of a tensor of a file, which goes to `start` of a tensor of the shape `within`.
    pub(crate) fn whole(
        source: usize,
        tensor: usize,
        size: &[usize],
        within: &[usize],
        start: &[usize],
    ) -> Self {
        Self {
            size: size.to_vec(),
            to: Block {
                within: within.to_vec(),
                start: start.to_vec(),
            },
            source,
            tensor,
            from: Block::whole(size),
        }
    }

    /// Elements of a flat tensor of a file, which are elements of a tensor in row-major order. `to` and `from` are how
    /// many elements that tensor and the file's have, and the first of the piece.
    pub(crate) fn flat(
        source: usize,
        tensor: usize,
        n_elements: usize,
        to: (usize, usize),
        from: (usize, usize),
    ) -> Self {
        let block = |(within, start)| Block {
            within: vec![within],
            start: vec![start],
        };
        Self {
            size: vec![n_elements],
            to: block(to),
            source,
            tensor,
            from: block(from),
        }
    }

    /// The axis that a run of elements goes along: those behind it are whole on both sides, so that a run is without
    /// gaps on both.
    fn run_axis(&self) -> usize {
        let is_whole = |axis: &usize| {
            self.size[*axis] == self.to.within[*axis] && self.size[*axis] == self.from.within[*axis]
        };
        let n_whole = (0..self.size.len()).rev().take_while(is_whole).count();
        (self.size.len() - n_whole).saturating_sub(1)
    }

    fn n_elements(&self) -> usize {
        self.size.iter().product()
    }

    /// Runs of the piece, numbered in row-major order.
    fn runs(&self) -> Runs<'_> {
        let axis = self.run_axis();
        Runs {
            piece: self,
            outer: &self.size[..axis.min(self.size.len())],
            length: self.size[axis.min(self.size.len())..].iter().product(),
        }
    }
}

/// The runs of a piece: elements that lie side by side both in the tensor and in the file.
struct Runs<'a> {
    piece: &'a Piece,
    /// Sizes of the axes that runs are counted along.
    outer: &'a [usize],
    length: usize,
}

impl Runs<'_> {
    fn n(&self) -> usize {
        self.outer.iter().product()
    }

    /// The first element of run `number` in the tensor, and in the file's.
    fn places(&self, mut number: usize) -> (usize, usize) {
        let mut at = vec![0; self.piece.size.len()];
        for (at, size) in at.iter_mut().zip(self.outer).rev() {
            *at = number % size;
            number /= size;
        }
        (self.piece.to.place(&at), self.piece.from.place(&at))
    }

    /// The first run that ends behind element `first` of the tensor.
    fn first_behind(&self, first: usize) -> usize {
        let (mut low, mut high) = (0, self.n());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.places(middle).0 + self.length <= first {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }
}

/// A tensor in pieces.
pub(crate) struct InPieces {
    /// Its name, shape and dtype.
    pub(crate) entry: TensorEntry,
    /// Its pieces, in any order.
    pub(crate) pieces: Vec<Piece>,
}

/// Tensors that are put together from pieces of several files as they are read.
pub(crate) struct Assembled<H> {
    info: SourceInfo,
    entries: Vec<TensorEntry>,
    pieces: Vec<Packed>,
    holders: Vec<H>,
    aliases: Aliases,
}

impl<H: Holder> Assembled<H> {
    /// Checks that the pieces of every tensor fill it, each element once, and stay within what the files hold. Pieces of a
    /// tensor are packed before those of the next are asked for.
    ///
    /// # Errors
    /// [`AssemblyFault`], which names the tensor and the file.
    pub(crate) fn new(
        info: SourceInfo,
        tensors: impl IntoIterator<Item = Result<InPieces>>,
        holders: Vec<H>,
        aliases: Aliases,
    ) -> Result<Self> {
        let (mut entries, mut pieces) = (Vec::new(), Vec::new());
        for tensor in tensors {
            let mut tensor = tensor?;
            check(&info, &mut tensor, &holders)?;
            entries.push(tensor.entry);
            pieces.push(Packed::new(&tensor.pieces));
        }
        Ok(Self {
            info,
            entries,
            pieces,
            holders,
            aliases,
        })
    }
}

/// Holds the pieces of a tensor against it and against the files, and brings them into the order of their places.
fn check(info: &SourceInfo, tensor: &mut InPieces, holders: &[impl Holder]) -> Result<()> {
    let InPieces { entry, pieces } = tensor;
    let key = || entry.name.clone().unwrap_or_else(|| entry.path.to_string());
    let path = || info.path.clone();
    let n_elements = entry.info.n_elements();
    let mut n_given = 0usize;
    for piece in pieces.iter() {
        let file = || holders[piece.source].path(piece);
        let (dtype, n_held) = holders[piece.source].held(piece);
        if dtype != entry.info.dtype {
            return Err(AssemblyFault::OtherDtype {
                path: file(),
                key: key(),
                dtype,
                wanted: entry.info.dtype,
            }
            .into());
        }
        let n_within = |block: &Block| {
            let mut axes = block.within.iter();
            axes.try_fold(1usize, |n, size| n.checked_mul(*size))
        };
        let fits = piece.to.holds(&piece.size)
            && piece.from.holds(&piece.size)
            && n_within(&piece.to) == Some(n_elements)
            && n_within(&piece.from) == Some(n_held)
            && piece.to.within == pieces[0].to.within;
        if !fits {
            return Err(AssemblyFault::Outside {
                path: file(),
                key: key(),
                size: piece.size.as_slice().into(),
                start: piece.to.start.as_slice().into(),
                shape: entry.info.shape.as_slice().into(),
            }
            .into());
        }
        n_given = n_given.saturating_add(piece.n_elements());
    }
    pieces.retain(|piece| piece.n_elements() > 0);
    if pieces.len() > MAX_PIECES {
        return Err(AssemblyFault::TooManyPieces {
            path: path(),
            key: key(),
            n_pieces: pieces.len(),
            limit: MAX_PIECES,
        }
        .into());
    }
    pieces.sort_by_cached_key(|piece| piece.to.start.clone());
    if let Some((one, other)) = overlap(pieces) {
        return Err(AssemblyFault::Overlap {
            path: path(),
            key: key(),
            files: [one, other].map(|piece| holders[piece.source].path(piece)),
        }
        .into());
    }
    // Boxes that do not overlap fill the tensor if their elements are as many as it has.
    match n_given == n_elements {
        true => Ok(()),
        false => Err(AssemblyFault::Incomplete {
            path: path(),
            key: key(),
            n_given,
            n_elements,
        }
        .into()),
    }
}

/// Two pieces that have an element in common.
fn overlap(pieces: &[Piece]) -> Option<(&Piece, &Piece)> {
    let [first, second, ..] = pieces else {
        return None;
    };
    // Along the axis with the most cuts, few pieces lie side by side.
    let n_starts = |axis: &usize| {
        let starts = pieces.iter().map(|piece| piece.to.start[*axis]);
        starts.collect::<BTreeSet<_>>().len()
    };
    let Some(axis) = (0..first.size.len()).max_by_key(n_starts) else {
        // A scalar: one piece is all of it.
        return Some((first, second));
    };
    let mut in_order: Vec<&Piece> = pieces.iter().collect();
    in_order.sort_by_key(|piece| piece.to.start[axis]);
    in_order.iter().enumerate().find_map(|(position, one)| {
        let end = one.to.start[axis] + one.size[axis];
        let meets = |other: &&&Piece| {
            let axes = one.to.start.iter().zip(&one.size);
            axes.zip(other.to.start.iter().zip(&other.size))
                .all(|((a, n), (b, m))| *a < b + m && *b < a + n)
        };
        let mut beside =
            (in_order[position + 1..].iter()).take_while(|other| other.to.start[axis] < end);
        beside.find(meets).map(|other| (*one, *other))
    })
}

impl<H: Holder> TensorSource for Assembled<H> {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn aliases(&self) -> Aliases {
        self.aliases.clone()
    }

    fn stored_dtype(&self, index: usize) -> DType {
        match self.pieces[index].iter().next() {
            None => self.entries[index].info.dtype,
            Some(piece) => self.holders[piece.source].stored_dtype(&piece),
        }
    }

    fn is_computed(&self, index: usize) -> bool {
        let mut pieces = self.pieces[index].iter();
        pieces.any(|piece| self.holders[piece.source].is_computed(&piece))
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let width = self.entries[index].info.dtype.size_bytes();
        let wanted = first..first + out.len() / width;
        for piece in self.pieces[index].iter() {
            self.read_piece(&piece, &wanted, width, out)?;
        }
        Ok(())
    }
}

/// Elements that one read takes from a file, and the places in `out` that they go to.
#[derive(Default)]
struct Pending {
    from: Range<usize>,
    /// Each part: its first element in the read, its first element in `out`, and its length.
    parts: Vec<(usize, usize, usize)>,
}

impl<H: Holder> Assembled<H> {
    /// Puts into `out`, which holds the elements `wanted` of a tensor, what of them is in `piece`.
    fn read_piece(
        &self,
        piece: &Piece,
        wanted: &Range<usize>,
        width: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let runs = piece.runs();
        let mut pending = Pending::default();
        for number in runs.first_behind(wanted.start)..runs.n() {
            let (to, from) = runs.places(number);
            if to >= wanted.end {
                break;
            }
            let skipped = wanted.start.saturating_sub(to);
            let n = (to + runs.length).min(wanted.end) - (to + skipped);
            let (from, at) = (from + skipped, to + skipped - wanted.start);
            let joins = from == pending.from.end
                && (pending.from.len() + n) * width <= READ_BYTES
                && !pending.parts.is_empty();
            if !joins {
                self.take(piece, &pending, width, out)?;
                pending = Pending {
                    from: from..from,
                    parts: Vec::new(),
                };
            }
            pending.parts.push((pending.from.len(), at, n));
            pending.from.end += n;
        }
        self.take(piece, &pending, width, out)
    }

    fn take(&self, piece: &Piece, pending: &Pending, width: usize, out: &mut [u8]) -> Result<()> {
        let holder = &self.holders[piece.source];
        match pending.parts[..] {
            [] => Ok(()),
            [(_, at, n)] => holder.read(
                piece,
                pending.from.start,
                &mut out[at * width..(at + n) * width],
            ),
            _ => {
                let mut read = vec![0; pending.from.len() * width];
                holder.read(piece, pending.from.start, &mut read)?;
                for &(from, at, n) in &pending.parts {
                    out[at * width..(at + n) * width]
                        .copy_from_slice(&read[from * width..(from + n) * width]);
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorInfo;
    use crate::io::Container;

    /// Tensors in memory.
    struct Files {
        info: SourceInfo,
        entries: Vec<TensorEntry>,
        bytes: Vec<Vec<u8>>,
    }

    impl TensorSource for Files {
        fn info(&self) -> &SourceInfo {
            &self.info
        }

        fn tensors(&self) -> &[TensorEntry] {
            &self.entries
        }

        fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
            out.copy_from_slice(&self.bytes[index][first..first + out.len()]);
            Ok(())
        }
    }

    fn info() -> SourceInfo {
        SourceInfo {
            path: "folder".into(),
            container: Container::Memory,
            files: Vec::new(),
            metadata: Default::default(),
            roots: Vec::new(),
            root: String::new(),
            values: Vec::new(),
            opaque: Vec::new(),
        }
    }

    fn entry(shape: &[usize]) -> TensorEntry {
        let info = TensorInfo {
            dtype: DType::U8,
            shape: shape.to_vec(),
        };
        TensorEntry::named("w".into(), info)
    }

    /// A file with one tensor of bytes.
    fn file(shape: &[usize], bytes: Vec<u8>) -> Box<dyn TensorSource> {
        Box::new(Files {
            info: info(),
            entries: vec![entry(shape)],
            bytes: vec![bytes],
        })
    }

    /// The numbers 0.. in `shape`, cut into boxes of `size` at each of `starts`.
    fn cut(
        shape: &[usize],
        boxes: &[(&[usize], &[usize])],
    ) -> Result<Assembled<Box<dyn TensorSource>>> {
        let whole = Block::whole(shape);
        let (mut pieces, mut sources) = (Vec::new(), Vec::new());
        for (number, (start, size)) in boxes.iter().enumerate() {
            let n = size.iter().product();
            let inner = TensorInfo {
                dtype: DType::U8,
                shape: size.to_vec(),
            };
            let bytes = (0..n).map(|element| {
                let index = inner.index_of(element);
                let at: Vec<usize> = index.iter().zip(*start).map(|(a, b)| a + b).collect();
                whole.place(&at) as u8
            });
            sources.push(file(size, bytes.collect()));
            pieces.push(Piece::whole(number, 0, size, shape, start));
        }
        let tensor = InPieces {
            entry: entry(shape),
            pieces,
        };
        Assembled::new(info(), [Ok(tensor)], sources, Aliases::new())
    }

    fn reads_all(assembled: &impl TensorSource, n: usize) {
        for first in 0..n {
            for end in first..=n {
                let mut out = vec![255; end - first];
                assembled.read(0, first, &mut out).expect("it reads");
                let wanted: Vec<u8> = (first..end).map(|at| at as u8).collect();
                assert_eq!(out, wanted, "{first}..{end}");
            }
        }
    }

    #[test]
    fn every_range_is_read_whatever_the_cut() {
        let along_rows: &[(&[usize], &[usize])] = &[(&[0, 0], &[3, 4]), (&[3, 0], &[2, 4])];
        let along_columns: &[(&[usize], &[usize])] = &[(&[0, 3], &[5, 1]), (&[0, 0], &[5, 3])];
        let in_four: &[(&[usize], &[usize])] = &[
            (&[0, 0], &[2, 2]),
            (&[0, 2], &[2, 2]),
            (&[2, 0], &[3, 1]),
            (&[2, 1], &[3, 3]),
        ];
        for boxes in [along_rows, along_columns, in_four] {
            reads_all(&cut(&[5, 4], boxes).expect("they fill it"), 20);
        }
        let deep: &[(&[usize], &[usize])] = &[(&[0, 0, 0], &[2, 1, 4]), (&[0, 1, 0], &[2, 2, 4])];
        reads_all(&cut(&[2, 3, 4], deep).expect("they fill it"), 24);
        reads_all(&cut(&[], &[(&[], &[])]).expect("a scalar"), 1);
    }

    #[test]
    fn a_flat_piece_fills_a_matrix() {
        // Elements 1..7 of a flat buffer are a matrix of 2 x 3.
        let piece = Piece {
            size: vec![6],
            to: Block::whole(&[6]),
            source: 0,
            tensor: 0,
            from: Block {
                within: vec![8],
                start: vec![1],
            },
        };
        let tensor = InPieces {
            entry: entry(&[2, 3]),
            pieces: vec![piece],
        };
        let sources = vec![file(&[8], vec![9, 0, 1, 2, 3, 4, 5, 9])];
        let assembled = Assembled::new(info(), [Ok(tensor)], sources, Aliases::new());
        reads_all(&assembled.expect("it fills it"), 6);
    }

    #[test]
    fn pieces_that_do_not_fill_a_tensor_are_refused() {
        let fault = |boxes: &[(&[usize], &[usize])]| match cut(&[4, 4], boxes) {
            Ok(_) => panic!("{boxes:?} were accepted"),
            Err(crate::Error::Assembly(fault)) => *fault,
            Err(other) => panic!("{other}"),
        };
        assert!(matches!(
            fault(&[(&[0, 0], &[3, 4])]),
            AssemblyFault::Incomplete { n_given: 12, .. }
        ));
        // As many elements as the tensor has, some of them twice.
        assert!(matches!(
            fault(&[(&[0, 0], &[3, 4]), (&[2, 0], &[1, 4])]),
            AssemblyFault::Overlap { .. }
        ));
        assert!(matches!(
            fault(&[(&[0, 0], &[4, 2]), (&[1, 1], &[2, 4])]),
            AssemblyFault::Outside { .. }
        ));
        assert!(matches!(
            fault(&[(&[0, 0], &[4, 4]), (&[4, 0], &[1, 4])]),
            AssemblyFault::Outside { .. }
        ));
    }
}
