//! `bisam verify`: tract against ONNX Runtime.

use super::{Global, at_least_one};
use crate::error::{Error, Result};
use crate::export::verify;
use std::path::PathBuf;

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    model: PathBuf,
    /// Compare with this model on ONNX Runtime instead of tract
    #[arg(long)]
    against: Option<PathBuf>,
    /// Samples in the batch
    #[arg(long, default_value_t = 4, value_parser = at_least_one)]
    batch: usize,
    /// Largest absolute difference
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f64,
}

/// Runs the command.
///
/// # Errors
/// A model that either runtime refuses, or a difference above the tolerance.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let engine = global.engine()?;
    let verdict = verify(&engine, &args.model, args.against.as_deref(), args.batch, args.tolerance)?;
    let other = args.against.as_ref().map_or("tract".into(), |p| p.display().to_string());
    let note: String =
        verdict.written_out.iter().map(|why| format!("{why}; what bisam makes of it was run\n")).collect();
    let text = format!(
        "{note}{} and {other} differ by at most {:.1e} over {} elements (tolerance {:.0e})",
        args.model.display(),
        verdict.max_difference,
        verdict.elements,
        args.tolerance
    );
    let value = serde_json::to_value(&verdict).map_err(|e| Error::new(e.to_string()))?;
    global.print(&value, &text)?;
    if verdict.agrees { Ok(()) } else { Err(Error::new("the outputs differ").in_file(&args.model)) }
}
