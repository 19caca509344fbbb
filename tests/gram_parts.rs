//! Gram files that several runs make together: after a kill, and of parts of the data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::evaluating::{Data, SPECIFIC, kill_once, ok, run, start};
use crate::program::vlmerge;

#[test]
fn grams_go_on_after_a_kill_and_come_out_the_same() {
    let data = Data::build(&["coco"]);
    let mut flags = data.flags("retrieval", "val");
    flags.extend(["--batch-size", "2", "--save-every", "0"].map(str::to_owned));
    let whole = data.path("whole.safetensors");
    ok(&run(
        &["gram", "--checkpoint", SPECIFIC, "--out", &whole],
        &flags,
    ));
    let out = data.path("killed.safetensors");
    let arguments = ["gram", "--checkpoint", SPECIFIC, "--out", &out];
    let unfinished = PathBuf::from(format!("{out}.unfinished.safetensors"));
    let child = start(&arguments, &flags);
    assert!(
        kill_once(child, || unfinished.exists()),
        "it was too fast to be killed"
    );
    assert!(!Path::new(&out).exists());
    let said = run(&arguments, &flags);
    assert!(
        ok(&said).stderr.contains("going on after"),
        "{}",
        said.stderr
    );
    assert!(!unfinished.exists());
    ok(&vlmerge(&["diff", &whole, &out]));
    // Other flags are another run: nothing of the first is taken.
    let full = data.path("full.safetensors");
    ok(&vlmerge(&[
        "gram", "export", &out, "--full", "--out", &full,
    ]));
    let sum = data.path("sum.safetensors");
    ok(&vlmerge(&["gram", "add", &whole, &out, "--out", &sum]));
    for grams in [&full, &sum] {
        let merged = data.path("merged.safetensors");
        let regmean = [
            "regmean",
            SPECIFIC,
            "--grams",
            grams,
            "--for",
            "retrieval",
            "--out",
            &merged,
            "--force",
        ];
        ok(&vlmerge(&regmean));
    }
}

/// Every matrix of a file, by name.
fn matrices(path: &str) -> BTreeMap<String, Vec<f64>> {
    let file = merge::io::open(Path::new(path), &merge::io::OpenOptions::default());
    let file = file.expect("it opens");
    let keys = file.tensors().map(|(key, _)| key.to_owned());
    let read = |key: String| {
        let bytes = file.read_all(&key).expect("it reads");
        let values = bytes
            .chunks_exact(8)
            .map(|bytes| f64::from_le_bytes(bytes.try_into().expect("eight bytes")));
        (key, values.collect())
    };
    keys.map(read).collect()
}

#[test]
fn grams_of_parts_add_up_to_those_of_the_whole() {
    let data = Data::build(&["coco"]);
    let flags = data.flags("retrieval", "val");
    let gram = |name: &str, shard: &[&str]| {
        let out = data.path(name);
        let arguments = ["gram", "--checkpoint", SPECIFIC, "--out", &out];
        let said = run(&[&arguments[..], shard].concat(), &flags);
        (out.clone(), ok(&said).stdout.clone())
    };
    let (whole, _) = gram("whole.safetensors", &[]);
    let parts: Vec<String> = (1..=3)
        .map(|number| {
            let shard = format!("{number}/3");
            let (out, said) = gram(&format!("{number}.safetensors"), &["--shard", &shard]);
            assert!(
                said.contains(&format!("coco val, part {shard} in")),
                "{said}"
            );
            out
        })
        .collect();
    let sum = data.path("sum.safetensors");
    let add =
        |files: &[&str], out: &str| vlmerge(&[&["gram", "add"], files, &["--out", out]].concat());
    let said = add(&[&parts[2], &parts[0], &parts[1]], &sum);
    assert!(
        ok(&said).stdout.contains("of coco val; padding"),
        "{}",
        said.stdout
    );
    let (found, expected) = (matrices(&sum), matrices(&whole));
    assert!(found.keys().eq(expected.keys()));
    for (key, expected) in &expected {
        let largest = expected
            .iter()
            .fold(0.0f64, |largest, v| largest.max(v.abs()));
        assert!(largest > 0.0, "{key}");
        assert_eq!(found[key].len(), expected.len(), "{key}");
        for (found, expected) in found[key].iter().zip(expected) {
            let error = (found - expected).abs();
            assert!(error <= 1e-12 * largest, "{key}: {error} of {largest}");
        }
    }
    // A part alone is something else.
    assert_ne!(matrices(&parts[0]), expected);
    let none = data.path("none.safetensors");
    for (files, fault) in [
        ([&parts[0], &parts[0]], "is part 1/3 again"),
        ([&whole, &parts[1]], "is only part 2/3 of coco val"),
        ([&parts[1], &whole], "is whole; before it was only part 2/3"),
    ] {
        let said = add(&files.map(String::as_str), &none);
        assert_eq!(said.code, Some(1));
        assert!(said.stderr.contains(fault), "{}", said.stderr);
    }
}

#[test]
fn parts_by_other_flags_do_not_add_up() {
    let data = Data::build(&["coco"]);
    let flags = data.flags("retrieval", "val");
    let model = data.path("model.ckpt");
    std::fs::copy(SPECIFIC, &model).expect("copied");
    let gram = |name: &str, own: &[&str]| {
        let out = data.path(name);
        let arguments = ["gram", "--checkpoint", &model, "--out", &out];
        ok(&run(&[&arguments[..], own].concat(), &flags));
        out
    };
    let sum = data.path("sum.safetensors");
    let add = |files: [&str; 2], more: &[&str]| {
        vlmerge(&[&["gram", "add"], &files[..], &["--out", &sum], more].concat())
    };
    let half = ["--shard", "2/2"];
    let first = gram("1.safetensors", &["--shard", "1/2", "--batch-size", "3"]);
    let own = ["--batch-size", "3"];
    for (name, other, fault) in [
        (
            "batch",
            &["--batch-size", "2"][..],
            "--batch-size is 2, and 3 before",
        ),
        (
            "limit",
            &["--limit", "4"],
            "--limit is 4, and not given before",
        ),
        (
            "shared",
            &["--shared"],
            "--shared is true, and false before",
        ),
    ] {
        let own = if name == "batch" { &[][..] } else { &own[..] };
        let second = gram(
            &format!("{name}.safetensors"),
            &[&half[..], own, other].concat(),
        );
        let said = add([&first, &second], &[]);
        assert_eq!(said.code, Some(1), "{name}");
        assert!(said.stderr.contains(fault), "{name}: {}", said.stderr);
        assert!(!Path::new(&sum).exists());
    }
    let second = gram("2.safetensors", &[&half[..], &own].concat());
    let said = ok(&add([&first, &second], &[])).stderr.clone();
    assert!(!said.contains("an earlier build"), "{said}");
    // The sum is a file as that of one run.
    let whole = gram("whole.safetensors", &own);
    let record = |path: &str| {
        let file = merge::io::open(Path::new(path), &merge::io::OpenOptions::default());
        let store = merge::gram::GramStore::new(file.expect("it opens").into());
        store.expect("gram matrices").record().expect("a record")
    };
    assert_eq!(record(&sum), record(&whole));
    // Parts of an earlier build lack the settings of their run.
    let old = data.path("old.safetensors");
    let file = merge::io::open(Path::new(&second), &merge::io::OpenOptions::default());
    let store = merge::gram::GramStore::new(file.expect("it opens").into()).expect("matrices");
    let keys = store.checkpoint().tensors().map(|(key, _)| key.to_owned());
    let grams = keys.map(|key| {
        let gram = store.sum(&key).expect("it reads");
        (key, gram)
    });
    let bare = merge::gram::GramRecord {
        reading: None,
        parted_by: BTreeMap::new(),
        ..store.record().expect("a record")
    };
    let write = merge::io::WriteOptions::new(&old);
    let silent = merge::progress::Silent;
    merge::gram::write(&grams.collect(), &bare, false, &write, &silent).expect("written");
    let said = ok(&add([&first, &old], &["--force"])).stderr.clone();
    assert!(said.contains("old.safetensors: an earlier build"), "{said}");
    assert_eq!(record(&sum).shards, []);
    // A part alone merges nothing.
    let out = data.path("merged.safetensors");
    let said = vlmerge(&[
        "regmean",
        &model,
        "--grams",
        &first,
        "--for",
        "retrieval",
        "--out",
        &out,
    ]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("part 2/2 is missing"),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("vlmerge gram add"), "{}", said.stderr);
}
