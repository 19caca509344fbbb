//! The tokenizer that splits prompts. It comes with the models: a build without them says so.

#[cfg(feature = "models")]
pub use evaluate::text::PromptTokenizer;

#[cfg(not(feature = "models"))]
pub use left_out::PromptTokenizer;

#[cfg(not(feature = "models"))]
mod left_out {
    use std::path::Path;

    use crate::output::UsageError;

    /// No tokenizer: there is no value of this type.
    pub enum PromptTokenizer {}

    impl PromptTokenizer {
        /// The error that this build has no tokenizers.
        pub fn new(path: &Path, _: &str, _: &[Option<String>]) -> Result<Self, UsageError> {
            let what = format!("the tokenizer that reads {}", path.display());
            Err(UsageError::no_models(&what))
        }

        /// Nothing, for there is no tokenizer.
        pub fn ids(&self, _: &Path, _: &[String]) -> Result<Vec<Vec<u32>>, UsageError> {
            match *self {}
        }
    }
}
