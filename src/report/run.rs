//! What a run's folder holds.

use crate::error::{Error, IoContext, Result};
use crate::sharpness::Sharpness;
use crate::step::Preset;
use crate::train::Summary;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;

/// A run as its folder describes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Run {
    /// What the report calls it: the folder's name, unless the caller has a better one.
    pub name: String,
    /// The log lines of steps, by steps done.
    pub steps: BTreeMap<u64, Step>,
    /// The log lines of epochs, by epoch, counted from 1.
    pub epochs: BTreeMap<u64, Epoch>,
    /// The results; none while the run is not finished.
    pub results: Option<Summary>,
    /// The recipe as it stands in the folder.
    pub recipe: String,
    /// What `bisam sharpness -o` found, of every model it looked at.
    pub sharpness: Vec<Sharpness>,
}

/// A step's line in `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// Loss of the descent.
    pub loss: Option<f64>,
    /// Loss of the ascent.
    pub ascent_loss: Option<f64>,
    /// Learning rate.
    pub lr: Option<f64>,
}

/// An epoch's line in `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Epoch {
    /// Mean loss of the descent.
    pub loss: Option<f64>,
    /// Accuracy on the training samples, as a share.
    pub accuracy: Option<f64>,
    /// Loss on the validation split.
    pub valid_loss: Option<f64>,
    /// Accuracy on the validation split, as a share.
    pub valid_accuracy: Option<f64>,
}

impl Run {
    /// Reads `metrics.jsonl` and, where they are there, `summary.json`, `recipe.toml` and `sharpness.json` of `dir`.
    ///
    /// # Errors
    /// No metrics, or a damaged file: names file and line.
    pub fn load(dir: &Path) -> Result<Self> {
        let metrics = dir.join("metrics.jsonl");
        let Some(text) = read(&metrics)? else {
            let cause = if dir.is_dir() { "there are no metrics here" } else { "there is no such folder" };
            return Err(Error::new(cause).in_file(dir).hint("name the folder that `bisam train -o` wrote"));
        };
        let (steps, mut epochs) = lines(&text).map_err(|e| e.in_file(&metrics))?;
        if steps.is_empty() && epochs.is_empty() {
            return Err(Error::new("there are no metrics in this file")
                .in_file(&metrics)
                .hint("a line is written every --log-every steps and after every epoch"));
        }
        let mut results: Option<Summary> = json(&dir.join("summary.json"))?;
        // Runs of earlier versions count epochs from 0.
        if epochs.contains_key(&0) {
            epochs = epochs.into_iter().map(|(epoch, line)| (epoch + 1, line)).collect();
            let best = results.as_mut().and_then(|r| r.best_epoch.as_mut());
            best.into_iter().for_each(|epoch| *epoch += 1);
        }
        if let Some(counts) = results.as_ref().and_then(|r| r.test_confusion.as_ref())
            && counts.iter().any(|row| row.len() != counts.len())
        {
            return Err(Error::new("`test_confusion` is not square").in_file(dir.join("summary.json")));
        }
        let recipe = read(&dir.join("recipe.toml"))?.unwrap_or_default();
        let sharpness = json(&dir.join("sharpness.json"))?.unwrap_or_default();
        Ok(Self { name: name(dir), steps, epochs, results, recipe, sharpness })
    }

    /// A value of the recipe as text; `None` where the recipe does not have it.
    pub fn setting(&self, key: &str) -> Option<String> {
        match toml::from_str::<toml::Table>(&self.recipe).ok()?.get(key)? {
            toml::Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// The nearest preset and what the recipe changes of it: `bisam, rho 0.1, lr 0.3`; `None` where the recipe does not say.
    pub fn optimizer(&self) -> Option<String> {
        let recipe = toml::from_str::<toml::Table>(&self.recipe).ok()?;
        let step = recipe.get("step")?.as_table()?;
        let (name, mut changed) = Preset::ALL
            .iter()
            .filter_map(|(preset, name)| Some((*name, changes(step, *preset)?)))
            .min_by_key(|(_, changed)| changed.len())?;
        if step.contains_key("ascent") {
            changed.insert(0, "rho");
            changed.dedup();
        }
        let settings = changed.iter().map(|key| (*key, step.get(*key))).chain([("lr", recipe.get("lr"))]);
        let text = settings.filter_map(|(key, value)| Some(format!("{key} {}", value?)));
        Some([name.to_owned()].into_iter().chain(text).collect::<Vec<_>>().join(", "))
    }
}

/// The settings of a step that are not as in a preset; ρ is the first.
fn changes(step: &toml::Table, preset: Preset) -> Option<Vec<&str>> {
    // Through text, as the recipe went: single-precision numbers have few digits there.
    let text = toml::to_string(&preset.options()).ok()?;
    let preset: toml::Table = toml::from_str(&text).ok()?;
    let differs = |key: &&str| *key != "kernels" && step.get(*key) != preset.get(*key);
    let mut changed: Vec<&str> = step.keys().map(String::as_str).filter(differs).collect();
    changed.sort_by_key(|key| (*key != "rho", *key));
    Some(changed)
}

/// The last part of a folder's path.
fn name(dir: &Path) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    full.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned())
}

/// The text of a file; `None` when it is not there.
fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e).file(path),
    }
}

/// A JSON file; `None` when it is not there.
fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = read(path)? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Error::new(format!("line {}: {}", e.line(), cause(&e))).in_file(path))
}

/// What is wrong, without the place, which is counted within one line.
fn cause(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(cause, _)| cause.to_owned())
}

/// A line of `metrics.jsonl`, of either kind.
#[derive(Deserialize)]
struct Line {
    step: Option<u64>,
    epoch: Option<u64>,
    loss: Option<f64>,
    ascent_loss: Option<f64>,
    accuracy: Option<f64>,
    lr: Option<f64>,
    valid_loss: Option<f64>,
    valid_accuracy: Option<f64>,
}

/// The lines of `metrics.jsonl`. Where a resumed run repeats steps or epochs, the later lines hold. A last line without its end is
/// still being written.
fn lines(text: &str) -> Result<(BTreeMap<u64, Step>, BTreeMap<u64, Epoch>)> {
    let (mut steps, mut epochs) = (BTreeMap::new(), BTreeMap::new());
    for (i, line) in text.split_inclusive('\n').enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |cause: &str| Error::new(format!("line {}: {cause}", i + 1));
        let Line { step, epoch, loss, ascent_loss, accuracy, lr, valid_loss, valid_accuracy } =
            match serde_json::from_str(line) {
                Ok(line) => line,
                Err(_) if !line.ends_with('\n') => continue,
                Err(e) => return Err(at(&cause(&e)).hint("remove the damaged line")),
            };
        match (step, epoch) {
            (Some(step), _) => {
                steps.split_off(&step);
                steps.insert(step, Step { loss, ascent_loss, lr });
            }
            (None, Some(epoch)) => {
                epochs.split_off(&epoch);
                epochs.insert(epoch, Epoch { loss, accuracy, valid_loss, valid_accuracy });
            }
            (None, None) => return Err(at("this is a line of neither a step nor an epoch")),
        }
    }
    Ok((steps, epochs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::StepOptions;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("writes");
        }
        folder
    }

    fn error(files: &[(&str, &str)]) -> String {
        Run::load(folder(files).path()).expect_err("is refused").to_string()
    }

    #[test]
    fn what_is_there_is_read() {
        let metrics =
            "{\"step\":10,\"epoch\":0,\"loss\":2.5,\"new\":1}\n{\"epoch\":0,\"loss\":null,\"accuracy\":0.5}\n{\"st";
        let run = Run::load(
            folder(&[("metrics.jsonl", metrics), ("summary.json", "{\"steps\":9,\"seconds\":1,\"test_f1\":0.5}")])
                .path(),
        );
        let run = run.expect("reads");
        assert_eq!(run.steps[&10].loss, Some(2.5));
        assert_eq!((run.epochs[&1].loss, run.epochs[&1].accuracy), (None, Some(0.5)), "counted from 0 by an old run");
        assert_eq!(run.results.expect("is there").test_f1, Some(0.5));
        assert!(run.sharpness.is_empty());
    }

    #[test]
    fn lines_of_a_resumed_run_replace_what_came_after_its_checkpoint() {
        let text: String = [10, 20, 30, 15, 25].iter().map(|s| format!("{{\"step\":{s},\"loss\":{s}}}\n")).collect();
        let (steps, _) = lines(&text).expect("reads");
        assert_eq!(steps.into_keys().collect::<Vec<_>>(), [10, 15, 25]);
    }

    #[test]
    fn errors_name_file_and_line() {
        assert!(error(&[]).ends_with("there are no metrics here"));
        let nowhere = Run::load("no/such".as_ref()).expect_err("is refused");
        assert_eq!(nowhere.to_string(), "no/such: there is no such folder");
        assert!(error(&[("metrics.jsonl", "")]).ends_with("metrics.jsonl: there are no metrics in this file"));
        let good = "{\"step\":1}\n";
        let bad = error(&[("metrics.jsonl", &format!("{good}{{\"step\":\n"))]);
        assert!(bad.ends_with("metrics.jsonl: line 2: EOF while parsing a value"), "{bad}");
        let bad = error(&[("metrics.jsonl", &format!("{good}{{\"loss\":1}}\n"))]);
        assert!(bad.contains("line 2: this is a line of neither"), "{bad}");
        let bad = error(&[("metrics.jsonl", good), ("summary.json", "{\n\"steps\": \"many\"}")]);
        assert!(bad.contains("summary.json: line 2: invalid type"), "{bad}");
        let bad = error(&[
            ("metrics.jsonl", good),
            ("summary.json", "{\"steps\":9,\"seconds\":1,\"test_confusion\":[[1], [2]]}"),
        ]);
        assert!(bad.ends_with("summary.json: `test_confusion` is not square"), "{bad}");
    }

    #[test]
    fn the_optimizer_is_the_nearest_preset() {
        let named = |options: StepOptions| {
            let step = toml::to_string(&options).expect("serializes");
            Run { recipe: format!("lr = 0.5\n[step]\n{step}"), ..Run::default() }.optimizer().expect("is known")
        };
        for (preset, name) in Preset::ALL {
            let options = preset.options();
            let rho = options.ascent.map_or(String::new(), |_| format!(", rho {}", options.rho));
            assert_eq!(named(options), format!("{name}{rho}, lr 0.5"));
        }
        let changed = StepOptions { rho: 0.125, momentum: 0.5, ..Preset::Bisam.options() };
        assert_eq!(named(changed), "bisam, rho 0.125, momentum 0.5, lr 0.5");
        assert_eq!(Run::default().optimizer(), None);
    }
}
