//! FLM's three streams of a text: which tokens each of their rows sees.
//!
//! Wang et al. 2023, "Accelerating vision-language pretraining with free language modeling",
//! <https://arxiv.org/abs/2303.14038>, section 3.
//!
//! Every table is of one text of `n_tokens` tokens, `<s>` and `</s>` among them, filled up to `len`
//! places: row by row, 1 where the row sees a key and 0 where it does not.

mod masks;
mod queries;
mod spans;

pub use masks::{forward, reconstructor, reverse};
pub use queries::query_ids;
pub use spans::{Span, SpanCorruption};
