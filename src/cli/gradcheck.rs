//! `bisam gradcheck`: a model's gradient against finite differences.

use super::inspect::{dimension, print};
use super::page::{Page, Tone, cell, number, shape, shorten};
use super::{Global, at_least_one};
use crate::adapt::Mode;
use crate::error::{Error, Result};
use crate::onnx::import;
use crate::step::check::{Check, Row, Verdict};
use crate::trace::Sizes;
use std::path::PathBuf;

/// Width of a name in the table.
const NAME: usize = 44;

/// Compare the gradient of the cross-entropy with central differences along random directions, parameter by parameter.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ONNX file.
    model: PathBuf,
    /// Samples in the batch.
    #[arg(long, default_value_t = 4, value_parser = at_least_one)]
    batch: usize,
    /// What inputs, labels and directions are drawn from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Size of a dimension that the file leaves open; may be given several times.
    #[arg(long, value_name = "NAME=SIZE", value_parser = dimension)]
    dim: Vec<(String, usize)>,
    /// The output, or a value inside, that holds the logits or probabilities; found among the outputs by default.
    #[arg(long, value_name = "NAME")]
    logits: Option<String>,
    /// Check only this many parameters, spread over the model.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    parameters: Option<usize>,
    /// Random directions for each parameter.
    #[arg(long, default_value_t = 3, value_parser = at_least_one)]
    directions: usize,
    /// Largest relative error of a right gradient, beyond what the measurement can tell.
    #[arg(long, default_value_t = 0.01)]
    tolerance: f64,
    /// eval: BatchNormalization at its running statistics, no Dropout; train: statistics of the batch.
    #[arg(long, default_value = "eval", value_parser = mode)]
    mode: Mode,
}

fn mode(text: &str) -> Result<Mode> {
    match text {
        "eval" => Ok(Mode::Eval),
        "train" => Ok(Mode::Train),
        _ => Err(Error::new("it must be eval or train")),
    }
}

/// Runs the command.
///
/// # Errors
/// A gradient that is off, or a model that cannot be differentiated.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let model = import(&args.model)?;
    let engine = global.engine()?;
    let graph = &model.graph;
    let sizes = Sizes { batch: args.batch, dims: args.dim.iter().cloned().collect(), ..Sizes::default() };
    let mut check = Check::new(graph, args.logits.as_deref(), &sizes, args.mode, args.seed, &engine)
        .map_err(|e| e.in_file(&args.model))?;
    if let Some(n) = args.parameters {
        let every = check.parameters.len().div_ceil(n).max(1);
        check.parameters = check.parameters.into_iter().step_by(every).collect();
    }
    let (mut gradient, mut logits) = (engine.compile(&check.gradient)?, engine.compile(&check.logits)?);
    let rows =
        check.rows(&mut |f| gradient.run(f), &mut |f| logits.run(f), args.directions, args.tolerance, args.seed)?;
    print(global, &rows, |page| table(page, &rows, args.tolerance))?;
    let off: Vec<&str> = rows.iter().filter(|r| r.verdict == Verdict::Off).map(|r| r.name.as_str()).collect();
    match off.as_slice() {
        [] => Ok(()),
        [first, ..] => Err(Error::new(format!("the gradients of {} parameters are off, `{first}` first", off.len()))
            .in_file(&args.model)
            .hint("try another --seed; if they stay off, a gradient rule is wrong: please report the model")),
    }
}

fn table(page: &mut Page, rows: &[Row], tolerance: f64) {
    let header = ["parameter", "shape", "‖gradient‖", "error", "±", "directions", ""];
    let mut lines = vec![header.iter().map(|h| cell(*h).tone(Tone::Dim)).collect::<Vec<_>>()];
    for r in rows {
        let (text, tone) = match r.verdict {
            Verdict::Right => ("✓", Tone::Good),
            Verdict::Off => ("✗ off", Tone::Bad),
            Verdict::Undecided => ("undecided", Tone::Warn),
        };
        lines.push(vec![
            cell(shorten(&r.name, NAME)),
            cell(shape(&r.shape)),
            number(format!("{:.2e}", r.norm)),
            number(r.error.map_or("–".into(), |e| format!("{e:.1e}"))),
            number(r.doubt.map_or("–".into(), |d| format!("{d:.0e}"))).tone(Tone::Dim),
            number(format!("{} of {}", r.directions, r.directions + r.skipped)),
            cell(text).tone(tone),
        ]);
    }
    page.table(&lines);
    let count = |v: Verdict| rows.iter().filter(|r| r.verdict == v).count();
    page.line("");
    page.line(&format!(
        "{} right, {} off, {} undecided (error relative to ‖gradient‖, tolerance {tolerance})",
        count(Verdict::Right),
        count(Verdict::Off),
        count(Verdict::Undecided)
    ));
    let note = "± is how far slopes of neighbouring step sizes differ: f32 rounding, and kinks (Relu, pooling) that are crossed.\n\
                Only an error beyond one and a half times that counts; directions with too large a ± are skipped; the median decides.";
    for line in note.lines() {
        let line = page.paint(line, Tone::Dim);
        page.line(&line);
    }
}
