//! Any bytes as a torch file, zip or legacy: opened, and the tensors read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merge::io::{OpenOptions, open_torch_bytes};

/// Larger tensors cost time and teach nothing.
const READ_LIMIT_BYTES: u64 = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    let Ok(source) = open_torch_bytes(bytes.to_vec(), &OpenOptions::default()) else {
        return;
    };
    for (index, entry) in source.tensors().iter().enumerate().take(64) {
        let n_bytes = entry.info.n_bytes();
        if n_bytes <= READ_LIMIT_BYTES {
            let mut out = vec![0; n_bytes as usize];
            let _ = source.read(index, 0, &mut out);
        }
    }
});
