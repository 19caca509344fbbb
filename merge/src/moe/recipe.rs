//! A recipe of `mergekit-moe`.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::mixtures::MAX_EXPERTS;
use crate::recipe::{ModelName, OutputDType};
use crate::{Error, Result};

/// Recipes are written by hand; anything larger is not one.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// A mixture as it is asked for, with the keys that mergekit gives them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeRecipe {
    /// The model that everything but the experts is of.
    pub base_model: ModelName,
    /// How routers come about.
    #[serde(default)]
    pub gate_mode: GateMode,
    /// Element type of the output; that of the base's configuration unless given.
    #[serde(default, deserialize_with = "dtype_or_none")]
    pub dtype: OutputDType,
    /// Experts that a token goes to.
    #[serde(default = "two")]
    pub experts_per_token: usize,
    /// The experts.
    pub experts: Vec<MoeExpert>,
    /// Experts that every token goes to.
    #[serde(
        default,
        deserialize_with = "list_or_none",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub shared_experts: Vec<MoeExpert>,
    /// The architecture of the output, by the beginning of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The file, for messages.
    #[serde(skip)]
    pub path: PathBuf,
}

/// A model whose networks are experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeExpert {
    /// The model.
    pub source_model: ModelName,
    /// Prompts that should go to the expert.
    #[serde(
        default,
        deserialize_with = "list_or_none",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub positive_prompts: Vec<String>,
    /// Prompts that should not.
    #[serde(
        default,
        deserialize_with = "list_or_none",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub negative_prompts: Vec<String>,
    /// Standard deviation of noise on its weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_scale: Option<f64>,
    /// Factor on what it adds to the residual stream: on its `down_proj`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_scale: Option<f64>,
}

/// How routers come about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateMode {
    /// From the hidden states of the prompts, layer by layer: of the last token.
    #[default]
    Hidden,
    /// From their mean over tokens.
    HiddenAvg,
    /// As `hidden`.
    HiddenLast,
    /// From the embeddings of the prompts' tokens, the same in every layer.
    CheapEmbed,
    /// Standard normal draws.
    Random,
    /// As torch starts a linear layer.
    UniformRandom,
}

impl GateMode {
    /// Its name in recipes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::HiddenAvg => "hidden_avg",
            Self::HiddenLast => "hidden_last",
            Self::CheapEmbed => "cheap_embed",
            Self::Random => "random",
            Self::UniformRandom => "uniform_random",
        }
    }

    /// Whether the base must be run on the prompts.
    #[must_use]
    pub const fn needs_forward(self) -> bool {
        matches!(self, Self::Hidden | Self::HiddenAvg | Self::HiddenLast)
    }

    /// Whether gates are drawn.
    #[must_use]
    pub const fn is_drawn(self) -> bool {
        matches!(self, Self::Random | Self::UniformRandom)
    }
}

fn two() -> usize {
    2
}

fn dtype_or_none<'de, D: serde::Deserializer<'de>>(from: D) -> Result<OutputDType, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn list_or_none<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl MoeRecipe {
    /// Reads a recipe and checks what it says by itself.
    ///
    /// # Errors
    /// [`Error::BadRecipe`] with line and column; for fewer experts than a token goes to, experts without prompts, and
    /// prompts that are the same for all experts.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::io("open", path, source);
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut text = String::new();
        let n_read = file.take(MAX_RECIPE_BYTES + 1).read_to_string(&mut text);
        if n_read.map_err(|source| Error::io("read", path, source))? as u64 > MAX_RECIPE_BYTES {
            return Err(Error::BadRecipe {
                path: path.into(),
                reason: format!("longer than {MAX_RECIPE_BYTES} bytes"),
            });
        }
        crate::io::require_fetched(path, text.as_bytes())?;
        Self::parse(&text, path)
    }

    /// Reads a recipe from YAML text; `path` is for messages only.
    ///
    /// # Errors
    /// As [`MoeRecipe::open`]'s.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let read: Result<Self, _> = serde_saphyr::from_str(text);
        let mut recipe = read.map_err(|error| Error::BadRecipe {
            path: path.into(),
            reason: error.to_string(),
        })?;
        path.clone_into(&mut recipe.path);
        recipe.check()?;
        let experts = recipe.experts.iter_mut().chain(&mut recipe.shared_experts);
        let models = experts.map(|expert| &mut expert.source_model);
        for model in models.chain([&mut recipe.base_model]) {
            model.path = crate::recipe::model_at(&model.path);
        }
        Ok(recipe)
    }

    fn check(&self) -> Result<()> {
        let n = self.experts.len();
        if !(1..=MAX_EXPERTS).contains(&n) {
            return Err(self.bad(format!("has {n} experts; a mixture has 1 to {MAX_EXPERTS}")));
        }
        if !(1..=n).contains(&self.experts_per_token) {
            let per_token = self.experts_per_token;
            return Err(self.bad(format!(
                "has experts_per_token: {per_token}, and {n} experts; a token goes to 1 to {n} of them"
            )));
        }
        for (what, expert) in self.all() {
            let numbers = [expert.noise_scale, expert.residual_scale];
            if numbers.iter().flatten().any(|number| !number.is_finite())
                || expert.noise_scale.is_some_and(|noise| noise < 0.0)
            {
                return Err(self.bad(format!(
                    "{what}: a scale is no finite number, or noise is negative"
                )));
            }
        }
        if self.gate_mode.is_drawn() {
            return Ok(());
        }
        for (what, expert) in self.gated() {
            if expert.positive_prompts.is_empty() {
                return Err(self.bad(format!(
                    "{what} has no positive_prompts, which gate_mode `{}` makes its gate of",
                    self.gate_mode.name()
                )));
            }
        }
        let prompts = |expert: &MoeExpert| {
            (
                expert.positive_prompts.clone(),
                expert.negative_prompts.clone(),
            )
        };
        let mut all = self.experts.iter().map(prompts);
        let first = all.next();
        if n > 1 && all.all(|other| Some(other) == first) {
            return Err(self.bad(
                "has the same prompts for all experts: every token would go to the same ones",
            ));
        }
        Ok(())
    }

    /// Whether all experts are the same networks.
    #[must_use]
    pub fn is_of_one_model(&self) -> bool {
        let mut experts = self.experts.iter().map(|expert| &expert.source_model.path);
        let first = experts.next();
        self.experts.len() > 1 && experts.all(|other| Some(other) == first)
    }

    /// All experts, with what they are called in messages.
    fn all(&self) -> Vec<(String, &MoeExpert)> {
        let experts = self.experts.iter().enumerate();
        let experts = experts.map(|(index, expert)| (format!("expert {index}"), expert));
        let shared = self.shared_experts.iter().enumerate();
        let shared = shared.map(|(index, expert)| (format!("shared expert {index}"), expert));
        experts.chain(shared).collect()
    }

    /// Those that get a gate, with what they are called in messages: all experts, and shared ones with prompts or drawn
    /// gates.
    #[must_use]
    pub fn gated(&self) -> Vec<(String, &MoeExpert)> {
        let is_drawn = self.gate_mode.is_drawn();
        let n = self.experts.len();
        let all = self.all().into_iter().enumerate();
        let gated = all.filter(|(index, (_, expert))| {
            *index < n || is_drawn || !expert.positive_prompts.is_empty()
        });
        gated.map(|(_, expert)| expert).collect()
    }

    /// The models, each once, the base first.
    #[must_use]
    pub fn models(&self) -> Vec<PathBuf> {
        let experts = self.experts.iter().chain(&self.shared_experts);
        let experts = experts.map(|expert| &expert.source_model.path);
        let mut models: Vec<PathBuf> = Vec::new();
        for path in std::iter::once(&self.base_model.path).chain(experts) {
            if !models.contains(path) {
                models.push(path.clone());
            }
        }
        models
    }

    /// The recipe as YAML, with the seed of its draws in a comment.
    pub(super) fn to_yaml(&self, seed: u64) -> Result<String> {
        let text = serde_saphyr::to_string(self).map_err(|error| self.bad(error.to_string()))?;
        let draws = self.gate_mode.is_drawn()
            || self
                .all()
                .iter()
                .any(|(_, expert)| expert.noise_scale.is_some());
        Ok(match draws {
            true => format!("# vlmerge moe --seed {seed}\n{text}"),
            false => format!("# vlmerge moe\n{text}"),
        })
    }

    pub(super) fn bad(&self, reason: impl Into<String>) -> Error {
        Error::BadRecipe {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MoeRecipe, String> {
        MoeRecipe::parse(text, "moe.yaml".as_ref()).map_err(|error| error.to_string())
    }

    const RECIPE: &str = "
base_model: base
gate_mode: cheap_embed
dtype: bfloat16
experts:
  - source_model: one
    positive_prompts: [code, \"programming\"]
    negative_prompts: [poems]
  - source_model: { model: { path: two } }
    positive_prompts: [poems]
    residual_scale: 0.5
";

    #[test]
    fn a_recipe_of_mergekit_is_read_as_it_is() {
        let recipe = parse(RECIPE).expect("a recipe");
        assert_eq!(recipe.experts_per_token, 2);
        assert_eq!(recipe.dtype, OutputDType::Bf16);
        assert_eq!(recipe.models(), ["base", "one", "two"].map(PathBuf::from));
        assert_eq!(recipe.experts[1].residual_scale, Some(0.5));
        let yaml = recipe.to_yaml(3).expect("YAML");
        let again = parse(&yaml).expect("a recipe");
        assert_eq!(again.experts, recipe.experts);
        let without = parse(
            "base_model: a\ngate_mode: random\ndtype: null\nshared_experts: null\nexperts_per_token: 1\nexperts: [{ source_model: b }]",
        );
        assert_eq!(without.expect("a recipe").dtype, OutputDType::Keep);
    }

    #[test]
    fn what_makes_no_mixture_is_refused() {
        for (from, to, why) in [
            ("dtype: bfloat16", "experts_per_token: 3", "1 to 2 of them"),
            ("dtype: bfloat16", "experts_per_token: 0", "1 to 2 of them"),
            ("dtype: bfloat16", "gate_mod: random", "gate_mod"),
            ("    positive_prompts: [poems]\n", "", "no positive_prompts"),
            ("cheap_embed", "cheap", "cheap"),
            (
                "residual_scale: 0.5",
                "residual_scale: .nan",
                "no finite number",
            ),
        ] {
            let fault = parse(&RECIPE.replace(from, to)).expect_err("refused");
            assert!(fault.contains(why), "{why}: {fault}");
        }
        let same = "base_model: a\ngate_mode: cheap_embed\nexperts:\n- { source_model: b, positive_prompts: [x] }\n- { source_model: c, positive_prompts: [x] }\n";
        assert!(
            parse(same)
                .expect_err("refused")
                .contains("the same prompts")
        );
        assert!(parse("base_model: a\ngate_mode: random\nexperts: []").is_err());
    }
}
