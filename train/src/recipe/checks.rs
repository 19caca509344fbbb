//! Settings that a recipe must not have.

use super::{Augmentation, DataFormat, ObjectiveSettings, Span, TrainRecipe};
use crate::augment::{FlipGuard, MAX_MAGNITUDE};
use crate::objectives;
use crate::{Error, Result};

fn bad(key: &str, reason: impl Into<String>) -> Error {
    Error::BadSetting {
        key: key.into(),
        reason: reason.into(),
    }
}

impl TrainRecipe {
    /// Whether an objective has settings that it reads, and all that it needs.
    fn check_contrast(&self, objective: &ObjectiveSettings) -> Result<()> {
        let mixes = objective.name == "mixup_nce";
        let reads = objectives::spec(&objective.name)?.reads_contrast();
        if objective.contrast.is_some() && !reads {
            let reason = format!(
                "`{}` does not read it: only `nce` and `mixup_nce` do",
                objective.name
            );
            return Err(bad("objectives.contrast", reason));
        }
        let block = objective.contrast.and_then(|contrast| contrast.block);
        if mixes && block.is_none() && self.per_device_batch.is_some() {
            return Err(bad(
                "objectives.contrast.block",
                "give the number of rows within which pairs are mixed: results must not depend on `per_device_batch`. The published program mixes within the rows that it computes at once",
            ));
        }
        Ok(())
    }

    /// Whether an objective reads the settings of guessing words, and whether they can be.
    fn check_language(objective: &ObjectiveSettings) -> Result<()> {
        let Some(language) = objective.language else {
            return Ok(());
        };
        if !objectives::spec(&objective.name)?.reads_language() {
            let reason = format!(
                "`{}` does not read it: only `flm`, `ar`, `captioning` and `prefix_lm` do",
                objective.name
            );
            return Err(bad("objectives.language", reason));
        }
        match language.check() {
            Ok(()) => Ok(()),
            Err((key, reason)) => Err(bad(&format!("objectives.language.{key}"), reason)),
        }
    }

    /// Whether an objective reads the settings of pairs, and whether they can be.
    fn check_pairs(objective: &ObjectiveSettings) -> Result<()> {
        match objective.pairs {
            None => Ok(()),
            Some(_) if !objectives::spec(&objective.name)?.reads_pairs() => {
                let name = &objective.name;
                let reason = format!("`{name}` does not read it: only `itc` and `itm` do");
                Err(bad("objectives.pairs", reason))
            }
            Some(pairs) => pairs.check(),
        }
    }

    /// Whether an objective reads the settings of masked signals, and whether they can be.
    fn check_signal(objective: &ObjectiveSettings) -> Result<()> {
        match objective.signal {
            None => Ok(()),
            Some(_) if !objectives::spec(&objective.name)?.reads_signal() => {
                let name = &objective.name;
                let reason = format!("`{name}` does not read it: only `masked_signal` does");
                Err(bad("objectives.signal", reason))
            }
            Some(signal) => signal.check(),
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::BadRecipe`] with the key and its fault.
    pub(super) fn check(&self) -> Result<()> {
        self.init.check()?;
        self.check_shares()?;
        self.check_objectives()?;
        self.check_augmentation()?;
        self.check_data()?;
        self.check_course()
    }

    fn check_shares(&self) -> Result<()> {
        let masking = self.image_masking.as_ref();
        let shares = [
            ("drop_path", Some(self.drop_path)),
            ("dropout", Some(self.dropout)),
            ("masking.probability", Some(self.masking.probability)),
            (
                "image_masking.share",
                masking.and_then(|masking| masking.share),
            ),
        ];
        for (key, share) in shares {
            if let Some(share) = share.filter(|share| !(0.0..1.0).contains(share)) {
                return Err(bad(key, format!("{share} is not in [0, 1)")));
            }
        }
        Ok(())
    }

    fn check_objectives(&self) -> Result<()> {
        if self.objectives.is_empty() {
            return Err(bad("objectives", "there is none"));
        }
        if let Some(weight) = self
            .balance
            .filter(|weight| !(*weight >= 0.0 && weight.is_finite()))
        {
            return Err(bad(
                "balance",
                format!("{weight} is no factor; give 0 or more"),
            ));
        }
        for objective in &self.objectives {
            let needs = &objectives::spec(&objective.name)?.needs;
            if needs.masked_patches && self.image_masking.is_none() {
                let name = objective.name.clone();
                return Err(Error::NoImageTokenizer { name });
            }
            let masks = needs.masked_words || needs.masked_signals;
            if masks && self.data.caption_corruption {
                let reason = format!(
                    "`{}` masks words itself; leave out one of the two",
                    objective.name
                );
                return Err(bad("data.caption_corruption", reason));
            }
            let weight = objective.weight;
            if !(weight >= 0.0 && weight.is_finite()) {
                let reason = format!(
                    "{weight} is no factor of `{}`; give 0 or more",
                    objective.name
                );
                return Err(bad("objectives.weight", reason));
            }
            self.check_contrast(objective)?;
            Self::check_language(objective)?;
            Self::check_pairs(objective)?;
            Self::check_signal(objective)?;
        }
        Ok(())
    }

    fn check_augmentation(&self) -> Result<()> {
        match &self.augmentation {
            Augmentation::Square
            | Augmentation::None
            | Augmentation::Color
            | Augmentation::Rand => Ok(()),
            Augmentation::Random {
                magnitude,
                least_area,
                flip,
                color,
                flip_guard,
                ..
            } => {
                if !(0.0..=1.0).contains(color) {
                    let reason = format!("{color} is not in [0, 1]");
                    return Err(bad("augmentation.random.color", reason));
                }
                if !flip && *flip_guard != FlipGuard::None {
                    let reason = "has no effect, for `flip: false` mirrors no picture";
                    return Err(bad("augmentation.random.flip_guard", reason));
                }
                if !(0.0..=MAX_MAGNITUDE).contains(magnitude) {
                    let reason = format!("{magnitude} is not in [0, {MAX_MAGNITUDE}]");
                    return Err(bad("augmentation.random.magnitude", reason));
                }
                if !(*least_area > 0.0 && *least_area <= 1.0) {
                    let reason = format!("{least_area} is not in (0, 1]");
                    return Err(bad("augmentation.random.least_area", reason));
                }
                Ok(())
            }
            Augmentation::Listed { steps, erasing } => {
                for (number, step) in steps.iter().enumerate() {
                    if let Some(fault) = step.fault() {
                        let key = format!("augmentation.listed.steps[{number}]");
                        return Err(bad(&key, fault));
                    }
                }
                if !(0.0..=1.0).contains(&erasing.probability) || erasing.count == 0 {
                    let reason = format!(
                        "`probability` is {}, a share from 0 to 1, and `count` is {}, at least 1",
                        erasing.probability, erasing.count
                    );
                    return Err(bad("augmentation.listed.erasing", reason));
                }
                match self.image_masking {
                    None => Ok(()),
                    Some(_) => Err(bad(
                        "augmentation.listed",
                        "masked patches need two views of a picture, which a list does not give",
                    )),
                }
            }
        }
    }

    fn check_data(&self) -> Result<()> {
        if self.data.train.is_empty() {
            return Err(bad("data.train", "there is no split"));
        }
        let mut kinds = std::collections::BTreeSet::new();
        let tables = self.data.train.iter();
        for set in tables.filter(|_| self.data.format == DataFormat::Arrow) {
            let kind = evaluate::datasets::kind(&set.dataset);
            let kind = kind.map_err(|error| bad("data.train", error.to_string()))?;
            kinds.insert(kind.name());
        }
        if kinds.len() > 1 {
            let reason = format!("{kinds:?} cannot be in one batch");
            return Err(bad("data.train", reason));
        }
        match &self.validation {
            Some(validation) if validation.split.starts_with("test") => {
                let reason = format!(
                    "`{}` is test data: the best weights are chosen by validation data alone",
                    validation.split
                );
                Err(bad("validation.split", reason))
            }
            _ => Ok(()),
        }
    }

    /// Checks the length, the parts and the kept states of a run.
    fn check_course(&self) -> Result<()> {
        if self.batch_size == 0 || self.per_device_batch == Some(0) {
            return Err(bad("batch_size", "a batch has at least one example"));
        }
        if self.save.keep == 0 {
            return Err(bad("save.keep", "at least one state must stay"));
        }
        match self.length {
            Span::Steps(0) => Err(bad("length", "there are no steps")),
            Span::Epochs(n) if !n.is_finite() || n <= 0.0 => {
                Err(bad("length", format!("{n} epochs")))
            }
            _ => Ok(()),
        }
    }
}
