//! Which parameters are trained, by glob patterns on their names.

use crate::error::{Error, Result};
use crate::ir::{Graph, Source};
use globset::{Glob, GlobSet, GlobSetBuilder};

/// Patterns as the user gives them: `layer1.*`, `*.bias`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Selection {
    /// Parameters that match are left as they are.
    #[serde(default)]
    pub freeze: Vec<String>,
    /// When not empty, only parameters that match are trained.
    #[serde(default)]
    pub train_only: Vec<String>,
}

/// Turns parameters that are not selected into constants; returns how many parameters stay.
///
/// # Errors
/// A malformed pattern, one that matches no parameter, or a selection that leaves nothing to train.
pub fn freeze(graph: &mut Graph, selection: &Selection) -> Result<usize> {
    let params = graph.params();
    let names: Vec<&str> = params.iter().map(|v| graph[*v].name.as_str()).collect();
    let (frozen, only) = (globs(&selection.freeze, &names)?, globs(&selection.train_only, &names)?);
    let stays = |name: &str| !frozen.is_match(name) && (only.is_empty() || only.is_match(name));
    let out: Vec<_> = params.iter().copied().filter(|v| !stays(&graph[*v].name)).collect();
    let left = params.len() - out.len();
    if left == 0 {
        return Err(Error::new("no parameter is left to train")
            .hint("`bisam inspect` lists the parameters; check --freeze and --train-only"));
    }
    for v in out {
        if let Some(tensor) = graph.param(v).cloned() {
            graph.set_source(v, Source::Constant(tensor));
        }
    }
    Ok(left)
}

fn globs(patterns: &[String], names: &[&str]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = Glob::new(pattern).map_err(|e| Error::new(format!("pattern `{pattern}`: {e}")))?;
        let matcher = glob.compile_matcher();
        if !names.iter().any(|n| matcher.is_match(n)) {
            return Err(Error::new(format!("pattern `{pattern}` matches no parameter"))
                .hint("`bisam inspect` lists the parameters; `*` stands for any characters"));
        }
        set.add(glob);
    }
    set.build().map_err(|e| Error::new(e.to_string()))
}
