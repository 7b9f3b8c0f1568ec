//! Whether a run came to nothing: weights that are not finite, a loss that exploded.

use super::checkpoint::Position;
use crate::engine::program::State;
use crate::error::{Error, Result};
use crate::step::Stages;

/// How many times the loss of guessing a loss has to be for a run at chance level to count as diverged.
const EXPLODED: f64 = 2.0;

/// The same where only the validation split is at chance level, which few samples may be by accident.
const EXPLODED_ALONE: f64 = 10.0;

/// How much the loss has to rise on the way for a run that ends at chance level.
const RISEN: f64 = 3.0;

/// How much a loss of the model's own has to rise up to the end.
const OWN_RISEN: f64 = 10.0;

/// What is known about a run's classes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Classes {
    /// How many there are.
    pub count: usize,
    /// Share of the most common one.
    pub common: f64,
    /// Samples of an epoch, and of the validation split.
    pub samples: [usize; 2],
}

impl Classes {
    /// Whether an accuracy over the samples of split `i` may come from guessing: within two standard deviations.
    fn by_chance(&self, accuracy: f64, i: usize) -> bool {
        let share = self.common.max(1.0 / self.count.max(1) as f64);
        accuracy <= share + 2.0 * (share * (1.0 - share) / self.samples[i].max(1) as f64).sqrt()
    }
}

/// Refuses weights or running statistics that are not finite.
///
/// # Errors
/// Names the first one.
pub(super) fn check_finite(state: &State, stages: &Stages) -> Result<()> {
    let params = stages.params.iter().map(|p| ("weight", &p.name)).zip(&state.params);
    let stats = stages.stats.iter().map(|s| ("running statistic", &s.slot.name)).zip(&state.stats);
    let bad = params.chain(stats).find_map(|((what, name), values)| {
        values.iter().position(|v| !v.is_finite()).map(|i| format!("{what} `{name}`[{i}] is {}", values[i]))
    });
    match bad {
        Some(bad) => Err(Error::new(format!("the run has diverged: after this epoch {bad}")).hint(
            "lower --lr or --rho, clip the gradient with --clip-norm, or check the data; the last checkpoint is kept",
        )),
        None => Ok(()),
    }
}

/// What to say about a run that ends at `position`, trained with a peak rate of `lr`: `classes` are those that cross-entropy is
/// over, none for a loss of the model's own. `None` when nothing is wrong.
pub(super) fn warning(position: &Position, classes: Option<Classes>, lr: f32) -> Option<String> {
    let last = position.last_epoch?;
    let first = f64::from(position.first_loss?);
    let (highest, at) = position.highest_loss.map_or((first, 1), |(loss, step)| (f64::from(loss), step));
    let rest = format!("the highest loss was {} at step {at}; choose a lower --lr: {lr} was too high", number(highest));
    let Some(classes) = classes else {
        let exploded = first > 0.0 && last.loss > OWN_RISEN * first;
        let text = format!(
            "the run has diverged: its loss was {} at first and {} in the end; {rest}",
            number(first),
            number(last.loss)
        );
        return exploded.then_some(text);
    };
    if classes.count < 2 {
        return None;
    }
    let guess = (classes.count as f64).ln();
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    let of_guessing = format!("guessing among {} classes has a loss of {guess:.4}", classes.count);
    let trained = last.accuracy.filter(|a| classes.by_chance(*a, 0));
    if let Some(accuracy) = trained
        && (last.loss > EXPLODED * guess.max(first / EXPLODED) || highest > RISEN * guess.max(first))
    {
        return Some(format!(
            "the run has diverged: the training accuracy of its last epoch is {}, no better than guessing, and the loss {} \
             ({of_guessing}); {rest}",
            percent(accuracy),
            number(last.loss)
        ));
    }
    let (accuracy, loss) = (last.valid_accuracy?, last.valid_loss.unwrap_or(f64::INFINITY));
    (classes.by_chance(accuracy, 1) && loss > EXPLODED_ALONE * guess).then(|| {
        format!(
            "the validation accuracy of the last epoch is {}, no better than guessing, and the loss {} \
             ({of_guessing}), while the training loss is {:.4}: the running statistics of its normalizations do not fit its \
             weights; choose a lower --lr than {lr}, or train longer",
            percent(accuracy),
            number(loss),
            last.loss
        )
    })
}

/// A loss as people read it.
fn number(loss: f64) -> String {
    if loss < 1e5 { format!("{loss:.4}") } else { format!("{loss:.2e}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::EpochReport;

    fn ended(first: f32, highest: f32, loss: f64, accuracy: f64, valid: Option<(f64, f64)>) -> Position {
        let last = EpochReport {
            epoch: 3,
            loss,
            accuracy: Some(accuracy),
            valid_loss: valid.map(|v| v.0),
            valid_accuracy: valid.map(|v| v.1),
            valid_f1: None,
            valid_matthews: None,
            samples_per_second: 1.0,
        };
        Position {
            first_loss: Some(first),
            highest_loss: Some((highest, 7)),
            last_epoch: Some(last),
            ..Position::default()
        }
    }

    #[test]
    fn runs_at_chance_level_whose_loss_exploded_are_told() {
        let classes = Some(Classes { count: 10, common: 0.1, samples: [1000, 100] });
        let told = |p: Position| warning(&p, classes, 5.0);
        let text = told(ended(2.4, 90.0, 30.0, 0.1, None)).expect("diverged");
        assert!(text.contains("diverged") && text.contains("lower --lr: 5 was") && text.contains("step 7"), "{text}");
        assert!(told(ended(2.4, 90.0, 2.31, 0.1, None)).is_some(), "dead after an explosion");
        assert!(told(ended(2.4, 2.6, 2.3, 0.11, None)).is_none(), "nothing learned yet");
        assert!(told(ended(40.0, 40.0, 30.0, 0.11, None)).is_none(), "it began worse");
        assert!(told(ended(2.4, 90.0, 30.0, 0.4, None)).is_none(), "it learns");
        assert!(told(ended(2.4, 2.6, 1.0, 0.7, Some((400.0, 0.1)))).is_some(), "only in evaluation mode");
        assert!(told(ended(2.4, 2.6, 1.0, 0.7, Some((4.0, 0.1)))).is_none());
        assert!(warning(&ended(0.5, 1e6, 1e5, 0.0, None), None, 1.0).is_some(), "a loss of its own");
        assert!(warning(&ended(0.5, 1e6, 0.4, 0.0, None), None, 1.0).is_none());
        assert!(warning(&Position::default(), classes, 1.0).is_none());
    }
}
