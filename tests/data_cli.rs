//! Data as users have them: folders by other names, classes matched by name, damaged files, labels of other forms, wrong paths.

use crate::common;
use bisam::data::write_npz;
use bisam::export::read_classes;
use bisam::ir::Tensor;
use bisam::onnx::import;
use bisam::train::{Recipe, Summary};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage, RgbaImage};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::process::Output;

/// Takes images [N, 3, 8, 8] by the name `x` to 10 classes.
const MODEL: &str = "models/tiny_bn.onnx";

/// Classes that a few steps tell apart.
const COLORS: [(&str, [u8; 3]); 4] =
    [("ant", [250, 10, 10]), ("bee", [10, 250, 10]), ("cat", [10, 10, 250]), ("dog", [240, 240, 240])];

struct Place(tempfile::TempDir);

/// What a command did and said.
struct Said {
    code: Option<i32>,
    stderr: String,
    stdout: Vec<u8>,
}

impl Said {
    fn well(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// Exit code 1, an error with every part, and a hint with every part.
    fn refused(self, error: &[&str], hint: &[&str]) {
        assert_eq!(self.code, Some(1), "{error:?}: {}", self.stderr);
        let line = |start: &str| self.stderr.lines().find(|l| l.starts_with(start)).unwrap_or_default().to_owned();
        let (said, advice) = (line("error: "), line("hint: "));
        assert!(error.iter().all(|p| said.contains(p)), "{error:?}: {}", self.stderr);
        assert!(!advice.is_empty() && hint.iter().all(|p| advice.contains(p)), "{hint:?}: {}", self.stderr);
    }

    fn notes(&self, parts: &[&str]) {
        for part in parts {
            assert!(
                self.stderr.lines().any(|l| l.starts_with("note: ") && l.contains(part)),
                "{part}: {}",
                self.stderr
            );
        }
    }

    fn silent_about(&self, part: &str) {
        assert!(!self.stderr.contains(part), "{part}: {}", self.stderr);
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).expect("JSON")
    }
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
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

    /// Four images of each of these classes, in their colors.
    fn classes(&self, folder: &str, names: &[&str]) {
        for name in names {
            let color = COLORS.iter().find(|(c, _)| c.eq_ignore_ascii_case(name)).map_or([90; 3], |(_, color)| *color);
            for i in 0..4u8 {
                let image = RgbImage::from_pixel(8, 8, Rgb(color.map(|v| v.saturating_sub(i))));
                self.write(&format!("{folder}/{name}/{i}.png"), &encoded(&image.into(), ImageFormat::Png));
            }
        }
    }

    fn train(&self, model: &str, data: &str, more: &[&str]) -> Said {
        let (format, path) = data.split_once(':').expect("a format");
        let spec = format!("{format}:{}", self.text(path));
        let run = self.text("run");
        let _ = fs::remove_dir_all(&run);
        let steps = if more.contains(&"--steps") { &[][..] } else { &["--steps", "1"] };
        let fixed = ["train", model, "--data", &spec, "--batch-size", "4", "--valid", "0", "-o", &run];
        bisam(&[&fixed[..], steps, more].concat())
    }

    fn eval(&self, model: &str, data: &str, more: &[&str]) -> Said {
        let spec = format!("images:{}", self.text(data));
        bisam(&[&["eval", model, "--data", &spec, "--json"][..], more].concat())
    }

    fn summary(&self) -> Summary {
        let text = fs::read_to_string(self.path("run/summary.json")).expect("written");
        serde_json::from_str(&text).expect("reads back")
    }

    fn npz(&self, x: Tensor, labels: Tensor) {
        let arrays = BTreeMap::from([("x".to_owned(), x), ("labels".to_owned(), labels)]);
        write_npz(&self.path("data.npz"), &arrays).expect("writes");
    }
}

fn bisam(arguments: &[&str]) -> Said {
    let mut command = common::bisam();
    let Output { status, stdout, stderr } =
        command.args(arguments).env("HOME", "/nonexistent/home").output().expect("starts");
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    Said { code: status.code(), stderr, stdout }
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

fn noise(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 37 + y * 11) as u8, (x * y * 5) as u8, (y * 53) as u8]))
}

/// The first 16 pixels of a GIF that a JPEG's name promises.
const GIF: &[u8] = b"GIF89a\x10\x00\x10\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x10\x00\x10\x00\x00\x02\x0e\x8c\x8f\xa9\xcb\xed\x0f\xa3\x9c\xb4\xda\x8b\xb3>\x05\x00;";

#[test]
fn splits_are_known_by_many_names() {
    let folders = [
        ("Training", "Testing", ""),
        ("TRAIN", "Test", "VAL"),
        ("train_set", "test-set", "validation_set"),
        ("inner/seg_train/seg_train", "inner/seg_test/seg_test", "inner/dev"),
        ("pets_train", "pets_test", "pets_val"),
    ];
    for (train, test, valid) in folders {
        let place = Place::new();
        place.classes(&format!("d/{train}"), &["ant", "bee"]);
        place.classes(&format!("d/{test}"), &["ant", "bee"]);
        if !valid.is_empty() {
            place.classes(&format!("d/{valid}"), &["bee"]);
        }
        place.classes("d/__MACOSX", &["train"]);
        place.write("d/.ipynb_checkpoints/x.png", b"");
        let said = place.train(MODEL, "images:d", &["--num-classes", "2"]).well();
        let summary = place.summary();
        assert_eq!(summary.classes, ["ant", "bee"], "{train}");
        assert!(summary.test_accuracy.is_some(), "{train}");
        assert_eq!(summary.best_valid_accuracy.is_some(), !valid.is_empty(), "{train}");
        said.notes(&["is the training set", "is the test set"]);
    }
}

#[test]
fn folders_that_could_be_splits_or_classes_are_refused_or_named() {
    let place = Place::new();
    place.classes("mixed/Training", &["ant", "bee"]);
    place.classes("mixed", &["cat"]);
    place.train(MODEL, "images:mixed", &[]).refused(&["`Training` looks like a split", "`cat`"], &["train/<class>"]);

    place.classes("lone", &["train", "car"]);
    place.train(MODEL, "images:lone", &[]).well().notes(&["`train` is taken for a class"]);
    assert_eq!(place.summary().classes[..2], ["car", "train"]);

    place.classes("two/train", &["ant", "bee"]);
    place.classes("two/val", &["ant"]);
    place.classes("two/valid", &["ant"]);
    place.train(MODEL, "images:two", &[]).refused(&["`val` and `valid`", "validation set"], &["keep one"]);
    fs::remove_dir_all(place.path("two/valid")).expect("removes");
    fs::create_dir(place.path("two/valid")).expect("makes");
    place.write("two/test/1.png", &fs::read(place.path("two/val/ant/1.png")).expect("reads"));
    place.write("two/train/ant/notes.txt", b"x");
    place.classes("two/extra", &["ant"]);
    let said = place.train(MODEL, "images:two", &[]).well();
    said.notes(&["test has images without class folders", "no test set", "`extra` beside the splits is not used"]);
    said.notes(&["1 file is no image and is passed over: train/ant/notes.txt"]);
    assert!(place.summary().best_valid_accuracy.is_some());
    said.notes(&["4 images are in the training set, too: val/ant/0.png"]);

    for class in ["ant", "bee"] {
        place.classes(&format!("inside/{class}"), &["train", "test"]);
    }
    place.train(MODEL, "images:inside", &[]).refused(&["the splits are within `ant`"], &["train/<class>"]);
    place.write("flat/1.png", b"x");
    place.train(MODEL, "images:flat", &[]).refused(&["1 image here, but no class folders"], &["<class>/*.jpg"]);
    place.classes("case/train", &["ant", "bee"]);
    place.classes("case/test", &["Bee"]);
    place.train(MODEL, "images:case", &[]).refused(&["class `Bee`"], &["`bee` by case only"]);
    place.classes("numbers", &["1", "2", "10"]);
    place.train(MODEL, "images:numbers", &[]).well().notes(&["folder `2` is class 2"]);
}

#[test]
fn classes_are_matched_by_name() {
    let place = Place::new();
    place.classes("all/train", &["ant", "bee", "cat", "dog"]);
    let steps = ["--steps", "60", "--optimizer", "sgd", "--lr", "0.1", "--schedule", "constant"];
    place.train(MODEL, "images:all", &[&steps[..], &["--num-classes", "4"]].concat()).well();
    let names = ["ant", "bee", "cat", "dog"];
    let model = place.text("run/model.onnx");
    let kept = |model: &str| read_classes(&import(std::path::Path::new(model)).expect("imports").proto).expect("names");
    assert_eq!(kept(&model), names);
    assert_eq!(Recipe::load(&place.path("run/recipe.toml")).expect("reads back").classes, names);

    // The file alone is enough, and the recipe alone, too.
    fs::copy(&model, place.path("alone.onnx")).expect("copies");
    let normalized = place.text("alone.onnx");
    place.classes("some", &["bee", "dog"]);
    let said = place.eval(&model, "some", &["--split", "train", "--per-class"]).well().json();
    assert_eq!(said["accuracy"], 1.0, "{said}");
    let samples = |class: usize| said["classes"][class]["samples"].as_u64();
    assert_eq!([0, 1, 2, 3].map(samples), [0, 4, 0, 4].map(Some));
    place.classes("tested/Testing", &["dog", "bee"]);
    assert_eq!(place.eval(&model, "tested", &[]).well().json()["accuracy"], 1.0, "no training set is needed");
    place.eval(&normalized, "tested", &[]).well().notes(&["there are no training images"]);
    place.eval(&model, "some", &[]).refused(&["there is no test split"], &["--split train"]);

    place.classes("wrong", &["bees", "dog"]);
    let wrong = place.eval(&model, "wrong", &["--split", "train"]);
    wrong.refused(&["wrong/bees: class `bees`", "the model's classes"], &["`bee`?"]);
    place.classes("upper", &["Bee", "dog"]);
    place.eval(&model, "upper", &["--split", "train"]).refused(&["class `Bee`"], &["by case only"]);
    let plain = place.eval(MODEL, "some", &["--split", "train"]).well();
    plain.notes(&["the model has 10 classes and no names for them, the data have 2: bee, dog"]);

    // A model that was exported goes on with its own classes, and with others only when asked.
    let said = place.train(&normalized, "images:some", &[]).well();
    said.notes(&["2 classes (bee, dog), the model 4", "--num-classes 2"]);
    assert_eq!(kept(&model), names);
    place.train(&normalized, "images:wrong", &[]).refused(&["class `bees`"], &["--num-classes"]);
    place.train(&normalized, "images:wrong", &["--num-classes", "2"]).well();
    assert_eq!(kept(&model), ["bees", "dog"]);
    place.train(&normalized, "images:wrong", &["--num-classes", "4"]).well().notes(&["they get new names"]);
    assert_eq!(kept(&model), ["bees", "dog", "2", "3"]);
    let run = place.text("run");
    fs::rename(place.path("wrong/bees"), place.path("wrong/cats")).expect("renames");
    bisam(&["train", "--resume", &run, "--steps", "2"]).refused(&["class `cats`"], &["bees, dog"]);
}

/// A JPEG with an EXIF segment that says so.
fn oriented(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let tiff = [
        &b"Exif\0\0II*\0\x08\0\0\0"[..],
        // One entry: tag 0x0112, type SHORT, one value.
        &[1, 0, 0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let length = (tiff.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &tiff, &jpeg[2..]].concat()
}

#[test]
fn images_are_turned_as_their_exif_orientation_says() {
    let place = Place::new();
    let jpeg = encoded(&noise(8, 12).into(), ImageFormat::Jpeg);
    let pixels = image::load_from_memory(&jpeg).expect("decodes");
    let upright: [(u8, DynamicImage); 5] = [
        (1, pixels.clone()),
        (2, pixels.fliph()),
        (3, pixels.rotate180()),
        (6, pixels.rotate90()),
        (8, pixels.rotate270()),
    ];
    let loss = |bytes: &[u8], name: &str| {
        place.write(&format!("d/train/ant/{name}"), bytes);
        let said = place.eval(MODEL, "d", &["--split", "train", "--batch-size", "1"]).well().json();
        fs::remove_file(place.path(&format!("d/train/ant/{name}"))).expect("removes");
        said["loss"].as_f64().expect("a loss")
    };
    let mut losses = Vec::new();
    for (orientation, turned) in upright {
        let from_jpeg = loss(&oriented(&jpeg, orientation), "a.jpg");
        assert_eq!(from_jpeg, loss(&encoded(&turned, ImageFormat::Png), "a.png"), "orientation {orientation}");
        losses.push(from_jpeg);
    }
    losses.dedup();
    assert_eq!(losses.len(), 5, "{losses:?}");
}

#[test]
fn damaged_and_foreign_files_are_named_or_left_out() {
    let place = Place::new();
    place.classes("d/train", &["ant", "bee"]);
    let (jpeg, png) =
        (encoded(&noise(64, 64).into(), ImageFormat::Jpeg), encoded(&noise(64, 64).into(), ImageFormat::Png));
    let mut broken = png.clone();
    broken[png.len() / 2] ^= 0xff;
    let damaged: [(&str, &[u8], &str); 7] = [
        ("gif.jpg", GIF, "it is a GIF, whatever its name says"),
        ("cut.jpg", &jpeg[..jpeg.len() / 2], "ends early"),
        ("cut.png", &png[..png.len() / 2], "ends early"),
        ("zero.jpg", b"", "the file is empty"),
        ("page.jpg", b"<!DOCTYPE html><html></html>", "an HTML page"),
        ("real.gif", GIF, "it is a GIF"),
        ("broken.png", &broken, "cannot be decoded"),
    ];
    for (name, bytes, cause) in damaged {
        let file = format!("d/train/ant/{name}");
        place.write(&file, bytes);
        for said in [place.train(MODEL, "images:d", &[]), place.eval(MODEL, "d", &["--split", "train"])] {
            said.refused(&[name, "cannot be decoded", cause], &["--skip-damaged"]);
        }
        fs::remove_file(place.path(&file)).expect("removes");
    }
    for (name, bytes, _) in damaged {
        place.write(&format!("d/train/ant/{name}"), bytes);
    }
    place.train(MODEL, "images:d", &[]).refused(&["there are 6 such files"], &["--skip-damaged"]);
    let said = place.train(MODEL, "images:d", &["--skip-damaged"]).well();
    said.notes(&["7 damaged files are left out: train/ant/cut.jpg (cannot be decoded"]);
    assert!(Recipe::load(&place.path("run/recipe.toml")).expect("reads back").skip_damaged);
    let said = place.eval(MODEL, "d", &["--split", "train", "--skip-damaged"]).well();
    assert_eq!(said.json()["samples"], 8);

    // What a class consists of must not vanish in silence.
    for i in 0..4 {
        place.write(&format!("d/train/bee/{i}.png"), b"x");
    }
    place.train(MODEL, "images:d", &["--skip-damaged"]).refused(&["bee: this class has no images"], &[]);
}

#[test]
fn the_content_decides_the_format_and_transparency_is_dropped() {
    let place = Place::new();
    place.classes("d", &["ant", "bee"]);
    let plain = place.eval(MODEL, "d", &["--split", "train"]).well().json();
    for i in 0..4 {
        let at = |end: &str| place.path(&format!("d/ant/{i}.{end}"));
        fs::rename(at("png"), at("JPG")).expect("renames");
        let mut image = image::open(place.path(&format!("d/bee/{i}.png"))).expect("opens").into_rgba8();
        image.pixels_mut().for_each(|p| p.0[3] = 7);
        RgbaImage::save(&image, place.path(&format!("d/bee/{i}.png"))).expect("saves");
    }
    let said = place.eval(MODEL, "d", &["--split", "train"]).well();
    said.notes(&["transparency is dropped: 4 of 8 images"]);
    assert_eq!(said.json(), plain);
}

#[test]
fn labels_are_checked_before_training() {
    let place = Place::new();
    let train = |labels: Tensor, more: &[&str]| {
        let n = labels.shape()[0];
        place.npz(Tensor::new(&[n, 3, 8, 8], &vec![0.5f32; n * 192]).expect("fits"), labels);
        place.train(MODEL, "npz:data.npz", more)
    };
    let numbers = |labels: &[i64]| Tensor::new(&[labels.len()], labels).expect("fits");
    let counted = train(numbers(&[1, 2, 9, 10]), &[]);
    counted.refused(&["labels are counted from 1", "from 1 to 10", "from 0 to 9"], &["subtract 1"]);
    train(numbers(&[0, 2, 9, 11]), &[]).refused(&["label 11 of sample 3"], &["--num-classes 12"]);
    train(numbers(&[0, 2, -1, 1]), &[]).refused(&["label -1 of sample 2 is negative"], &["from 0 on"]);
    train(numbers(&[4, 4, 4, 4]), &[]).well().notes(&["every training sample is of class 4"]);
    train(numbers(&[1, 2, 3, 4]), &[]).well().notes(&["no label is 0", "subtract 1"]);
    train(numbers(&[0, 1, 2, 1]), &[]).well().notes(&["3 classes (0, 1, 2), the model 10", "--num-classes 3"]);
    train(numbers(&[0, 1, 2, 1]), &["--num-classes", "3"]).well().silent_about("--num-classes");

    let whole = Tensor::new(&[4], &[0f32, 1., 2., 1.]).expect("fits");
    train(whole, &[]).well().notes(&["`labels` is f32[4] and is read as whole numbers"]);
    let column = Tensor::new(&[4, 1], &[0i64, 1, 2, 1]).expect("fits");
    train(column, &[]).well().notes(&["`labels` [4, 1]"]);
    let one_hot = Tensor::new(&[4, 2], &[0f32, 1., 1., 0., 0., 1., 1., 0.]).expect("fits");
    train(one_hot, &[]).well().notes(&["one-hot rows of 2 classes"]);
    let soft = Tensor::new(&[4, 2], &[0.5f32; 8]).expect("fits");
    train(soft, &[]).refused(&["`labels` is f32[4,2]", "row 0 is not one-hot"], &["argmax"]);
    let scores = Tensor::new(&[4], &[0.5f32, 1., 2., 1.]).expect("fits");
    train(scores, &[]).refused(&["label 0.5 of sample 0"], &["int64 [N]"]);

    place.classes("many", &["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9", "c10"]);
    place
        .train(MODEL, "images:many", &[])
        .refused(&["the data have 11 classes, but the model has 10"], &["--num-classes 11"]);
}

#[test]
fn arrays_of_other_names_and_shapes_are_named() {
    let place = Place::new();
    let labels = || Tensor::new(&[4], &[0i64, 1, 2, 1]).expect("fits");
    let x = |shape: &[usize]| Tensor::new(shape, &vec![0.5f32; shape.iter().product()]).expect("fits");
    let train = |arrays: &[(&str, Tensor)]| {
        let arrays = arrays.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect();
        write_npz(&place.path("data.npz"), &arrays).expect("writes");
        place.train(MODEL, "npz:data.npz", &[])
    };
    let shape = [4, 3, 8, 8];
    train(&[("x", x(&shape)), ("y", labels())]).refused(&["no array `labels`"], &["is `y` meant?"]);
    train(&[("X", x(&shape)), ("labels", labels())]).refused(&["no array for input `x`"], &["`X` as `x`"]);
    train(&[("x", x(&[3, 3, 8, 8])), ("labels", labels())])
        .refused(&["3 rows, but there are 4 labels"], &["first axis"]);
    train(&[("x", x(&[4, 8, 8, 3])), ("labels", labels())]).refused(&["f32[4,8,8,3]", "f32[4,3,8,8]"], &["transpose"]);
    train(&[("x", x(&[4, 192])), ("labels", labels())]).refused(&["f32[4,192]"], &["reshape"]);
    let other = [("x", x(&shape)), ("labels", labels()), ("val_x", x(&shape)), ("val_labels", labels())];
    train(&other).refused(&["`val_labels`"], &["`valid_`"]);
}

#[test]
fn wrong_places_are_told_from_right_ones() {
    let place = Place::new();
    place.classes("flowers", &["ant", "bee"]);
    place.train(MODEL, "images:flower", &[]).refused(&["flower: there is no such file or folder"], &["flowers?"]);
    place.train(MODEL, "images:no/such/place", &[]).refused(&["no such file"], &["holds: flowers"]);
    place.train(MODEL, "npz:flowers", &[]).refused(&["this is a folder"], &["images:DIR"]);
    place.train(MODEL, "image:flowers", &[]).refused(&["unknown data format `image`"], &["did you mean images:"]);
    let run = place.text("other");
    let missing = bisam(&["train", MODEL, "--data", "images:~/data", "-o", &run]);
    missing.refused(&["/nonexistent/home/data: there is no such file"], &[]);
    let folder = place.text("flowers");
    bisam(&["train", MODEL, "--data", &folder, "-o", &run])
        .refused(&["does not say its format"], &["did you mean images:"]);
    place.write("packed/cifar-10-binary.tar.gz", b"x");
    place.train(MODEL, "cifar10:packed", &[]).refused(&["no data_batch_1.bin"], &["tar -xf"]);
    place.write("python/cifar-10-batches-py/data_batch_1", b"x");
    place.train(MODEL, "cifar10:python", &[]).refused(&["no data_batch_1.bin"], &["Python version", "binary version"]);
    place.write("hundred/train.bin", b"x");
    place.train(MODEL, "cifar10:hundred", &[]).refused(&["no data_batch_1.bin"], &["cifar100:DIR"]);
    place.write("torch/MNIST/raw/train-images-idx3-ubyte", b"x");
    place.train(MODEL, "idx:torch", &[]).refused(&["no training images"], &["torch/MNIST/raw"]);
    place.write("deep/other/cifar-10-batches-bin/data_batch_1.bin", b"x");
    place.train(MODEL, "cifar10:deep", &[]).refused(&["no data_batch_1.bin"], &["other/cifar-10-batches-bin"]);
}
