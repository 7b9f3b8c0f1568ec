//! Labelled texts or pairs of texts in tables: which files are which split, what the classes are, and the arrays of tokens.

use super::classes::{MODEL, TRAINING, unknown};
use super::folders::{Part as Split, name};
use super::table::{self, Row, TableFormat};
use super::tokenize::Encoder;
use super::{Dataset, MAX_CLASSES, Opening, Samples, Splits};
use crate::error::{Error, Result};
use crate::files::entries;
use crate::ir::Declared;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The usual names of files; of two for the same split the earlier wins.
const USUAL: [&str; 6] = ["train", "test", "dev", "val", "valid", "validation"];

/// More names than this are no longer worth a line.
const SHOWN_CLASSES: usize = 12;

/// How tables of text are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TextOptions {
    /// The column of the text, or the two of a pair: names, or numbers counted from 1 of files without a header.
    pub text: Vec<String>,
    /// The column of the label.
    pub label: String,
    /// The `tokenizer.json` that belongs to the model.
    pub tokenizer: PathBuf,
    /// The most tokens of a sample, special tokens included: longer ones are cut. A model that fixes the number decides.
    pub max_length: usize,
    /// The classes in their order, where labels are names; filled in by the run, so that another file gets the same order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { text: Vec::new(), label: String::new(), tokenizer: PathBuf::new(), max_length: 128, classes: Vec::new() }
    }
}

impl TextOptions {
    /// Keeps the names of the classes for files to come; class numbers mean the same in every file.
    pub fn remember_classes(&mut self, classes: &[String]) {
        if classes.iter().any(|c| c.parse::<i64>().is_err()) {
            self.classes = classes.to_vec();
        }
    }

    /// The columns to be read, the label last.
    fn columns(&self) -> Vec<&str> {
        self.text.iter().chain([&self.label]).map(String::as_str).collect()
    }

    /// Checks what can be checked without a file but `file`, whose columns are named in the hints.
    fn check(&self, file: &Path, format: TableFormat) -> Result<()> {
        let columns = || table::names(file, format, false).map_or_else(|_| String::new(), |names| names.join(", "));
        let choose =
            |flag: &str| format!("name it with {flag}; the first line of {} is: {}", file.display(), columns());
        if self.text.is_empty() {
            return Err(Error::new("no column of text is given").hint(choose("--text COLUMN[,COLUMN]")));
        }
        if self.text.len() > 2 {
            let cause = format!("{} columns of text are given: {}", self.text.len(), self.text.join(", "));
            return Err(Error::new(cause).hint("a sample is one text or a pair of texts"));
        }
        if self.label.is_empty() {
            return Err(Error::new("no column of labels is given").hint(choose("--label COLUMN")));
        }
        let numbers = self.columns().iter().filter(|c| c.parse::<usize>().is_ok()).count();
        if format != TableFormat::Jsonl && numbers != 0 && numbers != self.columns().len() {
            let cause = format!("columns {} mix names and numbers", self.columns().join(", "));
            return Err(Error::new(cause).hint("names are those of a header, numbers are for files without one"));
        }
        if self.tokenizer.as_os_str().is_empty() {
            return Err(Error::new("no tokenizer is given")
                .hint("give the tokenizer.json that belongs to the model with --tokenizer FILE"));
        }
        Ok(())
    }
}

/// One file of a data set.
struct Part {
    file: PathBuf,
    rows: Vec<Row>,
}

/// Reads a file, or the files `train`, `dev` (or `val`, `valid`, `validation`) and `test` of a folder.
///
/// A test file that lacks a column or has no labels (GLUE's official ones) is left out, with a note.
pub(super) fn open(
    path: &Path,
    format: TableFormat,
    opening: &Opening<'_>,
    inputs: &[(String, Declared)],
) -> Result<Splits> {
    let unsaid = TextOptions::default();
    let options = opening.text.unwrap_or(&unsaid);
    let mut notes = Vec::new();
    let [train, valid, test] = files(path, format, &mut notes)?;
    let Some(train) = train else {
        let layout = format!(
            "expected train.{0} with dev.{0} (or val, valid, validation) and test.{0} beside it where there are such sets",
            format.name()
        );
        let hint = other_format(path, format).unwrap_or(layout);
        return Err(Error::new(format!("there is no train.{}", format.name())).in_file(path).hint(hint));
    };
    options.check(&train, format)?;
    let encoder = Encoder::new(&options.tokenizer, inputs, options.max_length, options.text.len())?;
    if encoder.longest != options.max_length {
        notes.push(format!("the model takes {} tokens: that is the length texts are cut at", encoder.longest));
    }
    let part =
        |file: PathBuf| -> Result<Part> { Ok(Part { rows: table::read(&file, format, &options.columns())?, file }) };
    let train = part(train)?;
    let valid = valid.map(part).transpose()?;
    let test = match test {
        Some(file) => labelled(file, format, options, &mut notes)?,
        None => None,
    };
    let parts: Vec<&Part> = [Some(&train), valid.as_ref(), test.as_ref()].into_iter().flatten().collect();
    let classes = Classes::new(&parts, options, opening)?;
    notes.extend(classes.note.clone());
    if classes.named && classes.names.len() <= SHOWN_CLASSES {
        let numbered: Vec<String> = classes.names.iter().enumerate().map(|(i, n)| format!("{n} {i}")).collect();
        notes.push(format!("classes: {}", numbered.join(", ")));
    }
    let mut tokens = Vec::with_capacity(parts.len());
    for part in &parts {
        let texts: Vec<&[String]> = part.rows.iter().map(|r| &r.fields[..options.text.len()]).collect();
        let encoded = encoder.encode(&texts)?;
        if encoded.cut > 0 {
            let name = part.file.file_name().unwrap_or_default().display();
            let (cut, all, length) = (encoded.cut, texts.len(), encoder.longest);
            notes.push(format!("{name}: {cut} of {all} texts are longer than {length} tokens and are cut"));
        }
        tokens.push(encoded);
    }
    let length = encoder.length(&tokens);
    if length < encoder.longest {
        notes.push(format!("texts are padded to {length} tokens: none is longer"));
    }
    let mut tokens = tokens.into_iter();
    let mut dataset = |part: &Part| -> Result<Dataset> {
        let Some(encoded) = tokens.next() else { crate::bail!("a part has no tokens") };
        let samples = Samples::Arrays(encoder.arrays(&encoded, length)?);
        let lengths = encoder.lengths(encoded, length);
        Ok(Dataset { lengths, ..Dataset::new(samples, classes.labels(part)?) })
    };
    let train_set = dataset(&train)?;
    let valid = valid.as_ref().map(&mut dataset).transpose()?;
    let test = test.as_ref().map(&mut dataset).transpose()?;
    Ok(Splits { train: train_set, valid, test, named: classes.named, classes: classes.names, notes })
}

/// The training, validation and test file: those whose names say so, in whatever case.
fn files(path: &Path, format: TableFormat, notes: &mut Vec<String>) -> Result<[Option<PathBuf>; 3]> {
    if !path.is_dir() {
        return Ok([Some(path.to_owned()), None, None]);
    }
    let files: Vec<PathBuf> = entries(path).into_iter().map(|n| path.join(n)).filter(|f| f.is_file()).collect();
    let ending = |f: &Path| f.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let stem = |f: &Path| f.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    Ok(Split::ALL.map(|part| {
        let is_part = |f: &&PathBuf| ending(f) == format.name() && Split::of(&stem(f)) == Some(part);
        let mut found: Vec<&PathBuf> = files.iter().filter(is_part).collect();
        // The usual names come first.
        found.sort_by_key(|f| USUAL.iter().position(|u| *u == stem(f)).unwrap_or(USUAL.len()));
        for other in found.iter().skip(1) {
            notes.push(format!("{} is not used: {} is the {} set", name(other), name(found[0]), part.title()));
        }
        found.first().map(|f| (*f).clone())
    }))
}

/// How to give a folder that has a training file of another format.
fn other_format(path: &Path, format: TableFormat) -> Option<String> {
    let other = |f: &TableFormat| *f != format && path.join(format!("train.{}", f.name())).is_file();
    let found = TableFormat::ALL.into_iter().find(other)?;
    Some(format!("there is train.{0}: give {0}:{1}", found.name(), path.display()))
}

/// A test file, when it has the columns and labels.
fn labelled(
    file: PathBuf,
    format: TableFormat,
    options: &TextOptions,
    notes: &mut Vec<String>,
) -> Result<Option<Part>> {
    let name = file.file_name().unwrap_or_default().display().to_string();
    if let Some(column) = table::missing(&file, format, &options.columns())?.first() {
        notes.push(format!("{name} has no column `{column}` and is left out"));
        return Ok(None);
    }
    let rows = table::read(&file, format, &options.columns())?;
    if rows.iter().all(|r| matches!(label(r), "" | "-1")) {
        notes.push(format!("{name} has no labels and is left out"));
        return Ok(None);
    }
    Ok(Some(Part { file, rows }))
}

fn label(row: &Row) -> &str {
    row.fields.last().map(|l| l.trim()).unwrap_or_default()
}

/// A label that is a whole number, be it written as `1.0`.
fn number(text: &str) -> Option<i64> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<f64>().ok().filter(|v| v.fract() == 0.0 && v.abs() < 1e9).map(|v| v as i64))
}

/// What labels mean.
struct Classes {
    names: Vec<String>,
    /// Labels are names; otherwise class numbers.
    named: bool,
    /// Whose classes the names are.
    whose: &'static str,
    /// Whether the data are evaluated only.
    evaluate: bool,
    note: Option<String>,
}

impl Classes {
    /// The classes that the settings or the model give, or those of the first part: class numbers, or else its labels in alphabetical
    /// order.
    fn new(parts: &[&Part], options: &TextOptions, opening: &Opening<'_>) -> Result<Self> {
        let named = |names: Vec<String>, whose: &'static str| Self {
            names,
            named: true,
            whose,
            evaluate: opening.evaluate,
            note: None,
        };
        let first = parts.first().map(|p| p.rows.as_slice()).unwrap_or_default();
        if !options.classes.is_empty() {
            return Ok(named(options.classes.clone(), MODEL));
        }
        let mut names: Vec<&str> = first.iter().map(label).filter(|l| !l.is_empty()).collect();
        names.sort_unstable();
        names.dedup();
        if let Some(word) = names.iter().find(|n| number(n).is_none()) {
            if names.iter().all(|n| n.parse::<f64>().is_ok_and(f64::is_finite)) {
                let file = parts.first().map_or(Path::new(""), |p| &p.file);
                let hint = "classes are names or whole numbers from 0 on; scores, as those of STS-B, cannot be learned";
                return Err(Error::new(format!("label `{word}` is no class")).in_file(file).hint(hint));
            }
            let is_known = |n: &&str| opening.classes.iter().any(|k| k == n);
            if !opening.classes.is_empty() && (!opening.rename || names.iter().all(is_known)) {
                return Ok(named(opening.classes.to_vec(), MODEL));
            }
            return Ok(named(names.into_iter().map(str::to_owned).collect(), TRAINING));
        }
        let decimal = names.iter().find(|n| n.parse::<i64>().is_err());
        let note = decimal.map(|n| format!("labels such as `{n}` are read as whole numbers"));
        let numbers = Self { names: Vec::new(), named: false, whose: TRAINING, evaluate: opening.evaluate, note };
        let mut classes = 0;
        for part in parts {
            classes = numbers.labels(part)?.into_iter().fold(classes, |n, label| n.max(label + 1));
        }
        Ok(Self { names: (0..classes).map(|c| c.to_string()).collect(), ..numbers })
    }

    /// The class of every sample.
    fn labels(&self, part: &Part) -> Result<Vec<i64>> {
        part.rows.iter().map(|row| self.class(row).map_err(|e| e.in_file(&part.file))).collect()
    }

    fn class(&self, row: &Row) -> Result<i64> {
        let (text, line) = (label(row), row.line);
        if text.is_empty() {
            return Err(Error::new(format!("line {line} has no label")).hint("every sample needs its class"));
        }
        if self.named {
            let found = self.names.iter().position(|n| n == text).map(|class| class as i64);
            return found.ok_or_else(|| {
                let e = unknown(text, &self.names, self.whose, self.evaluate);
                Error::new(format!("line {line}: label `{text}` is not among {}", self.whose)).hint_from(&e)
            });
        }
        number(text).filter(|n| (0..MAX_CLASSES as i64).contains(n)).ok_or_else(|| {
            Error::new(format!("line {line}: label `{text}` is no class number"))
                .hint("where the training labels are numbers, all labels are, counted from 0")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{DType, Dim};

    struct Place(tempfile::TempDir);

    impl Place {
        fn new(files: &[(&str, &str)]) -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            let tokenizer = include_str!("../../tests/text/tokenizer.json");
            for (name, text) in files.iter().chain(&[("tokenizer.json", tokenizer)]) {
                std::fs::write(place.0.path().join(name), text).unwrap();
            }
            place
        }

        fn open(&self, name: &str, format: TableFormat, options: &TextOptions) -> Result<Splits> {
            let dims = Some(vec![Dim::Unknown, Dim::Symbol("length".into())]);
            let inputs = [("input_ids".to_owned(), Declared { dtype: DType::I64, dims })];
            let tokenizer = self.0.path().join("tokenizer.json");
            let options = TextOptions { tokenizer, ..options.clone() };
            open(&self.0.path().join(name), format, &Opening { text: Some(&options), ..Opening::default() }, &inputs)
        }
    }

    fn columns(text: &[&str], label: &str) -> TextOptions {
        let text = text.iter().map(|t| (*t).to_owned()).collect();
        TextOptions { text, label: label.into(), max_length: 6, ..TextOptions::default() }
    }

    fn ids(set: &Dataset) -> Vec<i64> {
        let Samples::Arrays(arrays) = &set.samples else { panic!() };
        arrays["input_ids"].to_i64().unwrap()
    }

    const NAMED: &str = "a\tb\tlabel\ngood\tfilm\tyes\nbad\tplot\tno\n";

    #[test]
    fn splits_classes_and_notes_come_from_a_folder_as_glue_has_it() {
        let place = Place::new(&[
            ("train.tsv", NAMED),
            ("dev.tsv", "a\tb\tlabel\ngood good good good\tplot\tno\n"),
            ("val.tsv", "not read"),
            ("test.tsv", "index\ta\tb\n0\tgood\tfilm\n"),
        ]);
        let splits = place.open("", TableFormat::Tsv, &columns(&["a", "b"], "label")).unwrap();
        assert_eq!(splits.classes, ["no", "yes"]);
        assert_eq!((splits.train.labels, splits.valid.unwrap().labels), (vec![1, 0], vec![0]));
        assert!(splits.test.is_none());
        let want = [
            "val.tsv is not used: dev.tsv is the validation set",
            "test.tsv has no column `label` and is left out",
            "classes: no 0, yes 1",
            "dev.tsv: 1 of 1 texts are longer than 6 tokens and are cut",
        ];
        assert_eq!(splits.notes, want);
    }

    #[test]
    fn a_file_alone_is_the_training_set_and_integer_labels_stay() {
        let place = Place::new(&[("cola.tsv", "x\t0\t\tgood\nx\t2\t*\tbad\n")]);
        let splits = place.open("cola.tsv", TableFormat::Tsv, &columns(&["4"], "2")).unwrap();
        assert_eq!((splits.train.labels.as_slice(), splits.classes.len()), (&[0, 2][..], 3));
        assert!(splits.valid.is_none() && splits.test.is_none() && splits.notes.is_empty());
        assert_eq!(ids(&splits.train).len(), 12);
    }

    #[test]
    fn the_three_formats_hold_the_same() {
        let place = Place::new(&[
            ("train.tsv", NAMED),
            ("train.csv", "label,b,a\nyes,\"film\",good\nno,plot,bad\n"),
            (
                "train.jsonl",
                "{\"a\":\"good\",\"b\":\"film\",\"label\":\"yes\"}\n{\"label\":\"no\",\"b\":\"plot\",\"a\":\"bad\"}",
            ),
        ]);
        let splits = TableFormat::ALL.map(|f| place.open("", f, &columns(&["a", "b"], "label")).unwrap());
        assert_eq!(splits[0], splits[1]);
        assert_eq!(splits[0], splits[2]);
    }

    #[test]
    fn unlabelled_test_files_are_left_out_and_classes_can_be_given() {
        let place = Place::new(&[("train.csv", "s,y\nfine,1\nbad,0\n"), ("test.csv", "s,y\ngood,-1\n")]);
        let splits = place.open("", TableFormat::Csv, &columns(&["s"], "y")).unwrap();
        assert!(splits.test.is_none() && splits.notes[0].contains("test.csv has no labels"));
        let place = Place::new(&[("one.tsv", "s\ty\ngood\tyes\n")]);
        let given = TextOptions { classes: vec!["no".into(), "yes".into()], ..columns(&["s"], "y") };
        assert_eq!(place.open("one.tsv", TableFormat::Tsv, &given).unwrap().train.labels, [1]);
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |files: &[(&str, &str)], options: &TextOptions, parts: &[&str]| {
            let e = Place::new(files).open("", TableFormat::Tsv, options).unwrap_err();
            assert!(parts.iter().all(|p| e.to_string().contains(p)) && e.hint_text().is_some(), "{parts:?}: {e}");
            e.hint_text().unwrap_or_default().to_owned()
        };
        let (good, one) = (columns(&["a", "b"], "label"), columns(&["a"], "label"));
        let named = ("train.tsv", NAMED);
        assert!(refused(&[named], &columns(&["a", "c"], "label"), &["train.tsv", "`c`"]).contains("a, b, label"));
        assert!(refused(&[named], &TextOptions::default(), &["no column of text"]).contains("a, b, label"));
        refused(&[named], &columns(&["a"], ""), &["no column of labels"]);
        refused(&[named], &columns(&["a", "b", "c"], "label"), &["3 columns of text"]);
        refused(&[named], &columns(&["1"], "label"), &["mix names and numbers"]);
        refused(&[("dev.tsv", NAMED)], &good, &["no train.tsv"]);
        let other = ("dev.tsv", "a\tb\tlabel\ngood\tfilm\tyes\nfine\tfilm\tperhaps\n");
        assert!(refused(&[named, other], &good, &["dev.tsv", "line 3", "`perhaps`"]).contains("no, yes"));
        let train = |labels: [&str; 2]| format!("a\tlabel\ngood\t{}\nbad\t{}\n", labels[0], labels[1]);
        refused(&[("train.tsv", &train(["1", "-1"]))], &one, &["train.tsv", "line 3", "`-1`"]);
        refused(&[("train.tsv", &train(["yes", ""]))], &one, &["train.tsv", "line 3 has no label"]);
        refused(&[("train.tsv", &train(["1.5", "3"]))], &one, &["train.tsv", "`1.5` is no class"]);
        let (numbers, words) = (train(["1", "0"]), train(["1", "x"]));
        refused(&[("train.tsv", &numbers), ("dev.tsv", &words)], &one, &["dev.tsv", "line 3", "`x`"]);
    }
}
