//! Any bytes behind the mark of HDF5: opened, and the datasets read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merge::io::{OpenOptions, open_in_memory};

/// Larger datasets cost time and teach nothing.
const READ_LIMIT_BYTES: u64 = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    let mut file = b"\x89HDF\r\n\x1a\n".to_vec();
    file.extend(bytes.get(file.len()..).unwrap_or_default());
    let Ok(checkpoint) = open_in_memory(&file, &OpenOptions::default()) else {
        return;
    };
    for (name, info) in checkpoint.tensors().take(64) {
        if info.n_bytes() <= READ_LIMIT_BYTES {
            let mut out = vec![0; info.n_bytes() as usize];
            let _ = checkpoint.read(name, 0, &mut out);
        }
    }
});
