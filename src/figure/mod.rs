//! Figures: line charts, heat maps and confusion matrices, as SVG and as PNG.
//!
//! A figure is laid out once, as a [`Drawing`] of lines, areas and text, and a drawing is written out in either format. Colours
//! can be told apart by colour-blind readers, and equal figures give equal files.

mod axis;
mod chart;
mod colour;
mod confusion;
mod drawing;
mod font;
mod heatmap;
mod png;
mod svg;

pub use chart::{Chart, Series};
pub use confusion::Confusion;
pub use drawing::Drawing;
pub use heatmap::Heatmap;
pub use svg::escape;
