//! A drawing as PNG.

use super::colour::Colour;
use super::drawing::{Anchor, Drawing, Shape, Text};
use super::font::{outline, width};
use crate::error::{Error, Result};
use tiny_skia::{FillRule, LineJoin, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, StrokeDash, Transform};

/// Pixels to the unit.
const SCALE: f32 = 2.0;

/// The drawing as the bytes of a file.
pub(super) fn encode(drawing: &Drawing) -> Result<Vec<u8>> {
    let side = |length: f64| (length as f32 * SCALE).ceil() as u32;
    let (w, h) = (side(drawing.width), side(drawing.height));
    let mut canvas =
        Pixmap::new(w, h).ok_or_else(|| Error::new(format!("a figure of {w} × {h} pixels cannot be drawn")))?;
    canvas.fill(tiny_skia::Color::WHITE);
    for shape in &drawing.shapes {
        draw(&mut canvas, shape);
    }
    canvas.encode_png().map_err(|e| Error::new(format!("cannot encode the figure: {e}")))
}

/// Draws a mark; one without extent or with a place that is no number is left out, as SVG readers do.
fn draw(canvas: &mut Pixmap, shape: &Shape) {
    let to_pixels = Transform::from_scale(SCALE, SCALE);
    match shape {
        Shape::Rectangle { at, size, colour } => {
            if let Some(rectangle) = Rect::from_xywh(at.0 as f32, at.1 as f32, size.0 as f32, size.1 as f32) {
                let paint = Paint { anti_alias: false, ..paint(*colour, 1.0) };
                canvas.fill_rect(rectangle, &paint, to_pixels, None);
            }
        }
        Shape::Line { points, colour, width, dash } => {
            if let Some(path) = path(points, false) {
                let dash = StrokeDash::new(dash.iter().map(|d| *d as f32).collect(), 0.0);
                let stroke = Stroke { width: *width as f32, line_join: LineJoin::Round, dash, ..Stroke::default() };
                canvas.stroke_path(&path, &paint(*colour, 1.0), &stroke, to_pixels, None);
            }
        }
        Shape::Area { points, colour, opacity } => {
            if let Some(path) = path(points, true) {
                canvas.fill_path(&path, &paint(*colour, *opacity), FillRule::Winding, to_pixels, None);
            }
        }
        Shape::Dot { at, radius, colour } => {
            if let Some(path) = PathBuilder::from_circle(at.0 as f32, at.1 as f32, *radius as f32) {
                canvas.fill_path(&path, &paint(*colour, 1.0), FillRule::Winding, to_pixels, None);
            }
        }
        Shape::Text(text) => {
            if let Some(path) = outline(&text.text, text.size, place(text)) {
                canvas.fill_path(&path, &paint(text.colour, 1.0), FillRule::Winding, to_pixels, None);
            }
        }
    }
}

fn paint(colour: Colour, opacity: f64) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(colour.0, colour.1, colour.2, (opacity * 255.0).round() as u8);
    paint
}

fn path(points: &[(f64, f64)], close: bool) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (i, (x, y)) in points.iter().enumerate() {
        let (x, y) = (*x as f32, *y as f32);
        if i == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
    }
    if close {
        path.close();
    }
    path.finish()
}

/// Takes the start of a text to its place.
fn place(text: &Text) -> Transform {
    let length = width(&text.text, text.size) as f32;
    let back = match text.anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => length / 2.0,
        Anchor::End => length,
    };
    let turn = if text.upwards { Transform::from_rotate(-90.0) } else { Transform::identity() };
    Transform::from_translate(-back, 0.0).post_concat(turn).post_translate(text.at.0 as f32, text.at.1 as f32)
}
