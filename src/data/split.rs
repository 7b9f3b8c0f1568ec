//! A validation split where the files have none, and label noise.

use super::rng::{Use, permutation, stream};
use super::{Dataset, Splits};
use crate::error::{Error, Result};
use rand::RngExt;

impl Splits {
    /// Moves a uniformly random `fraction` (rounded to whole samples) of the training samples into a validation set,
    /// unless there is one; returns how many moved. Both parts keep the order of the file.
    ///
    /// # Errors
    /// When `fraction` is not in `0..1`, or either part would be left empty.
    pub fn split_validation(&mut self, fraction: f64, seed: u64) -> Result<usize> {
        check_fraction("validation fraction", fraction)?;
        if self.valid.is_some() || fraction == 0.0 {
            return Ok(0);
        }
        let total = self.train.len();
        let count = share(fraction, total);
        if count == 0 || count == total {
            let cause = format!("a validation fraction of {fraction} leaves {count} of {total} samples for validation");
            return Err(Error::new(cause).hint("choose another fraction, or 0 for no validation set"));
        }
        let mut order = permutation(total, stream(seed, Use::Split, 0, 0));
        let (valid, train) = order.split_at_mut(count);
        valid.sort_unstable();
        train.sort_unstable();
        self.valid = Some(self.train.select(valid)?);
        self.train = self.train.select(train)?;
        Ok(count)
    }
}

impl Dataset {
    /// A uniformly random choice of `n` samples, in the order of the file.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn sample(&self, n: usize, seed: u64) -> Result<Self> {
        let total = self.len();
        if n > total {
            return Err(Error::new(format!("{n} training samples are asked for, but there are {total}")));
        }
        let mut chosen = permutation(total, stream(seed, Use::Sample, 0, 0));
        chosen.truncate(n);
        chosen.sort_unstable();
        self.select(&chosen)
    }

    /// Symmetric label noise, for training labels only: `fraction` of the samples (rounded, chosen without replacement)
    /// get a class drawn uniformly from all `classes`. As usual the true class may be drawn again, so about
    /// fraction · (1 − 1/classes) of the labels end up wrong. Returns how many did.
    ///
    /// # Errors
    /// When `fraction` is not in `0..=1` or there are no classes.
    pub fn add_label_noise(&mut self, fraction: f64, classes: usize, seed: u64) -> Result<usize> {
        if fraction != 1.0 {
            check_fraction("label noise", fraction)?;
        }
        if classes == 0 {
            crate::bail!("label noise needs at least one class");
        }
        let chosen = permutation(self.len(), stream(seed, Use::LabelNoise, 0, 0));
        let mut rng = stream(seed, Use::LabelNoise, 1, 0);
        let mut changed = 0;
        for i in chosen.into_iter().take(share(fraction, self.len())) {
            let class = rng.random_range(0..classes as u64) as i64;
            changed += usize::from(self.labels[i] != class);
            self.labels[i] = class;
        }
        Ok(changed)
    }
}

fn check_fraction(what: &str, fraction: f64) -> Result<()> {
    if (0.0..1.0).contains(&fraction) {
        return Ok(());
    }
    Err(Error::new(format!("{what} {fraction} is not between 0 and 1")).hint("a tenth is 0.1"))
}

fn share(fraction: f64, total: usize) -> usize {
    ((fraction * total as f64).round() as usize).min(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Images, Samples};

    fn dataset(n: usize) -> Dataset {
        let images = Images::new((0..n).map(|i| i as u8).collect(), 1, 1, 1);
        Dataset::new(Samples::Images(images), (0..n as i64).collect())
    }

    fn splits(n: usize) -> Splits {
        Splits { train: dataset(n), valid: None, test: None, classes: Vec::new(), named: false, notes: Vec::new() }
    }

    #[test]
    fn the_split_moves_samples_and_loses_none() {
        let mut a = splits(100);
        assert_eq!(a.split_validation(0.29, 7).unwrap(), 29);
        let valid = a.valid.clone().unwrap();
        let mut all = [a.train.labels.clone(), valid.labels.clone()].concat();
        assert!(a.train.labels.is_sorted() && valid.labels.is_sorted());
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        let Samples::Images(images) = &valid.samples else { panic!() };
        let pixels: Vec<u8> = valid.labels.iter().map(|l| *l as u8).collect();
        assert_eq!(*images, Images::new(pixels, 1, 1, 1));

        let mut b = splits(100);
        b.split_validation(0.29, 7).unwrap();
        assert_eq!(a, b);
        b = splits(100);
        b.split_validation(0.29, 8).unwrap();
        assert_ne!(a, b);
        assert_eq!(a.split_validation(0.5, 7).unwrap(), 0, "there is a validation set already");
    }

    #[test]
    fn a_sample_has_no_sample_twice() {
        let all = dataset(100);
        let some = all.sample(30, 1).unwrap();
        assert_eq!(some.len(), 30);
        assert!(some.labels.windows(2).all(|l| l[0] < l[1]));
        assert_ne!(some, all.sample(30, 2).unwrap());
        assert_eq!(all.sample(100, 1).unwrap(), all);
        assert!(all.sample(101, 1).unwrap_err().to_string().contains("there are 100"));
    }

    #[test]
    fn fractions_out_of_range_are_refused() {
        for fraction in [-0.1, 1.0, f64::NAN, 0.001, 0.999] {
            assert!(splits(100).split_validation(fraction, 0).is_err(), "{fraction}");
        }
        assert_eq!(splits(100).split_validation(0.0, 0).unwrap(), 0);
        assert!(dataset(10).add_label_noise(1.1, 10, 0).is_err());
    }

    #[test]
    fn label_noise_changes_the_stated_share() {
        let clean = Dataset { labels: vec![3; 10_000], ..dataset(1) };
        let mut noisy = clean.clone();
        let changed = noisy.add_label_noise(0.4, 10, 1).unwrap();
        assert_eq!(noisy.labels.iter().filter(|l| **l != 3).count(), changed);
        assert!((3500..3700).contains(&changed), "{changed} of 10,000, expected 0.4 · 0.9");
        assert!((0..10).all(|c| noisy.labels.contains(&c)) && noisy.check_labels(10).is_ok());
        let mut same = clean.clone();
        same.add_label_noise(0.4, 10, 1).unwrap();
        assert_eq!(same, noisy);
        assert_eq!(noisy.clone().add_label_noise(0.0, 10, 1).unwrap(), 0);
    }
}
