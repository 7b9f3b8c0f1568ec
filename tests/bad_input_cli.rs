//! Bad input as a user meets it: exit code 1, an error that names file and cause, a hint, no panic, and no file changed,
//! added or lost.

use crate::common::{self, repo};
use bisam::data::write_npz;
use bisam::ir::Tensor;
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::tensor_shape_proto::dimension::Value as Dim;
use onnx_protobuf::type_proto::Value as Type;
use onnx_protobuf::{GraphProto, Message, ModelProto, NodeProto, StringStringEntryProto};
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Takes images [N, 3, 8, 8] by the name `x` to 10 classes.
const MODEL: &str = "models/tiny_bn.onnx";

/// A folder with a data set, results of earlier commands, and room for bad files.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a folder"));
        place.write("run/notes.txt", b"old");
        place.write("run/metrics.jsonl", b"old");
        place.write("out.onnx", b"old");
        place.write("out.npz", b"old");
        place.npz("good.npz", &[0, 1, 2, 3]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
        fs::write(path, bytes).expect("writes");
    }

    /// Samples for the model with these labels.
    fn npz(&self, name: &str, labels: &[i64]) {
        let n = labels.len();
        let x = Tensor::new(&[n, 3, 8, 8], &vec![0.5f32; n * 192]).expect("fits");
        let labels = Tensor::new(&[n], labels).expect("fits");
        let arrays = BTreeMap::from([("x".to_owned(), x), ("labels".to_owned(), labels)]);
        write_npz(&self.path(name), &arrays).expect("writes");
    }

    /// Every file with its bytes, every folder without.
    fn contents(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut todo = vec![self.0.path().to_owned()];
        while let Some(folder) = todo.pop() {
            for entry in fs::read_dir(folder).expect("lists") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    todo.push(path.clone());
                    found.insert(path, None);
                } else {
                    found.insert(path.clone(), Some(fs::read(path).expect("reads")));
                }
            }
        }
        found
    }

    /// The arguments of `command` on a model and the data set `spec`, with the outputs in this folder.
    fn arguments(&self, command: &str, model: &str, spec: &str) -> Vec<String> {
        let rest = match command {
            "train" => vec!["--data", spec, "--batch-size", "2", "--valid", "0", "--steps", "1", "-o", "run"],
            "eval" => vec!["--data", spec, "--split", "train", "--batch-size", "2"],
            "grad" => vec!["--inputs", spec.strip_prefix("npz:").unwrap_or(spec), "-o", "out.npz"],
            "init" => vec!["--seed", "1", "-o", "out.onnx"],
            _ => vec![],
        };
        let own = |a: &str| if ["run", "out.npz", "out.onnx"].contains(&a) { self.text(a) } else { a.to_owned() };
        [command, model].into_iter().chain(rest).map(own).collect()
    }

    /// Runs a command that must fail, naming `file` and every part, give a hint, and leave this folder as it is; what was shown.
    fn refuses(&self, arguments: &[String], file: &str, parts: &[&str]) -> String {
        let before = self.contents();
        let shown = fails(&bisam(arguments), arguments, file, parts);
        assert!(shown.lines().last().is_some_and(|l| l.starts_with("hint: ")), "{arguments:?} gives no hint: {shown}");
        let after = self.contents();
        assert!(before == after, "{arguments:?} left {:?} of {:?}", after.keys(), before.keys());
        shown
    }

    /// Trains and evaluates on a data set that must be refused for `file`.
    fn refuses_data(&self, spec: &str, file: &str, parts: &[&str]) {
        let (format, path) = spec.split_once(':').expect("a format");
        let spec = format!("{format}:{}", self.text(path));
        for command in ["train", "eval"] {
            self.refuses(&self.arguments(command, MODEL, &spec), &self.text(file), parts);
        }
    }
}

fn bisam(arguments: &[String]) -> Output {
    common::bisam().args(arguments).output().expect("starts")
}

/// The same with a limit of a few KiB on every file in place of a full disk; the signal that ends the writer is ignored.
#[cfg(unix)]
fn bisam_on_full_disk(arguments: &[String]) -> Output {
    let limited = "trap '' XFSZ; ulimit -f 4; exec \"$@\"";
    let mut sh = Command::new("sh");
    sh.args(["-c", limited, "sh", env!("CARGO_BIN_EXE_bisam")]).args(arguments);
    sh.current_dir(repo("")).output().expect("starts")
}

/// Exit code 1, and `error: FILE: …` with every part; what was shown.
fn fails(output: &Output, arguments: &[String], file: &str, parts: &[&str]) -> String {
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {shown}");
    assert!(!shown.contains("panicked"), "{arguments:?}: {shown}");
    let error = shown.lines().find(|l| l.starts_with("error: ")).unwrap_or_default();
    assert!(error.starts_with(&format!("error: {file}: ")), "{arguments:?} does not name {file}: {shown}");
    for part in parts {
        assert!(error.contains(part), "{arguments:?} does not say `{part}`: {shown}");
    }
    shown
}

/// The good model after a change to its graph.
fn changed(change: impl FnOnce(&mut GraphProto)) -> Vec<u8> {
    let mut model = ModelProto::parse_from_bytes(&good()).expect("parses");
    change(model.graph.mut_or_insert_default());
    model.write_to_bytes().expect("encodes")
}

fn good() -> Vec<u8> {
    fs::read(repo(MODEL)).expect("reads")
}

fn set_dimension(graph: &mut GraphProto, axis: usize, n: i64) {
    let ty = graph.input[0].type_.mut_or_insert_default();
    let Some(Type::TensorType(t)) = &mut ty.value else { panic!("a tensor") };
    t.shape.mut_or_insert_default().dim[axis].value = Some(Dim::DimValue(n));
}

fn add_cycle(graph: &mut GraphProto) {
    for (name, input, output) in [("after", "a", "c"), ("round", "b", "a"), ("about", "a", "b")] {
        graph.node.push(NodeProto {
            name: name.into(),
            op_type: "Relu".into(),
            input: vec![input.into()],
            output: vec![output.into()],
            ..Default::default()
        });
    }
}

/// The first weight, by the name `outside`, in a data file.
fn move_outside(graph: &mut GraphProto, location: &str) {
    let tensor = &mut graph.initializer[0];
    tensor.name = "outside".into();
    tensor.raw_data.clear();
    tensor.data_location = protobuf::EnumOrUnknown::new(DataLocation::EXTERNAL);
    tensor.external_data =
        vec![StringStringEntryProto { key: "location".into(), value: location.into(), ..Default::default() }];
}

#[test]
fn damaged_models_are_refused_by_every_command() {
    let place = Place::new();
    let mut noise = vec![0; 5000];
    rand_chacha::ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut noise);
    let graphless = ModelProto { ir_version: 8, ..Default::default() }.write_to_bytes().expect("encodes");
    // As long as the first weight, so that only its place is wrong.
    place.write("elsewhere.data", &[0; 4 * 8 * 3 * 3 * 3]);
    place.write("models/short.data", &[0; 8]);
    let absolute = place.text("elsewhere.data");
    let outside = |location: &str| changed(|g| move_outside(g, location));
    let dimension = |n| changed(|g| set_dimension(g, 2, n));
    let weight = |dims: &[i64]| {
        changed(|g| {
            g.initializer[0].name = "weight0".into();
            g.initializer[0].dims = dims.to_vec();
        })
    };
    let not_a_model = "not an ONNX model, or cut short";
    let escapes = "points outside the model's folder";
    let cases: [(&str, Vec<u8>, &[&str]); 19] = [
        ("an empty file", vec![], &["the file is empty"]),
        ("a truncated file", good()[..good().len() / 2].to_vec(), &[not_a_model]),
        ("random bytes", noise, &[not_a_model]),
        ("a file without graph", graphless, &["the model has no graph"]),
        ("no outputs", changed(|g| g.output.clear()), &["the model has no outputs"]),
        ("a cyclic graph", changed(add_cycle), &["Relu `round`", "cycle"]),
        (
            "a value from nowhere",
            changed(|g| g.node[1].input[0] = "nobody".into()),
            &["BatchNormalization `", "nobody"],
        ),
        ("a negative dimension", dimension(-7), &["input `x`", "-7"]),
        ("an absurd dimension", dimension(1 << 40), &["input `x`", "1099511627776"]),
        ("a huge dimension", dimension(1 << 30), &["input `x`", "[3, 1073741824, 8]"]),
        ("the largest dimension", dimension(i64::MAX), &["input `x`"]),
        ("a huge batch", changed(|g| set_dimension(g, 0, 1 << 30)), &["input `x`"]),
        ("a negative weight dimension", weight(&[-3]), &["`weight0`", "[-3]"]),
        ("an absurd weight dimension", weight(&[1 << 40]), &["`weight0`", "[1099511627776]"]),
        ("weight dimensions that overflow", weight(&[i64::MAX, i64::MAX]), &["`weight0`", "not possible"]),
        ("external data above the folder", outside("../elsewhere.data"), &["`outside`", "../elsewhere.data", escapes]),
        ("external data by absolute path", outside(&absolute), &["`outside`", &absolute, escapes]),
        ("missing external data", outside("gone.data"), &["`outside`", "gone.data"]),
        ("short external data", outside("short.data"), &["`outside`", "short.data", "8 bytes"]),
    ];
    let (model, spec) = (place.text("models/bad.onnx"), format!("npz:{}", place.text("good.npz")));
    for (case, bytes, parts) in cases {
        eprintln!("{case}");
        place.write("models/bad.onnx", &bytes);
        for command in ["inspect", "train", "verify", "eval", "grad", "init"] {
            place.refuses(&place.arguments(command, &model, &spec), &model, parts);
        }
    }
}

#[test]
fn an_unknown_operator_is_named_by_whatever_runs_the_model() {
    let place = Place::new();
    let unknown = changed(|g| {
        g.node[0].op_type = "NoSuchOperator".into();
        g.node[0].name = "first".into();
    });
    place.write("models/bad.onnx", &unknown);
    let (model, spec) = (place.text("models/bad.onnx"), format!("npz:{}", place.text("good.npz")));
    for command in ["train", "verify", "eval", "grad"] {
        place.refuses(&place.arguments(command, &model, &spec), &model, &["NoSuchOperator", "first"]);
    }
    // `inspect` says what it knows of any model, and that this one does not run.
    let output = bisam(&place.arguments("inspect", &model, &spec));
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains("NoSuchOperator") && shown.contains("does not run"), "{shown}");
}

#[test]
fn wrong_labels_are_named_with_their_file() {
    let place = Place::new();
    let out_of_range: [(&str, &[i64], &str); 2] = [
        ("large.npz", &[0, 1, 10, 3], "label 10 of sample 2"),
        ("negative.npz", &[0, -1, 2, 3], "label -1 of sample 1"),
    ];
    for (file, labels, cause) in out_of_range {
        place.npz(file, labels);
        place.refuses_data(&format!("npz:{file}"), file, &[cause]);
    }
    let inputs = place.text("large.npz");
    place.refuses(&place.arguments("grad", MODEL, &inputs), &inputs, &["label 10", "0..10"]);

    idx(&place, 64, &[0, 9, 10, 1]);
    place.refuses_data("idx:idx", "idx", &["label 10 of sample 2", "0..10"]);
    cifar(&place, 10, 1);
    place.refuses_data("cifar10:cifar", "cifar/data_batch_3.bin", &["label 10 of sample 0", "0..10"]);
    let record = [&[0, 100][..], &[7; 3072]].concat();
    place.write("cifar100/train.bin", &record);
    place.write("cifar100/test.bin", &record);
    place.refuses_data("cifar100:cifar100", "cifar100/train.bin", &["label 100 of sample 0", "0..100"]);
}

/// Four images of 8 × 8 with as many bytes each, in the form of MNIST.
fn idx(place: &Place, bytes: usize, labels: &[u8; 4]) {
    let head = |kind, dims: &[u8]| {
        [&[0, 0, 8, kind][..], &dims.iter().flat_map(|d| [0, 0, 0, *d]).collect::<Vec<_>>()].concat()
    };
    place.write("idx/train-images-idx3-ubyte", &[head(3, &[4, 8, 8]), vec![7; 4 * bytes]].concat());
    place.write("idx/train-labels-idx1-ubyte", &[head(1, &[4]), labels.to_vec()].concat());
}

/// CIFAR-10 with one image per file; the third file has this label and lacks `short - 1` bytes.
fn cifar(place: &Place, label: u8, short: usize) {
    let record = |label: u8| [&[label][..], &[7; 3072]].concat();
    for i in [1, 2, 4, 5] {
        place.write(&format!("cifar/data_batch_{i}.bin"), &record(0));
    }
    place.write("cifar/data_batch_3.bin", &record(label)[..3074 - short]);
    place.write("cifar/test_batch.bin", &record(0));
}

#[test]
fn damaged_data_is_named_by_its_file() {
    let place = Place::new();
    idx(&place, 60, &[0, 1, 2, 3]);
    place.refuses_data("idx:idx", "idx/train-images-idx3-ubyte", &["240 bytes", "[4, 8, 8]"]);
    cifar(&place, 0, 100);
    place.refuses_data("cifar10:cifar", "cifar/data_batch_3.bin", &["2974 bytes", "3073-byte records"]);

    let whole = fs::read(place.path("good.npz")).expect("reads");
    let mut noise = vec![0; 5000];
    rand_chacha::ChaCha8Rng::seed_from_u64(2).fill_bytes(&mut noise);
    for bytes in [&[][..], &whole[..whole.len() / 2], &noise] {
        place.write("bad.npz", bytes);
        place.refuses_data("npz:bad.npz", "bad.npz", &["not an npz archive, or cut short"]);
        let inputs = place.text("bad.npz");
        place.refuses(&place.arguments("grad", MODEL, &inputs), &inputs, &["not an npz archive"]);
    }
    for (shape, cause) in [
        ("(4, 3, 1099511627776, 8)", "1099511627776"),
        ("(0, 9223372036854775807, 9)", "9223372036854775807"),
        ("(4, -3, 8, 8)", "-3"),
        ("(4, 3, 8, 8)", "`x"),
    ] {
        place.write("bad.npz", &archive("x.npy", &npy(shape)));
        place.refuses_data("npz:bad.npz", "bad.npz", &["`x", cause]);
    }
}

/// An array of float32 that declares this shape and has eight elements.
fn npy(shape: &str) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend([0; 32]);
    bytes
}

fn archive(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file(name, zip::write::SimpleFileOptions::default()).expect("starts");
    zip.write_all(bytes).expect("writes");
    zip.finish().expect("ends").into_inner()
}

#[test]
fn empty_folders_and_damaged_images_are_named() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).expect("makes");
    for (format, cause) in [
        ("images", "no class folders"),
        ("idx", "no training images"),
        ("cifar10", "no data_batch_1.bin"),
        ("cifar100", "no train.bin"),
    ] {
        place.refuses_data(&format!("{format}:empty"), "empty", &[cause]);
    }
    fs::create_dir_all(place.path("classes/cat")).expect("makes");
    place.refuses_data("images:classes", "classes", &["no images"]);

    let image = place.path("classes/cat/a.jpg");
    image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * y) as u8, (x * 37) as u8, y as u8]))
        .save(&image)
        .expect("saves");
    let whole = fs::read(&image).expect("reads");
    for bytes in [&[][..], b"hello", &whole[..whole.len() / 2]] {
        place.write("classes/cat/b.jpg", bytes);
        place.refuses_data("images:classes", "classes/cat/b.jpg", &["cannot be decoded"]);
    }
}

#[test]
fn results_of_another_run_stay() {
    let place = Place::new();
    // The user's own model may lie in the folder that is named for the results.
    place.write("run/model.onnx", &good());
    let spec = format!("npz:{}", place.text("good.npz"));
    let model = place.text("run/model.onnx");
    place.refuses(&place.arguments("train", &model, &spec), &model, &["there already"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_keeps_what_was_there() {
    let place = Place::new();
    let spec = format!("npz:{}", place.text("good.npz"));
    let before = place.contents();
    let grad = place.arguments("grad", MODEL, &spec);
    fails(&bisam_on_full_disk(&grad), &grad, &place.text("out.npz"), &["too large"]);
    assert!(place.contents() == before);

    let train = place.arguments("train", MODEL, &spec);
    // Before the first step.
    let last = place.text("run/last.onnx");
    fails(&bisam_on_full_disk(&train), &train, &last, &["too large"]);
    assert_eq!(fs::read_dir(place.path("run/checkpoint")).expect("lists").count(), 0, "a temporary file is left");
    assert!(!place.path("run/model.onnx").exists());

    // A run that goes on keeps its checkpoint and its models.
    assert!(bisam(&train).status.success());
    let kept = ["run/checkpoint/state.safetensors", "run/model.onnx", "run/last.onnx", "run/summary.json"];
    let read = || kept.map(|f| fs::read(place.path(f)).expect("reads"));
    let before = read();
    // Like its log, what TensorBoard reads may tell of the steps before the failure.
    let names = |place: &Place| {
        place.contents().into_keys().filter(|n| !n.to_string_lossy().contains("tfevents")).collect::<Vec<_>>()
    };
    let files = names(&place);
    let resume: Vec<String> = ["train", "--resume", &place.text("run"), "--steps", "2"].map(str::to_owned).into();
    fails(&bisam_on_full_disk(&resume), &resume, &last, &["too large"]);
    assert!(read() == before && names(&place) == files);
    assert!(bisam(&resume).status.success(), "the run goes on once there is room");
}

#[cfg(target_os = "linux")]
#[test]
fn a_device_without_room_is_an_error() {
    let init: Vec<String> = ["init", MODEL, "--seed", "1", "-o", "/dev/full"].map(str::to_owned).into();
    fails(&bisam(&init), &init, "/dev/full", &["No space left"]);
    for arguments in [&["inspect", MODEL][..], &["inspect", MODEL, "--json"], &["doctor"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("opens");
        let mut command = common::bisam();
        let child = command.args(arguments).stdout(full).stderr(Stdio::piped()).spawn();
        let output = child.and_then(std::process::Child::wait_with_output).expect("runs");
        let shown = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {shown}");
        assert!(shown.contains("error: stdout: No space left"), "{arguments:?}: {shown}");
    }
}

#[test]
fn values_that_do_not_exist_are_wrong_usage() {
    let place = Place::new();
    let spec = format!("npz:{}", place.text("good.npz"));
    for (command, flag, value) in [
        ("train", "--optimizer", "nonsense"),
        ("train", "--ascent", "nonsense"),
        ("train", "--base", "nonsense"),
        ("train", "--augment", "nonsense"),
        ("train", "--schedule", "nonsense"),
        ("train", "--rho", "nonsense"),
        ("train", "--batch-size", "0"),
        ("eval", "--split", "nonsense"),
        ("grad", "--mode", "nonsense"),
        ("verify", "--batch", "0"),
    ] {
        let mut arguments = place.arguments(command, MODEL, &spec);
        match arguments.iter().position(|a| a == flag) {
            Some(i) => arguments[i + 1] = value.into(),
            None => arguments.extend([flag.to_owned(), value.to_owned()]),
        }
        let before = place.contents();
        let output = bisam(&arguments);
        let shown = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {shown}");
        assert!(shown.contains(flag) && shown.contains(value), "{arguments:?}: {shown}");
        assert!(place.contents() == before);
    }
}

#[cfg(unix)]
#[test]
fn an_output_that_is_a_link_stays_one() {
    let place = Place::new();
    std::os::unix::fs::symlink("out.onnx", place.path("link.onnx")).expect("links");
    let init: Vec<String> = ["init", MODEL, "--seed", "1", "-o", &place.text("link.onnx")].map(str::to_owned).into();
    assert!(bisam(&init).status.success());
    assert!(place.path("link.onnx").is_symlink());
    assert!(fs::read(place.path("out.onnx")).expect("reads").len() > 1000);
}

/// ONNX Runtime infers a negative size for it, which the crate that binds it does not expect.
#[test]
fn a_window_larger_than_its_input_is_an_error() {
    let place = Place::new();
    let model = changed(|graph| {
        set_dimension(graph, 2, 1);
        set_dimension(graph, 3, 1);
        let weight = graph.initializer.iter_mut().find(|t| t.name == "conv1.weight").expect("a weight");
        weight.dims = vec![8, 3, 5, 5];
        weight.raw_data = vec![0; 4 * 8 * 3 * 25];
        let conv = graph.node.iter_mut().find(|n| n.op_type == "Conv").expect("a convolution");
        for attribute in &mut conv.attribute {
            match attribute.name.as_str() {
                "kernel_shape" => attribute.ints = vec![5, 5],
                "pads" => attribute.ints = vec![0; 4],
                _ => {}
            }
        }
    });
    fs::write(place.0.path().join("large.onnx"), model).expect("writes");
    let file = place.text("large.onnx");
    for command in ["inspect", "train"] {
        let arguments = place.arguments(command, &file, "npz:models/reference/tiny_bn.npz");
        let output = bisam(&arguments);
        let shown = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!shown.contains("panicked"), "{command}: {shown}");
        assert!(shown.contains("impossible shape") || output.status.code() == Some(1), "{command}: {shown}");
    }
}

#[test]
fn what_only_cuda_has_is_an_error_on_the_cpu() {
    let bench = |flags: &[&str]| {
        let arguments: Vec<String> =
            ["bench", MODEL, "--batch", "4"].iter().chain(flags).map(|a| (*a).to_owned()).collect();
        let output = bisam(&arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for flags in [&["--tf32"][..], &["--cuda-graph", "off"], &["--precision", "bf16"]] {
        let (code, shown) = bench(flags);
        assert!(code == Some(1) && shown.contains("hint: ") && shown.contains("--device cuda"), "{flags:?}: {shown}");
    }
    assert_eq!(bench(&["--cuda-graph", "maybe"]).0, Some(2));
    assert_eq!(bench(&["--precision", "fp4"]).0, Some(2));
}

#[test]
fn a_model_that_is_not_there_is_told_with_what_is() {
    let place = Place::new();
    place.write("net.onnx", b"");
    let (gone, spec) = (place.text("nett.onnx"), format!("npz:{}", place.text("good.npz")));
    for command in ["inspect", "train", "eval", "grad", "init"] {
        let shown = place.refuses(&place.arguments(command, &gone, &spec), &gone, &["there is no such file"]);
        assert!(shown.contains(&format!("did you mean {}?", place.text("net.onnx"))), "{command}: {shown}");
    }
    let recipe = format!("model = {gone:?}\ndata = {spec:?}\n");
    place.write("recipe.toml", recipe.as_bytes());
    let arguments = ["train", "--recipe", &place.text("recipe.toml"), "-o", &place.text("run")].map(str::to_owned);
    let shown = place.refuses(&arguments, &gone, &["the model of the recipe is not there"]);
    assert!(shown.contains("bisam train MODEL"), "{shown}");
}

#[test]
fn a_gradient_of_nothing_is_refused() {
    let place = Place::new();
    let flatten = |graph: &mut GraphProto| {
        let output = graph.output[0].name.clone();
        let node = NodeProto {
            op_type: "Flatten".into(),
            input: vec!["x".into()],
            output: vec![output],
            ..Default::default()
        };
        (graph.node, graph.initializer) = (vec![node], Vec::new());
        graph.value_info.clear();
        graph.output[0].type_.mut_or_insert_default().mut_tensor_type().shape.clear();
    };
    place.write("empty.onnx", &changed(flatten));
    let (model, spec) = (place.text("empty.onnx"), format!("npz:{}", place.text("good.npz")));
    place.refuses(&place.arguments("grad", &model, &spec), &model, &["nothing in this model is trained"]);
}
