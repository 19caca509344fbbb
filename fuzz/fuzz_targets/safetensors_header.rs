//! Opens arbitrary bytes as a file: it is read or refused, and every read stays within the file.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use merge::io::{Container, OpenOptions, open};
use rustix::fs::{MemfdFlags, memfd_create};

fuzz_target!(|bytes: &[u8]| {
    // A file without a place on any disk; nothing else is as fast.
    let memory = memfd_create("input", MemfdFlags::CLOEXEC).expect("memory");
    let mut file = File::from(memory);
    file.write_all(bytes).expect("memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let Ok(checkpoint) = open(&path, &OpenOptions::default()) else {
        return;
    };
    let mut n_read = 0;
    for (name, info) in checkpoint.tensors() {
        n_read += info.n_bytes();
        assert!(n_read <= bytes.len() as u64, "more data than the file has");
        let read = checkpoint.read_all(name);
        // Only torch archives have checksums, which are compared while their data are read.
        let may_fail = checkpoint.info().container == Container::TorchZip;
        assert!(may_fail || read.is_ok(), "what was opened can be read");
    }
});
