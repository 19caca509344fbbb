//! Ranks that share what is done with every example of a data set.

use super::Collective;

/// Ranks as tasks see them.
#[derive(Clone, Copy)]
pub struct Together<'a>(pub &'a dyn Collective);

impl evaluate::tasks::Ranks for Together<'_> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn gather(&self, own: &[u8]) -> evaluate::Result<Vec<Vec<u8>>> {
        let gathered = self.0.gather(own);
        gathered.map_err(|error| evaluate::Error::Ranks(Box::new(error)))
    }
}
