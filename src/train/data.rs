//! The data of a recipe, opened and fitted to a model.

use super::recipe::Recipe;
use super::run::Observer;
use super::verdict::Classes;
use crate::data::{
    Augment, Dataset, Fit, InputSpec, Loader, LoaderOptions, Normalization, Opening, Samples, ShortBatch, Spec, Splits,
    check_vocabulary, open, open_shapes,
};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::export::{read_classes, write_classes};
use crate::ir::{Declared, Graph, Source, Type, ValueId};
use crate::onnx::Model;
use crate::step::{Ends, Prepared, Stages, prepare};
use crate::trace::Sizes;
use crate::wording::count;
use std::sync::Arc;

/// The most lengths that batches of texts are padded to.
const BUCKETS: usize = 4;

/// Batches of an epoch that a length of their own needs.
const BATCHES: usize = 16;

/// Tokens that any model of texts takes.
const SHORT_TEXT: usize = 8;

/// The loaders of a run.
pub(super) struct Data {
    pub(super) train: Loader,
    pub(super) valid: Option<Loader>,
    pub(super) test: Option<Loader>,
    pub(super) normalization: Option<Normalization>,
    /// Size of the last, short batch, when it is kept.
    pub(super) rest: Option<usize>,
    /// Lengths that batches of texts are padded to, ascending.
    buckets: Vec<usize>,
    /// Of the training samples, the share of the most common class.
    common: f64,
}

/// The model's inputs as the loader fills them.
fn input_specs(inputs: &[(String, Type)]) -> Vec<InputSpec> {
    inputs.iter().map(|(name, ty)| InputSpec { name: name.clone(), ty: ty.clone() }).collect()
}

/// Reads the data that `graph` is to be fed with; the error names them.
fn open_data(spec: &Spec, graph: &Graph, opening: &Opening<'_>) -> Result<Splits> {
    let open =
        || open(spec, &declared(graph), opening).and_then(|splits| check_vocabulary(graph, &splits).map(|()| splits));
    open().map_err(|e| e.in_file(spec.path()))
}

/// Reads the data that the recipe trains on. Classes are numbered as the recipe has them, or the model's own file unless it gets a new
/// head; with a head of as many classes that was asked for they may get new names.
pub(super) fn open_training_data(spec: &Spec, recipe: &mut Recipe, model: &Model) -> Result<Splits> {
    let given = !recipe.classes.is_empty();
    if !given {
        let names = read_classes(&model.proto).filter(|names| recipe.num_classes.is_none_or(|n| n == names.len()));
        recipe.classes = names.unwrap_or_default();
    }
    let rename = !given && recipe.num_classes.is_some();
    open_data(spec, &model.graph, &Opening { rename, ..recipe.opening() })
}

/// Keeps the names of the classes in the recipe and in the model's file.
pub(super) fn remember_classes(recipe: &mut Recipe, model: &mut Model, splits: &Splits, classes: &[String]) {
    if splits.named {
        recipe.classes = classes.to_vec();
    }
    write_classes(&mut model.proto, &recipe.classes);
}

impl Recipe {
    /// Takes over the names of the classes that the model's file has.
    pub fn know_classes(&mut self, model: &Model) {
        if let Some(names) = read_classes(&model.proto) {
            self.classes = names;
        }
    }

    fn opening(&self) -> Opening<'_> {
        Opening {
            text: self.text.as_ref(),
            classes: &self.classes,
            skip_damaged: self.skip_damaged,
            ..Opening::default()
        }
    }
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
pub(super) fn sizes(graph: &Graph, set: &Dataset, batch: usize) -> Sizes {
    Sizes { batch, shapes: open_shapes(&declared(graph), set, batch), ..Sizes::default() }
}

/// What `run` gives at `sizes`; the error says so when the only fault of texts is their length: a model has a table of so many
/// positions.
pub(super) fn at_length<T>(recipe: &Recipe, sizes: &Sizes, run: impl Fn(&Sizes) -> Result<T>) -> Result<T> {
    run(sizes).map_err(|error| {
        let length = sizes.shapes.values().filter_map(|shape| shape.get(1)).max();
        let long =
            length.filter(|n| recipe.text.is_some() && **n > SHORT_TEXT && run(&sizes.with_length(SHORT_TEXT)).is_ok());
        let Some(length) = long else { return error };
        Error::new(format!("the model does not run on texts of {length} tokens ({})", error.cause()))
            .hint("choose a smaller --max-length: a model takes no more tokens than it has positions for")
    })
}

/// The given normalization, or that by the statistics of the training images; arrays are fed as they are.
fn normalize(train: &Dataset, inputs: &[InputSpec], given: Option<Normalization>) -> Result<Option<Normalization>> {
    match (&train.samples, given, inputs) {
        (Samples::Images(images), None, [input, ..]) => {
            Normalization::compute(images, Fit::new(images, input)?.channels).map(Some)
        }
        (Samples::Images(_), given, _) => Ok(given),
        (Samples::Arrays(_), ..) => Ok(None),
    }
}

/// Checks the labels that a model of `classes` classes reads, or its own loss, whose input for them is `own`; that may have an array of
/// its own. Returns what the user should know about the classes.
fn check_labels(splits: &mut Splits, classes: usize, own: Option<&str>, evaluate: bool) -> Result<Vec<String>> {
    for set in [Some(&mut splits.train), splits.valid.as_mut(), splits.test.as_mut()].into_iter().flatten() {
        if let Some(own) = own {
            set.label_by(own)?;
        }
        if classes > 0 || own.is_some() {
            set.check_labelled()?;
        }
    }
    if classes > 0 { splits.check_classes(classes, evaluate) } else { Ok(Vec::new()) }
}

impl Data {
    pub(super) fn load(
        mut splits: Splits,
        recipe: &Recipe,
        stages: &Stages,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let notes = check_labels(&mut splits, stages.classes, stages.label_input.as_deref(), false)?;
        notes.iter().filter(|_| recipe.ends().loss.is_none()).for_each(|n| observer.note(n));
        if splits.train.labelled && stages.classes == 0 && stages.label_input.is_none() {
            observer.note("the labels are not read: the model's own loss takes none");
        }
        if let Some(n) = recipe.train_samples {
            splits.train = splits.train.sample(n, 0)?;
        }
        let held_out = splits.split_validation(recipe.valid, recipe.seed)?;
        if held_out > 0 {
            let of = count(held_out + splits.train.len(), "training sample");
            observer.note(&format!(
                "there is no validation set: {held_out} of the {of} are held out for it (--valid {})",
                recipe.valid
            ));
        }
        if recipe.label_noise > 0.0 {
            if stages.classes == 0 {
                return Err(Error::new("label noise needs classes, and the model shows no logits beside its own loss")
                    .hint("leave --label-noise out, or name the logits with --logits NAME"));
            }
            let changed = splits.train.add_label_noise(recipe.label_noise, stages.classes, recipe.seed)?;
            observer.note(&format!("{changed} training labels were replaced"));
        }
        let inputs = input_specs(&stages.inputs);
        let normalization = normalize(&splits.train, &inputs, recipe.normalization.clone())?;
        let n = splits.train.len();
        if n < recipe.batch_size {
            return Err(Error::new(format!(
                "{} cannot fill a batch of {}",
                count(n, "training sample"),
                recipe.batch_size
            ))
            .hint("choose a smaller --batch-size"));
        }
        let buckets = buckets(&splits.train, recipe.batch_size);
        if let [short @ .., longest] = buckets.as_slice()
            && !short.is_empty()
        {
            let short: Vec<String> = short.iter().map(usize::to_string).collect();
            observer.note(&format!("batches of shorter texts are padded to {} of {longest} tokens", short.join(", ")));
        }
        let lonely = !recipe.drop_last && stages.needs_two && n % recipe.batch_size == 1;
        if lonely {
            observer.note(
                "the last batch of an epoch has a single sample, which has no variance to normalize by; it is left out",
            );
        }
        let drop_last = recipe.drop_last || lonely;
        let common = most_common(&splits.train.labels) as f64 / n as f64;
        let augment: Augment = recipe.augment.parse()?;
        let options = LoaderOptions {
            batch_size: recipe.batch_size,
            buckets: buckets.clone(),
            shuffle: recipe.shuffle,
            short: if drop_last { ShortBatch::Drop } else { ShortBatch::Keep },
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
            let short = short_batch(stages.own_loss);
            evaluation_loader(set, &inputs, normalization.clone(), recipe.batch_size, &buckets, short).map(Some)
        };
        let (valid, test) = (still(splits.valid)?, still(splits.test)?);
        let rest = (!drop_last).then_some(n % recipe.batch_size).filter(|r| *r > 0);
        Ok(Self { train, valid, test, normalization, rest, buckets, common })
    }

    /// What is known about the classes, of `count`.
    pub(super) fn classes(&self, count: usize) -> Classes {
        let valid = self.valid.as_ref().map_or(0, Loader::samples);
        Classes { count, common: self.common, samples: [self.train.samples(), valid] }
    }

    /// Sizes of the last, short batches of evaluation, of a loss of the model's own: a padded batch has another.
    pub(super) fn evaluation_rests(&self) -> Vec<usize> {
        let loaders = [&self.valid, &self.test].into_iter().flatten();
        let mut rests: Vec<usize> = loaders.map(|l| l.samples() % l.batch_size()).filter(|n| *n > 0).collect();
        rests.sort_unstable();
        rests.dedup();
        rests
    }

    /// The lengths that batches of texts are padded to, but the longest.
    pub(super) fn shorter(&self) -> &[usize] {
        self.buckets.split_last().map_or(&[], |(_, shorter)| shorter)
    }
}

/// The lengths that batches of texts are padded to: as many as are worth the compilation of a step each.
fn buckets(train: &Dataset, batch: usize) -> Vec<usize> {
    let count = (train.len() / batch / BATCHES).min(BUCKETS);
    train.lengths.as_ref().filter(|_| count > 1).map_or_else(Vec::new, |lengths| lengths.buckets(count))
}

/// How often the most common label is there.
fn most_common(labels: &[i64]) -> usize {
    let mut sorted = labels.to_vec();
    sorted.sort_unstable();
    sorted.chunk_by(|a, b| a == b).map(<[i64]>::len).max().unwrap_or(0)
}

/// What becomes of the last batch in evaluation: a loss of the model's own is about a whole batch, which must not be padded.
pub(super) fn short_batch(own_loss: bool) -> ShortBatch {
    if own_loss { ShortBatch::Keep } else { ShortBatch::Pad }
}

pub(super) fn evaluation_loader(
    set: Dataset,
    inputs: &[InputSpec],
    normalization: Option<Normalization>,
    batch_size: usize,
    buckets: &[usize],
    short: ShortBatch,
) -> Result<Loader> {
    let options = LoaderOptions {
        batch_size,
        buckets: buckets.to_vec(),
        shuffle: false,
        short,
        augment: Augment::None,
        ..LoaderOptions::default()
    };
    Loader::new(Arc::new(set), inputs.to_vec(), normalization, options)
}

/// The name of each of the model's classes; a number where the data have no sample of it.
pub(super) fn class_names(splits: &Splits, classes: usize) -> Vec<String> {
    (0..classes).map(|c| splits.classes.get(c).cloned().unwrap_or_else(|| c.to_string())).collect()
}

/// A model prepared for one split of a data set.
pub(crate) struct Opened {
    pub(crate) prepared: Prepared,
    pub(crate) loader: Loader,
    /// Names of the classes.
    pub(crate) classes: Vec<String>,
    /// The sizes that the model was prepared for.
    pub(crate) sizes: Sizes,
}

/// A model prepared for one split (`train`, `valid` or `test`) of the data that the recipe names, with the loader that `load` makes of it.
/// A validation set is split off as in training, by the recipe's `valid` and `seed`.
///
/// # Errors
/// Anything that is wrong with model or data; a split that is not there.
pub(crate) fn open_split(
    engine: &Engine,
    graph: &Graph,
    recipe: &Recipe,
    ends: Ends<'_>,
    split: &str,
    note: &mut dyn FnMut(&str),
    load: impl FnOnce(Dataset, Vec<InputSpec>, Option<Normalization>) -> Result<Loader>,
) -> Result<Opened> {
    let spec: Spec = recipe.data.parse()?;
    let mut splits = open_data(&spec, graph, &Opening { evaluate: true, ..recipe.opening() })?;
    splits.notes.iter().for_each(|n| note(n));
    let sizes = sizes(graph, &splits.train, recipe.batch_size);
    let prepared = at_length(recipe, &sizes, |sizes| prepare(graph, sizes, ends, engine))?;
    prepared.notes.iter().for_each(|n| note(n));
    prepared.note().iter().for_each(|n| note(n));
    let inputs = input_specs(&read_inputs(&prepared)?);
    let count = prepared.classes()?;
    let classes = class_names(&splits, count);
    let open = || -> Result<Loader> {
        check_labels(&mut splits, count, prepared.label_input(), true)?.iter().for_each(|n| note(n));
        if let Some(n) = recipe.train_samples.filter(|_| !splits.train.is_empty()) {
            splits.train = splits.train.sample(n, 0)?;
        }
        if !splits.train.is_empty() {
            splits.split_validation(recipe.valid, recipe.seed)?;
        }
        let there = splits.sets().map(|(part, _)| format!("--split {part}")).collect::<Vec<_>>().join(" or ");
        let set = splits.sets().find(|(part, _)| *part == split).map(|(_, set)| set);
        let hint = || format!("there is {there}");
        let set = set.ok_or_else(|| Error::new(format!("there is no {split} split")).hint(hint()))?.clone();
        if splits.train.is_empty() && recipe.normalization.is_none() && matches!(set.samples, Samples::Images(_)) {
            note("there are no training images: those that are evaluated give mean and deviation");
        }
        let like = if splits.train.is_empty() { &set } else { &splits.train };
        let normalization = normalize(like, &inputs, recipe.normalization.clone())?;
        load(set, inputs, normalization)
    };
    let loader = open().map_err(|e| e.in_file(spec.path()))?;
    loader.notes().iter().for_each(|n| note(n));
    Ok(Opened { prepared, loader, classes, sizes })
}

/// The inputs that logits and loss depend on; the others are not fed.
pub(super) fn read_inputs(prepared: &Prepared) -> Result<Vec<(String, Type)>> {
    let ends = prepared.logits.into_iter().chain(prepared.loss.map(|l| l.value));
    let read = prepared.graph.upstream(ends);
    let is_read = |name: &String| prepared.graph.find(name).is_some_and(|v| read.contains(&v));
    Ok(prepared.inputs()?.into_iter().filter(|(name, _)| is_read(name)).collect())
}
