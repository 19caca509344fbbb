//! Ranks that are threads of one process, so that what ranks do can be tested anywhere.

use std::ops::AddAssign;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytemuck::Pod;
use evaluate::Result;
use train::collective::Collective;

/// A rank with a channel to and from every rank.
pub struct Threads {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

impl Threads {
    /// The result of `run` on every rank. A rank that panics takes the others with it.
    pub fn run<T: Send>(n_ranks: usize, run: impl Fn(&Self) -> T + Sync) -> Vec<T> {
        Self::run_owned(n_ranks, |rank| run(&rank))
    }

    /// The same with a rank that `run` owns, to share it.
    pub fn run_owned<T: Send>(n_ranks: usize, run: impl Fn(Self) -> T + Sync) -> Vec<T> {
        let (mut to, mut from): (Vec<Vec<_>>, Vec<Vec<_>>) =
            (0..n_ranks).map(|_| (Vec::new(), Vec::new())).unzip();
        for sends in &mut to {
            for receives in &mut from {
                let (sender, receiver) = channel();
                sends.push(sender);
                receives.push(receiver);
            }
        }
        let ends = to.into_iter().zip(from).enumerate();
        let ranks = ends.map(|(rank, (to, from))| Self { rank, to, from });
        std::thread::scope(|scope| {
            let run = &run;
            let started: Vec<_> = ranks.map(|rank| scope.spawn(move || run(rank))).collect();
            let join = |rank: std::thread::ScopedJoinHandle<'_, T>| {
                rank.join().expect("the rank did not panic")
            };
            started.into_iter().map(join).collect()
        })
    }

    fn exchange(&self, own: &[u8]) -> Vec<Vec<u8>> {
        for to in &self.to {
            to.send(own.to_vec()).expect("the others are there");
        }
        let receive = |from: &Receiver<Vec<u8>>| from.recv().expect("the others are there");
        self.from.iter().map(receive).collect()
    }

    /// Adds up what all have, in the order of the ranks.
    fn add_up<T: Pod + Default + AddAssign>(&self, values: &mut [T]) {
        let all = self.exchange(bytemuck::cast_slice(values));
        values.fill(T::default());
        for bytes in all {
            let other: Vec<T> = bytemuck::pod_collect_to_vec(&bytes);
            assert_eq!(other.len(), values.len());
            (values.iter_mut().zip(other)).for_each(|(sum, value)| *sum += value);
        }
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        self.add_up(values);
        Ok(())
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<()> {
        self.add_up(values);
        Ok(())
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(self.exchange(own))
    }

    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<()> {
        let all = self.exchange(bytemuck::cast_slice(values));
        let given: Vec<f32> = bytemuck::pod_collect_to_vec(&all[root]);
        values.copy_from_slice(&given);
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        self.exchange(&[]);
        Ok(())
    }
}
