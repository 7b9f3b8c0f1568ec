//! The layers of the source tree: a file uses only what lies below it.

use crate::common::repo;
use std::fs;
use std::path::Path;

/// From the bottom up. `error` and the macros of `lib.rs` may be used everywhere.
const LAYERS: [&str; 17] = [
    "wording",
    "files",
    "ir",
    "onnx",
    "figure",
    "builder",
    "trace",
    "adapt",
    "autodiff",
    "step",
    "engine",
    "data",
    "export",
    "train",
    "sharpness",
    "report",
    "cli",
];

/// Files that are no layer.
const OUTSIDE: [&str; 3] = ["error", "lib", "main"];

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The source without its comments, so that links in documentation do not count.
fn code(source: &str) -> String {
    let before_comment = |line: &str| line.split("//").next().unwrap_or_default().to_owned() + "\n";
    source.lines().map(before_comment).collect()
}

/// What follows every `path` (such as `crate::`) that starts a word of `code`.
fn after<'a>(code: &'a str, path: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(path)
        .filter(|(at, _)| !code[..*at].ends_with(|c: char| is_word(c) || c == '$'))
        .map(move |(at, _)| &code[at + path.len()..])
}

/// Modules that `code` reaches through `crate::`, groups in braces included.
fn modules(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in after(code, "crate::") {
        match rest.strip_prefix('{') {
            Some(group) => found.extend(first_level(group)),
            None => found.extend(head(rest)),
        }
    }
    found
}

/// The module a path starts with; types and macros of the crate's root are none.
fn head(path: &str) -> Option<String> {
    let path = path.trim_start();
    let word: String = path.chars().take_while(|c| is_word(*c)).collect();
    let is_module = word.starts_with(|c: char| c.is_lowercase()) && !path[word.len()..].starts_with('!');
    is_module.then_some(word)
}

/// The modules that the entries of a group start with, up to the brace that closes it.
fn first_level(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut found) = (0usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                found.extend(head(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// What a file of the source tree does that it may not.
fn offences(path: &str, source: &str) -> Vec<String> {
    let code = code(source);
    let layer = path.split(['/', '.']).next().unwrap_or_default();
    let rank = |name: &str| LAYERS.iter().position(|l| *l == name);
    let mut all = Vec::new();
    if !OUTSIDE.contains(&layer) {
        let Some(own) = rank(layer) else { return vec![format!("{path}: `{layer}` is not among the layers")] };
        for module in modules(&code).iter().filter(|m| *m != "error") {
            match rank(module) {
                Some(other) if other <= own => {}
                Some(_) => all.push(format!("{path}: `{layer}` uses `{module}`, which lies above it")),
                None => all.push(format!("{path}: `{module}` is not among the layers")),
            }
        }
    }
    if layer != "engine" && (after(&code, "ort::").next().is_some() || after(&code, "use ort;").next().is_some()) {
        all.push(format!("{path}: only src/engine uses `ort`"));
    }
    if path != "export/verify.rs" && after(&code, "tract_onnx").next().is_some() {
        all.push(format!("{path}: only src/export/verify.rs uses `tract`"));
    }
    let prints = ["println!", "eprintln!", "print!", "eprint!"];
    if !["cli", "main"].contains(&layer) && prints.iter().any(|name| after(&code, name).next().is_some()) {
        all.push(format!("{path}: only src/cli prints"));
    }
    all
}

/// Every Rust file below `folder`, by its path from there.
fn sources(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let parts = path.strip_prefix(folder).expect("below the folder").iter();
                let name = parts.map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/");
                found.push((name, fs::read_to_string(&path).expect("a readable file")));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_file_uses_only_the_layers_below_it() {
    let sources = sources(&repo("src"));
    assert!(sources.len() > LAYERS.len(), "the source tree was not found");
    let all: Vec<String> = sources.iter().flat_map(|(path, source)| offences(path, source)).collect();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn offences_are_found() {
    let is_clean = |path: &str, source: &str| assert_eq!(offences(path, source), Vec::<String>::new());
    let offends = |path: &str, source: &str| assert_eq!(offences(path, source).len(), 1, "{path}: {source}");
    is_clean("step/a.rs", "use crate::{autodiff::x, builder::{self, Builder}, Error};\ncrate::bail!(\"no\");");
    is_clean("ir/a.rs", "//! Filled in by [`trace`](crate::trace).\nuse crate::error::Result;");
    is_clean("engine/a.rs", "use ort::session::Session;");
    is_clean("train/a.rs", "use crate::export::Weights;");
    offends("ir/a.rs", "use crate::onnx::emit;");
    offends("ir/a.rs", "let x = crate::trace::encode(&m);");
    offends("autodiff/a.rs", "use crate::{builder::Builder, step::{Ascent, Base}};");
    offends("builder.rs", "pub(crate) use crate::autodiff;");
    offends("elsewhere/a.rs", "");
    offends("train/a.rs", "let s: ort::session::Session;");
    offends("export/weights.rs", "use tract_onnx::prelude::*;");
    offends("train/a.rs", "println!(\"done\");");
}
