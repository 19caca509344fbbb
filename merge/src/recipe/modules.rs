//! The parts of an output: the whole model merged in one way, or each module in its own.

use serde::{Deserialize, Serialize};

use super::{MergeRecipe, ModelRef, OutputSlice, Parameters};

/// A module of the output, such as the language model or the vision tower of a vision-language model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputModule {
    /// The checkpoints whose tensors of the module are merged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelRef>,
    /// Instead of `models`, layers of the module and their sources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<OutputSlice>,
    /// The stack of layers that `slices` cut, where the module has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<String>,
    /// Parameters for the module, which come before those of the recipe.
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
}

/// The settings of a recipe for the whole output, or for one module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// The module; `None` for the whole output.
    pub(crate) module: Option<&'a str>,
    /// The checkpoints that are merged tensor by tensor.
    pub(crate) models: &'a [ModelRef],
    /// Or the layers of the output.
    pub(crate) slices: &'a [OutputSlice],
    /// The stack that slices cut.
    pub(crate) layers: Option<&'a str>,
    /// Parameters, the nearest first.
    parameters: [Option<&'a Parameters>; 2],
}

impl<'a> Part<'a> {
    /// Parameters of the part and of the recipe, the nearest first.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &'a Parameters> + use<'a> {
        self.parameters.into_iter().flatten()
    }

    /// The models that are merged, those of slices after the others; bases are not among them.
    pub(crate) fn merged(self) -> impl Iterator<Item = ModelRef> + use<'a> {
        let sliced = self.slices.iter().flat_map(|slice| &slice.sources);
        (self.models.iter().cloned()).chain(sliced.map(|source| source.model_ref()))
    }

    /// The bases that slices have of their own.
    pub(crate) fn bases(self) -> impl Iterator<Item = &'a ModelRef> {
        self.slices.iter().flat_map(|slice| &slice.base_model)
    }
}

impl MergeRecipe {
    /// The parts of the output: its modules by name, or all of it.
    pub(crate) fn parts(&self) -> Vec<Part<'_>> {
        if self.modules.is_empty() {
            return vec![Part {
                module: None,
                models: &self.models,
                slices: &self.slices,
                layers: self.layers.as_deref(),
                parameters: [None, Some(&self.parameters)],
            }];
        }
        let modules = self.modules.iter().map(|(name, module)| Part {
            module: Some(name),
            models: &module.models,
            slices: &module.slices,
            layers: module.layers.as_deref(),
            parameters: [Some(&module.parameters), Some(&self.parameters)],
        });
        modules.collect()
    }

    /// Whether the output has tensors of some models only by intention: layers, or modules.
    pub(crate) fn is_cut(&self) -> bool {
        !self.slices.is_empty() || !self.modules.is_empty()
    }

    /// The bases that slices of the recipe have of their own.
    pub(crate) fn slice_bases(&self) -> impl Iterator<Item = &ModelRef> {
        self.parts().into_iter().flat_map(Part::bases)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn modules_are_read_as_mergekit_has_them_and_written_as_they_were() {
        let yaml = "merge_method: linear\nmodules:\n  text_decoder:\n    slices:\n    - sources: [{model: a, \
                    layer_range: [0, 2], parameters: {weight: 0.5}}]\n      parameters: {weight: 1}\n    parameters: \
                    {weight: 2}\n  vision_tower: {models: [a, {model: b, parameters: {weight: 3}}]}\nparameters: \
                    {weight: 4}\n";
        let recipe = MergeRecipe::parse(yaml, Path::new("r.yaml")).expect("valid");
        let parts = recipe.parts();
        let names: Vec<_> = parts.iter().map(|part| part.module).collect();
        assert_eq!(names, [Some("text_decoder"), Some("vision_tower")]);
        assert_eq!(parts[0].parameters().count(), 2);
        assert_eq!(parts[1].models.len(), 2);
        let again = MergeRecipe::parse(&recipe.to_yaml().expect("YAML"), Path::new("r.yaml"));
        let again = again.expect("valid");
        assert_eq!(again.to_yaml().ok(), recipe.to_yaml().ok());
    }

    #[test]
    fn what_a_module_cannot_have_is_refused_by_name() {
        for (key, words) in [
            ("merge_method: ties", "one method for all modules"),
            ("base_model: a", "one base for all modules"),
            ("filter: x", "unknown field"),
        ] {
            let yaml =
                format!("merge_method: linear\nmodules: {{default: {{models: [a], {key}}}}}");
            let error = MergeRecipe::parse(&yaml, Path::new("r.yaml")).expect_err("refused");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
