//! Reports: read, written and exported. The files are made up by `fixtures/reports/make.py`.

use std::path::{Path, PathBuf};

use evaluate::reports::file::{self, Source};
use evaluate::reports::published::Published;
use evaluate::reports::{
    Comparison, Difference, Document, Input, Item, Measurement, Report, TaskResult, csv, html,
    latex, markdown,
};
use evaluate::tasks::TASKS;
use evaluate::{Error, ReportFault};

fn path(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/reports");
    folder.join(format!("{name}.json"))
}

fn report(name: &str) -> Report {
    file::read(&path(name)).expect("a report")
}

fn document(names: &[&str]) -> Document {
    let inputs: Vec<Input> = (names.iter())
        .map(|name| Input {
            label: format!("{name}.json"),
            source: Source::Report(report(name)),
        })
        .collect();
    Document::new(
        "Merging a COCO model",
        &inputs,
        &Published::ours().expect("well-formed"),
    )
}

/// The error of reading a file with this text.
fn refused(text: &str) -> Error {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("r.json");
    std::fs::write(&path, text).expect("written");
    file::read(&path).expect_err("refused")
}

#[test]
fn a_report_is_the_same_when_written_and_read() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["coco", "tasks", "sweep", "hostile"] {
        let target = folder.path().join("r.json");
        file::write(&target, &report(name)).expect("written");
        assert_eq!(file::read(&target).expect("read"), report(name));
    }
    // Nothing but the target is left behind.
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1);
}

#[test]
fn fields_of_later_versions_are_passed_over_and_missing_ones_filled_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("r.json");
    let text = r#"{"schema": "vlmerge.report/1", "version": "9", "mood": "good", "results":
        [{"name": "a", "task": "vqa", "measurements": [], "shape": {"round": true}}]}"#;
    std::fs::write(&path, text).expect("written");
    let result = TaskResult {
        name: "a".into(),
        task: "vqa".into(),
        ..TaskResult::default()
    };
    assert_eq!(file::read(&path).expect("read").results, [result]);
}

#[test]
fn damaged_files_are_refused_with_their_position() {
    let whole = std::fs::read_to_string(path("tasks")).expect("the fixture");
    let cut = refused(&whole[..whole.len() / 2]).to_string();
    assert!(
        cut.contains("r.json: is not a") && cut.contains(" at line "),
        "{cut}"
    );
    let wrong = whole.replace("\"n\": 26729", "\"n\": -1");
    let wrong = refused(&wrong).to_string();
    assert!(
        wrong.contains("invalid value") && wrong.contains("line 16 column"),
        "{wrong}"
    );
    let huge = refused(&whole.replace("\"seconds\": 1284.31", "\"seconds\": 1e999"));
    assert!(huge.to_string().contains("number out of range"), "{huge}");
    let deep = "[".repeat(100_000);
    assert!(matches!(
        refused(&format!("{{\"schema\": {deep}")),
        Error::Json { .. }
    ));
}

#[test]
fn other_json_is_told_from_reports() {
    for (text, fault) in [
        ("", "it is no JSON object"),
        ("[1, 2]", "it is no JSON object"),
        ("{}", "it has no `schema`"),
        (
            r#"{"schema": "vlmerge.report/2"}"#,
            "its schema `vlmerge.report/2` is not known",
        ),
    ] {
        let error = refused(text);
        assert!(
            matches!(error, Error::Report(ReportFault::ReportSchema { .. })),
            "{error}"
        );
        assert!(error.to_string().ends_with(fault), "{error}");
        assert!(error.hint().expect("a hint").contains("--json"));
    }
}

#[test]
fn a_comparison_of_no_result_is_refused() {
    let text = std::fs::read_to_string(path("coco")).expect("the fixture");
    let error = refused(&text.replace("\"result\": 2", "\"result\": 7"));
    assert!(
        error
            .to_string()
            .ends_with("comparison 1 is of result 7, and there are 3"),
        "{error}"
    );
}

#[test]
fn pictures_from_elsewhere_are_refused_when_read_and_when_shown() {
    let text = std::fs::read_to_string(path("coco")).expect("the fixture");
    for address in [
        "https://example.org/cat.png",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png;base64,AA\\\" onerror=\\\"x",
        "data:text/html;base64,AAAA",
        "DATA:image/png;base64,AAAA",
        "data:image/png;base64,",
    ] {
        let start = text.find("data:image/png").expect("a picture");
        let end = start + text[start..].find('"').expect("its end");
        let error = refused(&format!("{}{address}{}", &text[..start], &text[end..]));
        let message = error.to_string();
        assert!(
            message.contains("is not an embedded PNG or JPEG file"),
            "{address}: {message}"
        );
        let mut report = report("coco");
        report.results[2].examples[0].query = Item::Image {
            id: "7".into(),
            thumbnail: address.replace("\\\"", "\""),
        };
        let input = Input {
            label: "coco.json".into(),
            source: Source::Report(report),
        };
        let document = Document::new("t", &[input], &Published::default());
        assert!(matches!(
            html::html(&document),
            Err(Error::Report(ReportFault::Thumbnail { .. }))
        ));
    }
}

#[test]
fn results_of_other_data_stand_in_other_tables() {
    let document = document(&["coco", "tasks", "sweep"]);
    let titles: Vec<&str> = document
        .groups
        .iter()
        .map(|group| group.title.as_str())
        .collect();
    let expected = [
        "Retrieval on COCO test",
        "VQAv2 val",
        "NLVR2 test1",
        "Retrieval on Flickr30K test",
    ];
    assert_eq!(titles, expected);
    // Three methods and the best point of the sweep, over 3 + 1 + 2 + 3 numbers.
    let overview = document.overview.expect("four groups");
    assert_eq!((overview.rows.len(), overview.columns.len()), (4, 9));
    assert!(overview.rows.iter().all(|row| row.cells.len() == 9));
}

#[test]
fn results_of_fewer_images_are_not_compared_with_the_rest() {
    let mut few = report("coco");
    few.results.truncate(1);
    few.comparisons.clear();
    few.results[0].counts.insert("images".into(), 20);
    let inputs = [("coco.json", report("coco")), ("few.json", few)].map(|(label, report)| Input {
        label: label.into(),
        source: Source::Report(report),
    });
    let document = Document::new("t", &inputs, &Published::ours().expect("well-formed"));
    assert_eq!(document.groups.len(), 2);
    assert_eq!(
        document.groups[1].title,
        "Retrieval on COCO test (20 images, 25,010 texts)"
    );
    let caveat = "Published figures are of COCO 5K test with its 5,000 images; ours are of 20, so \
                  the two cannot be compared.";
    assert_eq!(document.groups[1].remarks[0], caveat);
    assert!(!document.groups[0].remarks.contains(&caveat.to_owned()));
}

#[test]
fn equal_names_of_two_files_are_told_apart() {
    let inputs = ["a.json", "b.json"].map(|label| Input {
        label: label.into(),
        source: Source::Report(report("coco")),
    });
    let document = Document::new("t", &inputs, &Published::default());
    let names: Vec<&str> = document.results.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names[0], "specific.ckpt (a.json)");
    assert_eq!(names[3], "specific.ckpt (b.json)");
    let (against, _) = document.results[4].against.as_ref().expect("compared");
    assert_eq!(against, "specific.ckpt (b.json)");
}

#[test]
fn markdown_shows_intervals_stars_best_numbers_and_published_ones() {
    let text = markdown::markdown(&document(&["coco", "tasks"])).expect("no heat map");
    insta::assert_snapshot!(text);
}

#[test]
fn latex_is_booktabs() {
    insta::assert_snapshot!(latex::latex(&document(&["tasks"])).expect("no heat map"));
}

#[test]
fn csv_has_a_line_per_number_and_rounds_nothing() {
    let text = csv::csv(&document(&["tasks"])).expect("no heat map");
    insta::assert_snapshot!(text.replace("\r\n", "\n"));
}

#[test]
fn the_page_holds_every_number_once_it_is_opened() {
    let names = ["coco", "tasks", "sweep"];
    let page = html::html(&document(&names)).expect("made");
    for measurement in names
        .iter()
        .flat_map(|name| report(name).results)
        .flat_map(|r| r.measurements)
    {
        let factor = if measurement.unit == evaluate::Unit::Fraction {
            100.0
        } else {
            1.0
        };
        let value = format!(">{:.2}<", factor * measurement.value.expect("a value"));
        assert!(page.contains(&value), "{}: {value}", measurement.name);
    }
    assert_eq!(page.matches("<svg class=\"curve\"").count(), 3);
    assert!(page.contains("best 88.11 at 0.6"));
    assert!(page.contains("(not sourced)"));
    // No other file is asked for: the only addresses are those of pictures.
    for attribute in ["src=\"", "href=\"", "url("] {
        for (start, _) in page.match_indices(attribute) {
            let address = &page[start + attribute.len()..];
            assert!(
                address.starts_with("data:image/png;base64,"),
                "{}",
                &address[..40]
            );
        }
    }
    assert!(!page.contains("<script") && !page.contains("@import"));
}

#[test]
fn a_single_sweep_makes_a_page_too() {
    insta::assert_snapshot!(markdown::markdown(&document(&["sweep"])).expect("no heat map"));
}

#[test]
fn a_difference_is_shown_only_beside_what_it_is_a_difference_to() {
    let mut sweep = report("sweep");
    let best = sweep
        .results
        .iter()
        .position(|result| result.point.as_ref().is_some_and(|point| point.is_best));
    sweep.comparisons = vec![Comparison {
        result: best.expect("one is the best"),
        against: 0,
        differences: vec![Difference {
            name: "tr_r1".into(),
            difference: Some(0.1375),
            interval: None,
            p: Some(0.0001),
        }],
    }];
    let input = Input {
        label: "sweep.json".into(),
        source: Source::Report(sweep),
    };
    let published = Published::ours().expect("well-formed");
    let document = Document::new("Sweep", &[input], &published);
    let text = markdown::markdown(&document).expect("no heat map");
    // The table of methods holds the best point alone, the table of points all of them.
    let (methods, points) = text.split_once("### Sweep").expect("both tables");
    // Markdown shows of a difference its stars.
    let stars = r"88.11** \[86.24–89.98\] \*\*\*";
    assert!(
        methods.contains("88.11") && !methods.contains(r"\] \*"),
        "{methods}"
    );
    assert!(points.contains(stars), "{points}");
}

#[test]
fn hostile_names_stay_text_in_every_format() {
    let document = document(&["hostile"]);
    let page = html::html(&document).expect("made");
    for alive in [
        "<script",
        "<img src=x",
        "<i>",
        "<b>second",
        "</pre>",
        "\u{1b}",
    ] {
        assert!(!page.contains(alive), "{alive}");
    }
    assert!(page.contains("&#60;script&#62;alert(3)&#60;/script&#62;"));
    insta::assert_snapshot!(
        "hostile_markdown",
        markdown::markdown(&document).expect("made")
    );
    insta::assert_snapshot!("hostile_latex", latex::latex(&document).expect("made"));
    let table = csv::csv(&document).expect("made");
    insta::assert_snapshot!("hostile_csv", table.replace("\r\n", "\n"));
    // Quotes apart, no field begins a formula.
    for field in table.lines().flat_map(|line| line.split(',')) {
        let first = field.trim_start_matches('"').chars().next();
        assert!(!matches!(first, Some('=' | '@' | '+')), "{field}");
    }
}

#[test]
fn figures_of_the_user_stand_beside_ours() {
    let list = "figures: [{ model: \"A | B\", on: coco5k, number: tr_r1, percent: 70.5, status: sourced, \
                source: \"a table\" }]";
    let list = Published::parse(list, Path::new("f.yaml")).expect("well-formed");
    let input = Input {
        label: "coco.json".into(),
        source: Source::Report(report("coco")),
    };
    let text = markdown::markdown(&Document::new("t", &[input], &list)).expect("made");
    assert!(
        text.contains("| A \\| B \\[published: a table\\] | 70.5 | – |"),
        "{text}"
    );
}

#[test]
fn the_headline_of_every_task_has_its_label_alone_and_in_the_overview() {
    let results: Vec<TaskResult> = (TASKS.iter())
        .map(|task| TaskResult {
            name: "model".into(),
            task: task.name.into(),
            dataset: Some(task.dataset.into()),
            split: Some(task.default_split.into()),
            measurements: vec![Measurement {
                name: task.headline.into(),
                value: Some(0.5),
                unit: task.number(task.headline).expect("a number").unit,
                higher_is_better: true,
                n: 4,
                interval: None,
            }],
            ..TaskResult::default()
        })
        .collect();
    let input = Input {
        label: "all.json".into(),
        source: Source::Report(Report::new(results, Vec::new())),
    };
    let document = Document::new("All", &[input], &Published::default());
    let overview = document.overview.as_ref().expect("several groups");
    assert_eq!(document.groups.len(), TASKS.len());
    for (group, task) in document.groups.iter().zip(TASKS) {
        let label = task.number(task.headline).expect("a number").label;
        let titles: Vec<&str> = group
            .grid
            .columns
            .iter()
            .map(|c| c.title.as_str())
            .collect();
        assert_eq!(titles, [label], "{}", task.name);
        assert!(overview.columns.iter().any(|column| column.title == label));
        assert!(group.title.contains(task.title) || group.title.contains("VQAv2"));
    }
    assert_eq!(document.groups.len(), TASKS.len());
    let page = markdown::markdown(&document).expect("a page");
    assert!(
        page.contains("VQA score") && !page.contains("vqa_score"),
        "{page}"
    );
}
