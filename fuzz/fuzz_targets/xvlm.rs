//! Any bytes as X-VLM's JSON files: of captions, of statements and of questions, opened or refused.
#![no_main]

use evaluate::datasets::captions::CaptionSet;
use evaluate::datasets::nlvr2::Nlvr2Set;
use evaluate::datasets::vqa::VqaSet;
use evaluate::datasets::xvlm::JsonFiles;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("vlmerge-fuzz-xvlm-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let path = folder.join("entries.json");
    std::fs::write(&path, bytes).expect("written");
    let mut files = JsonFiles::new(std::slice::from_ref(&path), &folder);
    let _ = CaptionSet::of_json(&files);
    let _ = Nlvr2Set::of_json(&files);
    let _ = VqaSet::of_json(&files);
    files.answers = Some(path);
    let _ = VqaSet::of_json(&files);
});
