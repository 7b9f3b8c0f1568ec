//! What runs are and what came out of them.

use super::{Run, Section};
use crate::figure::Confusion;
use crate::train::Summary;

/// `85.60 %`.
fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// `0.8560`.
fn decimals(value: f64) -> String {
    format!("{value:.4}")
}

/// What runs have in common: model, data, optimizer; of one run the result too.
pub(super) fn facts(runs: &[Run]) -> Vec<(String, String)> {
    let common = |value: &dyn Fn(&Run) -> Option<String>| {
        let first = value(runs.first()?)?;
        runs.iter().all(|run| value(run).as_ref() == Some(&first)).then_some(first)
    };
    let mut facts = vec![
        ("Model", common(&|run| run.setting("model"))),
        ("Data", common(&|run| run.setting("data"))),
        ("Optimizer", common(&Run::optimizer)),
    ];
    if let [run] = runs {
        facts.push(("Result", Some(result(run))));
    } else if runs.len() > 1 {
        facts.push(("Runs", Some(runs.len().to_string())));
    }
    facts.into_iter().filter_map(|(what, value)| Some((what.to_owned(), value?))).collect()
}

/// The outcome of a run in a line, by the metric of its recipe.
fn result(run: &Run) -> String {
    let Some(s) = &run.results else { return "not finished".into() };
    let named =
        |split: &str, value: Option<f64>| value.map(|v| format!("{split} {} {}", s.metric.title(), s.metric.text(v)));
    let values = [named("test", s.test(s.metric)), named("best validation", s.best_valid(s.metric)), s.warning.clone()];
    let parts: Vec<String> = values.into_iter().flatten().collect();
    if parts.is_empty() { "finished".into() } else { parts.join(", ") }
}

/// A column of the table, and its cell for a run.
type Column = (&'static str, fn(&Run) -> Option<String>);

/// The column that is left out where the head of the report says the same.
const OPTIMIZER: &str = "optimizer";

const COLUMNS: [Column; 13] = [
    (OPTIMIZER, Run::optimizer),
    ("steps", |run| of(run, |s| Some(s.steps.to_string()))),
    ("training accuracy", |run| run.epochs.values().next_back()?.accuracy.map(percent)),
    ("best epoch", |run| of(run, |s| Some(s.best_epoch?.to_string()))),
    ("validation loss", |run| of(run, |s| s.best_valid_loss.map(decimals))),
    ("validation accuracy", |run| of(run, |s| s.best_valid_accuracy.map(percent))),
    ("validation F1", |run| of(run, |s| s.best_valid_f1.map(decimals))),
    ("validation Matthews", |run| of(run, |s| s.best_valid_matthews.map(decimals))),
    ("test accuracy", |run| of(run, |s| s.test_accuracy.map(percent))),
    ("test loss", |run| of(run, |s| s.test_loss.map(decimals))),
    ("test F1", |run| of(run, |s| s.test_f1.map(decimals))),
    ("test Matthews", |run| of(run, |s| s.test_matthews.map(decimals))),
    ("seconds", |run| of(run, |s| Some(format!("{:.1}", s.seconds)))),
];

fn of(run: &Run, cell: fn(&Summary) -> Option<String>) -> Option<String> {
    cell(run.results.as_ref()?)
}

/// A line for every run, without the columns that no run has, or that say the same of all runs as the head of the report does.
pub(super) fn table(runs: &[Run]) -> Section {
    let mut columns: Vec<&Column> =
        COLUMNS.iter().filter(|(_, cell)| runs.iter().any(|run| cell(run).is_some())).collect();
    if runs.iter().all(|run| run.optimizer() == runs[0].optimizer()) {
        columns.retain(|(name, _)| *name != OPTIMIZER);
    }
    let head: Vec<&str> = ["run"].into_iter().chain(columns.iter().map(|(name, _)| *name)).collect();
    let row = |run: &Run| {
        let cells = columns.iter().map(|(_, cell)| cell(run).unwrap_or_else(|| "–".into()));
        [run.name.clone()].into_iter().chain(cells).collect()
    };
    Section::new("Results").table(&head, &runs.iter().map(row).collect::<Vec<_>>())
}

/// The confusion matrices of the test split, of the runs that have one.
pub(super) fn confusion(runs: &[Run]) -> Option<Section> {
    let of = |run: &Run| {
        let results = run.results.as_ref()?;
        let counts = results.test_confusion.clone().filter(|counts| !counts.is_empty())?;
        let title = if runs.len() == 1 { "Test split".to_owned() } else { run.name.clone() };
        Some(Confusion { title, classes: results.classes.clone(), counts })
    };
    let matrices: Vec<Confusion> = runs.iter().filter_map(of).collect();
    let section =
        Section::new("Confusion").text("Samples of the test split; the shade is the share of the true class.");
    (!matrices.is_empty()).then(|| matrices.iter().fold(section, |section, matrix| section.figure(&matrix.draw())))
}

/// The recipes; those of several runs are folded.
pub(super) fn settings(runs: &[Run]) -> Option<Section> {
    let known: Vec<&Run> = runs.iter().filter(|run| !run.recipe.is_empty()).collect();
    let file = |section: Section, run: &&Run| {
        let name = if runs.len() == 1 { "recipe.toml".to_owned() } else { format!("{}/recipe.toml", run.name) };
        section.file(&name, &run.recipe, runs.len() > 1)
    };
    (!known.is_empty()).then(|| known.iter().fold(Section::new("Settings"), file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html;

    fn run(name: &str) -> Run {
        let results = Summary {
            test_accuracy: Some(0.856),
            best_epoch: Some(4),
            test_confusion: Some(vec![vec![3, 1], vec![0, 4]]),
            classes: vec!["a<b".into(), "c".into()],
            ..Summary::default()
        };
        let recipe = "model = \"m.onnx\"\ndata = \"npz:<d>\"\n".to_owned();
        let epochs = [(0, crate::report::Epoch { accuracy: Some(0.5), ..Default::default() })].into();
        Run { name: name.into(), results: Some(results), recipe, epochs, ..Run::default() }
    }

    #[test]
    fn a_report_has_results_matrix_and_settings() {
        let page = html("one", &[run("one")], &[]).expect("is written");
        for text in [
            "<dd>test accuracy 85.60 %</dd>",
            "<td>4</td>",
            "a&lt;b",
            "data = &quot;npz:&lt;d&gt;&quot;",
            "<details open>",
        ] {
            assert!(page.contains(text), "{text} is missing: {page}");
        }
        assert!(!page.contains("test F1"), "a column that no run has");
    }

    #[test]
    fn several_runs_share_one_table() {
        let mut unfinished = run("two");
        unfinished.results = None;
        let page =
            html("both", &[run("one"), unfinished], &[Section::new("Summary").text("of both")]).expect("is written");
        for text in
            ["<dt>Runs</dt><dd>2</dd>", "<dt>Data</dt>", "<td>–</td>", "<summary>two/recipe.toml</summary>", "of both"]
        {
            assert!(page.contains(text), "{text} is missing: {page}");
        }
        assert!(html("none", &[], &[]).is_err());
    }
}
