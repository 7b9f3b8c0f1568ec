//! `bisam ops`: the operators this engine knows the gradient of.

use super::Global;
use super::inspect::print;
use super::page::{Tone, cell};
use crate::autodiff::table::{Entry, tables};
use crate::error::Result;
use serde::Serialize;

/// Arguments of `ops`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show only operators whose name contains this, in any case
    filter: Option<String>,
}

#[derive(Serialize)]
struct Row {
    operator: &'static str,
    domain: &'static str,
    /// `rule`, `lowered`, `none` or `refused`.
    gradient: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// Runs the command.
///
/// # Errors
/// When stdout cannot be written to.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let filter = args.filter.clone().unwrap_or_default().to_lowercase();
    let all =
        tables().into_iter().flat_map(|(domain, table)| table.iter().map(move |(op, entry)| (domain, *op, *entry)));
    let row = |(domain, operator, entry): (&'static str, &'static str, Entry)| {
        let (gradient, reason) = match entry {
            Entry::Rule(_) => ("rule", None),
            Entry::Lower(_) => ("lowered", None),
            Entry::NoGradient(why) => ("none", Some(why)),
            Entry::Refused(why) => ("refused", Some(why)),
        };
        Row { operator, domain, gradient, reason }
    };
    let rows: Vec<Row> = all.filter(|(_, op, _)| op.to_lowercase().contains(&filter)).map(row).collect();
    print(global, &rows, |page| {
        let line = |r: &Row| {
            let name =
                if r.domain == "ai.onnx" { r.operator.to_owned() } else { format!("{}.{}", r.domain, r.operator) };
            let (text, tone) = match (r.gradient, r.reason) {
                ("rule", _) => ("its own rule".to_owned(), Tone::Good),
                ("lowered", _) => ("written out as operators that have one".to_owned(), Tone::Good),
                ("none", why) => (format!("no gradient: {}", why.unwrap_or_default()), Tone::Dim),
                (_, why) => (format!("refused: {}", why.unwrap_or_default()), Tone::Warn),
            };
            vec![cell(name), cell(text).tone(tone)]
        };
        page.section("Operators", &format!("{} with a gradient", rows.iter().filter(|r| r.reason.is_none()).count()));
        page.table(&rows.iter().map(line).collect::<Vec<_>>());
    })
}
