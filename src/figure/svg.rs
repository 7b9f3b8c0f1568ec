//! A drawing as SVG.

use super::drawing::{Anchor, Drawing, Shape, Text};
use super::font::FAMILY;
use std::fmt::Write;

/// `text` as it may stand in HTML, SVG and their attributes; control characters, which neither allows, are left out.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\u{fffe}' | '\u{ffff}' => {}
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// A length with at most two decimals, which is finer than any screen.
fn n(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

fn points(points: &[(f64, f64)]) -> String {
    points.iter().map(|(x, y)| format!("{},{}", n(*x), n(*y))).collect::<Vec<_>>().join(" ")
}

/// The drawing as one element.
pub(super) fn write(drawing: &Drawing) -> String {
    let (w, h, title) = (n(drawing.width), n(drawing.height), escape(&drawing.title));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" role=\"img\" \
         aria-label=\"{title}\" font-family=\"{FAMILY}\">\n<rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>\n"
    );
    for shape in &drawing.shapes {
        // Writing to a string does not fail.
        let _ = match shape {
            Shape::Rectangle { at, size, colour } => writeln!(
                out,
                "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{colour}\" shape-rendering=\"crispEdges\"/>",
                n(at.0),
                n(at.1),
                n(size.0),
                n(size.1)
            ),
            Shape::Line { points: line, colour, width, dash } => {
                let dash: Vec<String> = dash.iter().map(|d| n(*d)).collect();
                let dash =
                    if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{}\"", dash.join(" ")) };
                writeln!(
                    out,
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{}\" \
                     stroke-linejoin=\"round\"{dash}/>",
                    points(line),
                    n(*width)
                )
            }
            Shape::Area { points: area, colour, opacity } => writeln!(
                out,
                "<polygon points=\"{}\" fill=\"{colour}\" fill-opacity=\"{}\"/>",
                points(area),
                n(*opacity)
            ),
            Shape::Dot { at, radius, colour } => {
                writeln!(out, "<circle cx=\"{}\" cy=\"{}\" r=\"{}\" fill=\"{colour}\"/>", n(at.0), n(at.1), n(*radius))
            }
            Shape::Text(text) => writeln!(out, "{}", write_text(text)),
        };
    }
    out + "</svg>\n"
}

fn write_text(text: &Text) -> String {
    let anchor = match text.anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let (x, y) = (n(text.at.0), n(text.at.1));
    let turn = if text.upwards { format!(" transform=\"rotate(-90 {x} {y})\"") } else { String::new() };
    format!(
        "<text x=\"{x}\" y=\"{y}\" font-size=\"{}\" fill=\"{}\" text-anchor=\"{anchor}\"{turn}>{}</text>",
        n(text.size),
        text.colour,
        escape(&text.text)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("<a href=\"x\">'&'\u{0}\n"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;\n");
    }

    #[test]
    fn lengths_are_short() {
        assert_eq!(["1.5", "2", "0", "-3.25"], [n(1.5), n(2.0), n(-0.001), n(-3.25)].each_ref().map(|s| s.as_str()));
    }
}
