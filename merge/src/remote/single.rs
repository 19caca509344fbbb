//! One file by its address, whatever is in it.

use std::path::Path;

use super::Remote;
use super::bucket::Bucket;
use super::file::RemoteFile;
use super::hub;
use super::location::{Address, shown};
use super::web::Target;
use crate::io::read_at::ReadAt;
use crate::{Error, RemoteFault, Result};

impl Remote {
    /// Opens a file by its address; `None` where the server has none. That it has none is kept, for when there is no
    /// network.
    ///
    /// # Errors
    /// [`crate::Error::Remote`].
    pub(crate) fn open_if_there(&self, path: &Path) -> Result<Option<Box<dyn ReadAt>>> {
        let fault = match self.open_bytes(path) {
            Ok(file) => return Ok(Some(file)),
            Err(Error::Remote(fault)) => fault,
            Err(error) => return Err(error),
        };
        let absent = format!("{} is not there", shown(&path.to_string_lossy()));
        match *fault {
            RemoteFault::Refused { status: 404, .. } => {
                self.cache().keep_document(&absent, b"{}")?;
                Ok(None)
            }
            RemoteFault::OfflineUnknown { .. } if self.cache().document(&absent).is_some() => {
                Ok(None)
            }
            fault => Err(fault.into()),
        }
    }

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
