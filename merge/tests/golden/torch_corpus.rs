//! Every torch file of the corpus behaves as its manifest says.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fixtures::{Set, list, text};
use merge::io::{OpenOptions, PathSegment, PlainValue, TensorSource};
use serde_json::Value;

/// Time in which a hostile file must be refused; the sum of opening and reading.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// The entries of the corpus in a format, whose file names start with the format's.
pub fn entries(corpus: &Set, format: &str) -> Vec<Value> {
    let manifest = corpus.json("manifest.json");
    let entries = list(&manifest["entries"]).iter();
    let entries = entries.filter(|entry| text(&entry["file"]).starts_with(format));
    entries.cloned().collect()
}

fn path_json(path: &[PathSegment]) -> Value {
    (path.iter())
        .map(|segment| match segment {
            PathSegment::Key(key) => Value::from(key.as_str()),
            PathSegment::Index(index) => Value::from(*index),
        })
        .collect()
}

/// Path, dtype, shape and hash of every tensor, in an order that does not depend on the file.
pub type Listing = Vec<(String, String, Value, String)>;

/// Opens a file and reads every tensor whole, then once more in pieces of an odd size.
pub fn load(file: &Path) -> merge::Result<(Listing, Vec<(Value, Value)>)> {
    let checkpoint = merge::io::open(file, &OpenOptions::default())?;
    let source = checkpoint.source();
    let mut listing = Listing::new();
    for (index, entry) in source.tensors().iter().enumerate() {
        let mut bytes = vec![0; entry.info.n_bytes() as usize];
        source.read(index, 0, &mut bytes)?;
        assert_eq!(bytes, read_in_pieces(source, index)?, "{}", entry.path);
        listing.push((
            path_json(&entry.path.0).to_string(),
            entry.info.dtype.name().to_owned(),
            Value::from(entry.info.shape.clone()),
            fixtures::sha256_of(&bytes),
        ));
    }
    listing.sort_by(|a, b| a.0.cmp(&b.0));
    let values = (checkpoint.info().values.iter())
        .map(|(path, value)| (path_json(&path.0), plain_json(value)))
        .collect();
    Ok((listing, values))
}

fn read_in_pieces(source: &dyn TensorSource, index: usize) -> merge::Result<Vec<u8>> {
    let info = &source.tensors()[index].info;
    let mut bytes = Vec::new();
    while bytes.len() < info.n_bytes() as usize {
        let n = (info.n_bytes() as usize - bytes.len()).min(7 * info.dtype.size_bytes());
        let mut piece = vec![0; n];
        source.read(index, bytes.len() / info.dtype.size_bytes(), &mut piece)?;
        bytes.extend(piece);
    }
    Ok(bytes)
}

fn plain_json(value: &PlainValue) -> Value {
    match value {
        PlainValue::None => Value::Null,
        PlainValue::Bool(value) => (*value).into(),
        PlainValue::Integer(value) => (*value).into(),
        PlainValue::Float(value) => (*value).into(),
        PlainValue::Text(value) => value.as_str().into(),
        other => panic!("a kind of value this test does not know: {other:?}"),
    }
}

fn expected(entry: &Value) -> Listing {
    let mut listing: Listing = (entry["tensors"].as_array().into_iter().flatten())
        .map(|tensor| {
            (
                tensor["path"].to_string(),
                text(&tensor["dtype"]).to_owned(),
                tensor["shape"].clone(),
                text(&tensor["sha256"]).to_owned(),
            )
        })
        .collect();
    listing.sort_by(|a, b| a.0.cmp(&b.0));
    listing
}

fn sentinels() -> Vec<PathBuf> {
    let folder = std::fs::read_dir("/tmp").expect("/tmp can be listed");
    (folder.filter_map(Result::ok))
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().starts_with("/tmp/VLMERGE_PWNED"))
        .collect()
}

#[test]
fn every_torch_file_of_the_corpus_behaves_as_its_manifest_says() {
    let corpus = Set::open("corpus");
    let entries = entries(&corpus, "torch/");
    assert!(!entries.is_empty(), "a corpus");
    let mut faults = Vec::new();
    for entry in &entries {
        let name = text(&entry["file"]);
        let started = Instant::now();
        let loaded = load(&corpus.path(name));
        if started.elapsed() > REFUSAL_LIMIT {
            faults.push(format!("{name}: took {:?}", started.elapsed()));
        }
        match (text(&entry["expect"]), loaded) {
            ("load" | "safe", Ok((listing, values))) => {
                if listing != expected(entry) {
                    faults.push(format!("{name}: {listing:?} is not as listed"));
                }
                for value in entry["values"].as_array().into_iter().flatten() {
                    let wanted = (value["path"].clone(), value["value"].clone());
                    if !values.contains(&wanted) {
                        faults.push(format!("{name}: {wanted:?} is not there"));
                    }
                }
            }
            ("refuse" | "safe", Err(error)) => {
                let file = name.rsplit('/').next().unwrap_or(name);
                if !error.to_string().contains(file) {
                    faults.push(format!("{name}: `{error}` does not name the file"));
                }
            }
            ("load", Err(error)) => faults.push(format!("{name}: {error}")),
            ("refuse", Ok(_)) => faults.push(format!("{name}: was not refused")),
            (other, _) => panic!("a manifest word this test does not know: {other}"),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(sentinels(), Vec::<PathBuf>::new());
}
