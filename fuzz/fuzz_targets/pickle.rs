//! Any bytes as a pickle: read, walked, and dropped.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = merge::io::walk_pickle(bytes.to_vec());
});
