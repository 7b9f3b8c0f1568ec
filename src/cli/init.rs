//! `bisam init`: fresh weights.

use super::Global;
use crate::error::Result;
use crate::export::{fresh, with_values};
use crate::onnx::{import, save};
use std::path::PathBuf;

/// Arguments of `init`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    model: PathBuf,
    /// Seed of the weights
    #[arg(long)]
    seed: u64,
    /// File to write
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A file that is no model, or one that cannot be written.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let model = import(&args.model)?;
    let graph = &model.graph;
    save(&with_values(&model, &fresh(graph, args.seed))?, &args.output)?;
    let elements: usize = graph.params().iter().filter_map(|v| graph.param(*v)).map(|t| t.len()).sum();
    let text = format!(
        "{}: {elements} parameters in {} tensors, seed {}",
        args.output.display(),
        graph.params().len(),
        args.seed
    );
    let value = serde_json::json!({
        "output": args.output,
        "seed": args.seed,
        "parameters": elements,
        "tensors": graph.params().len(),
        "untied": model.untied.len(),
    });
    global.print(&value, &text)
}
