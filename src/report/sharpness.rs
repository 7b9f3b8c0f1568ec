//! What `bisam sharpness` measured around the weights of a run.

use super::{Run, Section};
use crate::figure::{Chart, Drawing, Heatmap, Series};
use serde::Deserialize;

/// The file `sharpness.json`; parts that a file lacks are empty.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Sharpness {
    /// Values along a line.
    pub curves: Vec<Curve>,
    /// Values over a plane.
    pub planes: Vec<Plane>,
    /// Samples whose class changes under a perturbation.
    pub flips: Vec<Flips>,
}

/// Values along a line.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Curve {
    /// What the legend calls it.
    pub name: String,
    /// What the horizontal axis shows.
    pub x: String,
    /// What the vertical axis shows.
    pub y: String,
    /// The points; null is no number.
    pub points: Vec<(Option<f64>, Option<f64>)>,
}

/// Values over a plane.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Plane {
    /// The title.
    pub name: String,
    /// Places of the columns.
    pub x: Vec<f64>,
    /// Places of the rows.
    pub y: Vec<f64>,
    /// A row of values for every place in `y`; null is no number.
    pub values: Vec<Vec<Option<f64>>>,
}

/// Of the samples that are classified right, how many are not under perturbations of norm ρ.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Flips {
    /// Norm of the perturbation.
    pub rho: f64,
    /// Under the perturbation of SAM.
    pub sam: Option<u64>,
    /// Under the perturbation of BiSAM.
    pub bisam: Option<u64>,
    /// Under a random perturbation.
    pub random: Option<u64>,
    /// Samples that are classified right without one.
    pub correct: Option<u64>,
}

/// Figures and tables of the runs that have been measured; `None` when none has.
pub(super) fn section(runs: &[Run]) -> Option<Section> {
    let measured: Vec<(&Run, &Sharpness)> =
        runs.iter().filter_map(|run| Some((run, run.sharpness.as_ref()?))).collect();
    // Of several runs, each thing is called by its run too.
    let call = |run: &Run, name: &str| match (runs.len(), name) {
        (1, name) => name.to_owned(),
        (_, "") => run.name.clone(),
        (_, name) => format!("{}, {name}", run.name),
    };
    let mut section = Section::new("Sharpness");
    for chart in curves(&measured, call) {
        section = section.figure(&chart.draw());
    }
    for (run, sharpness) in &measured {
        for plane in &sharpness.planes {
            section = section.figure(&plane.draw(call(run, &plane.name)));
        }
    }
    for (run, sharpness) in measured.iter().filter(|(_, s)| !s.flips.is_empty()) {
        let number = |n: Option<u64>| n.map_or("–".into(), |n| n.to_string());
        let row =
            |f: &Flips| vec![f.rho.to_string(), number(f.correct), number(f.sam), number(f.bisam), number(f.random)];
        let rows: Vec<_> = sharpness.flips.iter().map(row).collect();
        section = section
            .text(&call(run, "correct samples, and how many of them are flipped by a perturbation of norm ρ"))
            .table(&["ρ", "correct", "by SAM", "by BiSAM", "at random"], &rows);
    }
    (!section.is_empty()).then_some(section)
}

/// A chart for each pair of axes.
fn curves(measured: &[(&Run, &Sharpness)], call: impl Fn(&Run, &str) -> String) -> Vec<Chart> {
    let mut charts: Vec<Chart> = Vec::new();
    for (run, curve) in measured.iter().flat_map(|(run, s)| s.curves.iter().map(move |c| (run, c))) {
        let place = charts.iter().position(|c| c.x == curve.x && c.y == curve.y).unwrap_or_else(|| {
            let title = format!("{} over {}", curve.y, curve.x);
            charts.push(Chart { title, x: curve.x.clone(), y: curve.y.clone(), ..Chart::default() });
            charts.len() - 1
        });
        let points = curve.points.iter().map(|(x, y)| (x.unwrap_or(f64::NAN), y.unwrap_or(f64::NAN))).collect();
        charts[place].series.push(Series { name: call(run, &curve.name), points, band: vec![] });
    }
    charts
}

impl Plane {
    fn draw(&self, title: String) -> Drawing {
        let values = self.values.iter().map(|row| row.iter().map(|v| v.unwrap_or(f64::NAN)).collect()).collect();
        let (x, y) = ("first direction".into(), "second direction".into());
        Heatmap { title, x, y, value: "loss".into(), xs: self.x.clone(), ys: self.y.clone(), values }.draw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
        "curves": [
            {"name": "sam ascent", "x": "ρ", "y": "loss", "points": [[0, 0.5], [0.1, 0.75], [0.2, null]]},
            {"name": "random", "x": "ρ", "y": "loss", "points": [[0, 0.5], [0.1, 0.5]]},
            {"name": "sam ascent", "x": "ρ", "y": "error", "points": [[0, 0.5]]}
        ],
        "planes": [{"name": "plane", "x": [-1, 0, 1], "y": [0, 1], "values": [[1, 2, null], [3, 4, 5]]}],
        "flips": [{"rho": 0.05, "sam": 3, "bisam": 7, "random": 0, "correct": 900}],
        "unknown": 1
    }"#;

    fn measured(name: &str) -> Run {
        let sharpness = Some(serde_json::from_str(FILE).expect("reads"));
        Run { name: name.into(), sharpness, ..Run::default() }
    }

    #[test]
    fn what_was_measured_is_drawn() {
        let one = format!("{:?}", section(&[measured("a")]).expect("is there"));
        assert_eq!(one.matches("<figure>").count(), 3, "a chart of losses, one of errors, a plane");
        assert!(one.contains(">random<") && one.contains("<td>7</td>"), "{one}");
        let two = format!("{:?}", section(&[measured("a"), measured("b"), Run::default()]).expect("is there"));
        assert_eq!(two.matches("<figure>").count(), 4, "charts are shared, planes are not");
        assert!(two.contains(">b, random<"), "{two}");
    }

    #[test]
    fn a_run_that_was_not_measured_has_no_section() {
        assert_eq!(section(&[Run::default()]), None);
        let empty = Run { sharpness: Some(Sharpness::default()), ..Run::default() };
        assert_eq!(section(&[empty]), None);
    }
}
