//! Pieces of what a worker holds, which go through its plugins at the same time: `parallelism`.
//!
//! A piece is some consecutive records of one batch. The chain and its twins take pieces up in their order, each on a thread of
//! its own that lives as long as there are some; what they made comes back in the same order. So who was how quick tells
//! in nothing but the time that it took: the desk makes units of what came back, one after the other, as if one chain had made all.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{Builder, scope};
use std::time::Duration;

use super::chain::{Budget, Chain, Processed};
use crate::model::{SourceBatch, clock};

/// How many pieces each chain gets: several, since records are not equally slow and who has ended early is to have one more.
const PIECES_EACH: usize = 4;

/// Consecutive records of a batch.
pub(super) struct Piece {
    pub(super) batch: Arc<dyn SourceBatch>,
    pub(super) range: Range<usize>,
    /// Bytes of these records.
    pub(super) bytes: usize,
    /// As [`Chain::apply`] takes it.
    pub(super) isolate: usize,
}

/// How many records a piece is to have, where so many chains share so many of them and a call takes `most`.
pub(super) fn records_each(records: usize, chains: usize, most: usize) -> usize {
    records.div_ceil(chains * PIECES_EACH).clamp(1, most.max(1))
}

/// Cuts records into pieces of about the same size, of `most` at most.
pub(super) fn cut(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let pieces = range.len().div_ceil(most.max(1));
    let border = move |nth: usize| range.start + range.len() * nth / pieces;
    (0..pieces).map(move |nth| border(nth)..border(nth + 1))
}

/// What the chains made of pieces.
pub(super) struct Done {
    /// In the order of the pieces; of the first of them only, where the time or the bytes were used up.
    pub(super) processed: Vec<Processed>,
    /// CPU time of other threads than this one.
    pub(super) cpu: Duration,
}

/// Has the chains process the pieces, up to the one with which their records and what was made of them are so many `bytes`. (One
/// behind it may have been begun by then: that is left out, so that the end does not depend on who was quicker.)
pub(super) fn process(chains: Vec<&mut Chain>, pieces: &[Piece], budget: Budget, bytes: usize) -> Done {
    let queue = Queue { pieces, next: AtomicUsize::new(0), held: AtomicUsize::new(0), budget, bytes };
    #[cfg(feature = "testing")]
    let (list, cpu) = if clock::is_simulated() { queue.in_turns(chains) } else { queue.at_once(chains) };
    #[cfg(not(feature = "testing"))]
    let (list, cpu) = queue.at_once(chains);
    let mut made: Vec<_> = pieces.iter().map(|_| None).collect();
    list.into_iter().for_each(|(number, processed)| made[number] = Some(processed));
    let mut held = 0;
    let processed = pieces.iter().zip(made).map_while(|(piece, processed)| {
        let processed = processed.filter(|_| held < bytes)?;
        held += piece.bytes + processed.bytes_made();
        Some(processed)
    });
    Done { processed: processed.collect(), cpu }
}

/// What is to be done, for all who do it.
struct Queue<'a> {
    pieces: &'a [Piece],
    next: AtomicUsize,
    /// Bytes of the pieces that are done, with what was made of them.
    held: AtomicUsize,
    budget: Budget,
    bytes: usize,
}

type Made = Vec<(usize, Processed)>;

impl Queue<'_> {
    /// The next piece, if there is one and it is to be begun.
    fn take(&self) -> Option<usize> {
        if self.held.load(Relaxed) >= self.bytes {
            return None;
        }
        let number = self.next.fetch_add(1, Relaxed);
        // (the first of all is owed its time)
        (number < self.pieces.len() && (number == 0 || !self.budget.is_spent())).then_some(number)
    }

    fn apply(&self, number: usize, chain: &mut Chain) -> Processed {
        let Piece { batch, range, bytes, isolate } = &self.pieces[number];
        let budget = if number == 0 { self.budget } else { self.budget.rest() };
        let processed = chain.apply(Arc::clone(batch), range.clone(), *isolate, budget);
        self.held.fetch_add(bytes + processed.bytes_made(), Relaxed);
        processed
    }

    fn work(&self, chain: &mut Chain) -> Made {
        std::iter::from_fn(|| self.take()).map(|number| (number, self.apply(number, chain))).collect()
    }

    /// Each chain on a thread of its own, the first on this one; those for which the system gives no thread do nothing.
    fn at_once(&self, chains: Vec<&mut Chain>) -> (Made, Duration) {
        let mut others = chains.into_iter().take(self.pieces.len());
        let Some(first) = others.next() else { return Default::default() };
        let name = std::thread::current().name().unwrap_or("worker").to_owned();
        scope(|scope| {
            let others = others.enumerate().filter_map(|(number, chain)| {
                let thread = Builder::new().name(format!("{name}+{}", number + 1));
                thread.spawn_scoped(scope, move || (self.work(chain), clock::thread_cpu())).ok()
            });
            let others: Vec<_> = others.collect();
            let (mut made, mut cpu) = (self.work(first), Duration::ZERO);
            for other in others {
                let (theirs, took) = other.join().unwrap_or_else(|panic| resume_unwind(panic));
                made.extend(theirs);
                cpu += took;
            }
            (made, cpu)
        })
    }

    /// As if at once, on this thread: where the simulation rules, it is drawn who is how quick.
    #[cfg(feature = "testing")]
    fn in_turns(&self, mut chains: Vec<&mut Chain>) -> (Made, Duration) {
        let (mut begun, mut made) = (Vec::new(), Made::new());
        loop {
            while begun.len() < chains.len() && (begun.is_empty() || fastrand::bool()) {
                let Some(number) = self.take() else { break };
                begun.push(number);
            }
            if begun.is_empty() {
                return (made, Duration::ZERO);
            }
            let number = begun.swap_remove(fastrand::usize(..begun.len()));
            let chain = fastrand::usize(..chains.len());
            made.push((number, self.apply(number, chains[chain])));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other_without_a_gap_and_none_is_larger_than_it_may_be_or_empty() {
        for (len, most) in [(0, 3), (1, 1), (1, 512), (7, 3), (512, 512), (513, 512), (1000, 16)] {
            let range = 100..100 + len;
            let pieces: Vec<_> = cut(range.clone(), most).collect();
            assert!(pieces.iter().all(|piece| (1..=most).contains(&piece.len())), "{pieces:?}");
            let ends = pieces.iter().map(|piece| piece.end);
            assert!(
                std::iter::once(range.start).chain(ends).eq(pieces.iter().map(|piece| piece.start).chain([range.end]))
            );
            assert_eq!(pieces.len(), len.div_ceil(most));
        }
    }

    #[test]
    fn each_chain_gets_several_pieces_where_there_are_records_enough_and_none_of_more_than_a_call_takes() {
        for (records, chains, most, expected) in
            [(0, 2, 512, 1), (1, 4, 512, 1), (16, 4, 512, 1), (160, 4, 512, 10), (50_000, 4, 512, 512)]
        {
            assert_eq!(records_each(records, chains, most), expected, "{records} records, {chains} chains");
        }
    }
}
