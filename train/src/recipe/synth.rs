//! Fresh weights that a run starts from.

use merge::MergePlan;
use merge::layouts::{
    CatalogSpec, ClipSpec, EveSizes, EveSpec, EveTask, FlmSpec, FlmTask, Form, GivenFlmSizes,
    GivenSizes, GivenTower, GivenTwoTowers, Heads, Sizes, TowerSizes, ZerovlSizes, ZerovlSpec,
};
use merge::recipe::OutputDType;
use merge::synth::{Fresh, Spread, Synthesis};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A published size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SynthSize {
    /// 12 blocks of width 768.
    #[default]
    Base,
    /// 24 blocks of width 544.
    BasePlus,
    /// 24 blocks of width 1024.
    Large,
    /// 12 blocks of width 192.
    Tiny,
}

/// A family that fresh weights can be drawn of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SynthFamily {
    /// vl-merging, or VLMo's spelling where another file has it.
    #[default]
    VlMerging,
    /// ZeroVL: a ViT and a BERT.
    Zerovl,
    /// FLM for pre-training: CLIP's ViT, RoBERTa, cross-modal layers and a reconstructor.
    Flm,
    /// EVE for pre-training: one transformer with mixtures of experts in its last blocks.
    Eve,
    /// CLIP: ViT-B/32, or ViT-L/14 as size large.
    Clip,
    /// SigLIP: ViT-B/16, or ViT-L/16 as size large.
    Siglip,
}

impl SynthFamily {
    pub(super) fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// Fresh weights, drawn as published training from scratch does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Synth {
    /// The model family: vl-merging unless given.
    #[serde(skip_serializing_if = "SynthFamily::is_usual")]
    pub family: SynthFamily,
    /// A published size; single sizes below change it.
    pub size: SynthSize,
    /// The seed of the draws.
    pub seed: u64,
    /// Standard deviation of linear weights and embeddings; 0.02 unless given.
    pub deviation: Option<f32>,
    /// LayerScale; 0.1 unless given.
    pub layer_scale: Option<f32>,
    /// Number of blocks.
    pub blocks: Option<usize>,
    /// Hidden size; the FFN is four times as wide unless it is given.
    pub width: Option<usize>,
    /// Attention heads of each block.
    pub attention_heads: Option<usize>,
    /// Inner size of the feed-forward network.
    pub ffn_width: Option<usize>,
    /// First block with a vision-language expert.
    pub fusion_start: Option<usize>,
    /// Side of a patch in pixels.
    pub patch_size: Option<usize>,
    /// Side of the image in pixels.
    pub image_size: Option<usize>,
    /// Text positions.
    pub text_len: Option<usize>,
    /// Text positions that the bias table has room for.
    pub text_table_len: Option<usize>,
    /// Word pieces.
    pub vocabulary: Option<usize>,
    /// Number of blocks of the text tower; in ZeroVL that of the image tower unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_blocks: Option<usize>,
    /// Hidden size of the text tower; in FLM that of the cross-modal layers and the reconstructor, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_width: Option<usize>,
    /// Attention heads of each block of the text tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_attention_heads: Option<usize>,
    /// Inner size of the feed-forward network of the text tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_ffn_width: Option<usize>,
    /// Width of ZeroVL's joint space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joint_width: Option<usize>,
    /// Whether ZeroVL's temperature is learned; it is constant, and no part of the weights, unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learned_temperature: Option<bool>,
    /// Number of FLM's cross-modal layers; its reconstructor has as many, and as many as the text tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_blocks: Option<usize>,
    /// The number of EVE's last blocks with a mixture of experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixtures: Option<usize>,
    /// Experts of each of EVE's mixtures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<usize>,
    /// Tokens of a text that EVE reads together with an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair_len: Option<usize>,
}

impl Synth {
    fn sizes(&self) -> Sizes {
        let sizes = match self.size {
            SynthSize::Base => Sizes::base(),
            SynthSize::BasePlus => Sizes::base_plus(),
            SynthSize::Large => Sizes::large(),
            SynthSize::Tiny => Sizes::tiny(),
        };
        sizes.with(&GivenSizes {
            n_blocks: self.blocks,
            width: self.width,
            n_heads: self.attention_heads,
            ffn_width: self.ffn_width,
            fusion_start: self.fusion_start,
            patch_size: self.patch_size,
            image_size: self.image_size,
            text_len: self.text_len,
            text_table_len: self.text_table_len,
            vocabulary: self.vocabulary,
            n_answers: None,
        })
    }

    /// Checks that no setting is given that the family has no use for.
    ///
    /// # Errors
    /// [`Error::BadSetting`] with its key.
    pub(super) fn check(&self) -> Result<()> {
        let multiway = [
            ("layer_scale", self.layer_scale.is_some()),
            ("fusion_start", self.fusion_start.is_some()),
            ("text_table_len", self.text_table_len.is_some()),
            ("size", self.size != SynthSize::Base),
        ];
        let towers = [
            ("text_blocks", self.text_blocks.is_some()),
            ("text_width", self.text_width.is_some()),
            ("text_attention_heads", self.text_attention_heads.is_some()),
            ("text_ffn_width", self.text_ffn_width.is_some()),
        ];
        let zerovl = [
            ("joint_width", self.joint_width.is_some()),
            ("learned_temperature", self.learned_temperature.is_some()),
        ];
        let flm = [("cross_blocks", self.cross_blocks.is_some())];
        let eve = [
            ("mixtures", self.mixtures.is_some()),
            ("experts", self.experts.is_some()),
            ("pair_len", self.pair_len.is_some()),
        ];
        let multiway_alone = [multiway[1], multiway[2]];
        let (others, family) = match self.family {
            SynthFamily::Zerovl => ([&multiway[..], &flm, &eve].concat(), "zerovl"),
            SynthFamily::VlMerging => ([&towers[..], &zerovl, &flm, &eve].concat(), "vl-merging"),
            SynthFamily::Flm => ([&multiway[..], &zerovl, &eve].concat(), "flm"),
            SynthFamily::Clip | SynthFamily::Siglip => {
                let multiway = [&multiway[..3], &zerovl[1..]].concat();
                ([&multiway[..], &flm, &eve].concat(), "clip")
            }
            SynthFamily::Eve => (
                [&multiway_alone[..], &towers, &zerovl, &flm].concat(),
                "eve",
            ),
        };
        match others.iter().find(|(_, is_given)| *is_given) {
            None => Ok(()),
            Some((key, _)) => Err(Error::BadSetting {
                key: format!("synth.{key}"),
                reason: format!("models of the family {family} have no such size; leave it out"),
            }),
        }
    }

    /// The image tower and the text tower.
    fn towers(&self) -> [GivenTower; 2] {
        let image = GivenTower {
            n_blocks: self.blocks,
            width: self.width,
            n_heads: self.attention_heads,
            ffn_width: self.ffn_width,
        };
        let text = GivenTower {
            n_blocks: self.text_blocks,
            width: self.text_width,
            n_heads: self.text_attention_heads,
            ffn_width: self.text_ffn_width,
        };
        [image, text]
    }

    fn flm(&self) -> FlmSpec {
        let [image, text] = self.towers();
        let spec = FlmSpec::published(FlmTask::Pretrain);
        let sizes = spec.sizes.with(&GivenFlmSizes {
            image,
            text,
            n_cross: self.cross_blocks,
            patch_size: self.patch_size,
            image_size: self.image_size,
            vocabulary: self.vocabulary,
            text_len: self.text_len,
            ..GivenFlmSizes::default()
        });
        FlmSpec { sizes, ..spec }
    }

    fn eve(&self) -> Result<EveSpec> {
        let published = match self.size {
            SynthSize::Base => EveSizes::BASE,
            SynthSize::Large => EveSizes::LARGE,
            SynthSize::BasePlus | SynthSize::Tiny => {
                return Err(Error::BadSetting {
                    key: "synth.size".into(),
                    reason: "models of the family eve have the sizes base and large; single sizes change them"
                        .into(),
                });
            }
        };
        let blocks = published.blocks;
        let width = self.width.unwrap_or(blocks.width);
        // Four times as wide as a given width, as published.
        let ffn_width = match self.width {
            Some(width) => 4 * width,
            None => blocks.ffn_width,
        };
        Ok(EveSpec {
            task: EveTask::Pretrain,
            sizes: EveSizes {
                blocks: TowerSizes {
                    n_blocks: self.blocks.unwrap_or(blocks.n_blocks),
                    width,
                    n_heads: self.attention_heads.unwrap_or(blocks.n_heads),
                    ffn_width: self.ffn_width.unwrap_or(ffn_width),
                },
                n_mixtures: self.mixtures.unwrap_or(published.n_mixtures),
                n_experts: self.experts.unwrap_or(published.n_experts),
                patch_size: self.patch_size.unwrap_or(published.patch_size),
                image_size: self
                    .image_size
                    .unwrap_or(EveSizes::published_side(EveTask::Pretrain)),
                text_positions: self.text_len.unwrap_or(published.text_positions),
                pair_len: self.pair_len.unwrap_or(published.pair_len),
                vocabulary: self.vocabulary.unwrap_or(published.vocabulary),
                n_answers: published.n_answers,
            },
            with_buffers: false,
        })
    }

    fn zerovl(&self) -> ZerovlSpec {
        ZerovlSpec {
            sizes: ZerovlSizes::BASE.with(&self.two_towers()),
            has_temperature: self.learned_temperature == Some(true),
            with_buffers: false,
        }
    }

    fn clip(&self, is_siglip: bool) -> Result<ClipSpec> {
        let is_large = match self.size {
            SynthSize::Base => false,
            SynthSize::Large => true,
            SynthSize::BasePlus | SynthSize::Tiny => {
                return Err(Error::BadSetting {
                    key: "synth.size".into(),
                    reason: "models of the family clip have the sizes base and large; single sizes change them"
                        .into(),
                });
            }
        };
        Ok(ClipSpec::published(is_siglip, is_large, &self.two_towers()))
    }

    /// The sizes of two towers that are given.
    fn two_towers(&self) -> GivenTwoTowers {
        let [image, text] = self.towers();
        GivenTwoTowers {
            image,
            text,
            patch_size: self.patch_size,
            image_size: self.image_size,
            vocabulary: self.vocabulary,
            text_len: self.text_len,
            joint_width: self.joint_width,
        }
    }

    /// The plan that draws the weights; `form` is that of a multiway model.
    pub(super) fn plan(&self, form: Form) -> Result<MergePlan> {
        match self.family {
            SynthFamily::Zerovl => self.drawn(self.zerovl()),
            SynthFamily::Flm => self.drawn(self.flm()),
            SynthFamily::Eve => self.drawn(self.eve()?),
            SynthFamily::Clip => self.drawn(self.clip(false)?),
            SynthFamily::Siglip => self.drawn(self.clip(true)?),
            SynthFamily::VlMerging => self.drawn(CatalogSpec {
                form,
                sizes: self.sizes(),
                heads: Heads::Pretrain,
                with_buffers: false,
                original_spelling: false,
            }),
        }
    }

    fn drawn<S: Fresh>(&self, spec: S) -> Result<MergePlan> {
        let synthesis = Synthesis {
            spec,
            seed: self.seed,
            spread: Spread::given(self.deviation, self.layer_scale),
            dtype: OutputDType::F32,
            is_fresh: true,
        };
        Ok(synthesis.plan()?)
    }
}
