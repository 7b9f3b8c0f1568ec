//! Data sets: found, read, split, augmented and served as batches.
//!
//! [`open`] reads a [`Spec`] into [`Splits`]; a [`Loader`] turns one [`Dataset`] into batches that fit the model's
//! inputs. Every random choice follows from a seed and a position, never from timing or the number of threads.

mod augment;
mod batch;
mod cifar;
mod classes;
mod decode;
mod feed;
mod fit;
mod folders;
mod idx;
mod images;
mod lengths;
mod loader;
mod normalize;
mod npz;
mod pixels;
mod place;
mod rng;
mod signature;
mod spec;
mod split;
mod table;
mod text;
mod tokenize;
mod vocabulary;

pub use augment::Augment;
pub use batch::{Batch, Buffer};
pub use fit::{Fit, InputSpec, Layout, image_size, open_shapes};
pub use lengths::Lengths;
pub use loader::{Epoch, Loader, LoaderOptions, ShortBatch};
pub use normalize::Normalization;
pub use npz::{read_npz, write_npz};
pub use pixels::Images;
pub use spec::Spec;
pub use table::TableFormat;
pub use text::TextOptions;
pub use vocabulary::check_vocabulary;

use crate::error::{Error, Result};
use crate::ir::{Declared, Dim, Tensor, Type};
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of decoded images that are held in memory; more than these are decoded when they are needed.
const MEMORY: usize = 4 << 30;

/// More classes than any classifier has: a larger label is a mistake in the file.
const MAX_CLASSES: usize = 1 << 20;

/// Samples with their labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The inputs, one sample per label.
    pub samples: Samples,
    /// Class of each sample, `0..classes`; zeros where `labelled` is false.
    pub labels: Vec<i64>,
    /// Whether the data have labels.
    pub labelled: bool,
    /// Of texts of different lengths.
    pub lengths: Option<Lengths>,
}

/// The inputs of a data set.
#[derive(Debug, Clone, PartialEq)]
pub enum Samples {
    /// Images of one size.
    Images(Images),
    /// Arrays by name of the model input; the first axis is the sample.
    Arrays(BTreeMap<String, Tensor>),
}

/// A data set in the parts that its files define.
#[derive(Debug, Clone, PartialEq)]
pub struct Splits {
    /// What the weights are fitted to.
    pub train: Dataset,
    /// What the best epoch is chosen by; [`Splits::split_validation`] makes one where the files have none.
    pub valid: Option<Dataset>,
    /// What is reported.
    pub test: Option<Dataset>,
    /// Name of each class; labels as decimal numbers where the files have no names.
    pub classes: Vec<String>,
    /// Whether the names are those of the files, so that another data set can be matched by them.
    pub named: bool,
    /// How the files were understood, where the user should know; a sentence each.
    pub notes: Vec<String>,
}

/// How a data set is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Opening<'a> {
    /// How tables of text are read.
    pub text: Option<&'a TextOptions>,
    /// The classes that the model knows, in the order of its logits, which the data are matched with by name; empty where it names none.
    pub classes: &'a [String],
    /// Where the data have a class that the model does not know, all get new numbers; otherwise that is an error.
    pub rename: bool,
    /// Image files that cannot be decoded are left out.
    pub skip_damaged: bool,
    /// The data are evaluated only: the training set may be missing.
    pub evaluate: bool,
}

/// Reads a data set. Folders of images stay files when they would take more than 4 GiB of memory.
///
/// `inputs` are the model's, as its file declares them. Folders of images are resized to the size that the first one asks for, as
/// they mix sizes; texts are tokenized for the inputs that take tokens, as `text` says. The other formats are fitted batch by batch.
///
/// # Errors
/// When files are missing, damaged or empty, or a label is out of range: the error names the file. Settings of text for other data,
/// or none for text. A class that the model does not know.
pub fn open(spec: &Spec, inputs: &[(String, Declared)], opening: &Opening<'_>) -> Result<Splits> {
    if opening.text.is_some() && !spec.is_text() {
        return Err(Error::new("text columns or a tokenizer are given, but the data are no tables of text").hint(
            "leave --text, --label, --tokenizer and --max-length away, or give tsv:PATH, csv:PATH or jsonl:PATH",
        ));
    }
    let place = spec.path();
    place::check(spec)?;
    let mut splits = match spec {
        Spec::Cifar10(dir) => cifar::open_cifar10(dir)?,
        Spec::Cifar100(dir) => cifar::open_cifar100(dir)?,
        Spec::Idx(dir) => idx::open(dir)?,
        Spec::Images(dir) => images::open(dir, declared_size(inputs), MEMORY, opening)?,
        Spec::Npz(file) => npz::open(file, inputs)?,
        Spec::Text(format, path) => text::open(path, *format, opening, inputs)?,
    };
    if !matches!(spec, Spec::Images(_)) {
        splits.match_classes(opening).map_err(|e| e.in_file(place))?;
    }
    let parts =
        [("training", Some(&splits.train)), ("validation", splits.valid.as_ref()), ("test", splits.test.as_ref())];
    for (name, part) in parts {
        if let Some(part) = part.filter(|p| !opening.evaluate || !p.is_empty()) {
            part.check(name).map_err(|e| e.in_file(place))?;
        }
    }
    Ok(splits)
}

/// Height and width of the images that the first input takes, where its file fixes them.
fn declared_size(inputs: &[(String, Declared)]) -> Option<(usize, usize)> {
    let (_, declared) = inputs.first()?;
    let size = |d: &Dim| if let Dim::Fixed(n) = d { *n } else { 0 };
    let shape: Vec<usize> = declared.dims.as_ref()?.iter().map(size).collect();
    image_size(&Type::new(declared.dtype, &shape)).filter(|(h, w)| *h > 0 && *w > 0)
}

impl Dataset {
    /// Samples of one size.
    pub fn new(samples: Samples, labels: Vec<i64>) -> Self {
        Self { samples, labels, labelled: true, lengths: None }
    }

    /// `n` samples of one size without labels.
    pub fn unlabelled(samples: Samples, n: usize) -> Self {
        Self { samples, labels: vec![0; n], labelled: false, lengths: None }
    }

    /// Takes the array of the model's own input for labels as the labels, where there is one: integers, one per sample.
    ///
    /// # Errors
    /// An array of another type or shape.
    pub fn label_by(&mut self, input: &str) -> Result<()> {
        let Samples::Arrays(arrays) = &mut self.samples else { return Ok(()) };
        let Some(array) = arrays.remove(input) else { return Ok(()) };
        match array.to_i64().filter(|labels| labels.len() == self.labels.len()) {
            Some(labels) => (self.labels, self.labelled) = (labels, true),
            None => crate::bail!("array `{input}` is {}, but the model takes one integer per sample there", array.ty()),
        }
        Ok(())
    }

    /// Checks that there are labels.
    ///
    /// # Errors
    /// When there are none.
    pub fn check_labelled(&self) -> Result<()> {
        match &self.samples {
            Samples::Arrays(arrays) if !self.labelled => {
                Err(npz::without_labels(&arrays.keys().cloned().collect::<Vec<_>>()))
            }
            _ => Ok(()),
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Checks the labels against a model's number of classes.
    ///
    /// # Errors
    /// Names the first label outside `0..classes` and its sample.
    pub fn check_labels(&self, classes: usize) -> Result<()> {
        check_labels(&self.labels, classes)
    }

    /// A copy of the samples at `indices`, in that order. Indices are below [`Dataset::len`].
    ///
    /// # Errors
    /// When an array cannot be rebuilt (its first axis is not the sample).
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        let rows = |bytes: &[u8], width: usize| -> Vec<u8> {
            indices.iter().flat_map(|i| &bytes[i * width..][..width]).copied().collect()
        };
        let samples = match &self.samples {
            Samples::Images(images) => Samples::Images(images.select(indices)?),
            Samples::Arrays(arrays) => {
                let mut selected = BTreeMap::new();
                for (name, array) in arrays {
                    let bytes = rows(array.bytes(), array.bytes().len() / self.len().max(1));
                    let shape: Vec<usize> = array
                        .shape()
                        .iter()
                        .enumerate()
                        .map(|(axis, d)| if axis == 0 { indices.len() } else { *d })
                        .collect();
                    selected.insert(name.clone(), Tensor::from_bytes(array.dtype(), &shape, bytes)?);
                }
                Samples::Arrays(selected)
            }
        };
        let labels = indices.iter().map(|i| self.labels[*i]).collect();
        let lengths = self.lengths.as_ref().map(|lengths| {
            let tokens = indices.iter().map(|i| lengths.tokens[*i]).collect();
            Lengths { tokens, ..*lengths }
        });
        Ok(Self { samples, labels, labelled: self.labelled, lengths })
    }

    /// As many samples as labels, and at least one.
    fn check(&self, part: &str) -> Result<()> {
        if self.is_empty() {
            crate::bail!("the {part} set has no samples");
        }
        match &self.samples {
            Samples::Images(images) => {
                if images.sample_len() == 0 {
                    crate::bail!("the {part} images have no pixels");
                }
                if !images.are(self.len()) {
                    crate::bail!("the {part} set has {} images but {} labels", images.len(), self.len());
                }
                if !matches!(images.channels, 1 | 3) {
                    crate::bail!("the {part} images have {} channels; 1 or 3 are supported", images.channels);
                }
            }
            Samples::Arrays(arrays) => {
                for (name, array) in arrays {
                    if array.shape().first() != Some(&self.len()) {
                        crate::bail!("{part} array `{name}` is {} but there are {} labels", array.ty(), self.len());
                    }
                }
            }
        }
        Ok(())
    }
}

fn check_labels(labels: &[i64], classes: usize) -> Result<()> {
    match labels.iter().position(|l| usize::try_from(*l).map_or(true, |l| l >= classes)) {
        Some(i) => Err(Error::new(format!("label {} of sample {i} is outside 0..{classes}", labels[i]))),
        None => Ok(()),
    }
}

/// The classes that labels imply where no file names them: `0` to the largest label.
fn numbered_classes(sets: &[(&Path, &Dataset)]) -> Result<Vec<String>> {
    let mut classes = 0;
    for (file, set) in sets {
        let hint = "labels are class numbers from 0 on: take samples without a label out";
        if let Some(i) = set.labels.iter().position(|l| *l < 0) {
            let cause = format!("label {} of sample {i} is negative", set.labels[i]);
            return Err(Error::new(cause).in_file(file).hint(hint));
        }
        check_labels(&set.labels, MAX_CLASSES).map_err(|e| e.in_file(file).hint(hint))?;
        classes = set.labels.iter().fold(classes, |n, label| n.max(*label + 1));
    }
    Ok((0..classes).map(|c| c.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_checked_with_their_sample() {
        assert!(check_labels(&[0, 1, 2], 3).is_ok());
        let e = check_labels(&[0, 7], 3).unwrap_err();
        assert_eq!(e.to_string(), "label 7 of sample 1 is outside 0..3");
        assert!(check_labels(&[-1], 3).is_err());
    }

    #[test]
    fn pixels_that_are_left_over_are_refused() {
        let set = |bytes: usize| Dataset::new(Samples::Images(Images::new(vec![0; bytes], 2, 2, 1)), vec![0, 1]);
        assert!(set(8).check("training").is_ok());
        for bytes in [7, 9, 12] {
            assert!(set(bytes).check("training").unwrap_err().to_string().contains("2 labels"), "{bytes}");
        }
    }

    #[test]
    fn select_copies_rows_in_the_given_order() {
        let images = Images::new((0..12).collect(), 2, 2, 1);
        let set = Dataset::new(Samples::Images(images), vec![5, 6, 7]);
        let picked = set.select(&[2, 0]).unwrap();
        assert_eq!(picked.labels, [7, 5]);
        let Samples::Images(images) = picked.samples else { panic!() };
        assert_eq!(images, Images::new(vec![8, 9, 10, 11, 0, 1, 2, 3], 2, 2, 1));

        let array = Tensor::new(&[3, 2], &[0i32, 1, 2, 3, 4, 5]).unwrap();
        let set = Dataset::new(Samples::Arrays([("x".to_owned(), array)].into()), vec![5, 6, 7]);
        let Samples::Arrays(arrays) = set.select(&[1]).unwrap().samples else { panic!() };
        assert_eq!(arrays["x"], Tensor::new(&[1, 2], &[2i32, 3]).unwrap());
    }
}
