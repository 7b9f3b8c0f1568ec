//! Batches, prepared in the background while the step runs.
//!
//! Batch `k` of epoch `e` is a pure function of the seed, `e` and `k`: the order of an epoch is drawn from (seed, e), the
//! augmentation of a sample from (seed, e, its position in that order). So neither the number of threads nor where a
//! run resumes changes anything.

use super::Dataset;
use super::augment::Augment;
use super::batch::{Batch, Pool};
use super::feed::{Feed, Scratch};
use super::fit::InputSpec;
use super::normalize::Normalization;
use super::rng::{Use, permutation, stream};
use crate::error::{Error, Result};
use crate::ir::Type;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

/// What becomes of the samples at the end of an epoch that do not fill a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShortBatch {
    /// A last batch with fewer rows.
    #[default]
    Keep,
    /// A last batch of full size; rows from [`Batch::len`] on repeat the last sample.
    Pad,
    /// They are left out of this epoch.
    Drop,
}

/// How batches are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Samples of a batch.
    pub batch_size: usize,
    /// Whether every epoch has a random order of its own; otherwise that of the file.
    pub shuffle: bool,
    /// The end of an epoch.
    pub short: ShortBatch,
    /// What order and augmentation are drawn from.
    pub seed: u64,
    /// Random changes to images; [`Augment::None`] in evaluation.
    pub augment: Augment,
    /// Background threads; 0 prepares each batch when it is asked for.
    pub workers: usize,
    /// Of texts: the lengths that batches are padded to, ascending, the last that of the arrays; see [`super::Lengths::buckets`]. Then a
    /// batch has texts of similar length. Empty: every batch is as long as the arrays.
    pub buckets: Vec<usize>,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            batch_size: 128,
            shuffle: false,
            short: ShortBatch::Keep,
            seed: 0,
            augment: Augment::None,
            workers: 1,
            buckets: Vec::new(),
        }
    }
}

/// Makes the batches of any epoch of a data set.
#[derive(Debug)]
pub struct Loader(Arc<Plan>);

#[derive(Debug)]
struct Plan {
    data: Arc<Dataset>,
    inputs: Vec<Type>,
    feed: Feed,
    options: LoaderOptions,
    pool: Pool,
}

impl Loader {
    /// Matches a data set with a model's inputs. `normalization` is for images only.
    ///
    /// # Errors
    /// When data and inputs do not go together, or the data set does not fill one batch.
    pub fn new(
        data: Arc<Dataset>,
        inputs: Vec<InputSpec>,
        normalization: Option<Normalization>,
        options: LoaderOptions,
    ) -> Result<Self> {
        let (batch_size, augment) = (options.batch_size, options.augment);
        data.check("loaded")?;
        if batch_size == 0 {
            crate::bail!("batch size 0 makes no batch");
        }
        for InputSpec { name, ty } in &inputs {
            if ty.shape.first() != Some(&batch_size) {
                let cause = format!("input `{name}` is {ty}: its first axis is not the batch size {batch_size}");
                return Err(Error::new(cause).hint("only inputs with the batch as first axis can be fed"));
            }
        }
        let feed = Feed::new(data.clone(), &inputs, normalization.as_ref(), augment)?;
        let inputs = inputs.into_iter().map(|i| i.ty).collect();
        let plan = Plan { data, inputs, feed, options, pool: Pool::default() };
        if plan.batches() == 0 {
            let cause = format!("{} samples do not fill a batch of {batch_size}", plan.data.len());
            return Err(Error::new(cause).hint("choose a smaller batch size, or keep the last, short batch"));
        }
        Ok(Self(Arc::new(plan)))
    }

    /// How the data are changed to fit the model, as sentences for the log.
    pub fn notes(&self) -> &[String] {
        &self.0.feed.notes
    }

    /// Samples of the data set.
    pub fn samples(&self) -> usize {
        self.0.data.len()
    }

    /// Samples of a whole batch.
    pub fn batch_size(&self) -> usize {
        self.0.options.batch_size
    }

    /// Batches of every epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.0.batches()
    }

    /// The batches of `epoch` (counted from 0), from number `from_batch` on. Dropping the iterator stops its threads.
    pub fn epoch(&self, epoch: usize, from_batch: usize) -> Epoch {
        let Plan { data, options, .. } = &*self.0;
        let order = if options.shuffle {
            permutation(data.len(), stream(options.seed, Use::Order, epoch as u64, 0))
        } else {
            (0..data.len()).collect()
        };
        let (order, lengths) = self.0.by_length(order, epoch as u64);
        let (order, lengths) = (order.into(), lengths.into());
        let maker = Maker { plan: self.0.clone(), order, lengths, epoch: epoch as u64, scratch: Scratch::default() };
        let batches = self.0.batches();
        let threads = options.workers.min(batches.saturating_sub(from_batch));
        let workers = (0..threads).map(|i| Worker::start(maker.clone(), from_batch + i, threads, batches)).collect();
        Epoch { next: from_batch, batches, from: from_batch, workers, maker }
    }

    /// Gives the memory of a batch back, for a batch to come.
    pub fn recycle(&self, batch: Batch) {
        self.0.pool.give(batch.inputs);
    }
}

impl Plan {
    /// The order in which texts of similar length are in the same batch, and the length of each batch; of data without lengths the
    /// given order, and none.
    fn by_length(&self, order: Vec<usize>, epoch: u64) -> (Vec<usize>, Vec<usize>) {
        let LoaderOptions { batch_size, shuffle, seed, buckets, .. } = &self.options;
        let Some(lengths) = self.data.lengths.as_ref().filter(|_| buckets.len() > 1) else {
            return (order, Vec::new());
        };
        let mut batches = lengths.batches(&order, buckets, *batch_size);
        if *shuffle {
            // A short batch stays the last.
            let whole = order.len() / batch_size;
            let places =
                permutation(whole, stream(*seed, Use::Batches, epoch, 0)).into_iter().chain(whole..batches.len());
            batches = places.map(|i| std::mem::take(&mut batches[i])).collect();
        }
        let (lengths, samples): (Vec<usize>, Vec<Vec<usize>>) = batches.into_iter().unzip();
        (samples.concat(), lengths)
    }

    fn batches(&self) -> usize {
        let (samples, size) = (self.data.len(), self.options.batch_size);
        match self.options.short {
            ShortBatch::Keep | ShortBatch::Pad => samples.div_ceil(size),
            ShortBatch::Drop => samples / size,
        }
    }
}

/// What a thread needs to make any batch of an epoch.
struct Maker {
    plan: Arc<Plan>,
    order: Arc<[usize]>,
    /// Of every batch, where they differ.
    lengths: Arc<[usize]>,
    epoch: u64,
    scratch: Scratch,
}

impl Clone for Maker {
    fn clone(&self) -> Self {
        Self {
            plan: self.plan.clone(),
            order: self.order.clone(),
            lengths: self.lengths.clone(),
            epoch: self.epoch,
            scratch: Scratch::default(),
        }
    }
}

impl Maker {
    fn batch(&mut self, index: usize) -> Result<Batch> {
        let Plan { data, inputs, feed, options, pool } = &*self.plan;
        let from = index * options.batch_size;
        let len = options.batch_size.min(self.order.len() - from);
        let rows = if options.short == ShortBatch::Pad { options.batch_size } else { len };
        let sized = |ty: &Type| {
            let mut shape = ty.shape.clone();
            shape[0] = rows;
            if let Some(length) = self.lengths.get(index) {
                shape[1] = *length;
            }
            Type::new(ty.dtype, &shape)
        };
        let mut buffers = pool.take(&inputs.iter().map(sized).collect::<Vec<_>>());
        let samples = &self.order[from..from + len];
        feed.read(samples, &mut self.scratch)?;
        let mut labels = Vec::with_capacity(rows);
        for row in 0..rows {
            let of_batch = row.min(len - 1);
            let mut rng = stream(options.seed, Use::Augment, self.epoch, (from + of_batch) as u64);
            feed.fill(samples, of_batch, row, &mut buffers, &mut rng, &mut self.scratch);
            labels.push(data.labels[samples[of_batch]]);
        }
        Ok(Batch { index, inputs: buffers, labels, len })
    }
}

/// A thread that makes every `threads`-th batch. It holds one finished batch and waits with the next.
struct Worker {
    batches: Option<Receiver<Result<Batch>>>,
    thread: std::io::Result<JoinHandle<()>>,
}

impl Worker {
    fn start(mut maker: Maker, first: usize, threads: usize, batches: usize) -> Self {
        let (sender, receiver) = sync_channel(1);
        let work = move || {
            for index in (first..batches).step_by(threads) {
                let batch = maker.batch(index);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("bisam-loader".to_owned()).spawn(work);
        Self { batches: Some(receiver), thread }
    }

    fn next(&self) -> Result<Batch> {
        if let Err(e) = &self.thread {
            return Err(Error::new(format!("a loader thread cannot be started: {e}")).hint("use fewer loader threads"));
        }
        let received = self.batches.as_ref().and_then(|b| b.recv().ok());
        received.unwrap_or_else(|| Err(Error::new("a loader thread has died")))
    }
}

/// Closing the channel makes the thread's next send fail, so that it ends.
impl Drop for Worker {
    fn drop(&mut self) {
        self.batches = None;
        if let Ok(thread) = std::mem::replace(&mut self.thread, Err(std::io::ErrorKind::Other.into())) {
            // A panic there has been reported as the end of its batches.
            let _ = thread.join();
        }
    }
}

/// The batches of one epoch, in order.
pub struct Epoch {
    next: usize,
    batches: usize,
    from: usize,
    workers: Vec<Worker>,
    maker: Maker,
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.batches {
            return None;
        }
        let index = self.next;
        self.next += 1;
        let batch = match self.workers.len() {
            0 => self.maker.batch(index),
            n => self.workers[(index - self.from) % n].next(),
        };
        if batch.is_err() {
            self.next = self.batches;
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Images, Samples};
    use crate::ir::DType;

    fn dataset(n: usize) -> Arc<Dataset> {
        let pixels = (0..n * 64).map(|i| (i * 31 % 251) as u8).collect();
        let images = Images::new(pixels, 8, 8, 1);
        Arc::new(Dataset::new(Samples::Images(images), (0..n as i64).collect()))
    }

    fn loader(n: usize, options: LoaderOptions) -> Loader {
        let ty = Type::new(DType::F32, &[options.batch_size, 1, 8, 8]);
        Loader::new(dataset(n), vec![InputSpec { name: "x".to_owned(), ty }], None, options).unwrap()
    }

    fn options(workers: usize) -> LoaderOptions {
        let augment = Augment::CropFlipCutout;
        LoaderOptions {
            batch_size: 8,
            shuffle: true,
            short: ShortBatch::Keep,
            seed: 3,
            augment,
            workers,
            buckets: Vec::new(),
        }
    }

    fn batches(loader: &Loader, epoch: usize, from: usize) -> Vec<Batch> {
        loader.epoch(epoch, from).collect::<Result<_>>().unwrap()
    }

    #[test]
    fn threads_change_nothing() {
        let reference = batches(&loader(61, options(0)), 1, 0);
        for workers in [1, 2, 3, 20] {
            assert_eq!(batches(&loader(61, options(workers)), 1, 0), reference, "{workers} workers");
        }
        assert_ne!(batches(&loader(61, LoaderOptions { seed: 4, ..options(1) }), 1, 0), reference);
    }

    #[test]
    fn a_resumed_epoch_is_the_tail_of_the_full_one() {
        let loader = loader(61, options(2));
        let full = batches(&loader, 5, 0);
        for from in 0..=full.len() {
            assert_eq!(batches(&loader, 5, from), full[from..]);
        }
        assert!(batches(&loader, 5, 99).is_empty());
    }

    #[test]
    fn every_epoch_holds_every_sample_in_an_order_of_its_own() {
        let loader = loader(61, options(2));
        let labels = |epoch| batches(&loader, epoch, 0).into_iter().flat_map(|b| b.labels).collect::<Vec<_>>();
        assert_ne!(labels(0), labels(1));
        let mut sorted = labels(1);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..61).collect::<Vec<_>>());
        let inputs = |epoch| batches(&loader, epoch, 0).into_iter().map(|b| b.inputs).collect::<Vec<_>>();
        assert_ne!(inputs(0), inputs(1));
    }

    #[test]
    fn without_shuffle_and_augmentation_samples_come_as_they_are() {
        let plain = LoaderOptions { batch_size: 8, workers: 2, ..LoaderOptions::default() };
        let all = batches(&loader(20, plain), 7, 0);
        let labels: Vec<i64> = all.iter().flat_map(|b| b.labels.clone()).collect();
        assert_eq!(labels, (0..20).collect::<Vec<_>>());
        assert_eq!(all[1].inputs[0].elements::<f32>().unwrap()[1], (8 * 64 + 1) as f32 * 31.0 % 251.0 / 255.0);
    }

    #[test]
    fn the_last_batch_is_kept_padded_or_dropped() {
        let last = |short| {
            let loader = loader(20, LoaderOptions { short, augment: Augment::None, shuffle: false, ..options(1) });
            let mut all = batches(&loader, 0, 0);
            assert_eq!(all.len(), loader.batches_per_epoch());
            (all.len(), all.pop().unwrap())
        };
        let (n, kept) = last(ShortBatch::Keep);
        assert_eq!((n, kept.len, kept.inputs[0].ty().shape[0], kept.labels.len()), (3, 4, 4, 4));
        let (n, padded) = last(ShortBatch::Pad);
        assert_eq!((n, padded.len, padded.inputs[0].ty().shape[0]), (3, 4, 8));
        assert_eq!(padded.labels, [16, 17, 18, 19, 19, 19, 19, 19]);
        let rows: Vec<&[f32]> = padded.inputs[0].elements::<f32>().unwrap().chunks(64).collect();
        assert!(rows[3] == rows[7] && rows[3] != rows[2]);
        let (n, dropped) = last(ShortBatch::Drop);
        assert_eq!((n, dropped.len), (2, 8));
    }

    #[test]
    fn recycled_buffers_do_not_leak_into_batches() {
        let loader = loader(61, options(2));
        let fresh = batches(&loader, 0, 0);
        for _ in 0..2 {
            for (batch, want) in loader.epoch(0, 0).zip(&fresh) {
                let batch = batch.unwrap();
                assert_eq!(&batch, want);
                loader.recycle(batch);
            }
        }
    }

    #[test]
    fn dropping_an_epoch_stops_its_threads() {
        let loader = loader(61, options(3));
        drop(loader.epoch(0, 0));
        let mut epoch = loader.epoch(0, 0);
        epoch.next().unwrap().unwrap();
        drop(epoch);
        assert_eq!(Arc::strong_count(&loader.0), 1);
    }

    #[test]
    fn impossible_loaders_say_why() {
        let new = |n: usize, options: LoaderOptions, shape: &[usize]| {
            let input = InputSpec { name: "x".to_owned(), ty: Type::new(DType::F32, shape) };
            Loader::new(dataset(n), vec![input], None, options).unwrap_err().to_string()
        };
        assert!(new(9, options(1), &[4, 1, 8, 8]).contains("not the batch size 8"));
        assert!(new(9, options(1), &[]).contains("not the batch size 8"));
        assert!(new(0, options(1), &[8, 1, 8, 8]).contains("no samples"));
        let e = new(7, LoaderOptions { short: ShortBatch::Drop, ..options(1) }, &[8, 1, 8, 8]);
        assert!(e.contains("7 samples do not fill a batch of 8"), "{e}");
        assert!(new(7, LoaderOptions { batch_size: 0, ..options(1) }, &[0, 1, 8, 8]).contains("batch size 0"));
    }
}
