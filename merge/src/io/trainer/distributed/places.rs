//! The places of pieces in the files of a distributed checkpoint.

use std::ops::Range;

use super::rows::Rows;

/// Where a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The number of the tensor's name.
    pub(super) name: u32,
    /// The number of the file.
    pub(super) file: u32,
    pub(super) offset: u64,
    pub(super) n_bytes: u64,
}

/// The places that a checkpoint lists. Each is a row: name, file, offset, bytes, number of axes, and where the piece begins.
#[derive(Default)]
pub(super) struct Places {
    rows: Rows,
    /// Numbers of the rows.
    order: Vec<u32>,
}

impl Places {
    /// Adds the place of the piece that begins at `start`.
    pub(super) fn push(&mut self, name: u32, start: &[usize], file: u32, at: u64, n_bytes: u64) {
        let place = [name.into(), file.into(), at, n_bytes, start.len() as u64];
        let start = start.iter().map(|start| *start as u64);
        let row = self.rows.push(place.into_iter().chain(start));
        self.order.push(row);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Bytes that they take, with those for sorting them.
    pub(super) fn n_bytes(&self) -> usize {
        self.rows.n_bytes() + 2 * size_of_val(&self.order[..])
    }

    /// The place of a row.
    pub(super) fn place(&self, row: u32) -> Place {
        let mut numbers = self.rows.numbers(row);
        let mut next = || numbers.next().unwrap_or(0);
        Place {
            name: next() as u32,
            file: next() as u32,
            offset: next(),
            n_bytes: next(),
        }
    }

    /// Where the piece of a row begins.
    pub(super) fn start(&self, row: u32) -> impl Iterator<Item = usize> + '_ {
        let mut numbers = self.rows.numbers(row).skip(4);
        let n_axes = numbers.next().unwrap_or(0);
        numbers.take(n_axes as usize).map(|start| start as usize)
    }

    /// All rows.
    pub(super) fn rows(&self) -> &[u32] {
        &self.order
    }

    /// Brings the rows into the order of the files and leaves out repeated ones; gives two rows that share bytes, if there
    /// are any.
    pub(super) fn order_by_file(&mut self) -> Option<[u32; 2]> {
        let mut order = std::mem::take(&mut self.order);
        order.sort_by_key(|row| {
            let place = self.place(*row);
            (place.file, place.offset)
        });
        order
            .dedup_by(|a, b| self.place(*a) == self.place(*b) && self.start(*a).eq(self.start(*b)));
        self.order = order;
        let shared = self.order.windows(2).find(|pair| {
            let [one, other] = [self.place(pair[0]), self.place(pair[1])];
            one.file == other.file && one.offset.saturating_add(one.n_bytes) > other.offset
        });
        shared.map(|pair| [pair[0], pair[1]])
    }

    /// Brings the rows into the order of the tensors and of where their pieces begin; gives a row whose piece has another
    /// place, too, if there is one.
    pub(super) fn order_by_tensor(&mut self) -> Option<u32> {
        let mut order = std::mem::take(&mut self.order);
        order.sort_by(|a, b| {
            let (one, other) = (self.place(*a).name, self.place(*b).name);
            (one.cmp(&other)).then_with(|| self.start(*a).cmp(self.start(*b)))
        });
        self.order = order;
        let twice = self.order.windows(2).find(|pair| {
            self.place(pair[0]).name == self.place(pair[1]).name
                && self.start(pair[0]).eq(self.start(pair[1]))
        });
        twice.map(|pair| pair[0])
    }

    /// Where the rows of a tensor are among all, once they are in the order of the tensors.
    pub(super) fn of_tensor(&self, name: u32) -> Range<usize> {
        let first = (self.order).partition_point(|row| self.place(*row).name < name);
        let n = self.order[first..].partition_point(|row| self.place(*row).name == name);
        first..first + n
    }

    /// The row, among those of a tensor, of the piece that begins at `start`.
    pub(super) fn find(&self, rows: Range<usize>, start: &[usize]) -> Option<u32> {
        let rows = &self.order[rows];
        let at = rows.partition_point(|row| self.start(*row).lt(start.iter().copied()));
        let row = *rows.get(at)?;
        self.start(row).eq(start.iter().copied()).then_some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_by_tensor_and_start() {
        let mut places = Places::default();
        for name in [3, 1, 2] {
            for (number, start) in [[5, 0], [0, 7], [0, 0]].iter().enumerate() {
                places.push(name, start, 0, u64::from(name) * 100 + number as u64, 1);
            }
        }
        // The same again, as replicas list it.
        places.push(2, &[0, 7], 0, 201, 1);
        assert_eq!(places.order_by_file(), None);
        assert_eq!(places.order_by_tensor(), None);
        assert_eq!(places.len(), 9);
        let rows = places.of_tensor(2);
        let row = places.find(rows.clone(), &[0, 7]).expect("it is there");
        assert_eq!(places.place(row).offset, 201);
        assert_eq!(places.find(rows.clone(), &[0, 8]), None);
        assert_eq!(places.find(rows, &[0]), None);
        assert!(places.of_tensor(4).is_empty());
    }

    #[test]
    fn shared_bytes_and_second_places_are_met() {
        let mut places = Places::default();
        places.push(0, &[0], 0, 10, 5);
        places.push(1, &[0], 0, 14, 5);
        let [one, other] = places.order_by_file().expect("they share byte 14");
        assert_eq!((places.place(one).name, places.place(other).name), (0, 1));
        assert_eq!(places.order_by_tensor(), None);
        places.push(1, &[0], 0, 100, 5);
        let row = places.order_by_tensor().expect("two places");
        assert_eq!(places.place(row).name, 1);
    }
}
