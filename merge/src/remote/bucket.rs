//! Objects of S3, of servers that speak its protocol, and of Google Cloud Storage.
//!
//! `object_store` knows credentials, signatures and listings; its requests go through the one
//! [`Client`], so that there is one HTTP stack in the program.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::aws::AmazonS3Builder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{BackoffConfig, ClientOptions, GetOptions, ObjectStore, RetryConfig};
use url::{Host, Url};

use super::Remote;
use super::cache::Version;
use super::location::Provider;
use super::store::{Answer, Store, Trouble};
use super::web::{Client, reason};
use crate::RemoteFault;

/// The longest body of an answer: more than the largest requested range.
const MAX_BODY_BYTES: u64 = 64 << 20;

/// Hosts at which clouds tell their own machines who they are, without encryption.
const METADATA_HOSTS: [&str; 2] = ["metadata.google.internal", "metadata"];

/// A bucket.
#[derive(Clone)]
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
}

impl Bucket {
    /// With credentials from the environment, as the providers' own programs take them.
    pub(super) fn open(
        remote: &Remote,
        address: &str,
        provider: Provider,
        name: &str,
    ) -> Result<Self, RemoteFault> {
        let connector = Connector {
            client: remote.client().clone(),
        };
        let options = ClientOptions::new().with_allow_http(true);
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: remote.pause(1, None),
                max_backoff: Duration::from_secs(10),
                base: 2.0,
            },
            max_retries: remote.retries() as usize,
            retry_timeout: Duration::from_secs(180),
        };
        let store: object_store::Result<Arc<dyn ObjectStore>> = match provider {
            Provider::S3 => AmazonS3Builder::from_env()
                .with_bucket_name(name)
                .with_client_options(options)
                .with_http_connector(connector)
                .with_retry(retry)
                .build()
                .map(|store| Arc::new(store) as _),
            Provider::Google => GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(name)
                .with_client_options(options)
                .with_http_connector(connector)
                .with_retry(retry)
                .build()
                .map(|store| Arc::new(store) as _),
        };
        store
            .map(|store| Self { store })
            .map_err(|error| RemoteFault::Settings {
                address: address.to_owned(),
                reason: error.to_string(),
            })
    }

    /// Names of the objects right below a key, sorted.
    pub(super) fn names(&self, address: &str, key: &str) -> Result<Vec<String>, RemoteFault> {
        let prefix = Key::from(key.trim_end_matches('/'));
        let list = wait(self.store.list_with_delimiter(Some(&prefix)), address)?;
        let list = list.map_err(|error| refusal(address, 0..0, &error))?;
        let mut names: Vec<String> = (list.objects.iter())
            .filter_map(|object| object.location.filename().map(str::to_owned))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// An object.
    pub(super) fn object(&self, address: &str, key: &str) -> Object {
        Object {
            bucket: self.clone(),
            address: address.to_owned(),
            key: Key::from(key),
        }
    }
}

/// An object of a bucket.
pub(super) struct Object {
    bucket: Bucket,
    address: String,
    key: Key,
}

impl Store for Object {
    fn get(&self, range: Range<u64>) -> Result<Answer, Trouble> {
        let options = GetOptions {
            range: Some(range.clone().into()),
            ..GetOptions::default()
        };
        let answer = async {
            let result = self.bucket.store.get_opts(&self.key, options).await?;
            let (meta, found) = (result.meta.clone(), result.range.clone());
            Ok((meta, found, result.bytes().await?))
        };
        let failed = |error: object_store::Error| refusal(&self.address, range.clone(), &error);
        let (meta, found, bytes) = wait(answer, &self.address)?.map_err(failed)?;
        let wanted = range.start..range.end.min(meta.size);
        if found != wanted {
            return Err(Trouble::Final(RemoteFault::WrongRange {
                address: self.address.clone(),
                bytes: range,
                found: format!("bytes {}-{}/{}", found.start, found.end, meta.size),
            }));
        }
        if bytes.len() as u64 != wanted.end - wanted.start {
            return Err(Trouble::Final(RemoteFault::WrongLength {
                address: self.address.clone(),
                bytes: range,
                found: bytes.len() as u64,
            }));
        }
        let etag = meta
            .e_tag
            .unwrap_or_else(|| meta.last_modified.to_rfc3339());
        Ok(Answer {
            version: Version {
                etag,
                n_bytes: meta.size,
            },
            bytes: bytes.into(),
        })
    }
}

/// Runs a request to its end on this thread.
fn wait<T>(future: impl Future<Output = T>, address: &str) -> Result<T, RemoteFault> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.map_err(|error| RemoteFault::Settings {
        address: address.to_owned(),
        reason: format!("no request can be made: {error}"),
    })?;
    Ok(runtime.block_on(future))
}

/// The error of a failed request, after all repetitions.
fn refusal(address: &str, bytes: Range<u64>, error: &object_store::Error) -> RemoteFault {
    let address = address.to_owned();
    let status = match error {
        object_store::Error::NotFound { .. } => 404,
        object_store::Error::PermissionDenied { .. } => 403,
        object_store::Error::Unauthenticated { .. } => 401,
        object_store::Error::NotSupported { .. } => {
            return RemoteFault::NoRanges { address, bytes };
        }
        other => {
            let mut reason = other.to_string();
            if reason.contains("Received non-partial") {
                return RemoteFault::NoRanges { address, bytes };
            }
            reason.truncate(reason.floor_char_boundary(400));
            return RemoteFault::BadAnswer {
                address,
                reason: format!("bytes {}..{}: {reason}", bytes.start, bytes.end),
            };
        }
    };
    RemoteFault::Refused { address, status }
}

/// Gives `object_store` our client.
#[derive(Debug)]
struct Connector {
    client: Client,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service {
            client: self.client.clone(),
        }))
    }
}

#[derive(Debug)]
struct Service {
    client: Client,
}

/// A failure in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let failed = |kind, why: String| HttpError::new(kind, Failed(why));
        let (parts, body) = request.into_parts();
        let url = Url::parse(&parts.uri.to_string())
            .map_err(|error| failed(HttpErrorKind::Unknown, error.to_string()))?;
        if !is_metadata(&url) {
            let mut shown = url.clone();
            shown.set_query(None);
            let checked = self.client.check_scheme(shown.as_str(), &url);
            checked.map_err(|fault| failed(HttpErrorKind::Unknown, fault.to_string()))?;
        }
        let body = body.as_bytes().map(|bytes| bytes.to_vec());
        let request = ureq::http::Request::from_parts(parts, body.unwrap_or_default());
        let answer = self.client.agent().run(request);
        let answer = answer.map_err(|error| failed(HttpErrorKind::Connect, reason(&error)))?;
        let (parts, body) = answer.into_parts();
        let (bytes, read) = self
            .client
            .read(body.into_reader().take(MAX_BODY_BYTES + 1));
        // Whatever arrived of it is dropped: the whole request is made again.
        read.map_err(|why| failed(HttpErrorKind::Interrupted, why))?;
        if bytes.len() as u64 > MAX_BODY_BYTES {
            let why = format!("an answer of more than {MAX_BODY_BYTES} bytes is not read");
            return Err(failed(HttpErrorKind::Unknown, why));
        }
        Ok(HttpResponse::from_parts(parts, bytes.into()))
    }
}

fn is_metadata(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => METADATA_HOSTS.contains(&name),
        Some(Host::Ipv4(ip)) => ip.is_link_local(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::time::Instant;

    use object_store::client::HttpRequestBody;

    use super::*;

    /// A server that announces a megabyte and sends `piece` each `pause`; its address.
    fn slow_server(piece: &'static [u8], pause: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
                for _ in lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())) {
                }
                let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
                let mut sent = stream.write_all(head.as_bytes());
                while sent.is_ok() {
                    std::thread::sleep(pause);
                    sent = stream.write_all(piece);
                }
            }
        });
        format!("http://127.0.0.1:{port}/x")
    }

    /// The last part of an answer of the server, and the time until it.
    fn answer(url: &str, timeout: Duration) -> (String, Duration) {
        let service = Service {
            client: Client::new(false, timeout),
        };
        let request = ureq::http::Request::get(url)
            .body(HttpRequestBody::empty())
            .expect("a request");
        let begun = Instant::now();
        let said = wait(service.call(request), url).expect("a runtime");
        let said = said.map(drop).expect_err("given up");
        (format!("{said:?}"), begun.elapsed())
    }

    #[test]
    fn a_bucket_that_sends_drop_by_drop_is_given_up() {
        let url = slow_server(b"x", Duration::from_millis(20));
        let (said, seconds) = answer(&url, Duration::from_secs(3));
        assert!(said.contains("bytes came in"), "{said}");
        assert!(seconds < Duration::from_secs(3), "{seconds:?}");
    }

    #[test]
    fn an_answer_of_a_bucket_has_an_end_however_steadily_it_comes() {
        // Some 12 KiB a second: the megabyte would take more than a minute.
        let url = slow_server(&[b'x'; 128], Duration::from_millis(10));
        let (said, seconds) = answer(&url, Duration::from_millis(300));
        assert!(
            said.contains("timed out") || said.contains("timeout"),
            "{said}"
        );
        assert!(seconds >= Duration::from_secs(2), "{seconds:?}");
        assert!(seconds < Duration::from_secs(10), "{seconds:?}");
    }
}
