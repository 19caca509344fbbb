//! Columns and their types.

use std::collections::HashSet;

use arrow_ipc::{Field as RawField, Schema as RawSchema, Type};

/// A column, or the items of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// The type of its values, seen through a dictionary.
    pub kind: Kind,
    /// For a dictionary column, its id and the width of its indices in bits.
    pub(super) dictionary: Option<(i64, u8)>,
}

/// A type, as far as these files have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nulls only: what writers make of a column without values.
    Null,
    /// Whole numbers.
    Integer {
        /// 8, 16, 32 or 64.
        bits: u8,
        /// Whether they may be negative.
        signed: bool,
    },
    /// Floating point numbers.
    Float {
        /// 32 or 64.
        bits: u8,
    },
    /// Text or binary.
    Bytes {
        /// Whether offsets have 64 bits.
        large: bool,
        /// Whether it is text.
        text: bool,
    },
    /// Lists.
    List {
        /// Whether offsets have 64 bits.
        large: bool,
        /// Their elements.
        item: Box<Field>,
    },
    /// Anything else: skipped over, but not read. Its name, its buffers and its children.
    Other(&'static str, usize, Vec<Field>),
}

impl Field {
    /// Its type in the words of arrow, e.g. `list<string>`.
    #[must_use]
    pub fn describe(&self) -> String {
        let plain = match &self.kind {
            Kind::Null => "null".into(),
            Kind::Integer { bits, signed } => {
                format!("{}int{bits}", if *signed { "" } else { "u" })
            }
            Kind::Float { bits: 64 } => "double".into(),
            Kind::Float { .. } => "float".into(),
            Kind::Bytes { large, text } => {
                let plain = if *text { "string" } else { "binary" };
                format!("{}{plain}", if *large { "large_" } else { "" })
            }
            Kind::List { large, item } => {
                let large = if *large { "large_" } else { "" };
                format!("{large}list<{}>", item.describe())
            }
            Kind::Other(name, ..) => (*name).into(),
        };
        match self.dictionary {
            Some(_) => format!("dictionary<{plain}>"),
            None => plain,
        }
    }

    /// The fields of a schema, or its fault.
    pub(super) fn of_schema(schema: RawSchema<'_>) -> Result<Vec<Self>, String> {
        if schema.endianness() != arrow_ipc::Endianness::Little {
            return Err("it was written big-endian".into());
        }
        let fields = schema.fields().ok_or("its schema has no columns")?;
        let fields: Vec<Self> = fields.iter().map(Self::new).collect::<Result<_, _>>()?;
        let mut seen = HashSet::new();
        for field in &fields {
            if !seen.insert(&field.name) {
                return Err(format!("it has two columns `{}`", field.name));
            }
        }
        Ok(fields)
    }

    fn new(field: RawField<'_>) -> Result<Self, String> {
        let name = field.name().unwrap_or_default().to_owned();
        let children = || -> Result<Vec<Self>, String> {
            let children = field.children().into_iter().flatten();
            children.map(Self::new).collect()
        };
        let list = |large: bool| match <[Self; 1]>::try_from(children()?) {
            Ok([item]) => Ok(Kind::List {
                large,
                item: Box::new(item),
            }),
            Err(_) => Err(format!("column `{name}` is a list of other than one type")),
        };
        let bytes = |large, text| Kind::Bytes { large, text };
        let kind = match field.type_type() {
            Type::Null => Kind::Null,
            Type::Int => {
                let int = field.type_as_int();
                let width = int.as_ref().map_or(0, |int| int.bitWidth());
                Kind::Integer {
                    bits: width_in_bits(&name, width)?,
                    signed: int.is_some_and(|int| int.is_signed()),
                }
            }
            Type::FloatingPoint => match field.type_as_floating_point().map(|t| t.precision()) {
                Some(arrow_ipc::Precision::SINGLE) => Kind::Float { bits: 32 },
                Some(arrow_ipc::Precision::DOUBLE) => Kind::Float { bits: 64 },
                _ => Kind::Other("halffloat", 2, Vec::new()),
            },
            Type::Utf8 => bytes(false, true),
            Type::LargeUtf8 => bytes(true, true),
            Type::Binary => bytes(false, false),
            Type::LargeBinary => bytes(true, false),
            Type::List => list(false)?,
            Type::LargeList => list(true)?,
            Type::Bool => Kind::Other("bool", 2, Vec::new()),
            Type::Decimal => Kind::Other("decimal", 2, Vec::new()),
            Type::Date => Kind::Other("date", 2, Vec::new()),
            Type::Time => Kind::Other("time", 2, Vec::new()),
            Type::Timestamp => Kind::Other("timestamp", 2, Vec::new()),
            Type::Duration => Kind::Other("duration", 2, Vec::new()),
            Type::Interval => Kind::Other("interval", 2, Vec::new()),
            Type::FixedSizeBinary => Kind::Other("fixed_size_binary", 2, Vec::new()),
            Type::FixedSizeList => Kind::Other("fixed_size_list", 1, children()?),
            Type::Struct_ => Kind::Other("struct", 1, children()?),
            Type::Map => Kind::Other("map", 2, children()?),
            other => {
                let other = other.variant_name().unwrap_or("of an unknown type");
                return Err(format!("column `{name}` is {other}, which is not read"));
            }
        };
        let dictionary = match field.dictionary() {
            None => None,
            // Without an index type indices are signed 32-bit numbers.
            Some(dictionary) => {
                let width = dictionary.indexType().map_or(32, |int| int.bitWidth());
                Some((dictionary.id(), width_in_bits(&name, width)?))
            }
        };
        Ok(Self {
            name,
            kind,
            dictionary,
        })
    }
}

fn width_in_bits(column: &str, width: i32) -> Result<u8, String> {
    match u8::try_from(width) {
        Ok(bits @ (8 | 16 | 32 | 64)) => Ok(bits),
        _ => Err(format!("column `{column}` has integers of {width} bits")),
    }
}
