//! `docs/operators.md` is generated from the table of gradient rules and the rules' own documentation.

use crate::common::repo;
use crate::snapshot;
use bisam::autodiff::table::{Entry, FUSED, TABLE};
use std::fmt::Write;

const INTRODUCTION: &str = "\
# Operators

Generated from `src/autodiff/table.rs` and the rules it names; `BISAM_UPDATE=1 cargo test docs` writes it anew.

A bar marks the cotangent of a value: X̄ = ∂L/∂X. A model with an operator that is not listed can be trained as long as no
parameter reaches it; otherwise `bisam inspect` names the node. Versions are those of the equations; older ones are upgraded
on import.
";

#[test]
fn operators_are_current() {
    let table = std::fs::read_to_string(repo("src/autodiff/table.rs")).expect("reads");
    let mut out = String::from(INTRODUCTION);
    let mut seen = Vec::new();
    let mut fused = String::new();
    for line in table.lines().skip_while(|l| !l.contains("const FUSED")) {
        if let Some((operator, entry)) = line.trim().strip_prefix("(\"").and_then(|l| l.split_once("\", ")) {
            let rule = entry.split_once("fuse::").map_or(entry, |(_, r)| r.trim_end_matches([')', ',']));
            let _ = writeln!(fused, "| {operator} | {} |", documentation("fuse", rule).replace('|', "\\|"));
        } else if line == "];" {
            break;
        }
    }
    assert_eq!(fused.lines().count(), FUSED.len(), "the table is not laid out one operator per line");
    for line in table.lines().skip_while(|l| !l.contains("const TABLE")) {
        let line = line.trim();
        if let Some(family) = line.strip_prefix("// ") {
            let family = family.trim_end_matches('.');
            let head = if matches!(family, "No gradient" | "Refused") { "Why" } else { "Rule" };
            let _ = write!(out, "\n## {family}\n\n| operator | {head} |\n|---|---|\n", head = head.to_lowercase());
        } else if let Some((operator, entry)) = line.strip_prefix("(\"").and_then(|l| l.split_once("\", ")) {
            let text =
                match entry.split_once("R(").or_else(|| entry.split_once("L(")).and_then(|(_, r)| r.split_once("::")) {
                    Some((module, rule)) => documentation(module, rule.trim_end_matches([')', ','])),
                    None => entry.split('"').nth(1).expect("a reason").to_owned(),
                };
            let _ = writeln!(out, "| {operator} | {} |", text.replace('|', "\\|"));
            seen.push(operator.to_owned());
        } else if line == "];" {
            break;
        }
    }
    let listed: Vec<&str> = TABLE.iter().map(|(op, _)| *op).collect();
    assert_eq!(seen, listed, "the table is not laid out one operator per line");
    let count = |f: fn(&Entry) -> bool| TABLE.iter().filter(|(_, e)| f(e)).count();
    let _ = write!(
        out,
        "\n{} operators have a gradient rule or are written out as operators that have one, {} have none by their nature.\n",
        count(|e| matches!(e, Entry::Rule(_) | Entry::Lower(_))),
        count(|e| matches!(e, Entry::NoGradient(_)))
    );
    let _ = write!(
        out,
        "\n## Domain bisam\n\nFused operators with kernels of this crate.\n\n| operator | rule |\n|---|---|\n{fused}"
    );
    snapshot::check("docs/operators.md", &out);
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
