//! Tables with a sample per row: tab-separated, comma-separated, or JSON Lines.

use crate::error::{Error, IoContext, Result};
use crate::wording::{count, nearest};
use csv::{ErrorKind, Reader, ReaderBuilder};
use serde_json::{Map, Value};
use std::path::Path;

/// How a table is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// Columns between tabs. Quotation marks mean nothing, as in GLUE's files.
    Tsv,
    /// Columns between commas, quoted where they hold commas, quotation marks or line breaks (RFC 4180).
    Csv,
    /// A JSON object per line; its keys are the columns.
    Jsonl,
}

impl TableFormat {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::Tsv, Self::Csv, Self::Jsonl];

    /// Its name, which is the extension of its files too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tsv => "tsv",
            Self::Csv => "csv",
            Self::Jsonl => "jsonl",
        }
    }
}

/// The wanted columns of one sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Line of the file, counted from 1.
    pub(super) line: u64,
    /// The columns in the order that was asked for.
    pub(super) fields: Vec<String>,
}

/// Those of `columns` that the file does not have, by its first line.
///
/// # Errors
/// A file that cannot be read or is empty.
pub(super) fn missing(file: &Path, format: TableFormat, columns: &[&str]) -> Result<Vec<String>> {
    let there = names(file, format, numbered(columns))?;
    Ok(columns.iter().filter(|c| there.iter().all(|t| t != *c)).map(|c| (*c).to_owned()).collect())
}

/// The names of a file's columns; their numbers when it has no header.
///
/// # Errors
/// A file that cannot be read or is empty.
pub(super) fn names(file: &Path, format: TableFormat, numbered: bool) -> Result<Vec<String>> {
    names_in(&text(file)?, format, numbered).map_err(|e| e.in_file(file))
}

/// Reads these columns of every sample. Columns that are all numbers are counted from 1, and the file has no header then.
///
/// # Errors
/// A file that cannot be read, lacks a column, or has a line that is not like the others: names the line.
pub(super) fn read(file: &Path, format: TableFormat, columns: &[&str]) -> Result<Vec<Row>> {
    let text = text(file)?;
    let read = || {
        let there = names_in(&text, format, format != TableFormat::Jsonl && numbered(columns))?;
        if let Some(column) = columns.iter().find(|c| there.iter().all(|t| t != *c)) {
            let meant = nearest(column, &there).map_or_else(String::new, |c| format!("did you mean `{c}`? "));
            let hint = format!("{meant}its columns are: {}", there.join(", "));
            return Err(Error::new(format!("there is no column `{column}`")).hint(hint));
        }
        let rows = match format {
            TableFormat::Tsv | TableFormat::Csv => read_delimited(&text, format, columns, &there),
            TableFormat::Jsonl => read_objects(&text, columns),
        }?;
        if rows.is_empty() {
            return Err(Error::new("there are no samples").hint("a header alone is no data"));
        }
        Ok(rows)
    };
    read().map_err(|e| e.in_file(file))
}

/// Whether columns are asked for by number.
fn numbered(columns: &[&str]) -> bool {
    columns.iter().all(|c| c.parse::<usize>().is_ok())
}

/// The content of a file, without a byte order mark.
fn text(file: &Path) -> Result<String> {
    let hint = "give the path of a table, or of a folder with a train file";
    let bytes = std::fs::read(file).file(file).map_err(|e| e.hint(hint))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        Error::new(format!("line {line} is not UTF-8")).in_file(file).hint("convert the file to UTF-8")
    })?;
    if text.trim().is_empty() {
        return Err(Error::new("the file is empty").in_file(file).hint("a sample per line is expected"));
    }
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn names_in(text: &str, format: TableFormat, numbered: bool) -> Result<Vec<String>> {
    if format == TableFormat::Jsonl {
        let first = objects(text).next().transpose()?;
        let with_value = first.into_iter().flat_map(|(_, object)| object).filter(|(_, v)| !v.is_null());
        return Ok(with_value.map(|(name, _)| name).collect());
    }
    let first = reader(text, format, false).into_records().next().transpose();
    let first = first.map_err(|e| Error::new(e.to_string()))?.unwrap_or_default();
    if numbered {
        Ok((1..=first.len()).map(|i| i.to_string()).collect())
    } else {
        Ok(first.iter().map(|name| name.trim().to_owned()).collect())
    }
}

fn reader(text: &str, format: TableFormat, header: bool) -> Reader<&[u8]> {
    let mut builder = ReaderBuilder::new();
    builder.has_headers(header);
    if format == TableFormat::Tsv {
        builder.delimiter(b'\t').quoting(false);
    }
    builder.from_reader(text.as_bytes())
}

/// Finds the lines of ascending places in a text.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: u64,
}

impl Lines<'_> {
    /// The line of the first record from `place` on. A record's place is that of the line break, or empty lines, before it.
    fn line(&mut self, place: Option<&csv::Position>) -> u64 {
        let from = place.map_or(self.at, |p| p.byte() as usize);
        let breaks = self.text.as_bytes()[from..].iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let skipped = &self.text.as_bytes()[self.at..from + breaks];
        self.line += skipped.iter().filter(|b| **b == b'\n').count() as u64;
        self.at = from + breaks;
        self.line
    }
}

/// The rows of a table whose columns are `there`.
fn read_delimited(text: &str, format: TableFormat, columns: &[&str], there: &[String]) -> Result<Vec<Row>> {
    let at: Vec<usize> = columns.iter().filter_map(|c| there.iter().position(|t| t == c)).collect();
    let mut lines = Lines { text, at: 0, line: 1 };
    let mut rows = Vec::new();
    for record in reader(text, format, !numbered(columns)).into_records() {
        let record = record.map_err(|e| {
            let line = lines.line(e.position());
            match e.kind() {
                ErrorKind::UnequalLengths { expected_len, len, .. } => Error::new(format!(
                    "line {line} has {}, but the first has {expected_len}",
                    count(*len as usize, "column")
                ))
                .hint("every line needs the same columns: look for a missing or an additional separator"),
                _ => Error::new(e.to_string()),
            }
        })?;
        let field = |i: &usize| record.get(*i).unwrap_or_default().to_owned();
        rows.push(Row { line: lines.line(record.position()), fields: at.iter().map(field).collect() });
    }
    Ok(rows)
}

/// The objects of a text, with their lines; empty lines are passed over.
fn objects(text: &str) -> impl Iterator<Item = Result<(u64, Map<String, Value>)>> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(line, text)| {
        let object = serde_json::from_str(text).map_err(|e| {
            Error::new(format!("line {line} is not a JSON object: {e}"))
                .hint("JSON Lines has one object per line (`jq -c '.[]'` makes them of an array)")
        })?;
        Ok((line, object))
    })
}

fn read_objects(text: &str, columns: &[&str]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for object in objects(text) {
        let (line, mut object) = object?;
        let mut field = |column: &&str| match object.remove(*column) {
            Some(Value::String(text)) => Ok(text),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
            None | Some(Value::Null) => {
                Err(Error::new(format!("line {line} has no `{column}`")).hint("every object needs the same keys"))
            }
            Some(_) => Err(Error::new(format!("line {line}: `{column}` is neither text nor a number"))
                .hint("nested values are no columns")),
        };
        rows.push(Row { line, fields: columns.iter().map(&mut field).collect::<Result<_>>()? });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn rows(format: TableFormat, text: &str, columns: &[&str]) -> Vec<(u64, Vec<String>)> {
        let rows = read(file(text.as_bytes()).path(), format, columns).unwrap();
        rows.into_iter().map(|r| (r.line, r.fields)).collect()
    }

    fn refused(format: TableFormat, text: &[u8], columns: &[&str], cause: &str) {
        let file = file(text);
        let e = read(file.path(), format, columns).unwrap_err();
        let place = format!("{}: ", file.path().display());
        assert!(e.to_string().starts_with(&place) && e.cause().contains(cause), "{cause}: {e}");
        assert!(e.hint_text().is_some(), "{e}");
    }

    fn owned(fields: &[&str]) -> Vec<String> {
        fields.iter().map(|f| (*f).to_owned()).collect()
    }

    #[test]
    fn quotation_marks_mean_nothing_between_tabs() {
        let text = "\u{feff}index\ts\tlabel\r\n0\tHe said \"no.\t1\r\n\r\n1\t\"Yes\", she said\t0\r\n";
        let want = [(2, owned(&["1", "He said \"no."])), (4, owned(&["0", "\"Yes\", she said"]))];
        assert_eq!(rows(TableFormat::Tsv, text, &["label", "s"]), want);
    }

    #[test]
    fn commas_and_line_breaks_are_quoted() {
        let text = "s, label\n\"one, \"\"two\"\"\nthree\",1\nfour,0\n";
        let want = [(2, owned(&["one, \"two\"\nthree", "1"])), (4, owned(&["four", "0"]))];
        assert_eq!(rows(TableFormat::Csv, text, &["s", "label"]), want);
    }

    #[test]
    fn numbers_name_columns_where_there_is_no_header() {
        let text = "gj04\t1\t\tShe left.\ngj05\t0\t*\tShe leaved.\n";
        let want = [(1, owned(&["She left.", "1"])), (2, owned(&["She leaved.", "0"]))];
        assert_eq!(rows(TableFormat::Tsv, text, &["4", "2"]), want);
        let missing = missing(file(text.as_bytes()).path(), TableFormat::Tsv, &["5", "2", "0"]).unwrap();
        assert_eq!(missing, ["5", "0"]);
    }

    #[test]
    fn objects_have_keys() {
        let text = "{\"s\": \"a\\tb\", \"label\": 1, \"more\": [2]}\n\n{\"label\": \"x\", \"s\": \"c\"}";
        let want = [(1, owned(&["a\tb", "1"])), (3, owned(&["c", "x"]))];
        assert_eq!(rows(TableFormat::Jsonl, text, &["s", "label"]), want);
        let unlabelled = file(b"{\"s\": \"a\", \"label\": null}");
        assert_eq!(missing(unlabelled.path(), TableFormat::Jsonl, &["s", "label"]).unwrap(), ["label"]);
    }

    #[test]
    fn bad_tables_are_named_by_their_line() {
        use TableFormat::{Csv, Jsonl, Tsv};
        let columns = ["s", "label"];
        for format in TableFormat::ALL {
            refused(format, b"", &columns, "the file is empty");
        }
        refused(Tsv, b"s\tlabel\n", &columns, "no samples");
        refused(Tsv, b"s\tclass\na\t1\n", &columns, "no column `label`");
        refused(Tsv, b"a\t1\n", &["1", "3"], "no column `3`");
        refused(Tsv, b"s\tlabel\na\t1\nb\nc\t1\n", &columns, "line 3 has 1 column, but the first has 2");
        refused(Csv, b"s,label\na,b,1\n", &columns, "line 2 has 3 columns");
        refused(Tsv, b"s\tlabel\na\t1\n\xff\t1\n", &columns, "line 3 is not UTF-8");
        refused(Jsonl, b"{\"s\": \"a\", \"label\": 1}\n{\"s\": 1\n", &columns, "line 2 is not a JSON object");
        refused(Jsonl, b"[{\"s\": \"a\", \"label\": 1}]\n", &columns, "line 1 is not a JSON object");
        refused(Jsonl, b"{\"s\": \"a\", \"label\": 1}\n{\"s\": \"b\"}\n", &columns, "line 2 has no `label`");
        refused(Jsonl, b"{\"s\": [\"a\"], \"label\": 1}\n", &columns, "line 1: `s` is neither text nor a number");
        refused(Jsonl, b"{\"s\": \"a\", \"label\": 1}\n\xff\n", &columns, "line 2 is not UTF-8");
    }
}
