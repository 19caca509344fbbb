//! Vectors within a tensor: lines along its last axis.

/// Elements of a line along the last axis.
pub(in crate::methods) fn length(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1).max(1)
}

/// Lines of the chunk's members (and base).
pub(in crate::methods) fn of<'a, T>(
    members: &[&'a [T]],
    first: usize,
    length: usize,
) -> Vec<&'a [T]> {
    let lines = members.iter();
    lines.map(|member| &member[first..first + length]).collect()
}
