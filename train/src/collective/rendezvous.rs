//! The meeting point of processes that know nothing of one another: a port of the first of them.
//!
//! `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` say who is who, as for other training
//! programs. The first rank hands a message to all; its meaning is not for this file.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::Fault;

/// The longest time that ranks wait for one another.
const PATIENCE: Duration = Duration::from_secs(300);

/// The pause between two looks for new processes.
const PAUSE: Duration = Duration::from_millis(20);

/// The longest time in which a process that has come may introduce itself.
const TO_ANSWER: Duration = Duration::from_secs(10);

/// The first bytes of a rank. A process that sends others is no rank, and is sent away.
const GREETING: [u8; 8] = *b"vlmerge\x01";

/// The longest message.
const LONGEST: u32 = 1 << 20;

/// A place to meet, and who this process is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendezvous {
    rank: usize,
    n_ranks: usize,
    address: String,
    patience: Duration,
}

impl Rendezvous {
    /// As rank `rank` of `n_ranks`, at an `address` such as `node1:29500`.
    #[must_use]
    pub fn new(rank: usize, n_ranks: usize, address: impl Into<String>) -> Self {
        Self {
            rank,
            n_ranks,
            address: address.into(),
            patience: PATIENCE,
        }
    }

    /// As environment variables say, which `get` looks up; `None` without `WORLD_SIZE`.
    ///
    /// # Errors
    /// [`Fault::Variable`] when one is missing or makes no sense.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Fault> {
        let Some(size) = get("WORLD_SIZE") else {
            return Ok(None);
        };
        let value = |name| get(name).unwrap_or_default();
        let number =
            |name: &'static str, value: String, is_right: &dyn Fn(usize) -> bool, expected| {
                let number = value.parse().ok().filter(|&number| is_right(number));
                number.ok_or(Fault::Variable {
                    name,
                    value,
                    expected,
                })
            };
        let n_ranks = number("WORLD_SIZE", size, &|n| n > 0, "a number of processes")?;
        let rank = number(
            "RANK",
            value("RANK"),
            &|rank| rank < n_ranks,
            "a number from 0, less than `WORLD_SIZE`",
        )?;
        if n_ranks == 1 {
            return Ok(Some(Self::new(rank, n_ranks, "")));
        }
        let port = number(
            "MASTER_PORT",
            value("MASTER_PORT"),
            &|port| (1..1 << 16).contains(&port),
            "a port on the first rank's machine",
        )?;
        let host = value("MASTER_ADDR");
        if host.is_empty() {
            return Err(Fault::Variable {
                name: "MASTER_ADDR",
                value: host,
                expected: "the name of the first rank's machine",
            });
        }
        let address = match host.contains(':') && !host.starts_with('[') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        Ok(Some(Self::new(rank, n_ranks, address)))
    }

    /// Waits for the others no longer than this.
    #[must_use]
    pub fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The number of this process, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of processes.
    #[must_use]
    pub fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    /// The address of the meeting point.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Gives the first rank's `message` to all; the messages of others do not matter.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Stranger`] and [`Fault::Meeting`].
    pub fn hand_out(&self, message: &[u8]) -> Result<Vec<u8>, Fault> {
        match self.rank {
            0 => {
                self.give(message)?;
                Ok(message.to_vec())
            }
            _ => self.fetch(),
        }
    }

    fn give(&self, message: &[u8]) -> Result<(), Fault> {
        let listener = TcpListener::bind(&self.address).map_err(self.fault("listen on"))?;
        let deadline = Instant::now() + self.patience;
        listener
            .set_nonblocking(true)
            .map_err(self.fault("listen on"))?;
        let mut came = vec![false; self.n_ranks];
        came[0] = true;
        loop {
            let n_missing = came.iter().filter(|came| !**came).count();
            if n_missing == 0 {
                return Ok(());
            }
            match listener.accept() {
                Ok((stream, _)) => self.welcome(stream, message, &mut came)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        return Err(self.missing(n_missing));
                    }
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(self.fault("listen on")(error)),
            }
        }
    }

    /// Hears who has come and gives them the message.
    fn welcome(&self, stream: TcpStream, message: &[u8], came: &mut [bool]) -> Result<(), Fault> {
        let mut stream = stream;
        let Ok((rank, n_ranks)) = hear(&mut stream) else {
            return Ok(());
        };
        if n_ranks != self.n_ranks || came.get(rank) != Some(&false) {
            return Err(Fault::Stranger {
                address: self.address.clone(),
                rank,
                n_ranks,
            });
        }
        let length = (message.len() as u32).to_le_bytes();
        let given = stream
            .write_all(&length)
            .and_then(|()| stream.write_all(message));
        given.map_err(self.fault("answer at"))?;
        came[rank] = true;
        Ok(())
    }

    fn fetch(&self) -> Result<Vec<u8>, Fault> {
        let deadline = Instant::now() + self.patience;
        let mut stream = loop {
            match TcpStream::connect(&self.address) {
                Ok(stream) => break stream,
                // The first rank may be slower.
                Err(error) if Instant::now() > deadline => {
                    return Err(self.fault("connect to")(error));
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        };
        let mut read = || {
            stream.set_read_timeout(Some(self.patience))?;
            stream.write_all(&GREETING)?;
            stream.write_all(&(self.rank as u32).to_le_bytes())?;
            stream.write_all(&(self.n_ranks as u32).to_le_bytes())?;
            let length = number(&mut stream)?;
            if length > LONGEST {
                return Err(ErrorKind::InvalidData.into());
            }
            let mut message = vec![0; length as usize];
            stream.read_exact(&mut message)?;
            Ok(message)
        };
        read().map_err(self.fault("be answered at"))
    }

    fn missing(&self, n_missing: usize) -> Fault {
        Fault::Missing {
            n_missing,
            n_ranks: self.n_ranks,
            address: self.address.clone(),
            patience: self.patience,
        }
    }

    fn fault(&self, action: &'static str) -> impl Fn(std::io::Error) -> Fault {
        move |source| Fault::Meeting {
            rank: self.rank,
            action,
            address: self.address.clone(),
            source,
        }
    }
}

/// The rank that has come, and the number of ranks that it knows of.
fn hear(stream: &mut TcpStream) -> std::io::Result<(usize, usize)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TO_ANSWER))?;
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    if greeting != GREETING {
        return Err(ErrorKind::InvalidData.into());
    }
    let rank = number(stream)? as usize;
    Ok((rank, number(stream)? as usize))
}

fn number(stream: &mut TcpStream) -> std::io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}
