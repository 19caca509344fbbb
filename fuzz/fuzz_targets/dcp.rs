//! Any bytes as the `.metadata` of a distributed checkpoint: read, held against each other, and dropped.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = merge::io::walk_distributed(bytes.to_vec());
});
