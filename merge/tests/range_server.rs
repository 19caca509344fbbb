//! A small web server on this machine that sends ranges of bytes, and misbehaves on request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// The faults of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Breaks the connection after a number of bytes of a body, a number of times.
    Drops { after: usize, times: usize },
    /// Announces and sends fewer bytes than were asked for.
    SendsLess,
    /// Says that the bytes are from another place.
    SendsAnotherRange,
    /// Sends the whole file whatever is asked for.
    HasNoRanges,
    /// Gives no name to the version of a file.
    HasNoTag,
    /// Sends a byte each 50 ms.
    Drips,
    /// Is busy this number of times.
    IsBusy { times: usize },
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub range: Option<Range<u64>>,
    pub authorization: Option<String>,
}

#[derive(Clone)]
struct Page {
    bytes: Arc<Vec<u8>>,
    etag: String,
}

/// The server; it lives as long as the test.
#[derive(Clone)]
pub struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    pages: BTreeMap<String, Page>,
    /// Where a path leads, and the tag of the file there.
    redirects: BTreeMap<String, (String, String)>,
    fault: Fault,
    asked: Vec<Asked>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let server = Self {
            port: listener.local_addr().expect("an address").port(),
            state: Arc::new(Mutex::new(State {
                pages: BTreeMap::new(),
                redirects: BTreeMap::new(),
                fault: Fault::None,
                asked: Vec::new(),
            })),
        };
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = serving.clone();
                // A client that goes away is its own business.
                std::thread::spawn(move || server.answer(stream).ok());
            }
        });
        server
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock")
    }

    pub fn address(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn put(&self, path: &str, bytes: Vec<u8>, etag: &str) {
        let page = Page {
            bytes: Arc::new(bytes),
            etag: etag.to_owned(),
        };
        self.state().pages.insert(path.to_owned(), page);
    }

    pub fn redirect(&self, path: &str, to: &str, etag: &str) {
        let target = (to.to_owned(), etag.to_owned());
        self.state().redirects.insert(path.to_owned(), target);
    }

    pub fn misbehave(&self, fault: Fault) {
        self.state().fault = fault;
    }

    /// The requests since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or("").to_owned();
        let path = path.split('?').next().unwrap_or("").to_owned();
        let (mut range, mut authorization) = (None, None);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "range" => {
                    let (first, last) = value
                        .strip_prefix("bytes=")
                        .and_then(|range| range.split_once('-'))
                        .expect("one range");
                    let last: u64 = last.parse().expect("a number");
                    range = Some(first.parse().expect("a number")..last + 1);
                }
                "authorization" => authorization = Some(value.to_owned()),
                _ => {}
            }
        }
        let (page, redirect, fault) = {
            let mut state = self.state();
            state.asked.push(Asked {
                path: path.clone(),
                range: range.clone(),
                authorization,
            });
            let page = state.pages.get(&path).cloned();
            let redirect = state.redirects.get(&path).cloned();
            let fault = state.fault;
            match &mut state.fault {
                Fault::Drops { times: 0, .. } | Fault::IsBusy { times: 0 } => {
                    state.fault = Fault::None;
                }
                Fault::Drops { times, .. } | Fault::IsBusy { times } => *times -= 1,
                _ => {}
            }
            (page, redirect, fault)
        };
        let head = |stream: &mut TcpStream, text: String| {
            write!(stream, "HTTP/1.1 {text}connection: close\r\n\r\n")
        };
        if let Some((to, etag)) = redirect {
            return head(
                &mut stream,
                format!(
                    "302 Found\r\nlocation: {to}\r\nx-linked-etag: {etag}\r\ncontent-length: 0\r\n"
                ),
            );
        }
        let Some(page) = page else {
            return head(&mut stream, "404 Not Found\r\ncontent-length: 0\r\n".into());
        };
        if matches!(fault, Fault::IsBusy { times: 1.. }) {
            return head(
                &mut stream,
                "503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\n".into(),
            );
        }
        let n_bytes = page.bytes.len() as u64;
        let tag = match fault {
            Fault::HasNoTag => String::new(),
            // Buckets tell the time of the last change, too, and their clients insist on it.
            _ => format!(
                "etag: {}\r\nlast-modified: Wed, 01 Jul 2026 00:00:00 GMT\r\n",
                page.etag
            ),
        };
        let range = range.filter(|_| fault != Fault::HasNoRanges);
        let Some(range) = range else {
            head(
                &mut stream,
                format!("200 OK\r\ncontent-length: {n_bytes}\r\n{tag}"),
            )?;
            return stream.write_all(&page.bytes);
        };
        let end = range.end.min(n_bytes);
        let mut body = &page.bytes[range.start as usize..end as usize];
        if fault == Fault::SendsLess {
            body = &body[..body.len() / 2];
        }
        let shift = u64::from(fault == Fault::SendsAnotherRange);
        head(
            &mut stream,
            format!(
                "206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {}-{}/{n_bytes}\r\n{tag}",
                body.len(),
                range.start + shift,
                end - 1 + shift,
            ),
        )?;
        if let Fault::Drops { after, times: 1.. } = fault {
            stream.write_all(&body[..after.min(body.len())])?;
            return stream.shutdown(Shutdown::Both);
        }
        if fault == Fault::Drips {
            for byte in body {
                stream.write_all(std::slice::from_ref(byte))?;
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            return Ok(());
        }
        stream.write_all(body)
    }
}
