//! `bisam doctor`: what it reports, and what it says about libraries that cannot be used.

use crate::common::{self, repo};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// Runs `bisam doctor` in the repository, out of reach of the caller's own settings.
fn doctor(args: &[&str]) -> Output {
    command(args).output().expect("the program starts")
}

fn command(args: &[&str]) -> Command {
    let mut command = common::bisam();
    command.arg("doctor").args(args).env_remove("ORT_DYLIB_PATH").env_remove("ORT_LOG");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The one JSON document on stdout.
fn report(args: &[&str]) -> Value {
    let output = doctor(args);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

/// Exit code 1, an error that names the file and says `cause`, a hint that names `make setup`, nothing on stdout.
fn fails(output: &Output, file: &str, cause: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with(&format!("error: {file}: ")), "{text}");
    assert!(text.contains(cause), "{text}");
    assert!(text.lines().any(|line| line.starts_with("hint: ") && line.contains("make setup")), "{text}");
    assert_eq!(stdout(output), "");
}

#[test]
fn the_library_of_the_set_up_is_reported() {
    let report = report(&["--json", "--threads", "1"]);
    assert!(report["version"].as_str().is_some_and(|v| v.starts_with("1.")), "{report}");
    assert!(report["path"].as_str().is_some_and(|p| p.contains("onnxruntime")), "{report}");
    assert!(report["providers"].as_array().is_some_and(|p| p.contains(&"CPUExecutionProvider".into())), "{report}");
    assert_eq!(report["threads"], 1);
    assert!(report["opset"].as_i64() >= Some(23) && report["ir_version"].as_i64() >= Some(11), "{report}");
    assert!(report["cpu_features"].is_array() && report["skipped"].is_array(), "{report}");
    assert!(report["cuda"]["usable"].is_boolean(), "{report}");
}

#[test]
fn the_text_says_the_same() {
    let output = doctor(&[]);
    let text = stdout(&output);
    assert!(output.status.success(), "{}", stderr(&output));
    for part in ["ONNX Runtime", "CPUExecutionProvider", "threads", "CPU features", "CUDA"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn cuda_that_cannot_be_had_is_an_error_after_the_report() {
    let usable = report(&["--json"])["cuda"]["usable"] == true;
    let output = doctor(&["--device", "cuda"]);
    assert_eq!(output.status.success(), usable, "{}", stderr(&output));
    assert!(stdout(&output).contains("CUDA"));
    if !usable {
        assert!(stderr(&output).contains("error: ") && stderr(&output).contains("hint: "), "{}", stderr(&output));
    }
}

#[test]
fn wrong_usage_exits_with_two() {
    for args in [["--device", "warp"], ["--threads", "0"], ["--threads", "many"]] {
        let output = doctor(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_missing_library_is_named_however_it_was_given() {
    let path = "/nowhere/libonnxruntime.so";
    fails(&doctor(&["--ort", path]), path, "no such file");
    fails(&command(&[]).env("ORT_DYLIB_PATH", path).output().expect("the program starts"), path, "no such file");
}

#[test]
fn a_file_that_is_no_library_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("libonnxruntime.so");
    std::fs::write(&path, b"not a library").expect("a file");
    let path = path.to_string_lossy();
    fails(&doctor(&["--ort", &path]), &path, "cannot be loaded as a library");
}

#[cfg(target_os = "linux")]
#[test]
fn a_foreign_library_is_refused() {
    fails(&doctor(&["--ort", "libm.so.6"]), "libm.so.6", "not an ONNX Runtime library");
}

/// A library with the entry point of ONNX Runtime that calls itself `version`; `None` without a C compiler.
fn stub(folder: &Path, version: &str) -> Option<String> {
    let source = folder.join("stub.c");
    let library = folder.join("libonnxruntime.so");
    let code = format!(
        "static const void *api(unsigned version) {{ (void)version; return 0; }}\n\
         static const char *name(void) {{ return \"{version}\"; }}\n\
         static const struct {{ const void *(*api)(unsigned); const char *(*name)(void); }} base = {{ api, name }};\n\
         const void *OrtGetApiBase(void) {{ return &base; }}\n"
    );
    std::fs::write(&source, code).expect("a file");
    let done = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output().ok()?;
    assert!(done.status.success(), "{}", stderr(&done));
    Some(library.to_string_lossy().into_owned())
}

#[cfg(unix)]
#[test]
fn a_library_that_is_too_old_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases = [
        ("1.17.0", "ONNX Runtime 1.17.0 is too old; 1.23 or newer is needed"),
        ("1.22.1", "ONNX Runtime 1.22.1 is too old; 1.23 or newer is needed"),
        ("2.0.0", "of an unknown version"),
        ("seven", "of an unknown version"),
        ("1.40.0", "does not offer the interface"),
    ];
    for (version, cause) in cases {
        let Some(path) = stub(folder.path(), version) else {
            eprintln!("skipped: there is no C compiler");
            return;
        };
        fails(&doctor(&["--ort", &path]), &path, cause);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_that_was_passed_over_is_listed() {
    let real = report(&["--json"])["path"].as_str().map(|path| repo("").join(path)).expect("a path");
    let folder = tempfile::tempdir().expect("a folder");
    let lib = folder.path().join(".onnxruntime/lib");
    std::fs::create_dir_all(&lib).expect("a folder");
    std::fs::write(lib.join("libonnxruntime.so.99.0.0"), b"not a library").expect("a file");
    std::os::unix::fs::symlink(real, lib.join("libonnxruntime.so.1.0.0")).expect("a link");
    let output = command(&["--json"]).current_dir(folder.path()).output().expect("the program starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    let skipped = report["skipped"].as_array().expect("a list");
    assert!(skipped.len() == 1 && skipped[0].to_string().contains("libonnxruntime.so.99.0.0"), "{report}");
    assert!(report["path"].as_str().is_some_and(|path| path.ends_with("libonnxruntime.so.1.0.0")), "{report}");
}
