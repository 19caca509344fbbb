//! The tensors that a family takes.

use std::fmt;

/// A tensor that a file of inputs may have.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its name. `{i}` in it stands for a number from 0: there may be several of its kind.
    pub name: &'static str,
    /// Its sizes.
    pub shape: Vec<Size>,
    /// The kind of its elements.
    pub kind: Kind,
}

/// One size of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// This one, for the model has it.
    Exactly(usize),
    /// Any, the same in all inputs of a pass that call it so: `b`.
    Any(&'static str),
    /// Any up to the model's, likewise: `t`.
    UpTo(&'static str, usize),
}

/// The kind of a tensor's elements, with the dtypes that are allowed for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whole numbers from 0: tokens, classes. Any integer dtype.
    Ids {
        /// The number of ids.
        below: usize,
    },
    /// Likewise, or −100 where there is nothing to learn.
    Labels {
        /// The number of ids.
        below: usize,
    },
    /// 0 or 1: which tokens are no padding, which patches are masked. Flags or any integer dtype.
    Flags,
    /// Numbers. Any floating dtype.
    Floats,
    /// Pixels as they are stored, u8. No pass reads them.
    Bytes,
}

impl Input {
    /// Whether a tensor of this name is such an input.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        let Some((before, after)) = self.name.split_once("{i}") else {
            return self.name == name;
        };
        let number = (name.strip_prefix(before)).and_then(|rest| rest.strip_suffix(after));
        number.is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    }
}

impl Size {
    /// Whether a tensor may have this size.
    pub(super) fn allows(self, size: usize) -> bool {
        match self {
            Self::Exactly(expected) => size == expected,
            Self::Any(_) => size > 0,
            Self::UpTo(_, most) => size > 0 && size <= most,
        }
    }

    /// The letter of a size on which all inputs of a pass must agree.
    pub(super) fn letter(self) -> Option<&'static str> {
        match self {
            Self::Exactly(_) => None,
            Self::Any(letter) | Self::UpTo(letter, _) => Some(letter),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(size) => write!(f, "{size}"),
            Self::Any(letter) => write!(f, "{letter}"),
            Self::UpTo(letter, most) => write!(f, "{letter} <= {most}"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ids { below } => write!(f, "integers below {below}"),
            Self::Labels { below } => write!(f, "integers below {below}, or -100"),
            Self::Flags => write!(f, "flags or integers of 0 and 1"),
            Self::Floats => write!(f, "floating-point numbers"),
            Self::Bytes => write!(f, "u8"),
        }
    }
}

/// `image: (b, 3, 48, 48), floating-point numbers`.
impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.shape.iter().map(Size::to_string).collect();
        write!(f, "{}: ({}), {}", self.name, sizes.join(", "), self.kind)
    }
}
