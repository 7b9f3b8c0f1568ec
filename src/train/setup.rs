//! From a recipe to everything that a run trains with.

use super::data::{Data, at_length, class_names, open_training_data, remember_classes, sizes};
use super::evaluate::bytes;
use super::head::with_head;
use super::recipe::Recipe;
use super::run::Observer;
use super::weights::with_weights;
use crate::adapt::freeze;
use crate::data::Spec;
use crate::engine::program::State;
use crate::engine::{Engine, Evaluation, Program};
use crate::error::{Error, Result};
use crate::export::{export, fresh, with_values};
use crate::ir::{Graph, Tensor};
use crate::onnx::{Model, from_proto, import};
use crate::step::account::{Account, nothing_to_train};
use crate::step::{Prepared, Stages, build, prepare, refuse_probabilities};
use crate::trace::Sizes;
use onnx_protobuf::ModelProto;
use std::collections::BTreeMap;

/// A run before its first step.
pub(super) struct Setup {
    /// The settings, with what is known once model and data are there.
    pub recipe: Recipe,
    pub stages: Stages,
    /// Names of the classes.
    pub classes: Vec<String>,
    pub data: Data,
    pub program: Program,
    pub evaluation: Evaluation,
    model: Model,
}

impl Setup {
    /// Reads model and data and compiles the steps.
    pub fn new(engine: &Engine, recipe: &Recipe, observer: &mut dyn Observer) -> Result<Self> {
        let mut recipe = recipe.clone();
        let mut model = initial(&recipe, observer)?;
        let spec: Spec = recipe.data.parse()?;
        let splits = open_training_data(&spec, &mut recipe, &model)?;
        splits.notes.iter().for_each(|n| observer.note(n));
        let sizes = sizes(&model.graph, &splits.train, recipe.batch_size);
        let mut graph =
            with_head(&mut model, &mut recipe, &sizes, engine, observer).map_err(|e| e.in_file(&model.path))?;
        freeze(&mut graph, &recipe.parameters)?.iter().for_each(|n| observer.note(n));
        if graph.params().is_empty() {
            return Err(nothing_to_train(&graph).in_file(&model.path));
        }
        let prepared = at_length(&recipe, &sizes, |sizes| prepare(&graph, sizes, recipe.ends(), engine))
            .map_err(|e| e.in_file(&model.path))?;
        prepared.notes.iter().for_each(|n| observer.note(n));
        if let Some(text) = &mut recipe.text {
            text.remember_classes(&splits.classes);
        }
        recipe.step.seed = recipe.seed;
        prepared.note().iter().for_each(|n| observer.note(n));
        let stages = build(&prepared, &recipe.step).map_err(|e| e.in_file(&model.path))?;
        check_metric(&recipe, &stages).map_err(|e| e.in_file(&model.path))?;
        let account = Account::new(&model, &graph, &stages);
        observer.note(&account.summary());
        account.warning().iter().chain(&account.notes).chain(&stages.notes).for_each(|n| observer.note(n));
        let classes = class_names(&splits, stages.classes);
        if stages.classes > 0 {
            remember_classes(&mut recipe, &mut model, &splits, &classes);
        }
        let data = Data::load(splits, &recipe, &stages, observer).map_err(|e| e.in_file(spec.path()))?;
        recipe.normalization.clone_from(&data.normalization);
        recipe.step.data_size = data.train.samples();
        let (program, mut evaluation) = compile(engine, &graph, &recipe, &sizes, &stages, &data)?;
        check_first_batch(&prepared, &data, &program, &mut evaluation).map_err(|e| e.in_file(&model.path))?;
        Ok(Self { recipe, stages, classes, data, program, evaluation, model })
    }

    /// The user's file with the weights of `state`.
    pub fn export(&self, state: &State) -> Result<ModelProto> {
        let mut values = BTreeMap::new();
        let shapes = self.stages.params.iter().map(|p| (&p.name, &p.shape)).zip(&state.params);
        let stats = self.stages.stats.iter().map(|s| (&s.slot.name, &s.slot.shape)).zip(&state.stats);
        for ((name, shape), data) in shapes.chain(stats) {
            values.insert(name.clone(), Tensor::new(shape, data)?);
        }
        export(&self.model, &values)
    }
}

/// The model with the values that the recipe begins with, in its file too, so that what is not trained is exported as it was used.
fn initial(recipe: &Recipe, observer: &mut dyn Observer) -> Result<Model> {
    let mut model = import(&recipe.model)?;
    if recipe.fresh {
        model = afresh(&model, recipe.seed)?;
    }
    if let Some(file) = &recipe.weights {
        model = with_weights(&model, file, &mut |text| observer.note(text))?;
    }
    Ok(model)
}

/// The model with fresh parameters and running statistics.
fn afresh(model: &Model, seed: u64) -> Result<Model> {
    from_proto(&model.path, with_values(model, &fresh(&model.graph, seed))?)
}

/// Refuses a metric of classes where the model shows none.
fn check_metric(recipe: &Recipe, stages: &Stages) -> Result<()> {
    let metric = recipe.metric();
    if stages.classes > 0 || !metric.needs_classes() {
        return Ok(());
    }
    let cause = format!("{} is about classes, and the model shows no logits beside its own loss", metric.title());
    Err(Error::new(cause).hint("choose --metric loss, or name the output that holds the logits with --logits NAME"))
}

/// Refuses logits that a batch of the data shows to be probabilities.
fn check_first_batch(prepared: &Prepared, data: &Data, program: &Program, evaluation: &mut Evaluation) -> Result<()> {
    let Some(origin) = prepared.origin.as_ref().filter(|o| o.unproven() && prepared.loss.is_none()) else {
        return Ok(());
    };
    for batch in data.train.epoch(0, 0).take(1) {
        let batch = batch?;
        let outputs = program.evaluate(evaluation, &bytes(&batch), &batch.labels)?;
        refuse_probabilities(origin, &outputs.logits, origin.classes)?;
    }
    Ok(())
}

/// The steps and evaluations of every batch size and length that will be met.
fn compile(
    engine: &Engine,
    graph: &Graph,
    recipe: &Recipe,
    sizes: &Sizes,
    stages: &Stages,
    data: &Data,
) -> Result<(Program, Evaluation)> {
    let mut program = Program::new(engine, stages, &recipe.step)?;
    let mut evaluation = Evaluation::default();
    let built = |sizes: &Sizes| build(&prepare(graph, sizes, recipe.ends(), engine)?, &recipe.step);
    for size in [Some(recipe.batch_size), data.rest].into_iter().flatten() {
        program.add_batch_sizes(stages, size, |n| built(&sizes.with_batch(n)))?;
    }
    program.add_evaluation(&mut evaluation, stages)?;
    if stages.own_loss {
        for n in data.evaluation_rests() {
            program.add_evaluation(&mut evaluation, &built(&sizes.with_batch(n))?)?;
        }
    }
    for length in data.shorter() {
        let sizes = sizes.with_length(*length);
        let stages = built(&sizes)?;
        program.add_batch_sizes(&stages, recipe.batch_size, |n| built(&sizes.with_batch(n)))?;
        program.add_evaluation(&mut evaluation, &stages)?;
    }
    Ok((program, evaluation))
}
