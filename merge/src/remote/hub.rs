//! Models and data sets of the Hugging Face hub: which commit a revision is, and which files it has.

use hf_hub::{Repo, RepoType};
use serde::Deserialize;
use url::Url;

use super::Remote;
use super::file::fetch;
use super::store::{Answer, Store, Trouble};
use super::web::{Client, Target};
use crate::RemoteFault;

/// The hub, unless HF_ENDPOINT names another.
pub(super) const ENDPOINT: &str = "https://huggingface.co";

/// The prefix of the name of a data set.
pub(super) const DATASETS: &str = "datasets/";

/// The longest answer about a model that is read.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// The longest name of a file on most disks.
const MAX_NAME_BYTES: usize = 255;

/// The longest name with folders.
const MAX_PATH_BYTES: usize = 4096;

/// A model at one commit.
pub(super) struct Model {
    repo: Repo,
    /// Its files, sorted.
    pub(super) files: Vec<String>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Asks the hub for a model, or the cache for the hub's earlier answer.
pub(super) fn model(
    remote: &Remote,
    address: &str,
    model: &str,
    revision: &str,
) -> Result<Model, RemoteFault> {
    let repo = repo_of(model, revision.to_owned());
    let endpoint = &remote.options().hub_endpoint;
    let url = format!("{endpoint}/api/{}", repo.api_url());
    let is_commit = revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit());
    let text = remote.told(&url, || {
        let cached = match is_commit || remote.is_offline() {
            true => remote.cache().document(&url),
            false => None,
        };
        match cached {
            Some(text) => Ok(text),
            None if remote.is_offline() => Err(RemoteFault::OfflineUnknown {
                address: address.to_owned(),
                cache: remote.cache().folder.clone(),
            }),
            None => {
                let about = About {
                    client: remote.client().clone(),
                    target: target(remote, address, &url)?,
                };
                let answer = fetch(remote, address, &about, 0..MAX_ANSWER_BYTES, None)?;
                remote.cache().keep_document(&url, &answer.bytes)?;
                Ok(answer.bytes)
            }
        }
    })?;
    let bad = |reason: String| RemoteFault::BadAnswer {
        address: address.to_owned(),
        reason,
    };
    let info: Info = serde_json::from_slice(&text)
        .map_err(|error| bad(format!("the hub's answer cannot be read: {error}")))?;
    if info.sha.is_empty() || !info.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad("the hub names no commit".into()));
    }
    let mut files: Vec<_> = (info.siblings.into_iter())
        .map(|file| file.rfilename)
        .collect();
    files.sort_unstable();
    if let Some(name) = files.iter().find(|name| !is_plain(name)) {
        let shown: String = name.chars().take(100).collect();
        return Err(bad(format!(
            "the hub lists a file named {shown:?}, which no model has"
        )));
    }
    let repo = repo_of(model, info.sha);
    // Whoever asks for the commit by its name gets the same answer.
    remote.told(&format!("{endpoint}/api/{}", repo.api_url()), || Ok(text))?;
    Ok(Model { repo, files })
}

/// A model, or a data set whose name follows [`DATASETS`].
fn repo_of(name: &str, revision: String) -> Repo {
    match name.strip_prefix(DATASETS) {
        Some(dataset) => Repo::with_revision(dataset.to_owned(), RepoType::Dataset, revision),
        None => Repo::with_revision(name.to_owned(), RepoType::Model, revision),
    }
}

/// Whether a name leads downwards from the model's folder, in characters that files have.
fn is_plain(name: &str) -> bool {
    let is_odd = |c: char| c.is_control() || c == '\\';
    let is_part = |part: &str| !["", ".", ".."].contains(&part) && part.len() <= MAX_NAME_BYTES;
    name.len() <= MAX_PATH_BYTES && !name.contains(is_odd) && name.split('/').all(is_part)
}

/// Names of the visible files below a folder of a model, with the folders in between.
pub(super) fn all_below<'a>(files: &'a [String], folder: &str) -> Vec<&'a str> {
    let prefix = match folder {
        "" => String::new(),
        folder => format!("{folder}/"),
    };
    let below = files.iter().filter_map(|file| file.strip_prefix(&prefix));
    below
        .filter(|name| {
            !name
                .split('/')
                .any(|part| part.is_empty() || part.starts_with('.'))
        })
        .collect()
}

/// Names of the visible files right below a folder of a model.
pub(super) fn names_below<'a>(files: &'a [String], folder: &str) -> Vec<&'a str> {
    let prefix = match folder {
        "" => String::new(),
        folder => format!("{folder}/"),
    };
    let below = files.iter().filter_map(|file| file.strip_prefix(&prefix));
    below
        .filter(|name| !name.contains('/') && !name.starts_with('.'))
        .collect()
}

impl Model {
    /// The commit.
    pub(super) fn commit(&self) -> String {
        self.repo.url_revision()
    }

    /// The address of a file of the model, at this commit.
    pub(super) fn file(
        &self,
        remote: &Remote,
        address: &str,
        file: &str,
    ) -> Result<Target, RemoteFault> {
        let endpoint = &remote.options().hub_endpoint;
        let (repo, commit) = (self.repo.url(), self.repo.url_revision());
        let file = url_path(file);
        target(
            remote,
            address,
            &format!("{endpoint}/{repo}/resolve/{commit}/{file}"),
        )
    }
}

/// A name as the path of an address: a `?` or `#` in it is part of the name.
fn url_path(name: &str) -> String {
    let escaped = name.chars().map(|c| match c {
        '%' => "%25".to_owned(),
        '?' => "%3F".to_owned(),
        '#' => "%23".to_owned(),
        plain => plain.to_string(),
    });
    escaped.collect()
}

fn target(remote: &Remote, address: &str, url: &str) -> Result<Target, RemoteFault> {
    let url = Url::parse(url).map_err(|error| RemoteFault::Settings {
        address: address.to_owned(),
        reason: format!("HF_ENDPOINT gives no address: {error}"),
    })?;
    Ok(Target {
        address: address.to_owned(),
        url,
        token: remote.options().hub_token.clone(),
    })
}

/// The hub's answer about a model.
struct About {
    client: Client,
    target: Target,
}

impl Store for About {
    fn get(&self, range: std::ops::Range<u64>) -> Result<Answer, Trouble> {
        self.client.document(&self.target, range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_lead_downwards() {
        for name in [
            "model.safetensors",
            "a b/c.json",
            "1_Pooling/config.json",
            "x?y#z%.json",
        ] {
            assert!(is_plain(name), "{name}");
        }
        let long = "a".repeat(256);
        let deep = "a/".repeat(3000) + "a";
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "a/../x",
            "a//b",
            "a/.",
            "a\0b",
            "a\\b",
            "a\nb",
            &long,
            &deep,
        ] {
            assert!(!is_plain(name), "{name:?}");
        }
        assert_eq!(url_path("a?b/c#d%e.json"), "a%3Fb/c%23d%25e.json");
    }
}
