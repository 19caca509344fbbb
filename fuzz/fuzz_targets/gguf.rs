//! Any bytes as a GGUF file: opened under both kinds of names, and the tensors read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merge::io::{OpenOptions, open_in_memory};

/// Larger tensors cost time and teach nothing.
const READ_LIMIT_BYTES: u64 = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    // The mark goes without saying, so that every input is of the format.
    let bytes = [b"GGUF", bytes].concat();
    for raw in [true, false] {
        let options = OpenOptions {
            raw,
            ..OpenOptions::default()
        };
        let Ok(checkpoint) = open_in_memory(&bytes, &options) else {
            continue;
        };
        for (name, info) in checkpoint.tensors().take(64) {
            if info.n_bytes() <= READ_LIMIT_BYTES {
                let mut out = vec![0; info.n_bytes() as usize];
                let _ = checkpoint.read(name, 0, &mut out);
            }
        }
    }
});
