//! One client for everything that speaks HTTP.

use std::io::Read;
use std::ops::Range;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};
use url::{Host, Url};

use super::cache::Version;
use super::store::{Answer, Store, Trouble};
use crate::RemoteFault;

/// The number of times that an answer may send on to another address.
const MAX_REDIRECTS: usize = 5;

/// Bytes a second below which a server counts as one that does not answer.
pub(super) const MIN_RATE: f64 = 1024.0;

/// The number of looks at the rate in the time-out of a read.
const WINDOWS: u32 = 6;

/// The number of such time-outs that a whole request may take.
const MAX_TIMEOUTS: u32 = 10;

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 64 << 10;

/// The longest pause that a server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// A client that follows redirects itself, to see what each answer says and to leave the token
/// behind where another server begins.
#[derive(Clone, Debug)]
pub(super) struct Client {
    agent: Agent,
    allow_http: bool,
    /// The time in which a server must send as much as the slowest line would.
    window: Duration,
}

/// A request that can be repeated.
#[derive(Clone)]
pub(super) struct Target {
    /// Its address in messages.
    pub(super) address: String,
    /// Its place.
    pub(super) url: Url,
    /// A bearer token for that server alone.
    pub(super) token: Option<String>,
}

impl Target {
    /// A file that anyone may read at `url`.
    pub(super) fn open_to_all(address: String, url: &str) -> Result<Self, RemoteFault> {
        match Url::parse(url) {
            Ok(url) => Ok(Self {
                address,
                url,
                token: None,
            }),
            Err(error) => Err(RemoteFault::Settings {
                address,
                reason: error.to_string(),
            }),
        }
    }
}

impl Client {
    pub(super) fn new(allow_http: bool, timeout: Duration) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("vlmerge/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(timeout))
            .timeout_per_read(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_global(Some(timeout * MAX_TIMEOUTS))
            .build();
        Self {
            agent: config.into(),
            allow_http,
            window: timeout / WINDOWS,
        }
    }

    /// The agent, for requests that others make.
    pub(super) fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Refuses to speak without encryption to other machines, unless that was asked for.
    pub(super) fn check_scheme(&self, address: &str, url: &Url) -> Result<(), RemoteFault> {
        let is_here = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        };
        match url.scheme() {
            "https" => Ok(()),
            "http" if is_here || self.allow_http => Ok(()),
            _ => Err(RemoteFault::PlainHttp {
                address: address.to_owned(),
            }),
        }
    }

    /// Sends a request, for a range or for the whole, and follows where the answer leads. Gives the
    /// answer and the tag that the first server gave to the file, if it did.
    fn send(
        &self,
        target: &Target,
        range: Option<&Range<u64>>,
    ) -> Result<(Response<Body>, Option<String>), Trouble> {
        let mut url = target.url.clone();
        let mut token = target.token.as_deref();
        let mut linked = None;
        for _ in 0..=MAX_REDIRECTS {
            self.check_scheme(&target.address, &url)?;
            let mut request = self.agent.get(url.as_str());
            request = request.header("accept-encoding", "identity");
            if let Some(range) = range {
                request =
                    request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
            }
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let answer = request.call().map_err(|error| again(&error))?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((answer, linked));
            }
            // The hub's name for the content, whichever server sends it.
            linked = linked.or_else(|| header(answer.headers(), "x-linked-etag"));
            let next = header(answer.headers(), "location").and_then(|to| url.join(&to).ok());
            let Some(next) = next else {
                break;
            };
            if next.origin() != url.origin() {
                token = None;
            }
            url = next;
        }
        Err(Trouble::Final(RemoteFault::BadAnswer {
            address: target.address.clone(),
            reason: "redirects that lead nowhere".into(),
        }))
    }

    /// All that comes, and why no more did. A server that sends less than [`MIN_RATE`] is not waited for.
    pub(super) fn read(&self, mut body: impl Read) -> (Vec<u8>, Result<(), String>) {
        let mut bytes = Vec::new();
        let mut piece = vec![0; PIECE_BYTES];
        let (mut begun, mut n_before) = (Instant::now(), 0);
        loop {
            match body.read(&mut piece) {
                Ok(0) => return (bytes, Ok(())),
                Ok(n) => bytes.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return (bytes, Err(error.to_string())),
            }
            let seconds = begun.elapsed().as_secs_f64();
            if seconds >= self.window.as_secs_f64() {
                let n_bytes = bytes.len() - n_before;
                if (n_bytes as f64) < MIN_RATE * seconds {
                    let reason = format!("only {n_bytes} bytes came in {seconds:.0} s");
                    return (bytes, Err(reason));
                }
                (begun, n_before) = (Instant::now(), bytes.len());
            }
        }
    }

    /// A whole document of at most `limit` bytes.
    pub(super) fn document(&self, target: &Target, limit: u64) -> Result<Answer, Trouble> {
        let (answer, _) = self.send(target, None)?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(refused(target, status, answer.headers()));
        }
        let (bytes, read) = self.read(answer.into_body().into_reader().take(limit + 1));
        read.map_err(|reason| Trouble::Again {
            part: None,
            reason,
            after: None,
        })?;
        if bytes.len() as u64 > limit {
            return Err(Trouble::Final(RemoteFault::TooLong {
                address: target.address.clone(),
                limit,
            }));
        }
        let version = Version {
            etag: String::new(),
            n_bytes: bytes.len() as u64,
        };
        Ok(Answer { version, bytes })
    }

    /// Part of a file.
    pub(super) fn range(&self, target: &Target, range: Range<u64>) -> Result<Answer, Trouble> {
        let address = || target.address.clone();
        let (answer, linked) = self.send(target, Some(&range))?;
        let headers = answer.headers();
        match answer.status().as_u16() {
            206 => {}
            200 => {
                return Err(Trouble::Final(RemoteFault::NoRanges {
                    address: address(),
                    bytes: range,
                }));
            }
            416 => {
                return Err(Trouble::Final(RemoteFault::WrongRange {
                    address: address(),
                    bytes: range,
                    found: header(headers, "content-range").unwrap_or_default(),
                }));
            }
            status => return Err(refused(target, status, headers)),
        }
        let found = header(headers, "content-range").unwrap_or_default();
        let wrong = || RemoteFault::WrongRange {
            address: address(),
            bytes: range.clone(),
            found: found.clone(),
        };
        let (first, last, n_bytes) = content_range(&found).ok_or_else(wrong)?;
        if first != range.start || last.checked_add(1) != Some(range.end.min(n_bytes)) {
            return Err(Trouble::Final(wrong()));
        }
        let n_wanted = last + 1 - first;
        let wrong_length = |found| RemoteFault::WrongLength {
            address: address(),
            bytes: range.clone(),
            found,
        };
        let announced = header(headers, "content-length").and_then(|text| text.parse().ok());
        if let Some(announced) = announced.filter(|&announced: &u64| announced != n_wanted) {
            return Err(Trouble::Final(wrong_length(announced)));
        }
        let encoding = header(headers, "content-encoding");
        if let Some(encoding) = encoding.filter(|encoding| encoding != "identity") {
            return Err(Trouble::Final(RemoteFault::BadAnswer {
                address: address(),
                reason: format!("is sent as {encoding}, which was not asked for"),
            }));
        }
        let etag = linked
            .or_else(|| header(headers, "etag"))
            .or_else(|| header(headers, "last-modified"))
            .ok_or_else(|| RemoteFault::NoTag { address: address() })?;
        // One more than is due, to see whether more comes.
        let (bytes, read) = self.read(answer.into_body().into_reader().take(n_wanted + 1));
        let n_read = bytes.len() as u64;
        if n_read > n_wanted {
            return Err(Trouble::Final(wrong_length(n_read)));
        }
        let answer = Answer {
            version: Version { etag, n_bytes },
            bytes,
        };
        let reason = match read {
            Ok(_) if n_read == n_wanted => return Ok(answer),
            Ok(_) => "the connection ended".to_owned(),
            Err(reason) => reason,
        };
        Err(Trouble::Again {
            part: Some(answer),
            reason: format!("{reason} after {n_read} of {n_wanted} bytes"),
            after: None,
        })
    }
}

/// A file of a web server.
pub(super) struct WebFile {
    pub(super) client: Client,
    pub(super) target: Target,
}

impl Store for WebFile {
    fn get(&self, range: Range<u64>) -> Result<Answer, Trouble> {
        self.client.range(&self.target, range)
    }
}

/// `bytes 0-9/100` as its first and last byte and the size of the file.
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, n_bytes) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    let n_bytes = n_bytes.parse().ok()?;
    (first <= last && last < n_bytes).then_some((first, last, n_bytes))
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

fn refused(target: &Target, status: u16, headers: &HeaderMap) -> Trouble {
    let after = header(headers, "retry-after").and_then(|text| text.parse().ok());
    match status {
        408 | 429 | 500..=599 => Trouble::Again {
            part: None,
            reason: format!("the server answered {status}"),
            after: after.map(|seconds| Duration::from_secs(seconds).min(MAX_PAUSE)),
        },
        _ => Trouble::Final(RemoteFault::Refused {
            address: target.address.clone(),
            status,
        }),
    }
}

/// A failed connection. Messages of the client may hold whole addresses; an error names only its kind.
fn again(error: &ureq::Error) -> Trouble {
    let reason = reason(error);
    Trouble::Again {
        part: None,
        reason,
        after: None,
    }
}

/// The cause of a failure, without the address, which may hold a signature.
pub(super) fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(_) => "timed out".to_owned(),
        ureq::Error::HostNotFound => "the host is not known".to_owned(),
        ureq::Error::Tls(what) => format!("no encrypted connection: {what}"),
        ureq::Error::Rustls(error) => format!("no encrypted connection: {error}"),
        ureq::Error::Protocol(error) => error.to_string(),
        _ => "the connection failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_must_fit_its_file() {
        assert_eq!(content_range("bytes 2-9/100"), Some((2, 9, 100)));
        for text in [
            "bytes 9-2/100",
            "bytes 0-100/100",
            "bytes */100",
            "0-9/100",
            "bytes 0-9/*",
        ] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }

    #[test]
    fn only_this_machine_is_spoken_to_without_encryption() {
        let client = Client::new(false, Duration::from_secs(1));
        let check = |text: &str| client.check_scheme(text, &Url::parse(text).expect("a URL"));
        for here in [
            "http://127.0.0.1:80/x",
            "http://localhost/x",
            "http://[::1]/x",
            "https://a/x",
        ] {
            assert!(check(here).is_ok(), "{here}");
        }
        for there in [
            "http://example.org/x",
            "http://localhost.example.org/x",
            "ftp://localhost/x",
        ] {
            assert!(check(there).is_err(), "{there}");
        }
    }
}
