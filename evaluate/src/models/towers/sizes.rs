//! Reading the sizes of a tower off its weights.

use std::path::Path;

use merge::Checkpoint;

use crate::{Error, ModelFault, Result, Weights};

/// Shapes of tensors by the names of a model, without a `module.` that wrappers add.
pub trait Shapes {
    /// The shape of a tensor; `None` if the file has none of this name.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// The file.
    fn path(&self) -> &Path;
}

impl Shapes for Weights {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        Weights::shape(self, name)
    }

    fn path(&self) -> &Path {
        self.checkpoint().path()
    }
}

impl Shapes for Checkpoint {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        let wrapped = || self.get(&format!("module.{name}"));
        Some(&self.get(name).or_else(wrapped)?.shape)
    }

    fn path(&self) -> &Path {
        Checkpoint::path(self)
    }
}

/// The default width of a head.
const HEAD_WIDTH: usize = 64;

/// The shape that tells `what`, or an error that says so.
pub(crate) fn known<'a>(
    shapes: &dyn Shapes,
    what: &'static str,
    shape: Option<&'a [usize]>,
) -> Result<&'a [usize]> {
    shape.ok_or_else(|| {
        Error::Model(ModelFault::UnknownSize {
            path: shapes.path().into(),
            what,
        })
    })
}

/// The length of the vector `name`, which tells `what`.
pub(crate) fn length(shapes: &dyn Shapes, what: &'static str, name: &str) -> Result<usize> {
    match known(shapes, what, shapes.shape(name))? {
        &[length] => Ok(length),
        _ => Err(bad(shapes, &format!("`{name}` is not a vector"))),
    }
}

/// An error about sizes that do not fit.
pub(crate) fn bad(shapes: &dyn Shapes, fault: &str) -> Error {
    Error::Model(ModelFault::BadSize {
        path: shapes.path().into(),
        fault: fault.to_owned(),
    })
}

/// The number of blocks: the first index whose `name` is missing.
pub(crate) fn count(shapes: &dyn Shapes, name: impl Fn(usize) -> String) -> usize {
    let is_there = |&block: &usize| shapes.shape(&name(block)).is_some();
    (0..).take_while(is_there).count()
}

/// The number of heads, which divides `width`.
pub(crate) fn heads(shapes: &dyn Shapes, width: usize, n_heads: Option<usize>) -> Result<usize> {
    match n_heads.unwrap_or(width / HEAD_WIDTH) {
        n if n > 0 && width.is_multiple_of(n) => Ok(n),
        n => {
            let fault = match n_heads {
                Some(_) => format!("{n} heads do not divide a width of {width}"),
                None => format!(
                    "heads of {HEAD_WIDTH} channels do not divide a width of {width}: say how many \
                     heads there are"
                ),
            };
            Err(bad(shapes, &fault))
        }
    }
}
