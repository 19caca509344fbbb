//! Ranks that count the bytes that they hand to each operation.

use std::cell::RefCell;
use std::collections::BTreeMap;

use evaluate::Result;
use train::collective::Collective;

/// Ranks, and the bytes of this one by operation.
pub struct Counted<C> {
    ranks: C,
    bytes: RefCell<BTreeMap<&'static str, usize>>,
}

impl<C: Collective> Counted<C> {
    pub fn new(ranks: C) -> Self {
        Self {
            ranks,
            bytes: RefCell::default(),
        }
    }

    /// Bytes so far that this rank has handed to an operation.
    pub fn bytes(&self, operation: &str) -> usize {
        self.bytes.borrow().get(operation).copied().unwrap_or(0)
    }

    fn count(&self, operation: &'static str, n: usize) {
        *self.bytes.borrow_mut().entry(operation).or_default() += n;
    }
}

impl<C: Collective> Collective for Counted<C> {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn size(&self) -> usize {
        self.ranks.size()
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        self.count("sum", size_of_val(values));
        self.ranks.sum(values)
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<()> {
        self.count("sum_f64", size_of_val(values));
        self.ranks.sum_f64(values)
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.count("gather", own.len());
        self.ranks.gather(own)
    }

    fn exchange(&self, to: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        self.count("exchange", to.iter().map(Vec::len).sum());
        self.ranks.exchange(to)
    }

    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<()> {
        self.count("broadcast", size_of_val(values));
        self.ranks.broadcast(root, values)
    }

    fn barrier(&self) -> Result<()> {
        self.ranks.barrier()
    }
}
