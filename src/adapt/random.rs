//! Random masks and noise: on in training, where they follow from the seed, and off in evaluation.
//!
//! A file has them as Dropout, or written out: a random source, then perhaps a comparison, a rounding or a scale, then a product with the data
//! (dropout, stochastic depth) or a sum (noise). What depends on random sources and constants alone is *noise*; where it meets data it can be
//! taken out: a mask of two values, one of them zero, goes together with the division by the share it keeps, and anything else becomes its mean.

use crate::error::{Error, Result};
use crate::ir::{Attr, Attrs, DType, Declared, Graph, Node, NodeId, Source, Tensor, Type, ValueId};
use std::collections::{HashMap, HashSet};

/// The input that takes the numbers which the random values of a pass follow from: [`KEYS`] whole numbers below 2²⁴, as f32.
pub const KEY: &str = "random";

/// Numbers of a key.
pub const KEYS: usize = 3;

/// The operator that makes uniform random numbers in [0, 1) from a key; attributes `id` and `output_shape`.
pub const UNIFORM: &str = "Uniform";

/// The domain of [`UNIFORM`].
const DOMAIN: &str = "bisam";

/// Samples that a mean is taken over.
const SAMPLES: usize = 4096;

const SOURCES: &[&str] =
    &["RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Bernoulli", "Multinomial"];

/// Names of the values that are noise.
pub fn noise_names(graph: &Graph) -> HashSet<String> {
    Noise::new(graph).values.into_iter().map(|v| graph[v].name.clone()).collect()
}

/// How noise is taken out where it meets data.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// The node passes this input on unchanged.
    Pass(NodeId, ValueId),
    /// This input of the node becomes a number.
    Mean(NodeId, usize, f64),
}

/// What takes the noise of a graph out.
///
/// # Errors
/// Randomness that cannot be taken out, since it is not a factor, a term or a condition beside data; names the node.
pub fn noise(graph: &Graph) -> Result<Vec<Edit>> {
    let random = Noise::new(graph);
    let mut edits = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        if is_source(node) && node.outputs.iter().flatten().any(|v| random.data.contains(v)) {
            return Err(
                node.blame(Error::new("it draws with chances that depend on the data, which has no evaluation mode"))
            );
        }
        if is_source(node) || node.inputs.iter().flatten().all(|v| !random.values.contains(v)) {
            continue;
        }
        if node.outputs.iter().flatten().any(|v| random.values.contains(v)) || !random.meets(node) {
            continue;
        }
        random.take_out(i, &mut edits)?;
    }
    Ok(edits)
}

/// Takes the noise of a graph out.
///
/// # Errors
/// As [`noise`].
pub(super) fn silence(graph: &mut Graph) -> Result<()> {
    for edit in noise(graph)? {
        match edit {
            Edit::Pass(n, v) => {
                let node = &mut graph.nodes[n];
                (node.op, node.inputs) = ("Identity".into(), vec![Some(v)]);
                node.attrs.clear();
            }
            Edit::Mean(n, slot, mean) => {
                let dtype = graph.nodes[n].output(0).and_then(|v| graph[v].ty.as_ref()).map_or(DType::F32, |t| t.dtype);
                let mean = graph.add_value("mean_of_noise", None, Source::Constant(Tensor::scalar(dtype, mean)));
                graph.nodes[n].inputs[slot] = Some(mean);
            }
        }
    }
    graph.remove_dead_nodes();
    Ok(())
}

fn is_source(node: &Node) -> bool {
    SOURCES.iter().any(|op| node.is(op))
}

/// The values of a graph that are noise.
struct Noise<'a> {
    graph: &'a Graph,
    values: HashSet<ValueId>,
    /// Values that depend on the values of inputs, or on noise and them.
    data: HashSet<ValueId>,
    producers: HashMap<ValueId, NodeId>,
}

impl<'a> Noise<'a> {
    fn new(graph: &'a Graph) -> Self {
        // What a Bernoulli reads is its chances.
        let data = graph.data(graph.inputs.iter().copied());
        let mut values = HashSet::new();
        for node in &graph.nodes {
            if is_source(node) || node.inputs.iter().flatten().any(|v| values.contains(v)) {
                values.extend(node.outputs.iter().flatten().filter(|v| !data.contains(v)));
            }
        }
        Self { graph, values, data, producers: graph.producers() }
    }

    /// Whether data and noise meet in a node.
    fn meets(&self, node: &Node) -> bool {
        let is_output = node.outputs.iter().flatten().any(|v| self.data.contains(v));
        is_output && !node.reads_shapes_only()
    }

    fn take_out(&self, n: NodeId, edits: &mut Vec<Edit>) -> Result<()> {
        let node = &self.graph.nodes[n];
        let cannot = || {
            node.blame(Error::new("random values are used in a way that cannot be switched off in evaluation"))
                .hint("dropout, stochastic depth and noise are products and sums with random values; export the model in evaluation mode")
        };
        let slot = (0..node.inputs.len())
            .find(|s| node.input(*s).is_some_and(|v| self.values.contains(&v)))
            .ok_or_else(cannot)?;
        let value = node.input(slot).ok_or_else(cannot)?;
        let samples = self.samples(value).ok_or_else(cannot)?;
        let mean = samples.iter().sum::<f64>() / SAMPLES as f64;
        let other = node.input(1 - slot.min(1)).filter(|v| self.data.contains(v));
        let zero = |v: Option<ValueId>| v.and_then(|v| self.number(v)) == Some(0.0);
        match node.op.as_str() {
            "Mul" => {
                let x = other.ok_or_else(cannot)?;
                let top = samples.iter().copied().fold(0.0, f64::max);
                let mask = samples.iter().all(|v| *v == 0.0 || *v == top) && samples.contains(&0.0) && top > 0.0;
                if mask || (mean - 1.0).abs() < 1e-2 {
                    edits.push(Edit::Pass(n, x));
                    self.compensation(n, x, mean, edits);
                } else {
                    edits.push(Edit::Mean(n, slot, if mean.abs() < 1e-2 { 0.0 } else { mean }));
                }
            }
            "Add" | "Sub" => {
                let x = other.ok_or_else(cannot)?;
                if mean.abs() < 1e-2 && (node.is("Add") || slot == 1) {
                    edits.push(Edit::Pass(n, x));
                } else {
                    edits.push(Edit::Mean(n, slot, mean));
                }
            }
            "PRelu" if slot == 1 => edits.push(Edit::Mean(n, slot, mean)),
            // The condition is random: data where it holds, zero where not, or the other way around.
            "Where" if slot == 0 => {
                let (x, kept) = match (node.input(1), node.input(2)) {
                    (Some(x), rest) if zero(rest) => (x, mean),
                    (first, Some(x)) if zero(first) => (x, 1.0 - mean),
                    _ => return Err(cannot()),
                };
                edits.push(Edit::Pass(n, x));
                self.compensation(n, x, kept, edits);
            }
            _ => return Err(cannot()),
        }
        Ok(())
    }

    /// Where a mask keeps a share of its input and does not divide by it, the division stands before or behind the product.
    fn compensation(&self, n: NodeId, x: ValueId, kept: f64, edits: &mut Vec<Edit>) {
        if (kept - 1.0).abs() < 1e-2 {
            return;
        }
        let divides = |m: NodeId, data: ValueId| {
            let node = &self.graph.nodes[m];
            let other =
                (0..2).find(|s| node.input(*s) != Some(data)).and_then(|s| node.input(s)).and_then(|v| self.number(v));
            match node.op.as_str() {
                "Div" if node.input(0) == Some(data) => other.is_some_and(|c| (c / kept - 1.0).abs() < 1e-2),
                "Mul" => other.is_some_and(|c| (c * kept - 1.0).abs() < 1e-2),
                _ => false,
            }
        };
        if let Some(m) = self.producers.get(&x).copied() {
            let before = self.graph.nodes[m].inputs.iter().flatten().copied().find(|v| self.data.contains(v));
            if let Some(data) = before.filter(|data| divides(m, *data)) {
                edits.push(Edit::Pass(m, data));
                return;
            }
        }
        let Some(y) = self.graph.nodes[n].output(0) else { return };
        let mut readers = (0..self.graph.nodes.len()).filter(|m| self.graph.nodes[*m].inputs.contains(&Some(y)));
        if let (Some(m), None) = (readers.next(), readers.next())
            && divides(m, y)
        {
            edits.push(Edit::Pass(m, y));
        }
    }

    /// The one number that a constant holds, also behind casts and the like.
    fn number(&self, v: ValueId) -> Option<f64> {
        if let Some(t) = self.graph.tensor(v) {
            return t.uniform();
        }
        let node = &self.graph.nodes[*self.producers.get(&v)?];
        let passes =
            ["Identity", "Cast", "CastLike", "Reshape", "Unsqueeze", "Squeeze", "Expand"].iter().any(|op| node.is(op));
        self.number(node.input(0).filter(|_| passes)?)
    }

    /// Samples of noise, evenly over what its source draws; each element alike. None where an operator is not known.
    fn samples(&self, v: ValueId) -> Option<Vec<f64>> {
        if let Some(n) = self.number(v) {
            return Some(vec![n; SAMPLES]);
        }
        let node = &self.graph.nodes[*self.producers.get(&v)?];
        let float = |name: &str, default: f64| match node.attrs.get(name) {
            Some(Attr::Float(v)) => f64::from(*v),
            _ => default,
        };
        let even = (0..SAMPLES).map(|i| (i as f64 + 0.5) / SAMPLES as f64);
        let of = |slot: usize| node.input(slot).and_then(|v| self.samples(v));
        let map = |f: fn(f64) -> f64| Some(of(0)?.into_iter().map(f).collect());
        let both = |f: fn(f64, f64) -> f64| Some(of(0)?.into_iter().zip(of(1)?).map(|(a, b)| f(a, b)).collect());
        match node.op.as_str() {
            "RandomUniform" | "RandomUniformLike" => {
                let (low, high) = (float("low", 0.0), float("high", 1.0));
                Some(even.map(|u| low + (high - low) * u).collect())
            }
            // Symmetric about its mean, which is all that counts.
            "RandomNormal" | "RandomNormalLike" => {
                let (mean, scale) = (float("mean", 0.0), float("scale", 1.0));
                Some(even.map(|u| mean + scale * (u - 0.5) * 12f64.sqrt()).collect())
            }
            "Bernoulli" => {
                let chance = self.number(node.input(0)?)?;
                Some(even.map(|u| f64::from(u8::from(u < chance))).collect())
            }
            "Identity" | "Cast" | "CastLike" | "Reshape" | "Unsqueeze" | "Squeeze" | "Expand" | "Transpose"
            | "Flatten" => {
                let to_bool = matches!(node.attrs.get("to"), Some(Attr::Int(9)));
                Some(of(0)?.into_iter().map(|v| if to_bool { f64::from(u8::from(v != 0.0)) } else { v }).collect())
            }
            "Floor" => map(f64::floor),
            "Ceil" => map(f64::ceil),
            "Neg" => map(|v| -v),
            "Not" => map(|v| 1.0 - v),
            "Reciprocal" => map(f64::recip),
            "Add" => both(|a, b| a + b),
            "Sub" => both(|a, b| a - b),
            "Mul" => both(|a, b| a * b),
            "Div" => both(|a, b| a / b),
            "Less" => both(|a, b| f64::from(u8::from(a < b))),
            "LessOrEqual" => both(|a, b| f64::from(u8::from(a <= b))),
            "Greater" => both(|a, b| f64::from(u8::from(a > b))),
            "GreaterOrEqual" => both(|a, b| f64::from(u8::from(a >= b))),
            "Where" => {
                let (c, a, b) = (of(0)?, of(1)?, of(2)?);
                Some(c.iter().zip(a.iter().zip(&b)).map(|(c, (a, b))| if *c != 0.0 { *a } else { *b }).collect())
            }
            _ => None,
        }
    }
}

/// Makes the random values of a concretized graph follow from an input of keys, [`KEY`]. Dropout nodes that drop are written out.
///
/// # Errors
/// A graph that is not concretized, or a source that cannot be seeded.
pub(super) fn seed(graph: &mut Graph) -> Result<()> {
    let drops = |g: &Graph, n: &Node| {
        n.is("Dropout") && n.input(2).and_then(|v| g.constant(v)).is_some_and(|t| t.to_f64() == [1.0])
    };
    if !graph.nodes.iter().any(|n| is_source(n) || drops(graph, n)) {
        return Ok(());
    }
    let keys = Type::new(DType::F32, &[KEYS]);
    let key = graph.add_value(KEY, Some(keys), Source::Input(Declared { dtype: DType::F32, dims: None }));
    graph.inputs.push(key);
    graph.opsets.insert(DOMAIN.into(), 1);
    let nodes = std::mem::take(&mut graph.nodes);
    let mut writer = Writer { graph, key, next: 0 };
    for node in nodes {
        if is_source(&node) {
            writer.source(&node).map_err(|e| node.blame(e))?;
        } else if drops(writer.graph, &node) {
            writer.dropout(&node).map_err(|e| node.blame(e))?;
        } else {
            writer.graph.nodes.push(node);
        }
    }
    Ok(())
}

/// Writes seeded random values in the place of random sources.
struct Writer<'a> {
    graph: &'a mut Graph,
    key: ValueId,
    next: i64,
}

impl Writer<'_> {
    fn push(&mut self, op: &str, inputs: &[ValueId], attrs: Attrs, ty: Type) -> ValueId {
        let out = self.graph.add_value(&format!("random/{op}"), Some(ty), Source::Node);
        self.write(op, inputs, attrs, out);
        out
    }

    fn write(&mut self, op: &str, inputs: &[ValueId], attrs: Attrs, out: ValueId) {
        let domain = if op == UNIFORM { DOMAIN } else { "" };
        let (name, inputs) = (self.graph[out].name.clone(), inputs.iter().copied().map(Some).collect());
        self.graph.nodes.push(Node {
            name,
            domain: domain.into(),
            op: op.into(),
            inputs,
            outputs: vec![Some(out)],
            attrs,
        });
    }

    fn scalar(&mut self, dtype: DType, value: f64) -> ValueId {
        self.graph.add_value("random/number", None, Source::Constant(Tensor::scalar(dtype, value)))
    }

    fn uniform(&mut self, shape: &[usize]) -> ValueId {
        let dims = Attr::Ints(shape.iter().map(|d| *d as i64).collect());
        let attrs = Attrs::from([("id".into(), Attr::Int(self.next)), ("output_shape".into(), dims)]);
        self.next += 1;
        self.push(UNIFORM, &[self.key], attrs, Type::new(DType::F32, shape))
    }

    fn binary(&mut self, op: &str, x: ValueId, number: f64, ty: &Type) -> ValueId {
        let number = self.scalar(DType::F32, number);
        self.push(op, &[x, number], Attrs::new(), ty.clone())
    }

    fn cast(&mut self, x: ValueId, out: ValueId) -> Result<()> {
        let to = i64::from(self.graph.ty(out)?.dtype.onnx());
        self.write("Cast", &[x], Attrs::from([("to".into(), Attr::Int(to))]), out);
        Ok(())
    }

    fn source(&mut self, node: &Node) -> Result<()> {
        let out = node.output(0).ok_or_else(|| Error::new("it has no output"))?;
        let shape = self.graph.ty(out)?.shape.clone();
        let ty = Type::new(DType::F32, &shape);
        let float = |name: &str, default: f64| match node.attrs.get(name) {
            Some(Attr::Float(v)) => f64::from(*v),
            _ => default,
        };
        let value = match node.op.as_str() {
            "RandomUniform" | "RandomUniformLike" => {
                let (low, high) = (float("low", 0.0), float("high", 1.0));
                let u = self.uniform(&shape);
                let scaled = self.binary("Mul", u, high - low, &ty);
                self.binary("Add", scaled, low, &ty)
            }
            // Box and Muller: √(−2 ln(1 − u)) cos 2πv.
            "RandomNormal" | "RandomNormalLike" => {
                let (u, v) = (self.uniform(&shape), self.uniform(&shape));
                let one = self.scalar(DType::F32, 1.0);
                let rest = self.push("Sub", &[one, u], Attrs::new(), ty.clone());
                let log = self.push("Log", &[rest], Attrs::new(), ty.clone());
                let square = self.binary("Mul", log, -2.0, &ty);
                let radius = self.push("Sqrt", &[square], Attrs::new(), ty.clone());
                let angle = self.binary("Mul", v, std::f64::consts::TAU, &ty);
                let cosine = self.push("Cos", &[angle], Attrs::new(), ty.clone());
                let normal = self.push("Mul", &[radius, cosine], Attrs::new(), ty.clone());
                let scaled = self.binary("Mul", normal, float("scale", 1.0), &ty);
                self.binary("Add", scaled, float("mean", 0.0), &ty)
            }
            "Bernoulli" => {
                let chances = node.input(0).ok_or_else(|| Error::new("it has no input"))?;
                let narrow = self.graph.add_value("random/chances", Some(ty.clone()), Source::Node);
                self.cast(chances, narrow)?;
                let u = self.uniform(&shape);
                self.push("Less", &[u, narrow], Attrs::new(), Type::new(DType::Bool, &shape))
            }
            op => {
                return Err(Error::new(format!("what {op} draws cannot follow from --seed"))
                    .hint("export the model without it, or in evaluation mode"));
            }
        };
        self.cast(value, out)
    }

    /// Y = X·M/(1 − r) with M = 1 where u ≥ r; ONNX Dropout-13.
    fn dropout(&mut self, node: &Node) -> Result<()> {
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return Err(Error::new("it has no output")) };
        let ratio = match node.input(1) {
            Some(r) => {
                self.graph.constant(r).and_then(Tensor::uniform).ok_or_else(|| Error::new("its ratio is computed"))?
            }
            None => 0.5,
        };
        let ty = self.graph.ty(x)?.clone();
        let (u, bools) = (self.uniform(&ty.shape), Type::new(DType::Bool, &ty.shape));
        let number = self.scalar(DType::F32, ratio);
        let mask = match node.output(1) {
            Some(mask) => {
                self.write("GreaterOrEqual", &[u, number], Attrs::new(), mask);
                mask
            }
            None => self.push("GreaterOrEqual", &[u, number], Attrs::new(), bools),
        };
        let kept = self.graph.add_value("random/kept", Some(ty.clone()), Source::Node);
        self.cast(mask, kept)?;
        let scale = self.scalar(ty.dtype, if ratio < 1.0 { 1.0 / (1.0 - ratio) } else { 0.0 });
        let factor = self.push("Mul", &[kept, scale], Attrs::new(), ty);
        self.write("Mul", &[x, factor], Attrs::new(), y);
        Ok(())
    }
}
