//! The data of a recipe, opened and fitted to a model.

use super::recipe::Recipe;
use super::run::Observer;
use crate::data::{
    Augment, Dataset, Fit, InputSpec, Loader, LoaderOptions, Normalization, Samples, ShortBatch, Spec, Splits,
    TextOptions, check_vocabulary, open, open_shapes,
};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ir::{Declared, Graph, Source, Type, ValueId};
use crate::step::{Ends, Prepared, Stages, prepare};
use crate::trace::Sizes;
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
}

/// The model's inputs as the loader fills them.
fn input_specs(inputs: &[(String, Type)]) -> Vec<InputSpec> {
    inputs.iter().map(|(name, ty)| InputSpec { name: name.clone(), ty: ty.clone() }).collect()
}

/// Reads the data that `graph` is to be fed with; the error names them.
pub(super) fn open_data(spec: &Spec, graph: &Graph, text: Option<&TextOptions>) -> Result<Splits> {
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

fn check_labels(set: &Dataset, classes: usize) -> Result<()> {
    set.check_labels(classes)
        .map_err(|e| e.hint(format!("the model has {classes} classes; --num-classes gives it a new head")))
}

impl Data {
    pub(super) fn load(
        mut splits: Splits,
        recipe: &Recipe,
        stages: &Stages,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
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
        let buckets = buckets(&splits.train, recipe.batch_size);
        if let [short @ .., longest] = buckets.as_slice()
            && !short.is_empty()
        {
            let short: Vec<String> = short.iter().map(usize::to_string).collect();
            observer.note(&format!("batches of shorter texts are padded to {} of {longest} tokens", short.join(", ")));
        }
        let augment: Augment = recipe.augment.parse()?;
        let options = LoaderOptions {
            batch_size: recipe.batch_size,
            buckets: buckets.clone(),
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
            evaluation_loader(set, &inputs, normalization.clone(), recipe.batch_size, &buckets).map(Some)
        };
        let (valid, test) = (still(splits.valid)?, still(splits.test)?);
        let rest = (!recipe.drop_last).then_some(n % recipe.batch_size).filter(|r| *r > 0);
        Ok(Self { train, valid, test, normalization, rest, buckets })
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

pub(super) fn evaluation_loader(
    set: Dataset,
    inputs: &[InputSpec],
    normalization: Option<Normalization>,
    batch_size: usize,
    buckets: &[usize],
) -> Result<Loader> {
    let options = LoaderOptions {
        batch_size,
        buckets: buckets.to_vec(),
        shuffle: false,
        short: ShortBatch::Pad,
        augment: Augment::None,
        ..LoaderOptions::default()
    };
    Loader::new(Arc::new(set), inputs.to_vec(), normalization, options)
}

/// The name of each of the model's classes; a number where the data have no sample of it.
pub(super) fn class_names(splits: &Splits, classes: usize) -> Vec<String> {
    (0..classes).map(|c| splits.classes.get(c).cloned().unwrap_or_else(|| c.to_string())).collect()
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
    prepared.notes.iter().for_each(|n| note(n));
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
