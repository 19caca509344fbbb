//! Files beside a model's weights: its configuration, its tokenizer, its card.

use std::path::{Path, PathBuf};

use super::Remote;
use super::bucket::Bucket;
use super::hub;
use super::location::{Address, names_a_file};
use crate::Result;
use crate::io::folder::is_model_name;

impl Remote {
    /// Names and addresses of the files beside a model, as of a local one's: those of a folder (of a model of
    /// the hub with those of its folders), or of the folder of a file with a usual name. Web servers list no folders, and of buckets only those that
    /// were named are listed, for to list is a right of its own.
    ///
    /// # Errors
    /// [`crate::Error::Remote`].
    pub(crate) fn neighbors(&self, path: &Path) -> Result<Vec<(String, PathBuf)>> {
        let text = path.to_string_lossy();
        match Address::parse(&text)? {
            Address::Hub {
                model,
                revision,
                file,
            } => {
                let found = hub::model(self, &text, &model, &revision)?;
                let folder = match found.files.binary_search(&file) {
                    Ok(_) if !is_model_name(Path::new(&file)) => return Ok(Vec::new()),
                    Ok(_) => file.rsplit_once('/').map_or("", |(folder, _)| folder),
                    Err(_) => &file,
                };
                let commit = found.commit();
                let address = |name: &str| match folder {
                    "" => format!("hf://{model}@{commit}/{name}"),
                    folder => format!("hf://{model}@{commit}/{folder}/{name}"),
                };
                let names = hub::all_below(&found.files, folder).into_iter();
                Ok(names
                    .map(|name| (name.to_owned(), address(name).into()))
                    .collect())
            }
            Address::Bucket {
                provider,
                bucket,
                key,
            } => {
                if names_a_file(&key) {
                    return Ok(Vec::new());
                }
                let store = Bucket::open(self, &text, provider, &bucket)?;
                let names = self.listing(&text, &store, &key)?;
                let folder = PathBuf::from(text.trim_end_matches('/'));
                let address = |name: String| {
                    let address = folder.join(&name);
                    (name, address)
                };
                Ok(names.into_iter().map(address).collect())
            }
            Address::Web { .. } => Ok(Vec::new()),
        }
    }
}
