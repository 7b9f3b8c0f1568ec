//! Random numbers as a pure function of what they are for.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// What a stream of random numbers decides; streams of different use are independent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    Order = 1,
    Augment = 2,
    Split = 3,
    LabelNoise = 4,
    Sample = 5,
    Batches = 6,
}

/// The stream for one use, epoch and position (of a sample in the epoch, or 0) under the user's seed.
pub(super) fn stream(seed: u64, purpose: Use, epoch: u64, position: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (part, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, epoch, position]) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A uniformly random order of `0..n`.
pub(super) fn permutation(n: usize, mut rng: ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut rng);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn every_part_of_the_key_changes_the_stream() {
        let first = |mut r: ChaCha8Rng| r.next_u64();
        let base = first(stream(1, Use::Order, 2, 3));
        assert_eq!(base, first(stream(1, Use::Order, 2, 3)));
        assert_ne!(base, first(stream(9, Use::Order, 2, 3)));
        assert_ne!(base, first(stream(1, Use::Augment, 2, 3)));
        assert_ne!(base, first(stream(1, Use::Order, 9, 3)));
        assert_ne!(base, first(stream(1, Use::Order, 2, 9)));
    }

    #[test]
    fn a_permutation_holds_every_index() {
        let mut order = permutation(100, stream(0, Use::Order, 0, 0));
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
