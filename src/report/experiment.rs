//! The report about an experiment.

use super::{Run, Section, html};
use crate::error::Result;
use crate::figure::{Chart, Series};
use crate::files::write_atomically;
use crate::train::{Cell, Results, moments};
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
        let load = |c: &Cell| c.runs.iter().map(|r| Run::load(r)).collect::<Result<Vec<Run>>>();
        let runs = cells.iter().map(load).collect::<Result<Vec<_>>>()?;
        let shown: [(&str, &str, Value); 2] = [
            ("validation", "accuracy in %", |e| e.valid_accuracy.map(|a| a * 100.0)),
            ("training", "loss", |e| e.loss),
        ];
        for (name, y, value) in shown {
            let series: Vec<Series> =
                cells.iter().zip(&runs).map(|(c, runs)| mean_curve(&c.column, runs, value)).collect();
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

/// The mean of runs at every epoch that all of them have, counted from 1, with a band of a standard deviation.
fn mean_curve(name: &str, runs: &[Run], value: Value) -> Series {
    let mut series = Series { name: name.to_owned(), ..Series::default() };
    let epochs = runs.iter().map(|r| r.epochs.len()).min().unwrap_or(0) as u64;
    for epoch in 1..=epochs {
        let at: Vec<f64> = runs.iter().filter_map(|r| value(r.epochs.get(&epoch)?)).collect();
        if at.len() == runs.len()
            && let (Some(mean), deviation) = moments(&at)
        {
            series.points.push((epoch as f64, mean));
            series.band.push(deviation.unwrap_or(0.0));
        }
    }
    series
}
