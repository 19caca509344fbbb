//! The multiway family: one transformer whose blocks own experts by modality. vl-merging, VLMo and BEiT
//! spell it in three ways.

pub mod beit;
mod catalog;
pub(super) mod grammar;
mod record;
mod relative_position;
mod sizes;
mod survey;
pub mod vl_merging;
pub mod vlmo;

pub use beit::Beit;
pub use catalog::{CatalogSpec, Form, Heads, catalog};
pub use record::{ModelRecord, ShallowAttention};
pub use relative_position::{Buffer, Window};
pub use sizes::{GivenSizes, Sizes};
pub use vl_merging::VlMerging;
pub use vlmo::Vlmo;
