//! Settings that a recipe must not have.

use serde::Serialize;
use serde_json::Value;

use super::{Augmentation, DataFormat, ObjectiveSettings, Span, TrainRecipe};
use crate::augment::{FlipGuard, MAX_MAGNITUDE};
use crate::objectives;
use crate::optim::{OptimSettings, Rule};
use crate::{Error, Result};

fn bad(key: &str, reason: impl Into<String>) -> Error {
    Error::BadSetting {
        key: key.into(),
        reason: reason.into(),
    }
}

/// The keys of settings that are not at their defaults. A recipe that a run has written says all of them, so a key that is
/// given need not be one that somebody chose.
fn changes<T: Serialize + Default>(settings: T) -> Vec<String> {
    let values = |settings: T| serde_json::to_value(settings).unwrap_or_default();
    let usual = values(T::default());
    match values(settings) {
        Value::Object(given) => (given.into_iter())
            .filter(|(key, value)| usual.get(key).unwrap_or(&Value::Null) != value)
            .map(|(key, _)| key)
            .collect(),
        _ => Vec::new(),
    }
}

impl TrainRecipe {
    /// Whether an objective has all the settings of contrast that it needs.
    fn check_contrast(&self, objective: &ObjectiveSettings) -> Result<()> {
        let mixes = objective.name == "mixup_nce";
        let block = objective.contrast.and_then(|contrast| contrast.block);
        if mixes && block.is_none() && self.per_device_batch.is_some() {
            return Err(bad(
                "objectives.contrast.block",
                "give the number of rows within which pairs are mixed: results must not depend on `per_device_batch`. The published program mixes within the rows that it computes at once",
            ));
        }
        Ok(())
    }

    /// Whether an objective reads the settings that are its own, and whether they can be.
    fn check_own(objective: &ObjectiveSettings) -> Result<()> {
        let spec = objectives::spec(&objective.name)?;
        let groups = [
            ("contrast", objective.contrast.map(changes)),
            ("language", objective.language.map(changes)),
            ("pairs", objective.pairs.map(changes)),
            ("signal", objective.signal.map(changes)),
        ];
        for (group, changes) in groups {
            let Some(changes) = changes else {
                continue;
            };
            let mut keys = changes.into_iter().map(|key| format!("{group}.{key}"));
            let unread = match spec.reads(group) {
                false => Some(group.to_owned()),
                true => keys.find(|key| !spec.reads(key)),
            };
            if let Some(key) = unread {
                let reason = format!(
                    "`{}` does not read it: {}; leave it out",
                    spec.name,
                    objectives::readers(&key)
                );
                return Err(bad(&format!("objectives.{key}"), reason));
            }
        }
        if let Some(Err((key, reason))) = objective.language.map(|language| language.check()) {
            return Err(bad(&format!("objectives.language.{key}"), reason));
        }
        objective.pairs.map_or(Ok(()), |pairs| pairs.check())?;
        objective.signal.map_or(Ok(()), |signal| signal.check())
    }

    /// Whether something reads the settings of the run that only some objectives read. A setting that is at its default
    /// asks for nothing.
    fn check_read(&self) -> Result<()> {
        let of_masking = changes(self.masking).into_iter().next();
        let settings = [
            of_masking.map(|key| format!("masking.{key}")),
            (!super::is_fifteen(&self.other_texts)).then(|| "other_texts".to_owned()),
            self.image_masking
                .is_some()
                .then(|| "image_masking".to_owned()),
            (self.model.decoder_depth.is_some()).then(|| "model.decoder_depth".to_owned()),
            self.model
                .tied_words
                .is_some()
                .then(|| "model.tied_words".to_owned()),
        ];
        let specs = self.objectives.iter().map(|o| objectives::spec(&o.name));
        let specs = specs.collect::<Result<Vec<_>>>()?;
        let mut given = settings.into_iter().flatten();
        match given.find(|key| !specs.iter().any(|spec| spec.reads(key))) {
            None => Ok(()),
            Some(key) => {
                let reason = format!(
                    "no objective of this recipe reads it: {}; leave it out",
                    objectives::readers(&key)
                );
                Err(bad(&key, reason))
            }
        }
    }

    /// Whether the optimizer reads its settings.
    fn check_optim(&self) -> Result<()> {
        let (optim, usual) = (&self.optim, OptimSettings::default());
        let of_lars = [("trust", optim.trust != usual.trust)];
        let of_adamw = [
            ("beta2", optim.beta2 != usual.beta2),
            ("flavor", optim.flavor != usual.flavor),
            ("correct_bias", optim.correct_bias != usual.correct_bias),
        ];
        let (rule, unread) = match optim.rule {
            Rule::AdamW => ("adamw", &of_lars[..]),
            Rule::Lars => ("lars", &of_adamw[..]),
        };
        if let Some((key, _)) = unread.iter().find(|(_, is_given)| *is_given) {
            let reason = format!("the rule `{rule}` does not read it; leave it out");
            return Err(bad(&format!("optim.{key}"), reason));
        }
        if optim.loss_scale != usual.loss_scale && self.precision != "f16" {
            let reason = format!(
                "training in {} does not read it, only that in f16 does; leave it out",
                self.precision
            );
            return Err(bad("optim.loss_scale", reason));
        }
        Ok(())
    }

    /// Whether a run measures a model outside of training, which alone reads the choice of routers.
    pub(crate) fn check_routing(&self) -> Result<()> {
        match (self.model.routing, &self.validation) {
            (Some(_), None) => Err(bad(
                "model.routing",
                "training does not read it, only `validation` does; leave it out",
            )),
            _ => Ok(()),
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
        self.check_optim()?;
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
            Self::check_own(objective)?;
            self.check_contrast(objective)?;
        }
        self.check_read()
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
