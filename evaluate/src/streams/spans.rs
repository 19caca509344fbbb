//! Spans of tokens that are hidden from a query, beside the token that it asks for.

use merge::random::Sequence;

/// Keeps the share of tokens to hide from dividing by nothing; the published program's number.
const TINY: f64 = 1e-5;

/// Hides a random span of tokens around the one to guess, for each query of a text apart. The
/// states that stay visible have seen nothing of the span, so no token of it leaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpanCorruption {
    /// The share of tokens that a query is to miss, the asked one among them, in [0, 1]. At 0 only that
    /// one is hidden.
    pub rate: f64,
}

/// The span of one query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Tokens that are hidden beside the asked one.
    pub extra: usize,
    /// Of an odd number of them, the larger part lies on the left.
    pub leans_left: bool,
}

impl SpanCorruption {
    /// The probability that each token but the asked one is counted into its span, for a query that sees `n_visible`
    /// keys: `(Tρ − 1) / (T − 1)` with `T = n_visible + 1`, and at least 0.
    #[must_use]
    pub fn chance(self, n_visible: usize) -> f64 {
        let n_visible = n_visible as f64;
        let wanted = (n_visible + 1.0) * self.rate - 1.0;
        (wanted / (n_visible + TINY)).max(0.0)
    }

    /// Draws the span of a query that sees `n_visible` keys.
    #[must_use]
    pub fn draw(self, n_visible: usize, draws: &mut Sequence) -> Span {
        let chance = self.chance(n_visible);
        Span {
            extra: (0..n_visible).filter(|_| draws.chance(chance)).count(),
            leans_left: draws.chance(0.5),
        }
    }

    /// Hides a span from every query of a text but the first, drawn row by row. `seen` is the table of
    /// [`reconstructor`](super::reconstructor), `len × 2 len`.
    pub fn apply(self, seen: &mut [u8], len: usize, draws: &mut Sequence) {
        if self.rate <= 0.0 || len == 0 {
            return;
        }
        for (row, seen) in seen.chunks_mut(2 * len).enumerate().skip(1) {
            let n_visible = seen.iter().filter(|&&sees| sees != 0).count();
            self.draw(n_visible, draws).hide(row, seen);
        }
    }
}

impl Span {
    /// Hides the span from the query of `row`, whose row of the table is `seen`: of the forward states
    /// those from the span's first token to the asked one, of the reverse states those from there to its
    /// last. A span that reaches beyond an end of the text is cut there.
    pub fn hide(self, row: usize, seen: &mut [u8]) {
        let len = seen.len() / 2;
        let left = self.extra / 2 + usize::from(self.extra % 2 == 1 && self.leans_left);
        let first = row.saturating_sub(left);
        let last = (first + self.extra).min(len.saturating_sub(1));
        let (forward, reverse) = seen.split_at_mut(len);
        for hidden in [
            forward.get_mut(first..=row),
            reverse.get_mut(row..=last.max(row)),
        ] {
            hidden.into_iter().for_each(|states| states.fill(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::reconstructor;

    #[test]
    fn a_span_of_three_around_the_third_token() {
        let mut seen = reconstructor(8, 8);
        let span = Span {
            extra: 3,
            leans_left: true,
        };
        // Two on the left: 1 to 4.
        span.hide(3, &mut seen[3 * 16..][..16]);
        assert_eq!(
            seen[3 * 16..][..16],
            [[0; 8], [0, 0, 0, 0, 0, 1, 1, 1]].concat()
        );
        assert!(SpanCorruption { rate: 0.0 }.chance(7) == 0.0);
    }
}
