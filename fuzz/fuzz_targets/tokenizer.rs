//! Any bytes as a `tokenizer.json`: opened and used on short texts, or refused.
#![no_main]

use evaluate::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("vlmerge-fuzz-{}.json", std::process::id()));
    std::fs::write(&path, bytes).expect("written");
    if let Ok(tokenizer) = Tokenizer::open(&path.to_string_lossy()) {
        for text in ["", "a red bird", "\u{1f426}\u{0301} x"] {
            if let Ok(encoded) = tokenizer.encode(text, 16) {
                assert_eq!(encoded.ids.len(), 16);
            }
        }
    }
});
