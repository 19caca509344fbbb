//! A zip archive of stored records whose places are known before their contents.

/// Data of every record begin at a multiple of this, as torch has it.
const ALIGNMENT_BYTES: u64 = 64;

/// Larger sizes and offsets go into zip64 fields.
const MAX_U32: u64 = u32::MAX as u64;

const LOCAL_MARK: u32 = 0x0403_4b50;
const CENTRAL_MARK: u32 = 0x0201_4b50;
const END64_MARK: u32 = 0x0606_4b50;
const LOCATOR64_MARK: u32 = 0x0706_4b50;
const END_MARK: u32 = 0x0605_4b50;

/// Bytes of a local header before the name.
const N_LOCAL_BYTES: u64 = 30;
/// Identifier of the extra field that holds sizes and offsets of 64 bits.
const ZIP64_FIELD: u16 = 1;
/// Identifier of the extra field that is skipped for alignment; torch uses the same.
const PADDING_FIELD: u16 = u16::from_le_bytes(*b"FB");
/// Bytes of an extra field before its contents.
const N_FIELD_BYTES: u64 = 4;
/// Version of the format that a reader must know, for zip64.
const VERSION: u16 = 45;
/// 1 January 1980, the first day of the format: no output depends on the clock.
const DATE: u16 = (1 << 5) | 1;

/// Where everything in an archive stands.
pub(super) struct Archive {
    records: Vec<Record>,
    directory_start: u64,
    n_bytes: u64,
}

struct Record {
    name: String,
    n_bytes: u64,
    header_start: u64,
    data_start: u64,
}

impl Archive {
    /// Lays out records of the given names and sizes, in this order.
    pub(super) fn new(records: impl IntoIterator<Item = (String, u64)>) -> Self {
        let mut end = 0;
        let mut laid_out = Vec::new();
        for (name, n_bytes) in records {
            let zip64 = if n_bytes > MAX_U32 {
                N_FIELD_BYTES + 16
            } else {
                0
            };
            let unpadded = end + N_LOCAL_BYTES + name.len() as u64 + zip64;
            // There is always a padding field, so that its least size need not be considered.
            let data_start = (unpadded + N_FIELD_BYTES).next_multiple_of(ALIGNMENT_BYTES);
            laid_out.push(Record {
                name,
                n_bytes,
                header_start: end,
                data_start,
            });
            end = data_start + n_bytes;
        }
        let mut archive = Self {
            records: laid_out,
            directory_start: end,
            n_bytes: 0,
        };
        let checksums = vec![0; archive.records.len()];
        archive.n_bytes = end + archive.directory(&checksums).len() as u64;
        archive
    }

    /// Bytes of the whole archive.
    pub(super) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Where the data of record `index` begin.
    pub(super) fn data_start(&self, index: usize) -> u64 {
        self.records[index].data_start
    }

    /// Where the directory stands.
    pub(super) fn directory_start(&self) -> u64 {
        self.directory_start
    }

    /// The header of record `index` with the CRC-32 of its data, and where it stands.
    pub(super) fn local_header(&self, index: usize, checksum: u32) -> (u64, Vec<u8>) {
        let record = &self.records[index];
        let mut extra = Bytes::default();
        if record.n_bytes > MAX_U32 {
            extra.u16(ZIP64_FIELD).u16(16);
            extra.u64(record.n_bytes).u64(record.n_bytes);
        }
        let used = N_LOCAL_BYTES + record.name.len() as u64 + extra.0.len() as u64 + N_FIELD_BYTES;
        let n_padding_bytes = record.data_start - record.header_start - used;
        extra.u16(PADDING_FIELD).u16(n_padding_bytes as u16);
        extra.0.resize(extra.0.len() + n_padding_bytes as usize, 0);
        let mut header = Bytes::default();
        header.u32(LOCAL_MARK);
        header.description(record, checksum, extra.0.len());
        header.0.extend(record.name.as_bytes());
        header.0.extend(extra.0);
        (record.header_start, header.0)
    }

    /// The directory and the end marks, given the CRC-32 of the data of every record.
    pub(super) fn directory(&self, checksums: &[u32]) -> Vec<u8> {
        let mut bytes = Bytes::default();
        for (record, &checksum) in self.records.iter().zip(checksums) {
            bytes.central_header(record, checksum);
        }
        let n_directory_bytes = bytes.0.len() as u64;
        bytes.end(
            self.records.len() as u64,
            n_directory_bytes,
            self.directory_start,
        );
        bytes.0
    }
}

/// Little-endian fields in a row.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// The fields that local and central headers share.
    fn description(&mut self, record: &Record, checksum: u32, n_extra_bytes: usize) {
        let (flags, stored, time) = (0, 0, 0);
        self.u16(VERSION).u16(flags).u16(stored).u16(time).u16(DATE);
        self.u32(checksum);
        self.u32(capped(record.n_bytes)).u32(capped(record.n_bytes));
        self.u16(record.name.len() as u16).u16(n_extra_bytes as u16);
    }

    fn central_header(&mut self, record: &Record, checksum: u32) {
        let mut extra = Bytes::default();
        if record.n_bytes > MAX_U32 {
            extra.u64(record.n_bytes).u64(record.n_bytes);
        }
        if record.header_start > MAX_U32 {
            extra.u64(record.header_start);
        }
        let n_extra_bytes = if extra.0.is_empty() {
            0
        } else {
            extra.0.len() + N_FIELD_BYTES as usize
        };
        self.u32(CENTRAL_MARK).u16(VERSION);
        self.description(record, checksum, n_extra_bytes);
        let (n_comment_bytes, disk, internal, external) = (0, 0, 0, 0);
        self.u16(n_comment_bytes)
            .u16(disk)
            .u16(internal)
            .u32(external);
        self.u32(capped(record.header_start));
        self.0.extend(record.name.as_bytes());
        if n_extra_bytes > 0 {
            self.u16(ZIP64_FIELD).u16(extra.0.len() as u16);
            self.0.extend(extra.0);
        }
    }

    fn end(&mut self, n_records: u64, n_directory_bytes: u64, directory_start: u64) {
        let large = n_records >= u64::from(u16::MAX)
            || n_directory_bytes > MAX_U32
            || directory_start > MAX_U32;
        if large {
            let end64_start = directory_start + n_directory_bytes;
            // Bytes of the rest of this record.
            self.u32(END64_MARK).u64(44).u16(VERSION).u16(VERSION);
            self.u32(0).u32(0).u64(n_records).u64(n_records);
            self.u64(n_directory_bytes).u64(directory_start);
            self.u32(LOCATOR64_MARK).u32(0).u64(end64_start).u32(1);
        }
        let n_records = n_records.min(u64::from(u16::MAX)) as u16;
        self.u32(END_MARK)
            .u16(0)
            .u16(0)
            .u16(n_records)
            .u16(n_records);
        self.u32(capped(n_directory_bytes))
            .u32(capped(directory_start))
            .u16(0);
    }
}

/// A field of 32 bits; all ones send the reader to the zip64 field.
fn capped(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
