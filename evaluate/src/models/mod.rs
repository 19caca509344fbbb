//! Model families that can be run, and what everybody else may know of a model.
//!
//! 1. [`open`] finds the [`Family`] of a checkpoint in [`FAMILIES`], checks its [`Blueprint`], and
//!    loads the [`Model`].
//! 2. Tasks and objectives ask a model for a capability: [`DualEncoder`], [`FusionEncoder`],
//!    [`Captioner`], [`FreeLanguage`]; for its [`ModelInput`]; and for its heads, by [`Head`].
//! 3. A family is one folder or file: its configuration, its passes, its blueprint, and one row of
//!    [`FAMILIES`].

mod apart;
mod blueprint;
pub mod clip;
mod dvae;
pub mod eve;
mod families;
pub mod flm;
mod free_language;
mod grouping;
mod head;
pub mod heads;
pub mod input;
mod model;
pub mod multiway;
pub mod resnet;
mod settings;
mod source;
pub mod towers;
pub mod two_towers;
pub mod vit_classifier;

pub use blueprint::{Activations, Blueprint, Setting, dtype_of_graphs};
pub use clip::Clip;
pub use dvae::Dvae;
pub use eve::Eve;
pub use families::{Describe, FAMILIES, Family, Opened, blueprint, check_settings, open, prepare};
pub use flm::Flm;
pub use free_language::{Completed, FreeLanguage, Queries, Reading, Stream, Streams};
pub use grouping::{Grouping, Membership, Module};
pub use head::Head;
pub use input::{Filter, ImageInput, ModelInput, Padding, Resize, TextInput};
pub use model::{
    BatchNormed, Branch, Captioner, DualEncoder, Fused, FusionEncoder, LookedAt, Model, ReadText,
    Seen, Similarity, image_features, text_features,
};
pub use multiway::{Block, Config, Experts, Heads, Joint, Multiway, Segment};
pub use resnet::Resnet;
pub use settings::{Overrides, RouterWay, ShallowAttention};
pub use source::Source;
pub use towers::{Bert, Vit, VitForm, bert, vit};
pub use two_towers::TwoTowers;
pub use vit_classifier::VitClassifier;
