//! `bisam figure`.

use super::Global;
use crate::error::{IoContext, Result};
use crate::report::bounds;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `figure`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// bounds: what BiSAM ascends, under the 0-1 loss
    #[arg(value_parser = ["bounds"])]
    name: String,
    /// Folder for NAME.svg and NAME.png
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A runtime that cannot be had, or an I/O error.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let drawing = bounds(&global.engine()?)?.draw();
    std::fs::create_dir_all(&args.output).file(&args.output)?;
    let stem = args.output.join(&args.name);
    drawing.write(&stem)?;
    let files = ["svg", "png"].map(|extension| stem.with_extension(extension));
    let text = files.each_ref().map(|file| file.display().to_string()).join("\n");
    global.print(&json!({"files": files}), &text)
}
