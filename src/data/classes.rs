//! The names of classes, and whether labels fit a model's logits.

use super::{Dataset, Opening, Splits};
use crate::error::{Error, Result};
use crate::wording::{count, list, nearest};
use std::collections::BTreeSet;

/// A class whose name is not among `known`, which are `whose`.
pub(super) fn unknown(name: &str, known: &[String], whose: &str, evaluate: bool) -> Error {
    let hint = match known.iter().find(|k| k.to_lowercase() == name.to_lowercase()) {
        Some(same) => format!("names are compared exactly, and `{name}` differs from `{same}` by case only: rename it"),
        None => {
            let meant = nearest(name, known).map_or_else(String::new, |k| format!("did you mean `{k}`? "));
            let way = if evaluate || whose != MODEL {
                "rename it or take it out"
            } else {
                "rename it, take it out, or give the model a new head with --num-classes N"
            };
            format!("{meant}{whose} are: {}; {way}", list(known))
        }
    };
    Error::new(format!("class `{name}` is not among {whose}")).hint(hint)
}

/// Whose classes they are that a file's metadata or a recipe names.
pub(super) const MODEL: &str = "the model's classes";

/// Whose classes they are that the training set has.
pub(super) const TRAINING: &str = "the training classes";

/// What to know about folders that are named by numbers: `10` comes before `2`.
pub(super) fn numbers_as_text(names: &[String]) -> Option<String> {
    let numbers: Vec<u64> = names.iter().map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let at = numbers.windows(2).position(|w| w[0] > w[1])? + 1;
    Some(format!("class folders are in alphabetical order, not by number: folder `{}` is class {at}", names[at]))
}

impl Splits {
    /// Numbers the classes as the model knows them, by their names, where data and model have such.
    ///
    /// # Errors
    /// A class that the model does not know, unless it may get new names.
    pub(super) fn match_classes(&mut self, opening: &Opening<'_>) -> Result<()> {
        let known = opening.classes;
        if !self.named || known.is_empty() || self.classes == known {
            return Ok(());
        }
        let mut numbers = Vec::with_capacity(self.classes.len());
        for class in &self.classes {
            match known.iter().position(|k| k == class) {
                Some(number) => numbers.push(number as i64),
                None if opening.rename => {
                    self.notes.push(format!("the model's classes were {}: they get new names", list(known)));
                    return Ok(());
                }
                None => return Err(unknown(class, known, MODEL, opening.evaluate)),
            }
        }
        for set in [Some(&mut self.train), self.valid.as_mut(), self.test.as_mut()].into_iter().flatten() {
            let number = |label: &i64| usize::try_from(*label).ok().and_then(|l| numbers.get(l)).copied();
            set.labels = set.labels.iter().map(|label| number(label).unwrap_or(*label)).collect();
        }
        self.classes = known.to_vec();
        Ok(())
    }
}

/// Labels of every split, as numbers.
struct Spread {
    least: i64,
    most: i64,
}

impl Splits {
    /// The sets that there are, by the names that flags have for them.
    pub fn sets(&self) -> impl Iterator<Item = (&'static str, &Dataset)> {
        let sets = [("train", Some(&self.train)), ("valid", self.valid.as_ref()), ("test", self.test.as_ref())];
        sets.into_iter().filter_map(|(name, set)| Some((name, set?))).filter(|(_, set)| !set.is_empty())
    }

    /// Checks the labels against a model with so many `logits`, and returns what the user should know about them. `evaluate` when the
    /// model is not trained.
    ///
    /// # Errors
    /// More classes than logits, labels counted from 1, or any label that is no class of the model.
    pub fn check_classes(&self, logits: usize, evaluate: bool) -> Result<Vec<String>> {
        let Some(spread) = self.spread() else { return Ok(Vec::new()) };
        let head = |classes: usize| match evaluate {
            true => format!(
                "the model has {}: is it the right one for these data? (--num-classes of `train` gives a new head)",
                count(logits, "class")
            ),
            false => format!("--num-classes {classes} gives the model a head for them"),
        };
        if self.named && self.classes.len() > logits {
            let cause = format!("the data have {}, but the model has {logits}", count(self.classes.len(), "class"));
            return Err(Error::new(cause).hint(format!(
                "the classes are {}; {}",
                list(&self.classes),
                head(self.classes.len())
            )));
        }
        if !self.named && spread.least >= 1 && spread.most == logits as i64 {
            let cause = format!(
                "labels are counted from 1: they go from {} to {logits}, but the model's classes from 0 to {}",
                spread.least,
                logits - 1
            );
            return Err(Error::new(cause).hint("subtract 1 from every label (labels - 1 in NumPy)"));
        }
        for (_, set) in self.sets() {
            let hint = match spread.least {
                ..0 => "labels are class numbers from 0 on: samples without a label must be taken out".to_owned(),
                0 => format!("labels go from 0 to {}; {}", spread.most, head(spread.most as usize + 1)),
                least => format!(
                    "labels go from {least} to {}: where they are counted from 1, subtract 1 from them; {}",
                    spread.most,
                    head(spread.most as usize + 1)
                ),
            };
            set.check_labels(logits).map_err(|e| e.hint(hint))?;
        }
        Ok(if evaluate { self.notes_of_evaluation(logits) } else { self.notes_of_training(logits, &spread) })
    }

    fn spread(&self) -> Option<Spread> {
        let labels = || self.sets().flat_map(|(_, set)| set.labels.iter().copied());
        Some(Spread { least: labels().min()?, most: labels().max()? })
    }

    fn notes_of_evaluation(&self, logits: usize) -> Vec<String> {
        let own = self.classes.len();
        if !self.named || own == logits {
            return Vec::new();
        }
        vec![format!(
            "the model has {} and no names for them, the data have {own}: {} are taken for its first {own} in this order, which may be \
             wrong",
            count(logits, "class"),
            list(&self.classes)
        )]
    }

    fn notes_of_training(&self, logits: usize, spread: &Spread) -> Vec<String> {
        let mut notes = Vec::new();
        let present: BTreeSet<i64> = self.train.labels.iter().copied().collect();
        let shown = |class: &i64| match self.classes.get(*class as usize) {
            Some(name) if self.named => name.clone(),
            _ => class.to_string(),
        };
        let names: Vec<String> = present.iter().map(shown).collect();
        if let [only] = names.as_slice() {
            notes.push(format!("every training sample is of class {only}: there is nothing to tell it from"));
        } else if present.len() < logits {
            let own = if self.named { present.len() } else { spread.most as usize + 1 };
            let have = format!("the training set has {} ({})", count(present.len(), "class"), list(&names));
            notes.push(match logits - own {
                0 => format!("{have}, and no sample of the model's other {}", logits - present.len()),
                rest => format!(
                    "{have}, the model {logits}: {} never right (--num-classes {own} gives it a head of that size)",
                    if rest == 1 { "one of its outputs is".to_owned() } else { format!("{rest} of its outputs are") }
                ),
            });
        }
        if !self.named && spread.least >= 1 {
            notes.push(format!(
                "no label is 0: where labels are counted from 1, subtract 1 from them (they go from {} to {})",
                spread.least, spread.most
            ));
        }
        for (part, set) in self.sets().skip(1) {
            let unseen: BTreeSet<i64> = set.labels.iter().copied().filter(|l| !present.contains(l)).collect();
            if !unseen.is_empty() {
                let names: Vec<String> = unseen.iter().map(shown).collect();
                notes.push(format!(
                    "no training sample is of {} that the {part} split has: {}",
                    count(unseen.len(), "class"),
                    list(&names)
                ));
            }
        }
        notes
    }
}
