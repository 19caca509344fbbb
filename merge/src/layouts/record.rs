//! Facts about a model that its file has beside the weights.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::io::PlainValue;
use crate::{Checkpoint, Error, Result};

use super::{ClipFacts, Dimensions, PictureFacts, Sizes, VitFacts};

/// The key of the record in a file's metadata.
const KEY: &str = "vlmerge.model";

/// The attention between text and image in the blocks before the fusion start, in a pass with both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShallowAttention {
    /// Text and image apart, as vl-merging has it.
    PerModality,
    /// Everybody to everybody, as in VLMo, in vl-merging's ln-specific form and in its plain
    /// architecture.
    Joint,
}

/// The tokens that each token of a text sees in a model that reads texts in one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OneStream {
    /// The tokens before it.
    Causal,
    /// All others.
    Bidirectional,
}

/// The family of a record's facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordFamily {
    /// The multiway models: vl-merging, VLMo, BEiT.
    Multiway,
    /// ZeroVL.
    Zerovl,
    /// FLM.
    Flm,
    /// EVE.
    Eve,
    /// CLIP and SigLIP.
    Clip,
    /// Classifiers of timm.
    Vit,
    /// Residual networks.
    Resnet,
}

/// Facts about a model that its weights do not hold, as its maker knew them. Files that this program writes
/// carry them along. Settings of heads, temperature, colors and streams that say otherwise are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelRecord {
    /// The family of the facts; records without it are of multiway models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<RecordFamily>,
    /// Attention heads of each block; in FLM of each cross-modal layer and each of the reconstructor's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// First block in which text and image are one sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fusion_start: Option<usize>,
    /// Text positions that the bias table has room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_table_len: Option<usize>,
    /// Tokens of a text that is read together with an image, where the family fixes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair_len: Option<usize>,
    /// Whether text and image see each other before the fusion start, where the family does it
    /// otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shallow_attention: Option<ShallowAttention>,
    /// Attention heads of each block of the image tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_heads: Option<usize>,
    /// Attention heads of each block of the text tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_heads: Option<usize>,
    /// The divisor of similarities, of a model that does not learn it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// The number subtracted from each channel of a picture, after it is scaled to `[0, 1]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_mean: Option<[f32; 3]>,
    /// The divisor of each channel after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_deviation: Option<[f32; 3]>,
    /// The way of reading texts of a model that was trained to read them in one stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<OneStream>,
    /// The facts of CLIPs alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipFacts>,
    /// The way in which a classifier's pictures get their size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pictures: Option<PictureFacts>,
    /// The facts of timm's classifiers alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vit: Option<VitFacts>,
}

impl From<&Sizes> for ModelRecord {
    fn from(sizes: &Sizes) -> Self {
        Self {
            family: Some(RecordFamily::Multiway),
            heads: Some(sizes.n_heads),
            fusion_start: Some(sizes.fusion_start),
            text_table_len: Some(sizes.text_table_len),
            ..Self::default()
        }
    }
}

impl ModelRecord {
    /// The record of a checkpoint; an empty one if it has none.
    ///
    /// # Errors
    /// [`Error::BadModelRecord`].
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let Some(text) = checkpoint.info().metadata.get(KEY) else {
            return Ok(Self::default());
        };
        let bad = |reason: String| Error::BadModelRecord {
            path: checkpoint.path().into(),
            reason,
        };
        let record: Self = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        match record.foreign() {
            Some(name) => Err(bad(format!("`{name}` is no fact of its family"))),
            None => Ok(record),
        }
    }

    /// A fact that the record's family does not have.
    fn foreign(&self) -> Option<&'static str> {
        use RecordFamily::{Clip, Eve, Flm, Multiway, Resnet, Vit, Zerovl};
        let (multiway, towers) = ([Multiway].as_slice(), [Zerovl, Flm, Clip].as_slice());
        let seeing = [Zerovl, Flm, Clip, Vit, Resnet].as_slice();
        let facts = [
            (
                "heads",
                self.heads.is_some(),
                [Multiway, Flm, Eve, Vit].as_slice(),
            ),
            ("fusion_start", self.fusion_start.is_some(), multiway),
            (
                "text_table_len",
                self.text_table_len.is_some(),
                &[Multiway, Eve],
            ),
            ("pair_len", self.pair_len.is_some(), &[Eve]),
            (
                "shallow_attention",
                self.shallow_attention.is_some(),
                multiway,
            ),
            ("image_heads", self.image_heads.is_some(), towers),
            ("text_heads", self.text_heads.is_some(), towers),
            ("temperature", self.temperature.is_some(), &[Zerovl]),
            ("image_mean", self.image_mean.is_some(), seeing),
            ("image_deviation", self.image_deviation.is_some(), seeing),
            ("streams", self.streams.is_some(), &[Flm]),
            ("clip", self.clip.is_some(), &[Clip]),
            ("pictures", self.pictures.is_some(), &[Vit, Resnet]),
            ("vit", self.vit.is_some(), &[Vit]),
        ];
        let own = self.family.unwrap_or(Multiway);
        let mut foreign = facts
            .iter()
            .filter(|(_, is_there, families)| *is_there && !families.contains(&own));
        foreign.next().map(|(name, ..)| *name)
    }

    /// The heads of a tower, by the name of its stack.
    pub(super) fn heads_of(&self, stack: &str) -> Option<usize> {
        match stack {
            "image" => self.image_heads,
            "text" => self.text_heads,
            _ => self.heads,
        }
    }

    /// Whether the heads of towers divide their widths.
    ///
    /// # Errors
    /// [`Error::RecordContradicted`].
    pub(super) fn check_heads(&self, checkpoint: &Checkpoint, found: &Dimensions) -> Result<()> {
        let towers = [
            ("image_heads", "image"),
            ("text_heads", "text"),
            ("heads", "cross_modal"),
            ("heads", "blocks"),
        ];
        for (what, stack) in towers {
            let Some((heads, stack)) = self.heads_of(stack).zip(found.stack(stack)) else {
                continue;
            };
            if heads == 0 || !stack.width.is_multiple_of(heads) {
                return Err(Error::RecordContradicted {
                    path: checkpoint.path().into(),
                    what,
                    recorded: heads,
                    found: format!("a width of {}", stack.width),
                });
            }
        }
        Ok(())
    }

    /// The record of a checkpoint, or, where a Lightning checkpoint carries its configuration, what that
    /// says and the tensors do not contradict.
    fn known(checkpoint: &Checkpoint) -> Result<Self> {
        let record = Self::of(checkpoint)?;
        if record == Self::default()
            && let Some(clip) = super::clip::record(checkpoint)?
        {
            return Ok(clip);
        }
        if record == Self::default()
            && let Some(vit) = super::vit::record(checkpoint)?
        {
            return Ok(vit);
        }
        if record == Self::default()
            && let Some(resnet) = super::resnet::record(checkpoint)?
        {
            return Ok(resnet);
        }
        if record == Self::default()
            && let Some(flm) = super::Flm::read(checkpoint)?
        {
            return Ok(flm.settings(checkpoint));
        }
        if record == Self::default()
            && let Some(pair_len) = super::eve::stored_pair_len(checkpoint)
            && super::Eve::read(checkpoint)?.is_some()
        {
            return Ok(Self {
                family: Some(RecordFamily::Eve),
                pair_len: Some(pair_len),
                ..Self::default()
            });
        }
        let names = [
            "num_heads",
            "vlffn_start_layer_index",
            "max_text_len_of_initckpt",
        ];
        let [heads, fusion_start, text_table_len] = names.map(|name| stored(checkpoint, name));
        if record != Self::default() || [heads, fusion_start, text_table_len] == [None; 3] {
            return Ok(record);
        }
        let layout = super::detect(checkpoint)?;
        let sizes = layout.dimensions();
        Ok(Self {
            heads: heads.filter(|_| heads == sizes.n_heads()),
            fusion_start: fusion_start.filter(|_| fusion_start == sizes.fusion_start),
            text_table_len: text_table_len.filter(|_| text_table_len == sizes.text_table_len),
            ..Self::default()
        })
    }

    /// Adds the record to a file's metadata, unless it is empty.
    pub(crate) fn add_to(&self, metadata: &mut BTreeMap<String, String>) {
        if *self != Self::default() {
            // Numbers and names always have a JSON form.
            let text = serde_json::to_string(self).unwrap_or_default();
            metadata.insert(KEY.to_owned(), text);
        }
    }

    /// This record, with missing facts on which all `sources` that have them agree.
    ///
    /// # Errors
    /// [`Error::ModelsDiffer`] when they do not agree.
    pub(crate) fn joined<'a>(
        self,
        sources: impl IntoIterator<Item = &'a Checkpoint>,
    ) -> Result<Self> {
        let mut found = Self::default();
        for source in sources {
            let record = Self::known(source)?;
            let differ = |what, first: String, second: String| Error::ModelsDiffer {
                path: source.path().into(),
                what,
                first,
                second,
            };
            let numbers = [
                ("heads", self.heads, &mut found.heads, record.heads),
                (
                    "fusion_start",
                    self.fusion_start,
                    &mut found.fusion_start,
                    record.fusion_start,
                ),
                (
                    "text_table_len",
                    self.text_table_len,
                    &mut found.text_table_len,
                    record.text_table_len,
                ),
                (
                    "pair_len",
                    self.pair_len,
                    &mut found.pair_len,
                    record.pair_len,
                ),
                (
                    "image_heads",
                    self.image_heads,
                    &mut found.image_heads,
                    record.image_heads,
                ),
                (
                    "text_heads",
                    self.text_heads,
                    &mut found.text_heads,
                    record.text_heads,
                ),
            ];
            for (what, own, found, recorded) in numbers {
                match (own, *found, recorded) {
                    (None, Some(first), Some(second)) if first != second => {
                        return Err(differ(what, first.to_string(), second.to_string()));
                    }
                    (_, None, _) => *found = recorded,
                    _ => {}
                }
            }
            let fact = |what, own: bool, first: Option<String>, second: Option<String>| match (
                first, second,
            ) {
                (Some(first), Some(second)) if first != second && !own => {
                    Err(differ(what, first, second))
                }
                _ => Ok(()),
            };
            let shown = |colors: Option<[f32; 3]>| colors.map(|colors| format!("{colors:?}"));
            fact(
                "temperature",
                self.temperature.is_some(),
                found.temperature.map(|value| value.to_string()),
                record.temperature.map(|value| value.to_string()),
            )?;
            for (what, own, first, second) in [
                (
                    "image_mean",
                    self.image_mean,
                    found.image_mean,
                    record.image_mean,
                ),
                (
                    "image_deviation",
                    self.image_deviation,
                    found.image_deviation,
                    record.image_deviation,
                ),
            ] {
                fact(what, own.is_some(), shown(first), shown(second))?;
            }
            found.temperature = found.temperature.or(record.temperature);
            found.image_mean = found.image_mean.or(record.image_mean);
            found.image_deviation = found.image_deviation.or(record.image_deviation);
            fact(
                "streams",
                self.streams.is_some(),
                found.streams.map(|how| format!("{how:?}")),
                record.streams.map(|how| format!("{how:?}")),
            )?;
            found.streams = found.streams.or(record.streams);
            if let (None, Some(first), Some(second)) = (self.clip, found.clip, record.clip)
                && let Some([first, second]) = first.computes_otherwise(&second)
            {
                return Err(differ(
                    "activation, epsilon and mask of towers",
                    first,
                    second,
                ));
            }
            found.clip = found.clip.or(record.clip);
            if let (None, Some(first), Some(second)) = (self.vit, found.vit, record.vit)
                && let Some([first, second]) = first.computes_otherwise(&second)
            {
                return Err(differ("activation, epsilon and pooling", first, second));
            }
            found.vit = found.vit.or(record.vit);
            found.pictures = found.pictures.or(record.pictures);
            found.family = found.family.or(record.family);
            match (found.shallow_attention, record.shallow_attention) {
                (Some(first), Some(second))
                    if first != second && self.shallow_attention.is_none() =>
                {
                    let (first, second) = (format!("{first:?}"), format!("{second:?}"));
                    return Err(differ("shallow_attention", first, second));
                }
                (None, recorded) => found.shallow_attention = recorded,
                _ => {}
            }
        }
        Ok(Self {
            family: self.family.or(found.family),
            heads: self.heads.or(found.heads),
            fusion_start: self.fusion_start.or(found.fusion_start),
            text_table_len: self.text_table_len.or(found.text_table_len),
            pair_len: self.pair_len.or(found.pair_len),
            shallow_attention: self.shallow_attention.or(found.shallow_attention),
            image_heads: self.image_heads.or(found.image_heads),
            text_heads: self.text_heads.or(found.text_heads),
            temperature: self.temperature.or(found.temperature),
            image_mean: self.image_mean.or(found.image_mean),
            image_deviation: self.image_deviation.or(found.image_deviation),
            streams: self.streams.or(found.streams),
            clip: self.clip.or(found.clip),
            pictures: self.pictures.or(found.pictures),
            vit: self.vit.or(found.vit),
        })
    }
}

/// An integer of the configuration that a Lightning checkpoint carries.
pub(super) fn stored(checkpoint: &Checkpoint, name: &str) -> Option<usize> {
    stored_at(checkpoint, &format!("hyper_parameters.config.{name}"))
}

/// An integer that a torch file holds beside its tensors, by its path.
pub(super) fn stored_at(checkpoint: &Checkpoint, wanted: &str) -> Option<usize> {
    let values = &checkpoint.info().values;
    let (_, value) = values.iter().find(|(path, _)| path.to_string() == wanted)?;
    match value {
        PlainValue::Integer(value) => usize::try_from(*value).ok(),
        _ => None,
    }
}
