//! Any bytes as the state of a training run: opened or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use train::run::KeptState;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("vlmerge-fuzz-state-{}.safetensors", std::process::id()));
    std::fs::write(&path, bytes).expect("written");
    if let Ok(kept) = KeptState::open(&path) {
        for (key, n) in kept.entries().take(64) {
            let _ = kept.read(key, 0..n.min(1 << 16));
        }
    }
});
