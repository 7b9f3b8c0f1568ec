//! Checkpoints: one safetensors file with everything a run needs to go on bit for bit.

use super::log::EpochReport;
use super::metrics::Scores;
use crate::engine::program::State;
use crate::error::{Error, IoContext, Result};
use crate::files::write_atomically;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Where a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Whole epochs done.
    pub epoch: usize,
    /// Next batch of the epoch. Data order and augmentation follow from seed, epoch and batch alone.
    pub batch: usize,
    /// Steps done.
    pub steps: u64,
    /// Moves of the running statistics done.
    #[serde(default)]
    pub moves: u64,
    /// Sums over the epoch so far: descent loss, correct samples, samples.
    pub sums: [f64; 3],
    /// Best value of the recipe's metric on the validation split, and its epoch, counted from 0.
    pub best: Option<(f64, usize)>,
    /// Every metric of that epoch.
    #[serde(default)]
    pub best_scores: Option<Scores>,
    /// Validation loss of that epoch.
    #[serde(default)]
    pub best_loss: Option<f64>,
    /// Seconds of training so far.
    #[serde(default)]
    pub seconds: f64,
    /// Seconds of the epoch's steps so far.
    #[serde(default)]
    pub epoch_seconds: f64,
    /// Loss of the first step.
    #[serde(default)]
    pub first_loss: Option<f32>,
    /// The highest loss of a step, and which.
    #[serde(default)]
    pub highest_loss: Option<(f32, u64)>,
    /// The epoch that ended last, whole or with the run.
    #[serde(default)]
    pub last_epoch: Option<EpochReport>,
    /// Steps done when it ended.
    #[serde(default)]
    pub reported: u64,
}

/// Names of tensors in the order of a [`State`].
pub struct Names<'a> {
    /// Parameters.
    pub params: Vec<&'a str>,
    /// Statistics.
    pub stats: Vec<&'a str>,
}

const META: &str = "bisam";

/// Writes position, state and the best weights so far.
///
/// # Errors
/// An I/O error; the checkpoint before stays.
pub fn save(path: &Path, position: &Position, state: &State, best: Option<&State>, names: &Names<'_>) -> Result<()> {
    let mut tensors: Vec<(String, &[f32])> = Vec::new();
    collect(&mut tensors, "theta", "stats", state, names);
    for (i, optimizer) in state.optimizer.iter().enumerate() {
        tensors.extend(names.params.iter().zip(optimizer).map(|(n, t)| (format!("state{i}/{n}"), t.as_slice())));
    }
    if let Some(best) = best {
        collect(&mut tensors, "best/theta", "best/stats", best, names);
    }
    let mut views = Vec::with_capacity(tensors.len());
    for (name, data) in &tensors {
        let view = TensorView::new(Dtype::F32, vec![data.len()], bytemuck::cast_slice(data));
        views.push((name.as_str(), view.map_err(|e| Error::new(e.to_string()))?));
    }
    let position = Position { moves: state.moves, ..position.clone() };
    let json = serde_json::to_string(&position).map_err(|e| Error::new(e.to_string()))?;
    let bytes = safetensors::serialize(views, Some(HashMap::from([(META.to_owned(), json)])));
    write_atomically(path, &bytes.map_err(|e| Error::new(e.to_string()).in_file(path))?)
}

fn collect<'a>(to: &mut Vec<(String, &'a [f32])>, theta: &str, stats: &str, state: &'a State, names: &Names<'_>) {
    to.extend(names.params.iter().zip(&state.params).map(|(n, t)| (format!("{theta}/{n}"), t.as_slice())));
    to.extend(names.stats.iter().zip(&state.stats).map(|(n, t)| (format!("{stats}/{n}"), t.as_slice())));
}

/// Where the run is, by what [`save`] wrote.
///
/// # Errors
/// An I/O error, or a damaged file.
pub fn position(path: &Path) -> Result<Position> {
    read_position(&std::fs::read(path).file(path)?).map_err(|e| e.in_file(path))
}

fn read_position(bytes: &[u8]) -> Result<Position> {
    let damaged = |e: String| Error::new(format!("damaged checkpoint: {e}"));
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(e.to_string()))?;
    let json = header.metadata().as_ref().and_then(|m| m.get(META)).ok_or_else(|| damaged("no position".into()))?;
    serde_json::from_str(json).map_err(|e| damaged(e.to_string()))
}

/// Reads what [`save`] wrote; `states` is the number of optimizer states.
///
/// # Errors
/// An I/O error, a damaged file, or one of another model.
pub fn load(path: &Path, names: &Names<'_>, states: usize) -> Result<(Position, State, Option<State>)> {
    let bytes = std::fs::read(path).file(path)?;
    let position = read_position(&bytes).map_err(|e| e.in_file(path))?;
    let damaged = |e: String| Error::new(format!("damaged checkpoint: {e}")).in_file(path);
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
    let read = |name: String| -> Result<Vec<f32>> {
        let view =
            file.tensor(&name).map_err(|_| Error::new(format!("the checkpoint has no `{name}`")).in_file(path))?;
        Ok(bytemuck::pod_collect_to_vec(view.data()))
    };
    let all =
        |prefix: &str, names: &[&str]| names.iter().map(|n| read(format!("{prefix}/{n}"))).collect::<Result<Vec<_>>>();
    let state = State {
        params: all("theta", &names.params)?,
        stats: all("stats", &names.stats)?,
        optimizer: (0..states).map(|i| all(&format!("state{i}"), &names.params)).collect::<Result<_>>()?,
        steps: position.steps,
        moves: position.moves,
    };
    let best = if position.best.is_some() {
        let (params, stats) = (all("best/theta", &names.params)?, all("best/stats", &names.stats)?);
        Some(State { params, stats, ..State::default() })
    } else {
        None
    };
    Ok((position, state, best))
}
