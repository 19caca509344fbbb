//! From parameters as written to their values for one tensor: precedence, filters, gradients, ranges.

use std::collections::{BTreeMap, BTreeSet};

use regex::{Regex, RegexBuilder};

use crate::methods::{Fallback, Kind, Member, MergeMethod, ParameterSpec, Scope, Setting, Values};
use crate::methods::{METHODS, by_name};
use crate::recipe::{Case, CaseValue, Parameter, Parameters, Place, Scalar};
use crate::{Error, MergeFault, Result};

/// A layer within its slice or stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// Counted from 0.
    pub(super) layer: usize,
    /// The number of layers.
    pub(super) n_layers: usize,
}

impl Layer {
    /// 0 for the first, 1 for the last; 1 for the only one.
    pub(super) fn depth(self) -> f64 {
        match self.n_layers {
            1 => 1.0,
            n => self.layer as f64 / (n.max(2) - 1) as f64,
        }
    }
}

/// A model's own parameters, and where the model stands in the recipe.
pub(super) type Own<'a> = (&'a Parameters, Place);

/// Resolves the parameters of one method.
pub(super) struct Settings {
    method: &'static str,
    specs: &'static [ParameterSpec],
    /// Parameters that the method reads itself.
    own: &'static [&'static str],
    /// Whether parameters of other methods are errors.
    is_strict: bool,
    /// Patterns that were compiled.
    patterns: BTreeMap<String, Regex>,
    /// Cases that decided for a tensor, by the parameter's name and the patterns.
    deciding: BTreeSet<(&'static str, String)>,
}

impl Settings {
    /// For the parameters of this method.
    pub(super) fn new(method: &dyn MergeMethod) -> Self {
        Self {
            method: method.name(),
            specs: method.parameters(),
            own: method.own_parameters(),
            is_strict: method.refuses_foreign_parameters(),
            patterns: BTreeMap::new(),
            deciding: BTreeSet::new(),
        }
    }

    /// Refuses parameters that no method has. Those that other methods have are left over from another
    /// recipe: for methods of mergekit they are passed over as there, each with a note.
    pub(super) fn check_names(&self, parameters: &Parameters) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        let mut known: Vec<&'static str> = self.specs.iter().map(|spec| spec.name).collect();
        known.extend(self.own);
        for (name, value) in &parameters.0 {
            if known.contains(&name.as_str()) || self.is_strict {
                continue;
            }
            if let Some(of_others) = of_other_methods(name) {
                let (method, place) = (self.method, value.place);
                notes.push(format!(
                    "{method} has no use for `{name}`{place}; it is passed over"
                ));
                known.push(of_others);
            }
        }
        parameters.allow_only(self.method, &known)?;
        Ok(notes)
    }

    /// The specification of a parameter.
    fn spec(&self, name: &str) -> Option<&'static ParameterSpec> {
        self.specs.iter().find(|spec| spec.name == name)
    }

    /// Refuses cases that no tensor comes to, behind one that fits all.
    pub(super) fn check_cases(&self, parameters: &Parameters) -> Result<()> {
        for (name, located) in &parameters.0 {
            let Parameter::Cases(cases) = &located.value else {
                continue;
            };
            let mut behind = cases.iter().skip_while(|case| !case.fits_all()).skip(1);
            if let (Some(_), Some(case)) = (self.spec(name), behind.next()) {
                let case = match case.patterns() {
                    patterns if patterns.is_empty() => "another case".to_owned(),
                    patterns => format!("the case `{patterns}`"),
                };
                return Err(MergeFault::NoEffect {
                    key: name.clone(),
                    why: format!("{case} stands behind one that fits every tensor"),
                    place: located.place,
                }
                .into());
            }
        }
        Ok(())
    }

    /// Notes on parameters of one model that the method reads for all models together.
    pub(super) fn misplaced(&self, parameters: &Parameters) -> Vec<String> {
        let shared = |name: &str| {
            let spec = self.spec(name)?;
            // Without a default its lack is an error.
            let is_required = matches!(spec.default, Fallback::Required);
            (matches!(spec.scope, Scope::Shared) && !is_required).then_some(())
        };
        let found = parameters
            .0
            .iter()
            .filter(|(name, _)| shared(name).is_some());
        found
            .map(|(name, located)| {
                format!(
                    "{} reads `{name}` for all models together: under a model{} it is passed over",
                    self.method, located.place
                )
            })
            .collect()
    }

    /// Notes on cases that decided for no tensor, each once.
    pub(super) fn idle_cases<'a>(&self, all: impl Iterator<Item = &'a Parameters>) -> Vec<String> {
        let mut notes = Vec::new();
        let mut known = BTreeSet::new();
        for (name, located) in all.flat_map(|parameters| &parameters.0) {
            let Some(spec) = self.spec(name) else {
                continue;
            };
            let cases = match &located.value {
                Parameter::Case(case) => std::slice::from_ref(case),
                Parameter::Cases(cases) => cases.as_slice(),
                _ => continue,
            };
            for case in cases.iter().filter(|case| !case.fits_all()) {
                let case_key = (spec.name, case.patterns());
                if self.deciding.contains(&case_key) || !known.insert(case_key.clone()) {
                    continue;
                }
                let hint = match case.glob {
                    Some(_) => "; a glob stands for the whole name",
                    None => "",
                };
                notes.push(format!(
                    "`{name}`: the case `{}` decides for no tensor{}{hint}",
                    case_key.1, located.place
                ));
            }
        }
        notes
    }

    /// The values for the tensor `key`. `own` are each member's own parameters; `shared` those of the
    /// group, the nearest first.
    pub(super) fn resolve(
        &mut self,
        key: &str,
        layer: Option<Layer>,
        members: &[Member],
        own: &[Own<'_>],
        shared: &[&Parameters],
    ) -> Result<Values> {
        let mut values = Values {
            members: vec![BTreeMap::new(); members.len()],
            ..Values::default()
        };
        for spec in self.specs {
            match spec.scope {
                Scope::Shared => {
                    let found = self.find(spec, key, layer, None, shared)?;
                    let given = own.iter().find_map(|(own, _)| own.get(spec.name));
                    if let (None, Fallback::Required, Some((_, place))) =
                        (&found, spec.default, given)
                    {
                        return Err(MergeFault::Misplaced {
                            method: self.method,
                            name: spec.name,
                            place,
                        }
                        .into());
                    }
                    let found =
                        self.or_default(found, spec, key, "all models", Place::default())?;
                    values.shared.extend(found.map(|found| (spec.name, found)));
                }
                Scope::PerMember => {
                    for (index, member) in members.iter().enumerate() {
                        let (parameters, place) = own[index];
                        let mut levels = vec![parameters];
                        levels.extend(shared);
                        let found = self.find(spec, key, layer, Some(member), &levels)?;
                        let name = member.to_string();
                        let found = self.or_default(found, spec, key, &name, place)?;
                        values.members[index].extend(found.map(|found| (spec.name, found)));
                    }
                }
            }
        }
        let weights = values.numbers("weight");
        // Of magnitudes, for some methods add up only the weights of one sign.
        if !weights
            .iter()
            .map(|weight| weight.abs())
            .sum::<f64>()
            .is_finite()
        {
            return Err(MergeFault::WeightsOverflow {
                slot: key.to_owned(),
                place: values.place("weight", 0),
                weights,
            }
            .into());
        }
        Ok(values)
    }

    fn or_default(
        &self,
        found: Option<(Setting, Place)>,
        spec: &ParameterSpec,
        key: &str,
        member: &str,
        place: Place,
    ) -> Result<Option<(Setting, Place)>> {
        let nowhere = Place::default();
        Ok(match (found, spec.default) {
            (Some(found), _) => Some(found),
            (None, Fallback::Absent) => None,
            (None, Fallback::Number(value)) => Some((Setting::Number(value), nowhere)),
            (None, Fallback::Flag(value)) => Some((Setting::Flag(value), nowhere)),
            (None, Fallback::Text(value)) => Some((Setting::Text(value.to_owned()), nowhere)),
            (None, Fallback::Required) => {
                return Err(MergeFault::MissingParameter {
                    slot: key.to_owned(),
                    method: self.method,
                    name: spec.name,
                    member: member.to_owned(),
                    place,
                }
                .into());
            }
        })
    }

    /// The value at the first level that says anything of this tensor.
    fn find(
        &mut self,
        spec: &ParameterSpec,
        key: &str,
        layer: Option<Layer>,
        member: Option<&Member>,
        levels: &[&Parameters],
    ) -> Result<Option<(Setting, Place)>> {
        for parameters in levels {
            let Some((parameter, place)) = parameters.get(spec.name) else {
                continue;
            };
            let scalar = match parameter {
                Parameter::Flag(value) => Some(Scalar::Flag(*value)),
                Parameter::Number(value) => Some(Scalar::Number(*value)),
                Parameter::Text(value) => Some(Scalar::Text(value.clone())),
                Parameter::Gradient(values) => along(values, layer),
                Parameter::Case(case) => self.of_case(spec, case, place, (key, layer))?,
                Parameter::Cases(cases) => {
                    let mut hit = None;
                    for case in cases {
                        hit = self.of_case(spec, case, place, (key, layer))?;
                        if hit.is_some() {
                            break;
                        }
                    }
                    hit
                }
                Parameter::PerExpert(values) => match member {
                    Some(Member::Expert(expert)) => {
                        values.get(expert).map(|&value| Scalar::Number(value))
                    }
                    _ => return Err(wrong(spec, key, place)),
                },
            };
            if let Some(scalar) = scalar {
                return Ok(Some((checked(spec, scalar, key, place)?, place)));
            }
        }
        Ok(None)
    }

    /// The value of a case, if it fits the tensor's name.
    fn of_case(
        &mut self,
        spec: &ParameterSpec,
        case: &Case,
        place: Place,
        (key, layer): (&str, Option<Layer>),
    ) -> Result<Option<Scalar>> {
        let by_filter =
            (case.filter.as_deref()).is_none_or(|part| part == "*" || key.contains(part));
        let by_glob = match &case.glob {
            None => true,
            Some(glob) => self
                .pattern(&glob_pattern(glob), glob, place)?
                .is_match(key),
        };
        let by_regex = match &case.regex {
            None => true,
            Some(regex) => self.pattern(regex, regex, place)?.is_match(key),
        };
        let value = match &case.value {
            _ if !(by_filter && by_glob && by_regex) => None,
            CaseValue::One(value) => Some(value.clone()),
            CaseValue::Gradient(values) => along(values, layer),
        };
        if value.is_some() && !case.fits_all() {
            self.deciding.insert((spec.name, case.patterns()));
        }
        Ok(value)
    }

    fn pattern(&mut self, pattern: &str, written: &str, place: Place) -> Result<&Regex> {
        use std::collections::btree_map::Entry;
        Ok(match self.patterns.entry(pattern.to_owned()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(compile(pattern, written, place)?),
        })
    }
}

/// Parameters of mergekit that it reads nowhere, or that mean nothing here.
const WITHOUT_USE: [&str; 4] = ["embed_slerp", "int8_mask", "filter_wise", "rescale"];

/// The name, if any method has such a parameter.
fn of_other_methods(name: &str) -> Option<&'static str> {
    let methods = METHODS
        .iter()
        .filter_map(|row| by_name(row.name, &Parameters::default(), false).ok());
    let specs = methods.flat_map(|method| method.parameters());
    let names = specs.map(|spec| spec.name).chain(WITHOUT_USE);
    names.into_iter().find(|known| *known == name)
}

/// Compiles a regular expression of a recipe.
pub(super) fn compile(pattern: &str, written: &str, place: Place) -> Result<Regex> {
    bounded(pattern).map_err(|error| {
        MergeFault::BadPattern {
            pattern: written.chars().take(SHOWN_CHARS).collect(),
            reason: error.to_string(),
            place,
        }
        .into()
    })
}

/// Messages show patterns up to this many characters.
const SHOWN_CHARS: usize = 200;

/// The longest pattern: names have some hundred bytes.
const MAX_PATTERN_BYTES: usize = 4096;

/// The most memory that a pattern may take when it is compiled.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// The number of times that a pattern may repeat something by numbers in braces, all of them multiplied.
const MAX_REPEATS: usize = 10_000;

/// Compiles a pattern that a stranger may have written.
fn bounded(pattern: &str) -> std::result::Result<Regex, regex::Error> {
    // Asked before it is compiled, for that takes time as well.
    if pattern.len() > MAX_PATTERN_BYTES || repeats(pattern) > MAX_REPEATS {
        return Err(regex::Error::CompiledTooBig(MAX_COMPILED_BYTES));
    }
    (RegexBuilder::new(pattern).size_limit(MAX_COMPILED_BYTES)).build()
}

/// The product of the largest numbers in braces.
fn repeats(pattern: &str) -> usize {
    let braces = pattern
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}'));
    let most = braces.filter_map(|(inner, _)| {
        let numbers = inner
            .split(',')
            .filter_map(|number| number.trim().parse::<usize>().ok());
        numbers.max()
    });
    most.fold(1, |product, number| product.saturating_mul(number.max(1)))
}

/// A pattern of tensor names as a flag has it: with `*` for any characters and `?` for one, or a regular
/// expression between slashes.
///
/// # Errors
/// When that is none.
pub fn name_pattern(written: &str) -> std::result::Result<Regex, regex::Error> {
    let inner = written
        .strip_prefix('/')
        .and_then(|rest| rest.strip_suffix('/'));
    bounded(&inner.map_or_else(|| glob_pattern(written), str::to_owned))
}

/// `*` for any characters, `?` for one, all else as it is.
fn glob_pattern(glob: &str) -> String {
    let mut pattern = String::from("^");
    let mut before = None;
    for c in glob.chars() {
        match c {
            // Several are as one.
            '*' if before == Some('*') => {}
            '*' => pattern += ".*",
            '?' => pattern.push('.'),
            c => pattern += &regex::escape(&c.to_string()),
        }
        before = Some(c);
    }
    pattern + "$"
}

/// The value of a gradient at a layer: numbers are mixed, others picked. Tensors outside the layers
/// take the first.
fn along(values: &[Scalar], layer: Option<Layer>) -> Option<Scalar> {
    let last = values.len().checked_sub(1)?;
    let at = layer.map_or(0.0, Layer::depth) * last as f64;
    let index = (at.floor() as usize).min(last);
    let share = at - index as f64;
    Some(match (&values[index], &values[(index + 1).min(last)]) {
        (&Scalar::Number(a), &Scalar::Number(b)) => Scalar::Number((1.0 - share) * a + share * b),
        (picked, _) => picked.clone(),
    })
}

/// Checks a value against what its parameter takes.
fn checked(spec: &ParameterSpec, value: Scalar, key: &str, place: Place) -> Result<Setting> {
    match (spec.kind, value) {
        (Kind::Number { holds, .. }, Scalar::Number(value))
            if value.is_finite() && holds(value) =>
        {
            Ok(Setting::Number(value))
        }
        (Kind::Flag, Scalar::Flag(value)) => Ok(Setting::Flag(value)),
        // A gradient of numbers may stand for a yes or no in recipes of mergekit.
        (Kind::Flag, Scalar::Number(value)) if value == 0.0 || value == 1.0 => {
            Ok(Setting::Flag(value == 1.0))
        }
        (Kind::Choice { yes, no, .. }, Scalar::Flag(value)) if !yes.is_empty() => {
            Ok(Setting::Text(if value { yes } else { no }.to_owned()))
        }
        (Kind::Choice { names, .. }, Scalar::Text(text)) if names.contains(&text.as_str()) => {
            Ok(Setting::Text(text))
        }
        (Kind::File, Scalar::Text(text)) => Ok(Setting::Text(text)),
        _ => Err(wrong(spec, key, place)),
    }
}

fn wrong(spec: &ParameterSpec, key: &str, place: Place) -> Error {
    let wanted = match spec.kind {
        Kind::Number { range, .. } => range.to_owned(),
        Kind::Flag => "true or false".to_owned(),
        Kind::Choice { names, yes, .. } => one_of(names, !yes.is_empty()),
        Kind::File => "the path of a file".to_owned(),
    };
    MergeFault::BadValue {
        slot: key.to_owned(),
        name: spec.name,
        wanted,
        place,
    }
    .into()
}

/// ``true, false, `l1` or `none` ``.
fn one_of(names: &[&str], or_flags: bool) -> String {
    let flags = ["true", "false"].map(str::to_owned).into_iter();
    let names = names.iter().map(|name| format!("`{name}`"));
    let mut all: Vec<String> = flags.filter(|_| or_flags).chain(names).collect();
    match all.pop() {
        Some(last) if !all.is_empty() => format!("{} or {last}", all.join(", ")),
        last => last.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(values: &[f64], layer: usize, n_layers: usize) -> Option<Scalar> {
        let values: Vec<Scalar> = values.iter().map(|&value| Scalar::Number(value)).collect();
        along(&values, Some(Layer { layer, n_layers }))
    }

    #[test]
    fn gradients_are_straight_between_their_numbers() {
        // pos = 1/4, s = ½: halfway between the first two.
        assert_eq!(at(&[0.0, 1.0, 3.0], 1, 5), Some(Scalar::Number(0.5)));
        assert_eq!(at(&[0.0, 1.0, 3.0], 4, 5), Some(Scalar::Number(3.0)));
        assert_eq!(at(&[0.0, 1.0], 0, 1), Some(Scalar::Number(1.0)));
        let flags = [Scalar::Flag(true), Scalar::Flag(false)];
        let layer = Layer {
            layer: 1,
            n_layers: 4,
        };
        assert_eq!(along(&flags, Some(layer)), Some(Scalar::Flag(true)));
        assert_eq!(
            along(&[Scalar::Number(7.0), Scalar::Number(9.0)], None),
            Some(Scalar::Number(7.0))
        );
    }

    #[test]
    fn a_glob_fits_whole_names_and_takes_dots_as_they_are() {
        let fits = |glob: &str, key: &str| {
            Regex::new(&glob_pattern(glob))
                .expect("valid")
                .is_match(key)
        };
        assert!(fits("*.mlp.fc?.weight", "blocks.0.mlp.fc1.weight"));
        assert!(!fits("mlp.*", "blocks.0.mlp.fc1.weight"));
        assert!(!fits("a.b", "axb"));
        assert_eq!(glob_pattern(&"*".repeat(16_000)), "^.*$");
    }

    #[test]
    fn patterns_that_would_take_long_are_refused_at_once() {
        let begun = std::time::Instant::now();
        for pattern in [
            r"\pL{1000}{1000}",
            r"(\w{100}){90}\d{9}",
            &"a".repeat(5000),
            r"\pL{1000}",
        ] {
            assert!(bounded(pattern).is_err(), "{pattern}");
        }
        assert!(begun.elapsed().as_secs_f64() < 1.0);
        assert!(bounded(r"^model\.layers\.\d{1,3}\.(\w+)").is_ok());
    }
}
