//! Faults of NLVR2 predictions.

use evaluate::predictions::nlvr2::{judge, read_labels, read_predictions};

/// Writes labels and predictions and judges them.
fn said_of(labels: &str, predictions: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let [label_file, file] = ["labels.jsonl", "p.csv"].map(|name| folder.path().join(name));
    std::fs::write(&label_file, labels).expect("written");
    std::fs::write(&file, predictions).expect("written");
    let judged = read_labels(&label_file).and_then(|labels| {
        judge(&file, &read_predictions(&file)?, &labels).map(|verdicts| verdicts.n_unused)
    });
    match judged {
        Err(error) => error.to_string(),
        Ok(n_unused) => format!("{n_unused} unused"),
    }
}

#[test]
fn wrong_lines_are_refused_by_number() {
    let labels = "{\"identifier\": \"dev-0-0-0\", \"label\": \"True\"}\n";
    assert_eq!(
        said_of(labels, "dev-0-0-0,TRUE\n\ndev-9-0-0,false"),
        "1 unused"
    );
    for (predictions, fault) in [
        (
            "\ndev-0-0-0",
            "p.csv: line 2: expected an identifier, a comma and true or false",
        ),
        (
            "dev-0-0-0,yes",
            "p.csv: line 1: \"yes\" is neither true nor false",
        ),
        ("a,true\na,true", "p.csv: example a occurs more than once"),
        (
            "a,true",
            "p.csv: 1 of 1 have no answer; the first is example dev-0-0-0",
        ),
    ] {
        let said = said_of(labels, predictions);
        assert!(said.ends_with(fault), "{said}");
    }
    let said = said_of("\n{\"identifier\": 3}", "");
    assert!(
        said.contains("labels.jsonl: line 2: is no example: "),
        "{said}"
    );
    assert!(said_of("", "").ends_with("labels.jsonl: holds no examples"));
    let long = format!("dev-0-0-0,{}", "x".repeat(1 << 20));
    let said = said_of(labels, &long);
    assert!(
        said.ends_with("p.csv: line 1: is longer than 1048576 bytes"),
        "{said}"
    );
}
