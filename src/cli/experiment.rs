//! `bisam experiment`: sets of runs, and their table.

use super::Global;
use super::train::{Progress, stop_on_interruption};
use crate::error::{Error, Result};
use crate::report::write_experiment;
use crate::train::Experiment;
use std::path::{Path, PathBuf};

/// Arguments of `experiment`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recipes, with [[rows]] and [[columns]] where they make a table
    #[arg(required = true, value_name = "RECIPE.toml")]
    recipes: Vec<PathBuf>,
    /// Runs of each, with seeds that follow the recipe's
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Folder for the results; each recipe has one below it, by its name
    #[arg(short, long, value_name = "DIR", default_value = "runs")]
    output: PathBuf,
    /// Only tabulate the runs that are finished, and write the report about them
    #[arg(long)]
    table: bool,
}

/// Runs the command.
///
/// # Errors
/// Anything that is wrong with a recipe, its model or its data; an interruption.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let experiments: Vec<Experiment> = args.recipes.iter().map(|r| Experiment::load(r)).collect::<Result<_>>()?;
    let folder = |recipe: &Path| args.output.join(recipe.file_stem().unwrap_or_default());
    let mut results = Vec::new();
    if args.table {
        for (recipe, experiment) in args.recipes.iter().zip(&experiments) {
            let table = experiment.results(args.seeds, &folder(recipe))?;
            write_experiment(&table, &folder(recipe))?;
            results.push(table);
        }
    } else {
        let engine = global.engine()?;
        let stop = stop_on_interruption()?;
        let mut progress = Progress::new(global.quiet);
        for (recipe, experiment) in args.recipes.iter().zip(&experiments) {
            let table = experiment.run(&engine, args.seeds, &folder(recipe), &stop, &mut progress)?;
            progress.bar.finish_and_clear();
            write_experiment(&table, &folder(recipe))?;
            results.push(table);
        }
    }
    let text: Vec<String> = results.iter().map(|r| r.markdown()).collect();
    let value = serde_json::to_value(&results).map_err(|e| Error::new(e.to_string()))?;
    global.print(&value, &text.join("\n\n"))
}
