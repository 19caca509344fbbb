//! Members of a tar archive: where they lie. Nothing is unpacked, and no link is followed.
//!
//! POSIX ustar with the long names of GNU and of pax headers.

use crate::datasets::packed::PackedFile;
use crate::{DataFault, Error, Result};

/// Bytes of a header, and of the unit that members are padded to.
const BLOCK: u64 = 512;

/// The longest name, and the largest pax header.
const MAX_NAME_BYTES: u64 = 4096;
const MAX_PAX_BYTES: u64 = 1 << 20;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) start: u64,
    pub(super) n_bytes: u64,
}

/// The fields of the header before a member.
#[derive(Default)]
struct Said {
    name: Option<String>,
    n_bytes: Option<u64>,
}

/// The files of an archive, in its order.
///
/// # Errors
/// [`DataFault::Shard`] when it is damaged or truncated; [`DataFault::Member`] for links, devices, and names that lead
/// out of a folder.
pub(super) fn members(file: &PackedFile) -> Result<Vec<Member>> {
    let fault = |fault: &str| shard_fault(file, fault);
    let start = file.read(0..file.n_bytes().min(64))?;
    merge::io::require_fetched(file.path(), &start)?;
    let packed: [(&[u8], &str); 3] = [
        (&[0x1f, 0x8b], "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (b"BZh", "bzip2"),
    ];
    if let Some((_, name)) = packed.iter().find(|(magic, _)| start.starts_with(magic)) {
        let said = format!("it is compressed with {name}; unpack it to a plain .tar");
        return Err(fault(&said));
    }
    let mut found = Vec::new();
    let mut said = Said::default();
    let mut at = 0;
    loop {
        if at == file.n_bytes() {
            // Writers that are killed leave no end; so do some that are not.
            return match at {
                0 => Err(fault("it is empty")),
                _ => Err(fault("it is truncated: it has no end")),
            };
        }
        let cut = || fault("it is truncated: it ends within a header");
        if at + BLOCK > file.n_bytes() {
            return Err(cut());
        }
        let header = file.read(at..at + BLOCK)?;
        at += BLOCK;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(found);
        }
        if !has_its_sum(&header) {
            return Err(fault(&format!(
                "there is no header at byte {}: it is no tar archive, or damaged",
                at - BLOCK
            )));
        }
        let kind = header[156];
        let own = number(&header[124..136]).ok_or_else(|| fault("a member has no size"))?;
        let n_bytes = match kind {
            b'0' | 0 | b'7' => said.n_bytes.unwrap_or(own),
            _ => own,
        };
        let name = said.name.clone().unwrap_or_else(|| name_of(&header));
        let end = at.checked_add(n_bytes);
        let end = end.filter(|end| *end <= file.n_bytes()).ok_or_else(|| {
            let rest = file.n_bytes() - at;
            member_fault(
                file,
                &name,
                format!("has {n_bytes} bytes, but {rest} follow: the shard is truncated"),
            )
        })?;
        let data = at..end;
        at = end
            .div_ceil(BLOCK)
            .saturating_mul(BLOCK)
            .min(file.n_bytes());
        match kind {
            // Long names, and pax headers of one member.
            b'L' if n_bytes <= MAX_NAME_BYTES => {
                said.name = Some(text(&file.read(data)?));
                continue;
            }
            b'x' if n_bytes <= MAX_PAX_BYTES => {
                pax(&file.read(data)?, &mut said)
                    .ok_or_else(|| fault("a pax header is damaged"))?;
                continue;
            }
            b'L' | b'x' => return Err(fault("a name or a pax header is too long")),
            // Pax headers of all members say nothing that is needed here.
            b'g' => continue,
            b'0' | 0 | b'7' => {
                if !is_inside(&name) {
                    let reason = "its name leads out of a folder".into();
                    return Err(member_fault(file, &name, reason));
                }
                // A folder, in the oldest form.
                if !name.ends_with('/') {
                    found.push(Member {
                        name: name.trim_start_matches("./").to_owned(),
                        start: data.start,
                        n_bytes,
                    });
                }
            }
            b'5' => {}
            b'1' | b'2' => {
                let reason = "is a link, which is not followed".into();
                return Err(member_fault(file, &name, reason));
            }
            _ => {
                let reason = "is no file: a device, a pipe, or a file in pieces".into();
                return Err(member_fault(file, &name, reason));
            }
        }
        said = Said::default();
    }
}

pub(super) fn shard_fault(file: &PackedFile, fault: &str) -> Error {
    Error::Data(DataFault::Shard {
        path: file.path().into(),
        fault: fault.into(),
    })
}

/// Characters of a name that a message shows.
const MAX_SHOWN_CHARS: usize = 100;

pub(super) fn member_fault(file: &PackedFile, name: &str, fault: String) -> Error {
    Error::Data(DataFault::Member {
        path: file.path().into(),
        member: name.chars().take(MAX_SHOWN_CHARS).collect(),
        fault,
    })
}

/// Whether the header's bytes add up to its sum, in which its own eight bytes count as spaces.
fn has_its_sum(header: &[u8]) -> bool {
    let sum = header.iter().enumerate().map(|(index, byte)| match index {
        148..156 => 32,
        _ => u64::from(*byte),
    });
    number(&header[148..156]) == Some(sum.sum())
}

/// A number in octal digits, or in bytes after a first bit that is set.
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        let (high, low) = field.split_at(field.len().saturating_sub(8));
        // A negative or enormous number is none.
        let is_small = high.iter().enumerate().all(|(index, byte)| match index {
            0 => *byte == 0x80,
            _ => *byte == 0,
        });
        let low = low
            .first_chunk::<8>()
            .filter(|_| is_small && !high.is_empty())?;
        return Some(u64::from_be_bytes(*low));
    }
    let digits: Vec<u8> = (field.iter().copied())
        .skip_while(|byte| *byte == b' ')
        .take_while(|byte| !matches!(byte, 0 | b' '))
        .collect();
    let digits = String::from_utf8(digits).ok()?;
    match digits.is_empty() {
        true => Some(0),
        false => u64::from_str_radix(&digits, 8).ok(),
    }
}

/// Text up to a zero.
fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn name_of(header: &[u8]) -> String {
    let name = text(&header[..100]);
    let prefix = text(&header[345..500]);
    match header[257..262] == *b"ustar" && header[262] == 0 && !prefix.is_empty() {
        true => format!("{prefix}/{name}"),
        false => name,
    }
}

/// The records of a pax header: length, space, key, `=`, value, line break.
fn pax(mut bytes: &[u8], said: &mut Said) -> Option<()> {
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?;
        let (last, record) = record.split_last()?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if *last != b'\n' {
            return None;
        }
        match key {
            b"path" if value.len() as u64 <= MAX_NAME_BYTES => said.name = Some(text(value)),
            b"path" => return None,
            b"size" => said.n_bytes = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
            _ => {}
        }
        bytes = &bytes[length..];
    }
    Some(())
}

/// Whether a name goes only downwards.
fn is_inside(name: &str) -> bool {
    !name.starts_with('/') && !name.is_empty() && name.split('/').all(|part| part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   12 \0\0"), Some(10));
        assert_eq!(number(b"        "), Some(0));
        assert_eq!(number(b"99"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), None);
    }

    #[test]
    fn a_pax_header_tells_a_name_and_a_size() {
        let mut said = Said::default();
        assert_eq!(pax(b"15 path=a/b.jpg\n", &mut said), None);
        assert_eq!(pax(b"16 path=a/b.jpg\n12 size=300\n", &mut said), Some(()));
        assert_eq!(said.name.as_deref(), Some("a/b.jpg"));
        assert_eq!(said.n_bytes, Some(300));
        for damaged in [
            &b"x path=a\n"[..],
            b"3 p",
            b"99 path=a\n",
            b"9 path=ab",
            b"0 a=b\n",
        ] {
            assert_eq!(pax(damaged, &mut Said::default()), None, "{damaged:?}");
        }
    }

    #[test]
    fn names_that_lead_out_are_told() {
        for (name, is_in) in [
            ("a/b.c", true),
            ("./a", true),
            ("/a", false),
            ("a/../b", false),
            ("", false),
        ] {
            assert_eq!(is_inside(name), is_in, "{name:?}");
        }
    }
}
