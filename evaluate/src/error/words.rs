//! Parts of messages.

/// The most of a list that a message shows.
const SHOWN: usize = 12;

/// The beginning of a list.
pub(super) fn listed(items: &[impl std::fmt::Display]) -> String {
    let shown: Vec<String> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => shown.join("; "),
        rest => format!("{}; and {rest} more", shown.join("; ")),
    }
}

/// A note on the tensors of a file that the model does not use.
pub(super) fn unused_note(unused: &[String]) -> String {
    match unused {
        [] => String::new(),
        [first, ..] => format!(
            "; the model does not read {} others, the first of which is `{first}`",
            unused.len()
        ),
    }
}

/// The nearest name, as the end of a message.
pub(super) fn nearest_of(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| {
        format!("; the nearest name is `{name}`")
    })
}
