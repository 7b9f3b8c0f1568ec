//! Folders of images: `train/<class>/*`, `valid/<class>/*`, `test/<class>/*`, or one folder of classes.

use super::{Dataset, Images, Samples, Splits};
use crate::error::{Error, IoContext, Result};
use image::imageops::{self, FilterType};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

const LAYOUT: &str = "expected train/<class>/*.jpg with test/<class>/*.jpg and valid/<class>/*.jpg beside it where there \
                      are such sets, or <class>/*.jpg alone; JPEG and PNG files are read";

/// Image files with their class.
type Files = Vec<(PathBuf, i64)>;

/// Reads the folder; classes and files are sorted by name, and folders within a class are searched too.
///
/// Every image is resized to `size` (height, width; its aspect ratio is not kept) by a triangle filter as wide as the
/// shrinking needs, Pillow's `BILINEAR`. Without `size` they must be of one size. When all images are grayscale there is
/// one channel, otherwise three; transparency is dropped.
pub(super) fn open(dir: &Path, size: Option<(usize, usize)>) -> Result<Splits> {
    let part = |names: &[&str]| names.iter().map(|n| dir.join(n)).find(|d| d.is_dir());
    let (valid, test) = (part(&["valid", "val", "validation"]), part(&["test"]));
    let root = match part(&["train"]) {
        Some(train) => train,
        None if valid.is_none() && test.is_none() => dir.to_path_buf(),
        None => return Err(Error::new("there is no train folder").in_file(dir).hint(LAYOUT)),
    };

    let classes = class_names(&root)?;
    let train = list(&root, &classes)?;
    for (name, class) in classes.iter().zip(0..) {
        if !train.iter().any(|(_, c)| *c == class) {
            return Err(Error::new("this class has no images").in_file(root.join(name)).hint(LAYOUT));
        }
    }
    let valid = valid.map(|d| list(&d, &classes)).transpose()?;
    let test = test.map(|d| list(&d, &classes)).transpose()?;

    let target = match size {
        Some(size) => Target { size, like: None },
        None => Target { size: dimensions(&train[0].0)?, like: Some(train[0].0.clone()) },
    };
    let decode = |files: Files| decode_all(&files, &target);
    let (mut train, mut gray) = decode(train)?;
    let mut others = [valid.map(decode).transpose()?, test.map(decode).transpose()?];
    gray &= others.iter().flatten().all(|(_, gray)| *gray);
    if gray {
        keep_one_channel(&mut train);
        others.iter_mut().flatten().for_each(|(set, _)| keep_one_channel(set));
    }
    let [valid, test] = others.map(|part| part.map(|(set, _)| set));
    Ok(Splits { train, valid, test, classes, notes: Vec::new() })
}

/// What every image becomes.
struct Target {
    /// Height and width.
    size: (usize, usize),
    /// The image whose size the others must have; `None` when they are resized.
    like: Option<PathBuf>,
}

/// Entries of a folder, sorted, hidden ones aside.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).file(dir)? {
        let entry = entry.file(dir)?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn class_names(root: &Path) -> Result<Vec<String>> {
    let folders = entries(root)?.into_iter().filter(|p| p.is_dir());
    let names: Vec<String> = folders.filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect();
    if names.is_empty() {
        return Err(Error::new("no class folders here").in_file(root).hint(LAYOUT));
    }
    Ok(names)
}

/// The images of every class of one part.
fn list(root: &Path, classes: &[String]) -> Result<Files> {
    let mut files = Files::new();
    for name in class_names(root)? {
        let dir = root.join(&name);
        let Some(class) = classes.iter().position(|c| *c == name) else {
            return Err(Error::new(format!("class `{name}` is not among the training classes")).in_file(dir));
        };
        search(&dir, class as i64, &mut files)?;
    }
    if files.is_empty() {
        return Err(Error::new("no images here").in_file(root).hint(LAYOUT));
    }
    Ok(files)
}

/// Adds the images under `dir`. Other files are passed over, but not images that cannot be read.
fn search(dir: &Path, class: i64, files: &mut Files) -> Result<()> {
    for path in entries(dir)? {
        if path.is_dir() {
            search(&path, class, files)?;
            continue;
        }
        match path.extension().unwrap_or_default().to_string_lossy().to_lowercase().as_str() {
            "jpg" | "jpeg" | "png" => files.push((path, class)),
            other @ ("bmp" | "gif" | "tif" | "tiff" | "webp" | "ppm" | "pgm" | "jp2" | "avif") => {
                let cause = format!("{other} images are not supported");
                return Err(Error::new(cause).in_file(path).hint("convert it to JPEG or PNG"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Height and width, from the file's header.
fn dimensions(path: &Path) -> Result<(usize, usize)> {
    let reader = image::ImageReader::open(path).and_then(image::ImageReader::with_guessed_format).file(path)?;
    let (width, height) = reader.into_dimensions().map_err(|e| damaged(path, &e))?;
    Ok((height as usize, width as usize))
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Error {
    let hint = "the file is damaged or not an image: replace it or take it out";
    Error::new(format!("cannot be decoded: {why}")).in_file(path).hint(hint)
}

/// Decodes on all cores; also says whether every image is grayscale. Pixels are RGB either way.
fn decode_all(files: &Files, target: &Target) -> Result<(Dataset, bool)> {
    let (height, width) = target.size;
    let sample = height * width * 3;
    let bytes = files.len() * sample;
    let mut pixels = Vec::new();
    if sample == 0 || pixels.try_reserve_exact(bytes).is_err() {
        let cause = format!("{} images of {height} × {width} need {bytes} bytes of memory", files.len());
        return Err(Error::new(cause).hint("train on fewer or smaller images"));
    }
    pixels.resize(bytes, 0);

    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = files.len().div_ceil(threads).max(1);
    let decode_share = |files: &[(PathBuf, i64)], pixels: &mut [u8]| -> Result<bool> {
        let mut gray = true;
        for ((path, _), out) in files.iter().zip(pixels.chunks_exact_mut(sample)) {
            gray &= decode(path, target, out)?;
        }
        Ok(gray)
    };
    let results: Vec<_> = thread::scope(|scope| {
        let shares = files.chunks(share).zip(pixels.chunks_mut(share * sample));
        let workers: Vec<_> = shares.map(|(files, pixels)| scope.spawn(move || decode_share(files, pixels))).collect();
        workers.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    let mut gray = true;
    for result in results {
        gray &= result.map_err(|_| Error::new("a thread that decodes images has died"))??;
    }
    let images = Images { pixels, height, width, channels: 3 };
    Ok((Dataset { samples: Samples::Images(images), labels: files.iter().map(|(_, c)| *c).collect() }, gray))
}

/// Decodes one file into `out`, [height, width, 3]; says whether it is grayscale.
fn decode(path: &Path, target: &Target, out: &mut [u8]) -> Result<bool> {
    let bytes = fs::read(path).file(path)?;
    if jpeg_is_cut(&bytes) {
        return Err(damaged(path, &"the JPEG data ends early"));
    }
    let image = image::load_from_memory(&bytes).map_err(|e| damaged(path, &e))?;
    let gray = !image.color().has_color();
    let mut image = image.into_rgb8();
    let (height, width) = target.size;
    if (image.height() as usize, image.width() as usize) != target.size {
        if let Some(like) = &target.like {
            let cause = format!(
                "this image is {} × {} (height × width), but {} is {height} × {width}",
                image.height(),
                image.width(),
                like.display()
            );
            let hint =
                "the model does not fix the image size: export it with a fixed height and width, or resize the images";
            return Err(Error::new(cause).in_file(path).hint(hint));
        }
        image = imageops::resize(&image, width as u32, height as u32, FilterType::Triangle);
    }
    out.copy_from_slice(image.as_raw());
    Ok(gray)
}

/// Whether the data of a JPEG's last scan has no end marker; the decoder would fill the missing part with gray.
fn jpeg_is_cut(bytes: &[u8]) -> bool {
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|w| w == marker);
    bytes.starts_with(&[0xff, 0xd8]) && last([0xff, 0xd9]) < last([0xff, 0xda])
}

/// Of red, green and blue that are equal, the first.
fn keep_one_channel(set: &mut Dataset) {
    if let Samples::Images(images) = &mut set.samples {
        images.pixels = images.pixels.iter().copied().step_by(3).collect();
        images.channels = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};

    fn rgb(path: PathBuf, width: u32, height: u32, color: [u8; 3]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(width, height, Rgb(color)).save(path).unwrap();
    }

    fn images(set: &Dataset) -> &Images {
        let Samples::Images(images) = &set.samples else { panic!() };
        images
    }

    #[test]
    fn splits_and_classes_come_from_sorted_folders() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        rgb(at("train/dog/b.png"), 2, 3, [1, 2, 3]);
        rgb(at("train/dog/deep/a.PNG"), 2, 3, [7, 8, 9]);
        rgb(at("train/cat/a.jpg"), 2, 3, [128; 3]);
        rgb(at("val/dog/a.png"), 2, 3, [4, 5, 6]);
        fs::write(at("train/cat/notes.txt"), "x").unwrap();
        fs::write(at("train/.hidden"), "x").unwrap();
        let splits = open(dir.path(), None).unwrap();
        assert_eq!(splits.classes, ["cat", "dog"]);
        assert_eq!(splits.train.labels, [0, 1, 1]);
        assert_eq!(splits.valid.as_ref().unwrap().labels, [1]);
        assert!(splits.test.is_none());
        let train = images(&splits.train);
        assert_eq!((train.height, train.width, train.channels), (3, 2, 3));
        assert_eq!(train.sample(1)[..3], [1, 2, 3]);
        assert_eq!(train.sample(2)[..3], [7, 8, 9]);

        rgb(at("test/bird/a.png"), 2, 3, [0; 3]);
        assert!(open(dir.path(), None).unwrap_err().to_string().contains("class `bird`"));
    }

    #[test]
    fn sizes_that_differ_need_a_target() {
        let dir = tempfile::tempdir().unwrap();
        rgb(dir.path().join("a/1.png"), 4, 4, [10, 20, 30]);
        rgb(dir.path().join("b/2.png"), 8, 2, [40, 50, 60]);
        let e = open(dir.path(), None).unwrap_err();
        assert!(e.to_string().contains("2.png: this image is 2 × 8") && e.hint_text().is_some(), "{e}");
        let splits = open(dir.path(), Some((3, 5))).unwrap();
        assert_eq!(images(&splits.train).sample(1), [40, 50, 60].repeat(15));
    }

    #[test]
    fn only_gray_images_give_one_channel() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        GrayImage::from_pixel(2, 2, Luma([9])).save(dir.path().join("a/1.png")).unwrap();
        let splits = open(dir.path(), None).unwrap();
        assert_eq!(images(&splits.train).pixels, [9; 4]);
        rgb(dir.path().join("a/2.png"), 2, 2, [1, 2, 3]);
        let splits = open(dir.path(), None).unwrap();
        assert_eq!((images(&splits.train).channels, images(&splits.train).sample(0)), (3, &[9; 12][..]));
    }

    #[test]
    fn damaged_images_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/bad.jpg");
        fs::create_dir(dir.path().join("a")).unwrap();
        let mut noise = RgbImage::new(64, 64);
        noise.enumerate_pixels_mut().for_each(|(x, y, p)| *p = Rgb([(x * y) as u8, (x * 37) as u8, (y * 91) as u8]));
        noise.save(&file).unwrap();
        assert!(open(dir.path(), None).is_ok());
        let whole = fs::read(&file).unwrap();
        for bad in [
            whole[..whole.len() / 2].to_vec(),
            whole[..whole.len() - 2].to_vec(),
            whole[..100].to_vec(),
            b"hello".to_vec(),
            vec![],
        ] {
            fs::write(&file, bad).unwrap();
            let e = open(dir.path(), Some((64, 64))).unwrap_err();
            assert!(e.to_string().contains("bad.jpg: cannot be decoded"), "{e}");
        }
        fs::rename(&file, dir.path().join("a/bad.webp")).unwrap();
        assert!(open(dir.path(), None).unwrap_err().to_string().contains("webp images are not supported"));
    }

    #[test]
    fn empty_folders_say_what_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let fails = |cause: &str| {
            let e = open(dir.path(), None).unwrap_err();
            assert!(e.to_string().contains(cause) && e.hint_text().is_some_and(|h| h.contains("train/<class>")), "{e}");
        };
        fails("no class folders");
        fs::create_dir(dir.path().join("a")).unwrap();
        fails("no images");
        rgb(dir.path().join("b/1.png"), 1, 1, [0; 3]);
        fails("a: this class has no images");
        fs::create_dir(dir.path().join("test")).unwrap();
        fails("no train folder");
        assert!(open(&dir.path().join("nowhere"), None).unwrap_err().to_string().contains("nowhere"));
    }
}
