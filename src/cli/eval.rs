//! `bisam eval`: loss, accuracy, F1 and Matthews correlation on a data set.

use super::page::{Cell, Page, cell, number};
use super::{Global, TextArgs, at_least_one, evaluation_recipe};
use crate::error::{Error, Result};
use crate::onnx::import;
use crate::train::{Confusion, Evaluation, Folder, Metric, evaluate_model};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of a run, whose model.onnx is meant, or a model; a recipe.toml beside that gives the normalization, the output, the
    /// loss and the text settings of its training
    model: PathBuf,
    /// Data as FORMAT:PATH (cifar10, cifar100, idx, images, npz; tsv, csv, jsonl) [default: those of the run, split as it split them]
    #[arg(long, value_name = "SPEC")]
    data: Option<String>,
    /// cross-entropy, or a scalar output of the model that is its own loss [default: that of the run, or cross-entropy]
    #[arg(long, value_name = "NAME")]
    loss: Option<String>,
    /// The output, or a value inside, that holds the logits or probabilities [default: found among the outputs]
    #[arg(long, value_name = "NAME")]
    logits: Option<String>,
    #[command(flatten)]
    text: TextArgs,
    /// The part of the data; a table of text alone is the training part
    #[arg(long, default_value = "test", value_parser = ["train", "valid", "test"])]
    split: String,
    /// Samples in a batch [default: that of the run, or 128]
    #[arg(long, value_parser = at_least_one)]
    batch_size: Option<usize>,
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
    let file = if args.model.is_dir() { model_of_run(&args.model)? } else { args.model.clone() };
    let mut recipe = evaluation_recipe(&file, args.data.as_deref(), &args.text, args.batch_size)?;
    if let Some(loss) = &args.loss {
        recipe.loss.clone_from(loss);
    }
    if args.logits.is_some() {
        recipe.output.clone_from(&args.logits);
    }
    let engine = global.engine()?;
    let model = import(&file).map_err(|e| match file.exists() {
        true => e,
        false => e.hint("name a model, or the folder that `bisam train -o` wrote"),
    })?;
    recipe.know_classes(&model);
    recipe.skip_damaged |= args.skip_damaged;
    let mut note = |text: &str| global.note(text);
    let evaluation =
        evaluate_model(&engine, &model.graph, &recipe, &args.split, &mut note).map_err(|e| e.in_file(&file))?;
    let (samples, loss) = (evaluation.samples, evaluation.loss);
    let mut value = json!({"split": args.split, "samples": samples});
    let mut text = args.split.clone();
    if let Some(scores) = evaluation.confusion.as_ref().map(Confusion::scores) {
        value["accuracy"] = scores.accuracy.into();
        value["f1"] = scores.f1.into();
        value["matthews"] = scores.matthews.into();
        let accuracy = Metric::Accuracy.text(scores.accuracy);
        text += &format!(
            " accuracy {accuracy} ({samples} samples), loss {loss:.4}, F1 {:.4}, Matthews {:.4}",
            scores.f1, scores.matthews
        );
    } else {
        text += &format!(" loss {loss:.4} ({samples} samples)");
    }
    value["loss"] = loss.into();
    if args.per_class {
        if evaluation.confusion.is_none() {
            let cause = "there are no classes: the model shows no logits beside its own loss";
            return Err(Error::new(cause).in_file(&file).hint("leave --per-class out"));
        }
        let (rows, classes) = per_class(&evaluation);
        value["classes"] = classes;
        let mut page = Page::stdout();
        page.table(&rows);
        text += &format!("\n\n{}", page.into_text().trim_end());
    }
    global.print(&value, &text)
}

/// The best model of the run in a folder.
fn model_of_run(dir: &Path) -> Result<PathBuf> {
    let folder = Folder::new(dir);
    folder.load_recipe()?;
    let model = folder.model();
    if model.exists() {
        return Ok(model);
    }
    Err(Error::new("there is no model.onnx yet: no epoch of the run is over")
        .in_file(dir)
        .hint("wait for its first epoch"))
}

/// A row, and an object, per class.
fn per_class(evaluation: &Evaluation) -> (Vec<Vec<Cell>>, Value) {
    let mut rows = vec![vec![cell("class"), number("precision"), number("recall"), number("F1"), number("samples")]];
    let mut objects = Vec::new();
    let classes = evaluation.confusion.as_ref().map(Confusion::per_class).unwrap_or_default();
    for (name, c) in evaluation.classes.iter().zip(classes) {
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
