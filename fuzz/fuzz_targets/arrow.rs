//! Any bytes as an arrow file of captions: opened and read, or refused.
#![no_main]

use evaluate::datasets::captions::CaptionSet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("vlmerge-fuzz-arrow-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    std::fs::write(folder.join("sbu_0.arrow"), bytes).expect("written");
    let _ = CaptionSet::open(&folder, "sbu", "train");
});
