//! `bisam inspect`: what a model is, what a step on it costs, and what stands in the way of training it.

use super::page::{Cell, Page, Tone, bytes, cell, count, number, shape, shorten};
use super::{Global, at_least_one, write_out};
use crate::error::{Error, Result};
use crate::onnx::import;
use crate::step::Form;
use crate::step::account::Account;
use crate::step::cost::{Activation, Cost};
use crate::step::placement::Fallback;
use crate::step::report::{
    Edge, Gradient, Inspection, Neighbourhood, Normalization, Operator, Port, Report, Tensor, Used,
};
use crate::trace::{Evaluator, Sizes};
use serde::Serialize;
use std::path::PathBuf;

/// Rows of a list before it is cut.
const ROWS: usize = 24;

/// Width of a name in a table.
const NAME: usize = 40;

/// Show what a model is, what a step costs, and what stands in the way of training it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ONNX file.
    model: PathBuf,
    /// Samples in a batch.
    #[arg(long, default_value_t = 32, value_parser = at_least_one)]
    batch: usize,
    /// Size of a dimension that the file leaves open; may be given several times.
    #[arg(long, value_name = "NAME=SIZE", value_parser = dimension)]
    dim: Vec<(String, usize)>,
    /// The output, or a value inside, that holds the logits or probabilities; found among the outputs by default.
    #[arg(long, value_name = "NAME")]
    logits: Option<String>,
    /// Show one node's neighbourhood instead; the name of the node or of one of its outputs.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

/// Reads `NAME=SIZE`.
///
/// # Errors
/// Anything else.
pub(super) fn dimension(text: &str) -> Result<(String, usize)> {
    let parts = text.split_once('=').and_then(|(n, s)| Some((n.to_owned(), s.parse().ok().filter(|s| *s > 0)?)));
    parts.ok_or_else(|| Error::new("it must be NAME=SIZE with a positive size"))
}

/// Runs the command.
///
/// # Errors
/// A file that cannot be imported, or an unknown node. A model that does not run is shown as far as it is known.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let model = import(&args.model)?;
    let sizes = Sizes { batch: args.batch, dims: args.dim.iter().cloned().collect(), ..Sizes::default() };
    let engine = global.engine();
    let run = engine.as_ref().map(|e| e as &dyn Evaluator).map_err(Clone::clone);
    let inspection = Inspection::new(&model, &sizes, args.logits.as_deref(), run);
    if let Some(name) = &args.node {
        let node = inspection.node(name)?;
        return print(global, &node, |page| neighbourhood(page, &node));
    }
    let report = inspection.report();
    print(global, &report, |page| overview(page, &report, global.verbose))
}

/// Prints `value` as JSON, or the page that `show` lays out.
pub(super) fn print<T: Serialize>(global: &Global, value: &T, show: impl FnOnce(&mut Page)) -> Result<()> {
    let text = if global.json {
        serde_json::to_string_pretty(value).map_err(|e| Error::new(format!("cannot write JSON: {e}")))? + "\n"
    } else {
        let mut page = Page::stdout();
        show(&mut page);
        page.into_text()
    };
    write_out(&text)
}

fn overview(page: &mut Page, r: &Report, all: bool) {
    let title = page.paint(&r.file, Tone::Bold);
    page.line(&title);
    let opsets: Vec<String> = r.opsets.iter().map(|(d, v)| format!("{d} {v}")).collect();
    let producer = if r.producer.is_empty() { "unknown producer" } else { &r.producer };
    page.line(&format!("{producer} · IR {} · opset {}", r.ir_version, opsets.join(", ")));
    ports(page, r);
    parameters(page, r, all);
    r.account.iter().for_each(|a| account(page, a));
    operators(page, &r.operators);
    page.section("Normalization", "");
    for (text, tone) in normalization(&r.normalization) {
        let text = page.paint(&text, tone);
        page.line(&format!("  {text}"));
    }
    if let Some(c) = &r.cost {
        step_cost(page, c);
        activations(page, c, all);
    }
    if let Some(nodes) = &r.off_cuda {
        on_cuda(page, nodes);
    }
    problems(page, r);
}

fn ports(page: &mut Page, r: &Report) {
    page.section("Inputs and outputs", "");
    let row = |kind: &str, p: &Port| {
        let at = p.shape.as_ref().map_or(String::new(), |s| format!("→ {}", shape(s)));
        let dims = if p.dims.is_empty() { String::new() } else { p.dims.join("×") };
        vec![cell(kind).tone(Tone::Dim), cell(&p.name), cell(&p.dtype), cell(dims), cell(at).tone(Tone::Dim)]
    };
    let rows: Vec<_> = r.inputs.iter().map(|p| row("in", p)).chain(r.outputs.iter().map(|p| row("out", p))).collect();
    page.table(&rows);
    if let Some(l) = &r.logits {
        let through =
            if l.behind.is_empty() { String::new() } else { format!(", seen through {}", l.behind.join(", ")) };
        let of = if l.behind.is_empty() { l.output.clone() } else { format!("{} of {}", l.value, l.output) };
        let form = match l.form {
            Form::Scores | Form::Softmax => "",
            Form::LogOdds => ", as the log-odds of class 1",
            Form::LogOddsOfFirst => ", as the log-odds of class 0",
            Form::Probabilities => ", by the logarithm of these probabilities",
            Form::Probability => ", by the logarithm of this probability of class 1",
        };
        page.line(&format!("  logits  {of}: {}{through}{form}", crate::wording::count(l.classes, "class")));
        if !l.others.is_empty() {
            let text = format!("  not {} (--logits NAME chooses)", l.others.join(", "));
            let text = page.paint(&text, Tone::Dim);
            page.line(&format!("        {text}"));
        }
    }
    if !r.left_out.is_empty() {
        let text = format!("{} passed over in training, and kept in the file", r.left_out.join(", "));
        let text = page.paint(&text, Tone::Dim);
        page.line(&format!("  {text}"));
    }
}

fn parameters(page: &mut Page, r: &Report, all: bool) {
    let total = |role: Used| r.tensors.iter().filter(|t| t.role == role).fold((0, 0), |n, t| (n.0 + 1, n.1 + t.count));
    let (n, elements) = total(Used::Trained);
    page.section("Parameters", &format!("{} in {n} tensors", count(elements as u64)));
    let rows = parameter_rows(&r.tensors, all);
    let hidden = if all { 0 } else { rows.len().saturating_sub(ROWS) };
    page.table(&rows[..rows.len() - hidden]);
    let mut notes = Vec::new();
    if hidden > 0 {
        notes.push(format!("… and {hidden} more rows"));
    }
    for (role, what) in [(Used::RunningStatistic, "running statistics"), (Used::Constant, "constants")] {
        let (n, elements) = total(role);
        if n > 0 && !all {
            notes.push(format!("{n} {what} ({})", count(elements as u64)));
        }
    }
    if !notes.is_empty() {
        let text = page.paint(&format!("{}  (-v lists them)", notes.join(" · ")), Tone::Dim);
        page.line(&format!("  {text}"));
    }
    if let Some(half) = r.tensors.iter().find(|t| t.role == Used::Trained && matches!(t.dtype.as_str(), "f16" | "bf16"))
    {
        page.line(&format!("  stored as {}: computed and trained in f32, written back as they were", half.dtype));
    }
    if !r.merged.is_empty() {
        let mut from: Vec<&str> = r.merged.iter().map(|m| m.initializer.as_str()).collect();
        from.sort_unstable();
        from.dedup();
        page.line(&format!(
            "  {} parameters and statistics had been merged into {} by the exporter; they are trained apart",
            r.merged.len(),
            from.len()
        ));
    }
}

/// What is trained, as a sum; loudly where much stays fixed.
fn account(page: &mut Page, account: &Account) {
    page.line(&format!("  {}", account.summary()));
    if let Some(warning) = account.warning() {
        let text = page.paint(&warning, Tone::Bad);
        page.line(&format!("  {text}"));
    }
    account.notes.iter().for_each(|note| page.line(&format!("  {note}")));
}

/// A row per tensor, or per group of tensors whose names differ in numbers only.
fn parameter_rows(tensors: &[Tensor], all: bool) -> Vec<Vec<Cell>> {
    let trained = tensors.iter().filter(|t| t.role == Used::Trained).count();
    let grouped = !all && trained > ROWS;
    let mut groups: Vec<(String, &Tensor, usize)> = Vec::new();
    for t in tensors.iter().filter(|t| all || t.role == Used::Trained) {
        let alike = |g: &&mut (String, &Tensor, usize)| {
            grouped && numbers_as(&g.0, "*") == numbers_as(&t.name, "*") && g.1.shape == t.shape
        };
        match groups.iter_mut().find(alike) {
            Some(group) => *group = (differing(&group.0, &t.name), group.1, group.2 + 1),
            None => groups.push((t.name.clone(), t, 1)),
        }
    }
    let row = |(name, t, n): (String, &Tensor, usize)| {
        let (role, tone) = match t.role {
            Used::Trained => ("trained", Tone::Good),
            Used::RunningStatistic => ("statistic", Tone::Plain),
            Used::Constant => ("constant", Tone::Dim),
        };
        let times = if n > 1 { format!("×{n}") } else { String::new() };
        vec![
            cell(shorten(&name, NAME)),
            number(times).tone(Tone::Dim),
            cell(shape(&t.shape)),
            number(count((t.count * n) as u64)),
            cell(role).tone(tone),
            cell(shorten(&t.reason, NAME)).tone(Tone::Dim),
        ]
    };
    groups.into_iter().map(row).collect()
}

/// A name taken apart into numbers (`*` is one) and what is between them.
fn parts(name: &str) -> Vec<&str> {
    let is_number = |c: char| c.is_ascii_digit() || c == '*';
    let mut parts = Vec::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| is_number(c) != is_number(first)).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        parts.push(part);
        rest = after;
    }
    parts
}

/// The name with `with` for every number.
fn numbers_as(name: &str, with: &str) -> String {
    parts(name).iter().map(|p| if p.starts_with(|c: char| c.is_ascii_digit() || c == '*') { with } else { p }).collect()
}

/// The name with `*` for the numbers in which two names of the same form differ.
fn differing(a: &str, b: &str) -> String {
    parts(a).into_iter().zip(parts(b)).map(|(a, b)| if a == b { a } else { "*" }).collect()
}

fn operators(page: &mut Page, operators: &[Operator]) {
    let nodes: usize = operators.iter().map(|o| o.count).sum();
    page.section("Operators", &format!("{nodes} nodes"));
    let row = |o: &Operator| {
        let (text, tone) = match (o.gradient, &o.reason) {
            (Gradient::Yes, _) => ("yes".to_owned(), Tone::Good),
            (Gradient::None, why) => (format!("no gradient: {}", why.as_deref().unwrap_or("")), Tone::Dim),
            (Gradient::Missing, _) => (format!("MISSING, and {} of them need it", o.needed), Tone::Bad),
            (Gradient::Unneeded, _) => ("no rule, and none is needed".to_owned(), Tone::Dim),
        };
        vec![cell(&o.operator), number(o.count.to_string()), cell(text).tone(tone)]
    };
    let rows: Vec<_> = operators.iter().map(row).collect();
    page.table(&rows);
}

fn normalization(n: &Normalization) -> Vec<(String, Tone)> {
    let mut lines = Vec::new();
    if n.training > 0 {
        lines.push((format!("{} BatchNormalization, exported in training mode", n.training), Tone::Plain));
    }
    if n.evaluation > 0 {
        let text =
            format!("{} BatchNormalization, exported in evaluation mode; training switches them over", n.evaluation);
        lines.push((text, Tone::Plain));
    }
    if n.conv_with_bias > 0 {
        let text = format!(
            "no live normalization; {} Conv with a bias: BatchNormalization may have been folded into them",
            n.conv_with_bias
        );
        lines.push((text, Tone::Warn));
        lines.push(("(torch.onnx.export with training=TRAINING or PRESERVE keeps it live)".into(), Tone::Dim));
    }
    lines.extend(n.others.iter().map(|(op, count)| (format!("{count} {op}"), Tone::Plain)));
    if lines.is_empty() {
        lines.push(("no normalization layers".into(), Tone::Plain));
    }
    lines
}

fn step_cost(page: &mut Page, c: &Cost) {
    page.section("Cost", &format!("batch of {}", c.batch));
    let samples = c.batch.max(1) as u64;
    let mut rows = vec![
        vec![
            cell("forward"),
            number(count(c.forward_multiply_adds / samples)),
            cell("multiply-adds a sample (convolutions and matrix products)").tone(Tone::Dim),
        ],
        vec![
            cell("gradient"),
            number(count(c.gradient_flops)),
            cell("FLOP: three times the forward pass").tone(Tone::Dim),
        ],
        vec![
            cell("step"),
            number(count(c.step_flops)),
            cell("FLOP with a perturbation: two gradients").tone(Tone::Dim),
        ],
        vec![
            cell("parameters"),
            number(bytes(c.parameter_bytes)),
            cell("as much again each for perturbed weights, gradient and momentum").tone(Tone::Dim),
        ],
    ];
    if let (Some(kept), Some(peak)) = (c.activation_bytes, c.peak_bytes) {
        let row = |what: &str, n: u64, note: &str| vec![cell(what), number(bytes(n)), cell(note).tone(Tone::Dim)];
        rows.push(row("activations", kept, "kept from the forward pass for the backward pass"));
        rows.push(row("peak", peak, "alive at once, before ONNX Runtime reuses memory (estimate)"));
    }
    if let Some(again) = c.recompute.filter(|r| Some(r.activation_bytes) < c.activation_bytes) {
        let note = format!("kept with --recompute, at a peak of {}", bytes(again.peak_bytes));
        rows.push(vec![cell("recompute"), number(bytes(again.activation_bytes)), cell(note).tone(Tone::Dim)]);
    }
    page.table(&rows);
}

/// The forward values that are kept longest and largest, each with the part of the step that it is alive for.
fn activations(page: &mut Page, c: &Cost, all: bool) {
    if c.activations.is_empty() {
        return;
    }
    page.section("Activations", &format!("{} kept over {} nodes", c.activations.len(), c.nodes));
    let shown = if all { c.activations.len() } else { c.activations.len().min(ACTIVATIONS) };
    let row = |a: &Activation| {
        vec![
            cell(shorten(&a.value, NAME)),
            cell(&a.ty),
            number(bytes(a.bytes)),
            cell(bar(a.from, a.to, c.nodes)),
            cell(format!("{} … {}", a.made_by, a.last_read_by)).tone(Tone::Dim),
        ]
    };
    let rows: Vec<_> = c.activations[..shown].iter().map(row).collect();
    page.table(&rows);
    let hidden = &c.activations[shown..];
    if !hidden.is_empty() {
        let rest = hidden.iter().map(|a| a.bytes).sum();
        let text = page.paint(&format!("… and {} more, {}  (-v lists them)", hidden.len(), bytes(rest)), Tone::Dim);
        page.line(&format!("  {text}"));
    }
}

/// Activations before the list is cut.
const ACTIVATIONS: usize = 8;

/// A line for the nodes from `from` to `to` of `n`.
fn bar(from: usize, to: usize, n: usize) -> String {
    const CELLS: usize = 20;
    let at = |i: usize| (i * CELLS / n.max(1)).min(CELLS - 1);
    (0..CELLS).map(|i| if (at(from)..=at(to)).contains(&i) { '━' } else { '·' }).collect()
}

/// Whether a step would run on a CUDA device as a whole.
fn on_cuda(page: &mut Page, nodes: &[Fallback]) {
    if nodes.is_empty() {
        page.section("CUDA", "");
        let text = page.paint("✓ every node of a step has a kernel there", Tone::Good);
        page.line(&format!("  {text}"));
        return;
    }
    page.section("CUDA", &format!("{} nodes of a step would run on the host", nodes.len()));
    let row = |f: &Fallback| vec![cell(&f.operator), cell(shorten(&f.node, NAME)), cell(&f.reason).tone(Tone::Dim)];
    let rows: Vec<_> = nodes.iter().take(ROWS).map(row).collect();
    page.table(&rows);
    if nodes.len() > ROWS {
        page.line(&format!("  … and {} more (--json lists them)", nodes.len() - ROWS));
    }
}

fn problems(page: &mut Page, r: &Report) {
    if r.problems.is_empty() {
        page.section("Training", "");
        let loud = r.account.as_ref().and_then(Account::warning).is_some();
        let (text, tone) = if loud {
            ("it trains, but see the warning above", Tone::Warn)
        } else {
            ("✓ nothing stands in the way", Tone::Good)
        };
        let text = page.paint(text, tone);
        page.line(&format!("  {text}"));
        r.notes.iter().for_each(|n| page.line(&format!("  note: {n}")));
        return;
    }
    page.section("What stands in the way of training", &r.problems.len().to_string());
    for p in r.problems.iter().take(ROWS) {
        let mark = page.paint("✗", Tone::Bad);
        page.line(&format!("  {mark} {}", p.cause));
        if let Some(hint) = &p.hint {
            let text = page.paint(&format!("hint: {hint}"), Tone::Dim);
            page.line(&format!("    {text}"));
        }
    }
    if r.problems.len() > ROWS {
        page.line(&format!("  … and {} more (--json lists them)", r.problems.len() - ROWS));
    }
}

fn neighbourhood(page: &mut Page, n: &Neighbourhood) {
    let title = page.paint(&n.operator, Tone::Bold);
    page.line(&format!("{title} {}", n.name));
    page.line(&format!("gradient: {}", n.gradient));
    if !n.attributes.is_empty() {
        page.section("Attributes", "");
        let rows: Vec<_> = n.attributes.iter().map(|(k, v)| vec![cell(k), cell(v)]).collect();
        page.table(&rows);
    }
    let ty = |e: &Edge| e.ty.clone().unwrap_or_else(|| "?".into());
    page.section("Inputs", &n.inputs.len().to_string());
    let row = |(i, e): (usize, &Option<Edge>)| match e {
        None => vec![number(i.to_string()).tone(Tone::Dim), cell("(left out)").tone(Tone::Dim)],
        Some(e) => {
            let from = cell(format!("← {}", e.producer)).tone(Tone::Dim);
            vec![number(i.to_string()).tone(Tone::Dim), cell(&e.value), cell(ty(e)), from]
        }
    };
    let rows: Vec<_> = n.inputs.iter().enumerate().map(row).collect();
    page.table(&rows);
    page.section("Outputs", &n.outputs.len().to_string());
    let mut rows = Vec::new();
    for (i, e) in n.outputs.iter().enumerate() {
        let Some(e) = e else { continue };
        let first = e.consumers.first().map_or_else(|| "nothing reads it".into(), |c| format!("→ {c}"));
        rows.push(vec![
            number(i.to_string()).tone(Tone::Dim),
            cell(&e.value),
            cell(ty(e)),
            cell(first).tone(Tone::Dim),
        ]);
        for c in e.consumers.iter().skip(1) {
            rows.push(vec![cell(""), cell(""), cell(""), cell(format!("→ {c}")).tone(Tone::Dim)]);
        }
    }
    page.table(&rows);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_numbers_are_one_group() {
        assert_eq!(numbers_as("layers.10.conv1.weight", "*"), "layers.*.conv*.weight");
        assert_eq!(differing("layers.9.conv1.weight", "layers.10.conv1.weight"), "layers.*.conv1.weight");
        assert_eq!(differing("layers.*.conv1.weight", "layers.3.conv2.weight"), "layers.*.conv*.weight");
    }

    #[test]
    fn sizes_are_positive() {
        assert_eq!(dimension("sequence=12").ok(), Some(("sequence".into(), 12)));
        assert!(dimension("sequence").is_err() && dimension("a=0").is_err());
    }
}
