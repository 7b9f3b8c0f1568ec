//! The loop: epochs of steps, validation, checkpoints, results.

use super::checkpoint::{self, Names, Position};
use super::data::{Data, at_length, class_names, open_data, sizes};
use super::evaluate::{bytes, measure};
use super::log::{EpochReport, Log, StepReport, Summary};
use super::metrics::Metric;
use super::recipe::Recipe;
use super::schedule::Unit;
use crate::adapt::{Untied, append_head, freeze, replace_head, untie};
use crate::data::Spec;
use crate::engine::program::State;
use crate::engine::{Engine, Evaluation, Losses, Program};
use crate::error::{Error, IoContext, Result};
use crate::export::{export, fresh, with_values};
use crate::ir::{Graph, Tensor};
use crate::onnx::{Model, from_proto, import, save};
use crate::step::{Stages, build, prepare};
use crate::trace::Sizes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A confusion matrix of more classes is not written out.
const SHOWN_CLASSES: usize = 100;

/// Watches a run.
pub trait Observer {
    /// Something worth saying once.
    fn note(&mut self, text: &str);
    /// The run begins (again) after `done` of `total` steps; `metric` chooses its best epoch.
    fn start(&mut self, done: u64, total: u64, metric: Metric);
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
    prepared.notes.iter().for_each(|n| observer.note(n));
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
    let mut evaluation = Evaluation::default();
    let built = |sizes: &Sizes| build(&prepare(&graph, sizes, recipe.ends(), engine)?, &recipe.step);
    for size in [Some(recipe.batch_size), data.rest].into_iter().flatten() {
        program.add_batch_sizes(&stages, size, |n| built(&sizes.with_batch(n)))?;
    }
    program.add_evaluation(&mut evaluation, &stages)?;
    for length in data.shorter() {
        let sizes = sizes.with_length(*length);
        let stages = built(&sizes)?;
        program.add_batch_sizes(&stages, recipe.batch_size, |n| built(&sizes.with_batch(n)))?;
        program.add_evaluation(&mut evaluation, &stages)?;
    }
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
    let mut log = Log::open(out, resume.then_some(&position))?;

    let per_epoch = data.train.batches_per_epoch();
    let total = recipe.steps.map_or((recipe.epochs * per_epoch) as u64, |s| s as u64);
    let epochs = (total as usize).div_ceil(per_epoch);
    observer.start(position.steps, total, recipe.metric);
    let started = Instant::now();
    // Samples and learning rate of the steps whose losses are not known yet.
    let mut under_way = Vec::new();
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
            program.start_step(&bytes(&batch), &batch.labels, lr, rho)?;
            under_way.push((batch.labels.len(), lr));
            position.steps += 1;
            position.batch += 1;
            let every = |n: usize| n > 0 && position.steps.is_multiple_of(n as u64);
            let due = every(recipe.checkpoint_every);
            let last = position.steps == total || position.batch == per_epoch;
            if !program.runs_ahead() || every(recipe.log_every) || due || last || stop.load(Ordering::Relaxed) {
                for report in reports(&mut program, &mut position, &mut under_way)? {
                    if report.step.is_multiple_of(recipe.log_every as u64) {
                        log.step(&report)?;
                    }
                    observer.step(&report);
                }
            }
            data.train.recycle(batch);
            // Only between steps that are all known.
            let stopping = under_way.is_empty() && stop.load(Ordering::Relaxed);
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

/// What the steps `under_way`, by samples and learning rate, measured, which is added to the epoch's sums.
fn reports(
    program: &mut Program,
    position: &mut Position,
    under_way: &mut Vec<(usize, f32)>,
) -> Result<Vec<StepReport>> {
    let first = position.steps - under_way.len() as u64 + 1;
    let steps = (first..).zip(under_way.drain(..)).zip(program.finished()?);
    let report = |((step, (samples, lr)), losses): ((u64, (usize, f32)), Losses)| {
        let n = samples as f64;
        position.sums[0] += f64::from(losses.descent) * n;
        position.sums[1] += f64::from(losses.correct);
        position.sums[2] += n;
        StepReport {
            step,
            epoch: position.epoch,
            ascent_loss: losses.ascent,
            loss: losses.descent,
            accuracy: losses.correct / samples as f32,
            lr,
        }
    };
    Ok(steps.map(report).collect())
}

/// The graph to train, with a head of as many classes as the recipe asks for: the last linear layer gets new parameters, or a
/// layer is appended. `model` becomes the one with this head, so that it is exported even where it is not trained. With a layer
/// appended, the output that the recipe names is its embedding, and the logits are the new ones.
fn with_head(
    model: &mut Model,
    recipe: &mut Recipe,
    sizes: &Sizes,
    engine: &Engine,
    observer: &mut dyn Observer,
) -> Result<Graph> {
    let Some(classes) = recipe.num_classes else { return Ok(model.graph.clone()) };
    if recipe.embedding.is_none() {
        let mut graph = model.graph.clone();
        match replace_head(&mut graph, recipe.output.as_deref(), classes, recipe.seed) {
            Ok(changed) => {
                if changed {
                    observer.note(&format!("the head was replaced by one of {classes} classes"));
                    let head = graph.params().into_iter().filter(|v| graph.tensor(*v) != model.graph.tensor(*v));
                    let head = head.filter_map(|v| Some((graph[v].name.clone(), graph.tensor(v)?.clone()))).collect();
                    *model = from_proto(&model.path, with_values(model, &[], &head)?)?;
                }
                return Ok(model.graph.clone());
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
