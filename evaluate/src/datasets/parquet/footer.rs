//! The contents of a footer: columns, places of their pages, notes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::thrift::{self, Value};
use super::unfold::Codec;

/// Groups within groups of columns, at most.
const MAX_DEPTH: usize = 16;

/// The most columns, those within structs counted one by one.
const MAX_LEAVES: usize = 10_000;

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Physical {
    Boolean,
    Int32,
    Int64,
    Float,
    Double,
    Bytes,
    /// Of a kind that is not read.
    Other(&'static str),
}

impl Physical {
    fn of(number: i64) -> Self {
        match number {
            0 => Self::Boolean,
            1 => Self::Int32,
            2 => Self::Int64,
            3 => Self::Other("int96"),
            4 => Self::Float,
            5 => Self::Double,
            6 => Self::Bytes,
            _ => Self::Other("fixed_size_binary"),
        }
    }
}

/// A column of values, of a column of the table.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// Its name and those of the groups around it, the column of the table first.
    pub(super) path: Vec<Arc<str>>,
    pub(super) physical: Physical,
    /// Whether its bytes are text.
    pub(super) is_text: bool,
    /// The definition level of a value that is there.
    pub(super) definition: u32,
    /// For each list around it the definition level from which on the list has an item.
    pub(super) lists: Vec<u32>,
}

impl Leaf {
    /// The column of the table that it is in.
    pub(super) fn column(&self) -> &str {
        self.path.first().map_or("", |name| name)
    }

    /// Its type in words, e.g. `list<string>`.
    pub(super) fn describe(&self) -> String {
        let plain = match self.physical {
            Physical::Boolean => "bool",
            Physical::Int32 => "int32",
            Physical::Int64 => "int64",
            Physical::Float => "float",
            Physical::Double => "double",
            Physical::Bytes if self.is_text => "string",
            Physical::Bytes => "binary",
            Physical::Other(name) => name,
        };
        let lists = self.lists.iter();
        lists.fold(plain.to_owned(), |inner, _| format!("list<{inner}>"))
    }
}

/// The pages of a leaf in a row group.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// How they are compressed; the name of a codec that is not read.
    pub(super) codec: Result<Codec, String>,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Values with nulls and empty lists.
    pub(super) n_values: u64,
}

/// Rows that are stored together.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) n_rows: usize,
    /// One for each leaf.
    pub(super) chunks: Vec<Chunk>,
}

/// The contents of a footer.
#[derive(Clone, Debug)]
pub(super) struct Footer {
    pub(super) leaves: Vec<Leaf>,
    pub(super) groups: Vec<Group>,
    pub(super) notes: BTreeMap<String, String>,
}

impl Footer {
    /// Reads a footer of a file of `n_bytes`.
    ///
    /// A file of a data set has no more rows than bytes, no more items in the lists of a column than eight times its
    /// bytes, and no byte in two columns. A file that says otherwise is refused: it would take memory and time that
    /// its bytes do not account for.
    pub(super) fn read(bytes: &[u8], n_bytes: u64) -> Result<Self, String> {
        let (footer, _) = thrift::read(bytes).map_err(|_| "its footer is damaged")?;
        let elements = footer.list(2).ok_or("its footer has no schema")?;
        let root = elements.first().ok_or("its schema is empty")?;
        let mut walk = Walk {
            elements,
            at: 1,
            leaves: Vec::new(),
        };
        for _ in 0..root.count(5).unwrap_or(0) {
            walk.element(&Around::default(), 0)?;
        }
        let leaves = walk.leaves;
        let mut groups = Vec::new();
        let mut n_rows = 0_u64;
        let mut n_items = vec![0_u64; leaves.len()];
        for group in footer.list(4).ok_or("its footer has no row groups")? {
            let group_rows = group.count(3).ok_or("a row group has no number of rows")?;
            n_rows = n_rows.saturating_add(group_rows);
            if n_rows > n_bytes {
                return Err(format!("it claims {n_rows} rows in {n_bytes} bytes"));
            }
            let chunks = group.list(1).ok_or("a row group has no columns")?;
            if chunks.len() != leaves.len() {
                let (n, n_leaves) = (chunks.len(), leaves.len());
                return Err(format!(
                    "a row group has {n} columns, the schema {n_leaves}"
                ));
            }
            let chunks = chunks.iter().zip(&leaves).zip(&mut n_items);
            let chunks = chunks.map(|((chunk, leaf), n_items)| {
                let chunk = chunk_of(chunk, n_bytes).and_then(|chunk| {
                    check_values(&chunk, leaf, group_rows, n_items, n_bytes)?;
                    Ok(chunk)
                });
                chunk.map_err(|fault| format!("column `{}`: {fault}", leaf.path.join(".")))
            });
            groups.push(Group {
                // Not above the bytes of the file.
                n_rows: group_rows as usize,
                chunks: chunks.collect::<Result<_, String>>()?,
            });
        }
        if footer.count(3).is_some_and(|said| said != n_rows) {
            return Err("its row groups have other than the rows of its footer".into());
        }
        if overlap(&groups) {
            return Err("its footer puts the pages of two columns into one place".into());
        }
        let notes = footer.list(5).unwrap_or_default().iter();
        let notes = notes.filter_map(|note| Some((note.text(1)?, note.text(2)?)));
        Ok(Self {
            leaves,
            groups,
            notes: notes.collect(),
        })
    }
}

fn chunk_of(chunk: &Value, n_bytes: u64) -> Result<Chunk, String> {
    if chunk.field(1).is_some() {
        return Err("its values are in another file, which is not read".into());
    }
    let about = chunk.field(3).ok_or("its pages are not described")?;
    let data = about.count(9).ok_or("its pages have no place")?;
    // Writers of old put a zero where there is no dictionary.
    let dictionary = about.count(11).filter(|at| (1..data).contains(at));
    let start = dictionary.unwrap_or(data);
    let length = about.count(7).ok_or("its pages have no length")?;
    let end = start.checked_add(length).filter(|end| *end <= n_bytes);
    let n_values = about.count(5).ok_or("it has no number of values")?;
    Ok(Chunk {
        codec: Codec::of(about.integer(4).ok_or("it has no codec")?),
        start,
        end: end
            .ok_or("its pages reach beyond the end of the file, which is truncated or damaged")?,
        n_values,
    })
}

/// Whether a chunk has a value for each row, or not too many items of lists; adds these to those of the groups before.
fn check_values(
    chunk: &Chunk,
    leaf: &Leaf,
    n_rows: u64,
    n_items: &mut u64,
    n_bytes: u64,
) -> Result<(), String> {
    let n_values = chunk.n_values;
    if leaf.lists.is_empty() {
        return match n_values == n_rows {
            true => Ok(()),
            false => Err(format!(
                "it has {n_values} values in a group of {n_rows} rows"
            )),
        };
    }
    *n_items = n_items.saturating_add(n_values);
    match *n_items <= n_bytes.saturating_mul(8) {
        true => Ok(()),
        false => Err(format!(
            "it claims {n_items} values in a file of {n_bytes} bytes"
        )),
    }
}

/// Whether a byte of the file is in two chunks.
fn overlap(groups: &[Group]) -> bool {
    let chunks = groups.iter().flat_map(|group| &group.chunks);
    let places = chunks.map(|chunk| (chunk.start, chunk.end));
    let mut places: Vec<_> = places.filter(|(start, end)| start < end).collect();
    places.sort_unstable();
    places.windows(2).any(|pair| pair[1].0 < pair[0].1)
}

/// The surroundings of an element of the schema.
#[derive(Clone, Debug, Default)]
struct Around {
    path: Vec<Arc<str>>,
    definition: u32,
    lists: Vec<u32>,
}

/// The elements of a schema, one after the other.
struct Walk<'a> {
    elements: &'a [Value],
    at: usize,
    leaves: Vec<Leaf>,
}

impl Walk<'_> {
    fn element(&mut self, around: &Around, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!(
                "its schema has more than {MAX_DEPTH} groups in groups"
            ));
        }
        let element = self.elements.get(self.at).ok_or("its schema ends early")?;
        self.at += 1;
        let mut here = around.clone();
        let name = element.text(4).ok_or("a column has no name")?;
        here.path.push(name.into());
        match element.integer(3) {
            Some(0) | None => {}
            Some(1) => here.definition += 1,
            Some(2) => {
                here.definition += 1;
                here.lists.push(here.definition);
            }
            Some(_) => return Err("a column is neither required, optional nor repeated".into()),
        }
        let n_children = element.count(5).unwrap_or(0);
        if n_children > 0 {
            for _ in 0..n_children {
                self.element(&here, depth + 1)?;
            }
            return Ok(());
        }
        let Some(physical) = element.integer(1) else {
            // A group without columns.
            return Ok(());
        };
        // UTF8, ENUM and JSON, in the old spelling and the new.
        let is_text = matches!(element.integer(6), Some(0 | 4 | 19))
            || element.field(10).is_some_and(|logical| {
                [1, 4, 12].into_iter().any(|id| logical.field(id).is_some())
            });
        if self.leaves.len() == MAX_LEAVES {
            return Err(format!("it has more than {MAX_LEAVES} columns"));
        }
        self.leaves.push(Leaf {
            path: here.path,
            physical: Physical::of(physical),
            is_text,
            definition: here.definition,
            lists: here.lists,
        });
        Ok(())
    }
}
