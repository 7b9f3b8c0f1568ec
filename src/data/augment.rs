//! Random changes to training images.

use crate::error::{Error, Result};
use rand::RngExt;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// What is done to a training image, anew in every epoch.
///
/// In the order of the usual CIFAR recipe: crop and flip on the pixels, so that the border is black, then normalization,
/// then Cutout, which sets its square to 0 (the mean color, or black without normalization).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Augment {
    /// Nothing.
    #[default]
    None,
    /// A random crop of the image's size after zero padding by height/8 on each side (rounded; 4 at 32 × 32), and a
    /// horizontal flip with probability 1/2.
    CropFlip,
    /// The same, and with probability 1/2 a square of half the height (16 at 32 × 32) is cut out. Its corner is uniform
    /// over −size/2 to side − size/2, so it may reach over the edge.
    CropFlipCutout,
}

const NAMES: [(Augment, &str); 3] =
    [(Augment::None, "none"), (Augment::CropFlip, "crop-flip"), (Augment::CropFlipCutout, "crop-flip-cutout")];

impl FromStr for Augment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = NAMES.iter().find(|(_, name)| *name == text).map(|(augment, _)| *augment);
        found.ok_or_else(|| {
            Error::new(format!("unknown augmentation `{text}`")).hint("none, crop-flip or crop-flip-cutout")
        })
    }
}

impl fmt::Display for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(augment, _)| augment == self).map_or("", |(_, name)| name))
    }
}

/// Where a crop starts relative to the image, and whether it is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crop {
    /// First row, −padding to padding.
    pub(super) top: isize,
    /// First column, −padding to padding.
    pub(super) left: isize,
    /// Whether columns are reversed.
    pub(super) flip: bool,
}

impl Augment {
    /// Draws a crop for an image of this height.
    pub(super) fn draw_crop(self, height: usize, rng: &mut impl rand::Rng) -> Option<Crop> {
        if self == Self::None {
            return None;
        }
        let padding = ((height + 4) / 8) as i64;
        let mut offset = || rng.random_range(-padding..=padding) as isize;
        let (top, left) = (offset(), offset());
        Some(Crop { top, left, flip: rng.random_bool(0.5) })
    }

    /// Draws the rows and columns to cut out of an image of this size.
    pub(super) fn draw_cutout(
        self,
        height: usize,
        width: usize,
        rng: &mut impl rand::Rng,
    ) -> Option<(Range<usize>, Range<usize>)> {
        if self != Self::CropFlipCutout || height == 0 || width == 0 || !rng.random_bool(0.5) {
            return None;
        }
        let size = (height / 2) as i64;
        let mut range = |side: usize| {
            let from = rng.random_range(-(size / 2)..side as i64 - size / 2);
            let end = (from + size).clamp(0, side as i64);
            from.clamp(0, end) as usize..end as usize
        };
        Some((range(height), range(width)))
    }
}

impl Crop {
    /// Writes the crop of `from` to `to`, both [height, width, channels]; black where it lies outside.
    pub(super) fn apply(self, from: &[u8], to: &mut [u8], width: usize, channels: usize) {
        let row_len = width * channels;
        let source = |at: isize, offset: isize, end: usize| usize::try_from(at + offset).ok().filter(|i| *i < end);
        let height = from.len() / row_len.max(1);
        for (y, row) in to.chunks_exact_mut(row_len.max(1)).enumerate() {
            let Some(source_y) = source(y as isize, self.top, height) else {
                row.fill(0);
                continue;
            };
            let line = &from[source_y * row_len..][..row_len];
            for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
                let x = if self.flip { width - 1 - x } else { x };
                match source(x as isize, self.left, width) {
                    Some(x) => pixel.copy_from_slice(&line[x * channels..][..channels]),
                    None => pixel.fill(0),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rng::{Use, stream};
    use super::*;

    #[test]
    fn names_round_trip() {
        for (augment, name) in NAMES {
            assert_eq!((name.parse::<Augment>().unwrap(), augment.to_string().as_str()), (augment, name));
        }
        assert!("mixup".parse::<Augment>().is_err());
    }

    #[test]
    fn crops_move_flip_and_pad_with_black() {
        let image = [1, 10, 2, 20, 3, 30, 4, 40];
        let crop = |top, left, flip| {
            let mut out = [99; 8];
            Crop { top, left, flip }.apply(&image, &mut out, 2, 2);
            out
        };
        assert_eq!(crop(0, 0, false), image);
        assert_eq!(crop(0, 0, true), [2, 20, 1, 10, 4, 40, 3, 30]);
        assert_eq!(crop(1, 0, false), [3, 30, 4, 40, 0, 0, 0, 0]);
        assert_eq!(crop(-1, 1, false), [0, 0, 0, 0, 2, 20, 0, 0]);
        assert_eq!(crop(0, -1, true), [1, 10, 0, 0, 3, 30, 0, 0], "cropped, then mirrored");
    }

    #[test]
    fn draws_stay_in_range_and_reach_its_ends() {
        let mut rng = stream(0, Use::Augment, 0, 0);
        let crops: Vec<Crop> = (0..2000).filter_map(|_| Augment::CropFlip.draw_crop(32, &mut rng)).collect();
        for offsets in [crops.iter().map(|c| c.top).collect::<Vec<_>>(), crops.iter().map(|c| c.left).collect()] {
            assert_eq!((offsets.iter().min(), offsets.iter().max()), (Some(&-4), Some(&4)));
        }
        assert!((900..1100).contains(&crops.iter().filter(|c| c.flip).count()));
        let largest = (0..500).filter_map(|_| Augment::CropFlip.draw_crop(28, &mut rng)).map(|c| c.top).max();
        assert_eq!(largest, Some(4));

        let cuts: Vec<_> = (0..2000).filter_map(|_| Augment::CropFlipCutout.draw_cutout(32, 32, &mut rng)).collect();
        assert!((900..1100).contains(&cuts.len()));
        assert!(cuts.iter().all(|(y, x)| y.end <= 32 && x.end <= 32 && (8..=16).contains(&y.len()) && x.len() <= 16));
        assert_eq!((cuts.iter().map(|c| c.0.start).max(), cuts.iter().map(|c| c.0.end).min()), (Some(23), Some(8)));
        assert!((0..100).all(|_| Augment::CropFlip.draw_cutout(32, 32, &mut rng).is_none()));
        assert_eq!(Augment::None.draw_crop(32, &mut rng), None);
        for side in 1..5 {
            let cuts = (0..20).filter_map(|_| Augment::CropFlipCutout.draw_cutout(side, 1, &mut rng));
            assert!(cuts.into_iter().all(|(y, x)| y.end <= side && x.end <= 1));
        }
    }
}
