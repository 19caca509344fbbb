//! Settings, client, cache and counters that all remote files share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::bucket::Bucket;
use super::cache::Cache;
use super::file::RemoteFile;
use super::hub;
use super::location::{Address, names_a_file, shown};
use super::web::{Client, Target, WebFile};
use crate::io::folder::Found;
use crate::io::read_at::ReadAt;
use crate::io::{self, Checkpoint, OpenOptions};
use crate::{Error, RemoteFault, Result};

/// The longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Settings of reading remote files.
#[derive(Clone)]
pub struct RemoteOptions {
    /// The folder of kept blocks.
    pub cache: PathBuf,
    /// Whether the session reads from the cache alone.
    pub offline: bool,
    /// Whether other machines may be spoken to without encryption.
    pub allow_http: bool,
    /// The number of times that a request may fail in a row before it is given up.
    pub retries: u32,
    /// The pause after the first failure; it doubles with each further one.
    pub pause: Duration,
    /// The time to wait for a connection, or for the next bytes.
    pub timeout: Duration,
    /// Address of the hub.
    pub hub_endpoint: String,
    /// Token for the hub.
    pub hub_token: Option<String>,
}

impl RemoteOptions {
    /// As the environment says: `XDG_CACHE_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN` (or
    /// the token that the hub's own programs keep).
    #[must_use]
    pub fn from_env() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|folder| folder.is_absolute())
            .or_else(home)
            .unwrap_or_else(std::env::temp_dir);
        let is_set =
            |text: String| !["0", "OFF", "NO", "FALSE"].contains(&text.to_uppercase().as_str());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| hub::ENDPOINT.to_owned());
        Self {
            cache: cache.join("vlmerge"),
            offline: text("HF_HUB_OFFLINE").is_some_and(is_set),
            allow_http: false,
            retries: 5,
            pause: Duration::from_millis(250),
            timeout: Duration::from_secs(60),
            hub_endpoint: endpoint.trim_end_matches('/').to_owned(),
            hub_token: text("HF_TOKEN").or_else(|| hf_hub::Cache::from_env().token()),
        }
    }
}

/// The traffic with the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Bytes of files that came over the network.
    pub fetched_bytes: u64,
    /// Answers that brought some.
    pub n_answers: u64,
}

/// Reads remote files. A clone is the same session.
#[derive(Clone)]
pub struct Remote(Arc<Shared>);

struct Shared {
    options: RemoteOptions,
    client: Client,
    cache: Cache,
    fetched_bytes: AtomicU64,
    n_answers: AtomicU64,
    /// Servers' answers about models and folders, by the question.
    told: Mutex<BTreeMap<String, Vec<u8>>>,
}

static INSTALLED: OnceLock<Remote> = OnceLock::new();

impl Remote {
    /// A session of its own.
    #[must_use]
    pub fn new(options: RemoteOptions) -> Self {
        Self(Arc::new(Shared {
            client: Client::new(options.allow_http, options.timeout),
            cache: Cache {
                folder: options.cache.clone(),
            },
            options,
            fetched_bytes: AtomicU64::new(0),
            n_answers: AtomicU64::new(0),
            told: Mutex::default(),
        }))
    }

    /// Makes this the session of [`crate::io::open`]; without it, the environment decides. Only the
    /// first call has an effect, which it reports.
    pub fn install(self) -> bool {
        INSTALLED.set(self).is_ok()
    }

    /// The session of [`crate::io::open`].
    pub(super) fn installed() -> &'static Self {
        INSTALLED.get_or_init(|| Self::new(RemoteOptions::from_env()))
    }

    /// The traffic of the session of [`crate::io::open`] with the network so far.
    #[must_use]
    pub fn installed_traffic() -> Traffic {
        INSTALLED.get().map(Self::traffic).unwrap_or_default()
    }

    /// The traffic with the network so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        Traffic {
            fetched_bytes: self.0.fetched_bytes.load(Ordering::Relaxed),
            n_answers: self.0.n_answers.load(Ordering::Relaxed),
        }
    }

    /// Opens a checkpoint by its address. One without a file stands for the model in it, as a
    /// folder does.
    ///
    /// # Errors
    /// [`Error::Remote`] and as [`crate::io::open`].
    pub fn open(&self, path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
        let text = path.to_string_lossy();
        let shown_path = PathBuf::from(shown(&text));
        match Address::parse(&text)? {
            Address::Hub {
                model,
                revision,
                file,
            } => {
                let text = text.trim_end_matches('/');
                let shown_path = PathBuf::from(text);
                let found = hub::model(self, text, &model, &revision)?;
                let (path, note) = match found.files.binary_search(&file) {
                    Ok(_) => (shown_path, None),
                    Err(_) => {
                        let below = self.model_below(&shown_path, &file, &found.files)?;
                        let note = below.note();
                        (below.path, note)
                    }
                };
                // The commit is found once, so that all files are of the same.
                let start = text.len() - file.len();
                let root = text[..start].trim_end_matches('/').to_owned();
                let opened = io::open_with(&path, options, &|path| {
                    let address = path.to_string_lossy().into_owned();
                    let name = address.strip_prefix(&root).unwrap_or("");
                    let target = found.file(self, &address, name.trim_start_matches('/'))?;
                    self.web_file(target, true)
                })?;
                Ok(opened.with_note(note))
            }
            Address::Bucket {
                provider,
                bucket,
                key,
            } => {
                let store = Bucket::open(self, &text, provider, &bucket)?;
                let root = format!("{}://{bucket}/", text.split("://").next().unwrap_or(""));
                let open = |path: &Path| -> Result<Box<dyn ReadAt>> {
                    let address = path.to_string_lossy().into_owned();
                    let key = address.strip_prefix(&root).unwrap_or("");
                    let object = Box::new(store.object(&address, key));
                    let file = RemoteFile::open(self, address.clone(), &address, false, object)?;
                    Ok(Box::new(file))
                };
                if names_a_file(&key) {
                    return io::open_with(&shown_path, options, &open);
                }
                let names = self.listing(&text, &store, &key)?;
                let folder = PathBuf::from(text.trim_end_matches('/'));
                let found = io::model_far_away(&folder, &names)?;
                Ok(io::open_with(&found.path, options, &open)?.with_note(found.note()))
            }
            Address::Web { url } => {
                let query = url.find('?').map(|start| url[start..].to_owned());
                io::open_with(&shown_path, options, &|path| {
                    let address = path.to_string_lossy().into_owned();
                    // A signature belongs to the one file that was named.
                    let is_named = path == shown_path;
                    let query = query.as_deref().filter(|_| is_named).unwrap_or("");
                    let url = format!("{address}{query}");
                    self.web_file(Target::open_to_all(address, &url)?, false)
                })
            }
        }
    }

    /// The model among the files right below a folder of a hub model.
    fn model_below(&self, shown: &Path, folder: &str, files: &[String]) -> Result<Found> {
        let names = hub::names_below(files, folder);
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        if names.is_empty() {
            return Err(Error::from(RemoteFault::Refused {
                address: shown.display().to_string(),
                status: 404,
            }));
        }
        io::model_far_away(shown, &names)
    }

    pub(super) fn web_file(&self, target: Target, is_fixed: bool) -> Result<Box<dyn ReadAt>> {
        self.0.client.check_scheme(&target.address, &target.url)?;
        // Kept under the address without a query: the signature of a link changes, its file does
        // not, or its tag tells.
        let key = shown(target.url.as_str());
        let address = target.address.clone();
        let store = Box::new(WebFile {
            client: self.0.client.clone(),
            target,
        });
        let file = RemoteFile::open(self, address, &key, is_fixed, store)?;
        Ok(Box::new(file))
    }

    /// The answer to a question, asked once in a session: all that is read of a model is of one commit.
    pub(super) fn told(
        &self,
        question: &str,
        ask: impl FnOnce() -> Result<Vec<u8>, RemoteFault>,
    ) -> Result<Vec<u8>, RemoteFault> {
        let lock = || self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(question) {
            return Ok(known.clone());
        }
        let answer = ask()?;
        lock().insert(question.to_owned(), answer.clone());
        Ok(answer)
    }

    /// Names of the objects right below a key, kept for when there is no network.
    pub(super) fn listing(
        &self,
        address: &str,
        store: &Bucket,
        key: &str,
    ) -> Result<Vec<String>, RemoteFault> {
        let unknown = || RemoteFault::OfflineUnknown {
            address: address.to_owned(),
            cache: self.0.cache.folder.clone(),
        };
        let text = self.told(address, || {
            if self.is_offline() {
                return self.0.cache.document(address).ok_or_else(unknown);
            }
            let names = store.names(address, key)?;
            let text = serde_json::to_vec(&names).unwrap_or_default();
            self.0.cache.keep_document(address, &text)?;
            Ok(text)
        })?;
        serde_json::from_slice(&text).map_err(|_| unknown())
    }

    pub(super) fn options(&self) -> &RemoteOptions {
        &self.0.options
    }

    pub(super) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.0.cache
    }

    pub(super) fn is_offline(&self) -> bool {
        self.0.options.offline
    }

    pub(super) fn retries(&self) -> u32 {
        self.0.options.retries
    }

    /// The pause after `n_failures` failures in a row.
    pub(super) fn pause(&self, n_failures: u32, after: Option<Duration>) -> Duration {
        let doubled = 1u32 << (n_failures.saturating_sub(1)).min(16);
        let pause = self.0.options.pause.saturating_mul(doubled).min(MAX_PAUSE);
        pause.max(after.unwrap_or_default())
    }

    pub(super) fn count(&self, n_bytes: u64) {
        self.0.fetched_bytes.fetch_add(n_bytes, Ordering::Relaxed);
        self.0.n_answers.fetch_add(1, Ordering::Relaxed);
    }
}
