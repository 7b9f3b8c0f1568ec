//! What a figure is made of, in units of CSS pixels from the upper left corner.

use super::colour::Colour;
use super::{png, svg};
use crate::error::Result;
use crate::files::write_atomically;
use std::path::Path;

/// Where a text stands beside its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A piece of text on its baseline.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub at: (f64, f64),
    pub text: String,
    pub size: f64,
    pub colour: Colour,
    pub anchor: Anchor,
    /// Whether it reads upwards.
    pub upwards: bool,
}

/// One mark.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    /// A rectangle from its upper left corner, with hard edges, so that neighbours leave no seam.
    Rectangle { at: (f64, f64), size: (f64, f64), colour: Colour },
    /// A line through points; `dash` gives the lengths of dashes and gaps.
    Line { points: Vec<(f64, f64)>, colour: Colour, width: f64, dash: &'static [f64] },
    /// A translucent area inside points.
    Area { points: Vec<(f64, f64)>, colour: Colour, opacity: f64 },
    /// A dot.
    Dot { at: (f64, f64), radius: f64, colour: Colour },
    /// A text.
    Text(Text),
}

/// A figure that is laid out.
#[derive(Debug, Clone)]
pub struct Drawing {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) title: String,
    pub(super) shapes: Vec<Shape>,
}

impl Drawing {
    /// An empty figure with its title at the top.
    pub(super) fn new(width: f64, height: f64, title: &str) -> Self {
        let mut drawing = Self { width, height, title: title.to_owned(), shapes: Vec::new() };
        let text = super::font::shorten(title, TITLE, width - 20.0);
        drawing.shapes.push(Shape::Text(Text {
            at: (width / 2.0, 24.0),
            text,
            size: TITLE,
            colour: Colour::TEXT,
            anchor: Anchor::Middle,
            upwards: false,
        }));
        drawing
    }

    /// Appends a straight or broken line.
    pub(super) fn line(&mut self, points: &[(f64, f64)], colour: Colour, width: f64) {
        self.shapes.push(Shape::Line { points: points.to_vec(), colour, width, dash: &[] });
    }

    /// Appends a rectangle.
    pub(super) fn rectangle(&mut self, at: (f64, f64), size: (f64, f64), colour: Colour) {
        self.shapes.push(Shape::Rectangle { at, size, colour });
    }

    /// Appends text of the size of labels, its middle line at `at`.
    pub(super) fn label(&mut self, at: (f64, f64), text: &str, anchor: Anchor, colour: Colour) {
        let at = (at.0, at.1 + LABEL * MIDDLE);
        let text = text.to_owned();
        self.shapes.push(Shape::Text(Text { at, text, size: LABEL, colour, anchor, upwards: false }));
    }

    /// Appends text of the size of labels that reads upwards, its middle line at `at`.
    pub(super) fn upwards(&mut self, at: (f64, f64), text: &str, anchor: Anchor) {
        let at = (at.0 + LABEL * MIDDLE, at.1);
        let (text, colour) = (text.to_owned(), Colour::TEXT);
        self.shapes.push(Shape::Text(Text { at, text, size: LABEL, colour, anchor, upwards: true }));
    }

    /// The figure as one SVG element with a white ground.
    pub fn svg(&self) -> String {
        svg::write(self)
    }

    /// The figure as a PNG file, two pixels to the unit.
    ///
    /// # Errors
    /// A figure too large for memory.
    pub fn png(&self) -> Result<Vec<u8>> {
        png::encode(self)
    }

    /// Writes `STEM.svg` and `STEM.png`.
    ///
    /// # Errors
    /// An I/O error.
    pub fn write(&self, stem: &Path) -> Result<()> {
        let file = |extension: &str| {
            let mut name = stem.as_os_str().to_owned();
            name.push(extension);
            std::path::PathBuf::from(name)
        };
        write_atomically(&file(".svg"), self.svg().as_bytes())?;
        write_atomically(&file(".png"), &self.png()?)
    }
}

/// Height of a title's letters.
const TITLE: f64 = 15.0;

/// Height of labels.
pub(super) const LABEL: f64 = 12.0;

/// How far below its middle line a text's baseline lies, in heights.
const MIDDLE: f64 = 0.36;
