//! A remote file that is read like a local one.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

use super::Remote;
use super::cache::{BLOCK_BYTES, Blocks, Version};
use super::store::{Answer, Store, Trouble};
use crate::RemoteFault;
use crate::io::read_at::ReadAt;

/// The most blocks that one request asks for: 8 MiB.
const MAX_BLOCKS: u64 = 32;

/// Bytes that a broken answer must have brought, or the next failure counts as one more in a row.
const MIN_PROGRESS_BYTES: usize = 4096;

/// A remote file of which one version was opened.
pub(super) struct RemoteFile {
    remote: Remote,
    /// The address, as it is shown.
    address: String,
    store: Box<dyn Store>,
    version: Version,
    blocks: Blocks,
    /// Blocks that some thread is fetching.
    in_flight: Mutex<BTreeSet<u64>>,
    arrived: Condvar,
}

impl RemoteFile {
    /// Finds the version of a file: by asking for its first block, or its first byte if the cache
    /// knows the file. One that never changes (`is_fixed`) is not asked for again.
    pub(super) fn open(
        remote: &Remote,
        address: String,
        key: &str,
        is_fixed: bool,
        store: Box<dyn Store>,
    ) -> Result<Self, RemoteFault> {
        let cache = remote.cache();
        let known = cache.latest(key);
        let mut first = None;
        let version = match known {
            Some(version) if is_fixed || remote.is_offline() => version,
            None if remote.is_offline() => {
                return Err(RemoteFault::OfflineUnknown {
                    address,
                    cache: cache.folder.clone(),
                });
            }
            known => {
                let end = if known.is_some() { 1 } else { BLOCK_BYTES };
                let answer = fetch(remote, &address, store.as_ref(), 0..end, None)?;
                let version = answer.version.clone();
                first = Some(answer.bytes);
                version
            }
        };
        if version.n_bytes == 0 {
            return Err(RemoteFault::Empty { address });
        }
        let blocks = cache.open(key, &version)?;
        if let Some(bytes) = first
            && bytes.len() as u64 == version.n_bytes.min(BLOCK_BYTES)
        {
            blocks.put(0, &bytes)?;
        }
        Ok(Self {
            remote: remote.clone(),
            address,
            store,
            version,
            blocks,
            in_flight: Mutex::new(BTreeSet::new()),
            arrived: Condvar::new(),
        })
    }

    /// Sees to it that a block is in the cache; of `whole` some of the next may come with it.
    fn ensure(&self, index: u64, whole: &Range<u64>) -> Result<(), RemoteFault> {
        loop {
            if self.blocks.has(index)? {
                return Ok(());
            }
            let mut in_flight = (self.in_flight.lock()).unwrap_or_else(PoisonError::into_inner);
            if in_flight.contains(&index) {
                let woken = self.arrived.wait(in_flight);
                drop(woken.unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            // It may have come between the two looks.
            if self.blocks.has(index)? {
                return Ok(());
            }
            let mut end = index + 1;
            while end - index < MAX_BLOCKS
                && end * BLOCK_BYTES < whole.end
                && !in_flight.contains(&end)
                && !self.blocks.has(end)?
            {
                end += 1;
            }
            in_flight.extend(index..end);
            drop(in_flight);
            let fetched = self.fetch_blocks(index..end);
            let mut in_flight = (self.in_flight.lock()).unwrap_or_else(PoisonError::into_inner);
            in_flight.retain(|block| !(index..end).contains(block));
            drop(in_flight);
            self.arrived.notify_all();
            fetched?;
        }
    }

    fn fetch_blocks(&self, blocks: Range<u64>) -> Result<(), RemoteFault> {
        let end = (blocks.end * BLOCK_BYTES).min(self.version.n_bytes);
        let bytes = blocks.start * BLOCK_BYTES..end;
        if self.remote.is_offline() {
            return Err(RemoteFault::OfflineMissing {
                address: self.address.clone(),
                bytes,
                cache: self.remote.cache().folder.clone(),
            });
        }
        let expected = Some(&self.version);
        let answer = fetch(
            &self.remote,
            &self.address,
            self.store.as_ref(),
            bytes,
            expected,
        )?;
        for (index, block) in blocks.zip(answer.bytes.chunks(BLOCK_BYTES as usize)) {
            self.blocks.put(index, block)?;
        }
        Ok(())
    }
}

/// Asks for a range until all of it is there, going on where a connection broke.
pub(super) fn fetch(
    remote: &Remote,
    address: &str,
    store: &dyn Store,
    bytes: Range<u64>,
    expected: Option<&Version>,
) -> Result<Answer, RemoteFault> {
    let mut whole: Option<Answer> = None;
    let mut n_failures = 0;
    loop {
        let n_done = whole.as_ref().map_or(0, |whole| whole.bytes.len() as u64);
        let rest = bytes.start + n_done..bytes.end;
        let (part, failure) = match store.get(rest.clone()) {
            Ok(part) => (Some(part), None),
            Err(Trouble::Final(fault)) => return Err(fault),
            Err(Trouble::Again {
                part,
                reason,
                after,
            }) => (part, Some((reason, after))),
        };
        if let Some(part) = part {
            remote.count(part.bytes.len() as u64);
            let opened = whole.as_ref().map(|whole| &whole.version).or(expected);
            if let Some(opened) = opened
                && *opened != part.version
            {
                return Err(RemoteFault::Changed {
                    address: address.to_owned(),
                    bytes: rest,
                    expected: opened.describe(),
                    found: part.version.describe(),
                });
            }
            // Bytes that arrive are progress, unless they are no more than drops.
            if part.bytes.len() >= MIN_PROGRESS_BYTES {
                n_failures = 0;
            }
            match &mut whole {
                Some(whole) => whole.bytes.extend_from_slice(&part.bytes),
                None => whole = Some(part),
            }
        }
        let Some((reason, after)) = failure else {
            return whole.ok_or_else(|| RemoteFault::Empty {
                address: address.to_owned(),
            });
        };
        n_failures += 1;
        if n_failures > remote.retries() {
            return Err(RemoteFault::GaveUp {
                address: address.to_owned(),
                bytes: rest,
                n_tries: n_failures,
                reason,
            });
        }
        std::thread::sleep(remote.pause(n_failures, after));
    }
}

impl ReadAt for RemoteFile {
    fn n_bytes(&self) -> u64 {
        self.version.n_bytes
    }

    fn etag(&self) -> Option<String> {
        Some(self.version.etag.clone())
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_part(out, offset, offset..offset.saturating_add(out.len() as u64))
    }

    fn read_part(&self, out: &mut [u8], offset: u64, whole: Range<u64>) -> io::Result<()> {
        let end = offset.saturating_add(out.len() as u64);
        if end > self.version.n_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for index in offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) {
            self.ensure(index, &whole).map_err(io::Error::other)?;
        }
        self.blocks.read(out, offset)
    }
}
