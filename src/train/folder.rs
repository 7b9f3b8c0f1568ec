//! The folder of a run: what lies where in it, and whether the run is finished.

use super::checkpoint;
use super::log::Summary;
use super::recipe::Recipe;
use crate::error::{Error, IoContext, Result};
use std::path::{Path, PathBuf};

/// What `train -o` writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder at `path`, which need not exist.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The model of the best epoch.
    pub fn model(&self) -> PathBuf {
        self.0.join("model.onnx")
    }

    /// The model of the last epoch.
    pub fn last(&self) -> PathBuf {
        self.0.join("last.onnx")
    }

    /// The model of epoch `number`, counted from 1.
    pub fn of_epoch(&self, number: usize) -> PathBuf {
        self.0.join("epochs").join(format!("{number:04}.onnx"))
    }

    /// The settings.
    pub fn recipe(&self) -> PathBuf {
        self.0.join("recipe.toml")
    }

    /// The results.
    pub fn summary(&self) -> PathBuf {
        self.0.join("summary.json")
    }

    /// The report.
    pub fn report(&self) -> PathBuf {
        self.0.join("report.html")
    }

    /// Where the run is.
    pub fn state(&self) -> PathBuf {
        self.0.join("checkpoint").join("state.safetensors")
    }

    /// Refuses a folder that a run has written to.
    pub(super) fn check_unused(&self) -> Result<()> {
        match [self.state(), self.model(), self.last()].into_iter().find(|f| f.exists()) {
            Some(old) => Err(Error::new("this file is there already")
                .in_file(old)
                .hint("go on with --resume DIR, or choose another folder with -o")),
            None => Ok(()),
        }
    }

    /// The recipe of the run.
    ///
    /// # Errors
    /// No such folder, one that is not of a run, or a damaged recipe.
    pub fn load_recipe(&self) -> Result<Recipe> {
        let file = self.recipe();
        if !file.is_file() {
            let cause = if self.0.is_dir() { "there is no recipe.toml here" } else { "there is no such folder" };
            return Err(Error::new(cause).in_file(&self.0).hint("name the folder that `bisam train -o` wrote"));
        }
        Recipe::load(&file)
    }

    /// The results of the run, once it is finished.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn results(&self) -> Result<Option<Summary>> {
        let file = self.summary();
        if !file.exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(&file).file(&file)?;
        serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::new(e.to_string()).in_file(&file))
    }

    /// The results of a run that has done all that `recipe` asks for.
    ///
    /// # Errors
    /// A file that cannot be read; more steps than were done, of a run whose checkpoint is gone.
    pub fn finished(&self, recipe: &Recipe) -> Result<Option<Summary>> {
        let Some(summary) = self.results()? else { return Ok(None) };
        let state = self.state();
        let done = if state.exists() {
            let position = checkpoint::position(&state)?;
            recipe.steps.map_or(recipe.epochs <= position.epoch, |steps| steps as u64 <= position.steps)
        } else {
            let made = self.load_recipe()?;
            if (made.steps, made.epochs) != (recipe.steps, recipe.epochs) {
                let cause = "the run is finished and its checkpoint is gone, so that it cannot go on";
                let hint = "start another run from its last.onnx, in another folder with -o";
                return Err(Error::new(cause).in_file(&self.0).hint(hint));
            }
            true
        };
        Ok(done.then_some(summary))
    }

    /// Removes what tells of an end that is no longer one.
    pub(super) fn reopen(&self) -> Result<()> {
        for file in [self.summary(), self.report()] {
            if file.exists() {
                std::fs::remove_file(&file).file(&file)?;
            }
        }
        Ok(())
    }
}
