//! What `bisam sharpness` found around the weights of runs.

use super::{Run, Section};
use crate::sharpness::figures;

/// The figures of the runs that have been looked at; `None` when none has.
pub(super) fn section(runs: &[Run]) -> Option<Section> {
    let mut section = Section::new("Sharpness");
    for run in runs.iter().filter(|run| !run.sharpness.is_empty()) {
        if runs.len() > 1 {
            section = section.text(&run.name);
        }
        for (_, drawing) in figures(&run.sharpness) {
            section = section.figure(&drawing);
        }
    }
    (!section.is_empty()).then_some(section)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sharpness::{Direction, Point, Sharpness};

    #[test]
    fn runs_that_were_looked_at_have_figures() {
        let point = Point { direction: Direction::Sam, rho: 0.5, loss: 0.75, error: 0.25, flipped: 3 };
        let (model, points) = ("a.onnx".into(), vec![point]);
        let found = Sharpness { model, samples: 16, correct: 12, loss: 0.5, points, plane: None };
        let measured = Run { name: "<a>".into(), sharpness: vec![found], ..Run::default() };
        let one = format!("{:?}", section(&[measured.clone()]).expect("is there"));
        assert_eq!(one.matches("<figure>").count(), 3, "loss, error and flips");
        let two = format!("{:?}", section(&[Run::default(), measured]).expect("is there"));
        assert!(two.contains("<p>&lt;a&gt;</p>"), "{two}");
        assert_eq!(section(&[Run::default()]), None);
    }
}
