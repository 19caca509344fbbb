//! The documents: links lead somewhere, tables have their columns, pages are in the site, questions have answers, and
//! commands have flags that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

use crate::program::vlmerge;
use crate::tree::{root, top_pages_and};

/// README, CHANGELOG, CONTRIBUTING, and every page of the packages.
fn pages() -> Vec<PathBuf> {
    const FOLDERS: [&str; 6] = ["docs", "src", "merge", "evaluate", "train", "fixtures"];
    let mut found = top_pages_and(&FOLDERS, &["md"]);
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("readable")
}

/// The anchors of a page's headings, as the hubs of code make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut found = BTreeSet::new();
    for line in page.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        }
        if let (false, Some(heading)) = (is_code, line.strip_prefix('#')) {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter_map(|c| match c {
                ' ' => Some('-'),
                '-' | '_' => Some(c),
                _ => c.is_alphanumeric().then_some(c),
            });
            found.insert(kept.collect());
        }
    }
    found
}

/// The targets of the links of a text.
fn links(text: &str) -> Vec<String> {
    let link = Regex::new(r"\]\(([^)\s]+)\)").expect("an expression");
    let found = link.captures_iter(text);
    found.map(|found| found[1].to_owned()).collect()
}

#[test]
fn every_link_within_the_project_leads_somewhere() {
    let mut n_links = 0;
    let mut faults = Vec::new();
    for path in pages() {
        for target in links(&text(&path)) {
            if target.contains("://") {
                continue;
            }
            n_links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let there = match file {
                "" => path.clone(),
                file => path.parent().expect("a folder").join(file),
            };
            let is_good =
                there.exists() && (anchor.is_empty() || anchors(&text(&there)).contains(anchor));
            if !is_good {
                faults.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(n_links > 60, "{n_links} links were looked at");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_page_of_the_documents_is_in_the_site() {
    let listed = links(&text(&root().join("docs/SUMMARY.md")));
    let mut n_pages = 0;
    for entry in fs::read_dir(root().join("docs")).expect("a folder") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_str().expect("UTF-8");
        if name.ends_with(".md") && name != "SUMMARY.md" {
            n_pages += 1;
            assert!(
                listed.iter().any(|page| page == name),
                "SUMMARY.md lacks {name}"
            );
        }
    }
    assert!(n_pages > 20, "{n_pages} pages");
}

#[test]
fn ten_questions_are_two_clicks_away_from_their_answers() {
    // The first click: README leads to the questions. That the second leads to a section is tested above.
    let readme = links(&text(&root().join("README.md")));
    assert!(readme.iter().any(|page| page == "docs/questions.md"));
    let page = text(&root().join("docs/questions.md"));
    let questions: Vec<&str> = page.lines().filter(|line| line.contains("? |")).collect();
    assert!(questions.len() >= 10, "{} questions", questions.len());
    for question in questions {
        let answers = links(question);
        assert!(!answers.is_empty(), "no answer: {question}");
        for answer in answers {
            assert!(answer.contains('#'), "no section: {question}");
        }
    }
}

#[test]
fn every_row_of_a_table_has_the_columns_of_its_head() {
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    let mut n_rows = 0;
    let mut faults = Vec::new();
    for path in pages() {
        let mut is_code = false;
        let mut head: Option<usize> = None;
        let page = text(&path);
        let mut lines = page.lines().enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            is_code ^= line.starts_with("```");
            if is_code || !line.starts_with('|') {
                head = None;
                continue;
            }
            n_rows += 1;
            let next = lines.peek().map_or("", |(_, next)| *next);
            let is_head = next.starts_with('|') && next.chars().all(|c| "|-: ".contains(c));
            if is_head && head.is_none() {
                head = Some(columns(line));
            }
            if head != Some(columns(line)) {
                faults.push(format!("{}:{}: {line}", path.display(), index + 1));
            }
        }
    }
    assert!(n_rows > 1000, "{n_rows} rows were looked at");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The words of a command, without comments and redirections, up to the next command. Quoted words are one.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, '|' | ';' | '&' | '>' | '#') => break,
            (None, ' ') => words.push(String::new()),
            (_, c) => words.last_mut().expect("a word").push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The commands of this program in a page: lines of code, and code within sentences.
fn commands(page: &str) -> Vec<String> {
    let code = Regex::new("`(vlmerge [a-z][^`]*)`").expect("an expression");
    let mut found = Vec::new();
    let mut is_code = false;
    let mut whole = String::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        if !is_code {
            found.extend(code.captures_iter(line).map(|found| found[1].to_owned()));
            continue;
        }
        whole += line.trim();
        if let Some(before) = whole.strip_suffix('\\') {
            whole = before.to_owned();
            continue;
        }
        if let Some(at) = whole.find("vlmerge ") {
            found.push(whole[at..].to_owned());
        }
        whole.clear();
    }
    found
}

#[test]
fn every_flag_in_a_command_of_the_documents_exists() {
    let mut help: BTreeMap<Vec<String>, String> = BTreeMap::new();
    let mut n_flags = 0;
    let mut faults = Vec::new();
    for path in pages() {
        // A changelog also names flags that are gone.
        if path.ends_with("CHANGELOG.md") {
            continue;
        }
        for command in commands(&text(&path)) {
            let words = words(&command);
            let verbs = words.iter().skip(1);
            let verbs: Vec<String> = verbs
                .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
                .take_while(|word| !word.starts_with('-'))
                .take(2)
                .cloned()
                .collect();
            if verbs.is_empty() {
                continue;
            }
            let said = help.entry(verbs.clone()).or_insert_with(|| {
                let mut asked: Vec<&str> = verbs.iter().map(String::as_str).collect();
                asked.push("--help");
                vlmerge(&asked).stdout
            });
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                let flag = flag.split('=').next().expect("a word");
                n_flags += 1;
                let is_there = said.match_indices(flag).any(|(at, _)| {
                    let after = said[at + flag.len()..].chars().next();
                    after.is_none_or(|c| !(c.is_ascii_lowercase() || c == '-'))
                });
                if !is_there {
                    faults.push(format!("{}: {flag} of `{command}`", path.display()));
                }
            }
        }
    }
    assert!(n_flags > 150, "{n_flags} flags were looked at");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
