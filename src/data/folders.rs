//! Which folders of a data set of images are its splits, and which are classes.

use super::signature;
use crate::error::{Error, IoContext, Result};
use crate::wording::{count, list};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

pub(super) const LAYOUT: &str = "expected train/<class>/*.jpg with test/<class>/*.jpg and valid/<class>/*.jpg beside it where there \
                                 are such sets, or <class>/*.jpg alone; JPEG and PNG files are read";

/// Names of a split, in lower case.
const TRAIN: [&str; 3] = ["train", "training", "trn"];
const VALID: [&str; 9] =
    ["val", "valid", "validation", "validate", "dev", "devel", "development", "eval", "evaluation"];
const TEST: [&str; 3] = ["test", "testing", "tst"];

/// Words that say no more about a split.
const FILLERS: [&str; 14] = [
    "set", "sets", "data", "dataset", "split", "folder", "images", "image", "imgs", "img", "pictures", "photos", "seg",
    "samples",
];

/// Names of splits that need no explanation.
const USUAL: [&str; 5] = ["train", "val", "valid", "validation", "test"];

/// Folders that programs leave behind, in lower case.
const JUNK: [&str; 6] =
    ["__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"];

/// Endings of image files, those included that are not read.
const ENDINGS: [&str; 24] = [
    "jpg", "jpeg", "jpe", "jfif", "jif", "png", "apng", "bmp", "dib", "gif", "tif", "tiff", "webp", "ppm", "pgm",
    "pbm", "pnm", "jp2", "avif", "heic", "heif", "jxl", "ico", "tga",
];

/// Folders that are splits, with the split that they are.
type Split = (Part, PathBuf);

/// Folders within folders are looked into so far.
const DEPTH: usize = 4;

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What the weights are fitted to.
    Train,
    /// What the best epoch is chosen by.
    Valid,
    /// What is reported.
    Test,
}

impl Part {
    pub(super) const ALL: [Self; 3] = [Self::Train, Self::Valid, Self::Test];

    /// What notes call it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Train => "training",
            Self::Valid => "validation",
            Self::Test => "test",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        let names = [(Self::Train, &TRAIN[..]), (Self::Valid, &VALID), (Self::Test, &TEST)];
        names.into_iter().find(|(_, names)| names.contains(&word)).map(|(part, _)| part)
    }

    /// The split that a folder or file is by its name alone, such as `Training`, `test_set`, `seg_train` or `val2017`.
    pub(super) fn of(name: &str) -> Option<Self> {
        Self::within(name).filter(|(_, rest)| rest.is_empty()).map(|(part, _)| part)
    }

    /// The split that a name's first or last word is, and its other words.
    fn within(name: &str) -> Option<(Self, String)> {
        let lower = name.to_lowercase();
        let strip = |word: &str| -> String {
            let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
            let ends = ["set", "data", "images"];
            let stem = ends.iter().find_map(|e| word.strip_suffix(e)).filter(|s| Self::of_word(s).is_some());
            stem.unwrap_or(word).to_owned()
        };
        let words: Vec<String> = lower.split(|c: char| !c.is_alphanumeric()).map(strip).collect();
        let words: Vec<String> =
            words.into_iter().filter(|w| !w.is_empty() && !FILLERS.contains(&w.as_str())).collect();
        let (first, last) = (words.first()?, words.last()?);
        match (Self::of_word(first), Self::of_word(last)) {
            (Some(part), _) => Some((part, words[1..].join(" "))),
            (_, Some(part)) => Some((part, words[..words.len() - 1].join(" "))),
            _ => None,
        }
    }
}

/// Where the splits of a data set are.
#[derive(Debug, Default)]
pub(super) struct Folders {
    /// Of the training, validation and test set, those that there are.
    pub(super) parts: [Option<PathBuf>; 3],
    /// Whether the folders say which images are which set; otherwise all are the training set.
    pub(super) divided: bool,
    /// How the folders were understood, where that is not obvious.
    pub(super) notes: Vec<String>,
}

/// A folder's content.
pub(super) struct Content {
    pub(super) folders: Vec<PathBuf>,
    pub(super) images: Vec<PathBuf>,
    /// Files that are no images.
    pub(super) others: Vec<PathBuf>,
}

/// What a folder holds, sorted; without hidden files and what programs leave behind.
///
/// # Errors
/// An I/O error.
pub(super) fn content(dir: &Path) -> Result<Content> {
    let mut content = Content { folders: Vec::new(), images: Vec::new(), others: Vec::new() };
    for entry in fs::read_dir(dir).file(dir)? {
        let path = entry.file(dir)?.path();
        let name = name(&path);
        if name.starts_with('.') || JUNK.contains(&name.to_lowercase().as_str()) {
            continue;
        }
        if path.is_dir() {
            content.folders.push(path);
        } else if is_image(&path) {
            content.images.push(path);
        } else {
            content.others.push(path);
        }
    }
    content.folders.sort();
    content.images.sort();
    content.others.sort();
    Ok(content)
}

/// Whether a file is an image by its ending, or without one by its first bytes.
fn is_image(path: &Path) -> bool {
    match path.extension() {
        Some(ending) => ENDINGS.contains(&ending.to_string_lossy().to_lowercase().as_str()),
        None => {
            let mut head = Vec::new();
            let read = File::open(path).and_then(|f| f.take(8).read_to_end(&mut head));
            read.is_ok() && signature::is_image(&head)
        }
    }
}

/// The last part of a path.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn names(paths: &[PathBuf]) -> String {
    list(&paths.iter().map(|p| format!("`{}`", name(p))).collect::<Vec<_>>())
}

/// Whether there are images in a folder or in those within it.
fn holds_images(dir: &Path) -> Result<bool> {
    let here = content(dir)?;
    if !here.images.is_empty() {
        return Ok(true);
    }
    for folder in &here.folders {
        if holds_images(folder)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds the splits of a folder; a folder of classes alone is the training set. `known` are classes that a model knows.
///
/// # Errors
/// Folders that could be splits as well as classes, two of the same split, or an I/O error.
pub(super) fn find(dir: &Path, known: &[String]) -> Result<Folders> {
    let mut found = Folders::default();
    let root = descend(dir, |inner| known.contains(&name(inner)), &mut found.notes)?;
    let here = content(&root)?;
    let (mut splits, others) = splits(&here.folders)?;
    let others = if splits.is_empty() { others } else { with_images(others)? };
    let several = Part::ALL.iter().filter(|p| splits.iter().any(|(of, _)| of == *p)).count() > 1;
    if !several && !others.is_empty() && !splits.is_empty() {
        let lone: Vec<PathBuf> = splits.drain(..).map(|(_, path)| path).collect();
        found.notes.push(lone_split(&lone, &others).map_err(|e| e.in_file(&root))?);
    } else if several && !others.is_empty() {
        let are = if others.len() == 1 { "is" } else { "are" };
        found.notes.push(format!("{} beside the splits {are} not used", names(&others)));
    }
    if splits.is_empty() {
        check_undivided(&root, &here)?;
        found.parts[0] = Some(root);
        found.divided = false;
        return Ok(found);
    }
    found.divided = true;
    for (slot, part) in found.parts.iter_mut().zip(Part::ALL) {
        let mut of_part = splits.iter().filter(|(p, _)| *p == part).map(|(_, path)| path);
        *slot = of_part.next().cloned();
        if let (Some(first), Some(second)) = (slot, of_part.next()) {
            let (first, second) = (name(first), name(second));
            let cause = format!("`{first}` and `{second}` could both be the {} set", part.title());
            return Err(Error::new(cause).in_file(&root).hint("keep one of them, and move the other one away"));
        }
    }
    if splits.iter().any(|(_, path)| !USUAL.contains(&name(path).as_str())) {
        splits.sort_by_key(|(part, _)| *part as usize);
        let told = splits.iter().map(|(part, path)| format!("`{}` is the {} set", name(path), part.title()));
        found.notes.push(told.collect::<Vec<_>>().join(", "));
    }
    Ok(found)
}

/// The folders that are splits by their names, and the others. Of two for the same split an empty one is left out.
fn splits(folders: &[PathBuf]) -> Result<(Vec<Split>, Vec<PathBuf>)> {
    let words: Vec<Option<(Part, String)>> = folders.iter().map(|f| Part::within(&name(f))).collect();
    // `pets_train` is a split only beside a `pets_test`.
    let paired = |part: Part, rest: &str| words.iter().flatten().any(|(p, r)| *p != part && r == rest);
    let (mut splits, mut others) = (Vec::new(), Vec::new());
    for (path, word) in folders.iter().zip(&words) {
        match word {
            Some((part, rest)) if rest.is_empty() || paired(*part, rest) => splits.push((*part, path.clone())),
            _ => others.push(path.clone()),
        }
    }
    let twice: Vec<Part> =
        Part::ALL.into_iter().filter(|part| splits.iter().filter(|(p, _)| p == part).count() > 1).collect();
    let mut kept = Vec::new();
    for (part, path) in splits {
        if !twice.contains(&part) || holds_images(&path)? {
            kept.push((part, path));
        }
    }
    Ok((kept, others))
}

/// Folders named like one split beside others of images: classes themselves when they hold images, as a note says.
fn lone_split(lone: &[PathBuf], others: &[PathBuf]) -> Result<String> {
    let (split, beside) = (names(lone), names(others));
    if with_images(lone.to_vec())?.is_empty() {
        return Ok(format!("{split} has no images and is not used"));
    }
    for path in lone {
        let here = content(path)?;
        if here.images.is_empty() || !here.folders.is_empty() {
            let cause = format!("{split} looks like a split, and {beside} beside it like classes");
            return Err(Error::new(cause).hint(format!("move what is no part of the data away; {LAYOUT}")));
        }
    }
    Ok(format!("{split} is taken for a class, like {beside} beside it: it holds images itself"))
}

fn with_images(folders: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in folders {
        if holds_images(&folder)? {
            found.push(folder);
        }
    }
    Ok(found)
}

/// The folder that is alone in `dir`, and so on: archives often unpack into one more. Not one that is a class.
fn descend(dir: &Path, is_class: impl Fn(&Path) -> bool, notes: &mut Vec<String>) -> Result<PathBuf> {
    let mut at = dir.to_path_buf();
    for _ in 0..DEPTH {
        let here = content(&at)?;
        let [inner] = here.folders.as_slice() else { break };
        let deeper = content(inner)?;
        if !here.images.is_empty() || is_class(inner) || Part::of(&name(inner)).is_some() || deeper.folders.is_empty() {
            break;
        }
        at.clone_from(inner);
    }
    if at != dir {
        notes.push(format!("the data are those in {}", at.display()));
    }
    Ok(at)
}

/// The folder of a split's classes: `train/train/<class>` as well as `train/<class>`.
///
/// # Errors
/// An I/O error.
pub(super) fn classes_in(split: &Path, part: Part, is_class: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let mut at = split.to_path_buf();
    for _ in 0..DEPTH {
        let here = content(&at)?;
        let [inner] = here.folders.as_slice() else { break };
        if !here.images.is_empty() || is_class(&name(inner)) {
            break;
        }
        let same = Part::of(&name(inner)) == Some(part) || name(inner) == name(split);
        if !same && content(inner)?.folders.is_empty() {
            break;
        }
        at.clone_from(inner);
    }
    Ok(at)
}

/// Refuses a folder without classes, and `<class>/train/*` or `images/train/*`, which would mix the splits.
fn check_undivided(root: &Path, here: &Content) -> Result<()> {
    for class in &here.folders {
        let inner = content(class)?.folders;
        let (within, _) = splits(&inner)?;
        if within.iter().any(|(part, _)| within.first().is_some_and(|(first, _)| first != part)) {
            let cause = format!("the splits are within `{}`: {}", name(class), names(&inner));
            let hint = format!("give a folder with splits, such as {}, if it holds classes; {LAYOUT}", class.display());
            return Err(Error::new(cause).in_file(root).hint(hint));
        }
    }
    if here.folders.is_empty() {
        let cause = match here.images.len() {
            0 => "no class folders here".to_owned(),
            n => format!("{} here, but no class folders: every class needs a folder of its own", count(n, "image")),
        };
        return Err(Error::new(cause).in_file(root).hint(LAYOUT));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_splits_are_known() {
        use Part::{Test, Train, Valid};
        let cases = [
            ("train", Some(Train)),
            ("TRAIN", Some(Train)),
            ("Training", Some(Train)),
            ("train_set", Some(Train)),
            ("trainset", Some(Train)),
            ("Train Images", Some(Train)),
            ("seg_train", Some(Train)),
            ("train2017", Some(Train)),
            ("Testing", Some(Test)),
            ("test-data", Some(Test)),
            ("val", Some(Valid)),
            ("Validation_Set", Some(Valid)),
            ("dev", Some(Valid)),
            ("eval", Some(Valid)),
            ("steam train", None),
            ("trainer", None),
            ("contest", None),
            ("cat", None),
            ("data", None),
        ];
        for (name, want) in cases {
            assert_eq!(Part::of(name), want, "{name}");
        }
    }
}
