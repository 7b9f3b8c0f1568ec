//! The loop: epochs of steps, validation, models and checkpoints.

use super::checkpoint::{self, Names, Position};
use super::evaluate::{Measured, bytes, measure};
use super::folder::Folder;
use super::log::{EpochReport, Log, StepReport, Summary};
use super::run::Observer;
use super::schedule::Unit;
use super::setup::Setup;
use super::verdict::{check_finite, warning};
use crate::data::Loader;
use crate::engine::Losses;
use crate::engine::program::State;
use crate::error::{Error, IoContext, Result};
use crate::files::write_atomically;
use crate::onnx::{save, save_to_temporary};
use crate::step::Stages;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A confusion matrix of more classes is not written out.
const SHOWN_CLASSES: usize = 100;

/// A run under way.
pub(super) struct Trainer<'a> {
    setup: Setup,
    folder: Folder,
    position: Position,
    /// Weights and statistics of the best epoch.
    best: Option<State>,
    /// Whether the models in the folder are those of the position; not so after a crash.
    exported: bool,
    log: Log,
    /// Steps and epochs of the whole run.
    total: u64,
    epochs: usize,
    /// Since when no time was counted.
    clock: Instant,
    stop: &'a AtomicBool,
    observer: &'a mut dyn Observer,
}

/// What a step that is under way will be reported with: samples and learning rate.
type UnderWay = Vec<(usize, f32)>;

/// Names of the tensors in a state.
pub(super) fn names(stages: &Stages) -> Names<'_> {
    Names {
        params: stages.params.iter().map(|p| p.name.as_str()).collect(),
        stats: stages.stats.iter().map(|s| s.slot.name.as_str()).collect(),
    }
}

impl<'a> Trainer<'a> {
    /// A run that goes on from `found`, position and best weights, or begins. Tries to export the model before anything is written.
    pub fn new(
        setup: Setup,
        folder: Folder,
        found: Option<(Position, Option<State>)>,
        stop: &'a AtomicBool,
        observer: &'a mut dyn Observer,
    ) -> Result<Self> {
        let trial = setup.export(&apart(setup.program.state()?))?;
        let checkpoints = folder.state();
        let checkpoints = checkpoints.parent().unwrap_or(folder.path());
        std::fs::create_dir_all(checkpoints).file(checkpoints)?;
        save_to_temporary(&trial, &folder.last())?;
        let resumed = found.is_some();
        let (mut position, best) = found.unwrap_or_default();
        let metric = setup.recipe.metric();
        if let (Some((value, _)), Some(of_metric)) =
            (&mut position.best, metric.of(position.best_loss, position.best_scores))
        {
            // The metric may be another one now.
            *value = of_metric;
        }
        let per_epoch = setup.data.train.batches_per_epoch();
        let total = setup.recipe.steps.map_or((setup.recipe.epochs * per_epoch) as u64, |s| s as u64);
        let epochs = (total as usize).div_ceil(per_epoch);
        if resumed && folder.results()?.is_some() {
            observer.note(&format!(
                "the run goes on from step {} to step {total}, over all of which its schedule goes now",
                position.steps
            ));
        }
        let log = Log::open(folder.path(), resumed.then_some(&position))?;
        let mut saved = setup.recipe.clone();
        saved.make_paths_absolute()?;
        saved.save(&folder.recipe())?;
        folder.reopen()?;
        observer.start(position.steps, total, metric);
        let (exported, clock) = (!resumed, Instant::now());
        Ok(Self { setup, folder, position, best, exported, log, total, epochs, clock, stop, observer })
    }

    /// Trains to the end.
    pub fn run(mut self) -> Result<Summary> {
        // A process may have ended between the last step of an epoch and what follows it.
        while self.position.steps < self.total
            || self.position.batch > 0 && self.position.reported < self.position.steps
        {
            self.epoch()?;
        }
        self.finish()
    }

    /// The steps that are left of an epoch, what came out of it, and its models. The last one may be a part of an epoch, which a longer run
    /// goes on with.
    fn epoch(&mut self) -> Result<()> {
        self.steps()?;
        let state = self.setup.program.state()?;
        check_finite(&state, &self.setup.stages).map_err(|e| e.in_file(self.folder.path()))?;
        let (report, improved) = self.report(&state)?;
        self.keep_epoch(&state)?;
        (self.position.last_epoch, self.position.reported) = (Some(report), self.position.steps);
        if self.position.batch == self.setup.data.train.batches_per_epoch() {
            self.position.epoch += 1;
            self.position.batch = 0;
            self.position.sums = [0.0; 3];
            self.position.epoch_seconds = 0.0;
        }
        // A run that is resumed writes its models and the epoch's line where this process could not.
        self.save_checkpoint(&state)?;
        self.write_models(&state, improved)?;
        self.log.epoch(self.position.steps, &report)?;
        self.observer.epoch(&report);
        Ok(())
    }

    /// Steps up to the end of the epoch or of the run.
    fn steps(&mut self) -> Result<()> {
        let per_epoch = self.setup.data.train.batches_per_epoch();
        let mut under_way = UnderWay::new();
        self.count_time();
        for batch in self.setup.data.train.epoch(self.position.epoch, self.position.batch) {
            let batch = batch?;
            let (lr, rho) = self.rates();
            self.setup.program.start_step(&bytes(&batch), &batch.labels, lr, rho)?;
            under_way.push((batch.labels.len(), lr));
            self.position.steps += 1;
            self.position.batch += 1;
            let every = |n: usize| n > 0 && self.position.steps.is_multiple_of(n as u64);
            let due = every(self.setup.recipe.checkpoint_every);
            let last = self.position.steps == self.total || self.position.batch == per_epoch;
            let asked = every(self.setup.recipe.log_every) || due || last || self.stop.load(Ordering::Relaxed);
            if asked || !self.setup.program.runs_ahead() {
                self.report_steps(&mut under_way)?;
            }
            self.setup.data.train.recycle(batch);
            self.position.epoch_seconds += self.count_time();
            // Only between steps that are all known.
            let stopping = under_way.is_empty() && self.stop.load(Ordering::Relaxed);
            if due || stopping {
                self.save_checkpoint(&self.setup.program.state()?)?;
            }
            if stopping {
                return Err(Error::new(format!("stopped after step {}", self.position.steps))
                    .hint(format!("go on with `bisam train --resume {}`", self.folder.path().display())));
            }
            if last {
                break;
            }
        }
        Ok(())
    }

    /// Learning rate and ρ of the next step.
    fn rates(&self) -> (f32, f32) {
        let recipe = &self.setup.recipe;
        let (t, span) = match recipe.schedule_per {
            Unit::Epoch => (self.position.epoch, self.epochs),
            Unit::Step => (self.position.steps as usize, self.total as usize),
        };
        let lr = recipe.lr * recipe.schedule.factor(t, span, recipe.warmup);
        (lr, recipe.step.rho * recipe.rho_schedule.factor(t, span, 0))
    }

    /// Adds the time since the last call to that of the run, and returns it.
    fn count_time(&mut self) -> f64 {
        let seconds = self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
        self.position.seconds += seconds;
        seconds
    }

    /// Logs what the steps under way measured, and adds it to the epoch's sums.
    fn report_steps(&mut self, under_way: &mut UnderWay) -> Result<()> {
        let first = self.position.steps - under_way.len() as u64 + 1;
        for ((step, (samples, lr)), losses) in (first..).zip(under_way.drain(..)).zip(self.setup.program.finished()?) {
            self.add(step, samples, &losses);
            let report = StepReport {
                step,
                epoch: self.position.epoch + 1,
                ascent_loss: losses.ascent,
                loss: losses.descent,
                accuracy: (self.setup.stages.classes > 0).then(|| losses.correct / samples as f32),
                lr,
            };
            if step.is_multiple_of(self.setup.recipe.log_every as u64) {
                self.log.step(&report)?;
            }
            self.observer.step(&report);
        }
        Ok(())
    }

    fn add(&mut self, step: u64, samples: usize, losses: &Losses) {
        let n = samples as f64;
        let position = &mut self.position;
        position.sums[0] += f64::from(losses.descent) * n;
        position.sums[1] += f64::from(losses.correct);
        position.sums[2] += n;
        position.first_loss.get_or_insert(losses.descent);
        if position.highest_loss.is_none_or(|(highest, _)| losses.descent > highest) {
            position.highest_loss = Some((losses.descent, step));
        }
    }

    /// What came out of the epoch, and whether it is the best one now.
    fn report(&mut self, state: &State) -> Result<(EpochReport, bool)> {
        let [loss, correct, samples] = self.position.sums;
        let n = samples.max(1.0);
        let mut report = EpochReport {
            epoch: self.position.epoch + 1,
            loss: loss / n,
            accuracy: (self.setup.stages.classes > 0).then(|| correct / n),
            valid_loss: None,
            valid_accuracy: None,
            valid_f1: None,
            valid_matthews: None,
            samples_per_second: samples / self.position.epoch_seconds.max(f64::MIN_POSITIVE),
        };
        let Some(Measured { loss, confusion, .. }) = self.measure(|s| s.data.valid.as_ref())? else {
            return Ok((report, false));
        };
        let scores = confusion.map(|c| c.scores());
        report.valid_loss = Some(loss);
        report.valid_accuracy = scores.map(|s| s.accuracy);
        report.valid_f1 = scores.map(|s| s.f1);
        report.valid_matthews = scores.map(|s| s.matthews);
        let metric = self.setup.recipe.metric();
        let value = metric.of(Some(loss), scores).filter(|v| v.is_finite() && loss.is_finite());
        let best = self.position.best.map(|(b, _)| (b, self.position.best_loss.unwrap_or(f64::INFINITY)));
        let value = value.filter(|v| best.is_none_or(|best| metric.is_better((*v, loss), best)));
        if let Some(value) = value {
            self.position.best = Some((value, self.position.epoch));
            (self.position.best_scores, self.position.best_loss) = (scores, Some(loss));
            self.best = Some(weights(state));
        }
        Ok((report, value.is_some()))
    }

    /// What the current weights do on a split, if there is one.
    fn measure(&mut self, split: impl Fn(&Setup) -> Option<&Loader>) -> Result<Option<Measured>> {
        let setup = &mut self.setup;
        let mut evaluation = std::mem::take(&mut setup.evaluation);
        let of_split = split(setup).map(|loader| {
            let program = &setup.program;
            measure(loader, setup.stages.classes, |b| program.evaluate(&mut evaluation, &bytes(b), &b.labels))
        });
        let measured = of_split.transpose();
        setup.evaluation = evaluation;
        measured
    }

    /// Writes the model of this epoch, and that of the best one if it is this, or may not be in the folder.
    fn write_models(&mut self, state: &State, improved: bool) -> Result<()> {
        let last = self.setup.export(state)?;
        save(&last, &self.folder.last())?;
        match &self.best {
            Some(best) if !improved && !self.exported => save(&self.setup.export(best)?, &self.folder.model())?,
            Some(_) if !improved => {}
            _ => save(&last, &self.folder.model())?,
        }
        self.exported = true;
        Ok(())
    }

    /// Writes the model of this epoch under its number, if it is one to be kept.
    fn keep_epoch(&self, state: &State) -> Result<()> {
        let (every, number) = (self.setup.recipe.keep_every, self.position.epoch + 1);
        if every == 0 || !number.is_multiple_of(every) {
            return Ok(());
        }
        let file = self.folder.of_epoch(number);
        let folder = file.parent().unwrap_or(self.folder.path());
        std::fs::create_dir_all(folder).file(folder)?;
        save(&self.setup.export(state)?, &file)
    }

    fn save_checkpoint(&mut self, state: &State) -> Result<()> {
        self.count_time();
        checkpoint::save(&self.folder.state(), &self.position, state, self.best.as_ref(), &names(&self.setup.stages))
    }

    /// Measures the model that is left as `model.onnx` on the test split, and sums the run up.
    fn finish(mut self) -> Result<Summary> {
        self.count_time();
        let last = self.setup.program.state()?;
        if !self.exported {
            self.write_models(&last, false)?;
        }
        if let Some(best) = &self.best {
            let state = State { params: best.params.clone(), stats: best.stats.clone(), ..last };
            self.setup.program.restore(&state)?;
        }
        let test = self.measure(|s| s.data.test.as_ref())?;
        let summary = self.summary(test);
        let json = serde_json::to_vec_pretty(&summary).map_err(|e| Error::new(e.to_string()))?;
        write_atomically(&self.folder.summary(), &json)?;
        Ok(summary)
    }

    fn summary(&self, test: Option<Measured>) -> Summary {
        let Setup { recipe, stages, data, classes, .. } = &self.setup;
        let position = &self.position;
        let (best, test_loss) = (position.best_scores, test.as_ref().map(|t| t.loss));
        let confusion = test.and_then(|t| t.confusion);
        let scores = confusion.as_ref().map(|c| c.scores());
        let of_classes = (!stages.own_loss).then(|| data.classes(stages.classes));
        Summary {
            steps: position.steps,
            metric: recipe.metric(),
            best_valid_loss: position.best_loss,
            best_valid_accuracy: best.map(|b| b.accuracy),
            best_valid_f1: best.map(|b| b.f1),
            best_valid_matthews: best.map(|b| b.matthews),
            best_epoch: position.best.map(|(_, epoch)| epoch + 1),
            test_accuracy: scores.map(|s| s.accuracy),
            test_loss,
            test_f1: scores.map(|s| s.f1),
            test_matthews: scores.map(|s| s.matthews),
            classes: classes.clone(),
            test_confusion: confusion.filter(|c| c.classes() <= SHOWN_CLASSES).map(|c| c.rows()),
            seconds: position.seconds,
            warning: warning(position, of_classes, recipe.lr),
        }
    }
}

/// A state in which all tensors differ, as they will after training: those that an exporter had merged are written one by one then.
fn apart(mut state: State) -> State {
    for (i, values) in state.params.iter_mut().chain(&mut state.stats).enumerate() {
        values.iter_mut().for_each(|v| *v += 1.0 + i as f32);
    }
    state
}

/// Of a state what a model is made of.
fn weights(state: &State) -> State {
    State { params: state.params.clone(), stats: state.stats.clone(), ..State::default() }
}
