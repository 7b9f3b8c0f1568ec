//! Confusion matrices.

use super::colour::Colour;
use super::drawing::{Anchor, Drawing, LABEL};
use super::font::{shorten, width};

/// How often each class was taken for which.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Confusion {
    /// The title.
    pub title: String,
    /// Names of the classes; a class without one is called by its number.
    pub classes: Vec<String>,
    /// For every true class, the number of samples by predicted class.
    pub counts: Vec<Vec<u64>>,
}

/// Room that names may take.
const NAMES: f64 = 130.0;

/// The darkest cell: all samples of a class.
const FULL: Colour = Colour(0, 68, 136);

impl Confusion {
    /// Lays the matrix out: a row for every true class, shaded by the share of its samples.
    pub fn draw(&self) -> Drawing {
        let n = self.counts.len();
        let cell = (900.0 / n.max(1) as f64).min(40.0);
        let names: Vec<String> = (0..n).map(|i| shorten(&self.name(i), LABEL, NAMES)).collect();
        let longest = names.iter().map(|name| width(name, LABEL)).fold(0.0, f64::max);
        let side = cell * n as f64;
        let (left, top) = (44.0 + longest, 42.0);
        // Names across the columns where they fit, else upwards.
        let flat = longest < cell - 4.0;
        let below = if flat { LABEL } else { longest };
        let mut drawing = Drawing::new((left + side + 24.0).max(360.0), top + side + below + 46.0, &self.title);

        // Names at every class, or at every few where they would overlap.
        let every = (14.0 / cell).ceil() as usize;
        for (i, name) in names.iter().enumerate().step_by(every) {
            let middle = (i as f64 + 0.5) * cell;
            drawing.label((left - 8.0, top + middle), name, Anchor::End, Colour::TEXT);
            if flat {
                drawing.label((left + middle, top + side + 12.0), name, Anchor::Middle, Colour::TEXT);
            } else {
                drawing.upwards((left + middle, top + side + 8.0), name, Anchor::End);
            }
        }
        for (i, row) in self.counts.iter().enumerate() {
            let total = row.iter().fold(0u64, |sum, n| sum.saturating_add(*n)).max(1);
            for (j, count) in row.iter().enumerate().take(n).filter(|(_, count)| **count > 0) {
                let at = (left + j as f64 * cell, top + i as f64 * cell);
                let colour = Colour::WHITE.mix(FULL, *count as f64 / total as f64);
                drawing.rectangle(at, (cell, cell), colour);
                let text = count.to_string();
                if width(&text, LABEL) < cell - 2.0 {
                    let middle = (at.0 + cell / 2.0, at.1 + cell / 2.0);
                    drawing.label(middle, &text, Anchor::Middle, colour.text_on());
                }
            }
        }
        let frame = [(left, top), (left + side, top), (left + side, top + side), (left, top + side), (left, top)];
        drawing.line(&frame, Colour::AXIS, 1.0);
        let middle = side / 2.0;
        drawing.label((left + middle, top + side + below + 28.0), "predicted class", Anchor::Middle, Colour::TEXT);
        drawing.upwards((14.0, top + middle), "true class", Anchor::Middle);
        drawing
    }

    fn name(&self, class: usize) -> String {
        self.classes.get(class).filter(|name| !name.is_empty()).cloned().unwrap_or_else(|| class.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_names_are_shown() {
        let classes = vec!["cat".into(), "<dog>".into()];
        let confusion = Confusion { title: "test".into(), classes, counts: vec![vec![41, 3], vec![0, 57]] };
        let svg = confusion.draw().svg();
        for text in [">41<", ">3<", ">57<", ">cat<", "&lt;dog&gt;"] {
            assert!(svg.contains(text), "{text} is missing: {svg}");
        }
        assert!(svg.contains(&FULL.to_string()), "a class that is always right is darkest");
        confusion.draw().png().expect("draws");
    }

    #[test]
    fn any_number_of_classes_can_be_drawn() {
        for n in [0, 1, 10, 21, 100, 1000] {
            let counts = (0..n).map(|i| (0..n).map(|j| if i == j { u64::MAX } else { 0 }).collect()).collect();
            let drawing = Confusion { counts, ..Confusion::default() }.draw();
            assert!(drawing.width < 1200.0 && drawing.svg().contains("predicted class"));
        }
        let ragged = Confusion { counts: vec![vec![1, 2, 3], vec![]], ..Confusion::default() };
        ragged.draw().png().expect("draws");
    }
}
