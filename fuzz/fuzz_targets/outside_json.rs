//! Any text as what a program printed, and any path of keys: a finite number or a refusal.
#![no_main]

use evaluate::outside::json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str)| {
    let (text, path) = input;
    if let Ok(value) = json::parse(text) {
        for path in [None, Some(path)] {
            if let Ok(number) = json::number(&value, path, "fuzz") {
                assert!(number.is_finite());
            }
        }
    }
});
