//! The loop: epochs of steps, validation, checkpoints, results.

use super::checkpoint::{self, Names, Position};
use super::events::{Events, of_epoch, of_step};
use super::metrics::{Confusion, Metric, judge};
use super::recipe::Recipe;
use super::schedule::Unit;
use crate::adapt::{Untied, append_head, freeze, replace_head, untie};
use crate::data::{
    Augment, Batch, Dataset, Fit, InputSpec, Loader, LoaderOptions, Normalization, Samples, ShortBatch, Spec, Splits,
    TextOptions, check_vocabulary, open, open_shapes,
};
use crate::engine::program::State;
use crate::engine::{Engine, Program};
use crate::error::{Error, IoContext, Result};
use crate::export::{export, fresh, with_values};
use crate::ir::{Declared, Graph, Source, Tensor, Type, ValueId};
use crate::onnx::{Model, from_proto, import, save};
use crate::step::stages::evaluation_stage;
use crate::step::{Ends, Prepared, Stages, build, prepare};
use crate::trace::Sizes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A log line of one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepReport {
    /// Steps done.
    pub step: u64,
    /// Epoch, counted from 0.
    pub epoch: usize,
    /// Loss of the ascent pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ascent_loss: Option<f32>,
    /// Loss of the descent pass.
    pub loss: f32,
    /// Share of correctly classified samples in the batch.
    pub accuracy: f32,
    /// Learning rate.
    pub lr: f32,
}

/// A log line of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// Epoch, counted from 0.
    pub epoch: usize,
    /// Mean descent loss.
    pub loss: f64,
    /// Share of correctly classified training samples.
    pub accuracy: f64,
    /// Cross-entropy on the validation split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    /// Accuracy on the validation split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_accuracy: Option<f64>,
    /// F1 on the validation split (see [`Confusion::f1`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_f1: Option<f64>,
    /// Matthews correlation on the validation split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_matthews: Option<f64>,
    /// Training samples per second.
    pub samples_per_second: f64,
}

/// The results of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Steps done.
    pub steps: u64,
    /// What the best epoch was chosen by.
    #[serde(default)]
    pub metric: Metric,
    /// Validation accuracy of the best epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_valid_accuracy: Option<f64>,
    /// Validation F1 of the best epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_valid_f1: Option<f64>,
    /// Validation Matthews correlation of the best epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_valid_matthews: Option<f64>,
    /// Epoch of the exported weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_epoch: Option<usize>,
    /// Test accuracy of the exported weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_accuracy: Option<f64>,
    /// Test cross-entropy of the exported weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_loss: Option<f64>,
    /// Test F1 of the exported weights (see [`Confusion::f1`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_f1: Option<f64>,
    /// Test Matthews correlation of the exported weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_matthews: Option<f64>,
    /// Names of the classes, in the order of the logits.
    #[serde(default)]
    pub classes: Vec<String>,
    /// Test samples by true class (rows) and predicted class (columns), for up to 100 classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_confusion: Option<Vec<Vec<u64>>>,
    /// Seconds of training, this process only.
    pub seconds: f64,
}

impl Summary {
    /// A metric of the exported weights, on the test split or else on the validation split.
    pub fn result(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Accuracy => self.test_accuracy.or(self.best_valid_accuracy),
            Metric::F1 => self.test_f1.or(self.best_valid_f1),
            Metric::Matthews => self.test_matthews.or(self.best_valid_matthews),
        }
    }
}

/// Tokens that any model of texts takes.
const SHORT_TEXT: usize = 8;

/// A confusion matrix of more classes is not written out.
const SHOWN_CLASSES: usize = 100;

/// Watches a run.
pub trait Observer {
    /// Something worth saying once.
    fn note(&mut self, text: &str);
    /// The run begins (again) after `done` of `total` steps.
    fn start(&mut self, done: u64, total: u64);
    /// A step is over.
    fn step(&mut self, report: &StepReport);
    /// An epoch is over.
    fn epoch(&mut self, report: &EpochReport);
}

/// Trains as the recipe says and writes the results under `out`; `resume` goes on from the checkpoint there.
///
/// When `stop` becomes true the run writes a checkpoint and ends with an error that says how to go on.
///
/// # Errors
/// Anything that is wrong with model, data or settings; a loss that is not finite; an I/O error.
pub fn train(
    engine: &Engine,
    recipe: &Recipe,
    out: &Path,
    resume: bool,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    recipe.validate()?;
    let mut recipe = recipe.clone();
    let mut model = import(&recipe.model)?;
    if recipe.fresh {
        model = afresh(&model, recipe.seed)?;
    }
    let spec: Spec = recipe.data.parse()?;
    let splits = open_data(&spec, &model.graph, recipe.text.as_ref())?;
    splits.notes.iter().for_each(|n| observer.note(n));
    let sizes = sizes(&model.graph, &splits.train, recipe.batch_size);
    let mut graph = with_head(&mut model, &mut recipe, &sizes, engine, observer).map_err(|e| e.in_file(&model.path))?;
    let untied = untie(&mut graph, &model);
    freeze(&mut graph, &recipe.parameters)?;
    let prepared = at_length(&recipe, &sizes, |sizes| prepare(&graph, sizes, recipe.ends(), engine))
        .map_err(|e| e.in_file(&model.path))?;
    if let Some(text) = &mut recipe.text {
        text.remember_classes(&splits.classes);
    }
    recipe.step.seed = recipe.seed;
    let stages = build(&prepared, &recipe.step).map_err(|e| e.in_file(&model.path))?;
    let classes = class_names(&splits, stages.classes);
    let data = Data::load(splits, &recipe, &stages, observer).map_err(|e| e.in_file(spec.path()))?;
    recipe.normalization.clone_from(&data.normalization);
    recipe.step.data_size = data.train.samples();

    let mut program = Program::new(engine, &stages, &recipe.step)?;
    for size in [Some(recipe.batch_size), data.rest].into_iter().flatten() {
        program.add_batch_sizes(size, |n| {
            build(&prepare(&graph, &sizes.with_batch(n), recipe.ends(), engine)?, &recipe.step)
        })?;
    }
    let mut evaluation = program.evaluation(&stages)?;
    let folder = out.join("checkpoint");
    let file = folder.join("state.safetensors");
    let results = [file.clone(), out.join("model.onnx"), out.join("last.onnx")];
    if let Some(old) = results.iter().find(|f| !resume && f.exists()) {
        return Err(Error::new("this file is there already")
            .in_file(old)
            .hint("go on with --resume DIR, or choose another folder with -o"));
    }
    std::fs::create_dir_all(&folder).file(&folder)?;
    let params = stages.params.clone();
    let stats = stages.stats.clone();
    let names = Names {
        params: params.iter().map(|p| p.name.as_str()).collect(),
        stats: stats.iter().map(|s| s.slot.name.as_str()).collect(),
    };
    let mut position = Position::default();
    let mut best: Option<State> = None;
    if resume {
        let (p, state, b) = checkpoint::load(&file, &names, recipe.step.states())?;
        program.restore(&state)?;
        (position, best) = (p, b);
    }
    recipe.save(&out.join("recipe.toml"))?;
    let mut log = Log::open(out, resume, position.steps)?;

    let per_epoch = data.train.batches_per_epoch();
    let total = recipe.steps.map_or((recipe.epochs * per_epoch) as u64, |s| s as u64);
    let epochs = (total as usize).div_ceil(per_epoch);
    observer.start(position.steps, total);
    let started = Instant::now();
    while position.steps < total {
        let epoch_start = Instant::now();
        let first_batch = position.batch;
        for batch in data.train.epoch(position.epoch, position.batch) {
            let batch = batch?;
            let (t, span) = match recipe.schedule_per {
                Unit::Epoch => (position.epoch, epochs),
                Unit::Step => (position.steps as usize, total as usize),
            };
            let lr = recipe.lr * recipe.schedule.factor(t, span, recipe.warmup);
            let rho = recipe.step.rho * recipe.rho_schedule.factor(t, span, 0);
            let losses = program.step(&bytes(&batch), &batch.labels, lr, rho)?;
            let n = batch.labels.len() as f64;
            position.steps += 1;
            position.batch += 1;
            position.sums[0] += f64::from(losses.descent) * n;
            position.sums[1] += f64::from(losses.correct);
            position.sums[2] += n;
            let report = StepReport {
                step: position.steps,
                epoch: position.epoch,
                ascent_loss: losses.ascent,
                loss: losses.descent,
                accuracy: losses.correct / n as f32,
                lr,
            };
            if position.steps.is_multiple_of(recipe.log_every as u64) {
                log.step(&report)?;
            }
            observer.step(&report);
            data.train.recycle(batch);
            let due = recipe.checkpoint_every > 0 && position.steps.is_multiple_of(recipe.checkpoint_every as u64);
            let stopping = stop.load(Ordering::Relaxed);
            if due || stopping {
                checkpoint::save(&file, &position, &program.state()?, best.as_ref(), &names)?;
            }
            if stopping {
                return Err(Error::new(format!("stopped after step {}", position.steps))
                    .hint(format!("go on with `bisam train --resume {}`", out.display())));
            }
            if position.steps == total {
                break;
            }
        }
        let samples = (position.batch - first_batch) as f64 * recipe.batch_size as f64;
        let mut report = EpochReport {
            epoch: position.epoch,
            loss: position.sums[0] / position.sums[2].max(1.0),
            accuracy: position.sums[1] / position.sums[2].max(1.0),
            valid_loss: None,
            valid_accuracy: None,
            valid_f1: None,
            valid_matthews: None,
            samples_per_second: samples / epoch_start.elapsed().as_secs_f64(),
        };
        if let Some(valid) = &data.valid {
            let (loss, confusion) = measure(valid, stages.classes, |b| program.evaluate(&mut evaluation, b))?;
            let scores = confusion.scores();
            (report.valid_loss, report.valid_accuracy) = (Some(loss), Some(scores.accuracy));
            (report.valid_f1, report.valid_matthews) = (Some(scores.f1), Some(scores.matthews));
            let value = scores.get(recipe.metric);
            if position.best.is_none_or(|(b, _)| value > b) {
                position.best = Some((value, position.epoch));
                position.best_scores = Some(scores);
                best = Some(program.state()?);
            }
        }
        log.epoch(position.steps, &report)?;
        observer.epoch(&report);
        position.epoch += 1;
        if recipe.keep_every > 0 && position.epoch.is_multiple_of(recipe.keep_every) {
            let folder = out.join("epochs");
            std::fs::create_dir_all(&folder).file(&folder)?;
            let file = folder.join(format!("{:04}.onnx", position.epoch));
            save(&exported(&model, &untied, &stages, &program.state()?)?, &file)?;
        }
        position.batch = 0;
        position.sums = [0.0; 3];
        checkpoint::save(&file, &position, &program.state()?, best.as_ref(), &names)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let last = program.state()?;
    save(&exported(&model, &untied, &stages, &last)?, &out.join("last.onnx"))?;
    if let Some(best) = &best {
        let state = State { params: best.params.clone(), stats: best.stats.clone(), ..last.clone() };
        program.restore(&state)?;
        save(&exported(&model, &untied, &stages, &state)?, &out.join("model.onnx"))?;
    } else {
        save(&exported(&model, &untied, &stages, &last)?, &out.join("model.onnx"))?;
    }
    let test = match &data.test {
        Some(test) => Some(measure(test, stages.classes, |b| program.evaluate(&mut evaluation, b))?),
        None => None,
    };
    let scores = test.as_ref().map(|(_, confusion)| confusion.scores());
    let best = position.best_scores;
    let summary = Summary {
        steps: position.steps,
        metric: recipe.metric,
        best_valid_accuracy: best.map(|b| b.accuracy),
        best_valid_f1: best.map(|b| b.f1),
        best_valid_matthews: best.map(|b| b.matthews),
        best_epoch: position.best.map(|b| b.1),
        test_accuracy: scores.map(|s| s.accuracy),
        test_loss: test.as_ref().map(|t| t.0),
        test_f1: scores.map(|s| s.f1),
        test_matthews: scores.map(|s| s.matthews),
        classes,
        test_confusion: test.filter(|(_, c)| c.classes() <= SHOWN_CLASSES).map(|(_, c)| c.rows()),
        seconds,
    };
    let json = serde_json::to_vec_pretty(&summary).map_err(|e| Error::new(e.to_string()))?;
    crate::onnx::write_atomically(&out.join("summary.json"), &json)?;
    Ok(summary)
}

/// The graph to train, with a head of as many classes as the recipe asks for: the last linear layer gets new parameters, or a
/// layer is appended to the model. Then the output that the recipe names is its embedding, and the logits are the new ones.
fn with_head(
    model: &mut Model,
    recipe: &mut Recipe,
    sizes: &Sizes,
    engine: &Engine,
    observer: &mut dyn Observer,
) -> Result<Graph> {
    let mut graph = model.graph.clone();
    let Some(classes) = recipe.num_classes else { return Ok(graph) };
    if recipe.embedding.is_none() {
        match replace_head(&mut graph, recipe.output.as_deref(), classes, recipe.seed) {
            Ok(changed) => {
                if changed {
                    observer.note(&format!("the head was replaced by one of {classes} classes"));
                }
                return Ok(graph);
            }
            // The model's own loss does not see another head.
            Err(e) if recipe.ends().loss.is_some() => return Err(e),
            Err(_) => {}
        }
    }
    let name = recipe.embedding.as_deref().or(recipe.output.as_deref());
    let append = |sizes: &Sizes| append_head(model, name, classes, recipe.seed, sizes, engine);
    let appended = at_length(recipe, sizes, append)?;
    observer.note(&appended.note);
    if recipe.output.is_some() {
        recipe.embedding = Some(appended.embedding);
        recipe.output = Some(appended.logits);
    }
    *model = appended.model;
    Ok(model.graph.clone())
}

/// The model with fresh parameters and running statistics in its file, so that what is not trained is exported as it was used.
fn afresh(model: &Model, seed: u64) -> Result<Model> {
    let mut graph = model.graph.clone();
    let untied = untie(&mut graph, model);
    from_proto(&model.path, with_values(model, &untied, &fresh(&graph, seed))?)
}

/// The user's file with the weights of `state`.
fn exported(model: &Model, untied: &[Untied], stages: &Stages, state: &State) -> Result<onnx_protobuf::ModelProto> {
    let mut values = BTreeMap::new();
    let shapes = stages.params.iter().map(|p| (&p.name, &p.shape)).zip(&state.params);
    let stats = stages.stats.iter().map(|s| (&s.slot.name, &s.slot.shape)).zip(&state.stats);
    for ((name, shape), data) in shapes.chain(stats) {
        values.insert(name.clone(), Tensor::new(shape, data)?);
    }
    export(model, untied, &values)
}

pub(crate) fn bytes(batch: &Batch) -> Vec<&[u8]> {
    batch.inputs.iter().map(crate::data::Buffer::bytes).collect()
}

/// The name of each of the model's classes; a number where the data have no sample of it.
fn class_names(splits: &Splits, classes: usize) -> Vec<String> {
    (0..classes).map(|c| splits.classes.get(c).cloned().unwrap_or_else(|| c.to_string())).collect()
}

/// Mean cross-entropy and confusion matrix over a loader that pads its last batch; `logits` gives those of a batch, row by row.
fn measure(
    loader: &Loader,
    classes: usize,
    mut logits: impl FnMut(&[&[u8]]) -> Result<Vec<f32>>,
) -> Result<(f64, Confusion)> {
    let (mut loss, mut confusion) = (0.0, Confusion::new(classes));
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        let rows = logits(&bytes(&batch))?;
        for (row, label) in rows.chunks(classes).zip(&batch.labels).take(batch.len) {
            let (of_sample, prediction) = judge(row, *label as usize);
            loss += of_sample;
            confusion.add(*label as usize, prediction);
        }
        loader.recycle(batch);
    }
    Ok((loss / confusion.samples().max(1) as f64, confusion))
}

/// The lines of `metrics.jsonl`, and the same as events for TensorBoard.
struct Log {
    file: std::fs::File,
    path: std::path::PathBuf,
    events: Events,
}

impl Log {
    /// `append` goes on after the first `done` steps.
    fn open(folder: &Path, append: bool, done: u64) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let file = std::fs::OpenOptions::new().create(true).write(true).append(append).truncate(!append).open(&path);
        Ok(Self { file: file.file(&path)?, path, events: Events::create(folder, done)? })
    }

    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.line(report)?;
        self.events.scalars(report.step, &of_step(report))
    }

    fn epoch(&mut self, steps: u64, report: &EpochReport) -> Result<()> {
        self.line(report)?;
        self.events.scalars(steps, &of_epoch(report))
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let json = serde_json::to_string(value).map_err(|e| Error::new(e.to_string()))?;
        writeln!(self.file, "{json}").file(&self.path)
    }
}

/// The loaders of a run.
struct Data {
    train: Loader,
    valid: Option<Loader>,
    test: Option<Loader>,
    normalization: Option<Normalization>,
    /// Size of the last, short batch, when it is kept.
    rest: Option<usize>,
}

/// The model's inputs as the loader fills them.
fn input_specs(inputs: &[(String, Type)]) -> Vec<InputSpec> {
    inputs.iter().map(|(name, ty)| InputSpec { name: name.clone(), ty: ty.clone() }).collect()
}

/// Reads the data that `graph` is to be fed with; the error names them.
fn open_data(spec: &Spec, graph: &Graph, text: Option<&TextOptions>) -> Result<Splits> {
    let open =
        || open(spec, &declared(graph), text).and_then(|splits| check_vocabulary(graph, &splits).map(|()| splits));
    open().map_err(|e| e.in_file(spec.path()))
}

/// What the file says about the inputs.
fn declared(graph: &Graph) -> Vec<(String, Declared)> {
    let input = |v: &ValueId| match &graph[*v].source {
        Source::Input(declared) => Some((graph[*v].name.clone(), declared.clone())),
        _ => None,
    };
    graph.inputs.iter().filter_map(input).collect()
}

/// Batches of `batch` samples of `set`, which fill the dimensions that the file leaves open.
fn sizes(graph: &Graph, set: &Dataset, batch: usize) -> Sizes {
    Sizes { batch, shapes: open_shapes(&declared(graph), set, batch), ..Sizes::default() }
}

/// What `run` gives at `sizes`; the error says so when the only fault of texts is their length: a model has a table of so many
/// positions.
fn at_length<T>(recipe: &Recipe, sizes: &Sizes, run: impl Fn(&Sizes) -> Result<T>) -> Result<T> {
    run(sizes).map_err(|error| {
        let mut short = sizes.clone();
        short.shapes.values_mut().for_each(|shape| shape[1..].fill(SHORT_TEXT));
        let length = sizes.shapes.values().filter_map(|shape| shape.get(1)).max();
        let long = length.filter(|n| recipe.text.is_some() && **n > SHORT_TEXT && run(&short).is_ok());
        let Some(length) = long else { return error };
        Error::new(format!("the model does not run on texts of {length} tokens ({})", error.cause()))
            .hint("choose a smaller --max-length: a model takes no more tokens than it has positions for")
    })
}

/// The given normalization, or that by the statistics of the training images; arrays are fed as they are.
fn normalize(train: &Dataset, inputs: &[InputSpec], given: Option<Normalization>) -> Result<Option<Normalization>> {
    match (&train.samples, given, inputs) {
        (Samples::Images(images), None, [input, ..]) => {
            Ok(Some(Normalization::compute(images, Fit::new(images, input)?.channels)))
        }
        (Samples::Images(_), given, _) => Ok(given),
        (Samples::Arrays(_), ..) => Ok(None),
    }
}

fn check_labels(set: &Dataset, classes: usize) -> Result<()> {
    set.check_labels(classes)
        .map_err(|e| e.hint(format!("the model has {classes} classes; --num-classes gives it a new head")))
}

impl Data {
    fn load(mut splits: Splits, recipe: &Recipe, stages: &Stages, observer: &mut dyn Observer) -> Result<Self> {
        for set in [Some(&splits.train), splits.valid.as_ref(), splits.test.as_ref()].into_iter().flatten() {
            check_labels(set, stages.classes)?;
        }
        if let Some(n) = recipe.train_samples {
            splits.train = splits.train.sample(n, 0)?;
        }
        splits.split_validation(recipe.valid, recipe.seed)?;
        if recipe.label_noise > 0.0 {
            let changed = splits.train.add_label_noise(recipe.label_noise, stages.classes, recipe.seed)?;
            observer.note(&format!("{changed} training labels were replaced"));
        }
        let inputs = input_specs(&stages.inputs);
        let normalization = normalize(&splits.train, &inputs, recipe.normalization.clone())?;
        let n = splits.train.len();
        if n < recipe.batch_size {
            return Err(Error::new(format!("{n} training samples do not fill a batch of {}", recipe.batch_size))
                .hint("choose a smaller --batch-size"));
        }
        let augment: Augment = recipe.augment.parse()?;
        let options = LoaderOptions {
            batch_size: recipe.batch_size,
            shuffle: recipe.shuffle,
            short: if recipe.drop_last { ShortBatch::Drop } else { ShortBatch::Keep },
            seed: recipe.seed,
            augment,
            ..LoaderOptions::default()
        };
        let train = Loader::new(Arc::new(splits.train), inputs.clone(), normalization.clone(), options)?;
        for note in train.notes() {
            observer.note(note);
        }
        let still = |set: Option<Dataset>| -> Result<Option<Loader>> {
            let Some(set) = set.filter(|s| !s.is_empty()) else { return Ok(None) };
            evaluation_loader(set, &inputs, normalization.clone(), recipe.batch_size).map(Some)
        };
        let (valid, test) = (still(splits.valid)?, still(splits.test)?);
        let rest = (!recipe.drop_last).then_some(n % recipe.batch_size).filter(|r| *r > 0);
        Ok(Self { train, valid, test, normalization, rest })
    }
}

fn evaluation_loader(
    set: Dataset,
    inputs: &[InputSpec],
    normalization: Option<Normalization>,
    batch_size: usize,
) -> Result<Loader> {
    let options = LoaderOptions {
        batch_size,
        shuffle: false,
        short: ShortBatch::Pad,
        augment: Augment::None,
        ..LoaderOptions::default()
    };
    Loader::new(Arc::new(set), inputs.to_vec(), normalization, options)
}

/// What a model does on one split of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy.
    pub loss: f64,
    /// True and predicted classes.
    pub confusion: Confusion,
    /// Names of the classes, in the order of the logits.
    pub classes: Vec<String>,
}

/// A model prepared for one split (`train`, `valid` or `test`) of the data that the recipe names, the loader that `load` makes of it,
/// and the names of the classes.
///
/// # Errors
/// Anything that is wrong with model or data; a split that is not there.
pub(crate) fn open_split(
    engine: &Engine,
    graph: &Graph,
    recipe: &Recipe,
    split: &str,
    note: &mut dyn FnMut(&str),
    load: impl FnOnce(Dataset, Vec<InputSpec>, Option<Normalization>) -> Result<Loader>,
) -> Result<(Prepared, Loader, Vec<String>)> {
    let spec: Spec = recipe.data.parse()?;
    let splits = open_data(&spec, graph, recipe.text.as_ref())?;
    splits.notes.iter().for_each(|n| note(n));
    let ends = Ends { loss: None, ..recipe.ends() };
    let sizes = sizes(graph, &splits.train, recipe.batch_size);
    let prepared = at_length(recipe, &sizes, |sizes| prepare(graph, sizes, ends, engine))?;
    let inputs = input_specs(&prepared.inputs()?);
    let classes = prepared.graph.ty(prepared.logits)?.shape[1];
    let names = class_names(&splits, classes);
    let open = || -> Result<Loader> {
        let normalization = normalize(&splits.train, &inputs, recipe.normalization.clone())?;
        let set = match split {
            "train" => Some(splits.train),
            "valid" => splits.valid,
            _ => splits.test,
        };
        let set = set.ok_or_else(|| Error::new(format!("there is no {split} split")).hint("choose another --split"))?;
        check_labels(&set, classes)?;
        load(set, inputs, normalization)
    };
    let loader = open().map_err(|e| e.in_file(spec.path()))?;
    loader.notes().iter().for_each(|n| note(n));
    Ok((prepared, loader, names))
}

/// Evaluates a model on one split (`train`, `valid` or `test`) of the data set that `recipe` names.
///
/// Of the recipe, `data`, `text`, `normalization`, `batch_size` and `output` are used. Without a normalization, images are
/// normalized by the statistics of the training split. `note` is told how the data was made to fit the model.
///
/// # Errors
/// Anything that is wrong with model or data; a split that is not there.
pub fn evaluate_model(
    engine: &Engine,
    graph: &Graph,
    recipe: &Recipe,
    split: &str,
    note: &mut dyn FnMut(&str),
) -> Result<Evaluation> {
    let (prepared, loader, names) = open_split(engine, graph, recipe, split, note, |set, inputs, normalization| {
        evaluation_loader(set, &inputs, normalization, recipe.batch_size)
    })?;
    let types = prepared.inputs()?;
    let classes = names.len();
    let mut session = engine.compile(&evaluation_stage(&prepared)?)?;
    let known: Vec<bool> = types.iter().map(|(name, _)| session.inputs().contains(name)).collect();
    let (loss, confusion) = measure(&loader, classes, |batch| {
        let mut tensors = Vec::with_capacity(types.len());
        for (((name, ty), bytes), _) in types.iter().zip(batch).zip(&known).filter(|(_, known)| **known) {
            tensors.push((name.as_str(), Tensor::from_bytes(ty.dtype, &ty.shape, bytes.to_vec())?));
        }
        let given: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (*n, t)).collect();
        Ok(session.run(&given)?.first().map(Tensor::to_f32).unwrap_or_default())
    })?;
    Ok(Evaluation { loss, confusion, classes: names })
}
