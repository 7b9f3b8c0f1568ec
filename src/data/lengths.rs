//! Batches of texts of similar length, so that little of what a model computes is padding.

use std::collections::BTreeMap;

/// Tokens of each text of a data set, whose arrays are all [texts, longest].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lengths {
    /// Without padding, by sample.
    pub tokens: Vec<usize>,
    /// Tokens of a row, padding included.
    pub longest: usize,
    /// The padding of a row is before its tokens.
    pub left: bool,
}

impl Lengths {
    /// At most `count` lengths to pad batches to, ascending, the longest last: those with which the fewest tokens are padding when
    /// every text is padded to the next of them.
    pub fn buckets(&self, count: usize) -> Vec<usize> {
        let mut texts = BTreeMap::from([(self.longest, 0)]);
        self.tokens.iter().for_each(|n| *texts.entry(*n).or_default() += 1);
        let (lengths, texts): (Vec<usize>, Vec<usize>) = texts.into_iter().unzip();
        // For every j the cheapest way to pad the texts of the j shortest lengths, with one more bucket in each round.
        let one = |i: usize, j: usize| texts[i..j].iter().sum::<usize>() * lengths[j - 1];
        let mut best: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new())];
        best.extend((1..=lengths.len()).map(|j| (one(0, j), vec![lengths[j - 1]])));
        for _ in 1..count {
            let with_one_more = |j: usize| {
                let ways = (1..j).map(|i| (best[i].0 + one(i, j), i)).min();
                match ways.filter(|(cost, _)| *cost < best[j].0) {
                    Some((cost, i)) => (cost, [best[i].1.as_slice(), &[lengths[j - 1]]].concat()),
                    None => best[j].clone(),
                }
            };
            best = (0..best.len()).map(with_one_more).collect();
        }
        best.pop().map(|(_, buckets)| buckets).unwrap_or_default()
    }

    /// The samples of `order` batch by batch, each of `size` texts that are padded to the same one of `buckets`, with that length.
    /// What does not fill a batch goes with longer ones; a last, short batch is of the last samples of `order`.
    pub(super) fn batches(&self, order: &[usize], buckets: &[usize], size: usize) -> Vec<(usize, Vec<usize>)> {
        let (whole, short) = order.split_at(order.len() / size * size);
        let mut batches = Vec::new();
        let mut waiting: Vec<usize> = Vec::new();
        let mut shorter = 0;
        for length in buckets {
            let fits = |i: &usize| (shorter + 1..=*length).contains(&self.tokens[*i].max(1));
            waiting.extend(whole.iter().copied().filter(fits));
            let rest = waiting.split_off(waiting.len() / size * size);
            batches.extend(waiting.chunks(size).map(|batch| (*length, batch.to_vec())));
            waiting = rest;
            shorter = *length;
        }
        if !short.is_empty() {
            batches.push((self.longest, short.to_vec()));
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(tokens: &[usize], longest: usize) -> Lengths {
        Lengths { tokens: tokens.to_vec(), longest, left: false }
    }

    #[test]
    fn buckets_pad_as_little_as_possible() {
        let texts = lengths(&[2, 2, 2, 3, 3, 9, 9, 9, 10, 30], 32);
        assert_eq!(texts.buckets(1), [32]);
        assert_eq!(texts.buckets(2), [10, 32]);
        assert_eq!(texts.buckets(3), [3, 10, 32]);
        let padding = |buckets: &[usize]| -> usize {
            texts.tokens.iter().map(|n| buckets.iter().find(|b| *b >= n).expect("the longest is there")).sum()
        };
        let pairs = (1..32).map(|b| padding(&[b, 32])).min();
        assert_eq!(Some(padding(&texts.buckets(2))), pairs);
        assert_eq!(lengths(&[4, 4], 4).buckets(4), [4]);
        assert_eq!(lengths(&[], 8).buckets(4), [8]);
    }

    #[test]
    fn batches_hold_every_sample_once_and_have_room_for_it() {
        let tokens: Vec<usize> = (0..50).map(|i| i * 7 % 23).collect();
        let texts = lengths(&tokens, 24);
        let order: Vec<usize> = (0..50).map(|i| i * 3 % 50).collect();
        let batches = texts.batches(&order, &[5, 12, 24], 8);
        let mut seen: Vec<usize> = batches.iter().flat_map(|(_, samples)| samples.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
        assert!(batches.iter().all(|(length, samples)| samples.iter().all(|i| tokens[*i] <= *length)));
        assert_eq!(batches.last(), Some(&(24, order[48..].to_vec())));
        assert_eq!(batches.iter().map(|(_, s)| s.len()).collect::<Vec<_>>(), [8, 8, 8, 8, 8, 8, 2]);
        assert!(batches.iter().any(|(length, _)| *length == 5));
    }
}
