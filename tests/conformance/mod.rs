//! ONNX's own backend tests, all of them: `make conformance`.
//!
//! It writes `docs/conformance.md`: by operator, how many cases there are, in how many the emitted graph gives the same outputs
//! and in how many the gradient is right, and every case left out with its reason. `BISAM_CASES=text` runs those whose name
//! contains it, and writes nothing.

pub mod case;

use crate::common::repo;
use case::{Outcome, Report};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// The cases of some groups: a folder each, or a file for a whole network without recorded inputs.
fn cases(groups: &[&str], filter: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for group in groups {
        let folder = repo(".conformance").join(group);
        let entries = std::fs::read_dir(&folder).expect("run `make conformance`, which fetches the cases");
        let case = |p: &PathBuf| p.join("model.onnx").is_file() || p.extension().is_some_and(|e| e == "onnx");
        all.extend(entries.flatten().map(|e| e.path()).filter(case));
    }
    all.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().contains(filter)));
    all.sort();
    all
}

/// Runs cases and prints what is not right.
fn run(groups: &[&str], filter: &str) -> Vec<(String, Report)> {
    let mut reports: Vec<(String, Report)> = Vec::new();
    for path in cases(groups, filter) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if std::env::var_os("BISAM_VERBOSE").is_some() {
            eprintln!("{name}");
        }
        let report = case::run(&path);
        for (what, outcome) in [("forward", &report.forward), ("gradient", &report.gradient)] {
            match outcome {
                Outcome::Wrong(why) => println!("WRONG {name} ({}) {what}: {why}", report.operator),
                Outcome::Refused(why) => println!("refused {name} {what}: {why}"),
                Outcome::LeftOut(why) if !filter.is_empty() => println!("left out {name} {what}: {why}"),
                _ => {}
            }
        }
        reports.push((name, report));
    }
    reports
}

fn wrong(reports: &[(String, Report)]) -> Vec<&str> {
    let wrong = |r: &Report| matches!(r.forward, Outcome::Wrong(_)) || matches!(r.gradient, Outcome::Wrong(_));
    reports.iter().filter(|(_, r)| wrong(r)).map(|(n, _)| n.as_str()).collect()
}

/// The cases of operators at every operator set from 7 on that has another version of them: what ONNX Runtime makes of them there.
#[test]
#[ignore = "reads the cases that `make conformance` fetches"]
fn cases_at_other_operator_sets() {
    let reports = run(&["versions"], &std::env::var("BISAM_CASES").unwrap_or_default());
    let wrong = wrong(&reports);
    assert!(wrong.is_empty(), "{} of {} cases are wrong: {}", wrong.len(), reports.len(), wrong.join(" "));
}

#[test]
#[ignore = "reads the cases that `make conformance` fetches"]
fn onnx_backend_cases() {
    let filter = std::env::var("BISAM_CASES").unwrap_or_default();
    let reports = run(&["node", "simple", "pytorch-operator", "pytorch-converted", "light"], &filter);
    let page = page(&reports);
    if filter.is_empty() {
        std::fs::write(repo("docs/conformance.md"), page).expect("writes");
    }
    let wrong = wrong(&reports);
    assert!(wrong.is_empty(), "{} of {} cases are wrong: {}", wrong.len(), reports.len(), wrong.join(" "));
    let refused = refused(&reports);
    assert!(!filter.is_empty() || refused * 100 <= reports.len(), "{refused} of {} cases are refused", reports.len());
}

/// How many cases have a gradient that this crate does not give.
fn refused(reports: &[(String, Report)]) -> usize {
    reports.iter().filter(|(_, r)| matches!(r.gradient, Outcome::Refused(_))).count()
}

/// One of the checks of a case.
type Check = fn(&Report) -> &Outcome;

fn page(reports: &[(String, Report)]) -> String {
    let right = |f: Check, rs: &[&Report]| rs.iter().filter(|r| *f(r) == Outcome::Right).count();
    let (forward, gradient): (Check, Check) = (|r| &r.forward, |r| &r.gradient);
    let mut by_operator: BTreeMap<&str, Vec<&Report>> = BTreeMap::new();
    for (_, r) in reports {
        by_operator.entry(&r.operator).or_default().push(r);
    }
    let all: Vec<&Report> = reports.iter().map(|(_, r)| r).collect();
    let mut out = String::from(
        "# Conformance\n\nWritten by `make conformance` from the backend tests of the Python package `onnx` 1.23.2, those of operators \
         made by its own generators.\n\n\
         Forward: the graph, imported and emitted again, gives the outputs of the file, or, where ONNX Runtime has no kernel for the \
         file, the recorded ones. Gradient: of every float input, against central differences of the graph's own outputs, in float64 \
         where ONNX Runtime has the kernels, else in float32.\n\n\
         Refused is a case in which a float output depends on a float input and that is given no gradient. Left out are cases with \
         nothing to differentiate, or that ONNX Runtime has no kernels for.\n\n",
    );
    let refused = refused(reports);
    let _ = writeln!(
        out,
        "{} cases: {} right forward, {} with right gradients, no wrong ones; {refused} refused ({:.1} %), {} left out, for the reasons \
         below.\n",
        all.len(),
        right(forward, &all),
        right(gradient, &all),
        100.0 * refused as f64 / all.len() as f64,
        all.len() - right(gradient, &all) - refused
    );
    let _ = writeln!(out, "| operator | cases | forward | gradient |\n|---|---|---|---|");
    for (operator, rs) in &by_operator {
        let _ = writeln!(out, "| {operator} | {} | {} | {} |", rs.len(), right(forward, rs), right(gradient, rs));
    }
    section(&mut out, "Refused", reports, |o| if let Outcome::Refused(why) = o { Some(why) } else { None });
    section(&mut out, "Left out", reports, |o| if let Outcome::LeftOut(why) = o { Some(why) } else { None });
    out
}

/// The cases whose gradient has a reason of one kind, by reason.
fn section(out: &mut String, title: &str, reports: &[(String, Report)], reason: fn(&Outcome) -> Option<&String>) {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, r) in reports {
        if let Some(why) = reason(&r.gradient) {
            reasons.entry(why).or_default().push(name);
        }
    }
    let _ = writeln!(out, "\n## {title}\n");
    for (why, names) in reasons {
        let _ = writeln!(out, "- {why} ({}): {}", names.len(), names.join(", "));
    }
}
