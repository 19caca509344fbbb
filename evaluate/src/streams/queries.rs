//! The queries of the reconstructor.

/// The ids that the query stream begins with: the mask in place of every token but the first and the
/// last, and 0 where the text has no token. `ids` has a text of `n_tokens` tokens, filled up.
#[must_use]
pub fn query_ids(ids: &[u32], n_tokens: usize, mask: u32) -> Vec<u32> {
    let query = |(place, &id): (usize, &u32)| match place {
        place if place >= n_tokens => 0,
        place if place == 0 || place + 1 == n_tokens => id,
        _ => mask,
    };
    ids.iter().enumerate().map(query).collect()
}
