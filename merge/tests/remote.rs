//! Remote checkpoints, read from a server on this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use merge::Checkpoint;
use merge::io::OpenOptions;
use merge::remote::{Remote, RemoteOptions};

use crate::range_server::{Fault, Server};

/// Bytes of a block of the cache (docs/formats.md).
const BLOCK: u64 = 256 << 10;

/// Bytes of each tensor of [`model`].
const TENSOR: usize = 2 << 20;

/// A safetensors file of three tensors, `a`, `b`, `c`, with bytes that differ by place and `salt`.
fn model(salt: u8) -> Vec<u8> {
    let entry = |name: &str, place: usize| {
        let (first, end) = (place * TENSOR, (place + 1) * TENSOR);
        format!(r#""{name}":{{"dtype":"F32","shape":[512,1024],"data_offsets":[{first},{end}]}}"#)
    };
    let mut header = format!("{{{},{},{}}}", entry("a", 0), entry("b", 1), entry("c", 2));
    header.extend(std::iter::repeat_n(
        ' ',
        header.len().next_multiple_of(8) - header.len(),
    ));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    let data =
        (0..3 * TENSOR).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ salt);
    file.extend(data);
    file
}

/// The bytes of a tensor of [`model`].
fn tensor(salt: u8, place: usize) -> Vec<u8> {
    let file = model(salt);
    let data = file.len() - 3 * TENSOR;
    file[data + place * TENSOR..data + (place + 1) * TENSOR].to_vec()
}

fn options(cache: &Path) -> RemoteOptions {
    RemoteOptions {
        cache: cache.into(),
        offline: false,
        allow_http: false,
        retries: 2,
        pause: Duration::from_millis(1),
        timeout: Duration::from_secs(20),
        hub_endpoint: "http://127.0.0.1:9".into(),
        hub_token: None,
    }
}

fn open(remote: &Remote, address: &str) -> merge::Result<Checkpoint> {
    remote.open(Path::new(address), &OpenOptions::default())
}

/// The error of opening, which must fail.
fn refusal(remote: &Remote, address: &str) -> String {
    match open(remote, address) {
        Ok(_) => panic!("{address} was opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn only_the_header_and_the_tensor_that_is_read_are_fetched_once() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    server.put("/m.safetensors", model(1), "\"one\"");
    let address = server.address("/m.safetensors");
    let remote = Remote::new(options(folder.path()));
    let checkpoint = open(&remote, &address).expect("opened");
    assert_eq!(checkpoint.read_all("b").expect("read"), tensor(1, 1));
    let data = (model(1).len() - 3 * TENSOR) as u64;
    let (first, end) = (data + TENSOR as u64, data + 2 * TENSOR as u64);
    let needed = first / BLOCK * BLOCK..end.next_multiple_of(BLOCK);
    let asked = server.asked();
    for asked in &asked {
        let range = asked.range.clone().expect("a range");
        let is_needed = needed.start <= range.start && range.end <= needed.end;
        assert!(
            range == (0..BLOCK) || is_needed,
            "{range:?} is not of the tensor"
        );
    }
    let n_bytes: u64 = asked
        .iter()
        .filter_map(|asked| asked.range.clone())
        .map(|r| r.end - r.start)
        .sum();
    assert_eq!(n_bytes, BLOCK + needed.end - needed.start);
    assert_eq!(remote.traffic().fetched_bytes, n_bytes);

    // Another run asks for one byte, to see whether the file is still the same.
    let again = Remote::new(options(folder.path()));
    let checkpoint = open(&again, &address).expect("opened");
    assert_eq!(checkpoint.read_all("b").expect("read"), tensor(1, 1));
    assert_eq!(again.traffic().fetched_bytes, 1);

    // And one without a network asks for none.
    server.asked();
    let offline = Remote::new(RemoteOptions {
        offline: true,
        ..options(folder.path())
    });
    let checkpoint = open(&offline, &address).expect("opened");
    assert_eq!(checkpoint.read_all("b").expect("read"), tensor(1, 1));
    let missing = checkpoint.read_all("c").expect_err("not there").to_string();
    assert!(
        missing.contains(&address) && missing.contains("offline"),
        "{missing}"
    );
    assert!(
        missing.contains(&format!("bytes {}..", needed.end)),
        "{missing}"
    );
    let unknown = refusal(&offline, &server.address("/other.safetensors"));
    assert!(
        unknown.contains("offline") && unknown.contains("knows nothing"),
        "{unknown}"
    );
    assert!(server.asked().is_empty());
}

#[test]
fn a_broken_connection_goes_on_where_it_broke() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    server.put("/m.safetensors", model(2), "\"one\"");
    let remote = Remote::new(options(folder.path()));
    let checkpoint = open(&remote, &server.address("/m.safetensors")).expect("opened");
    server.asked();
    // More often than a request may fail in a row: each time some bytes come.
    server.misbehave(Fault::Drops {
        after: 100_000,
        times: 5,
    });
    assert_eq!(checkpoint.read_all("a").expect("read"), tensor(2, 0));
    let starts: Vec<u64> = (server.asked().iter())
        .filter_map(|asked| Some(asked.range.clone()?.start))
        .collect();
    assert_eq!(starts.len(), 6, "{starts:?}");
    assert!(starts.is_sorted() && starts[5] > starts[0], "{starts:?}");
    // The bytes before a break were not fetched again.
    assert!(remote.traffic().fetched_bytes <= TENSOR as u64 + 2 * BLOCK);
}

#[test]
fn a_server_that_fails_again_and_again_is_given_up_with_address_and_bytes() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    server.put("/m.safetensors", model(3), "\"one\"");
    let address = server.address("/m.safetensors");
    let remote = Remote::new(options(folder.path()));
    let checkpoint = open(&remote, &address).expect("opened");
    server.misbehave(Fault::Drops {
        after: 0,
        times: 99,
    });
    let error = checkpoint.read_all("a").expect_err("given up").to_string();
    assert!(
        error.contains(&address) && error.contains("gave up after 3 tries"),
        "{error}"
    );
    assert!(error.contains(&format!("bytes {BLOCK}..")), "{error}");
    server.misbehave(Fault::IsBusy { times: 2 });
    assert_eq!(checkpoint.read_all("a").expect("read"), tensor(3, 0));
}

#[test]
fn wrong_answers_are_errors_with_address_and_bytes() {
    let cases = [
        (Fault::SendsLess, "bytes 0..262144 came as 131072 bytes"),
        (
            Fault::SendsAnotherRange,
            "asked for bytes 0..262144, the server sent `bytes 1-262144/",
        ),
        (Fault::HasNoRanges, "no byte ranges"),
        (Fault::HasNoTag, "neither ETag nor Last-Modified"),
    ];
    let server = Server::start();
    server.put("/m.safetensors", model(4), "\"one\"");
    let address = server.address("/m.safetensors");
    for (fault, expected) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        server.misbehave(fault);
        let error = refusal(&Remote::new(options(folder.path())), &address);
        assert!(
            error.contains(expected) && error.contains(&address),
            "{fault:?}: {error}"
        );
    }
    server.misbehave(Fault::None);
    let folder = tempfile::tempdir().expect("a folder");
    let remote = Remote::new(options(folder.path()));
    let error = refusal(&remote, &server.address("/none.safetensors"));
    assert!(error.contains("the server answered 404"), "{error}");
    let error = refusal(&remote, "http://example.org/m.safetensors");
    assert!(error.contains("this machine only"), "{error}");
}

#[test]
fn a_file_that_changes_midway_is_an_error_and_the_next_opening_reads_the_new_one() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    server.put("/m.safetensors", model(5), "\"one\"");
    let address = server.address("/m.safetensors");
    let remote = Remote::new(options(folder.path()));
    let checkpoint = open(&remote, &address).expect("opened");
    assert_eq!(checkpoint.read_all("a").expect("read"), tensor(5, 0));
    server.put("/m.safetensors", model(6), "\"two\"");
    let error = checkpoint.read_all("c").expect_err("changed").to_string();
    for part in [
        address.as_str(),
        "changed while it was read",
        "\"one\"",
        "\"two\"",
        "bytes ",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let checkpoint = open(&remote, &address).expect("opened");
    assert_eq!(checkpoint.read_all("a").expect("read"), tensor(6, 0));
}

#[test]
fn a_header_that_claims_to_be_endless_is_not_fetched() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let mut file = model(7);
    file[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    server.put("/m.safetensors", file, "\"one\"");
    let remote = Remote::new(options(folder.path()));
    refusal(&remote, &server.address("/m.safetensors"));
    assert_eq!(remote.traffic().fetched_bytes, BLOCK);
}

#[test]
fn sessions_that_share_a_cache_read_the_same_bytes_at_once() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    server.put("/m.safetensors", model(8), "\"one\"");
    let address = server.address("/m.safetensors");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let remote = Remote::new(options(folder.path()));
                let checkpoint = open(&remote, &address).expect("opened");
                std::thread::scope(|scope| {
                    for (place, name) in ["a", "b", "c", "b"].into_iter().enumerate() {
                        let checkpoint = &checkpoint;
                        let place = if place == 3 { 1 } else { place };
                        scope.spawn(move || {
                            assert_eq!(checkpoint.read_all(name).expect("read"), tensor(8, place));
                        });
                    }
                });
            });
        }
    });
}

#[test]
fn a_model_of_the_hub_is_read_at_one_commit_and_the_token_stays_with_the_hub() {
    let (hub, store) = (Server::start(), Server::start());
    let folder = tempfile::tempdir().expect("a folder");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let info = format!(
        r#"{{"sha":"{commit}","siblings":[{{"rfilename":"README.md"}},
            {{"rfilename":"model.safetensors.index.json"}},{{"rfilename":"part.safetensors"}}]}}"#
    );
    hub.put(
        "/api/models/org/model/revision/v1",
        info.into_bytes(),
        "\"i\"",
    );
    let index =
        r#"{"weight_map":{"a":"part.safetensors","b":"part.safetensors","c":"part.safetensors"}}"#;
    let resolve = |file: &str| format!("/org/model/resolve/{commit}/{file}");
    hub.put(
        &resolve("model.safetensors.index.json"),
        index.into(),
        "\"x\"",
    );
    hub.redirect(
        &resolve("part.safetensors"),
        &store.address("/blob?sig=1"),
        "\"linked\"",
    );
    store.put("/blob", model(9), "\"of the store\"");
    let with_hub = |offline| {
        Remote::new(RemoteOptions {
            offline,
            hub_endpoint: hub.address(""),
            hub_token: Some("hf_secret".into()),
            ..options(folder.path())
        })
    };
    let checkpoint = open(&with_hub(false), "hf://org/model@v1").expect("opened");
    assert_eq!(checkpoint.read_all("c").expect("read"), tensor(9, 2));
    assert_eq!(
        checkpoint.path(),
        Path::new("hf://org/model@v1/model.safetensors.index.json")
    );
    assert_eq!(
        checkpoint.info().files[1].etag.as_deref(),
        Some("\"linked\"")
    );
    assert!(
        hub.asked()
            .iter()
            .all(|asked| asked.authorization.as_deref() == Some("Bearer hf_secret"))
    );
    let at_store = store.asked();
    assert!(!at_store.is_empty());
    assert!(at_store.iter().all(|asked| asked.authorization.is_none()));

    // A part by its name, and everything again without the hub.
    let part = open(&with_hub(false), "hf://org/model@v1/part.safetensors").expect("opened");
    assert_eq!(part.read_all("c").expect("read"), tensor(9, 2));
    hub.asked();
    let checkpoint = open(&with_hub(true), "hf://org/model@v1").expect("opened");
    assert_eq!(checkpoint.read_all("c").expect("read"), tensor(9, 2));
    assert!(
        hub.asked().is_empty()
            && store
                .asked()
                .iter()
                .all(|asked| asked.path != "/blob" || asked.range.is_some())
    );
    let error = refusal(&with_hub(false), "hf://org/model@v2");
    assert!(
        error.contains("hf://org/model@v2") && error.contains("404"),
        "{error}"
    );
    assert!(!error.contains("hf_secret"));
}

#[test]
fn a_torch_file_is_read_from_its_end() {
    let path = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../fixtures/ckpt/all_moe_pretrain.ckpt"
    ));
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    server.put(
        "/m.ckpt",
        std::fs::read(&path).expect("a fixture"),
        "\"one\"",
    );
    let remote = Remote::new(options(folder.path()));
    let there = open(&remote, &server.address("/m.ckpt")).expect("opened");
    let here = merge::io::open(&path, &OpenOptions::default()).expect("opened");
    assert!(here.tensors().eq(there.tensors()));
    for (name, _) in here.tensors() {
        assert_eq!(
            here.read_all(name).expect("read"),
            there.read_all(name).expect("read"),
            "{name}"
        );
    }
}

#[test]
fn a_server_that_sends_drop_by_drop_is_given_up() {
    let server = Server::start();
    server.put("/model.safetensors", model(1), "\"one\"");
    server.misbehave(Fault::Drips);
    let cache = tempfile::tempdir().expect("a temporary folder");
    let remote = Remote::new(RemoteOptions {
        timeout: Duration::from_secs(3),
        retries: 1,
        ..options(cache.path())
    });
    let begun = std::time::Instant::now();
    let said = open(&remote, &server.address("/model.safetensors")).map(drop);
    let said = said.expect_err("given up").to_string();
    assert!(said.contains("bytes came in"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}
