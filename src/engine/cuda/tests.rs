//! Everything but a device: the libraries' functions, the compiler, and what operators launch, over `fake.c`.

use super::super::kernels::{Backwards, Geometry, Input, OPS, Settings, numbers};
use super::super::tests::engine;
use super::convolution::Convolution;
use super::device::Device;
use super::elementwise::source;
use super::functions::{Cudnn, Driver, Handle, Nvrtc, Runtime};
use super::module::Module;
use super::operators::{self, Args, Call, Launcher, Operand, Pass};
use super::upload::Uploads;
use crate::error::Result;
use crate::ir::{Attr, Declared, Graph, Source, Tensor, ValueId};
use crate::step::elementwise::fuse_elementwise;
use crate::step::flat::{accumulate_stage, perturb_stage, start_stage, update_stage};
use crate::step::update::Ending;
use crate::step::{Preset, StepOptions};
use libloading::Library;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

/// `fake.c` with more kernels behind it, compiled.
fn fake_with(kernels: &str) -> PathBuf {
    let folder = tempfile::tempdir().expect("a folder").keep();
    let (source, path) = (folder.join("more.c"), folder.join("libfake.so"));
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine/cuda");
    std::fs::write(&source, format!("#include \"fake.c\"\n{kernels}")).expect("writes");
    let mut command = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()));
    command.args(["-std=gnu11", "-O1", "-shared", "-fPIC", "-Wl,-Bsymbolic", "-iquote"]).arg(here).arg("-o").arg(&path);
    assert!(
        command.arg(source).args(["-lm", "-ldl"]).status().expect("a C compiler").success(),
        "fake.c does not compile"
    );
    path
}

/// `fake.c`, compiled once.
fn fake() -> Library {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    open(PATH.get_or_init(|| fake_with("")))
}

fn open(path: &Path) -> Library {
    // SAFETY: the library has no initializers.
    unsafe { Library::new(path) }.expect("loads")
}

/// A device whose memory is the host's.
pub fn fake_device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| Device::open(Runtime::open(fake()).expect("all functions"), 0).expect("opens"))
}

/// The real compiler, which needs no device.
pub fn nvrtc() -> Nvrtc {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".onnxruntime/nvrtc");
    let files = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|f| f.path());
    let named = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libnvrtc.so"));
    let path = files.into_iter().find(named).expect("run `make nvrtc` first");
    // SAFETY: NVIDIA's library is made to be loaded.
    Nvrtc::open(unsafe { Library::new(path) }.expect("loads")).expect("all functions")
}

/// Runs kernels on the fake device.
struct Fake {
    module: Module,
    cudnn: Arc<Cudnn>,
    taken: RefCell<Vec<Vec<f32>>>,
}

impl Fake {
    fn new() -> Self {
        let (nvrtc, driver) = (Nvrtc::open(fake()).expect("NVRTC"), Driver::open(fake()).expect("driver"));
        let cudnn = || Cudnn::open(fake()).expect("cuDNN");
        let module = Module::open(fake_device(), nvrtc, driver, cudnn()).expect("loads");
        Self { module, cudnn: Arc::new(cudnn()), taken: RefCell::default() }
    }
}

/// Anything but null.
fn handle() -> Handle {
    std::ptr::dangling_mut::<u8>().cast()
}

impl Launcher for Fake {
    fn launch(&self, kernel: &'static str, blocks: [usize; 2], args: &Args) -> Result<()> {
        self.module.launch(kernel, blocks, args, handle())
    }

    fn scratch(&self, floats: usize) -> Result<*mut f32> {
        // Doubles lie in it, too; NaN shows what is read before it is written.
        let mut block = vec![f32::NAN; floats + 2];
        let start = block.as_ptr().align_offset(8);
        let pointer = block[start..].as_mut_ptr();
        self.taken.borrow_mut().push(block);
        Ok(pointer)
    }

    fn convolve(
        &self,
        pass: Pass,
        geometry: &Geometry,
        half: bool,
        inputs: [*const f32; 2],
        output: *mut f32,
    ) -> Result<()> {
        let convolution = Convolution::new(Arc::clone(&self.cudnn), handle(), pass, geometry, half, false)?;
        assert!(convolution.is(pass, geometry, half));
        let space = self.scratch(convolution.workspace().div_ceil(4))?;
        // SAFETY: the operator's tensors have the shapes of the geometry.
        unsafe { convolution.run(handle(), inputs, space, output) }
    }
}

fn settings(ints: &[(&'static str, &[i64])], ceiling: f32) -> Settings {
    let ints = ints.iter().map(|(name, values)| (*name, values.to_vec())).collect();
    Settings { ints, epsilon: 1e-3, ceiling }
}

/// Compares an operator with its kernel on the CPU, for inputs of these shapes; those in `positive` are variances.
fn agree(gpu: &Fake, name: &str, settings: &Settings, shapes: &[&[usize]], positive: &[usize], outputs: usize) {
    let op = OPS.into_iter().find(|op| op.name == name).expect("is an operator");
    let mut data: Vec<Vec<f32>> =
        shapes.iter().enumerate().map(|(i, s)| numbers(i as u64 + 1, s.iter().product())).collect();
    for i in positive {
        data[*i].iter_mut().for_each(|v| *v = v.abs() + 0.1);
    }
    if name.starts_with("MaxPool") {
        // Equal maxima.
        data[0].iter_mut().for_each(|v| *v = (*v * 3.0).round());
    }
    if name == "SoftmaxGrad" {
        data[0].iter_mut().for_each(|v| *v = v.abs());
    }
    let of: Vec<Vec<usize>> = shapes.iter().map(|s| s.to_vec()).collect();
    let made = (op.shapes)(settings, &of).expect("fits")[..outputs].to_vec();
    let inputs: Vec<Input<'_>> =
        of.iter().zip(&data).map(|(shape, data)| Input { shape: shape.clone(), data }).collect();
    let room = || made.iter().map(|s| vec![f32::NAN; s.iter().product()]).collect::<Vec<Vec<f32>>>();
    let (mut want, mut got) = (room(), room());
    let mut slices: Vec<&mut [f32]> = want.iter_mut().map(Vec::as_mut_slice).collect();
    (op.compute)(settings, &inputs, &made, &mut slices, &Backwards).expect("computes");
    let operands: Vec<Operand> =
        of.iter().zip(&data).map(|(s, d)| Operand { shape: s.clone(), data: d.as_ptr() }).collect();
    let pointers: Vec<*mut f32> = got.iter_mut().map(|v| v.as_mut_ptr()).collect();
    let call = Call { settings, inputs: &operands, shapes: &made, outputs: &pointers };
    operators::run(name, &call, gpu).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let largest = want.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
        let error = got.iter().zip(want).fold(0.0f32, |m, (g, w)| m.max(if g == w { 0.0 } else { (g - w).abs() }));
        // A rounding of factors and result each, as many as there are; they partly cancel.
        let tolerance = if settings.bf16() { 2e-2 } else { 2e-5 };
        assert!(error < tolerance * largest, "{name} {shapes:?}: output {i} is off by {error:e} of {largest}");
    }
    gpu.taken.take();
}

#[test]
fn operators_compute_what_they_do_on_the_cpu() {
    let gpu = Fake::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut check = |name: &'static str, s: &Settings, shapes: &[&[usize]], positive: &[usize], outputs: usize| {
        agree(&gpu, name, s, shapes, positive, outputs);
        seen.insert(name);
    };
    // The padding of opposite sides alike and not, strides that leave a rest, groups, dilations, a depthwise one.
    type Conv<'a> = ([usize; 4], [usize; 4], &'a [i64], [i64; 2], [i64; 2], i64);
    let convolutions: [Conv<'_>; 6] = [
        ([2, 3, 6, 5], [4, 3, 3, 3], &[1, 1, 1, 1], [1, 1], [1, 1], 1),
        ([2, 4, 7, 8], [6, 2, 3, 2], &[1, 0, 1, 1], [2, 1], [1, 1], 2),
        ([1, 3, 9, 9], [3, 1, 3, 3], &[2, 2, 2, 2], [1, 2], [2, 2], 3),
        ([2, 2, 5, 5], [3, 2, 1, 1], &[0, 0, 0, 0], [2, 2], [1, 1], 1),
        ([1, 2, 6, 6], [2, 2, 3, 3], &[0, 0, 1, 1], [2, 2], [1, 1], 1),
        ([1, 2, 6, 6], [2, 2, 3, 3], &[2, 1, 0, 3], [1, 1], [1, 2], 1),
    ];
    for (x, w, pads, strides, dilations, group) in &convolutions {
        let attributes = [("pads", *pads), ("strides", strides), ("dilations", dilations), ("group", &[*group])];
        let s = settings(&attributes, 1.0);
        let op = OPS.into_iter().find(|op| op.name == "Conv").expect("is there");
        let y = (op.shapes)(&s, &[x.to_vec(), w.to_vec()]).expect("fits").remove(0);
        check("Conv", &s, &[x, w], &[], 1);
        check("Conv", &s, &[x, w, &[w[0]]], &[], 1);
        let sizes = [[x[2] as i64, x[3] as i64], [w[2] as i64, w[3] as i64]];
        let with = |name, size| settings(&[&attributes[..], &[(name, size)]].concat(), 1.0);
        let half = |name, size| settings(&[&attributes[..], &[(name, size), ("bf16", &[1])]].concat(), 1.0);
        check("Conv", &half("bf16", &[1]), &[x, w, &[w[0]]], &[], 1);
        check("ConvInputGrad", &half("input_shape", &sizes[0]), &[&y, w], &[], 1);
        check("ConvWeightGrad", &half("kernel_shape", &sizes[1]), &[x, &y], &[], 1);
        check("ConvInputGrad", &with("input_shape", &sizes[0]), &[&y, w], &[], 1);
        check("ConvWeightGrad", &with("kernel_shape", &sizes[1]), &[x, &y], &[], 1);
    }
    // More than one slice of a channel, and planes of one element.
    for x in [[3, 2, 5, 4], [2, 3, 70, 71], [17, 4, 1, 1]] {
        let c = [x[1]];
        for (relu, ceiling) in [(0, f32::INFINITY), (1, f32::INFINITY), (1, 0.5)] {
            let s = settings(&[("relu", &[relu])], ceiling);
            check("BatchNorm", &s, &[&x, &c, &c], &[], 3);
            check("BatchNorm", &s, &[&x, &c, &c, &x], &[], 3);
            check("BatchNormGrad", &s, &[&x, &x, &c, &c, &c, &c], &[5], 3);
            check("BatchNormGrad", &s, &[&x, &x, &c, &c, &c, &c, &x], &[5], 4);
            check("BatchNormAgain", &s, &[&[1], &x, &c, &c, &c, &c], &[5], 1);
        }
    }
    for (x, axis) in [([3, 5, 7], 2), ([2, 70, 3], 1), ([65, 2, 150], 1)] {
        let tail = &x[axis..];
        for centred in [0, 1] {
            let s = settings(&[("centred", &[centred]), ("axis", &[axis as i64])], 1.0);
            check("LayerNorm", &s, &[&x], &[], 1);
            check("LayerNorm", &s, &[&x, tail], &[], 1);
            check("LayerNorm", &s, &[&x, tail, tail], &[], 1);
            check("LayerNormAgain", &s, &[&[1], &x, tail, tail], &[], 1);
            check("LayerNormGrad", &s, &[&x, &x], &[], 1);
            check("LayerNormGrad", &s, &[&x, &x, tail], &[], 3);
        }
    }
    let none = settings(&[], 1.0);
    for x in [[2, 3, 5], [4, 2, 300]] {
        check("Softmax", &none, &[&x], &[], 1);
        for name in ["SoftmaxGrad", "SiluGrad", "GeluGrad", "SiluAgain", "GeluAgain"] {
            check(name, &none, &[&x, &x], &[], 1);
        }
        check("Silu", &none, &[&x], &[], 1);
        check("Gelu", &none, &[&x], &[], 1);
    }
    type Pool = ([usize; 4], [i64; 2], [i64; 2], [i64; 2], [i64; 2], [usize; 2]);
    let pools: [Pool; 4] = [
        ([2, 3, 8, 8], [2, 2], [2, 2], [1, 1], [0, 0], [4, 4]),
        ([1, 2, 7, 9], [3, 3], [2, 2], [1, 1], [1, 1], [4, 5]),
        ([1, 2, 6, 5], [3, 2], [1, 1], [2, 1], [2, 0], [6, 5]),
        ([1, 1, 3, 3], [2, 2], [2, 2], [1, 1], [2, 1], [3, 2]),
    ];
    for (x, kernel, strides, dilations, begin, out) in &pools {
        let out = [out[0] as i64, out[1] as i64];
        let attributes: [(&str, &[i64]); 5] = [
            ("kernel_shape", kernel),
            ("strides", strides),
            ("dilations", dilations),
            ("pads", begin),
            ("output_shape", &out),
        ];
        let s = settings(&attributes, 1.0);
        check("MaxPool", &s, &[x], &[], 1);
        check("MaxPoolGrad", &s, &[x, &[x[0], x[1], out[0] as usize, out[1] as usize]], &[], 1);
    }
    let all: std::collections::BTreeSet<&str> = OPS.iter().map(|op| op.name).collect();
    assert_eq!(seen, all);
}

/// A stage's graph on the fake device: its elementwise runs there, and what is left between them in ONNX Runtime.
fn evaluate(graph: &Graph, given: &BTreeMap<String, Tensor>) -> Vec<Tensor> {
    let runs: Vec<(usize, String)> = (graph.nodes.iter().enumerate())
        .filter_map(|(i, n)| {
            Some((i, n.attrs.get("body").and_then(|b| if let Attr::Str(b) = b { Some(b) } else { None })?.clone()))
        })
        .collect();
    let rename = |(i, body): &(usize, String)| {
        source(&body.parse().expect("a body")).replace("(elementwise)", &format!("(run{i})"))
    };
    let library = fake_with(&runs.iter().map(rename).collect::<String>());
    let driver = Driver::open(open(&library)).expect("driver");
    let mut values: BTreeMap<String, Tensor> = given.clone();
    for (i, node) in graph.nodes.iter().enumerate() {
        let read: Vec<Tensor> = (node.inputs.iter().flatten())
            .map(|v| graph.constant(*v).cloned().unwrap_or_else(|| values[&graph[*v].name].clone()))
            .collect();
        let made: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
        if runs.iter().any(|(at, _)| *at == i) {
            let inputs: Vec<Vec<f32>> = read.iter().map(Tensor::to_f32).collect();
            let n = graph.ty(made[0]).expect("typed").len();
            let mut outputs = vec![vec![f32::NAN; n]; made.len()];
            let mut args = Args::default();
            args.n[0] = n as i64;
            inputs.iter().zip(&mut args.x).for_each(|(v, x)| *x = v.as_ptr());
            outputs.iter_mut().zip(&mut args.y).for_each(|(v, y)| *y = v.as_mut_ptr());
            let name = std::ffi::CString::new(format!("run{i}")).expect("a name");
            let (mut function, mut pointers) = (std::ptr::null_mut(), [std::ptr::from_mut(&mut args).cast()]);
            // SAFETY: the kernel was compiled for these arguments.
            let status = unsafe {
                assert_eq!((driver.cuModuleGetFunction)(&raw mut function, handle(), name.as_ptr()), 0);
                let (p, none) = (pointers.as_mut_ptr(), std::ptr::null_mut());
                (driver.cuLaunchKernel)(function, 2, 1, 1, 256, 1, 1, 0, handle(), p, none)
            };
            assert_eq!(status, 0);
            for (v, output) in made.iter().zip(outputs) {
                values.insert(graph[*v].name.clone(), Tensor::new(&[n], &output).expect("fits"));
            }
        } else {
            let mut one = graph.clone();
            one.nodes = vec![node.clone()];
            one.inputs = node.inputs.iter().flatten().filter(|v| graph.constant(**v).is_none()).copied().collect();
            one.inputs.dedup();
            for v in &one.inputs.clone() {
                let dtype = graph.ty(*v).expect("typed").dtype;
                one.set_source(*v, Source::Input(Declared { dtype, dims: None }));
            }
            one.outputs = made.clone();
            let inputs: Vec<(&str, &Tensor)> =
                one.inputs.iter().map(|v| (graph[*v].name.as_str(), &values[&graph[*v].name])).collect();
            let results = engine().compile(&one).expect("compiles").run(&inputs).expect("runs");
            for (v, result) in made.iter().zip(results) {
                values.insert(graph[*v].name.clone(), result);
            }
        }
    }
    graph.outputs.iter().map(|v| values[&graph[*v].name].clone()).collect()
}

#[test]
fn elementwise_runs_compute_what_their_operators_do() {
    const LEN: usize = 700;
    let mut fused = 0;
    for (preset, name) in Preset::ALL {
        let options = StepOptions { clip_norm: Some(0.5), ..preset.options() };
        let stages = [
            start_stage(LEN, &options),
            perturb_stage(LEN, &options),
            accumulate_stage(LEN, &options),
            update_stage(LEN, &options, Ending::Whole).map(Some),
        ];
        for mut graph in stages.into_iter().filter_map(|g| g.expect("builds")) {
            let mut given = BTreeMap::new();
            for (i, v) in graph.inputs.iter().enumerate() {
                let shape = graph.ty(*v).expect("typed").shape.clone();
                // Second moments and precisions are not below 0.
                let values: Vec<f32> =
                    numbers(i as u64, shape.iter().product()).iter().map(|v| v.abs() + 0.01).collect();
                given.insert(graph[*v].name.clone(), Tensor::new(&shape, &values).expect("fits"));
            }
            let inputs: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
            let want = engine().compile(&graph).expect("compiles").run(&inputs).expect("runs");
            let before = graph.nodes.len();
            fuse_elementwise(&mut graph).expect("fuses");
            fused += before - graph.nodes.len();
            let here = engine().compile(&graph).expect("compiles").run(&inputs).expect("runs");
            let there = evaluate(&graph, &given);
            for (got, want) in here.iter().chain(&there).zip(want.iter().chain(&want)) {
                let (got, want) = (got.to_f32(), want.to_f32());
                let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let error = got.iter().zip(&want).fold(0.0f32, |m, (g, w)| m.max((g - w).abs()));
                assert!(error <= 2e-6 * largest, "{name} {}: off by {error:e} of {largest}", graph.name);
            }
        }
    }
    assert!(fused > 100, "{fused} nodes fewer");
}

#[test]
fn what_a_device_cannot_do_is_an_error_with_its_words() {
    let error = Device::open(Runtime::open(fake()).expect("opens"), 3).err().expect("there is one device");
    assert!(error.to_string().contains("cuda:3: invalid device ordinal (CUDA error 101)"), "{error}");
    let device = fake_device();
    assert_eq!(device.capability().expect("known"), (9, 0));
    assert_eq!(device.used().expect("known"), 0);
    let error = device.allocate(usize::MAX / 2).expect_err("too much");
    assert!(error.to_string().contains("bytes of device memory"), "{error}");
    let gpu = Fake::new();
    let error = gpu.launch("no_kernel", [1, 1], &Args::default()).expect_err("is none");
    assert!(error.to_string().contains("no_kernel: named symbol not found"), "{error}");
}

#[test]
fn a_library_that_lacks_a_function_is_named() {
    // SAFETY: the C library is loaded already.
    let libc = unsafe { Library::new("libc.so.6") }.expect("loads");
    let error = Cudnn::open(libc).err().expect("is not cuDNN");
    assert!(error.to_string().contains("cuDNN lacks the function `cudnnGetErrorString`"), "{error}");
}

#[test]
fn batches_arrive_as_they_were() {
    let device = fake_device();
    let uploads = Uploads::new(device, 64).expect("places");
    let target = device.allocate(64).expect("memory");
    for round in 0..5u8 {
        let batch: Vec<u8> = (0..40).map(|i| i * 3 + round).collect();
        let mut back = [0; 40];
        // SAFETY: all of these have at least 40 bytes.
        unsafe {
            uploads.send(target, 40, |to| to.copy_from_slice(&batch)).expect("is sent");
            device.copy(target, back.as_mut_ptr(), 40).expect("is copied");
        }
        device.synchronize().expect("waits");
        assert_eq!(back[..], batch);
    }
    drop(uploads);
    // SAFETY: nothing uses it any more.
    unsafe { device.free(target) };
}
