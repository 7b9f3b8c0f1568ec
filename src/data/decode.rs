//! Image files, decoded to pixels of one size.

use super::signature;
use crate::error::{Error, IoContext, Result};
use image::imageops::{self, FilterType};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader};
use std::fs::{self, File};
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;

/// Headers are looked for in so many bytes of a file before all of it is read.
const HEAD: usize = 256 << 10;

/// Bytes at the end of a file in which the end of the image is looked for.
const TAIL: u64 = 64 << 10;

/// The most bytes of one decoded image.
const MAX_BYTES: u64 = 512 << 20;

/// Image files of which every one becomes [height, width, channels].
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ImageFiles {
    pub(super) paths: Vec<PathBuf>,
    /// The file whose size the others must have; `None` when they are resized.
    pub(super) like: Option<PathBuf>,
}

/// What a file says about its image, without the pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Height and width as the image is shown: turned as its EXIF orientation says.
    pub(super) size: (usize, usize),
    /// Whether it is more than shades of gray.
    pub(super) color: bool,
    /// Whether it has transparency.
    pub(super) alpha: bool,
    /// Bytes of the file.
    pub(super) length: u64,
}

/// Reads a file's header, and checks that the file has its end.
///
/// # Errors
/// A file that is no JPEG or PNG or is cut short: says what it is.
pub(super) fn header(path: &Path) -> Result<Header> {
    let mut file = File::open(path).file(path)?;
    let length = file.metadata().file(path)?.len();
    let mut head = Vec::new();
    file.by_ref().take(HEAD as u64).read_to_end(&mut head).file(path)?;
    check_kind(path, &head)?;
    if length <= HEAD as u64 {
        check_end(path, &head)?;
        return read_header(&head, length).map_err(|e| damaged(path, &e));
    }
    file.seek(SeekFrom::End(-(TAIL as i64))).file(path)?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).file(path)?;
    let found = read_header(&head, length).ok().filter(|_| has_end(&head, &tail));
    match found {
        Some(header) => Ok(header),
        None => {
            let whole = fs::read(path).file(path)?;
            check_end(path, &whole)?;
            read_header(&whole, length).map_err(|e| damaged(path, &e))
        }
    }
}

fn read_header(bytes: &[u8], length: u64) -> image::ImageResult<Header> {
    let mut decoder = decoder(bytes)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    let size = if is_turned(decoder.orientation()?) { (width, height) } else { (height, width) };
    let kind = decoder.color_type();
    Ok(Header { size, color: kind.has_color(), alpha: kind.has_alpha(), length })
}

/// Whether rows become columns.
fn is_turned(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

fn decoder(bytes: &[u8]) -> image::ImageResult<impl ImageDecoder + '_> {
    ImageReader::new(Cursor::new(bytes)).with_guessed_format()?.into_decoder()
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Error {
    let hint = "replace the file, take it out, or leave all such files out with --skip-damaged";
    Error::new(format!("cannot be decoded: {why}")).in_file(path).hint(hint)
}

/// Refuses what is neither a JPEG nor a PNG, whatever its name says.
fn check_kind(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        return Err(damaged(path, &"the file is empty"));
    }
    if signature::is_image(bytes) {
        return Ok(());
    }
    let named = path.extension().map_or_else(String::new, |e| e.to_string_lossy().to_lowercase());
    let but = if ["jpg", "jpeg", "png"].contains(&named.as_str()) { ", whatever its name says" } else { "" };
    let hint = "JPEG and PNG files are read: convert it, take it out, or leave all such files out with --skip-damaged";
    let cause = format!("cannot be decoded: it is {}{but}", signature::name(bytes));
    Err(Error::new(cause).in_file(path).hint(hint))
}

/// Refuses a JPEG or PNG that is cut short; the decoder would fill the missing part of a JPEG with gray.
fn check_end(path: &Path, bytes: &[u8]) -> Result<()> {
    if has_end(bytes, bytes) { Ok(()) } else { Err(damaged(path, &"the image data ends early")) }
}

/// Whether the last bytes of a file, `tail`, hold the end of its image: of a JPEG the marker after its last scan, of a PNG its last
/// chunk.
fn has_end(head: &[u8], tail: &[u8]) -> bool {
    let last = |marker: &[u8]| tail.windows(marker.len()).rposition(|w| w == marker);
    if head.starts_with(b"\xff\xd8") {
        return last(b"\xff\xd9").is_some_and(|end| Some(end) > last(b"\xff\xda"));
    }
    last(b"IEND").is_some()
}

/// Does something with every item, on all cores.
///
/// # Errors
/// When a thread dies.
pub(super) fn on_all_cores<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Result<Vec<R>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = items.len().div_ceil(threads).max(1);
    let parts: Vec<_> = thread::scope(|scope| {
        let work = &work;
        let start = |part| scope.spawn(move || <[T]>::iter(part).map(work).collect::<Vec<R>>());
        let workers: Vec<_> = items.chunks(share).map(start).collect();
        workers.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    let mut results = Vec::with_capacity(items.len());
    for part in parts {
        results.extend(part.map_err(|_| Error::new("a thread that reads images has died"))?);
    }
    Ok(results)
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
        let mut image = pixels(path)?.into_rgb8();
        if (image.height() as usize, image.width() as usize) != (height, width) {
            if let Some(like) = &self.like {
                let own = (image.height() as usize, image.width() as usize);
                return Err(other_size(path, own, like, (height, width)));
            }
            image = imageops::resize(&image, width as u32, height as u32, FilterType::Triangle);
        }
        for (to, from) in out.chunks_exact_mut(channels).zip(image.as_raw().chunks_exact(3)) {
            to.copy_from_slice(&from[..channels]);
        }
        Ok(())
    }
}

/// Images of different sizes where the model does not say which one it takes.
pub(super) fn other_size(path: &Path, own: (usize, usize), like: &Path, size: (usize, usize)) -> Error {
    let cause = format!(
        "this image is {} × {} (height × width), but {} is {} × {}",
        own.0,
        own.1,
        like.display(),
        size.0,
        size.1
    );
    let hint = "the model does not fix the image size: export it with a fixed height and width, or resize the images";
    Error::new(cause).in_file(path).hint(hint)
}

/// Decodes a file, and turns the image as its EXIF orientation says.
///
/// # Errors
/// A file that cannot be read or is damaged: says why.
pub(super) fn pixels(path: &Path) -> Result<DynamicImage> {
    let bytes = fs::read(path).file(path)?;
    check_kind(path, &bytes)?;
    check_end(path, &bytes)?;
    let mut decoder = decoder(&bytes).map_err(|e| damaged(path, &e))?;
    let size = decoder.total_bytes();
    if size > MAX_BYTES {
        return Err(damaged(path, &format!("its pixels would take {size} bytes")));
    }
    let orientation = decoder.orientation().map_err(|e| damaged(path, &e))?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| damaged(path, &e))?;
    image.apply_orientation(orientation);
    Ok(image)
}
