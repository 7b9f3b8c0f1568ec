//! `bisam eval`: accuracy, loss, F1 and Matthews correlation on a data set.

use super::page::{Cell, Page, cell, number};
use super::{Global, TextArgs, at_least_one, evaluation_recipe};
use crate::error::Result;
use crate::onnx::import;
use crate::train::{Evaluation, evaluate_model};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model; a recipe.toml beside it gives the normalization, the output and the text settings of its training
    model: PathBuf,
    /// Data as FORMAT:PATH (cifar10, cifar100, idx, images, npz; tsv, csv, jsonl)
    #[arg(long, value_name = "SPEC")]
    data: String,
    #[command(flatten)]
    text: TextArgs,
    /// The part of the data; a table of text alone is the training part
    #[arg(long, default_value = "test", value_parser = ["train", "valid", "test"])]
    split: String,
    /// Samples in a batch
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    batch_size: usize,
    /// Leave out image files that cannot be decoded, with a note
    #[arg(long)]
    skip_damaged: bool,
    /// Precision, recall and F1 of every class too
    #[arg(long)]
    per_class: bool,
}

/// Runs the command.
///
/// # Errors
/// Anything that is wrong with model or data.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let mut recipe = evaluation_recipe(&args.model, &args.data, &args.text, args.batch_size)?;
    let engine = global.engine()?;
    let model = import(&args.model)?;
    recipe.know_classes(&model);
    recipe.skip_damaged |= args.skip_damaged;
    let mut note = |text: &str| global.note(text);
    let evaluation =
        evaluate_model(&engine, &model.graph, &recipe, &args.split, &mut note).map_err(|e| e.in_file(&args.model))?;
    let (samples, loss, scores) = (evaluation.confusion.samples(), evaluation.loss, evaluation.confusion.scores());
    let mut value = json!({
        "split": args.split,
        "samples": samples,
        "accuracy": scores.accuracy,
        "loss": loss,
        "f1": scores.f1,
        "matthews": scores.matthews,
    });
    let mut text = format!(
        "{} accuracy {:.2} % ({samples} samples), loss {loss:.4}, F1 {:.4}, Matthews {:.4}",
        args.split,
        scores.accuracy * 100.0,
        scores.f1,
        scores.matthews
    );
    if args.per_class {
        let (rows, classes) = per_class(&evaluation);
        value["classes"] = classes;
        let mut page = Page::stdout();
        page.table(&rows);
        text += &format!("\n\n{}", page.into_text().trim_end());
    }
    global.print(&value, &text)
}

/// A row, and an object, per class.
fn per_class(evaluation: &Evaluation) -> (Vec<Vec<Cell>>, Value) {
    let mut rows = vec![vec![cell("class"), number("precision"), number("recall"), number("F1"), number("samples")]];
    let mut objects = Vec::new();
    for (name, c) in evaluation.classes.iter().zip(evaluation.confusion.per_class()) {
        let share = |v: f64| number(format!("{v:.4}"));
        rows.push(vec![cell(name), share(c.precision), share(c.recall), share(c.f1), number(c.samples.to_string())]);
        objects.push(json!({
            "class": name,
            "precision": c.precision,
            "recall": c.recall,
            "f1": c.f1,
            "samples": c.samples,
        }));
    }
    (rows, objects.into())
}
