//! `bisam eval`: accuracy and loss on a data set.

use super::{Global, at_least_one};
use crate::error::Result;
use crate::onnx::import;
use crate::train::{Recipe, evaluate_model};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model; a recipe.toml beside it gives the normalization of its training
    model: PathBuf,
    /// Data as FORMAT:PATH
    #[arg(long, value_name = "SPEC")]
    data: String,
    /// The part of the data
    #[arg(long, default_value = "test", value_parser = ["train", "valid", "test"])]
    split: String,
    /// Samples in a batch
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    batch_size: usize,
}

/// Runs the command.
///
/// # Errors
/// Anything that is wrong with model or data.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let engine = global.engine()?;
    let model = import(&args.model)?;
    let beside = args.model.with_file_name("recipe.toml");
    let normalization = if beside.exists() { Recipe::load(&beside)?.normalization } else { None };
    let mut note = |text: &str| {
        if !global.quiet {
            eprintln!("note: {text}");
        }
    };
    let (loss, accuracy, samples) =
        evaluate_model(&engine, &model.graph, &args.data, &args.split, normalization, args.batch_size, &mut note)
            .map_err(|e| e.in_file(&args.model))?;
    let value = json!({"split": args.split, "samples": samples, "accuracy": accuracy, "loss": loss});
    let text = format!("{} accuracy {:.2} % ({samples} samples), loss {loss:.4}", args.split, accuracy * 100.0);
    global.print(&value, &text)
}
