//! What `bisam sharpness` measured around the weights of a run.

use super::{Run, Section};
use crate::sharpness::{Sharpness, figures};

/// Figures and tables of the runs that have been measured; `None` when none has.
pub(super) fn section(runs: &[Run]) -> Option<Section> {
    let mut section = Section::new("Sharpness");
    for run in runs {
        for found in &run.sharpness {
            let shown = found.model.display();
            let name = if runs.len() > 1 { format!("{}, {shown}", run.name) } else { shown.to_string() };
            let correct = format!("{} of {} samples are classified correctly", found.correct, found.samples);
            let head = ["direction", "ρ", "cross-entropy", "error in %", "flipped"];
            section =
                section.text(&format!("{name}: {correct}, cross-entropy {:.4}", found.loss)).table(&head, &rows(found));
        }
        if !run.sharpness.is_empty() {
            for (_, drawing) in figures(&run.sharpness) {
                section = section.figure(&drawing);
            }
        }
    }
    (!section.is_empty()).then_some(section)
}

fn rows(found: &Sharpness) -> Vec<Vec<String>> {
    let row = |p: &crate::sharpness::Point| {
        let numbers =
            [p.rho.to_string(), format!("{:.4}", p.loss), format!("{:.2}", p.error * 100.0), p.flipped.to_string()];
        std::iter::once(p.direction.name().to_owned()).chain(numbers).collect()
    };
    found.points.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sharpness::{Direction, Plane, Point};

    fn measured(name: &str) -> Run {
        let point = |direction, rho, flipped| Point { direction, rho, loss: 1.5, error: 0.25, flipped };
        let found = Sharpness {
            model: "model.onnx".into(),
            samples: 100,
            correct: 80,
            loss: 0.5,
            points: vec![point(Direction::Sam, 0.1, 7), point(Direction::Random, 0.1, 0)],
            plane: Some(Plane { steps: vec![-1.0, 1.0], loss: vec![vec![1.0; 2]; 2], error: vec![vec![0.5; 2]; 2] }),
        };
        Run { name: name.into(), sharpness: vec![found], ..Run::default() }
    }

    #[test]
    fn what_was_measured_is_drawn() {
        let one = format!("{:?}", section(&[measured("a")]).expect("is there"));
        assert_eq!(one.matches("<figure>").count(), 5, "loss, error, flips and two planes");
        assert!(one.contains(">random<") && one.contains("<td>7</td>"), "{one}");
        let two = format!("{:?}", section(&[measured("a"), measured("b"), Run::default()]).expect("is there"));
        assert!(two.matches("<figure>").count() == 10 && two.contains("b, model.onnx"), "{two}");
        assert_eq!(section(&[Run::default()]), None);
    }
}
