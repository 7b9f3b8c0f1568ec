//! Folders of images: `train/<class>/*`, `valid/<class>/*`, `test/<class>/*`, or one folder of classes.

use super::decode::{ImageFiles, header};
use super::{Dataset, Images, Samples, Splits};
use crate::error::{Error, IoContext, Result};
use std::fs;
use std::path::{Path, PathBuf};

const LAYOUT: &str = "expected train/<class>/*.jpg with test/<class>/*.jpg and valid/<class>/*.jpg beside it where there \
                      are such sets, or <class>/*.jpg alone; JPEG and PNG files are read";

/// Image files with their class.
type Files = Vec<(PathBuf, i64)>;

/// Reads the folder; classes and files are sorted by name, and folders within a class are searched too.
///
/// Every image is resized to `size` (height, width; its aspect ratio is not kept) by a triangle filter as wide as the
/// shrinking needs, Pillow's `BILINEAR`. Without `size` they must be of one size. When all images are grayscale there is
/// one channel, otherwise three; transparency is dropped. Images that together need more than `memory` bytes stay in their files.
pub(super) fn open(dir: &Path, size: Option<(usize, usize)>, memory: usize) -> Result<Splits> {
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

    let (size, like) = match size {
        Some(size) => (size, None),
        None => (header(&train[0].0)?.0, Some(train[0].0.clone())),
    };
    let parts = || [Some(&train), valid.as_ref(), test.as_ref()].into_iter().flatten();
    let channels = if has_color(parts().flatten())? { 3 } else { 1 };
    let count: usize = parts().map(Vec::len).sum();
    let bytes = count.saturating_mul(size.0 * size.1 * channels);
    let mut notes = Vec::new();
    if bytes > memory {
        let gigabytes = bytes as f64 / f64::from(1 << 30);
        notes.push(format!(
            "{count} images would take {gigabytes:.1} GiB of memory: they are decoded anew whenever they are needed"
        ));
    }
    let set = |files: Files| -> Result<Dataset> {
        let (paths, labels) = files.into_iter().unzip();
        let images = Images::of_files(ImageFiles { paths, like: like.clone() }, size.0, size.1, channels);
        let images = if bytes > memory { images } else { images.held()? };
        Ok(Dataset::new(Samples::Images(images), labels))
    };
    let [valid, test] = [valid, test].map(|files| files.map(set).transpose());
    Ok(Splits { train: set(train)?, valid: valid?, test: test?, classes, notes })
}

/// Whether any of the images has color.
fn has_color<'a>(files: impl Iterator<Item = &'a (PathBuf, i64)>) -> Result<bool> {
    for (path, _) in files {
        if header(path)?.1 {
            return Ok(true);
        }
    }
    Ok(false)
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

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};

    const HELD: usize = usize::MAX;

    fn rgb(path: PathBuf, width: u32, height: u32, color: [u8; 3]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(width, height, Rgb(color)).save(path).unwrap();
    }

    fn images(set: &Dataset) -> &Images {
        let Samples::Images(images) = &set.samples else { panic!() };
        images
    }

    fn pixels(set: &Dataset, sample: usize) -> Vec<u8> {
        let mut pixels = Vec::new();
        images(set).read(&[sample], &mut pixels).unwrap();
        pixels
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
        let splits = open(dir.path(), None, HELD).unwrap();
        assert_eq!(splits.classes, ["cat", "dog"]);
        assert_eq!(splits.train.labels, [0, 1, 1]);
        assert_eq!(splits.valid.as_ref().unwrap().labels, [1]);
        assert!(splits.test.is_none());
        let train = images(&splits.train);
        assert_eq!((train.height, train.width, train.channels), (3, 2, 3));
        assert_eq!(pixels(&splits.train, 1)[..3], [1, 2, 3]);
        assert_eq!(pixels(&splits.train, 2)[..3], [7, 8, 9]);

        rgb(at("test/bird/a.png"), 2, 3, [0; 3]);
        assert!(open(dir.path(), None, HELD).unwrap_err().to_string().contains("class `bird`"));
    }

    #[test]
    fn sizes_that_differ_need_a_target() {
        let dir = tempfile::tempdir().unwrap();
        rgb(dir.path().join("a/1.png"), 4, 4, [10, 20, 30]);
        rgb(dir.path().join("b/2.png"), 8, 2, [40, 50, 60]);
        let e = open(dir.path(), None, HELD).unwrap_err();
        assert!(e.to_string().contains("2.png: this image is 2 × 8") && e.hint_text().is_some(), "{e}");
        let splits = open(dir.path(), Some((3, 5)), HELD).unwrap();
        assert_eq!(pixels(&splits.train, 1), [40, 50, 60].repeat(15));
    }

    #[test]
    fn only_gray_images_give_one_channel() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        GrayImage::from_pixel(2, 2, Luma([9])).save(dir.path().join("a/1.png")).unwrap();
        let splits = open(dir.path(), None, HELD).unwrap();
        assert_eq!(pixels(&splits.train, 0), [9; 4]);
        rgb(dir.path().join("a/2.png"), 2, 2, [1, 2, 3]);
        let splits = open(dir.path(), None, HELD).unwrap();
        assert_eq!((images(&splits.train).channels, pixels(&splits.train, 0)), (3, vec![9; 12]));
    }

    #[test]
    fn images_that_do_not_fit_into_memory_stay_in_their_files() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..5 {
            rgb(dir.path().join(format!("train/{}/{i}.png", i % 2)), 4, 4 + i, [i as u8 * 9, 20, 30]);
        }
        let [held, mut streamed] = [5 * 36, 5 * 36 - 1].map(|m| open(dir.path(), Some((4, 3)), m).unwrap());
        assert!(held.notes.is_empty() && streamed.notes[0].starts_with("5 images would take 0.0 GiB"));
        assert_ne!(held.train, streamed.train);
        let all = |set: &Dataset| (0..set.len()).map(|i| pixels(set, i)).collect::<Vec<_>>();
        assert_eq!(all(&held.train), all(&streamed.train));
        let few = [3, 1].as_slice();
        assert_eq!(all(&held.train.select(few).unwrap()), all(&streamed.train.select(few).unwrap()));
        assert_eq!(images(&streamed.train).clone().held().unwrap(), *images(&held.train));
        assert_eq!(streamed.split_validation(0.4, 0).unwrap(), 2);
        fs::write(dir.path().join("train/0/2.png"), "x").unwrap();
        let read = |set: &Dataset| images(set).read(&(0..set.len()).collect::<Vec<_>>(), &mut Vec::new());
        let e = [Some(&streamed.train), streamed.valid.as_ref()].into_iter().flatten().find_map(|set| read(set).err());
        assert!(e.unwrap().to_string().contains("2.png: cannot be decoded"));
    }

    #[test]
    fn damaged_images_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/bad.jpg");
        fs::create_dir(dir.path().join("a")).unwrap();
        let mut noise = RgbImage::new(64, 64);
        noise.enumerate_pixels_mut().for_each(|(x, y, p)| *p = Rgb([(x * y) as u8, (x * 37) as u8, (y * 91) as u8]));
        noise.save(&file).unwrap();
        assert!(open(dir.path(), None, HELD).is_ok());
        let whole = fs::read(&file).unwrap();
        for bad in [
            whole[..whole.len() / 2].to_vec(),
            whole[..whole.len() - 2].to_vec(),
            whole[..100].to_vec(),
            b"hello".to_vec(),
            vec![],
        ] {
            fs::write(&file, bad).unwrap();
            let e = open(dir.path(), Some((64, 64)), HELD).unwrap_err();
            assert!(e.to_string().contains("bad.jpg: cannot be decoded"), "{e}");
        }
        fs::rename(&file, dir.path().join("a/bad.webp")).unwrap();
        assert!(open(dir.path(), None, HELD).unwrap_err().to_string().contains("webp images are not supported"));
    }

    #[test]
    fn empty_folders_say_what_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let fails = |cause: &str| {
            let e = open(dir.path(), None, HELD).unwrap_err();
            assert!(e.to_string().contains(cause) && e.hint_text().is_some_and(|h| h.contains("train/<class>")), "{e}");
        };
        fails("no class folders");
        fs::create_dir(dir.path().join("a")).unwrap();
        fails("no images");
        rgb(dir.path().join("b/1.png"), 1, 1, [0; 3]);
        fails("a: this class has no images");
        fs::create_dir(dir.path().join("test")).unwrap();
        fails("no train folder");
        assert!(open(&dir.path().join("nowhere"), None, HELD).unwrap_err().to_string().contains("nowhere"));
    }
}
