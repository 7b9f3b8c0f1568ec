//! Image files, decoded to pixels of one size.

use crate::error::{Error, IoContext, Result};
use image::imageops::{self, FilterType};
use image::{ImageDecoder, ImageReader};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

/// Image files of which every one becomes [height, width, channels].
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ImageFiles {
    pub(super) paths: Vec<PathBuf>,
    /// The file whose size the others must have; `None` when they are resized.
    pub(super) like: Option<PathBuf>,
}

/// What a file's header says: height and width, and whether there is color.
pub(super) fn header(path: &Path) -> Result<((usize, usize), bool)> {
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).file(path)?;
    let decoder = reader.into_decoder().map_err(|e| damaged(path, &e))?;
    let (width, height) = decoder.dimensions();
    Ok(((height as usize, width as usize), decoder.color_type().has_color()))
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Error {
    let hint = "the file is damaged or not an image: replace it or take it out";
    Error::new(format!("cannot be decoded: {why}")).in_file(path).hint(hint)
}

impl ImageFiles {
    /// Decodes the files at `samples` into `out`, [samples, height, width, channels], on all cores.
    ///
    /// # Errors
    /// The first file that cannot be read, or has another size than it must have; not enough memory.
    pub(super) fn decode(&self, samples: &[usize], shape: [usize; 3], out: &mut Vec<u8>) -> Result<()> {
        let [height, width, channels] = shape;
        let sample = height * width * channels;
        let bytes = samples.len() * sample;
        out.clear();
        if sample == 0 || out.try_reserve_exact(bytes).is_err() {
            let cause = format!("{} images of {height} × {width} need {bytes} bytes of memory", samples.len());
            return Err(Error::new(cause).hint("train on fewer or smaller images"));
        }
        out.resize(bytes, 0);
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let share = samples.len().div_ceil(threads).max(1);
        let decode_share = |samples: &[usize], out: &mut [u8]| -> Result<()> {
            let mut parts = samples.iter().zip(out.chunks_exact_mut(sample));
            parts.try_for_each(|(i, out)| self.decode_one(&self.paths[*i], shape, out))
        };
        let results: Vec<_> = thread::scope(|scope| {
            let shares = samples.chunks(share).zip(out.chunks_mut(share * sample));
            let workers: Vec<_> = shares.map(|(s, out)| scope.spawn(move || decode_share(s, out))).collect();
            workers.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        for result in results {
            result.map_err(|_| Error::new("a thread that decodes images has died"))??;
        }
        Ok(())
    }

    /// Decodes one file into `out`. A single channel is the first of three that are equal.
    fn decode_one(&self, path: &Path, [height, width, channels]: [usize; 3], out: &mut [u8]) -> Result<()> {
        let bytes = fs::read(path).file(path)?;
        if jpeg_is_cut(&bytes) {
            return Err(damaged(path, &"the JPEG data ends early"));
        }
        let mut image = image::load_from_memory(&bytes).map_err(|e| damaged(path, &e))?.into_rgb8();
        if (image.height() as usize, image.width() as usize) != (height, width) {
            if let Some(like) = &self.like {
                let cause = format!(
                    "this image is {} × {} (height × width), but {} is {height} × {width}",
                    image.height(),
                    image.width(),
                    like.display()
                );
                let hint = "the model does not fix the image size: export it with a fixed height and width, or resize \
                            the images";
                return Err(Error::new(cause).in_file(path).hint(hint));
            }
            image = imageops::resize(&image, width as u32, height as u32, FilterType::Triangle);
        }
        for (to, from) in out.chunks_exact_mut(channels).zip(image.as_raw().chunks_exact(3)) {
            to.copy_from_slice(&from[..channels]);
        }
        Ok(())
    }
}

/// Whether the data of a JPEG's last scan has no end marker; the decoder would fill the missing part with gray.
fn jpeg_is_cut(bytes: &[u8]) -> bool {
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|w| w == marker);
    bytes.starts_with(&[0xff, 0xd8]) && last([0xff, 0xd9]) < last([0xff, 0xda])
}
