//! How a data set is named on the command line and in recipes: `FORMAT:PATH`.

use super::TableFormat;
use crate::error::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A data set's format and place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// `cifar10:DIR`, the binary files of CIFAR-10.
    Cifar10(PathBuf),
    /// `cifar100:DIR`, the binary files of CIFAR-100, with its 100 fine labels.
    Cifar100(PathBuf),
    /// `idx:DIR`, the MNIST family, gzipped or not.
    Idx(PathBuf),
    /// `images:DIR`, JPEG or PNG files in a folder per class.
    Images(PathBuf),
    /// `npz:FILE`, NumPy arrays named as the model's inputs, with `labels`.
    Npz(PathBuf),
    /// `tsv:PATH`, `csv:PATH` or `jsonl:PATH`, labelled texts or pairs of texts.
    Text(TableFormat, PathBuf),
}

const HINT: &str =
    "give one of cifar10:DIR, cifar100:DIR, idx:DIR, images:DIR, npz:FILE, tsv:PATH, csv:PATH, jsonl:PATH";

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((format, path)) = text.split_once(':') else {
            return Err(Error::new(format!("data set `{text}` does not say its format")).hint(HINT));
        };
        if path.is_empty() {
            return Err(Error::new(format!("data set `{text}` does not say where it is")).hint(HINT));
        }
        let path = PathBuf::from(path);
        match format {
            "cifar10" => Ok(Self::Cifar10(path)),
            "cifar100" => Ok(Self::Cifar100(path)),
            "idx" => Ok(Self::Idx(path)),
            "images" => Ok(Self::Images(path)),
            "npz" => Ok(Self::Npz(path)),
            _ => match TableFormat::ALL.into_iter().find(|f| f.name() == format) {
                Some(table) => Ok(Self::Text(table, path)),
                None => Err(Error::new(format!("unknown data format `{format}`")).hint(HINT)),
            },
        }
    }
}

impl Spec {
    /// The folder or file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Cifar10(path)
            | Self::Cifar100(path)
            | Self::Idx(path)
            | Self::Images(path)
            | Self::Npz(path)
            | Self::Text(_, path) => path,
        }
    }

    /// Whether the data are texts, which need a tokenizer.
    pub fn is_text(&self) -> bool {
        matches!(self, Self::Text(..))
    }
}

/// The form that [`Spec::from_str`] reads.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = match self {
            Self::Cifar10(_) => "cifar10",
            Self::Cifar100(_) => "cifar100",
            Self::Idx(_) => "idx",
            Self::Images(_) => "images",
            Self::Npz(_) => "npz",
            Self::Text(format, _) => format.name(),
        };
        write!(f, "{format}:{}", self.path().display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_round_trip() {
        for text in
            ["cifar10:a", "cifar100:a/b", "idx:/x", "images:C:\\pics", "npz:a:b.npz", "tsv:a", "csv:b.csv", "jsonl:c"]
        {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_specs_say_what_is_supported() {
        for text in ["data", "cifar10:", "tsv:", "parquet:a"] {
            let e = text.parse::<Spec>().unwrap_err();
            assert!(e.hint_text().is_some_and(|h| h.contains("npz:FILE")), "{e}");
        }
    }
}
