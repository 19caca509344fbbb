//! Any bytes as a file of arrays (Flax, NumPy, ONNX): opened, and the tensors read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merge::io::{OpenOptions, open_in_memory};

/// Larger tensors cost time and teach nothing.
const READ_LIMIT_BYTES: u64 = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = open_in_memory(bytes, &OpenOptions::default()) else {
        return;
    };
    for (name, info) in checkpoint.tensors().take(64) {
        if info.n_bytes() <= READ_LIMIT_BYTES {
            let mut out = vec![0; info.n_bytes() as usize];
            let _ = checkpoint.read(name, 0, &mut out);
        }
    }
});
