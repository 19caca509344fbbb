//! Patterns that the keys of all families share.

/// The key without the prefix that data-parallel wrappers add.
#[must_use]
pub fn without_module(key: &str) -> &str {
    key.strip_prefix(WRAPPER).unwrap_or(key)
}

/// The prefix that data-parallel wrappers add.
pub const WRAPPER: &str = "module.";

/// Splits `12.attn.qkv.weight` into the block index and the rest. Indices are plain decimals below
/// 65,536, so that a hostile name cannot ask for a model of absurd depth.
pub(super) fn split_block(key: &str) -> Option<(usize, &str)> {
    let (index, rest) = key.split_once('.')?;
    let plain = index.bytes().all(|byte| byte.is_ascii_digit())
        && (index.len() == 1 || !index.starts_with('0'));
    let block: u16 = plain.then(|| index.parse().ok())??;
    Some((block.into(), rest))
}

/// The candidate that is most like `key`; of several the first by name.
pub(super) fn nearest(candidates: impl Iterator<Item = String>, key: &str) -> Option<String> {
    candidates.max_by(|a, b| {
        strsim::jaro(a, key)
            .total_cmp(&strsim::jaro(b, key))
            .then_with(|| b.cmp(a))
    })
}
