//! What happened during training, as figures.

use super::{Epoch, Run, Section, Step};
use crate::figure::{Chart, Series};
use std::collections::BTreeMap;

/// A quantity of log lines, with its name.
type Curve<T> = (&'static str, fn(&T) -> Option<f64>);

const LOSSES: [Curve<Step>; 2] = [("descent", |s| s.loss), ("ascent", |s| s.ascent_loss)];
const RATES: [Curve<Step>; 1] = [("", |s| s.lr)];
const ACCURACIES: [Curve<Epoch>; 2] =
    [("training", |e| e.accuracy.map(|a| a * 100.0)), ("validation", |e| e.valid_accuracy.map(|a| a * 100.0))];
const EPOCH_LOSSES: [Curve<Epoch>; 2] = [("training", |e| e.loss), ("validation", |e| e.valid_loss)];

/// The curves of runs; those of several lie over one another, by name.
pub(super) fn section(runs: &[Run]) -> Section {
    let steps = |run: &Run| run.steps.clone();
    let epochs = |run: &Run| run.epochs.clone();
    let charts = [
        charts(runs, ["Loss of a step", "step", "loss"], steps, &LOSSES),
        charts(runs, ["Accuracy", "epoch", "accuracy, %"], epochs, &ACCURACIES),
        charts(runs, ["Mean loss of an epoch", "epoch", "loss"], epochs, &EPOCH_LOSSES),
        charts(runs, ["Learning rate", "step", "learning rate"], steps, &RATES),
    ];
    charts.concat().iter().fold(Section::new("Curves"), |section, chart| section.figure(&chart.draw()))
}

/// Of one run, a chart with all its curves; of several, a chart for every curve. What no run has is left out.
fn charts<T>(
    runs: &[Run],
    [title, x, y]: [&str; 3],
    lines: impl Fn(&Run) -> BTreeMap<u64, T>,
    curves: &[Curve<T>],
) -> Vec<Chart> {
    let series = |run: &Run, name: &str, value: fn(&T) -> Option<f64>| {
        let point = |(at, line): (&u64, &T)| Some((*at as f64, value(line)?));
        let points: Vec<_> = lines(run).iter().filter_map(point).collect();
        // A run without such values keeps its place, so that each run has one colour in all charts, but not in the legend.
        let name = if points.is_empty() { String::new() } else { name.to_owned() };
        Series { name, points, band: vec![] }
    };
    let chart = |title: String, series: Vec<Series>| {
        let (x, y) = (x.to_owned(), y.to_owned());
        series.iter().any(|s| !s.points.is_empty()).then_some(Chart { title, x, y, series, log_y: false })
    };
    match runs {
        [run] => {
            let series = curves.iter().map(|(name, value)| series(run, name, *value)).collect();
            chart(title.to_owned(), series).into_iter().collect()
        }
        _ => {
            let chart = |(name, value): &Curve<T>| {
                let title = if name.is_empty() { title.to_owned() } else { format!("{title}, {name}") };
                chart(title, runs.iter().map(|run| series(run, &run.name, *value)).collect())
            };
            curves.iter().filter_map(chart).collect()
        }
    }
}
