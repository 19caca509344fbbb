//! Changes captions and questions as EVE's published program does before it splits them into tokens.

/// Characters that captions and questions lose.
const DELETED: [char; 13] = [
    ',', '.', '\'', '!', '?', '"', '(', ')', '*', '#', ':', ';', '~',
];

/// A character that captions lose, too.
const DELETED_OF_CAPTIONS: char = '`';

/// A caption or a statement as EVE reads it; `None` where no word is left.
///
/// It is in lower case, without ``, . ' ! ? " ( ) * # : ; ~ ` ``, with spaces in place of `-` and `/`, and
/// `person` in place of `<person>`. Words stand one space apart, and the first `max_words` of them are kept.
/// Spaces are those of Python: separators U+001C to U+001F are spaces, as those of Unicode are.
///
/// # Example
/// ```
/// use evaluate::text::clean_caption;
/// let read = clean_caption("<PERSON> rides a black-and-white  horse.", 5);
/// assert_eq!(read.as_deref(), Some("person rides a black and"));
/// assert_eq!(clean_caption("...", 30), None);
/// ```
#[must_use]
pub fn clean_caption(caption: &str, max_words: usize) -> Option<String> {
    let mut text = without(caption, |c| {
        DELETED.contains(&c) || c == DELETED_OF_CAPTIONS
    });
    text = text.replace("<person>", "person");
    let words: Vec<&str> = text
        .split(is_python_space)
        .filter(|word| !word.is_empty())
        .take(max_words)
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// A question as EVE reads it: as [`clean_caption`], but a back-tick and `<person>` stay, and so do spaces but
/// those at the end. Words are what single spaces part, so there is an empty one between two spaces.
///
/// # Example
/// ```
/// use evaluate::text::clean_question;
/// assert_eq!(clean_question("Is it  left? ", 30), "is it  left");
/// assert_eq!(clean_question("Is it  left? ", 3), "is it ");
/// ```
#[must_use]
pub fn clean_question(question: &str, max_words: usize) -> String {
    let text = without(question, |c| DELETED.contains(&c));
    let text = text.trim_end_matches(' ');
    match text.match_indices(' ').nth(max_words.saturating_sub(1)) {
        Some((end, _)) => text[..end].to_owned(),
        None => text.to_owned(),
    }
}

/// The text in lower case, without some characters, and with spaces in place of `-` and `/`.
fn without(text: &str, is_deleted: impl Fn(char) -> bool) -> String {
    let lower = text.to_lowercase();
    let kept = lower.chars().filter(|&c| !is_deleted(c));
    let parted = kept.map(|c| if matches!(c, '-' | '/') { ' ' } else { c });
    parted.collect()
}

fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
