//! Text for terminals and pages.

use std::borrow::Cow;

/// Text without control characters but line breaks and tabs: names come from files, and must not
/// be able to command a terminal.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_command = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(is_command) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_command(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// A whole number in groups of three digits.
#[must_use]
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{grouped, printable};

    #[test]
    fn a_name_cannot_command_the_terminal() {
        assert_eq!(printable("a\tb\nc"), "a\tb\nc");
        assert_eq!(printable("\u{1b}[2Jx"), "\\u{1b}[2Jx");
    }

    #[test]
    fn digits_are_in_groups_of_three() {
        for (n, text) in [(7, "7"), (123, "123"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(n), text);
        }
    }
}
