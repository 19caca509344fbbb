//! A checkpoint some of whose tensors have other values.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Aliases, SourceInfo, TensorEntry};
use crate::{Checkpoint, DType, Result, TensorInfo, TensorSource};

/// A tensor in memory: what it is, and its bytes.
pub type Held = (TensorInfo, Vec<u8>);

/// A view of `inner`, of which tensors named in `over` are replaced by others of the same shape. Names that `inner` lacks,
/// and tensors of another shape, change nothing.
#[must_use]
pub fn overlaid(inner: Arc<Checkpoint>, over: &Arc<BTreeMap<String, Held>>) -> Checkpoint {
    let (mut tensors, mut names) = (Vec::new(), Vec::new());
    for (name, info) in inner.tensors() {
        let held = over.get(name).filter(|(held, _)| held.shape == info.shape);
        let info = held.map_or(info, |(held, _)| held).clone();
        tensors.push(TensorEntry::named(name.to_owned(), info));
        names.push((name.to_owned(), held.is_some()));
    }
    let over = Arc::clone(over);
    Checkpoint::new(Box::new(Overlaid {
        inner,
        over,
        tensors,
        names,
    }))
}

struct Overlaid {
    inner: Arc<Checkpoint>,
    over: Arc<BTreeMap<String, Held>>,
    tensors: Vec<TensorEntry>,
    /// Names of tensors, and whether they are replaced.
    names: Vec<(String, bool)>,
}

impl TensorSource for Overlaid {
    fn info(&self) -> &SourceInfo {
        self.inner.info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn aliases(&self) -> Aliases {
        self.inner.aliases().clone()
    }

    fn stored_dtype(&self, index: usize) -> DType {
        self.tensors[index].info.dtype
    }

    fn is_computed(&self, index: usize) -> bool {
        let (name, is_replaced) = &self.names[index];
        *is_replaced || self.inner.is_computed(name)
    }

    fn held_bytes(&self) -> u64 {
        let held = self.over.values().map(|(_, bytes)| bytes.len() as u64);
        held.sum::<u64>() + self.inner.source().held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let (name, is_replaced) = &self.names[index];
        match self.over.get(name).filter(|_| *is_replaced) {
            Some((info, bytes)) => {
                let from = info.dtype.bytes_of(first);
                out.copy_from_slice(&bytes[from..from + out.len()]);
                Ok(())
            }
            None => self.inner.read(name, first, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{OpenOptions, WriteOptions, Writer};

    #[test]
    fn tensors_of_the_same_name_and_shape_are_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("m.safetensors");
        let info = |n: usize| TensorInfo {
            dtype: DType::U8,
            shape: vec![n],
        };
        let tensors = [("a".to_owned(), info(3)), ("b".to_owned(), info(2))];
        let writer = Writer::create(&tensors, &BTreeMap::new(), &WriteOptions::new(&path));
        let writer = writer.expect("it can be written");
        writer.write(0, 0, &[1, 2, 3]).expect("written");
        writer.write(1, 0, &[4, 5]).expect("written");
        writer.finish(&BTreeMap::new()).expect("in place");
        let inner = Arc::new(crate::io::open(&path, &OpenOptions::default()).expect("it opens"));
        let over = BTreeMap::from([
            ("a".to_owned(), (info(3), vec![7, 8, 9])),
            ("b".to_owned(), (info(1), vec![6])),
            ("c".to_owned(), (info(1), vec![6])),
        ]);
        let view = overlaid(inner, &Arc::new(over));
        assert_eq!(view.read_all("a").expect("it reads"), [7, 8, 9]);
        let mut part = [0; 2];
        view.read("a", 1, &mut part).expect("it reads");
        assert_eq!(part, [8, 9]);
        assert_eq!(
            view.read_all("b").expect("it reads"),
            [4, 5],
            "another shape"
        );
        assert!(view.get("c").is_none());
    }
}
