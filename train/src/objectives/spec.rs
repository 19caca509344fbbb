//! The table of objectives.

use std::sync::Arc;

use evaluate::models::{Branch, Dvae, Head};

use super::{
    ContrastSettings, LanguageSettings, Objective, PairSettings, SignalSettings, causal_language,
    contrastive, entropy, free_language, image_classification, linear_probe, masked_image,
    masked_language, masked_signal, matching, nce, nlvr2, prefix_language, random_matching,
    ranking, retrieval, sigmoid, text_masked_language, vqa,
};
use crate::{Error, Result};

/// The inputs that an objective learns from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Pictures.
    pub image: bool,
    /// A second picture of each example.
    pub second_image: bool,
    /// Texts.
    pub text: bool,
    /// Texts with words masked.
    pub masked_words: bool,
    /// Pictures with patches masked, and a second view of them for the tokenizer of images, which the
    /// recipe must name.
    pub masked_patches: bool,
    /// Patches that are hidden and words that are masked, to be guessed together.
    pub masked_signals: bool,
    /// The first inputs of the query stream of free language modeling.
    pub queries: bool,
    /// A random picture for each example, which may be that of another.
    pub other_image: bool,
    /// Random texts for each example, as many as the recipe says.
    pub other_texts: bool,
}

impl Needs {
    /// Nothing at all.
    pub const NOTHING: Self = Self {
        image: false,
        second_image: false,
        text: false,
        masked_words: false,
        masked_patches: false,
        masked_signals: false,
        queries: false,
        other_image: false,
        other_texts: false,
    };

    /// The inputs that two objectives need together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            image: self.image || other.image,
            second_image: self.second_image || other.second_image,
            text: self.text || other.text,
            masked_words: self.masked_words || other.masked_words,
            masked_patches: self.masked_patches || other.masked_patches,
            masked_signals: self.masked_signals || other.masked_signals,
            queries: self.queries || other.queries,
            other_image: self.other_image || other.other_image,
            other_texts: self.other_texts || other.other_texts,
        }
    }
}

/// The settings and parts with which an objective is opened.
#[derive(Clone, Copy, Default)]
pub struct Opening<'a> {
    /// The tokenizer of images, if the recipe names it.
    pub image_tokenizer: Option<&'a Arc<Dvae>>,
    /// The settings of comparing images and texts, if the recipe has them.
    pub contrast: Option<ContrastSettings>,
    /// The settings of guessing words from those before and after them, if the recipe has them.
    pub language: Option<LanguageSettings>,
    /// The rule by which pairs belong together, if the recipe has it.
    pub pairs: Option<PairSettings>,
    /// The settings of masking signals, if the recipe has them.
    pub signal: Option<SignalSettings>,
    /// Examples that a rank computes at once.
    pub part: usize,
}

impl Opening<'_> {
    /// The tokenizer of images, for the objective `name`.
    ///
    /// # Errors
    /// [`Error::NoImageTokenizer`].
    pub fn image_tokenizer(&self, name: &str) -> Result<Arc<Dvae>> {
        let tokenizer = self.image_tokenizer.cloned();
        tokenizer.ok_or_else(|| Error::NoImageTokenizer { name: name.into() })
    }

    /// The rule by which pairs belong together.
    ///
    /// # Errors
    /// As [`PairSettings::check`].
    pub fn pairs(&self) -> Result<PairSettings> {
        let pairs = self.pairs.unwrap_or_default();
        pairs.check()?;
        Ok(pairs)
    }
}

/// An objective as everybody else knows it before it is opened.
#[derive(Debug)]
pub struct ObjectiveSpec {
    /// Its name in recipes and logs.
    pub name: &'static str,
    /// The inputs that it learns from.
    pub needs: Needs,
    /// The heads that it uses: they may start fresh.
    pub heads: &'static [Head],
    /// Objectives that come before it in a step, wherever the recipe lists them: it uses what they
    /// leave.
    pub after: &'static [&'static str],
    /// The settings that only some objectives read, and it is one of them: `masking`, or `language.suffix` without the
    /// objective's own `objectives.`.
    pub reads: &'static [&'static str],
    /// Opens it.
    pub open: fn(&Opening<'_>) -> Result<Box<dyn Objective>>,
}

/// All objectives.
pub const OBJECTIVES: &[&ObjectiveSpec] = &[
    &contrastive::SPEC,
    &matching::SPEC,
    &masked_language::SPEC,
    &text_masked_language::SPEC,
    &masked_image::WITH_TEXT,
    &masked_image::ALONE,
    &masked_signal::SPEC,
    &image_classification::SPEC,
    &entropy::SPEC,
    &linear_probe::SPEC,
    &retrieval::SPEC,
    &nce::PLAIN,
    &nce::MIXING,
    &sigmoid::SPEC,
    &vqa::SPEC,
    &nlvr2::SPEC,
    &free_language::SPEC,
    &causal_language::SPEC,
    &causal_language::CAPTIONING,
    &prefix_language::SPEC,
    &random_matching::SPEC,
    &ranking::SPEC,
];

impl ObjectiveSpec {
    /// The branches of features that it compares.
    pub fn branches(&self) -> impl Iterator<Item = Branch> {
        self.heads.iter().filter_map(|head| match head {
            Head::Contrastive => Some(Branch::Apart),
            Head::FusedContrastive => Some(Branch::Fused),
            _ => None,
        })
    }

    /// Whether it reads a setting, or one within or around it.
    #[must_use]
    pub fn reads(&self, setting: &str) -> bool {
        let is_within = |inner: &str, outer: &str| {
            (inner.strip_prefix(outer)).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let mut own = self.reads.iter();
        own.any(|own| is_within(setting, own) || is_within(own, setting))
    }

    /// The number of objectives that must come before it, one after the other.
    fn depth(&self) -> usize {
        let before = self.after.iter().filter_map(|name| spec(name).ok());
        before.map(|spec| spec.depth() + 1).max().unwrap_or(0)
    }
}

/// The names of the objectives that read a setting, as `only … and … read it`.
#[must_use]
pub fn readers(setting: &str) -> String {
    let readers = OBJECTIVES.iter().filter(|spec| spec.reads(setting));
    let names: Vec<String> = readers.map(|spec| format!("`{}`", spec.name)).collect();
    match &names[..] {
        [] => "no objective reads it".to_owned(),
        [name] => format!("only {name} reads it"),
        [names @ .., last] => format!("only {} and {last} read it", names.join(", ")),
    }
}

/// The row of a name.
///
/// # Errors
/// [`Error::UnknownObjective`].
pub fn spec(name: &str) -> Result<&'static ObjectiveSpec> {
    let spec = OBJECTIVES.iter().find(|spec| spec.name == name);
    spec.copied().ok_or_else(|| {
        let names: Vec<&str> = OBJECTIVES.iter().map(|spec| spec.name).collect();
        Error::UnknownObjective {
            name: name.into(),
            known: names.join(", "),
        }
    })
}

/// The objective of a name; `image_tokenizer` is for those that guess tokens of images.
///
/// # Errors
/// [`Error::UnknownObjective`]; [`Error::NoImageTokenizer`].
pub fn by_name(name: &str, image_tokenizer: Option<&Arc<Dvae>>) -> Result<Box<dyn Objective>> {
    (spec(name)?.open)(&Opening {
        image_tokenizer,
        ..Opening::default()
    })
}

/// Brings objectives into the order of a step: each after those whose results it uses, otherwise as
/// they are listed.
pub fn in_order<T>(objectives: &mut [(Box<dyn Objective>, T)]) {
    objectives.sort_by_key(|(objective, _)| objective.spec().depth());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_objective_comes_after_those_whose_results_it_uses() {
        let open = |name: &str| (by_name(name, None).expect("known"), ());
        let mut objectives: Vec<_> = ["itm", "mlm", "itc"].map(open).into();
        in_order(&mut objectives);
        let names: Vec<&str> = objectives.iter().map(|(o, ())| o.name()).collect();
        assert_eq!(names, ["mlm", "itc", "itm"]);
    }

    #[test]
    fn every_row_has_its_own_name_and_names_rows_only() {
        for (at, row) in OBJECTIVES.iter().enumerate() {
            assert!(
                OBJECTIVES[at + 1..]
                    .iter()
                    .all(|other| other.name != row.name)
            );
            assert!(
                row.after.iter().all(|name| spec(name).is_ok()),
                "{}",
                row.name
            );
            assert!(!row.heads.is_empty(), "{}", row.name);
        }
    }

    #[test]
    fn an_objective_reads_what_its_row_says_and_what_is_around_and_within_it() {
        let reads = |name: &str, setting: &str| spec(name).expect("known").reads(setting);
        assert!(reads("flm", "language") && reads("flm", "language.reverse_weight"));
        assert!(!reads("flm", "language.suffix") && !reads("flm", "languages"));
        assert!(reads("mixup_nce", "contrast.beta") && !reads("nce", "contrast.beta"));
        assert!(reads("mlm", "masking") && !reads("mim", "masking"));
        assert_eq!(readers("language.suffix"), "only `prefix_lm` reads it");
        assert_eq!(readers("masking"), "only `mlm` and `text_mlm` read it");
    }
}
