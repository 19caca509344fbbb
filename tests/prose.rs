//! Sentences that can be read once: words and forms that readers stumble over stand nowhere in the pages, in the comments
//! of all packages, which are also the texts of `--help`, in the messages of the program and its libraries, and in the
//! Python package.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

use crate::tree::{below, root, top_pages_and};

/// Words and forms that readers stumble over, and the reason. A fault is mended by a sentence that names who does what.
const FORBIDDEN: &[(&str, &str)] = &[
    // Clauses without a noun.
    (
        r"(?-i:(?:^|[.!:] |^//[/!]? |\* |\*\*)What )[^?]*$",
        "a clause in the place of a noun: `The contents of a footer`, not `What a footer says`",
    ),
    (
        r"\bwhat (is|are|was|were|has|have|had|can|cannot|must)\b[^?]*$",
        "a clause in the place of a noun: `the stored tensors`, not `what is stored`",
    ),
    (r"\bwho finds (this|those)\b", "name the reader"),
    // Sentences without an actor.
    (r"\b(is|are|was|were|be|been) said\b", "who says it?"),
    (
        r"\b(is|are|was|were|be|been) told\b",
        "who tells it? `nothing tells A from B`, not `A cannot be told from B`",
    ),
    (r"\bit (is|should be) noted\b", "say the thing itself"),
    // Words that nobody uses today.
    (r"\banew\b", "dated: again"),
    (r"\bbe it\b", "dated: whether"),
    (r"\bif need be\b", "dated: if there are any, where needed"),
    (
        r"\b(here|there|where)(by|in|of|to|upon|with|unto)\b",
        "dated: name the thing again",
    ),
    (
        r"\b(hence|thus|lest|shall|whilst|amongst|henceforth|hitherto|heretofore|aforementioned)\b",
        "dated: so, while, among, until now",
    ),
    (r"\bbeforehand\b", "dated: first, before"),
    // Forms of another language.
    (r"\bso many\b", "translated: this number of"),
    (r"\bmanieth\b", "no word: every N-th"),
    (r"\bthe same holds of\b", "translated: say it of both"),
    (
        r"\bin the place of\b",
        "translated: in place of, instead of",
    ),
    (
        r"\bin the mean(,| (over|of|with)\b)",
        "translated: on average over",
    ),
    (r"\bbut for\b", "read as `but`, `for`: except for"),
    (
        r"\b(taken|takes?|took) (it |them )?up (the|a|an|again|where|from|what)\b",
        "translated: resume, go on with, use",
    ),
    (
        r"\b(that|which) there (is|are) none of\b",
        "translated: that does not exist",
    ),
    (r"\bthat there (is|are)[.;,:]", "translated: existing"),
    (
        r", for (it|they|he|nobody) (is|are|was|were|has|have|had|does|do|would|will|can|cannot|may|must|needs)\b",
        "dated: because",
    ),
    // Long for short.
    (r"\bin order to\b", "long: to"),
    (r"\butili[sz]\w*", "long: use"),
    (r"\b(prior|subsequent|previous) to\b", "long: before, after"),
    (r"\bsubsequently\b", "long: then"),
    (
        r"\b(due to|because of) the fact\b|\bin the event that\b|\bfor the purpose of\b",
        "long: because, if, for",
    ),
    (
        r"\b(with|in) regards? to\b|\bin terms of\b|\bw\.r\.t\.",
        "long: of, about, by",
    ),
    (
        r"\b(obviously|of course|basically|simply put|needless to say|please note)\b",
        "says nothing",
    ),
];

/// Folders whose string literals are messages.
const SPEAKING: [&str; 4] = ["src", "merge/src", "evaluate/src", "train/src"];

/// Comments, string literals and characters of Rust; the groups are the texts of literals.
const TOKENS: &str = r##"(?xs)
      //[^\n]*
    | /\*.*?\*/
    | \bb?r(?:"(?<raw>[^"]*)"|\#"(?<hashed>.*?)"\#)
    | "(?<text>(?:[^"\\]|\\.)*)"
    | '(?:\\(?:'|[^'\n]+)|[^\\'\n])'
"##;

/// Pages, sources and tests of all packages, and the Python package.
fn files() -> Vec<PathBuf> {
    const FOLDERS: [&str; 10] = [
        "docs", "src", "merge", "evaluate", "train", "fixtures", "python", "tests", "benches",
        "fuzz",
    ];
    let mut found = top_pages_and(&FOLDERS, &["md", "rs", "ipynb"]);
    below(root().join("python/vlmerge"), &["py", "pyi"], &mut found);
    // The list above would accuse itself.
    found.retain(|path| !path.ends_with("tests/prose.rs"));
    found.sort();
    found
}

/// The part of a line that people read as prose: of Rust its comment, of other files all of it.
fn prose<'a>(path: &Path, line: &'a str) -> Option<&'a str> {
    match path.extension().is_some_and(|ending| ending == "rs") {
        true => line.find("//").map(|at| &line[at..]),
        false => Some(line),
    }
}

/// The lines of the string literals of a Rust source, each with the number of the line on which its literal begins. Unit
/// tests are left out.
fn messages(source: &str, tokens: &Regex) -> Vec<(usize, String)> {
    let end = source.find("\n#[cfg(test)]\nmod ");
    let source = &source[..end.unwrap_or(source.len())];
    let (mut number, mut counted) = (1, 0);
    let mut found = Vec::new();
    for token in tokens.captures_iter(source) {
        let raw = token.name("raw").or_else(|| token.name("hashed"));
        let text = match (raw, token.name("text")) {
            (Some(raw), _) => raw.as_str().to_owned(),
            (None, Some(text)) => joined(text.as_str()),
            (None, None) => continue,
        };
        let start = token.get(0).expect("a match").start();
        number += source[counted..start].matches('\n').count();
        counted = start;
        found.extend(text.lines().map(|line| (number, line.to_owned())));
    }
    found
}

/// The text of a literal: a backslash before a line break joins two lines, and `\n` ends one.
fn joined(literal: &str) -> String {
    let mut parts = literal.split("\\\n");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.trim_start());
    }
    text.replace("\\n", "\n")
}

/// Everything that people read of a file, line by line, with the numbers of the lines.
fn sentences(path: &Path, text: &str, tokens: &Regex) -> Vec<(usize, String)> {
    let lines = text.lines().enumerate();
    let mut found: Vec<(usize, String)> = lines
        .filter_map(|(index, line)| Some((index + 1, prose(path, line)?.to_owned())))
        .collect();
    if SPEAKING
        .iter()
        .any(|folder| path.starts_with(root().join(folder)))
    {
        found.extend(messages(text, tokens));
    }
    found
}

fn tokens() -> Regex {
    Regex::new(TOKENS).expect("an expression")
}

fn forbidden() -> Vec<(Regex, &'static str)> {
    FORBIDDEN
        .iter()
        .map(|(form, reason)| {
            let form = Regex::new(&format!("(?i){form}")).expect("an expression");
            (form, *reason)
        })
        .collect()
}

#[test]
fn no_sentence_has_a_word_that_readers_stumble_over() {
    let (forbidden, tokens) = (forbidden(), tokens());
    let files = files();
    assert!(files.len() > 500, "{} files were read", files.len());
    let mut faults = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("readable");
        for (number, line) in sentences(&path, &text, &tokens) {
            for (form, reason) in &forbidden {
                if let Some(found) = form.find(&line) {
                    let found: String = found.as_str().chars().take(40).collect();
                    let path = path.strip_prefix(root()).expect("within").display();
                    faults.push(format!("{path}:{number}: `{found}` ({reason})"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_form_is_found_where_it_stands_and_nowhere_else() {
    let forbidden = forbidden();
    let is_found = |line: &str| forbidden.iter().any(|(form, _)| form.is_match(line));
    for line in [
        "/// What a footer says.",
        "It is short. What is kept stays.",
        "Rows go to what was merged.",
        "A state that cannot be written is said so.",
        "The size cannot be told.",
        "It writes the model anew, whereof it is part.",
        "In order to utilize it, all but for one.",
        "refused, for it would take time",
        "an item that there is none of",
        "A stopped run takes up the newest state.",
    ] {
        assert!(is_found(line), "{line}");
    }
    for line in [
        "What is in this file?",
        "### What it does",
        "/// ## What it does",
        "prints what the verb prints",
        "Takes up to 300 steps.",
        "a table for each model, for the page",
        "therefore, elsewhere, otherwise",
    ] {
        assert!(!is_found(line), "{line}");
    }
}

#[test]
fn messages_are_the_literals_of_a_source() {
    let source = r##"
// A comment with "quotes" and a 'mark.
fn f<'a>(name: &'a str) -> String {
    let (mark, quote) = ('"', '\'');
    say("one \"word\" \
         more\nthe next line");
    format!(r#"raw "text" of {name}"#)
}

#[cfg(test)]
mod tests {
    const TEXT: &str = "not a message";
}
"##;
    let found = messages(source, &tokens());
    let expected = [
        (5, r#"one \"word\" more"#),
        (5, "the next line"),
        (7, r#"raw "text" of {name}"#),
    ];
    assert_eq!(
        found,
        expected.map(|(number, text)| (number, text.to_owned()))
    );
}
