//! `bisam report`.

use super::Global;
use crate::error::Result;
use crate::files::write_atomically;
use crate::report::{Run, html};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders of runs, as `train -o` writes them; several are compared
    #[arg(required = true, value_name = "DIR")]
    runs: Vec<PathBuf>,
    /// The HTML file to write [default: DIR/report.html, of several runs report.html]
    #[arg(short, long, value_name = "FILE.html")]
    output: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// A folder without metrics, a damaged file, or an I/O error.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let mut runs = args.runs.iter().map(|dir| Run::load(dir)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for (i, dir) in args.runs.iter().enumerate() {
        if names.iter().filter(|name| **name == names[i]).count() > 1 {
            runs[i].name = dir.display().to_string();
        }
    }
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let title = if names.len() > 4 { format!("{} runs", names.len()) } else { names.join(", ") };
    let file = args.output.clone().unwrap_or_else(|| match args.runs.as_slice() {
        [dir] => dir.join("report.html"),
        _ => "report.html".into(),
    });
    write_atomically(&file, html(&title, &runs, &[])?.as_bytes())?;
    let text = format!("report               {}", file.display());
    global.print(&json!({"report": file, "runs": args.runs}), &text)
}
