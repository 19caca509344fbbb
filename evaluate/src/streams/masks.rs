//! Left to right, right to left, and all but the token itself.

/// The mask of the forward stream, `len × len`: row 0 sees every token, a later row the tokens from the second one to
/// its own. The first token is hidden from them, because it has seen what comes after.
#[must_use]
pub fn forward(n_tokens: usize, len: usize) -> Vec<u8> {
    table(len, |row, key| {
        key < n_tokens && (row == 0 || (1 <= key && key <= row))
    })
}

/// The mask of the reverse stream, `len × len`: row 0 sees every token, a token's row itself and the tokens after it. A
/// row of padding sees the same as in [`forward`].
#[must_use]
pub fn reverse(n_tokens: usize, len: usize) -> Vec<u8> {
    table(len, |row, key| {
        key < n_tokens
            && match row {
                0 => true,
                row if row < n_tokens => row <= key,
                _ => 1 <= key,
            }
    })
}

/// The mask of the reconstructor's queries, `len × 2 len`: they see the forward stream's states, then the reverse
/// stream's, as those see their own tokens, but of neither the token that they ask for.
#[must_use]
pub fn reconstructor(n_tokens: usize, len: usize) -> Vec<u8> {
    let halves = [forward(n_tokens, len), reverse(n_tokens, len)];
    let mut seen = Vec::with_capacity(2 * len * len);
    for row in 0..len {
        for half in &halves {
            let start = seen.len();
            seen.extend_from_slice(&half[row * len..][..len]);
            if row > 0 {
                seen[start + row] = 0;
            }
        }
    }
    seen
}

fn table(len: usize, sees: impl Fn(usize, usize) -> bool) -> Vec<u8> {
    let rows = (0..len).flat_map(|row| (0..len).map(move |key| (row, key)));
    rows.map(|(row, key)| u8::from(sees(row, key))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(table: &[u8], width: usize) -> Vec<String> {
        let row = |row: &[u8]| row.iter().map(|see| see.to_string()).collect();
        table.chunks(width).map(row).collect()
    }

    #[test]
    fn six_tokens_of_eight_places_see_what_the_paper_draws() {
        assert_eq!(
            rows(&forward(6, 8), 8),
            [
                "11111100", "01000000", "01100000", "01110000", "01111000", "01111100", "01111100",
                "01111100",
            ]
        );
        assert_eq!(
            rows(&reverse(6, 8), 8),
            [
                "11111100", "01111100", "00111100", "00011100", "00001100", "00000100", "01111100",
                "01111100",
            ]
        );
        let seen = rows(&reconstructor(6, 8), 16);
        assert_eq!(seen[0], "1111110011111100");
        assert_eq!(seen[3], "0110000000001100");
        assert_eq!(seen[5], "0111100000000000");
        assert_eq!(seen[7], "0111110001111100");
    }
}
