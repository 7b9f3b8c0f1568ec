//! The embedded font, DejaVu Sans: widths and outlines of letters.

use tiny_skia::{Path, PathBuilder, Transform};
use ttf_parser::{Face, OutlineBuilder};

/// What SVG readers are asked for; they take their own sans-serif font where they do not have it.
pub(super) const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// The font; `None` would mean a damaged file in the crate that carries it.
fn face() -> Option<Face<'static>> {
    Face::parse(dejavu::sans::regular(), 0).ok()
}

fn advance(face: &Face<'_>, letter: char) -> f64 {
    let glyph = face.glyph_index(letter).unwrap_or_default();
    f64::from(face.glyph_hor_advance(glyph).unwrap_or(0)) / f64::from(face.units_per_em())
}

/// Width of a text whose letters are `size` high.
pub(super) fn width(text: &str, size: f64) -> f64 {
    face().map_or(0.0, |face| text.chars().map(|c| advance(&face, c)).sum::<f64>() * size)
}

/// `text`, shortened at its end to be at most `room` wide.
pub(super) fn shorten(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let mut kept: Vec<char> = text.chars().collect();
    loop {
        kept.pop();
        let short: String = kept.iter().chain(&['…']).collect();
        if kept.is_empty() || width(&short, size) <= room {
            return short;
        }
    }
}

/// The outlines of a text that starts at the origin of `place`; `None` for blank text.
pub(super) fn outline(text: &str, size: f64, place: Transform) -> Option<Path> {
    let face = face()?;
    let scale = size as f32 / f32::from(face.units_per_em());
    let mut pen = Pen { path: PathBuilder::new(), scale, x: 0.0 };
    for letter in text.chars() {
        face.outline_glyph(face.glyph_index(letter).unwrap_or_default(), &mut pen);
        pen.x += (advance(&face, letter) * size) as f32;
    }
    pen.path.finish()?.transform(place)
}

/// Draws glyphs, whose y axis points up, one behind the other.
struct Pen {
    path: PathBuilder,
    scale: f32,
    x: f32,
}

impl Pen {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.scale, -y * self.scale)
    }
}

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_has_every_letter_that_labels_need() {
        let face = face().expect("a font");
        for letter in "ρφμαεγ−∇±‖…–λσ₁²".chars() {
            assert!(face.glyph_index(letter).is_some(), "{letter} is missing");
        }
    }

    #[test]
    fn texts_are_shortened_to_their_room() {
        assert_eq!(shorten("abc", 12.0, 100.0), "abc");
        let short = shorten(&"resnet".repeat(20), 12.0, 100.0);
        assert!(short.ends_with('…') && width(&short, 12.0) <= 100.0, "{short}");
        assert_eq!(shorten("abc", 12.0, 0.0), "…");
    }
}
