//! Logs that survive a crash. `tests/tensorboard_opens.py` reads the event files with TensorBoard.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use train::log::{LINES_FILE, Log, Record, read};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn record(step: u64, loss: f64) -> Record {
    Record {
        step,
        examples: step * 32,
        values: BTreeMap::from([("loss/total".to_owned(), loss), ("rate".to_owned(), 1e-4)]),
    }
}

fn steps(folder: &Path) -> train::Result<Vec<u64>> {
    let records = read(&folder.join(LINES_FILE))?;
    Ok(records.iter().map(|record| record.step).collect())
}

#[test]
fn lines_are_read_as_they_were_written() -> Outcome {
    let folder = tempfile::tempdir()?;
    let written = [
        record(1, 0.1),
        record(2, f64::INFINITY),
        record(3, -f64::INFINITY),
    ];
    let mut log = Log::open(folder.path(), None)?;
    for record in &written {
        log.write(record)?;
    }
    log.write(&record(4, f64::NAN))?;
    let found = read(&folder.path().join(LINES_FILE))?;
    assert_eq!(found[..3], written);
    assert!(found[3].values["loss/total"].is_nan());
    let text = std::fs::read_to_string(folder.path().join(LINES_FILE))?;
    let first = r#"{"step":1,"examples":32,"values":{"loss/total":0.1,"rate":0.0001}}"#;
    assert_eq!(text.lines().next(), Some(first));
    Ok(())
}

#[test]
fn resuming_drops_half_a_line_and_what_came_after_the_state() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut log = Log::open(folder.path(), None)?;
    for step in 1..=5 {
        log.write(&record(step, 1.0))?;
    }
    let path = folder.path().join(LINES_FILE);
    let mut file = std::fs::OpenOptions::new().append(true).open(&path)?;
    file.write_all(br#"{"step":6,"exam"#)?;
    assert_eq!(steps(folder.path())?, [1, 2, 3, 4, 5]);
    let mut log = Log::open(folder.path(), Some(5))?;
    log.write(&record(6, 2.0))?;
    assert_eq!(steps(folder.path())?, [1, 2, 3, 4, 5, 6]);
    let mut log = Log::open(folder.path(), Some(3))?;
    log.write(&record(4, 3.0))?;
    assert_eq!(steps(folder.path())?, [1, 2, 3, 4]);
    Log::open(folder.path(), None)?;
    assert!(steps(folder.path())?.is_empty());
    Ok(())
}

#[test]
fn a_damaged_line_is_named_and_left_alone() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(LINES_FILE);
    let text = "{\"step\":1,\"examples\":1,\"values\":{}}\nnot a record\n";
    std::fs::write(&path, text)?;
    let outcome = Log::open(folder.path(), Some(7));
    assert!(matches!(
        outcome,
        Err(train::Error::LogLine { line: 2, .. })
    ));
    assert_eq!(std::fs::read_to_string(&path)?, text);
    Ok(())
}

#[test]
fn a_resumed_run_has_an_event_file_more() -> Outcome {
    let folder = tempfile::tempdir()?;
    Log::open(folder.path(), None)?.write(&record(1, 1.0))?;
    Log::open(folder.path(), Some(1))?.write(&record(2, 1.0))?;
    let mut files = 0;
    for entry in std::fs::read_dir(folder.path())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains("tfevents") {
            files += 1;
            // The first record is the version: 8 + 4 bytes, then `Event` with its time in field 1.
            let bytes = std::fs::read(entry.path())?;
            assert_eq!(bytes[12], 0x09);
            assert!(bytes.windows(13).any(|part| part == b"brain.Event:2"));
        }
    }
    assert_eq!(files, 2);
    Ok(())
}
