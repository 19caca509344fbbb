//! Any bytes as the ledger of an unfinished output: believed, passed over or refused, at once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merge::io::n_complete_files;

fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("vlmerge-fuzz-ledger-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    std::fs::write(folder.join(".t.safetensors.resume"), bytes).expect("written");
    let n = n_complete_files(&folder.join("t.safetensors"), "fingerprint");
    assert!(n <= bytes.len());
});
