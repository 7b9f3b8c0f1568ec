//! A run: set up, trained epoch by epoch, summed up.

use super::checkpoint;
use super::folder::Folder;
use super::log::{EpochReport, StepReport, Summary};
use super::metrics::Metric;
use super::recipe::Recipe;
use super::setup::Setup;
use super::trainer::{Trainer, names};
use crate::engine::Engine;
use crate::error::{Error, Result};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Watches a run.
pub trait Observer {
    /// Something worth saying once.
    fn note(&mut self, text: &str);
    /// The run begins (again) after `done` of `total` steps; `metric` chooses its best epoch.
    fn start(&mut self, done: u64, total: u64, metric: Metric);
    /// A step is over.
    fn step(&mut self, report: &StepReport);
    /// An epoch is over.
    fn epoch(&mut self, report: &EpochReport);
}

/// Trains as the recipe says and writes the results under `out`; `resume` goes on from the checkpoint there. A finished run that the
/// recipe does not extend stays as it is.
///
/// Everything that could fail when the results are written is tried before the first step. The models of the best and the last epoch are
/// written after every epoch. When `stop` becomes true the run writes a checkpoint and ends with an error that says how to go on.
///
/// # Errors
/// Anything that is wrong with model, data or settings; a loss or weights that are not finite; an I/O error.
pub fn train(
    engine: &Engine,
    recipe: &Recipe,
    out: &Path,
    resume: bool,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    recipe.validate()?;
    let folder = Folder::new(out);
    if resume && !folder.state().exists() && folder.results()?.is_none() {
        return Err(Error::new("there is no checkpoint: the run ended before its first one")
            .in_file(out)
            .hint("remove the folder and start the run again"));
    }
    if resume && let Some(summary) = folder.finished(recipe)? {
        observer.note(&format!("the run in {} is finished; --epochs or --steps extend it", out.display()));
        return Ok(summary);
    }
    let mut setup = Setup::new(engine, recipe, observer)?;
    let mut found = None;
    if resume {
        let (position, state, best) =
            checkpoint::load(&folder.state(), &names(&setup.stages), setup.recipe.step.states())?;
        setup.program.restore(&state)?;
        found = Some((position, best));
    } else {
        folder.check_unused()?;
    }
    Trainer::new(setup, folder, found, stop, observer)?.run()
}
