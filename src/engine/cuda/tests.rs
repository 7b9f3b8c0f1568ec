//! Everything but a device: the libraries' functions, the compiler, and what operators launch, over `fake.c`.

use super::super::kernels::{Backwards, Geometry, Input, OPS, Settings, numbers};
use super::convolution::Convolution;
use super::device::Device;
use super::functions::{Cudnn, Driver, Handle, Nvrtc, Runtime};
use super::kernel::Module;
use super::operators::{self, Args, Call, Launcher, Operand, Pass};
use super::upload::Uploads;
use crate::error::Result;
use libloading::Library;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

/// `fake.c`, compiled.
fn fake() -> Library {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine/cuda/fake.c");
        let path = tempfile::tempdir().expect("a folder").keep().join("libfake.so");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let mut command = Command::new(compiler);
        command.args(["-std=gnu11", "-O1", "-shared", "-fPIC", "-o"]).arg(&path).arg(source).args(["-lm", "-ldl"]);
        assert!(command.status().expect("a C compiler").success(), "fake.c does not compile");
        path
    });
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
        let module = Module::open(fake_device(), &nvrtc, driver, cudnn()).expect("loads");
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

    fn convolve(&self, pass: Pass, geometry: &Geometry, inputs: [*const f32; 2], output: *mut f32) -> Result<()> {
        let convolution = Convolution::new(Arc::clone(&self.cudnn), handle(), pass, geometry, false)?;
        assert!(convolution.is(pass, geometry));
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
        assert!(error < 2e-5 * largest, "{name} {shapes:?}: output {i} is off by {error:e} of {largest}");
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

#[test]
fn what_a_device_cannot_do_is_an_error_with_its_words() {
    let error = Device::open(Runtime::open(fake()).expect("opens"), 3).err().expect("there is one device");
    assert!(error.to_string().contains("cuda:3: invalid device ordinal (CUDA error 101)"), "{error}");
    let device = fake_device();
    assert_eq!(device.capability().expect("known"), (9, 0));
    assert!(device.memory().expect("known").1 > 0);
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
