//! Text laid out for people: sections, aligned columns, human units; colour on a terminal only.

use std::fmt::Write as _;
use std::io::IsTerminal;

/// Width of a section's rule.
const WIDTH: usize = 78;

/// How a piece of text stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// It does not.
    Plain,
    /// Less important.
    Dim,
    /// A title.
    Bold,
    /// Fine.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Dim => "2",
            Self::Bold => "1",
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31;1",
        }
    }
}

/// One cell of a table.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    tone: Tone,
    right: bool,
}

/// A cell, aligned to the left.
pub fn cell(text: impl Into<String>) -> Cell {
    Cell { text: text.into(), tone: Tone::Plain, right: false }
}

/// A cell, aligned to the right.
pub fn number(text: impl Into<String>) -> Cell {
    Cell { right: true, ..cell(text) }
}

impl Cell {
    /// The same cell in another tone.
    pub fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }
}

/// Text under construction.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    colour: bool,
}

impl Page {
    /// An empty page for standard output: coloured when that is a terminal and `NO_COLOR` is not set.
    pub fn stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { text: String::new(), colour: wanted && std::io::stdout().is_terminal() }
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.text
    }

    /// `text` in a tone.
    pub fn paint(&self, text: &str, tone: Tone) -> String {
        if self.colour && tone != Tone::Plain && !text.is_empty() {
            format!("\x1b[{}m{text}\x1b[0m", tone.code())
        } else {
            text.to_owned()
        }
    }

    /// A line.
    pub fn line(&mut self, text: &str) {
        self.text.push_str(text.trim_end());
        self.text.push('\n');
    }

    /// A title with its rule: `── Inputs ───────── 2`.
    pub fn section(&mut self, title: &str, note: &str) {
        let used = title.chars().count() + note.chars().count() + 4 + usize::from(!note.is_empty());
        let rule = "─".repeat(WIDTH.saturating_sub(used).max(3));
        let left = self.paint("──", Tone::Dim);
        let (title, rule) = (self.paint(title, Tone::Bold), self.paint(&rule, Tone::Dim));
        self.line("");
        self.line(&format!("{left} {title} {rule} {note}"));
    }

    /// Rows with aligned columns.
    pub fn table(&mut self, rows: &[Vec<Cell>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|x| x.text.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let mut line = String::from("  ");
            for (i, (c, width)) in row.iter().zip(&widths).enumerate() {
                let fill = " ".repeat(width - c.text.chars().count());
                let text = self.paint(&c.text, c.tone);
                let gap = if i == 0 { "" } else { "  " };
                let _ = if c.right { write!(line, "{gap}{fill}{text}") } else { write!(line, "{gap}{text}{fill}") };
            }
            self.line(&line);
        }
    }
}

/// `272.5 K`: a count with a decimal prefix.
pub fn count(n: u64) -> String {
    scaled(n as f64, 1000.0, &["", " K", " M", " G", " T", " P"])
}

/// `1.1 MB`: bytes with a decimal prefix.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, 1000.0, &[" B", " KB", " MB", " GB", " TB", " PB"])
}

fn scaled(n: f64, base: f64, units: &[&str]) -> String {
    let (mut n, mut i) = (n, 0);
    while n >= base * 0.99995 && i + 1 < units.len() {
        n /= base;
        i += 1;
    }
    if i == 0 { format!("{n}{}", units[0]) } else { format!("{n:.1}{}", units[i]) }
}

/// `64×3×3`; `scalar` without dimensions.
pub fn shape(dims: &[usize]) -> String {
    let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
    if dims.is_empty() { "scalar".into() } else { dims.join("×") }
}

/// `text`, shortened in the middle to `width` characters.
pub fn shorten(text: &str, width: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= width {
        return text.to_owned();
    }
    let (head, tail) = (width / 3, width - width / 3 - 1);
    chars[..head].iter().chain(&['…']).chain(&chars[chars.len() - tail..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(count(999), "999");
        assert_eq!(count(272_474), "272.5 K");
        assert_eq!(bytes(1_089_896), "1.1 MB");
        assert_eq!(count(999_990), "1.0 M");
    }

    #[test]
    fn columns_are_aligned_by_characters() {
        let mut page = Page::default();
        page.table(&[vec![cell("×"), number("1")], vec![cell("abc"), number("20")]]);
        assert_eq!(page.into_text(), "  ×     1\n  abc  20\n");
    }

    #[test]
    fn long_names_keep_their_ends() {
        assert_eq!(shorten("abcdefghijkl", 7), "ab…ijkl");
    }
}
