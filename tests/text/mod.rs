//! Texts in tables, from file to trained classifier; `tokenizer.json` beside this file has some fifty words.

use crate::common::{self, StopAfter, engine, repo};
use crate::head::{POOLED, TOKENS, embedder};
use bisam::data::TextOptions;
use bisam::export::verify;
use bisam::onnx::{import, save};
use bisam::step::Preset;
use bisam::train::{EpochReport, Metric, Observer, Recipe, StepReport, Summary, evaluate_model, train};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::AtomicBool;

/// Takes `input_ids`, `attention_mask` and `token_type_ids` [N, length] of 1,000 words to 2 classes.
const MODEL: &str = "models/bert.onnx";

const TOKENIZER: &str = "tests/text/tokenizer.json";

/// Remembers the notes and the epochs.
#[derive(Default)]
struct Notes(Vec<String>, Vec<EpochReport>);

impl Observer for Notes {
    fn note(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
    fn start(&mut self, _: u64, _: u64, _: Metric) {}
    fn step(&mut self, _: &StepReport) {}
    fn epoch(&mut self, report: &EpochReport) {
        self.1.push(*report);
    }
}

/// `n` reviews with a verdict that one word decides, from `seed` on; one in three is negative.
fn reviews(n: usize, seed: usize) -> String {
    let good = ["good", "great", "fine", "fresh", "warm", "funny", "lovely"];
    let bad = ["bad", "poor", "dull", "weak", "cold", "bland", "awful"];
    let nouns = ["film", "story", "actor", "plot"];
    let mut text = String::from("sentence\tverdict\n");
    for i in seed..seed + n {
        let (words, verdict) = if i % 3 == 0 { (bad, "negative") } else { (good, "positive") };
        let (word, noun) = (words[i * 5 % 7], nouns[i * 7 % 11 % 4]);
        let line = match i % 4 {
            0 => format!("the {noun} is very {word}."),
            1 => format!("A \"{word}\" {noun}"),
            2 => format!("{word}, so {word} and quite a {noun}!"),
            _ => format!("it was {word}ness of {noun}s in the {noun}"),
        };
        text += &format!("{line}\t{verdict}\n");
    }
    text
}

/// A folder as GLUE has it: its test file has no labels.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("writes");
    write("train.tsv", &reviews(96, 0));
    write("dev.tsv", &reviews(30, 1000));
    write("test.tsv", "index\tsentence\n0\tthe plot is good\n");
    folder
}

fn recipe(data: &Path) -> Recipe {
    let text = TextOptions {
        text: vec!["sentence".into()],
        label: "verdict".into(),
        tokenizer: repo(TOKENIZER),
        max_length: 12,
        ..TextOptions::default()
    };
    Recipe {
        model: repo(MODEL),
        data: format!("tsv:{}", data.display()),
        batch_size: 16,
        epochs: 12,
        warmup: 3,
        lr: 2e-3,
        metric: Some(Metric::Matthews),
        step: Preset::Adamw.options(),
        text: Some(text),
        ..Recipe::default()
    }
}

fn bisam(arguments: &[String]) -> Output {
    common::bisam().args(arguments).output().expect("starts")
}

fn strings(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|a| (*a).to_owned()).collect()
}

#[test]
fn a_classifier_learns_reviews_and_is_evaluated_as_it_was_trained() {
    let (data, out) = (folder(), tempfile::tempdir().expect("a folder"));
    let mut notes = Notes::default();
    let summary =
        train(&engine(), &recipe(data.path()), out.path(), false, &AtomicBool::new(false), &mut notes).expect("runs");
    let want = ["test.tsv has no column `verdict` and is left out", "classes: negative 0, positive 1"];
    assert_eq!(notes.0[..2], want);
    assert_eq!((summary.test_accuracy, summary.metric), (None, Metric::Matthews));
    assert_eq!(summary.classes, ["negative", "positive"]);
    let matthews = summary.best_valid_matthews.expect("a validation set");
    assert!(matthews > 0.8, "{:?}", notes.1);
    let best = notes.1.iter().filter_map(|e| e.valid_matthews).fold(-1.0, f64::max);
    assert_eq!(matthews, best, "the best epoch is chosen by the metric");

    let written = fs::read_to_string(out.path().join("summary.json")).expect("written");
    let read: Summary = serde_json::from_str(&written).expect("reads back");
    assert_eq!(
        (read.classes, read.best_epoch, read.metric),
        (summary.classes.clone(), summary.best_epoch, summary.metric)
    );
    let lines = fs::read_to_string(out.path().join("metrics.jsonl")).expect("written");
    let epochs: Vec<EpochReport> = lines.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    assert_eq!(epochs.len(), 12);
    let kept = Recipe::load(&out.path().join("recipe.toml")).expect("reads back").text.expect("settings of text");
    assert_eq!(kept.classes, ["negative", "positive"]);

    // The recipe beside the model has the settings, and the order of the classes for a file that has only one of them.
    let model = out.path().join("model.onnx").display().to_string();
    let evaluate = |data: PathBuf, split: &str| {
        let spec = format!("tsv:{}", data.display());
        let arguments =
            ["eval", &model, "--data", &spec, "--split", split, "--batch-size", "8", "--per-class", "--json"];
        let output = bisam(&strings(&arguments));
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{shown}");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let valid = evaluate(data.path().to_owned(), "valid");
    assert_eq!(valid["matthews"].as_f64(), summary.best_valid_matthews);
    assert_eq!(valid["f1"].as_f64(), summary.best_valid_f1);
    assert_eq!((&valid["classes"][0]["class"], &valid["classes"][0]["samples"]), (&"negative".into(), &10.into()));
    let one = data.path().join("one.tsv");
    let dev = reviews(30, 1000);
    let positive: Vec<&str> = dev.lines().filter(|l| !l.ends_with("negative")).collect();
    fs::write(&one, positive.join("\n")).expect("writes");
    let positive = evaluate(one, "train");
    assert_eq!(positive["classes"][1]["recall"], valid["classes"][1]["recall"]);
    assert_eq!(positive["classes"][1]["samples"], 20);
}

#[test]
fn batches_of_similar_length_change_nothing_but_their_padding() {
    let data = folder();
    let recipe = Recipe { batch_size: 2, epochs: 1, step: Preset::Bisam.options(), ..recipe(data.path()) };
    let run = |out: &str, observer: &mut dyn Observer, resume: bool, stop: &AtomicBool| {
        train(&engine(), &recipe, &data.path().join(out), resume, stop, observer)
    };
    let (mut notes, stop) = (Notes::default(), AtomicBool::new(false));
    run("whole", &mut notes, false, &stop).expect("runs");
    assert!(notes.0.iter().any(|n| n.starts_with("batches of shorter texts are padded to")), "{:?}", notes.0);
    run("parts", &mut StopAfter(20, &stop), false, &stop).expect_err("stops");
    stop.store(false, std::sync::atomic::Ordering::Relaxed);
    run("parts", &mut StopAfter(u64::MAX, &stop), true, &stop).expect("goes on");
    let read = |run: &str| fs::read(data.path().join(run).join("model.onnx")).expect("written");
    assert!(read("whole") == read("parts"), "a resumed run has other batches");

    // Evaluated afterwards every text is as long as the longest, in training as its batch: the mask hides the difference.
    let model = import(data.path().join("whole/model.onnx")).expect("imports");
    let after = evaluate_model(&engine(), &model.graph, &recipe, "valid", &mut |_| ()).expect("runs");
    let during = notes.1[0].valid_loss.expect("a validation set");
    assert!((after.loss - during).abs() < 1e-5 * during, "{} and {during}", after.loss);
}

#[test]
fn an_embedding_gets_a_head_and_is_trained_resumed_and_evaluated() {
    let data = folder();
    let model = data.path().join("embedder.onnx");
    save(&embedder(&[(TOKENS, 3), (POOLED, 2)]).proto, &model).expect("saves");
    for (output, from) in [(None, POOLED), (Some(TOKENS), TOKENS)] {
        let recipe = Recipe {
            model: model.clone(),
            output: output.map(str::to_owned),
            num_classes: Some(2),
            epochs: 8,
            ..recipe(data.path())
        };
        let outs = [0, 1].map(|_| tempfile::tempdir().expect("a folder"));
        let [whole, parts] = outs.each_ref().map(tempfile::TempDir::path);
        let mut notes = Notes::default();
        let summary = train(&engine(), &recipe, whole, false, &AtomicBool::new(false), &mut notes).expect("runs");
        assert!(notes.0.iter().any(|n| n.contains("was appended") && n.contains(from)), "{:?}", notes.0);
        let matthews = summary.best_valid_matthews.expect("a validation set");
        assert!(matthews > 0.6, "{from}: {:?}", notes.1);

        let stop = AtomicBool::new(false);
        train(&engine(), &recipe, parts, false, &stop, &mut StopAfter(3, &stop)).expect_err("stops");
        let kept = Recipe::load(&parts.join("recipe.toml")).expect("reads back");
        assert_eq!((kept.output.as_deref(), kept.embedding.as_deref()), (output.map(|_| "logits"), output));
        train(&engine(), &kept, parts, true, &AtomicBool::new(false), &mut Notes::default()).expect("goes on");
        let [file, same] = [whole, parts].map(|out| out.join("model.onnx"));
        assert!(
            fs::read(&file).expect("written") == fs::read(same).expect("written"),
            "{from}: the resumed run differs"
        );
        let verdict = verify(&engine(), &file, None, 3, 1e-4).expect("both run it");
        assert!(verdict.agrees && verdict.outputs.len() == 3, "{from}: {verdict:?}");

        let (file, spec) = (file.display().to_string(), recipe.data.clone());
        let output = bisam(&strings(&["eval", &file, "--data", &spec, "--split", "valid", "--json"]));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let valid: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(valid["matthews"].as_f64(), Some(matthews), "{from}");
    }
}

#[test]
fn flags_are_the_recipes_settings() {
    let (data, out) = (folder(), tempfile::tempdir().expect("a folder"));
    let pairs = "a,b,label\n\"good, fine\",film,1\nbad,plot,0\n".to_owned() + &"dull,film,0\nwarm,plot,1\n".repeat(7);
    let file = data.path().join("pairs.csv");
    fs::write(&file, pairs).expect("writes");
    let (spec, run) = (format!("csv:{}", file.display()), out.path().join("run").display().to_string());
    let arguments = [
        "train",
        MODEL,
        "--data",
        &spec,
        "--text",
        "a,b",
        "--label",
        "label",
        "--tokenizer",
        TOKENIZER,
        "--max-length",
        "9",
        "--metric",
        "f1",
        "--valid",
        "0.25",
        "--batch-size",
        "4",
        "--steps",
        "2",
        "--optimizer",
        "bisam",
        "--base",
        "adamw",
        "--lr",
        "0.001",
        "-o",
        &run,
    ];
    let output = bisam(&strings(&arguments));
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(shown.contains("validation F1"), "{shown}");
    let kept = Recipe::load(&out.path().join("run/recipe.toml")).expect("reads back");
    let text = kept.text.expect("settings of text");
    assert_eq!((text.text, text.label.as_str(), text.max_length), (strings(&["a", "b"]), "label", 9));
    assert_eq!((kept.metric, text.classes.len()), (Some(Metric::F1), 0));
}

#[test]
fn mistakes_are_named_with_file_and_line() {
    let data = folder();
    let write = |name: &str, text: &str| fs::write(data.path().join(name), text).expect("writes");
    let at = |name: &str| data.path().join(name).display().to_string();
    write("empty.tsv", "");
    write("ragged.tsv", "sentence\tverdict\ngood\t1\nbad\tplot\t0\n");
    write("unlabelled.tsv", "sentence\tverdict\ngood\t1\nbad\t\n");
    write("classes.tsv", "sentence\tverdict\ngood\t0\nbad\t2\n");
    write("words.json", "{\"good\": 1}");
    let mut large: Value = serde_json::from_slice(&fs::read(repo(TOKENIZER)).expect("reads")).expect("JSON");
    large["model"]["vocab"]["good"] = 1500.into();
    write("large.json", &large.to_string());
    let columns = ["--text", "sentence", "--label", "verdict"];
    let good = [&columns[..], &["--tokenizer", TOKENIZER, "--max-length", "12"]].concat();
    let refuses = |model: &str, spec: &str, flags: &[&str], file: &str, cause: &str, hint: &str| {
        let run = at("run");
        for command in ["train", "eval"] {
            let mut arguments = strings(&[command, model, "--data", spec, "--batch-size", "1"]);
            arguments.extend(strings(flags));
            let end = if command == "train" {
                vec!["--valid", "0", "--steps", "1", "-o", &run]
            } else {
                vec!["--split", "train"]
            };
            arguments.extend(strings(&end));
            let output = bisam(&arguments);
            let shown = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {shown}");
            let error = shown.lines().find(|l| l.starts_with("error: ")).unwrap_or_default();
            assert!(error.starts_with(&format!("error: {file}")) && error.contains(cause), "{arguments:?}: {shown}");
            let last = shown.lines().last().unwrap_or_default();
            assert!(last.starts_with("hint: ") && last.contains(hint), "{arguments:?}: {shown}");
        }
    };
    let table = |name: &str| format!("tsv:{}", at(name));
    let folder = table("");
    refuses(MODEL, &table("empty.tsv"), &good, &at("empty.tsv"), "the file is empty", "a sample per line");
    refuses(MODEL, &table("ragged.tsv"), &good, &at("ragged.tsv"), "line 3 has 3 columns", "separator");
    refuses(MODEL, &table("unlabelled.tsv"), &good, &at("unlabelled.tsv"), "line 3 has no label", "class");
    refuses(MODEL, &table("classes.tsv"), &good, &at("classes.tsv"), "label 2 of sample 1", "--num-classes");
    refuses(MODEL, &table("gone.tsv"), &good, &at("gone.tsv"), "no such file", "");
    refuses(MODEL, &folder, &columns, "", "no tokenizer is given", "--tokenizer FILE");
    refuses(MODEL, &folder, &["--tokenizer", TOKENIZER], "", "no column of text", "sentence, verdict");
    let other = ["--text", "review", "--label", "verdict", "--tokenizer", TOKENIZER];
    refuses(MODEL, &folder, &other, &at("train.tsv"), "no column `review`", "sentence, verdict");
    write("long.tsv", &format!("sentence\tverdict\n{}\t1\nbad\t0\n", "good ".repeat(100)));
    let long = [&columns[..], &["--tokenizer", TOKENIZER]].concat();
    refuses(MODEL, &table("long.tsv"), &long, MODEL, "does not run on texts of 104 tokens", "--max-length");
    let (words, large) = (at("words.json"), at("large.json"));
    let words = [&columns[..], &["--tokenizer", &words]].concat();
    refuses(MODEL, &folder, &words, &at("words.json"), "not a tokenizer", "tokenizer.json");
    refuses("models/tiny_bn.onnx", &folder, &good, "", "input `x` is f32", "input_ids");
    refuses("models/tiny_bn.onnx", "npz:models/reference/tiny_bn.npz", &good, "", "no tables of text", "tsv:PATH");
    refuses(MODEL, &format!("parquet:{}", at("")), &good, "", "unknown data format", "jsonl:PATH");
    let large = [&columns[..], &["--tokenizer", &large, "--max-length", "12"]].concat();
    refuses(MODEL, &folder, &large, &at(""), "`input_ids` gets 1500", "tokenizer.json that belongs");
}
