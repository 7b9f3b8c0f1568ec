//! How a data set is named on the command line and in recipes: `FORMAT:PATH`.

use super::TableFormat;
use crate::error::{Error, Result};
use crate::wording::nearest;
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

/// The formats that are no tables.
const FORMATS: [&str; 5] = ["cifar10", "cifar100", "idx", "images", "npz"];

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((format, path)) = text.split_once(':') else {
            let error = Error::new(format!("data set `{text}` does not say its format"));
            return Err(match guess(&at_home(text)) {
                Some(format) => error.hint(format!("did you mean {format}:{text}? {HINT}")),
                None => error.hint(HINT),
            });
        };
        if path.is_empty() {
            return Err(Error::new(format!("data set `{text}` does not say where it is")).hint(HINT));
        }
        let path = at_home(path);
        match format {
            "cifar10" => Ok(Self::Cifar10(path)),
            "cifar100" => Ok(Self::Cifar100(path)),
            "idx" => Ok(Self::Idx(path)),
            "images" => Ok(Self::Images(path)),
            "npz" => Ok(Self::Npz(path)),
            _ => match TableFormat::ALL.into_iter().find(|f| f.name() == format) {
                Some(table) => Ok(Self::Text(table, path)),
                None => Err(Self::unknown_format(format, &path)),
            },
        }
    }
}

/// The path with `~` as the home folder: a shell does not expand it behind a colon.
fn at_home(path: &str) -> PathBuf {
    let home = || std::env::home_dir().filter(|h| !h.as_os_str().is_empty());
    match (path.strip_prefix('~'), home()) {
        (Some(""), Some(home)) => home,
        (Some(rest), Some(home)) if rest.starts_with(['/', std::path::MAIN_SEPARATOR]) => home.join(&rest[1..]),
        _ => PathBuf::from(path),
    }
}

/// The format of what lies at a path.
pub(super) fn guess(path: &Path) -> Option<&'static str> {
    if path.is_dir() {
        return Some("images");
    }
    let ending = path.extension()?.to_string_lossy().to_lowercase();
    let tables = TableFormat::ALL.map(TableFormat::name);
    path.is_file().then(|| ["npz"].into_iter().chain(tables).find(|f| *f == ending)).flatten()
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

    /// The name of the format.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Cifar10(_) => "cifar10",
            Self::Cifar100(_) => "cifar100",
            Self::Idx(_) => "idx",
            Self::Images(_) => "images",
            Self::Npz(_) => "npz",
            Self::Text(format, _) => format.name(),
        }
    }

    fn unknown_format(format: &str, path: &Path) -> Error {
        let names: Vec<&str> = FORMATS.into_iter().chain(TableFormat::ALL.map(TableFormat::name)).collect();
        let meant = nearest(format, &names).map(|n| format!("did you mean {n}:{}? ", path.display()));
        Error::new(format!("unknown data format `{format}`")).hint(format!("{}{HINT}", meant.unwrap_or_default()))
    }

    /// Whether the data are texts, which need a tokenizer.
    pub fn is_text(&self) -> bool {
        matches!(self, Self::Text(..))
    }
}

/// The form that [`Spec::from_str`] reads.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.format(), self.path().display())
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
    fn the_home_folder_is_found_behind_the_colon() {
        let home = std::env::home_dir().unwrap();
        assert_eq!("images:~/data".parse::<Spec>().unwrap().path(), home.join("data"));
        assert_eq!("images:~".parse::<Spec>().unwrap().path(), home);
        assert_eq!("images:~other/data".parse::<Spec>().unwrap().path(), Path::new("~other/data"));
        assert_eq!("images:a~/b".parse::<Spec>().unwrap().path(), Path::new("a~/b"));
    }

    #[test]
    fn formats_have_a_nearest_one() {
        for (typed, meant) in [("image:d", "images:d"), ("IMAGES:d", "images:d"), ("cifar:d", "cifar10:d")] {
            let hint = typed.parse::<Spec>().unwrap_err().hint_text().unwrap().to_owned();
            assert!(hint.starts_with(&format!("did you mean {meant}?")), "{typed}: {hint}");
        }
        let dir = tempfile::tempdir().unwrap();
        let e = dir.path().display().to_string().parse::<Spec>().unwrap_err();
        assert!(e.hint_text().unwrap().starts_with("did you mean images:"), "{e}");
    }

    #[test]
    fn bad_specs_say_what_is_supported() {
        for text in ["data", "cifar10:", "tsv:", "parquet:a"] {
            let e = text.parse::<Spec>().unwrap_err();
            assert!(e.hint_text().is_some_and(|h| h.contains("npz:FILE")), "{e}");
        }
    }
}
