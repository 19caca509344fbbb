//! Reasons why a change does not fit its base, with their remedies.

use crate::plan::checkpoints::spelling::common_end;
use crate::{Checkpoint, TensorInfo, ties};

/// A remedy for a base without the tensor `target`.
pub(super) fn of_missing(base: &Checkpoint, target: &str) -> String {
    if let Some((from, to, theirs)) = other_beginning(base, target) {
        let from = regex::escape(from);
        return format!(
            "the base calls it `{theirs}`: `adapter_rename: [{{ from: '^{from}', to: '{to}' }}]` beside the model \
             brings the adapter's names to the base's"
        );
    }
    if ties::is_head(target) {
        return "the base has no head, and nothing says that its embeddings stand for it: say \
                `tie_word_embeddings: true` in its config.json if they do, or store the head in it"
            .to_owned();
    }
    "no tensor of the base has this name at its end: was the adapter trained on a base with other layers? Its \
     adapter_config.json may name it"
        .to_owned()
}

/// A remedy for a change whose shape does not fit the tensor `target`.
pub(super) fn of_misfit(target: &str, expected: &TensorInfo) -> String {
    if !expected.dtype.is_float() {
        return "the base keeps codes there, not numbers: it is quantized in a way that is not known; convert it with \
                its own library first"
            .to_owned();
    }
    if ties::may_be_shared(target) || ties::is_head(target) {
        return "such tables have a row for each token, and rows that fill them up: bring the embeddings and the head \
                of the base to as many rows as the adapter has first"
            .to_owned();
    }
    "the base has other sizes: was the adapter trained on another one? Its adapter_config.json may name it".to_owned()
}

/// The tensor of the base that is called as `target` except for its beginning: what both begin with, and its name.
/// Names of other layers are other tensors.
fn other_beginning<'a>(
    base: &'a Checkpoint,
    target: &'a str,
) -> Option<(&'a str, &'a str, &'a str)> {
    let has_number = |text: &str| text.split('.').any(|part| part.parse::<u32>().is_ok());
    let with_end = base
        .tensors()
        .map(|(name, _)| (name, common_end(target, name)));
    let (theirs, end) = with_end
        .filter(|(_, end)| end.contains('.'))
        .max_by_key(|(name, end)| (end.len(), std::cmp::Reverse(name.len())))?;
    let from = &target[..target.len() - end.len()];
    let to = &theirs[..theirs.len() - end.len()];
    (!has_number(from) && !has_number(to)).then_some((from, to, theirs))
}
