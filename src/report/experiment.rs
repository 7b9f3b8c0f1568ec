//! The report about an experiment.

use super::{Run, Section, html};
use crate::error::Result;
use crate::figure::{Chart, Series};
use crate::onnx::write_atomically;
use crate::train::{Cell, Results};
use std::path::Path;

/// What a curve shows of an epoch.
type Value = fn(&super::Epoch) -> Option<f64>;

/// Writes `report.html` and its curves, as `validation-ROW` and `training-ROW`, in `out`, where the experiment's runs are: the table,
/// and for every row how accuracy and loss went with the epochs, the mean of the seeds with a band of a standard deviation. Without a
/// finished run there is nothing to report.
///
/// # Errors
/// As [`Run::load`], or an I/O error.
pub fn write_experiment(results: &Results, out: &Path) -> Result<()> {
    if results.cells.iter().all(|c| c.runs.is_empty()) {
        return Ok(());
    }
    let mut head = vec![""];
    head.extend(results.columns());
    let rows: Vec<Vec<String>> = results
        .rows()
        .map(|cells| {
            let name = cells.first().map_or(String::new(), |c| c.row.clone());
            std::iter::once(name).chain(cells.iter().map(|c| c.text(results.seeds))).collect()
        })
        .collect();
    let table = Section::new("Results").table(&head, &rows).text(&results.caption());
    let mut curves = Section::new("Curves");
    for (number, cells) in results.rows().enumerate() {
        let shown: [(&str, &str, Value); 2] = [
            ("validation", "accuracy in %", |e| e.valid_accuracy.map(|a| a * 100.0)),
            ("training", "loss", |e| e.loss),
        ];
        for (name, y, value) in shown {
            let series = cells.iter().map(|c| mean_curve(c, value)).collect::<Result<Vec<Series>>>()?;
            if series.iter().all(|s| s.points.is_empty()) {
                continue;
            }
            let row = cells.first().map_or("", |c| c.row.as_str());
            let chart = Chart { title: format!("{row}: {name}"), x: "epoch".into(), y: y.into(), series, log_y: false };
            let drawing = chart.draw();
            drawing.write(&out.join(format!("{name}-{}", number + 1)))?;
            curves = curves.figure(&drawing);
        }
    }
    let sections = if curves.is_empty() { vec![table] } else { vec![table, curves] };
    write_atomically(&out.join("report.html"), html(&results.title, &[], &sections)?.as_bytes())
}

/// The mean of a cell's runs at every epoch that all of them have, counted from 1.
fn mean_curve(cell: &Cell, value: Value) -> Result<Series> {
    let runs: Vec<Run> = cell.runs.iter().map(|r| Run::load(r)).collect::<Result<_>>()?;
    let mut series = Series { name: cell.column.clone(), ..Series::default() };
    let epochs = runs.iter().map(|r| r.epochs.len()).min().unwrap_or(0) as u64;
    for epoch in 0..epochs {
        let at: Vec<f64> = runs.iter().filter_map(|r| value(r.epochs.get(&epoch)?)).collect();
        if at.len() == runs.len() {
            let mean = at.iter().sum::<f64>() / at.len() as f64;
            let squares: f64 = at.iter().map(|v| (v - mean).powi(2)).sum();
            series.points.push((epoch as f64 + 1.0, mean));
            series.band.push((squares / (at.len() as f64 - 1.0).max(1.0)).sqrt());
        }
    }
    Ok(series)
}
