//! `bisam sharpness`: what perturbations of the weights do to a model.

use super::{Global, TextArgs, at_least_one, evaluation_recipe};
use crate::adapt::Mode;
use crate::error::{Error, IoContext, Result};
use crate::files::write_atomically;
use crate::sharpness::{Probe, Sharpness, figures, sharpness};
use std::fmt::Write;
use std::path::PathBuf;

/// Arguments of `sharpness`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model, or several such as the epochs of a run; a recipe.toml beside them or above gives the settings of their training
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Data as FORMAT:PATH
    #[arg(long, value_name = "SPEC")]
    data: String,
    #[command(flatten)]
    text: TextArgs,
    /// The part of the data
    #[arg(long, default_value = "train", value_parser = ["train", "valid", "test"])]
    split: String,
    /// Norms of the perturbations
    #[arg(long, value_name = "RHO,...", value_delimiter = ',', default_values_t = [0.01, 0.02, 0.05, 0.1, 0.2])]
    rho: Vec<f32>,
    /// Samples to look at, drawn at random
    #[arg(long, default_value_t = 1024, value_parser = at_least_one)]
    samples: usize,
    /// Samples of a batch, each with a perturbation of its own: the m of m-sharpness
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    batch_size: usize,
    /// Normalization by running statistics (eval) or by those of the batch (train)
    #[arg(long, default_value = "eval", value_parser = ["eval", "train"])]
    mode: String,
    /// Also map loss and error on a random plane, with so many places along each side
    #[arg(long, value_name = "N", default_value_t = 0)]
    plane: usize,
    /// Seed of the random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for sharpness.json and the figures as SVG and PNG
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Anything that is wrong with a model or the data.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    if let Some(bad) = args.rho.iter().find(|r| !r.is_finite() || **r < 0.0) {
        return Err(Error::new(format!("rho is {bad}, but must be at least 0")));
    }
    let engine = global.engine()?;
    let probe = Probe {
        split: args.split.clone(),
        samples: args.samples,
        rhos: args.rho.clone(),
        mode: if args.mode == "train" { Mode::Train } else { Mode::Eval },
        plane: args.plane,
        seed: args.seed,
    };
    let mut note = |text: &str| global.note(text);
    let mut found = Vec::new();
    for model in &args.models {
        let recipe = evaluation_recipe(model, Some(&args.data), &args.text, Some(args.batch_size))?;
        found.push(sharpness(&engine, model, &recipe, &probe, &mut note)?);
    }
    let value = serde_json::to_value(&found).map_err(|e| Error::new(e.to_string()))?;
    if let Some(folder) = &args.output {
        std::fs::create_dir_all(folder).file(folder)?;
        let json = serde_json::to_vec_pretty(&value).map_err(|e| Error::new(e.to_string()))?;
        write_atomically(&folder.join("sharpness.json"), &json)?;
        for (name, drawing) in figures(&found) {
            drawing.write(&folder.join(name))?;
        }
    }
    global.print(&value, found.iter().map(text).collect::<Vec<_>>().join("\n\n").trim_end())
}

fn text(found: &Sharpness) -> String {
    let mut text = format!(
        "{}: {} samples, loss {:.4}, {} classified correctly\n{:<14} {:>7} {:>9} {:>9} {:>9}\n",
        found.model.display(),
        found.samples,
        found.loss,
        found.correct,
        "direction",
        "rho",
        "loss",
        "error",
        "flipped"
    );
    for p in &found.points {
        let (name, error) = (p.direction.name(), p.error * 100.0);
        let _ = writeln!(text, "{name:<14} {:>7} {:>9.4} {error:>7.2} % {:>9}", p.rho, p.loss, p.flipped);
    }
    text
}
