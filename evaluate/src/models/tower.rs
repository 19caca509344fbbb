//! Reading the sizes of a tower off its weights.

use crate::{Error, Result, Weights};

/// Width of a head where nobody says otherwise.
const HEAD_WIDTH: usize = 64;

/// The shape that tells `what`, or an error that says so.
pub(super) fn known<'a>(
    weights: &Weights,
    what: &'static str,
    shape: Option<&'a [usize]>,
) -> Result<&'a [usize]> {
    shape.ok_or_else(|| Error::UnknownSize {
        path: weights.checkpoint().path().into(),
        what,
    })
}

/// The length of the vector `name`, which tells `what`.
pub(super) fn length(weights: &Weights, what: &'static str, name: &str) -> Result<usize> {
    match known(weights, what, weights.shape(name))? {
        &[length] => Ok(length),
        _ => Err(bad(weights, &format!("`{name}` is not a vector"))),
    }
}

/// An error about sizes that do not fit.
pub(super) fn bad(weights: &Weights, fault: &str) -> Error {
    Error::BadSize {
        path: weights.checkpoint().path().into(),
        fault: fault.to_owned(),
    }
}

/// How many blocks there are: the first index whose `name` is missing.
pub(super) fn count(weights: &Weights, name: impl Fn(usize) -> String) -> usize {
    let is_there = |&block: &usize| weights.shape(&name(block)).is_some();
    (0..).take_while(is_there).count()
}

/// The number of heads, which divides `width`.
pub(super) fn heads(weights: &Weights, width: usize, n_heads: Option<usize>) -> Result<usize> {
    let n_heads = n_heads.unwrap_or(width / HEAD_WIDTH);
    if n_heads == 0 || !width.is_multiple_of(n_heads) {
        let fault = format!("{n_heads} heads do not divide a width of {width}");
        return Err(bad(weights, &fault));
    }
    Ok(n_heads)
}
