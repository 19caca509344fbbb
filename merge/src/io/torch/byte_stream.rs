//! A forward stream over a part of bytes that are read by position.

use super::fault::PickleFault;
use crate::io::read_at::ReadAt;

/// Bytes fetched at once by a [`ByteStream`].
const WINDOW_BYTES: u64 = 64 << 10;

/// Reads forward through a part of a source in windows, so that no more is held than one window
/// or the longest single item asked for.
pub(crate) struct ByteStream<'a> {
    source: &'a dyn ReadAt,
    /// Offsets are reported relative to this position.
    base: u64,
    position: u64,
    /// No byte from here on is read.
    end: u64,
    /// Whether `end` is a limit of this program rather than the end of the data.
    is_limited: bool,
    window: Vec<u8>,
    window_start: u64,
}

impl<'a> ByteStream<'a> {
    /// Streams from `start` to `end`, but no more than `limit` bytes.
    pub(crate) fn new(source: &'a dyn ReadAt, start: u64, end: u64, limit: u64) -> Self {
        let limited = start.saturating_add(limit);
        Self {
            source,
            base: start,
            position: start,
            end: end.min(limited),
            is_limited: limited < end,
            window: Vec::new(),
            window_start: start,
        }
    }

    /// Position in the source.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Position counted from where the stream began.
    pub(crate) fn offset(&self) -> u64 {
        self.position - self.base
    }

    /// Bytes that are left.
    pub(crate) fn n_left(&self) -> u64 {
        self.end - self.position
    }

    /// The next `n` bytes.
    pub(crate) fn take(&mut self, n: u64) -> Result<&[u8], PickleFault> {
        if n > self.n_left() {
            return Err(self.too_short(n));
        }
        self.fill(n)?;
        let start = (self.position - self.window_start) as usize;
        self.position += n;
        Ok(&self.window[start..start + n as usize])
    }

    /// Passes over the next `n` bytes, which are not read.
    pub(crate) fn skip(&mut self, n: u64) -> Result<(), PickleFault> {
        if n > self.n_left() {
            return Err(self.too_short(n));
        }
        self.position += n;
        Ok(())
    }

    /// The next byte.
    pub(crate) fn byte(&mut self) -> Result<u8, PickleFault> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// The next `N` bytes as an array.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleFault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    /// The bytes up to the next line feed, which is consumed but not returned.
    pub(crate) fn line(&mut self, limit: u64) -> Result<&[u8], PickleFault> {
        let mut n_searched = 0;
        loop {
            // Twice as many each time, so that a long line is read and searched about once.
            let n = (2 * n_searched).max(256).min(self.n_left());
            self.fill(n)?;
            let start = (self.position - self.window_start) as usize;
            let found = self.window[start..start + n as usize]
                .iter()
                .skip(n_searched as usize)
                .position(|&byte| byte == b'\n');
            if let Some(length) = found {
                let length = n_searched as usize + length;
                if length as u64 > limit {
                    return Err(PickleFault::LineTooLong { limit });
                }
                self.position += length as u64 + 1;
                return Ok(&self.window[start..start + length]);
            }
            if n > limit {
                return Err(PickleFault::LineTooLong { limit });
            }
            if n == self.n_left() {
                return Err(self.too_short(n + 1));
            }
            n_searched = n;
        }
    }

    /// Makes the next `n` bytes, which must be there, part of the window.
    fn fill(&mut self, n: u64) -> Result<(), PickleFault> {
        let window_end = self.window_start + self.window.len() as u64;
        if self.position >= self.window_start && self.position + n <= window_end {
            return Ok(());
        }
        let n_read = n.max(WINDOW_BYTES).min(self.n_left());
        self.window.resize(n_read as usize, 0);
        self.window_start = self.position;
        let read = self
            .source
            .read_exact_at(&mut self.window, self.window_start);
        read.map_err(|error| {
            self.window.clear();
            PickleFault::Unreadable(error.to_string())
        })
    }

    fn too_short(&self, wanted: u64) -> PickleFault {
        if self.is_limited {
            PickleFault::TooLong {
                limit: self.end - self.base,
            }
        } else {
            PickleFault::Truncated {
                wanted,
                left: self.n_left(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_crosses_its_windows_and_stops_at_its_end() {
        let bytes: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let mut stream = ByteStream::new(&bytes, 10, 199_990, u64::MAX);
        assert_eq!(stream.take(60_000).expect("there"), &bytes[10..60_010]);
        assert_eq!(
            stream.take(100_000).expect("there"),
            &bytes[60_010..160_010]
        );
        assert_eq!(stream.byte().expect("there"), bytes[160_010]);
        assert_eq!(stream.n_left(), 39_979);
        assert!(matches!(
            stream.take(39_980),
            Err(PickleFault::Truncated {
                wanted: 39_980,
                left: 39_979
            })
        ));
    }

    #[test]
    fn a_line_may_lie_across_windows() {
        let mut bytes = vec![b'a'; 70_000];
        bytes.extend_from_slice(b"\nrest");
        let mut stream = ByteStream::new(&bytes, 0, bytes.len() as u64, u64::MAX);
        assert_eq!(stream.line(1 << 20).expect("there").len(), 70_000);
        assert!(stream.line(1 << 20).is_err());
    }

    #[test]
    fn a_line_that_is_too_long_is_said_to_be() {
        let mut bytes = vec![b'9'; 3 << 20];
        bytes.push(b'\n');
        let mut stream = ByteStream::new(&bytes, 0, bytes.len() as u64, u64::MAX);
        let said = stream.line(1 << 20).expect_err("too long");
        assert_eq!(said, PickleFault::LineTooLong { limit: 1 << 20 });
    }

    #[test]
    fn a_long_line_is_read_about_once() {
        struct Counted(Vec<u8>, std::sync::atomic::AtomicUsize);
        impl ReadAt for Counted {
            fn n_bytes(&self) -> u64 {
                self.0.len() as u64
            }
            fn read_exact_at(&self, out: &mut [u8], offset: u64) -> std::io::Result<()> {
                self.1
                    .fetch_add(out.len(), std::sync::atomic::Ordering::Relaxed);
                self.0.read_exact_at(out, offset)
            }
        }
        let mut bytes = vec![b'a'; 1_000_000];
        bytes.push(b'\n');
        let source = Counted(bytes, std::sync::atomic::AtomicUsize::new(0));
        let mut stream = ByteStream::new(&source, 0, source.n_bytes(), u64::MAX);
        assert_eq!(stream.line(1 << 20).expect("there").len(), 1_000_000);
        assert!(source.1.into_inner() < 3_000_000);
    }
}
