//! Sets of runs that make one table: rows × columns × seeds.

use super::folder::Folder;
use super::log::Summary;
use super::metrics::Metric;
use super::recipe::{Recipe, table, toml_error};
use super::run::{Observer, train};
use crate::engine::Engine;
use crate::error::{Error, IoContext, Result};
use crate::files::write_atomically;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use toml::{Table, Value};

/// What a table shows of its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// The metric of each recipe for the exported weights on the test split, on the validation split where there is no test split;
    /// times 100 unless it is a loss.
    Metric,
    /// Seconds of an epoch, validation included.
    EpochSeconds,
}

/// A row or a column: what it changes of the settings that all runs share.
#[derive(Debug, Clone, PartialEq)]
struct Variant {
    name: String,
    settings: Table,
}

/// A recipe with `[[rows]]` and `[[columns]]`; each has a `name` and settings that replace those of the recipe, a column's those
/// of a row. Without them it is a single run. `title` heads the table and `measure` says what it shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Experiment {
    /// Heading of the table.
    pub title: String,
    measure: Measure,
    shared: Table,
    rows: Vec<Variant>,
    columns: Vec<Variant>,
}

/// One place in the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// Name of its row.
    pub row: String,
    /// Name of its column.
    pub column: String,
    /// The metric of its recipe.
    pub metric: Metric,
    /// What every finished run measured, by seed.
    pub values: Vec<f64>,
    /// Mean of the values.
    pub mean: Option<f64>,
    /// Sample standard deviation (n − 1) of two or more values.
    pub deviation: Option<f64>,
    /// Folders of the finished runs.
    pub runs: Vec<PathBuf>,
}

/// The table of an experiment, complete or not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Results {
    /// Heading.
    pub title: String,
    /// What the cells show.
    pub measure: Measure,
    /// Runs of each cell when all are done.
    pub seeds: u64,
    /// Row by row.
    pub cells: Vec<Cell>,
}

impl Experiment {
    /// Reads the file of an experiment, and checks the settings of every run.
    ///
    /// # Errors
    /// An I/O error, a setting that is not known or out of its range, or two rows or columns of the same name.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).file(path)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&text, &name).map_err(|e| e.in_file(path))
    }

    fn parse(text: &str, name: &str) -> Result<Self> {
        let mut shared = table(text)?;
        let title = match shared.remove("title") {
            Some(Value::String(title)) => title,
            Some(other) => crate::bail!("`title` is {other}, not a text"),
            None => name.to_owned(),
        };
        let measure = match shared.remove("measure") {
            Some(value) => value.try_into().map_err(toml_error)?,
            None => Measure::Metric,
        };
        let rows = variants(shared.remove("rows"), "rows", name)?;
        let columns = variants(shared.remove("columns"), "columns", "result")?;
        let experiment = Self { title, measure, shared, rows, columns };
        for (row, column) in experiment.cells() {
            let recipe = experiment.recipe(row, column, 0);
            let checked = recipe.and_then(|r| r.validate()).map_err(|e| match experiment.is_single() {
                true => e,
                false => Error::new(format!("{}, {}: {e}", row.name, column.name)),
            });
            checked?;
        }
        Ok(experiment)
    }

    fn is_single(&self) -> bool {
        self.rows.len() * self.columns.len() == 1
    }

    fn cells(&self) -> impl Iterator<Item = (&Variant, &Variant)> {
        self.rows.iter().flat_map(|r| self.columns.iter().map(move |c| (r, c)))
    }

    fn recipe(&self, row: &Variant, column: &Variant, seed: u64) -> Result<Recipe> {
        let mut table = self.shared.clone();
        merge(&mut table, &row.settings);
        merge(&mut table, &column.settings);
        let recipe = Recipe::from_table(table)?;
        for (key, missing) in [("model", recipe.model.as_os_str().is_empty()), ("data", recipe.data.is_empty())] {
            if missing {
                crate::bail!("`{key}` is not set");
            }
        }
        Ok(Recipe { seed: recipe.seed + seed, ..recipe })
    }

    /// Does every run that is not finished, each in a folder `ROW/COLUMN/seed-N` of `out`, and returns the table, which is also
    /// written there after every run as `table.md` and `table.json`.
    ///
    /// A run that was interrupted goes on from its checkpoint; checkpoints of finished runs are removed. All rows and columns of
    /// a seed come before the next seed.
    ///
    /// # Errors
    /// As [`train`]; a finished run that was made with other settings.
    pub fn run(
        &self,
        engine: &Engine,
        seeds: u64,
        out: &Path,
        stop: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<Results> {
        let total = seeds as usize * self.cells().count();
        let mut done = 0;
        for seed in 0..seeds {
            for (row, column) in self.cells() {
                let recipe = self.recipe(row, column, seed)?;
                let folder = self.folder(out, row, column, recipe.seed);
                done += 1;
                if is_finished(&folder, &recipe)? {
                    continue;
                }
                let names: Vec<&str> = [(&self.rows, row), (&self.columns, column)]
                    .iter()
                    .filter(|(all, _)| all.len() > 1)
                    .map(|(_, one)| one.name.as_str())
                    .collect();
                observer.note(&format!(
                    "run {done} of {total}: {}",
                    [&names[..], &[&format!("seed {}", recipe.seed)]].concat().join(", ")
                ));
                let checkpoint = folder.join("checkpoint");
                let resume = checkpoint.join("state.safetensors").exists();
                let trained = train(engine, &recipe, &folder, resume, stop, observer);
                let summary = trained.map_err(|e| {
                    if stop.load(Ordering::Relaxed) {
                        return Error::new(format!("stopped in {}", folder.display()))
                            .hint("the same command goes on from here");
                    }
                    e
                })?;
                if let Some(warning) = &summary.warning {
                    observer.note(warning);
                }
                std::fs::remove_dir_all(&checkpoint).file(&checkpoint)?;
                self.results(seeds, out)?.write(out)?;
            }
        }
        let results = self.results(seeds, out)?;
        results.write(out)?;
        Ok(results)
    }

    fn folder(&self, out: &Path, row: &Variant, column: &Variant, seed: u64) -> PathBuf {
        let mut folder = out.to_owned();
        for (all, one) in [(&self.rows, row), (&self.columns, column)] {
            if all.len() > 1 {
                folder.push(slug(&one.name));
            }
        }
        folder.join(format!("seed-{seed}"))
    }

    /// The table of the runs that are finished.
    ///
    /// # Errors
    /// An I/O error, or results that cannot be read.
    pub fn results(&self, seeds: u64, out: &Path) -> Result<Results> {
        let mut cells = Vec::new();
        for (row, column) in self.cells() {
            let mut cell = Cell {
                row: row.name.clone(),
                column: column.name.clone(),
                metric: self.recipe(row, column, 0)?.metric(),
                values: Vec::new(),
                mean: None,
                deviation: None,
                runs: Vec::new(),
            };
            for seed in 0..seeds {
                let recipe = self.recipe(row, column, seed)?;
                let folder = self.folder(out, row, column, recipe.seed);
                let Some(summary) = Folder::new(&folder).results()? else { continue };
                if let Some(value) = self.measure.of(&summary, &recipe) {
                    cell.values.push(value);
                    cell.runs.push(folder);
                }
            }
            (cell.mean, cell.deviation) = moments(&cell.values);
            cells.push(cell);
        }
        Ok(Results { title: self.title.clone(), measure: self.measure, seeds, cells })
    }
}

impl Measure {
    fn of(self, summary: &Summary, recipe: &Recipe) -> Option<f64> {
        match self {
            Self::Metric => {
                let scale = if recipe.metric() == Metric::Loss { 1.0 } else { 100.0 };
                summary.result(recipe.metric()).map(|v| v * scale)
            }
            Self::EpochSeconds => Some(summary.seconds / recipe.epochs.max(1) as f64),
        }
    }

    fn caption(self, cells: &[Cell]) -> String {
        let Self::Metric = self else { return "Seconds per epoch".to_owned() };
        let caption = |metric: Metric| match metric {
            Metric::Loss => "Loss".to_owned(),
            _ => format!("100 × {}", metric.title()),
        };
        let mut names: Vec<String> = cells.iter().map(|c| caption(c.metric)).collect();
        names.sort_unstable();
        names.dedup();
        names.join(" or ")
    }
}

impl Results {
    /// Names of the columns.
    pub fn columns(&self) -> Vec<&str> {
        let mut columns: Vec<&str> = Vec::new();
        for cell in &self.cells {
            if !columns.contains(&cell.column.as_str()) {
                columns.push(&cell.column);
            }
        }
        columns
    }

    /// The cells, row by row.
    pub fn rows(&self) -> impl Iterator<Item = &[Cell]> {
        self.cells.chunks(self.columns().len().max(1))
    }

    /// What the cells show.
    pub fn caption(&self) -> String {
        let what = self.measure.caption(&self.cells);
        if self.seeds == 1 {
            format!("{what}, one seed.")
        } else {
            format!("{what}, mean ± standard deviation of {} seeds.", self.seeds)
        }
    }

    /// The table in Markdown.
    pub fn markdown(&self) -> String {
        let columns = self.columns();
        let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        let mut text = format!("{}\n\n", self.title);
        text += &line(&mut std::iter::once(String::new()).chain(columns.iter().map(|c| (*c).to_owned())));
        text += &format!("|---|{}\n", "---:|".repeat(columns.len()));
        for row in self.rows() {
            let name = row.first().map_or(String::new(), |c| c.row.clone());
            text += &line(&mut std::iter::once(name).chain(row.iter().map(|c| c.text(self.seeds))));
        }
        text + "\n" + &self.caption()
    }

    fn write(&self, out: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).map_err(|e| Error::new(e.to_string()))?;
        write_atomically(&out.join("table.json"), &json)?;
        write_atomically(&out.join("table.md"), format!("{}\n", self.markdown()).as_bytes())
    }
}

impl Cell {
    /// Mean and deviation, as a table shows them; how many runs they are of unless that is `seeds`.
    pub fn text(&self, seeds: u64) -> String {
        let Some(mean) = self.mean else { return "–".to_owned() };
        let spread = self.deviation.map_or(String::new(), |d| format!(" ± {d:.2}"));
        let n = self.values.len();
        let count = if n as u64 == seeds { String::new() } else { format!(" (n = {n})") };
        format!("{mean:.2}{spread}{count}")
    }
}

/// Mean, and sample standard deviation of two or more values.
pub(crate) fn moments(values: &[f64]) -> (Option<f64>, Option<f64>) {
    let n = values.len() as f64;
    if values.is_empty() {
        return (None, None);
    }
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (Some(mean), (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()))
}

/// Whether a run is over; it must have been made with these settings.
fn is_finished(folder: &Path, recipe: &Recipe) -> Result<bool> {
    let folder = Folder::new(folder);
    let file = folder.recipe();
    if !file.exists() {
        return Ok(false);
    }
    let (mut made, mut wanted) = (Recipe::load(&file)?, recipe.clone());
    for recipe in [&mut made, &mut wanted] {
        recipe.make_paths_absolute()?;
        recipe.metric = Some(recipe.metric());
    }
    // What the run itself has filled in.
    if recipe.normalization.is_none() {
        made.normalization = None;
    }
    made.classes.clone_from(&recipe.classes);
    if let (Some(made), Some(given)) = (&mut made.text, &recipe.text) {
        made.classes.clone_from(&given.classes);
    }
    if made.embedding.is_some() && made.embedding == recipe.output {
        made.output = made.embedding.take();
    }
    let table = |r: &Recipe| Table::try_from(r).map_err(|e| Error::new(e.to_string()));
    let (made, wanted) = (table(&made)?, table(&wanted)?);
    let differs = |key: &&String| made.get(*key) != wanted.get(*key);
    if let Some(key) = made.keys().chain(wanted.keys()).find(differs) {
        return Err(Error::new(format!("this run was made with another `{key}`"))
            .in_file(&file)
            .hint("remove the run, or choose another folder with -o"));
    }
    Ok(folder.summary().exists())
}

/// The rows or columns of a file; one without any settings when there are none.
fn variants(value: Option<Value>, what: &str, name: &str) -> Result<Vec<Variant>> {
    let Some(value) = value else {
        return Ok(vec![Variant { name: name.to_owned(), settings: Table::new() }]);
    };
    let tables: Vec<Table> = value.try_into().map_err(|e| toml_error(e).hint(format!("write [[{what}]]")))?;
    let mut all = Vec::new();
    for mut settings in tables {
        match settings.remove("name") {
            Some(Value::String(name)) => all.push(Variant { name, settings }),
            _ => crate::bail!("one of the {what} has no `name`"),
        }
    }
    let folders: BTreeSet<String> = all.iter().map(|v| slug(&v.name)).collect();
    if folders.len() != all.len() || all.is_empty() {
        crate::bail!("the {what} need different names, of letters or digits");
    }
    Ok(all)
}

/// A name as a folder.
fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("-")
}

/// Sets what `over` sets, table by table.
fn merge(table: &mut Table, over: &Table) {
    for (key, value) in over {
        match (table.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            _ => {
                table.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: &str = "
        title = 'T'
        model = 'm.onnx'
        data = 'npz:d.npz'
        lr = 0.1
        [[rows]]
        name = 'clean'
        [[rows]]
        name = '40 % noise'
        label-noise = 0.4
        [[columns]]
        name = 'SGD'
        optimizer = 'sgd'
        epochs = 400
        [[columns]]
        name = 'BiSAM (−log)'
        optimizer = 'bisam'
        label-noise = 0.2
    ";

    #[test]
    fn columns_win_over_rows_and_rows_over_the_rest() {
        let e = Experiment::parse(GRID, "grid").unwrap();
        let recipes: Vec<Recipe> = e.cells().map(|(r, c)| e.recipe(r, c, 3).unwrap()).collect();
        assert_eq!(recipes.iter().map(|r| r.label_noise).collect::<Vec<_>>(), [0.0, 0.2, 0.4, 0.2]);
        assert_eq!(recipes.iter().map(|r| r.epochs).collect::<Vec<_>>(), [400, 200, 400, 200]);
        assert!(recipes.iter().all(|r| r.seed == 3 && r.lr == 0.1));
        assert!(recipes[0].step.ascent.is_none() && recipes[1].step.ascent.is_some());
        let folder = e.folder(Path::new("o"), &e.rows[1], &e.columns[1], 2);
        assert_eq!(folder, Path::new("o").join("40-noise").join("bisam-log").join("seed-2"));
    }

    #[test]
    fn a_recipe_alone_is_one_run() {
        let e = Experiment::parse("model = 'm'\ndata = 'npz:d'", "name").unwrap();
        assert!(e.is_single());
        assert_eq!(e.folder(Path::new("o"), &e.rows[0], &e.columns[0], 0), Path::new("o").join("seed-0"));
        assert_eq!(e.title, "name");
    }

    #[test]
    fn mistakes_are_named() {
        let cause = |text: &str| Experiment::parse(text, "x").unwrap_err().to_string();
        assert!(cause("data = 'npz:d'").contains("`model` is not set"));
        assert!(cause(&GRID.replace("0.4", "4.0")).contains("40 % noise, SGD: label-noise"));
        assert!(cause(&GRID.replace("'sgd'", "'sgdd'")).contains("clean, SGD: unknown optimizer `sgdd`"));
        assert!(cause(&GRID.replace("'clean'", "'40 noise'")).contains("different names"));
        assert!(cause(&GRID.replace("name = 'SGD'", "")).contains("no `name`"));
        assert!(cause(&GRID.replace("title = 'T'", "measure = 'speed'")).contains("speed"));
    }

    #[test]
    fn a_table_has_mean_and_deviation() {
        assert_eq!(moments(&[]), (None, None));
        assert_eq!(moments(&[2.0]), (Some(2.0), None));
        assert_eq!(moments(&[1.0, 3.0]), (Some(2.0), Some(2f64.sqrt())));
        let cell = |row: &str, column: &str, values: &[f64]| {
            let (mean, deviation) = moments(values);
            Cell {
                row: row.into(),
                column: column.into(),
                metric: Metric::Accuracy,
                values: values.to_vec(),
                mean,
                deviation,
                runs: Vec::new(),
            }
        };
        let cells = vec![cell("a", "x", &[1.0, 3.0]), cell("a", "y", &[2.0]), cell("b", "x", &[]), cell("b", "y", &[])];
        let results = Results { title: "T".into(), measure: Measure::Metric, seeds: 2, cells };
        let text = results.markdown();
        assert!(
            text.contains("|  | x | y |\n|---|---:|---:|\n| a | 2.00 ± 1.41 | 2.00 (n = 1) |\n| b | – | – |\n"),
            "{text}"
        );
    }
}
