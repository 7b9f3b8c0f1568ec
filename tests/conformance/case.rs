//! One model of ONNX's backend tests: the same outputs after import and emission, and gradients against differences.

use crate::common::engine;
use bisam::autodiff::table::{self, Entry};
use bisam::autodiff::{differentiate, lower};
use bisam::ir::{DType, Declared, Graph, Source, Tensor, ValueId, set_float_type};
use bisam::onnx::{Weights, emit, from_proto, import, to_tensor};
use bisam::trace::{Evaluator, Sizes, concretize};
use bisam::{Error, Result};
use onnx_protobuf::{Message, ModelProto, TensorProto};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// How a check of a case ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// As it should be.
    Right,
    /// There is nothing to check, or nothing to check it with; with the reason.
    LeftOut(String),
    /// Nothing comes out where something should; with the reason.
    Refused(String),
    /// Not as it should be.
    Wrong(String),
}

/// What a case is about and how it ended.
pub struct Report {
    /// The operator, or several.
    pub operator: String,
    /// Outputs of the emitted graph.
    pub forward: Outcome,
    /// Gradients of all float inputs.
    pub gradient: Outcome,
}

const FLOATS: [DType; 4] = [DType::F16, DType::BF16, DType::F32, DType::F64];

/// Elements of each input that are moved.
const ELEMENTS: usize = 12;

/// Input slots whose floats choose what an operator does, or that only lend their type.
const SETTINGS: &[(&str, &[usize])] = &[
    ("CastLike", &[1]),
    ("Dropout", &[1]),
    ("OneHot", &[0, 1]),
    ("Resize", &[1, 2]),
    ("Upsample", &[1]),
    ("Range", &[0, 1, 2]),
    ("QuantizeLinear", &[1]),
    ("NonMaxSuppression", &[0, 1, 3, 4]),
    ("MelWeightMatrix", &[3, 4]),
];

struct Runtime;

impl Evaluator for Runtime {
    fn evaluate(&self, model: &[u8], inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
        engine().evaluate(model, inputs)
    }
}

/// The recorded tensors `input_0.pb`, … of a case; an error says that one is no tensor.
fn recorded(folder: &Path, kind: &str) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for i in 0.. {
        let Ok(bytes) = std::fs::read(folder.join(format!("test_data_set_0/{kind}_{i}.pb"))) else { break };
        let proto = TensorProto::parse_from_bytes(&bytes).map_err(|_| Error::new("a recorded value is no tensor"))?;
        tensors.push(to_tensor(&proto)?);
    }
    Ok(tensors)
}

/// A wave for every input of a network whose file has no recorded ones.
fn made_up(proto: &ModelProto) -> Vec<Tensor> {
    let weights: Vec<&str> = proto.graph.initializer.iter().map(|i| i.name.as_str()).collect();
    let data = proto.graph.input.iter().filter(|i| !weights.contains(&i.name.as_str()));
    let wave = |info: &onnx_protobuf::ValueInfoProto| {
        let dims = &info.type_.tensor_type().shape.dim;
        let shape: Vec<usize> = dims.iter().map(|d| d.dim_value().max(1) as usize).collect();
        let values: Vec<f64> = (0..shape.iter().product()).map(|i| f64::from(i as u32).sin()).collect();
        Tensor::from_f64(DType::F32, &shape, &values)
    };
    data.map(wave).collect()
}

/// A case as it lies on disk.
struct Case {
    proto: ModelProto,
    bytes: Vec<u8>,
    operator: String,
    /// The names of inputs that are settings.
    settings: Vec<String>,
}

impl Case {
    fn read(folder: &Path, path: &Path) -> Self {
        let parse = |bytes: &[u8]| ModelProto::parse_from_bytes(bytes).unwrap_or_default();
        let bytes = std::fs::read(path).unwrap_or_default();
        let proto = parse(&bytes);
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let plain = name.split_once("_expanded").map(|(plain, _)| folder.with_file_name(plain).join("model.onnx"));
        let sibling = plain.map(|p| parse(&std::fs::read(p).unwrap_or_default()));
        let operator = if folder.is_file() { "(whole networks)".into() } else { operator(&proto, sibling.as_ref()) };
        let nodes = &sibling.as_ref().unwrap_or(&proto).graph.node;
        let slots = |op: &str| SETTINGS.iter().find(|(o, _)| *o == op).map_or(&[][..], |(_, s)| s);
        let of_node = |n: &onnx_protobuf::NodeProto| {
            slots(&n.op_type).iter().filter_map(|s| n.input.get(*s).cloned()).collect::<Vec<_>>()
        };
        let settings = nodes.iter().flat_map(of_node).collect();
        Self { proto, bytes, operator, settings }
    }

    /// Whether a float output may depend on a float input in a way that has a gradient other than 0.
    fn has_gradient(&self) -> bool {
        let float = |info: &onnx_protobuf::ValueInfoProto| {
            DType::from_onnx(info.type_.tensor_type().elem_type).is_some_and(|t| FLOATS.contains(&t))
        };
        let setting = |name: &String| self.settings.contains(name);
        let operator = self.operator.trim_end_matches(" (function body)");
        let nothing = |e: &Entry| match e {
            Entry::NoGradient(_) => true,
            Entry::Refused(why) => why.contains("piecewise constant"),
            Entry::Rule(_) | Entry::Lower(_) => false,
        };
        let none = table::tables().into_iter().flat_map(|(_, t)| t).any(|(op, e)| *op == operator && nothing(e));
        let g = &self.proto.graph;
        !none && g.input.iter().any(|i| float(i) && !setting(&i.name)) && g.output.iter().any(float)
    }

    /// The outcome of a case that this crate gives an error for.
    fn refused(&self, why: String) -> Outcome {
        if self.has_gradient() { Outcome::Refused(why) } else { Outcome::LeftOut(why) }
    }
}

/// Outputs and gradients of a model whose inputs are these, in order: what comes out against ONNX Runtime's own, and against differences.
pub fn compare(proto: &ModelProto, inputs: &[Tensor]) -> [Outcome; 2] {
    let bytes = proto.write_to_bytes().expect("encodes");
    let feeds: Vec<(&str, &Tensor)> = proto.graph.input.iter().map(|i| i.name.as_str()).zip(inputs).collect();
    let case = Case { bytes, operator: operator(proto, None), settings: Vec::new(), proto: proto.clone() };
    let expected = engine().evaluate(&case.bytes, &feeds).expect("ONNX Runtime runs it");
    let graph = from_proto(Path::new("model.onnx"), proto.clone()).expect("imports").graph;
    [forward(&graph, &feeds, Some(&expected), &[]), gradient(&case, &graph, &feeds)]
}

/// Checks the case in a folder, or the network in a file.
pub fn run(folder: &Path) -> Report {
    let network = folder.is_file();
    let path = if network { folder.to_owned() } else { folder.join("model.onnx") };
    let case = Case::read(folder, &path);
    let report = |forward, gradient| Report { operator: case.operator.clone(), forward, gradient };
    let both = |why: Outcome| report(why.clone(), why);
    let opset = case.proto.opset_import.iter().filter(|i| ["", "ai.onnx"].contains(&i.domain.as_str()));
    if opset.map(|i| i.version).max().is_some_and(|v| v < 7) {
        return both(Outcome::LeftOut("its operator set is older than 7".into()));
    }
    let values = if network {
        Ok((made_up(&case.proto), Vec::new()))
    } else {
        recorded(folder, "input").and_then(|i| Ok((i, recorded(folder, "output")?)))
    };
    let (inputs, outputs) = match values {
        Ok(values) => values,
        Err(e) => return both(case.refused(format!("types: {}", e.cause()))),
    };
    let weights: Vec<&str> = case.proto.graph.initializer.iter().map(|i| i.name.as_str()).collect();
    let names = case.proto.graph.input.iter().map(|i| i.name.as_str());
    let names = names.filter(|n| !network || !weights.contains(n));
    let feeds: Vec<(&str, &Tensor)> = names.zip(&inputs).collect();
    let by_runtime = engine().evaluate(&case.bytes, &feeds);
    let graph = match import(&path) {
        Ok(model) => model.graph,
        Err(e) if by_runtime.is_ok() => return both(case.refused(format!("import: {}", short(&e)))),
        Err(e) => return both(Outcome::LeftOut(format!("import: {}", short(&e)))),
    };
    let expected = match by_runtime {
        Ok(expected) => Some(expected),
        Err(e) => match emitted(&graph, &feeds) {
            // ONNX Runtime has no kernel for the file, but for what this crate makes of it.
            Ok(_) if !outputs.is_empty() => None,
            _ => return both(Outcome::LeftOut(format!("runtime: {}", short(&e)))),
        },
    };
    let once = emitted(&graph, &feeds).ok();
    if once.is_some() && once != emitted(&graph, &feeds).ok() {
        return both(Outcome::LeftOut("its outputs are random".into()));
    }
    // Random numbers follow from a seed here, which those recorded do not.
    let random = |n: &onnx_protobuf::NodeProto| ["Bernoulli", "RandomUniformLike"].contains(&n.op_type.as_str());
    let forward = match expected {
        None if case.proto.graph.node.iter().any(random) => Outcome::LeftOut("its outputs are random".into()),
        _ => forward(&graph, &feeds, expected.as_deref(), &outputs),
    };
    let mut gradient = gradient(&case, &graph, &feeds);
    if let Outcome::Wrong(why) = &gradient
        && network
        && why.ends_with("give 0.000000, 0.000000, 0.000000, 0.000000, 0.000000")
    {
        let why = "its weights are all the same number: the gradient is a difference of equal numbers, which rounding decides";
        gradient = Outcome::LeftOut(why.into());
    }
    report(forward, gradient)
}

/// The outputs of the emitted graph.
fn emitted(graph: &Graph, feeds: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
    let bytes = emit(graph, Weights::Initializers).write_to_bytes().map_err(|e| Error::new(e.to_string()))?;
    // Weights that the file lists as inputs are none any more.
    let given = graph.inputs.iter().filter_map(|v| {
        let (name, tensor) = feeds.iter().find(|(n, _)| graph[*v].name == *n)?;
        Some((*name, single(tensor)))
    });
    let given: Vec<(&str, Tensor)> = given.collect();
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (*n, t)).collect();
    engine().evaluate(&bytes, &given)
}

fn short(e: &Error) -> String {
    let text = e.cause().replace('\n', " ");
    text.chars().take(220).collect()
}

/// The operator of a single node; for the function body of an operator, that operator.
fn operator(proto: &ModelProto, sibling: Option<&ModelProto>) -> String {
    if let Some([node]) = sibling.map(|s| s.graph.node.as_slice()) {
        return format!("{} (function body)", node.op_type);
    }
    // What takes sequences and optional values apart stands around the operator.
    const AROUND: &[&str] = &["Constant", "SequenceConstruct", "SequenceEmpty", "SequenceAt", "Optional"];
    let mut operators: Vec<&str> = proto.graph.node.iter().map(|n| n.op_type.as_str()).collect();
    operators.retain(|op| !AROUND.contains(op));
    operators.dedup();
    match operators.as_slice() {
        [] => "Constant".into(),
        [one] => (*one).into(),
        _ => "(several)".into(),
    }
}

/// Compares with the file's own outputs, where it runs, and with the recorded ones, where there are some.
fn forward(graph: &Graph, feeds: &[(&str, &Tensor)], expected: Option<&[Tensor]>, recorded: &[Tensor]) -> Outcome {
    let found = match emitted(graph, feeds) {
        Ok(found) => found,
        Err(e) => return Outcome::Refused(format!("emitted it does not run: {}", short(&e))),
    };
    for (i, (a, b)) in found.iter().zip(expected.unwrap_or_default()).enumerate() {
        // Half precision is computed in f32.
        let tolerance = if a.dtype() == b.dtype() { 1e-5 } else { 2e-2 };
        if a.ty() != single(b).ty() || difference(a, b) > tolerance {
            return Outcome::Wrong(format!("output {i} changes by {:.1e}", difference(a, b)));
        }
    }
    if expected.is_some_and(|e| e.len() != found.len()) {
        return Outcome::Wrong("another number of outputs".into());
    }
    let off = recorded.iter().zip(&found).position(|(r, f)| single(r).ty() != f.ty() || difference(f, r) > 1e-2);
    match (off, expected) {
        (None, _) => Outcome::Right,
        (Some(_), Some(_)) => Outcome::LeftOut("runtime: its own outputs are not the recorded ones".into()),
        (Some(i), None) => Outcome::Wrong(format!("output {i} is not the recorded one")),
    }
}

/// The tensor, in f32 where it is of half precision.
fn single(t: &Tensor) -> Tensor {
    let half = matches!(t.dtype(), DType::F16 | DType::BF16);
    if half { Tensor::from_f64(DType::F32, t.shape(), &t.to_f64()) } else { t.clone() }
}

/// Largest |a − b|/(1 + |b|); NaN agrees with NaN.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    let apart = |(x, y): (f64, f64)| match (x.is_finite(), y.is_finite()) {
        (true, true) => (x - y).abs() / (1.0 + y.abs()),
        _ if x == y || (x.is_nan() && y.is_nan()) => 0.0,
        _ => f64::INFINITY,
    };
    a.to_f64().into_iter().zip(b.to_f64()).map(apart).fold(0.0, f64::max)
}

fn gradient(case: &Case, graph: &Graph, feeds: &[(&str, &Tensor)]) -> Outcome {
    for dtype in [DType::F64, DType::F32] {
        match gradient_in(case, graph, feeds, dtype) {
            Ok(outcome) => return outcome,
            Err(e) if dtype == DType::F64 && lacks_kernel(&e) => {}
            Err(e) => return case.refused(reason(graph, &e)),
        }
    }
    unreachable!("the last type returns")
}

fn lacks_kernel(e: &Error) -> bool {
    let text = e.to_string();
    [
        "Could not find an implementation",
        "NOT_IMPLEMENTED",
        "Type Error",
        "is invalid",
        "(tensor(double))",
        "not supported",
        "does not support double",
        "bit-width",
    ]
    .iter()
    .any(|m| text.contains(m))
}

fn reason(graph: &Graph, e: &Error) -> String {
    let mut missing = graph.nodes.iter().filter_map(|n| match table::find(n) {
        Ok(Entry::Refused(why)) => Some(format!("refused: {why}")),
        Err(_) => Some(format!("no rule for {}", n.qualified())),
        _ => None,
    });
    let text = short(e);
    let named = text.contains("no gradient rule") || text.contains("is quantized");
    missing.find(|_| named).unwrap_or(format!("gradient: {text}"))
}

/// A case in one float type.
struct Typed {
    graph: Graph,
    fed: Vec<(ValueId, Tensor)>,
}

fn typed(case: &Case, graph: &Graph, feeds: &[(&str, &Tensor)], dtype: DType) -> Result<Typed> {
    let mut graph = graph.clone();
    set_float_type(&mut graph, &FLOATS, dtype);
    let mut sizes = Sizes::batch(1);
    let mut fed = Vec::new();
    for v in graph.inputs.clone() {
        let Some((name, tensor)) = feeds.iter().find(|(n, _)| *n == graph[v].name) else { continue };
        let setting = case.settings.iter().any(|s| s == name);
        let float = FLOATS.contains(&tensor.dtype());
        let keep = graph.nodes.iter().any(|n| n.is("Resize") && n.input(2) == Some(v));
        let tensor =
            if float && !keep { Tensor::from_f64(dtype, tensor.shape(), &tensor.to_f64()) } else { (*tensor).clone() };
        if float && !setting {
            sizes.shapes.insert((*name).to_owned(), tensor.shape().to_vec());
            fed.push((v, tensor));
        } else {
            graph.set_source(v, Source::Constant(tensor));
            graph.inputs.retain(|i| *i != v);
        }
    }
    concretize(&mut graph, &sizes, &Runtime)?;
    Ok(Typed { graph, fed })
}

fn gradient_in(case: &Case, graph: &Graph, feeds: &[(&str, &Tensor)], dtype: DType) -> Result<Outcome> {
    let float = |(name, t): &(&str, &Tensor)| FLOATS.contains(&t.dtype()) && !case.settings.iter().any(|s| s == name);
    if !feeds.iter().any(float) {
        return Ok(Outcome::LeftOut("no float depends on a float".into()));
    }
    let Typed { graph, fed } = typed(case, graph, feeds, dtype)?;
    let mut session = engine().compile_model(&encode(&graph))?;
    let mut at = |fed: &[(ValueId, Tensor)]| -> Result<Vec<Vec<f64>>> {
        let feeds: Vec<(&str, &Tensor)> = fed.iter().map(|(v, t)| (graph[*v].name.as_str(), t)).collect();
        Ok(session.run(&feeds)?.iter().map(Tensor::to_f64).collect())
    };
    let here = at(&fed)?;
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut random = |n: usize| -> Vec<f64> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let mut backward = graph.clone();
    lower(&mut backward)?;
    let (mut seeds, mut weights, mut with_seeds) = (Vec::new(), Vec::new(), fed.clone());
    for (y, values) in graph.outputs.iter().zip(&here) {
        let ty = graph.ty(*y)?.clone();
        if !ty.dtype.is_float() || graph.constant(*y).is_some() {
            weights.push(None);
            continue;
        }
        // Nothing is learned from an output that is infinite or not a number.
        let u: Vec<f64> =
            random(ty.len()).iter().zip(values).map(|(u, y)| if y.is_finite() { *u } else { 0.0 }).collect();
        let seed = backward.add_value("u", Some(ty.clone()), Source::Input(Declared { dtype: ty.dtype, dims: None }));
        backward.inputs.push(seed);
        seeds.push((*y, seed));
        with_seeds.push((seed, Tensor::from_f64(ty.dtype, &ty.shape, &u)));
        weights.push(Some(u));
    }
    if fed.iter().all(|(_, t)| t.is_empty()) || seeds.is_empty() {
        return Ok(Outcome::LeftOut("no float depends on a float".into()));
    }
    let wrt: Vec<ValueId> = fed.iter().map(|(v, _)| *v).collect();
    let found = differentiate(&mut backward, &seeds, &wrt)?;
    backward.outputs = found.iter().flatten().copied().collect();
    backward.outputs.dedup();
    backward.remove_dead_nodes();
    let made: Vec<ValueId> = backward.outputs.iter().copied().filter(|v| backward[*v].source == Source::Node).collect();
    backward.outputs.clone_from(&made);
    let values = if made.is_empty() { Vec::new() } else { evaluate(&backward, &with_seeds)? };
    let gradients = found.iter().map(|g| {
        let g = (*g)?;
        let computed = made.iter().position(|m| *m == g).map(|i| values[i].clone());
        computed.or_else(|| with_seeds.iter().find(|(v, _)| *v == g).map(|(_, t)| t.clone()))
    });
    let gradients: Vec<Option<Tensor>> = gradients.collect();
    for (i, (x, base)) in fed.iter().enumerate() {
        let analytic = gradients[i].as_ref().map_or(vec![0.0; base.len()], Tensor::to_f64);
        let n = base.len();
        let mut places: Vec<usize> = (0..n.min(ELEMENTS)).map(|k| k * n / n.min(ELEMENTS)).collect();
        places.dedup();
        places.retain(|p| base.to_f64()[*p].is_finite());
        for place in places {
            let mut slope = |h: f64| -> Result<[f64; 3]> {
                let mut side = |h: f64| {
                    let mut moved = base.to_f64();
                    moved[place] += h;
                    let mut fed = fed.clone();
                    fed[i].1 = Tensor::from_f64(dtype, base.shape(), &moved);
                    let step = fed[i].1.to_f64()[place] - base.to_f64()[place];
                    at(&fed).map(|y| (y, step))
                };
                let ((high, up), (low, down)) = (side(h)?, side(-h)?);
                let along = |a: &[Vec<f64>], b: &[Vec<f64>], step: f64| -> f64 {
                    let terms = a.iter().zip(b).zip(&weights).filter_map(|((a, b), u)| Some((a, b, u.as_ref()?)));
                    let sum = |(a, b, u): (&Vec<f64>, &Vec<f64>, &Vec<f64>)| -> f64 {
                        let one =
                            |((a, b), u): ((&f64, &f64), &f64)| if a == b || *u == 0.0 { 0.0 } else { u * (a - b) };
                        a.iter().zip(b).zip(u).map(one).sum()
                    };
                    terms.map(sum).sum::<f64>() / step
                };
                Ok([along(&high, &low, up - down), along(&high, &here, up), along(&low, &here, down)])
            };
            let (steps, tolerance) = if dtype == DType::F64 {
                (&[1e-5, 1e-6, 1e-4, 1e-3, 1e-2][..], 2e-4)
            } else {
                (&[1e-2, 3e-3, 1e-3, 5e-2, 0.2][..], 1e-2)
            };
            let a = analytic[place];
            let (mut right, mut seen) = (false, Vec::<f64>::new());
            for h in steps {
                let h = h * base.to_f64()[place].abs().max(1.0);
                let [both, up, down] = slope(h)?;
                let near = |n: f64| (a - n).abs() <= tolerance * 1f64.max(n.abs());
                let kink = (up - down).abs() > 20.0 * tolerance * 1f64.max(both.abs());
                let between = a >= up.min(down) - tolerance && a <= up.max(down) + tolerance;
                // At the end of a domain only one side has a value.
                let one_sided = !both.is_finite() && (near(up) || near(down));
                if near(both) || one_sided || (kink && between) || (!both.is_finite() && !a.is_finite()) {
                    right = true;
                    break;
                }
                seen.push(both);
            }
            // At a jump the slope grows as the step shrinks.
            let jump = seen.len() > 1 && (seen[1] * steps[1] / (seen[0] * steps[0]) - 1.0).abs() < 1e-3;
            right |= jump && seen[0].abs() * steps[0] > 1e-3;
            if !right {
                let name = &graph[*x].name;
                let seen = seen.iter().map(|s| format!("{s:.6}")).collect::<Vec<_>>().join(", ");
                return Ok(Outcome::Wrong(format!("{dtype}: d/d{name}[{place}] is {a:.6}, differences give {seen}")));
            }
        }
    }
    Ok(Outcome::Right)
}

fn encode(graph: &Graph) -> Vec<u8> {
    emit(graph, Weights::Initializers).write_to_bytes().expect("encodes")
}

fn evaluate(graph: &Graph, fed: &[(ValueId, Tensor)]) -> Result<Vec<Tensor>> {
    let feeds: Vec<(&str, &Tensor)> =
        fed.iter().filter(|(v, _)| graph.inputs.contains(v)).map(|(v, t)| (graph[*v].name.as_str(), t)).collect();
    engine().evaluate(&encode(graph), &feeds)
}
