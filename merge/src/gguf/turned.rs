//! The order of the rows of queries and keys.
//!
//! Rotary positions turn pairs of elements of a head. Hugging Face's pairs are an element of the first half and one of the
//! second, llama.cpp's are neighbors. Row `h e + 2 i + j` of llama.cpp is row `h e + j e / 2 + i` of Hugging Face, where `e`
//! is the width of a head `h`, `j` is 0 or 1, and `i` is below `e / 2`.

/// The width of heads whose rows are in another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turned {
    /// Half of it.
    half: usize,
}

impl Turned {
    /// Of `rows` rows in `heads` heads; `None` if they do not divide into pairs.
    pub(super) fn new(rows: usize, heads: usize) -> Option<Self> {
        let fits = heads > 0 && rows > 0 && rows.is_multiple_of(2 * heads);
        fits.then(|| Self {
            half: rows / heads / 2,
        })
    }

    /// The row of llama.cpp that is row `row` of Hugging Face.
    pub(super) const fn in_pairs(self, row: usize) -> usize {
        let (head, within) = (row / (2 * self.half), row % (2 * self.half));
        head * 2 * self.half + within % self.half * 2 + within / self.half
    }

    /// The row of Hugging Face that is row `row` of llama.cpp.
    pub(super) const fn in_halves(self, row: usize) -> usize {
        let (head, within) = (row / (2 * self.half), row % (2 * self.half));
        head * 2 * self.half + within % 2 * self.half + within / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbors_come_from_both_halves_of_a_head() {
        let turned = Turned::new(12, 2).expect("pairs");
        let of = |row| turned.in_halves(row);
        assert_eq!((0..6).map(of).collect::<Vec<_>>(), [0, 3, 1, 4, 2, 5]);
        assert_eq!(of(6), 6);
        for row in 0..12 {
            assert_eq!(turned.in_pairs(turned.in_halves(row)), row);
        }
        assert_eq!(Turned::new(6, 2), None);
        assert_eq!(Turned::new(6, 0), None);
    }
}
