//! Reports: one HTML file about one run or several, with figures inside, that needs neither scripts nor a network.
//!
//! A report is made of what a run's folder holds ([`Run::load`]) and of sections of the caller's own, such as the summary of an
//! experiment:
//!
//! ```no_run
//! use bisam::figure::Chart;
//! use bisam::report::{Run, Section, html};
//! # fn main() -> bisam::Result<()> {
//! let runs = [Run::load("runs/sam".as_ref())?, Run::load("runs/bisam".as_ref())?];
//! let summary = Section::new("Accuracy over ρ").text("Mean of three seeds.").figure(&Chart::default().draw());
//! std::fs::write("report.html", html("SAM and BiSAM", &runs, &[summary])?).ok();
//! # Ok(()) }
//! ```

mod bounds;
mod curves;
mod experiment;
mod results;
mod run;
mod section;
mod sharpness;

pub use bounds::bounds;
pub use experiment::write_experiment;
pub use run::{Epoch, Run, Step};
pub use section::{Section, html_page};

use crate::error::{Error, Result};
use crate::files::write_atomically;
use std::path::{Path, PathBuf};

/// The report about `runs`: `extra` sections first, then results, curves, confusion matrices, sharpness and settings.
///
/// # Errors
/// No runs and no sections.
pub fn html(title: &str, runs: &[Run], extra: &[Section]) -> Result<String> {
    if runs.is_empty() && extra.is_empty() {
        return Err(Error::new("a report needs at least one run").hint("name the folder of a run"));
    }
    let mut sections = extra.to_vec();
    if !runs.is_empty() {
        sections.push(results::table(runs));
        sections.push(curves::section(runs));
        sections.extend(results::confusion(runs));
        sections.extend(sharpness::section(runs));
        sections.extend(results::settings(runs));
    }
    Ok(html_page(title, &results::facts(runs), &sections))
}

/// Writes `DIR/report.html` about the run in `dir`, and returns its path.
///
/// # Errors
/// As [`Run::load`], or an I/O error.
pub fn write(dir: &Path) -> Result<PathBuf> {
    let run = Run::load(dir)?;
    let file = dir.join("report.html");
    write_atomically(&file, html(&run.name.clone(), &[run], &[])?.as_bytes())?;
    Ok(file)
}
