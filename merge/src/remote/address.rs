//! Addresses of remote files: `hf://`, `s3://`, `gs://`, `https://` and `http://`.

use std::path::Path;

/// Schemes that are read, each with what follows it.
const SCHEMES: [&str; 5] = ["hf://", "s3://", "gs://", "https://", "http://"];

/// Whether a path is an address rather than a file of this machine.
#[must_use]
pub fn is_address(path: &Path) -> bool {
    path.to_str()
        .is_some_and(|text| SCHEMES.iter().any(|scheme| text.starts_with(scheme)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_schemes_are_addresses() {
        assert!(is_address(Path::new("s3://bucket/key")));
        for path in ["model.safetensors", "a:b", "ftp://host/x", "hf:/org/model"] {
            assert!(!is_address(Path::new(path)), "{path}");
        }
    }
}
