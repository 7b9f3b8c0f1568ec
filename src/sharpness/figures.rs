//! Figures of what was found around models.

use super::{Direction, Point, Sharpness};
use crate::figure::{Chart, Drawing, Heatmap, Series};

/// The figures, by name: loss, error and flipped samples over ρ for one model, or at the largest ρ over several models in their
/// order, such as those of a run's epochs; and the planes of the first model.
pub fn figures(found: &[Sharpness]) -> Vec<(String, Drawing)> {
    let mut all = Vec::new();
    let values: [(&str, &str, Value); 3] = [
        ("loss", "cross-entropy", |_, p| p.loss),
        ("error", "error in %", |_, p| p.error * 100.0),
        ("flips", "correct samples flipped, in %", |s, p| 100.0 * p.flipped as f64 / s.correct.max(1) as f64),
    ];
    for (name, y, value) in values {
        let chart = match found {
            [one] => over_rho(one, y, value),
            several => over_models(several, y, value),
        };
        all.push((name.to_owned(), chart.draw()));
    }
    let plane = found.first().and_then(|s| s.plane.as_ref());
    if let Some(plane) = plane {
        let maps: [(&str, &str, _, Shown); 2] = [
            ("plane-loss", "log₁₀ of cross-entropy", &plane.loss, f64::log10),
            ("plane-error", "error in %", &plane.error, |v| v * 100.0),
        ];
        for (name, value, rows, shown) in maps {
            let values = rows.iter().map(|row| row.iter().map(|v| shown(*v)).collect()).collect();
            let map = Heatmap {
                title: "On a random plane through the weights".into(),
                x: "a".into(),
                y: "b".into(),
                value: value.into(),
                xs: plane.steps.clone(),
                ys: plane.steps.clone(),
                values,
            };
            all.push((name.to_owned(), map.draw()));
        }
    }
    all
}

/// How a map shows a value.
type Shown = fn(f64) -> f64;

/// What a figure shows of a point.
type Value = fn(&Sharpness, &Point) -> f64;

fn over_rho(found: &Sharpness, y: &str, value: Value) -> Chart {
    let error = 1.0 - found.correct as f64 / found.samples.max(1) as f64;
    let series = Direction::ALL.map(|direction| {
        let unmoved = Point { direction, rho: 0.0, loss: found.loss, error, flipped: 0 };
        let moved = found.points.iter().filter(|p| p.direction == direction && p.rho > 0.0);
        let points = std::iter::once(&unmoved).chain(moved).map(|p| (f64::from(p.rho), value(found, p))).collect();
        Series { name: direction.name().into(), points, band: Vec::new() }
    });
    Chart {
        title: "At weights moved by ρ".into(),
        x: "norm ρ of the perturbation".into(),
        y: y.into(),
        series: series.into(),
        log_y: false,
    }
}

fn over_models(found: &[Sharpness], y: &str, value: Value) -> Chart {
    let rho = found.iter().flat_map(|s| &s.points).fold(0.0, |most: f32, p| most.max(p.rho));
    let series = Direction::ALL.map(|direction| {
        let of = |s: &Sharpness| {
            let point = s.points.iter().find(|p| p.direction == direction && p.rho == rho);
            point.map_or(f64::NAN, |p| value(s, p))
        };
        let points = found.iter().enumerate().map(|(i, s)| (number(s).unwrap_or(i as f64 + 1.0), of(s))).collect();
        Series { name: direction.name().into(), points, band: Vec::new() }
    });
    let numbered = found.iter().all(|s| number(s).is_some());
    Chart {
        title: format!("At weights moved by ρ = {rho}"),
        x: if numbered { "epoch" } else { "model" }.into(),
        y: y.into(),
        series: series.into(),
        log_y: false,
    }
}

/// The number that a model's file is named by, such as that of an epoch.
fn number(found: &Sharpness) -> Option<f64> {
    found.model.file_stem()?.to_str()?.parse::<u32>().ok().map(f64::from)
}
