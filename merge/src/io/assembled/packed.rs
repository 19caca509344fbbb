//! The pieces of a tensor in few bytes, for a model may lie in a million of them.

use super::{Block, Piece};
use crate::io::protobuf::{put_varint, varint};

/// The pieces of a tensor: numbers, each of as many bytes as it needs. First the shape that they lie in, then each piece:
/// holder, tensor, size and start, and where it lies in the tensor of the holder unless it is all of it.
pub(super) struct Packed(Box<[u8]>);

/// The number of elements before a piece in the tensor of its holder.
const WHOLE: usize = 0;
const WITHIN: usize = 1;

impl Packed {
    /// Of pieces that lie in one shape and have as many axes as it.
    pub(super) fn new(pieces: &[Piece]) -> Self {
        let mut bytes = Vec::new();
        let mut put = |numbers: &[usize]| {
            (numbers.iter()).for_each(|number| put_varint(*number as u64, &mut bytes));
        };
        if let [first, ..] = pieces {
            put(&[first.size.len()]);
            put(&first.to.within);
        }
        for piece in pieces {
            put(&[piece.source, piece.tensor]);
            put(&piece.size);
            put(&piece.to.start);
            match piece.from == Block::whole(&piece.size) {
                true => put(&[WHOLE]),
                false => {
                    put(&[WITHIN]);
                    put(&piece.from.within);
                    put(&piece.from.start);
                }
            }
        }
        Self(bytes.into())
    }

    /// The pieces.
    pub(super) fn iter(&self) -> impl Iterator<Item = Piece> + '_ {
        let mut rest = &self.0[..];
        let n_axes = number(&mut rest).unwrap_or(0);
        let within = numbers(&mut rest, n_axes).unwrap_or_default();
        std::iter::from_fn(move || piece(&mut rest, &within))
    }
}

fn number(rest: &mut &[u8]) -> Option<usize> {
    varint(rest).map(|number| number as usize)
}

fn numbers(rest: &mut &[u8], n: usize) -> Option<Vec<usize>> {
    (0..n).map(|_| number(rest)).collect()
}

/// The next piece; `None` at the end.
fn piece(rest: &mut &[u8], within: &[usize]) -> Option<Piece> {
    let (source, tensor) = (number(rest)?, number(rest)?);
    let size = numbers(rest, within.len())?;
    let start = numbers(rest, within.len())?;
    let from = match number(rest)? {
        WHOLE => Block::whole(&size),
        _ => Block {
            within: numbers(rest, within.len())?,
            start: numbers(rest, within.len())?,
        },
    };
    Some(Piece {
        to: Block {
            within: within.to_vec(),
            start,
        },
        size,
        source,
        tensor,
        from,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_out_as_they_went_in() {
        let mut part = Piece::whole(70_000, 3, &[2, 300], &[5, 600], &[3, 0]);
        part.from = Block {
            within: vec![9, 400],
            start: vec![7, 100],
        };
        let pieces = [
            Piece::whole(1, 1 << 40, &[2, 300], &[5, 600], &[0, 300]),
            part,
        ];
        let packed = Packed::new(&pieces);
        assert_eq!(packed.iter().collect::<Vec<_>>(), pieces);
        let scalar = [Piece::whole(0, 1, &[], &[], &[])];
        assert_eq!(
            Packed::new(&scalar).iter().collect::<Vec<_>>(),
            scalar.to_vec()
        );
        assert_eq!(Packed::new(&[]).iter().count(), 0);
    }

    #[test]
    fn a_piece_of_a_matrix_takes_few_bytes() {
        // 64 ranks with 64 rows each of 4096 x 4096.
        let pieces: Vec<Piece> = (0..64)
            .map(|rank| Piece::whole(0, rank << 20, &[64, 4096], &[4096, 4096], &[64 * rank, 0]))
            .collect();
        let per_piece = Packed::new(&pieces).0.len() / pieces.len();
        assert!(per_piece <= 14, "{per_piece}");
    }
}
