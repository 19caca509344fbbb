//! Any bytes as a shard of a webdataset, of captions and of classes: opened and read, or refused.
#![no_main]

use evaluate::datasets::captions::CaptionSet;
use evaluate::datasets::classes::ClassSet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("vlmerge-fuzz-tar-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("x")).expect("a temporary folder");
    std::fs::write(folder.join("x/test.tar"), bytes).expect("written");
    if let Ok(set) = CaptionSet::open(&folder, "x", "test") {
        for image in 0..set.n_images().min(64) {
            let _ = set.image_bytes(image);
        }
    }
    let _ = ClassSet::open(&folder, "x", "test");
});
