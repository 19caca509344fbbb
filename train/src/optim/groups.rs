//! Gives each variable its rate and its decay: each is in exactly one group.

use std::collections::BTreeMap;

use evaluate::models::{Grouping, Membership, Module};
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The rule that decides whether a variable decays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupRules {
    /// As the family of the model says ([`Grouping::undecayed`]): vl-merging and VLMo by the lists of
    /// their programs, in which the weights of experts' norms (`norm1.v.weight`) and of norms within
    /// classifiers (`vqa_classifier.1.weight`) are missing, so these decay.
    #[default]
    Published,
    /// Likewise, but no norm's weight decays: any `weight` with one dimension is one.
    Exact,
    /// Every variable decays, biases and norms too, as ZeroVL has it.
    All,
}

/// A rate or a decay of the variables in whose names a pattern is found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// A regular expression that is looked for anywhere in the name.
    pub pattern: String,
    /// The highest learning rate, in place of `lr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// The weight decay, in place of all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

/// The settings that make the groups.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSettings {
    /// Decay of the body.
    pub weight_decay: f64,
    /// Decay of the head.
    pub head_weight_decay: f64,
    /// Factor on the head's rate.
    pub lr_mult: f64,
    /// Factor on the rate of cross-modal layers.
    pub cross_modal_lr_mult: f64,
    /// The rule by which variables decay.
    pub rules: GroupRules,
    /// Parts of the names of the head's variables, in place of the family's heads.
    pub heads: Option<Vec<String>>,
    /// Variables that the checkpoint lacked, which are the head of families that go by that; the family's heads are
    /// where this is not known.
    pub missing: Option<Vec<String>>,
    /// Further variables that learn like the head: paths of whole segments, `attn.v` is in
    /// `blocks.0.attn.v.weight` but neither in `attn.vl` nor in `attn.v_bias`.
    pub raised: Vec<String>,
    /// Parts of the names of trained variables; all others are frozen. Empty: all are trained.
    pub trainable: Vec<String>,
    /// Settings of variables by their names; later ones win.
    pub overrides: Vec<Override>,
    /// The highest rate of all other variables, which rates of overrides are divided by.
    pub lr: f64,
}

/// The kind of a variable's group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupKind {
    /// Pre-trained weights: matrices, embeddings, tokens, scales.
    BodyDecay,
    /// Their biases and norms.
    BodyNoDecay,
    /// Weights of cross-modal layers.
    CrossModalDecay,
    /// Their biases and norms.
    CrossModalNoDecay,
    /// Weights of a new head.
    HeadDecay,
    /// Its biases and norms.
    HeadNoDecay,
    /// Not trained.
    Frozen,
}

/// Variables that share rate and decay.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The kind.
    pub kind: GroupKind,
    /// Factor on the schedule's rate; 0 where frozen.
    pub rate_factor: f64,
    /// The highest rate that an override gives, in place of the schedule's.
    pub lr: Option<f64>,
    /// Weight decay.
    pub decay: f64,
    /// Names, sorted.
    pub names: Vec<String>,
    /// Elements of all of them.
    pub elements: usize,
}

/// All variables of a model, each in exactly one group.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamGroups {
    groups: Vec<Group>,
    place: BTreeMap<String, usize>,
}

impl ParamGroups {
    /// Sorts variables, given as names and shapes, into groups by the rules of their model's family.
    /// Groups without a member are left out.
    ///
    /// # Errors
    /// [`Error::GroupedTwice`] for a name that comes twice; [`Error::MatchesNothing`] for an entry of
    /// `heads`, `raised`, `trainable` or `overrides` that is in no name; [`Error::BadSetting`] for a
    /// pattern that cannot be read, or a factor on the rate of cross-modal layers that the family lacks.
    pub fn of<'a>(
        variables: impl IntoIterator<Item = (&'a str, &'a [usize])>,
        family: &Grouping,
        settings: &GroupSettings,
    ) -> Result<Self> {
        let mut sorted: BTreeMap<&str, &[usize]> = BTreeMap::new();
        for (name, shape) in variables {
            if sorted.insert(name, shape).is_some() {
                return Err(Error::GroupedTwice { name: name.into() });
            }
        }
        settings.check(family, |is_meant| sorted.keys().any(|name| is_meant(name)))?;
        let overrides = settings.overrides()?;
        for (pattern, of) in &overrides {
            if !sorted.keys().any(|name| pattern.is_match(name)) {
                return Err(Error::MatchesNothing {
                    setting: "overrides",
                    entry: of.pattern.clone(),
                });
            }
        }
        let mut by_kind: BTreeMap<(GroupKind, [Option<u64>; 2]), Group> = BTreeMap::new();
        for (name, shape) in sorted {
            let kind = settings.kind(name, shape, family);
            let matching = overrides.iter().filter(|(regex, _)| regex.is_match(name));
            let (lr, decay) = matching.fold((None, None), |(lr, decay), (_, of)| {
                (of.lr.or(lr), of.weight_decay.or(decay))
            });
            // Frozen variables stay frozen.
            let (lr, decay) = match kind {
                GroupKind::Frozen => (None, None),
                _ => (lr, decay),
            };
            let key = (kind, [lr, decay].map(|number| number.map(f64::to_bits)));
            let group = by_kind.entry(key).or_insert_with(|| {
                let mut group = settings.empty(kind);
                group.rate_factor = lr.map_or(group.rate_factor, |lr| lr / settings.lr);
                group.lr = lr;
                group.decay = decay.unwrap_or(group.decay);
                group
            });
            group.names.push(name.to_owned());
            group.elements += shape.iter().product::<usize>();
        }
        let groups: Vec<Group> = by_kind.into_values().collect();
        let mut place = BTreeMap::new();
        for (index, group) in groups.iter().enumerate() {
            place.extend(group.names.iter().map(|name| (name.clone(), index)));
        }
        Ok(Self { groups, place })
    }

    /// The groups that have members.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The group of a variable.
    ///
    /// # Errors
    /// [`Error::NotGrouped`] when it is in none.
    pub fn group(&self, name: &str) -> Result<&Group> {
        let index = self.place.get(name);
        index
            .and_then(|index| self.groups.get(*index))
            .ok_or_else(|| Error::NotGrouped { name: name.into() })
    }

    /// Checks that the variables that are to be trained are those of the groups: none is missing, none
    /// comes twice, none is left over.
    ///
    /// # Errors
    /// [`Error::NotGrouped`], [`Error::GroupedTwice`] or [`Error::NoSuchVariable`], with its name.
    pub fn check<'a>(&self, variables: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mut left: BTreeMap<&str, bool> =
            self.place.keys().map(|name| (&**name, false)).collect();
        for name in variables {
            match left.insert(name, true) {
                Some(false) => {}
                Some(true) => return Err(Error::GroupedTwice { name: name.into() }),
                None => return Err(Error::NotGrouped { name: name.into() }),
            }
        }
        match left.into_iter().find(|(_, seen)| !seen) {
            Some((name, _)) => Err(Error::NoSuchVariable { name: name.into() }),
            None => Ok(()),
        }
    }
}

impl GroupSettings {
    fn kind(&self, name: &str, shape: &[usize], family: &Grouping) -> GroupKind {
        let is_part = |parts: &[String]| parts.iter().any(|part| name.contains(&**part));
        if !self.trainable.is_empty() && !is_part(&self.trainable) {
            return GroupKind::Frozen;
        }
        let member = family.membership(name);
        let is_raised = self.raised.iter().any(|path| has_segments(name, path));
        let module = match (&self.heads, member.module) {
            _ if is_raised => Module::Head,
            (Some(heads), _) if is_part(heads) => Module::Head,
            (Some(_), Module::Head) => Module::Body,
            (None, module) => match &self.missing {
                Some(missing) if family.raises_missing => {
                    match missing.iter().any(|missing| missing == name) {
                        true => Module::Head,
                        false => Module::Body,
                    }
                }
                _ => module,
            },
            (Some(_), module) => module,
        };
        match (module, self.decays(member, name, shape)) {
            (Module::Body, true) => GroupKind::BodyDecay,
            (Module::Body, false) => GroupKind::BodyNoDecay,
            (Module::CrossModal, true) => GroupKind::CrossModalDecay,
            (Module::CrossModal, false) => GroupKind::CrossModalNoDecay,
            (Module::Head, true) => GroupKind::HeadDecay,
            (Module::Head, false) => GroupKind::HeadNoDecay,
        }
    }

    /// The overrides with their patterns.
    fn overrides(&self) -> Result<Vec<(Regex, &Override)>> {
        let compiled = self.overrides.iter().map(|of| {
            let bad = |reason: String| Error::BadSetting {
                key: "optim.overrides".into(),
                reason,
            };
            if of.lr.is_some() && self.lr == 0.0 {
                let reason = "a rate of its own cannot follow the schedule of `lr: 0`";
                return Err(bad(reason.into()));
            }
            let regex = Regex::new(&of.pattern).map_err(|error| bad(error.to_string()))?;
            Ok((regex, of))
        });
        compiled.collect()
    }

    fn decays(&self, member: Membership, name: &str, shape: &[usize]) -> bool {
        let is_norm = shape.len() == 1 && name.rsplit('.').next() == Some("weight");
        match self.rules {
            GroupRules::All => true,
            GroupRules::Published => member.decays,
            GroupRules::Exact => member.decays && !is_norm,
        }
    }

    fn empty(&self, kind: GroupKind) -> Group {
        let (rate_factor, decay) = match kind {
            GroupKind::BodyDecay => (1.0, self.weight_decay),
            GroupKind::BodyNoDecay => (1.0, 0.0),
            GroupKind::CrossModalDecay => (self.cross_modal_lr_mult, self.weight_decay),
            GroupKind::CrossModalNoDecay => (self.cross_modal_lr_mult, 0.0),
            GroupKind::HeadDecay => (self.lr_mult, self.head_weight_decay),
            GroupKind::HeadNoDecay => (self.lr_mult, 0.0),
            GroupKind::Frozen => (0.0, 0.0),
        };
        Group {
            kind,
            rate_factor,
            lr: None,
            decay,
            names: Vec::new(),
            elements: 0,
        }
    }

    /// Refuses entries that are in no name, and a factor without variables: most likely a slip, and
    /// silently without effect.
    fn check(&self, family: &Grouping, any: impl Fn(&dyn Fn(&str) -> bool) -> bool) -> Result<()> {
        let contains: fn(&str, &str) -> bool = |name, part| name.contains(part);
        let heads = self.heads.as_deref().unwrap_or_default();
        let settings = [
            ("heads", heads, contains),
            ("trainable", &*self.trainable, contains),
            ("raised", &*self.raised, has_segments),
        ];
        for (setting, entries, is_in) in settings {
            if let Some(entry) = entries
                .iter()
                .find(|entry| !any(&|name| is_in(name, entry)))
            {
                return Err(Error::MatchesNothing {
                    setting,
                    entry: entry.clone(),
                });
            }
        }
        let is_cross_modal = |name: &str| family.membership(name).module == Module::CrossModal;
        if self.cross_modal_lr_mult != 1.0 && !any(&is_cross_modal) {
            return Err(Error::BadSetting {
                key: "optim.cross_modal_lr_mult".into(),
                reason: "the model's family has no cross-modal layers that learn at another rate; leave it out"
                    .into(),
            });
        }
        Ok(())
    }
}

/// Whether the segments of `path` come in a row among those of `name`.
fn has_segments(name: &str, path: &str) -> bool {
    let name: Vec<&str> = name.split('.').collect();
    let path: Vec<&str> = path.split('.').collect();
    name.windows(path.len()).any(|segments| segments == path)
}
