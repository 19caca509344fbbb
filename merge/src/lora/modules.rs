//! Finds the module of the base that a name in an adapter means, in every published spelling.

use std::collections::BTreeMap;

use super::Renames;
use crate::Checkpoint;

/// Prefixes by which diffusers marks the parts of a pipeline.
const COMPONENTS: [&str; 6] = [
    "unet.",
    "transformer.",
    "text_encoder.",
    "text_encoder_2.",
    "text_encoder_3.",
    "diffusion_model.",
];

/// Prefixes of kohya and LyCORIS, before names with underscores.
const FLAT: [&str; 8] = [
    "lora_unet_",
    "lora_transformer_",
    "lora_te1_",
    "lora_te2_",
    "lora_te3_",
    "lora_te_",
    "lycoris_unet_",
    "lycoris_",
];

/// The modules of a base, by all their spellings.
pub(super) struct Modules {
    /// With underscores for dots; `None` where two are spelled alike.
    flat: BTreeMap<String, Option<String>>,
    renames: Renames,
}

impl Modules {
    pub(super) fn new(base: &Checkpoint, renames: &Renames) -> Self {
        let mut flat: BTreeMap<String, Option<String>> = BTreeMap::new();
        let weights = base.tensors().map(|(name, _)| name);
        let modules = weights.filter_map(|name| name.strip_suffix(".weight"));
        for module in modules {
            flat.entry(module.replace('.', "_"))
                .and_modify(|known| *known = None)
                .or_insert_with(|| Some(module.to_owned()));
        }
        Self {
            flat,
            renames: renames.clone(),
        }
    }

    /// The name of a tensor, with the changes that the recipe asks for.
    pub(super) fn renamed(&self, name: String) -> String {
        let change = |name: String, (from, to): &(regex::Regex, String)| {
            from.replace(&name, to.as_str()).into_owned()
        };
        self.renames.iter().fold(name, change)
    }

    /// The tensor `end` of the module that `written` means.
    pub(super) fn tensor(&self, base: &Checkpoint, written: &str, end: &str) -> String {
        let name = self.renamed(format!("{written}.{end}"));
        if base.get(&name).is_some() {
            return name;
        }
        let module = name.strip_suffix(&format!(".{end}")).unwrap_or(&name);
        let found = self.other_spelling(base, module);
        found.map_or(name, |module| format!("{module}.{end}"))
    }

    /// The module that a name of another program means.
    fn other_spelling(&self, base: &Checkpoint, written: &str) -> Option<String> {
        let is_there = |module: &String| base.get(&format!("{module}.weight")).is_some();
        let dotted = |written: &str| {
            // Attention processors of older diffusers have the layers of the module around them.
            let plain = written.replace(".processor.", ".");
            let output = format!("{plain}.0");
            [written.to_owned(), plain, output]
                .into_iter()
                .find(is_there)
        };
        let of_part = |prefix: &&str| dotted(written.strip_prefix(*prefix)?);
        if let Some(found) = dotted(written).or_else(|| COMPONENTS.iter().find_map(of_part)) {
            return Some(found);
        }
        let of_flat = |prefix: &&str| {
            let flat = written.strip_prefix(*prefix)?;
            self.flat.get(flat).cloned().flatten()
        };
        FLAT.iter().find_map(of_flat)
    }

    /// The part of a pipeline that a name belongs to, if it says so.
    pub(super) fn component(written: &str) -> Option<&'static str> {
        let all = COMPONENTS.iter().chain(&FLAT);
        all.copied()
            .find(|prefix| written.starts_with(prefix) && *prefix != "lycoris_")
    }
}
