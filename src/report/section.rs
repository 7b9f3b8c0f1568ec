//! The page and its parts. All text that goes in is escaped here.

use crate::figure::{Drawing, escape};

/// A part of a report under a heading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Section {
    title: String,
    html: String,
}

impl Section {
    /// An empty section.
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), html: String::new() }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.html.is_empty()
    }

    /// Adds a paragraph.
    pub fn text(mut self, text: &str) -> Self {
        self.html += &format!("<p>{}</p>\n", escape(text));
        self
    }

    /// Adds a figure.
    pub fn figure(mut self, drawing: &Drawing) -> Self {
        self.html += &format!("<figure>\n{}</figure>\n", drawing.svg());
        self
    }

    /// Adds a table. Columns of numbers are aligned to the right.
    pub fn table(mut self, head: &[&str], rows: &[Vec<String>]) -> Self {
        let is_text =
            |column: usize| rows.iter().filter_map(|r| r.get(column)).any(|cell| cell.starts_with(char::is_alphabetic));
        let row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
            let cell = |(column, text)| {
                let class = if is_text(column) { " class=\"text\"" } else { "" };
                format!("<{tag}{class}>{}</{tag}>", escape(text))
            };
            format!("<tr>{}</tr>\n", cells.enumerate().map(cell).collect::<String>())
        };
        let body: String = rows.iter().map(|r| row("td", &mut r.iter().map(String::as_str))).collect();
        let head = row("th", &mut head.iter().copied());
        self.html +=
            &format!("<div class=\"wide\"><table>\n<thead>{head}</thead>\n<tbody>{body}</tbody>\n</table></div>\n");
        self
    }

    /// Adds a file as it stands, under its name; `folded` shows it on a click only.
    pub fn file(mut self, name: &str, text: &str, folded: bool) -> Self {
        let open = if folded { "" } else { " open" };
        let (name, text) = (escape(name), escape(text.trim_end()));
        self.html += &format!("<details{open}><summary>{name}</summary><pre>{text}</pre></details>\n");
        self
    }
}

/// A page with `facts` (what and its value) below its title; complete without scripts and without a network.
pub fn html_page(title: &str, facts: &[(String, String)], sections: &[Section]) -> String {
    let title = escape(title);
    let facts: String =
        facts.iter().map(|(what, value)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(what), escape(value))).collect();
    let facts = if facts.is_empty() { facts } else { format!("<dl>\n{facts}</dl>\n") };
    let sections: String =
        sections.iter().map(|s| format!("<section>\n<h2>{}</h2>\n{}</section>\n", escape(&s.title), s.html)).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n{facts}</header>\n\
         <main>\n{sections}</main>\n<footer>bisam {}</footer>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Dark where the reader's system is; figures stay on white ground, and paper is white.
const STYLE: &str = "\
:root { color-scheme: light dark; --text: #24292f; --soft: #57606a; --ground: #ffffff; --panel: #f6f8fa; --rule: #d0d7de; }
@media screen and (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9198a1; --ground: #0d1117; --panel: #161b22; --rule: #30363d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem; max-width: 78rem; color: var(--text); background: var(--ground);
  font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; }
h1 { margin: 0 0 1rem; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 0.8rem; padding-bottom: 0.3rem; font-size: 1.2rem; border-bottom: 1px solid var(--rule); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1.5rem; margin: 0; }
dt, footer { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { display: inline-block; margin: 0 0.6rem 0.8rem 0; max-width: 100%; vertical-align: top; }
figure svg { display: block; max-width: 100%; max-height: 44rem; height: auto; margin: 0 auto; border: 1px solid var(--rule); border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.9rem; text-align: right; border-bottom: 1px solid var(--rule); }
th.text, td.text { text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
summary { margin: 0.5rem 0; cursor: pointer; }
pre { margin: 0; padding: 1rem; overflow-x: auto; background: var(--panel); border-radius: 6px; font-size: 13px; }
footer { margin-top: 2.5rem; font-size: 0.85rem; }
@media (min-width: 62rem) { figure { width: calc(50% - 0.8rem); } }
@media print {
  body { max-width: none; padding: 0; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  pre { white-space: pre-wrap; }
}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Chart;

    #[test]
    fn nothing_gets_through_unescaped() {
        let bad = "<script>alert('x')</script>";
        let section = Section::new(bad)
            .text(bad)
            .table(&[bad], &[vec![bad.into()]])
            .file(bad, bad, true)
            .figure(&Chart { title: bad.into(), x: bad.into(), ..Chart::default() }.draw());
        let page = html_page(bad, &[(bad.into(), bad.into())], &[section]);
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    }
}
