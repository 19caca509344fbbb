//! The model and its settings: flags of every verb that runs one.

use std::collections::BTreeMap;
use std::ops::Deref;

use anyhow::Result;
use candle_core::Device;
use clap::{Args, ValueEnum};
use evaluate::device::{DeviceName, Precision};
use evaluate::models::{Model, Overrides, RouterWay, ShallowAttention, Streams};
use evaluate::tasks::Runner;
use evaluate::text::Tokenizer;
use merge::Progress;
use merge::convert::Conversion;
use merge::layouts::ClipActivation;
use serde_json::{Value, json};

use crate::args::number::{Colors, parse_colors, parse_positive};

/// Settings of running a model on data.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Examples per batch
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_positive)]
    pub batch_size: usize,
}

/// Settings of loading a model.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct LoadArgs {
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "NAME", default_value_t)]
    pub device: DeviceName,
    /// f32; with cuda also bf16 and f16
    #[arg(long, value_name = "TYPE", default_value_t)]
    pub precision: Precision,
    /// Side of the image in pixels; resizes position tables [default: the checkpoint's]
    #[arg(long, value_name = "PIXELS", value_parser = parse_positive)]
    pub image_size: Option<usize>,
    /// Attention heads, if the checkpoint does not say
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Attention heads of the image tower, if the checkpoint does not say
    #[arg(long, value_name = "N")]
    pub image_heads: Option<usize>,
    /// Attention heads of the text tower, if the checkpoint does not say
    #[arg(long, value_name = "N")]
    pub text_heads: Option<usize>,
    /// Activation of the FFNs of both towers, if the checkpoint does not say
    #[arg(long, value_enum, value_name = "NAME")]
    pub activation: Option<ActivationArg>,
    /// Divisor of similarities, for models that do not learn it
    #[arg(long, value_name = "NUMBER")]
    pub temperature: Option<f64>,
    /// Numbers subtracted from red, green and blue of a picture, scaled to [0, 1], if the checkpoint does not say: one
    /// number or three [default: as the family does]
    #[arg(long, value_name = "R,G,B", value_parser = parse_colors)]
    pub image_mean: Option<Colors>,
    /// Divisors of red, green and blue after that
    #[arg(long, value_name = "R,G,B", value_parser = parse_colors)]
    pub image_deviation: Option<Colors>,
    /// First block in which text and image are one sequence, if the checkpoint does not say
    #[arg(long, value_name = "BLOCK")]
    pub fusion_start: Option<usize>,
    /// Text positions that the bias table has room for, if the checkpoint does not say
    #[arg(long, value_name = "N")]
    pub text_table_len: Option<usize>,
    /// Way of reading texts, for models that have several [default: as they were trained]
    #[arg(long, value_enum, value_name = "HOW")]
    pub streams: Option<StreamsArg>,
    /// Whether text and image attend to each other before the fusion start [default: the family's way]
    #[arg(long, value_enum, value_name = "HOW")]
    pub shallow_attention: Option<AttentionArg>,
    /// Tokens of a text that is read together with an image, if the checkpoint does not say
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub pair_len: Option<usize>,
    /// Choice of the routers of experts [default: unlimited, or as-published with --model-as-published]
    #[arg(long, value_enum, value_name = "HOW")]
    pub routing: Option<RoutingArg>,
    /// Do what the published program does where that is a slip; eve: features without the last norm,
    /// noise and dropped tokens in routers
    #[arg(long)]
    pub model_as_published: bool,
}

/// The function between the two layers of an FFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ActivationArg {
    /// x σ(1.702 x): OpenAI's CLIP, and models of open_clip called -quickgelu
    QuickGelu,
    /// GELU by the error function
    Gelu,
    /// GELU by the hyperbolic tangent
    GeluTanh,
}

/// Ways in which routers choose experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoutingArg {
    /// Each token goes to the experts that score highest, whatever else is in the batch
    Unlimited,
    /// Without noise, but with little room for each expert
    Capacity,
    /// With noise, and with little room for each expert
    AsPublished,
}

/// Ways to read texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StreamsArg {
    /// From left to right, from right to left, and by queries of both
    Three,
    /// From left to right
    Causal,
    /// Each token with all others
    Bidirectional,
}

/// Attention between text and image before the fusion start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttentionArg {
    /// Each attends to itself, as in vl-merging
    PerModality,
    /// Both attend to both, as in VLMo
    Joint,
}

impl Deref for ModelArgs {
    type Target = LoadArgs;

    fn deref(&self) -> &LoadArgs {
        &self.load
    }
}

/// The name of a value of a flag, if it was given.
fn named(value: Option<impl ValueEnum>) -> Option<Value> {
    let value = value?.to_possible_value()?;
    Some(json!(value.get_name()))
}

impl LoadArgs {
    /// The conversion that the checkpoint goes through before it runs.
    pub fn conversion(&self) -> Conversion {
        Conversion {
            image_size: self.image_size,
            text_table_len: self.text_table_len,
            ..Conversion::default()
        }
    }

    /// The settings of the model that were given, under the names of their flags.
    pub fn given(&self) -> BTreeMap<&'static str, Value> {
        // As the user wrote them: in f64 the nearest f32 has more digits.
        let digits = |color: f32| color.to_string().parse::<f64>().unwrap_or_default();
        let colors =
            |colors: Option<Colors>| colors.map(|Colors(colors)| json!(colors.map(digits)));
        let given = [
            ("image_size", self.image_size.map(|n| json!(n))),
            ("heads", self.heads.map(|n| json!(n))),
            ("image_heads", self.image_heads.map(|n| json!(n))),
            ("text_heads", self.text_heads.map(|n| json!(n))),
            ("activation", named(self.activation)),
            ("temperature", self.temperature.map(|x| json!(x))),
            ("image_mean", colors(self.image_mean)),
            ("image_deviation", colors(self.image_deviation)),
            ("fusion_start", self.fusion_start.map(|n| json!(n))),
            ("text_table_len", self.text_table_len.map(|n| json!(n))),
            ("streams", named(self.streams)),
            ("shallow_attention", named(self.shallow_attention)),
            ("pair_len", self.pair_len.map(|n| json!(n))),
            ("routing", named(self.routing)),
            (
                "model_as_published",
                self.model_as_published.then(|| json!(true)),
            ),
        ];
        let given = given.into_iter();
        given
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    /// Whether the numbers of an example depend on what else is in its batch: routers give experts little room.
    fn is_swayed_by_batch(&self) -> bool {
        match self.routing {
            Some(RoutingArg::Unlimited) => false,
            Some(RoutingArg::Capacity | RoutingArg::AsPublished) => true,
            None => self.model_as_published,
        }
    }

    /// The device.
    pub fn device(&self) -> Result<Device> {
        Ok(self.device.open(self.precision)?)
    }

    /// Facts about the model that the checkpoint lacks.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            n_heads: self.heads,
            fusion_start: self.fusion_start,
            shallow_attention: self.shallow_attention.map(|how| match how {
                AttentionArg::PerModality => ShallowAttention::PerModality,
                AttentionArg::Joint => ShallowAttention::Joint,
            }),
            text_table_len: self.text_table_len,
            image_heads: self.image_heads,
            text_heads: self.text_heads,
            activation: self.activation.map(|how| match how {
                ActivationArg::QuickGelu => ClipActivation::QuickGelu,
                ActivationArg::Gelu => ClipActivation::Gelu,
                ActivationArg::GeluTanh => ClipActivation::GeluTanh,
            }),
            temperature: self.temperature,
            image_mean: self.image_mean.map(|Colors(colors)| colors),
            image_deviation: self.image_deviation.map(|Colors(colors)| colors),
            streams: self.streams.map(|how| match how {
                StreamsArg::Three => Streams::Three,
                StreamsArg::Causal => Streams::Causal,
                StreamsArg::Bidirectional => Streams::Bidirectional,
            }),
            pair_len: self.pair_len,
            routing: self.routing.map(|how| match how {
                RoutingArg::Unlimited => RouterWay::Unlimited,
                RoutingArg::Capacity => RouterWay::Capacity,
                RoutingArg::AsPublished => RouterWay::AsPublished,
            }),
            as_published: self.model_as_published.then_some(true),
            ..Overrides::default()
        }
    }
}

impl ModelArgs {
    /// The settings that numbers depend on and that were given: [`LoadArgs::given`], and the batch size where the
    /// numbers depend on it beyond rounding.
    pub fn given(&self) -> BTreeMap<&'static str, Value> {
        let mut given = self.load.given();
        if self.is_swayed_by_batch() {
            given.insert("batch_size", json!(self.batch_size));
        }
        given
    }

    /// The settings that a model's numbers depend on beside its weights, by which results of an earlier run are
    /// recognized.
    pub fn identity(&self) -> Value {
        json!([self.precision.to_string(), self.given()])
    }

    /// A runner of a model.
    pub fn runner<'a>(
        &self,
        model: &'a dyn Model,
        tokenizer: Option<&'a Tokenizer>,
        device: &'a Device,
        progress: &'a dyn Progress,
    ) -> Result<Runner<'a>> {
        let dtype = self.precision.dtype();
        Ok(Runner::new(
            model,
            tokenizer,
            device,
            dtype,
            self.batch_size,
            progress,
        )?)
    }
}
