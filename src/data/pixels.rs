//! Images of one size, in memory or in their files.

use super::decode::ImageFiles;
use crate::error::Result;

/// Statistics of images that are not held in memory are those of so many.
const STATISTICS: usize = 2000;

/// Images of one size, 8 bits per channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    pixels: Pixels,
    /// Rows of one image.
    pub height: usize,
    /// Columns of one image.
    pub width: usize,
    /// 1 (grayscale) or 3 (red, green, blue).
    pub channels: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Pixels {
    /// `0..=255`, [N, height, width, channels].
    Held(Vec<u8>),
    /// Decoded when they are asked for.
    Files(ImageFiles),
}

impl Images {
    /// Images with these pixels, [N, height, width, channels].
    pub fn new(pixels: Vec<u8>, height: usize, width: usize, channels: usize) -> Self {
        Self { pixels: Pixels::Held(pixels), height, width, channels }
    }

    pub(super) fn of_files(files: ImageFiles, height: usize, width: usize, channels: usize) -> Self {
        Self { pixels: Pixels::Files(files), height, width, channels }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match &self.pixels {
            Pixels::Held(pixels) => pixels.len() / self.sample_len().max(1),
            Pixels::Files(files) => files.paths.len(),
        }
    }

    /// Whether these are `n` images, and nothing is left over.
    pub(super) fn are(&self, n: usize) -> bool {
        match &self.pixels {
            Pixels::Held(pixels) => pixels.len() == n * self.sample_len(),
            Pixels::Files(files) => files.paths.len() == n,
        }
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one image: height × width × channels.
    pub fn sample_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Writes the pixels of the images at `samples` to `out`, [samples, height, width, channels].
    ///
    /// # Errors
    /// When a file cannot be decoded; the error names it.
    pub fn read(&self, samples: &[usize], out: &mut Vec<u8>) -> Result<()> {
        match &self.pixels {
            Pixels::Held(pixels) => {
                let len = self.sample_len();
                out.clear();
                samples.iter().for_each(|i| out.extend_from_slice(&pixels[i * len..][..len]));
                Ok(())
            }
            Pixels::Files(files) => files.decode(samples, [self.height, self.width, self.channels], out),
        }
    }

    /// The same images, in memory.
    pub(super) fn held(self) -> Result<Self> {
        let mut pixels = Vec::new();
        self.read(&(0..self.len()).collect::<Vec<_>>(), &mut pixels)?;
        Ok(Self { pixels: Pixels::Held(pixels), ..self })
    }

    /// The images at `indices`.
    pub(super) fn select(&self, indices: &[usize]) -> Result<Self> {
        let pixels = match &self.pixels {
            Pixels::Held(_) => {
                let mut pixels = Vec::with_capacity(indices.len() * self.sample_len());
                self.read(indices, &mut pixels)?;
                Pixels::Held(pixels)
            }
            Pixels::Files(ImageFiles { paths, like }) => {
                let paths = indices.iter().map(|i| paths[*i].clone()).collect();
                Pixels::Files(ImageFiles { paths, like: like.clone() })
            }
        };
        Ok(Self { pixels, ..*self })
    }

    /// The images that statistics are computed of: all that are in memory, or evenly chosen ones of files.
    pub(super) fn representative(&self) -> Vec<usize> {
        let n = self.len();
        match &self.pixels {
            Pixels::Files(_) if n > STATISTICS => (0..STATISTICS).map(|i| i * n / STATISTICS).collect(),
            _ => (0..n).collect(),
        }
    }
}
