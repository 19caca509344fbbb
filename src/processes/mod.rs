//! Processes where systems differ: asking one to end, ending it with all that it started, and ending with the one that
//! started this one.

#[cfg(unix)]
#[path = "unix.rs"]
mod system;
#[cfg(windows)]
#[path = "windows.rs"]
mod system;

pub use system::{
    Group, Line, Search, adopt_descendants, ask, end_descendants, end_with, hold_children, raw,
    start_again, status,
};
