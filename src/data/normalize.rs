//! Pixels `0..=255` to the numbers a model sees.

use super::Images;
use super::fit::luma;
use crate::error::{Error, Result};
use crate::ir::DType;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Images that are read at once for statistics.
const READ: usize = 256;

/// Per channel: x ↦ (x/255 − mean) / std, mean and std on the scale where white is 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Normalization {
    /// Mean of each channel of the model's input, or one for all of them.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, likewise.
    pub std: Vec<f32>,
}

impl Normalization {
    /// Mean and standard deviation (with 1/n) over all pixels of `images` (of 2,000 of them, where they are not in memory), as a
    /// model with `channels` (see [`Fit`](super::Fit)) sees them: gray repeated, or color made gray. A constant channel gets a
    /// deviation of 1.
    ///
    /// # Errors
    /// When a file cannot be decoded.
    pub fn compute(images: &Images, channels: usize) -> Result<Self> {
        let source = images.channels.max(1);
        let to_gray = source == 3 && channels == 1;
        let mut counts = vec![[0u64; 256]; if to_gray { 1 } else { source }];
        let mut pixels = Vec::new();
        for samples in images.representative().chunks(READ) {
            images.read(samples, &mut pixels)?;
            for pixel in pixels.chunks_exact(source) {
                if let (true, [r, g, b]) = (to_gray, pixel) {
                    counts[0][usize::from(luma(*r, *g, *b))] += 1;
                } else {
                    counts.iter_mut().zip(pixel).for_each(|(count, v)| count[usize::from(*v)] += 1);
                }
            }
        }
        let (mean, std): (Vec<f32>, Vec<f32>) = counts.iter().map(moments).unzip();
        let spread = |v: Vec<f32>| (0..channels).map(|c| v[c % v.len()]).collect();
        Ok(Self { mean: spread(mean), std: spread(std) })
    }

    /// Checks that there are numbers for `channels` and that they can be divided by.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self, channels: usize) -> Result<()> {
        let counts = [self.mean.len(), self.std.len()];
        if counts.iter().any(|n| *n != 1 && *n != channels) {
            let cause =
                format!("normalization has {counts:?} means and deviations where the model has {channels} channels");
            return Err(Error::new(cause).hint("give one for each channel, or one for all"));
        }
        if self.mean.iter().any(|m| !m.is_finite()) || self.std.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            crate::bail!("normalization by mean {:?} and deviation {:?} is not possible", self.mean, self.std);
        }
        Ok(())
    }

    fn apply(&self, channel: usize, value: f32) -> f32 {
        let of = |v: &[f32]| v[channel % v.len()];
        (value - of(&self.mean)) / of(&self.std)
    }
}

/// Mean and deviation of the values `0..=255` with these counts, divided by 255.
fn moments(counts: &[u64; 256]) -> (f32, f32) {
    let total = counts.iter().sum::<u64>().max(1) as f64;
    let weighted =
        |f: &dyn Fn(f64) -> f64| counts.iter().enumerate().map(|(v, n)| *n as f64 * f(v as f64 / 255.0)).sum::<f64>();
    let mean = weighted(&|v| v) / total;
    let std = (weighted(&|v| (v - mean).powi(2)) / total).sqrt();
    (mean as f32, if std > 1e-6 { std as f32 } else { 1.0 })
}

/// What each of the 256 pixel values of each channel becomes, [channels, 256]; 16-bit floats as their bits.
#[derive(Debug)]
pub(super) enum Table {
    Bytes(Vec<u8>),
    Halves(Vec<u16>),
    Floats(Vec<f32>),
    Doubles(Vec<f64>),
}

impl Table {
    /// Floats are normalized, or scaled to `0..=1` without a [`Normalization`]; bytes stay what they are.
    ///
    /// # Errors
    /// When a model with inputs of this type cannot take images.
    pub(super) fn new(dtype: DType, channels: usize, normalization: Option<&Normalization>) -> Result<Self> {
        let floats = (0..channels).flat_map(|c| {
            (0..=255u8).map(move |v| {
                let v = f32::from(v) / 255.0;
                normalization.map_or(v, |n| n.apply(c, v))
            })
        });
        match dtype {
            DType::U8 => Ok(Self::Bytes((0..channels).flat_map(|_| 0..=255).collect())),
            DType::F16 => Ok(Self::Halves(floats.map(|v| f16::from_f32(v).to_bits()).collect())),
            DType::BF16 => Ok(Self::Halves(floats.map(|v| bf16::from_f32(v).to_bits()).collect())),
            DType::F32 => Ok(Self::Floats(floats.collect())),
            DType::F64 => Ok(Self::Doubles(floats.map(f64::from).collect())),
            other => Err(Error::new(format!("images cannot be fed to an input of type {other}"))
                .hint("bring the inputs as an .npz file")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_per_channel_in_unit_scale() {
        let images = Images::new(vec![0, 255, 51, 255, 255, 51], 1, 2, 3);
        let n = Normalization::compute(&images, 3).unwrap();
        assert_eq!(n.mean, [0.5, 1.0, 0.2]);
        assert_eq!(n.std, [0.5, 1.0, 1.0]);
        let gray = Normalization::compute(&images, 1).unwrap();
        assert!((gray.mean[0] - (0.1495 + 0.587 + 0.0228)).abs() < 2e-3, "{gray:?}");
        let one = Images::new(vec![0, 255, 51, 255, 255, 51], 1, 6, 1);
        assert_eq!(Normalization::compute(&one, 3).unwrap().mean.len(), 3);
    }

    #[test]
    fn tables_hold_torchvisions_numbers() {
        let n = Normalization { mean: vec![0.5, 0.25], std: vec![0.5, 2.0] };
        let Table::Floats(table) = Table::new(DType::F32, 2, Some(&n)).unwrap() else { panic!() };
        assert_eq!(table[0], -1.0);
        assert_eq!(table[256 + 128], (128.0 / 255.0 - 0.25) / 2.0);
        let Table::Bytes(table) = Table::new(DType::U8, 2, Some(&n)).unwrap() else { panic!() };
        assert_eq!((table[255], table[256], table.len()), (255, 0, 512));
        assert!(Table::new(DType::I64, 1, None).is_err());
    }

    #[test]
    fn impossible_normalizations_are_refused() {
        let n = |mean: &[f32], std: &[f32]| Normalization { mean: mean.to_vec(), std: std.to_vec() };
        assert!(n(&[0.0], &[1.0]).check(3).is_ok());
        assert!(n(&[0.0; 2], &[1.0; 2]).check(3).is_err());
        assert!(n(&[0.0; 3], &[1.0, 0.0, 1.0]).check(3).is_err());
        assert!(n(&[f32::NAN], &[1.0]).check(1).is_err());
    }
}
