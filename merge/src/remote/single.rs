//! One file by its address, whatever is in it.

use std::path::Path;

use super::Remote;
use super::bucket::Bucket;
use super::file::RemoteFile;
use super::hub;
use super::location::{Address, shown};
use super::web::Target;
use crate::Result;
use crate::io::read_at::ReadAt;

impl Remote {
    /// Opens a file by its address, which names no folder.
    ///
    /// # Errors
    /// [`crate::Error::Remote`].
    pub(crate) fn open_bytes(&self, path: &Path) -> Result<Box<dyn ReadAt>> {
        let text = path.to_string_lossy();
        match Address::parse(&text)? {
            Address::Hub {
                model,
                revision,
                file,
            } => {
                let found = hub::model(self, &text, &model, &revision)?;
                self.web_file(found.file(self, &text, &file)?, true)
            }
            Address::Bucket {
                provider,
                bucket,
                key,
            } => {
                let store = Bucket::open(self, &text, provider, &bucket)?;
                let object = Box::new(store.object(&text, &key));
                let address = text.clone().into_owned();
                Ok(Box::new(RemoteFile::open(
                    self, address, &text, false, object,
                )?))
            }
            Address::Web { url } => self.web_file(Target::open_to_all(shown(&url), &url)?, false),
        }
    }
}
