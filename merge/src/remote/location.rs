//! The place that an address names.

use super::hub::DATASETS;
use crate::RemoteFault;

/// The object store that a bucket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    /// Amazon S3, or any server that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
}

/// A place of a remote file or folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A model of the Hugging Face hub, or a file of it.
    Hub {
        /// `org/model`, or `datasets/org/name`.
        model: String,
        /// Branch, tag or commit.
        revision: String,
        /// Path within the model; empty for the whole.
        file: String,
    },
    /// An object, or a group of objects with a common start.
    Bucket {
        /// The store of the bucket.
        provider: Provider,
        /// Its name.
        bucket: String,
        /// The object, or the start of several.
        key: String,
    },
    /// A file of a web server.
    Web {
        /// The address as it was given, with its query.
        url: String,
    },
}

impl Address {
    /// Reads an address.
    pub(super) fn parse(text: &str) -> Result<Self, RemoteFault> {
        let fault = |why| RemoteFault::Address {
            address: shown(text),
            why,
        };
        if text.chars().any(|c| c.is_control() || c == '\\') {
            return Err(fault("has characters that no address has"));
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let provider = match scheme {
            "hf" => return hub(rest).map_err(fault),
            "s3" => Provider::S3,
            "gs" => Provider::Google,
            "http" | "https" => return web(text, rest).map_err(fault),
            _ => {
                return Err(fault(
                    "addresses start with hf://, s3://, gs:// or https://",
                ));
            }
        };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || !is_plain(key.trim_end_matches('/')) {
            return Err(fault(
                "should be a bucket, a slash and the name of an object",
            ));
        }
        Ok(Self::Bucket {
            provider,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }
}

fn hub(rest: &str) -> Result<Address, &'static str> {
    const FORM: &str = "should be hf://org/model, hf://org/model@revision, hf://datasets/org/name, or a file of it";
    let (of, rest) = match rest.strip_prefix(DATASETS) {
        Some(rest) => (DATASETS, rest),
        None => ("", rest),
    };
    let (org, rest) = rest.split_once('/').ok_or(FORM)?;
    let (name, file) = rest.split_once('/').unwrap_or((rest, ""));
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    let is_name = |text: &str| {
        !text.is_empty()
            && !text.starts_with('.')
            && (text.chars()).all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    // As the hub's own tools write a revision with a slash.
    let revision = revision.replace("%2F", "/").replace("%2f", "/");
    let is_revision = !revision.is_empty() && revision.split('/').all(is_name);
    let file = file.trim_end_matches('/');
    match is_name(org) && is_name(name) && is_revision && is_plain(file) {
        true => Ok(Address::Hub {
            model: format!("{of}{org}/{name}"),
            revision,
            file: file.to_owned(),
        }),
        false => Err(FORM),
    }
}

fn web(text: &str, rest: &str) -> Result<Address, &'static str> {
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.contains('@') {
        return Err("holds a user name, which would be printed and kept");
    }
    let path = path.split(['?', '#']).next().unwrap_or("");
    if path.is_empty() || path.ends_with('/') {
        return Err("web servers list no folders: name the model's file or its index.json");
    }
    Ok(Address::Web {
        url: text.to_owned(),
    })
}

/// Whether a relative path is empty, or goes only downwards.
fn is_plain(path: &str) -> bool {
    path.is_empty() || path.split('/').all(|part| !["", ".", ".."].contains(&part))
}

/// Whether a key of a bucket is a file's rather than a folder's: only a name with an extension can be
/// that of a model's file.
pub(super) fn names_a_file(key: &str) -> bool {
    let last = key.rsplit('/').next().unwrap_or("");
    last.contains('.')
}

/// An address for messages and files: without a query, which may hold a signature.
pub(super) fn shown(text: &str) -> String {
    text.split(['?', '#']).next().unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_address_has_a_model_a_revision_and_perhaps_a_file() {
        let hub = |model: &str, revision: &str, file: &str| Address::Hub {
            model: model.into(),
            revision: revision.into(),
            file: file.into(),
        };
        let parse = |text| Address::parse(text).expect("an address");
        assert_eq!(parse("hf://org/model"), hub("org/model", "main", ""));
        assert_eq!(
            parse("hf://org/model@refs%2Fpr%2F1/a/b.safetensors"),
            hub("org/model", "refs/pr/1", "a/b.safetensors")
        );
        assert_eq!(
            parse("hf://datasets/org/cats@v1/data/train-00000-of-00001.parquet"),
            hub(
                "datasets/org/cats",
                "v1",
                "data/train-00000-of-00001.parquet"
            )
        );
        for text in [
            "hf://model",
            "hf://datasets/cats",
            "hf://org/",
            "hf://org/model@",
            "hf://org/model@v1/../x",
            "hf://org/mo?del",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn web_addresses_name_a_file_and_no_user_and_messages_leave_the_query_out() {
        assert!(Address::parse("https://host/a.safetensors?X-Signature=abc").is_ok());
        assert!(Address::parse("https://host/folder/").is_err());
        assert!(Address::parse("https://me:secret@host/a").is_err());
        assert_eq!(shown("https://host/a?token=abc"), "https://host/a");
    }
}
