//! Flat tensors one behind another, as ranks hold what they update.

use crate::io::assembled::Piece;

/// A flat tensor of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flat {
    /// The file, by its number among the sources.
    pub(super) source: usize,
    /// The tensor of that file.
    pub(super) tensor: usize,
    /// Its elements.
    pub(super) n_elements: usize,
}

/// Flat tensors one behind another.
#[derive(Debug)]
pub(super) struct Row {
    parts: Vec<Flat>,
    /// One after the last element of each.
    ends: Vec<usize>,
}

impl Row {
    pub(super) fn new(parts: Vec<Flat>) -> Self {
        let ends = (parts.iter()).scan(0usize, |end, part| {
            *end = end.saturating_add(part.n_elements);
            Some(*end)
        });
        let ends = ends.collect();
        Self { parts, ends }
    }

    /// Elements of all.
    pub(super) fn n_elements(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The elements `first..` up to `n` of them, which are elements `at..` of a tensor with `whole` elements.
    pub(super) fn pieces(&self, first: usize, n: usize, at: usize, whole: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut done = 0;
        let mut part = self.ends.partition_point(|end| *end <= first);
        while done < n && part < self.parts.len() {
            let Flat {
                source,
                tensor,
                n_elements,
            } = self.parts[part];
            let start = first + done - (self.ends[part] - n_elements);
            let here = (n_elements - start).min(n - done);
            if here > 0 {
                let (to, from) = ((whole, at + done), (n_elements, start));
                pieces.push(Piece::flat(source, tensor, here, to, from));
            }
            done += here;
            part += 1;
        }
        pieces
    }
}

/// The share of each of `world` ranks in `n_elements` that are cut into equal shares, the last of them filled up.
pub(super) fn share(n_elements: usize, world: usize) -> usize {
    n_elements.div_ceil(world)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(sizes: &[usize]) -> Row {
        let flat = |(tensor, &n_elements)| Flat {
            source: 0,
            tensor,
            n_elements,
        };
        Row::new(sizes.iter().enumerate().map(flat).collect())
    }

    /// Tensor, start within it, number, place.
    fn cut(sizes: &[usize], first: usize, n: usize) -> Vec<(usize, usize, usize, usize)> {
        (row(sizes).pieces(first, n, 0, n).iter())
            .map(|piece| {
                (
                    piece.tensor,
                    piece.from.start[0],
                    piece.size[0],
                    piece.to.start[0],
                )
            })
            .collect()
    }

    #[test]
    fn a_range_is_cut_where_tensors_end() {
        assert_eq!(cut(&[4, 4], 0, 4), [(0, 0, 4, 0)]);
        assert_eq!(cut(&[4, 4], 3, 2), [(0, 3, 1, 0), (1, 0, 1, 1)]);
        assert_eq!(cut(&[4, 0, 4], 4, 3), [(2, 0, 3, 0)]);
        assert_eq!(
            cut(&[2, 0, 1, 3], 1, 4),
            [(0, 1, 1, 0), (2, 0, 1, 1), (3, 0, 2, 2)]
        );
        // The check for holes finds the missing ones.
        assert_eq!(cut(&[2], 1, 4), [(0, 1, 1, 0)]);
        assert_eq!(cut(&[2], 7, 1), []);
        assert_eq!(cut(&[], 0, 1), []);
    }
}
