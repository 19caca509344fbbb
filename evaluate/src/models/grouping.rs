//! The groups of variables, with their rates and decays, that the program of a family makes.

/// The part of a model that a variable is in. Training can give each part a rate of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    /// Everything that is in no other part.
    Body,
    /// Layers that read text and image together, where the family's program sets their rate apart.
    CrossModal,
    /// Heads that start fresh in fine-tuning and whose rate the family's program sets apart.
    Head,
}

/// The group of a variable in the program of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The part of the model.
    pub module: Module,
    /// Whether its weights decay.
    pub decays: bool,
}

/// The groups of the program of a family, one row of its blueprint:
/// [`Blueprint::grouping`](super::Blueprint::grouping).
///
/// # Example
/// ```
/// use evaluate::models::{Grouping, Module};
///
/// const GROUPING: Grouping = Grouping {
///     heads: &["classifier"],
///     cross_modal: &["cross_layers"],
///     undecayed: &["bias", "norm.weight"],
///     ..Grouping::NONE
/// };
/// let norm = GROUPING.membership("cross_layers.0.norm.weight");
/// assert_eq!((norm.module, norm.decays), (Module::CrossModal, false));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grouping {
    /// Beginnings of the names of [`Module::Head`].
    pub heads: &'static [&'static str],
    /// Beginnings of the names of [`Module::CrossModal`].
    pub cross_modal: &'static [&'static str],
    /// Parts of names, anywhere in them, of variables that do not decay.
    pub undecayed: &'static [&'static str],
    /// Whether [`Module::Head`] is what the checkpoint of a run lacked, in place of `heads`.
    pub raises_missing: bool,
    /// Names of variables that are kept between two numbers before each step.
    pub bounded: &'static [(&'static str, [f64; 2])],
}

impl Grouping {
    /// All variables are in the body, and decay.
    pub const NONE: Self = Self {
        heads: &[],
        cross_modal: &[],
        undecayed: &[],
        raises_missing: false,
        bounded: &[],
    };

    /// The group of a variable, by its name in the model.
    #[must_use]
    pub fn membership(&self, name: &str) -> Membership {
        let begins = |beginnings: &[&str]| beginnings.iter().any(|start| name.starts_with(start));
        let module = match (begins(self.heads), begins(self.cross_modal)) {
            (true, _) => Module::Head,
            (false, true) => Module::CrossModal,
            (false, false) => Module::Body,
        };
        Membership {
            module,
            decays: !self.undecayed.iter().any(|part| name.contains(part)),
        }
    }
}
