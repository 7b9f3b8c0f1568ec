//! `docs/operators.md` is generated from the table of gradient rules and the rules' own documentation.

use crate::common::repo;
use crate::snapshot;
use bisam::autodiff::table::{CLASSICAL, Entry, FUSED, MICROSOFT, TABLE};
use std::collections::BTreeMap;
use std::fmt::Write;

const INTRODUCTION: &str = "\
# Operators

Generated from `src/autodiff/table.rs` and the rules it names; `BISAM_UPDATE=1 cargo test docs` writes it anew.

A bar marks the cotangent of a value: X̄ = ∂L/∂X. A model with an operator that is not listed can be trained as long as no
parameter reaches it; otherwise `bisam inspect` names the node. Versions are those of the equations; older ones are upgraded
on import. Written out on import as other operators are Swish from opset 25 on and SwiGLU, which ONNX Runtime has no kernel for, recurrent
layers whose batch comes first, and the experiments of old files: Affine, Crop, DynamicSlice, ImageScaler, ParametricSoftplus, Scale,
ScaledTanh. \"Cases\" are ONNX's own backend tests of the operator and of its function body: those with a right gradient, of all;
[conformance.md](conformance.md) says why the others are left out (most have no float that depends on a float).
";

#[test]
fn operators_are_current() {
    let table = std::fs::read_to_string(repo("src/autodiff/table.rs")).expect("reads");
    let mut out = String::from(INTRODUCTION);
    out.push_str(&families(&table, "TABLE", TABLE, "##"));
    let count = |f: fn(&Entry) -> bool| TABLE.iter().filter(|(_, e)| f(e)).count();
    let _ = write!(
        out,
        "\n{} operators have a gradient rule or are written out as operators that have one, {} have none by their nature.\n",
        count(|e| matches!(e, Entry::Rule(_) | Entry::Lower(_))),
        count(|e| matches!(e, Entry::NoGradient(_)))
    );
    out.push_str("\n## Domain bisam\n\nFused operators with kernels of this crate.\n");
    out.push_str(&families(&table, "FUSED", FUSED, "###"));
    out.push_str("\n## Domain com.microsoft\n\nWhat ONNX Runtime's optimizers write into a model.\n");
    out.push_str(&families(&table, "MICROSOFT", MICROSOFT, "###"));
    out.push_str("\n## Domain ai.onnx.ml\n\nWhat was learned before networks, and their preprocessing.\n");
    out.push_str(&families(&table, "CLASSICAL", CLASSICAL, "###"));
    snapshot::check("docs/operators.md", &out);
}

/// The operators of a table by family, under headings of level `level`.
fn families(source: &str, name: &str, table: &[(&str, Entry)], level: &str) -> String {
    let (mut out, mut seen) = (String::new(), Vec::new());
    let figures = if name == "TABLE" { conformance() } else { BTreeMap::new() };
    let (title, rule) = if figures.is_empty() { ("", "") } else { (" cases |", "---|") };
    let header = |head: &str| format!("\n| operator | {head} |{title}\n|---|---|{rule}\n");
    for line in source.lines().skip_while(|l| !l.contains(&format!("const {name}"))) {
        let line = line.trim();
        if let Some(family) = line.strip_prefix("// ") {
            let family = family.trim_end_matches('.');
            let head = if matches!(family, "No gradient" | "Refused") { "why" } else { "rule" };
            let _ = write!(out, "\n{level} {family}\n{}", header(head));
        } else if let Some((operator, entry)) = line.strip_prefix("(\"").and_then(|l| l.split_once("\", ")) {
            let rule = entry.split_once("R(").or_else(|| entry.split_once("L(")).and_then(|(_, r)| r.split_once("::"));
            let text = match rule {
                Some((module, rule)) => documentation(module, rule.trim_end_matches([')', ','])),
                None => entry.split('"').nth(1).expect("a reason").to_owned(),
            };
            if out.is_empty() {
                out.push_str(&header("rule"));
            }
            let cases = figures.get(operator).map_or("", String::as_str);
            let cases = if figures.is_empty() { String::new() } else { format!(" {cases} |") };
            let _ = writeln!(out, "| {operator} | {} |{cases}", text.replace('|', "\\|"));
            seen.push(operator.to_owned());
        } else if line == "];" {
            break;
        }
    }
    let listed: Vec<&str> = table.iter().map(|(op, _)| *op).collect();
    assert_eq!(seen, listed, "the table is not laid out one operator per line");
    out
}

/// For each operator, in how many of ONNX's backend cases the gradient is right, and how many there are.
fn conformance() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(repo("docs/conformance.md")).expect("reads");
    let mut figures: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, operator, cases, _, right, _] = cells.as_slice() else { continue };
        let (Ok(cases), Ok(right)) = (cases.parse::<usize>(), right.parse::<usize>()) else { continue };
        let sum = figures.entry(operator.trim_end_matches(" (function body)").to_owned()).or_default();
        (sum[0], sum[1]) = (sum[0] + right, sum[1] + cases);
    }
    figures.into_iter().map(|(operator, [right, cases])| (operator, format!("{right} of {cases}"))).collect()
}

/// The first paragraph of a rule's documentation.
fn documentation(module: &str, rule: &str) -> String {
    let source = std::fs::read_to_string(repo(&format!("src/autodiff/{module}.rs"))).expect("reads");
    let before = source.split(&format!("fn {rule}(")).next().expect("the rule");
    let mut lines: Vec<&str> =
        before.lines().rev().skip(1).take_while(|l| l.starts_with("///")).map(|l| l[3..].trim()).collect();
    lines.reverse();
    let first: Vec<&str> = lines.into_iter().take_while(|l| !l.is_empty()).collect();
    assert!(!first.is_empty(), "{module}::{rule} is not documented");
    first.join(" ")
}
