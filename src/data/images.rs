//! Folders of images: `train/<class>/*`, `valid/<class>/*`, `test/<class>/*`, or one folder of classes.

use super::classes::{MODEL, TRAINING, numbers_as_text, unknown};
use super::decode::{Header, ImageFiles, header, on_all_cores, other_size, pixels};
use super::folders::{Content, LAYOUT, Part, classes_in, content, find, name};
use super::{Dataset, Images, Opening, Samples, Splits};
use crate::error::{Error, IoContext, Result};
use crate::wording::{count, list};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Damaged files that a note names.
const SHOWN_DAMAGED: usize = 3;

/// Image files with their class.
type Files = Vec<(PathBuf, i64)>;

/// The folders of one part, by class.
struct Classes {
    part: Part,
    root: PathBuf,
    content: Content,
}

/// Reads the folder; classes and files are sorted by name, and folders within a class are searched too.
///
/// Every image is turned as its EXIF orientation says and resized to `size` (height, width; its aspect ratio is not kept) by a triangle
/// filter as wide as the shrinking needs, Pillow's `BILINEAR`. Without `size` they must be of one size. When all images are grayscale
/// there is one channel, otherwise three; transparency is dropped. Images that together need more than `memory` bytes stay in their
/// files.
pub(super) fn open(dir: &Path, size: Option<(usize, usize)>, memory: usize, opening: &Opening<'_>) -> Result<Splits> {
    let mut notes = Vec::new();
    let (parts, own) = parts(dir, opening, &mut notes)?;
    let classes = class_order(&parts, own, opening, &mut notes)?;
    let mut listed = list_files(dir, parts, &classes, opening, &mut notes)?;
    let mut damaged = Vec::new();
    let headers = check(&mut listed, &mut damaged, opening, header)?;
    let (size, like) = one_size(size, &listed, &headers)?;
    let channels = if headers.iter().any(|h| h.color) { 3 } else { 1 };
    notes.extend(seen_twice(dir, &listed, &headers)?);
    let transparent = headers.iter().filter(|h| h.alpha).count();
    if transparent > 0 {
        notes.push(format!("transparency is dropped: {transparent} of {} have it", count(headers.len(), "image")));
    }
    if opening.skip_damaged {
        check(&mut listed, &mut damaged, opening, |path| pixels(path).map(drop))?;
        notes.extend(left_out(dir, &damaged));
        for (part, files) in &listed {
            part.check_files(files, &classes, opening.evaluate)?;
        }
    }
    let all: usize = listed.iter().map(|(_, files)| files.len()).sum();
    let bytes = all.saturating_mul(size.0 * size.1 * channels);
    if bytes > memory {
        let gigabytes = bytes as f64 / f64::from(1 << 30);
        notes.push(format!(
            "{all} images would take {gigabytes:.1} GiB of memory: they are decoded anew whenever they are needed"
        ));
    }
    let set = |files: Files| -> Result<Dataset> {
        let (paths, labels) = files.into_iter().unzip();
        let images = Images::of_files(ImageFiles { paths, like: like.clone() }, size.0, size.1, channels);
        let images = if bytes > memory { images } else { images.held()? };
        Ok(Dataset::new(Samples::Images(images), labels))
    };
    let mut sets = [None, None, None];
    for (part, files) in listed {
        sets[part.part as usize] = Some(set(files)?);
    }
    let [train, valid, test] = sets;
    let train = train.map_or_else(|| set(Files::new()), Ok)?;
    Ok(Splits { train, valid, test, classes, named: true, notes })
}

/// The parts that have class folders, and the names of the classes: those of the training set where there is one.
fn parts(dir: &Path, opening: &Opening<'_>, notes: &mut Vec<String>) -> Result<(Vec<Classes>, Vec<String>)> {
    let folders = find(dir, opening.classes)?;
    notes.extend(folders.notes);
    let (mut parts, mut own): (Vec<Classes>, Vec<String>) = (Vec::new(), Vec::new());
    for (part, folder) in Part::ALL.into_iter().zip(folders.parts) {
        let Some(folder) = folder else { continue };
        let is_class = |name: &str| own.iter().chain(opening.classes).any(|c| c == name);
        let root = if folders.divided { classes_in(&folder, part, is_class)? } else { folder };
        let Some(classes) = Classes::new(part, root, notes)? else { continue };
        if parts.first().is_none_or(|p| p.part != Part::Train) {
            own.extend(classes.names());
        }
        parts.push(classes);
    }
    if parts.is_empty() || !opening.evaluate && parts[0].part != Part::Train {
        return Err(Error::new("there is no train folder").in_file(dir).hint(LAYOUT));
    }
    own.sort();
    own.dedup();
    Ok((parts, own))
}

/// The files of every part; a validation or test set without any is left out, with a note.
fn list_files(
    dir: &Path,
    parts: Vec<Classes>,
    classes: &[String],
    opening: &Opening<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<(Classes, Files)>> {
    let (mut listed, mut passed_over) = (Vec::new(), Vec::new());
    for part in parts {
        let files = part.files(classes, opening, &mut passed_over)?;
        if files.is_empty() && part.part != Part::Train {
            notes.push(format!("{} has no images: there is no {} set", part.root.display(), part.part.title()));
            continue;
        }
        part.check_files(&files, classes, opening.evaluate)?;
        listed.push((part, files));
    }
    if !passed_over.is_empty() {
        let names: Vec<String> = passed_over.iter().map(|p| shown(p, dir)).collect();
        let (files, no) = (count(names.len(), "file"), if names.len() == 1 { "is no image" } else { "are no images" });
        notes.push(format!("{files} {no} and {} passed over: {}", are(names.len()), list(&names)));
    }
    Ok(listed)
}

impl Classes {
    /// The class folders of a part; `None`, with a note, for a validation or test set without labelled images.
    fn new(part: Part, root: PathBuf, notes: &mut Vec<String>) -> Result<Option<Self>> {
        let content = content(&root)?;
        let alone = content.images.len();
        if content.folders.is_empty() {
            let cause = match alone {
                0 => "no images here".to_owned(),
                n => format!("{} here, but no class folders: every class needs a folder of its own", count(n, "image")),
            };
            if part == Part::Train {
                return Err(Error::new(cause).in_file(root).hint(LAYOUT));
            }
            let why = if alone == 0 { "no images" } else { "images without class folders, so without labels" };
            notes.push(format!("{} has {why}: there is no {} set", root.display(), part.title()));
            return Ok(None);
        }
        if alone > 0 {
            let lie = if alone == 1 { "lies" } else { "lie" };
            let images = count(alone, "image");
            notes.push(format!(
                "{images} in {} {lie} beside the class folders and {} not used",
                root.display(),
                are(alone)
            ));
        }
        Ok(Some(Self { part, root, content }))
    }

    fn names(&self) -> Vec<String> {
        self.content.folders.iter().map(|f| name(f)).collect()
    }

    /// The images of every class.
    fn files(&self, classes: &[String], opening: &Opening<'_>, passed_over: &mut Vec<PathBuf>) -> Result<Files> {
        let mut files = Files::new();
        for folder in &self.content.folders {
            let Some(class) = classes.iter().position(|c| *c == name(folder)) else {
                return Err(unknown(&name(folder), classes, TRAINING, opening.evaluate).in_file(folder));
            };
            search(folder, class as i64, &mut files, passed_over)?;
        }
        Ok(files)
    }

    /// Every part has images, and for training every class.
    fn check_files(&self, files: &Files, classes: &[String], evaluate: bool) -> Result<()> {
        if files.is_empty() {
            return Err(Error::new("no images here").in_file(&self.root).hint(LAYOUT));
        }
        if evaluate || self.part != Part::Train {
            return Ok(());
        }
        let mut has = vec![false; classes.len()];
        files.iter().for_each(|(_, class)| has[*class as usize] = true);
        let empty = |folder: &&PathBuf| classes.iter().position(|c| *c == name(folder)).is_some_and(|c| !has[c]);
        match self.content.folders.iter().find(empty) {
            Some(folder) => Err(Error::new("this class has no images").in_file(folder).hint(LAYOUT)),
            None => Ok(()),
        }
    }
}

/// The classes in the order of their numbers: as the model knows them, or else the folders in alphabetical order.
fn class_order(
    parts: &[Classes],
    own: Vec<String>,
    opening: &Opening<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<String>> {
    let folders = || parts.iter().flat_map(|p| &p.content.folders);
    if !opening.classes.is_empty() {
        match folders().find(|f| !opening.classes.contains(&name(f))) {
            None => return Ok(opening.classes.to_vec()),
            Some(_) if opening.rename => {
                notes.push(format!("the model's classes were {}: they get new names", list(opening.classes)))
            }
            Some(folder) => {
                return Err(unknown(&name(folder), opening.classes, MODEL, opening.evaluate).in_file(folder));
            }
        }
    }
    notes.extend(numbers_as_text(&own));
    Ok(own)
}

fn are(n: usize) -> &'static str {
    if n == 1 { "is" } else { "are" }
}

/// A file as a note names it.
fn shown(path: &Path, dir: &Path) -> String {
    path.strip_prefix(dir).unwrap_or(path).display().to_string()
}

/// What `look` finds in every file. Files in which it finds damage are an error, or go to `damaged` where they are to be left out.
fn check<T: Send>(
    listed: &mut [(Classes, Files)],
    damaged: &mut Vec<(PathBuf, Error)>,
    opening: &Opening<'_>,
    look: impl Fn(&Path) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for (_, files) in listed {
        let results = on_all_cores(files, |(path, _)| look(path))?;
        let mut good = Files::with_capacity(files.len());
        for (file, result) in files.drain(..).zip(results) {
            match result {
                Ok(t) => {
                    found.push(t);
                    good.push(file);
                }
                Err(e) => damaged.push((file.0, e)),
            }
        }
        *files = good;
    }
    match damaged.first() {
        Some((_, e)) if !opening.skip_damaged => Err(match damaged.len() {
            1 => e.clone(),
            all => e.clone().and(&format!("; there are {all} such files")),
        }),
        _ => Ok(found),
    }
}

/// A note about the files that are left out.
fn left_out(dir: &Path, damaged: &[(PathBuf, Error)]) -> Option<String> {
    let all = damaged.len();
    let told = damaged.iter().take(SHOWN_DAMAGED).map(|(path, e)| format!("{} ({})", shown(path, dir), e.cause()));
    let told = told.collect::<Vec<_>>().join(", ");
    let more = if all > SHOWN_DAMAGED { ", …" } else { "" };
    (all > 0).then(|| format!("{} {} left out: {told}{more}", count(all, "damaged file"), are(all)))
}

/// A note about images that are in the training set as well as in another one: files of the same name with the same bytes.
fn seen_twice(dir: &Path, listed: &[(Classes, Files)], headers: &[Header]) -> Result<Option<String>> {
    let parts = listed.iter().flat_map(|(part, files)| files.iter().map(|(path, _)| (part.part, path)));
    let (train, rest): (Vec<_>, Vec<_>) = parts.zip(headers).partition(|((part, _), _)| *part == Part::Train);
    let key = |path: &Path, header: &Header| (name(path), header.length);
    let mut known: HashMap<(String, u64), Vec<&PathBuf>> = HashMap::new();
    train.into_iter().for_each(|((_, path), h)| known.entry(key(path, h)).or_default().push(path));
    let mut twice = Vec::new();
    for ((_, path), header) in rest {
        let Some(same) = known.get(&key(path, header)) else { continue };
        let bytes = fs::read(path).file(path)?;
        for other in same {
            if fs::read(other).file(other)? == bytes {
                twice.push(shown(path, dir));
                break;
            }
        }
    }
    let images = |n: usize| if n == 1 { "1 image is".to_owned() } else { format!("{n} images are") };
    let note = format!("{} in the training set, too: {}", images(twice.len()), list(&twice));
    Ok(Some(note).filter(|_| !twice.is_empty()))
}

/// The size that images are brought to, and where none is given the file whose size all must have.
fn one_size(
    size: Option<(usize, usize)>,
    listed: &[(Classes, Files)],
    headers: &[Header],
) -> Result<((usize, usize), Option<PathBuf>)> {
    if let Some(size) = size {
        return Ok((size, None));
    }
    let mut all = listed.iter().flat_map(|(_, files)| files).map(|(path, _)| path).zip(headers);
    let Some((like, first)) = all.next() else { return Ok(((1, 1), None)) };
    match all.find(|(_, h)| h.size != first.size) {
        Some((path, other)) => Err(other_size(path, other.size, like, first.size)),
        None => Ok((first.size, Some(like.clone()))),
    }
}

/// Adds the images under `dir`; other files are passed over.
fn search(dir: &Path, class: i64, files: &mut Files, passed_over: &mut Vec<PathBuf>) -> Result<()> {
    let here = content(dir)?;
    files.extend(here.images.into_iter().map(|path| (path, class)));
    passed_over.extend(here.others);
    for folder in here.folders {
        search(&folder, class, files, passed_over)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};

    fn open(dir: &Path, size: Option<(usize, usize)>, memory: usize) -> Result<Splits> {
        super::open(dir, size, memory, &Opening::default())
    }

    const HELD: usize = usize::MAX;

    fn rgb(path: PathBuf, width: u32, height: u32, color: [u8; 3]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(width, height, Rgb(color)).save(path).unwrap();
    }

    fn images(set: &Dataset) -> &Images {
        let Samples::Images(images) = &set.samples else { panic!() };
        images
    }

    fn pixels_of(set: &Dataset, sample: usize) -> Vec<u8> {
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
        assert_eq!(pixels_of(&splits.train, 1)[..3], [1, 2, 3]);
        assert_eq!(pixels_of(&splits.train, 2)[..3], [7, 8, 9]);

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
        assert_eq!(pixels_of(&splits.train, 1), [40, 50, 60].repeat(15));
    }

    #[test]
    fn only_gray_images_give_one_channel() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        GrayImage::from_pixel(2, 2, Luma([9])).save(dir.path().join("a/1.png")).unwrap();
        let splits = open(dir.path(), None, HELD).unwrap();
        assert_eq!(pixels_of(&splits.train, 0), [9; 4]);
        rgb(dir.path().join("a/2.png"), 2, 2, [1, 2, 3]);
        let splits = open(dir.path(), None, HELD).unwrap();
        assert_eq!((images(&splits.train).channels, pixels_of(&splits.train, 0)), (3, vec![9; 12]));
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
        let all = |set: &Dataset| (0..set.len()).map(|i| pixels_of(set, i)).collect::<Vec<_>>();
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
        fs::write(&file, b"RIFF\x10\0\0\0WEBPVP8 ").unwrap();
        let e = open(dir.path(), None, HELD).unwrap_err();
        assert!(e.to_string().contains("bad.jpg: cannot be decoded: it is a WebP, whatever its name says"), "{e}");
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
        fails("a: this class has no images");
        rgb(dir.path().join("test/b/1.png"), 1, 1, [0; 3]);
        fails("`test` looks like a split, and `b` beside it like classes");
        fs::remove_dir_all(dir.path().join("b")).unwrap();
        fails("no train folder");
        assert!(open(&dir.path().join("nowhere"), None, HELD).unwrap_err().to_string().contains("nowhere"));
    }
}
