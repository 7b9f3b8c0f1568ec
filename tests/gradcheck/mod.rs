//! Every gradient rule against finite differences.
//!
//! A [`Row`] is one node with its inputs. For each differentiable input x, a random direction v and random output weights u, the
//! check compares ⟨Jᵀu, v⟩, computed by the rule, with ⟨u, (f(x + hv) − f(x − hv))/2h⟩ (of fourth order), computed by the operator
//! itself, both on ONNX Runtime: in float32, and more sharply in
//! float64 where it has the kernels. It also compares the type of every value of
//! the gradient graph with what comes out.
//!
//! A new operator needs a line in one of the `rows_*.rs` files: `row("Add", "broadcast").x(&[2, 3]).x(&[3])`. [`refused`] checks
//! that a variant gives an error instead.

mod fused;
mod rows_activation;
mod rows_attention;
mod rows_conv;
mod rows_elementwise;
mod rows_image;
mod rows_index;
mod rows_layout;
mod rows_linalg;
mod rows_loss;
mod rows_microsoft;
mod rows_norm;
mod rows_pool;
mod rows_recurrent;
mod rows_reduce;
mod rows_spectral;
mod runtime;
mod special;

use bisam::autodiff::{differentiate, lower, table};
use bisam::ir::{Attr, Attrs, DType, Declared, Graph, Node, Source, Tensor, Type, ValueId};
use bisam::trace::{Sizes, concretize};
use bisam::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
pub use runtime::{Compiled, Once};
use std::collections::{BTreeSet, HashSet};

/// Where the elements of an input come from. Kinks must be further away than [`MARGIN`].
#[derive(Debug, Clone)]
pub enum Domain {
    /// Uniform in (−2, 2), at least [`MARGIN`] away from 0.
    Plain,
    /// Uniform between two numbers.
    Between(f64, f64),
    /// As [`Domain::Plain`], but away from these numbers instead of 0.
    Off(&'static [f64]),
    /// All different: a random order of multiples of [`MARGIN`] around 0 (for maxima and sorting).
    Distinct,
    /// These numbers exactly; moved by finite differences nevertheless.
    Exactly(&'static [f64]),
}

/// Distance kept from kinks; finite differences move a number by at most 0.06.
pub const MARGIN: f64 = 0.1;

#[derive(Debug, Clone)]
enum Input {
    Differentiable(Vec<usize>, Domain),
    /// A float constant, in the type of the run.
    Floats(Vec<usize>, Vec<f64>),
    Constant(Tensor),
    /// An integer or boolean input that is not a constant.
    Index(Tensor),
    Absent,
}

/// One node to check.
#[derive(Debug, Clone)]
pub struct Row {
    op: &'static str,
    domain: &'static str,
    note: String,
    inputs: Vec<Input>,
    attrs: Attrs,
    outputs: Vec<bool>,
    left_out: Vec<usize>,
    opset: i64,
    single: bool,
    tolerance: [f64; 2],
}

/// A row for operator `op`; `note` says which variant it is.
pub fn row(op: &'static str, note: &str) -> Row {
    let (inputs, attrs) = (Vec::new(), Attrs::new());
    let note = note.to_owned();
    Row {
        op,
        domain: "",
        note,
        inputs,
        attrs,
        outputs: vec![true],
        left_out: Vec::new(),
        opset: 20,
        single: false,
        tolerance: [1e-7, 3e-3],
    }
}

#[allow(dead_code)]
impl Row {
    fn input(mut self, input: Input) -> Self {
        self.inputs.push(input);
        self
    }

    /// A differentiable input of [`Domain::Plain`].
    pub fn x(self, shape: &[usize]) -> Self {
        self.x_in(shape, Domain::Plain)
    }

    /// A differentiable input.
    pub fn x_in(self, shape: &[usize], domain: Domain) -> Self {
        self.input(Input::Differentiable(shape.to_vec(), domain))
    }

    /// A constant vector of i64: axes, shapes, pads.
    pub fn ints(self, values: &[i64]) -> Self {
        self.input(Input::Constant(Tensor::ints(values)))
    }

    /// A constant float tensor, in the type of the run.
    pub fn floats(self, shape: &[usize], values: &[f64]) -> Self {
        self.input(Input::Floats(shape.to_vec(), values.to_vec()))
    }

    /// A constant of any type, as it is.
    pub fn constant(self, tensor: Tensor) -> Self {
        self.input(Input::Constant(tensor))
    }

    /// An input of integers or booleans that is only known at run time.
    pub fn at_run_time(self, tensor: Tensor) -> Self {
        self.input(Input::Index(tensor))
    }

    /// An optional input left out.
    pub fn absent(self) -> Self {
        self.input(Input::Absent)
    }

    pub fn attr(mut self, name: &str, value: Attr) -> Self {
        self.attrs.insert(name.into(), value);
        self
    }

    pub fn int(self, name: &str, value: i64) -> Self {
        self.attr(name, Attr::Int(value))
    }

    pub fn float(self, name: &str, value: f32) -> Self {
        self.attr(name, Attr::Float(value))
    }

    pub fn str(self, name: &str, value: &str) -> Self {
        self.attr(name, Attr::Str(value.into()))
    }

    pub fn list(self, name: &str, values: &[i64]) -> Self {
        self.attr(name, Attr::Ints(values.to_vec()))
    }

    /// One entry per output: whether a cotangent comes through it. The default is one output with a cotangent.
    pub fn outputs(mut self, cotangents: &[bool]) -> Self {
        self.outputs = cotangents.to_vec();
        self
    }

    /// Leaves these outputs out.
    pub fn without(mut self, outputs: &[usize]) -> Self {
        self.left_out = outputs.to_vec();
        self
    }

    /// For operators newer than the default 20.
    pub fn opset(mut self, version: i64) -> Self {
        self.opset = version;
        self
    }

    /// Operator of another domain.
    pub fn of_domain(mut self, domain: &'static str) -> Self {
        self.domain = domain;
        self
    }

    /// Relative tolerances in float64 and float32.
    pub fn tolerance(mut self, f64: f64, f32: f64) -> Self {
        self.tolerance = [f64, f32];
        self
    }

    /// Not in float64: its kernel computes in float32 all the same.
    pub fn single(mut self) -> Self {
        self.single = true;
        self
    }

    /// With the first two dimensions of the second input swapped.
    fn swap_weight(mut self) -> Self {
        if let Some(Input::Differentiable(shape, _)) = self.inputs.get_mut(1) {
            shape.swap(0, 1);
        }
        self
    }

    /// A variant of a row under another name.
    pub fn renamed(mut self, more: &str) -> Self {
        self.note.push_str(more);
        self
    }

    fn name(&self) -> String {
        format!("{} ({})", self.op, self.note)
    }
}

/// Random numbers that depend on the row alone.
fn rng(row: &Row, salt: u64) -> ChaCha8Rng {
    let hash = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    ChaCha8Rng::seed_from_u64(row.name().bytes().fold(0xcbf2_9ce4_8422_2325 ^ salt, hash))
}

fn draw(rng: &mut ChaCha8Rng, n: usize, domain: &Domain) -> Vec<f64> {
    let off = |rng: &mut ChaCha8Rng, kinks: &[f64]| loop {
        let v = rng.random_range(-2.0..2.0);
        if kinks.iter().all(|k| f64::abs(v - k) > MARGIN) {
            return v;
        }
    };
    match domain {
        Domain::Plain => (0..n).map(|_| off(rng, &[0.0])).collect(),
        Domain::Off(kinks) => (0..n).map(|_| off(rng, kinks)).collect(),
        Domain::Between(low, high) => (0..n).map(|_| rng.random_range(*low..*high)).collect(),
        Domain::Distinct => {
            let mut values: Vec<f64> = (0..n).map(|i| (i as f64 - n as f64 / 2.0 + 0.5) * 2.0 * MARGIN).collect();
            for i in (1..n).rev() {
                values.swap(i, rng.random_range(0..=i));
            }
            values
        }
        Domain::Exactly(values) => values.to_vec(),
    }
}

/// The row as a graph, and for each input value its tensor.
struct Case {
    graph: Graph,
    fed: Vec<(ValueId, Tensor)>,
    differentiable: Vec<ValueId>,
}

fn build(row: &Row, dtype: DType) -> Result<Case> {
    let mut graph = Graph::default();
    graph.name = row.op.into();
    graph.opsets.insert(String::new(), row.opset);
    if !row.domain.is_empty() {
        graph.opsets.insert(row.domain.into(), 1);
    }
    let mut rng = rng(row, 0);
    let (mut fed, mut differentiable, mut inputs, mut sizes) = (Vec::new(), Vec::new(), Vec::new(), Sizes::batch(1));
    for (i, input) in row.inputs.iter().enumerate() {
        let tensor = match input {
            Input::Absent => {
                inputs.push(None);
                continue;
            }
            Input::Constant(t) => {
                inputs.push(Some(graph.add_value("constant", None, Source::Constant(t.clone()))));
                continue;
            }
            Input::Floats(shape, values) => {
                let t = Tensor::from_f64(dtype, shape, values);
                inputs.push(Some(graph.add_value("constant", None, Source::Constant(t))));
                continue;
            }
            Input::Index(t) => t.clone(),
            Input::Differentiable(shape, domain) => {
                Tensor::from_f64(dtype, shape, &draw(&mut rng, shape.iter().product(), domain))
            }
        };
        let name = format!("x{i}");
        let declared = Declared { dtype: tensor.dtype(), dims: Some(Vec::new()) };
        let v = graph.add_value(&name, None, Source::Input(declared));
        sizes.shapes.insert(name, tensor.shape().to_vec());
        graph.inputs.push(v);
        inputs.push(Some(v));
        if matches!(input, Input::Differentiable(..)) {
            differentiable.push(v);
        }
        fed.push((v, tensor));
    }
    let mut output = |i| graph.add_value(&format!("y{i}"), None, Source::Node);
    let outputs: Vec<_> = (0..row.outputs.len()).map(|i| (!row.left_out.contains(&i)).then(|| output(i))).collect();
    graph.outputs = outputs.iter().flatten().copied().collect();
    graph.nodes.push(Node {
        name: "node".into(),
        domain: row.domain.into(),
        op: row.op.into(),
        inputs,
        outputs,
        attrs: row.attrs.clone(),
    });
    // Types come from the run itself: tracing feeds ones, so the shapes must not depend on the values fed.
    concretize(&mut graph, &sizes, &Once)?;
    Ok(Case { graph, fed, differentiable })
}

fn feed<'a>(graph: &'a Graph, fed: &'a [(ValueId, Tensor)]) -> Vec<(&'a str, &'a Tensor)> {
    fed.iter().map(|(v, t)| (graph[*v].name.as_str(), t)).collect()
}

/// Random weights u of the outputs that get a cotangent.
fn weights(row: &Row, case: &Case) -> Result<Vec<Option<Tensor>>> {
    let mut rng = rng(row, 1);
    let mut weight = |(y, wanted): (&ValueId, &bool)| {
        let ty = case.graph.ty(*y)?;
        let u = draw(&mut rng, ty.len(), &Domain::Plain);
        Ok(wanted.then(|| Tensor::from_f64(ty.dtype, &ty.shape, &u)))
    };
    let made = row.outputs.iter().enumerate().filter(|(i, _)| !row.left_out.contains(i));
    case.graph.outputs.iter().zip(made.map(|(_, wanted)| wanted)).map(&mut weight).collect()
}

/// Checks that what a lowering made of the node computes the same.
fn same_outputs(case: &Case, lowered: &Graph) -> Result<()> {
    let plain = |g: &Graph| g.nodes.iter().map(|n| n.op.clone()).collect::<Vec<_>>();
    if plain(&case.graph) == plain(lowered) {
        return Ok(());
    }
    let [given, made] = [&case.graph, lowered].map(|g| Compiled::new(g).and_then(|c| c.run(&feed(g, &case.fed))));
    for (a, b) in given?.iter().zip(made?) {
        let tolerance = if a.dtype() == DType::F64 { 1e-9 } else { 2e-5 };
        let (x, y) = (a.to_f64(), b.to_f64());
        let scale = 1.0 + x.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        if a.ty() != b.ty() || x.iter().zip(&y).any(|(x, y)| (x - y).abs() > tolerance * scale) {
            return Err(Error::new(format!("written out it gives {y:?}, not {x:?}\n{lowered}")));
        }
    }
    Ok(())
}

/// The rule's gradient of Σ ⟨u, y⟩ for each differentiable input, `None` where no path leads.
fn gradients(case: &Case, weights: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
    gradients_after(case, weights, |graph| same_outputs(case, graph))
}

/// The same, after `pass` has seen the graph with its operators written out.
fn gradients_after(
    case: &Case,
    weights: &[Option<Tensor>],
    pass: impl Fn(&mut Graph) -> Result<()>,
) -> Result<Vec<Option<Tensor>>> {
    let mut graph = case.graph.clone();
    lower(&mut graph)?;
    pass(&mut graph)?;
    let mut fed = case.fed.clone();
    let mut seeds = Vec::new();
    for (y, u) in case.graph.outputs.iter().zip(weights) {
        let Some(u) = u else { continue };
        let declared = Declared { dtype: u.dtype(), dims: None };
        let seed = graph.add_value("u", Some(u.ty()), Source::Input(declared));
        graph.inputs.push(seed);
        seeds.push((*y, seed));
        fed.push((seed, u.clone()));
    }
    let found = differentiate(&mut graph, &seeds, &case.differentiable)?;
    graph.outputs = found.iter().flatten().copied().collect();
    graph.remove_dead_nodes();
    let mut expose: Vec<ValueId> = graph.outputs.clone();
    expose.extend(graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten().copied()));
    let mut seen = HashSet::new();
    expose.retain(|v| seen.insert(*v) && graph[*v].source == Source::Node);
    graph.outputs = expose.clone();
    // A gradient that is the cotangent itself leaves nothing to run.
    let values = if expose.is_empty() { Vec::new() } else { Compiled::new(&graph)?.run(&feed(&graph, &fed))? };
    for (v, t) in expose.iter().zip(&values) {
        let expected: &Type = graph.ty(*v)?;
        if *expected != t.ty() {
            return Err(Error::new(format!("`{}` should be {expected} but is {}\n{graph}", graph[*v].name, t.ty())));
        }
    }
    let value = |v: ValueId| {
        let computed = expose.iter().position(|e| *e == v).map(|i| values[i].clone());
        computed.or_else(|| fed.iter().find(|(f, _)| *f == v).map(|(_, t)| t.clone()))
    };
    Ok(found.iter().map(|g| g.and_then(value)).collect())
}

/// Whether ONNX Runtime merely lacks a float64 kernel.
fn lacks_kernel(e: &Error) -> bool {
    let text = e.to_string();
    text.contains("Could not find an implementation") || text.contains("Type 'tensor(double)' of input parameter")
}

/// Checks one row: in float32, and in float64 where there are kernels.
///
/// # Errors
/// Says what differs.
pub fn check(row: &Row) -> Result<DType> {
    let both = check_in(row, DType::F32).and_then(|()| match check_in(row, DType::F64) {
        _ if row.single => Ok(DType::F32),
        Err(e) if lacks_kernel(&e) => Ok(DType::F32),
        other => other.map(|()| DType::F64),
    });
    both.map_err(|e| Error::new(format!("{}: {e}", row.name())))
}

fn check_in(row: &Row, dtype: DType) -> Result<()> {
    let case = build(row, dtype)?;
    let forward = Compiled::new(&case.graph)?;
    let weights = weights(row, &case)?;
    let found = gradients(&case, &weights)?;
    let (h, tolerance) = if dtype == DType::F64 { (1e-3, row.tolerance[0]) } else { (2e-2, row.tolerance[1]) };
    let mut rng = rng(row, 2);
    let mut problems = Vec::new();
    for (x, gradient) in case.differentiable.iter().zip(&found) {
        let at = case.fed.iter().position(|(v, _)| v == x).expect("is fed");
        let base = &case.fed[at].1;
        for _ in 0..2 {
            let v = draw(&mut rng, base.len(), &Domain::Between(-1.5, 1.5));
            // ⟨u, f(x + hv)⟩ and Σ |u·f|, which bounds its rounding error.
            let weighted = |step: f64| -> Result<(f64, f64)> {
                let moved: Vec<f64> = base.to_f64().iter().zip(&v).map(|(x, v)| x + step * v).collect();
                let mut fed = case.fed.clone();
                fed[at].1 = Tensor::from_f64(dtype, base.shape(), &moved);
                let ys = forward.run(&feed(&case.graph, &fed))?;
                let terms = ys.iter().zip(&weights).filter_map(|(y, u)| Some((y.to_f64(), u.as_ref()?.to_f64())));
                let terms: Vec<f64> = terms.flat_map(|(y, u)| y.into_iter().zip(u).map(|(y, u)| y * u)).collect();
                Ok((terms.iter().sum(), terms.iter().map(|t| t.abs()).sum()))
            };
            let [(p1, size), (m1, _), (p2, _), (m2, _)] =
                [weighted(h)?, weighted(-h)?, weighted(2.0 * h)?, weighted(-2.0 * h)?];
            let numeric = (8.0 * (p1 - m1) - (p2 - m2)) / (12.0 * h);
            let parts: Vec<f64> = match gradient {
                Some(g) => g.to_f64().iter().zip(&v).map(|(g, v)| g * v).collect(),
                None => vec![0.0],
            };
            let analytic: f64 = parts.iter().sum();
            let scale = 1.0 + parts.iter().map(|p| p.abs()).sum::<f64>().max(size);
            let close = (analytic - numeric).abs() <= tolerance * scale;
            if !close {
                problems.push(format!("d/d{}: rule {analytic}, differences {numeric}", case.graph[*x].name));
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::new(format!("{dtype}: {}", problems.join("; ")))) }
}

/// Checks rows and reports all failures together.
pub fn check_all(rows: &[Row]) {
    let results: Vec<_> = rows.iter().map(|r| (r, check(r))).collect();
    let failures: Vec<String> = results.iter().filter_map(|(_, r)| r.as_ref().err().map(ToString::to_string)).collect();
    let single: BTreeSet<&str> =
        results.iter().filter(|(_, r)| matches!(r, Ok(DType::F32))).map(|(row, _)| row.op).collect();
    println!("{} rows; in float32 only: {}", rows.len(), single.into_iter().collect::<Vec<_>>().join(" "));
    assert!(failures.is_empty(), "{} of {} rows fail:\n{}", failures.len(), rows.len(), failures.join("\n"));
}

/// Checks that differentiating the row is an error that contains `message`.
pub fn refused(row: &Row, message: &str) {
    let case = build(row, DType::F32).unwrap_or_else(|e| panic!("{}: {e}", row.name()));
    match weights(row, &case).and_then(|u| gradients(&case, &u)) {
        Ok(_) => panic!("{} should be refused", row.name()),
        Err(e) => assert!(e.to_string().contains(message), "{}: {e}", row.name()),
    }
}

/// Every row of every file.
fn all_rows() -> Vec<Row> {
    [
        rows_elementwise::rows(),
        rows_activation::rows(),
        rows_reduce::rows(),
        rows_layout::rows(),
        rows_index::rows(),
        rows_linalg::rows(),
        rows_conv::rows(),
        rows_pool::rows(),
        rows_norm::rows(),
        rows_loss::rows(),
        rows_recurrent::rows(),
        rows_attention::rows(),
        rows_microsoft::rows(),
        rows_image::rows(),
        rows_spectral::rows(),
    ]
    .concat()
}

#[test]
fn every_rule_has_a_row_and_every_row_a_rule() {
    let rows = all_rows();
    for (domain, table) in [("", table::TABLE), ("com.microsoft", table::MICROSOFT), ("ai.onnx.ml", table::CLASSICAL)] {
        let has_rule = |e: &table::Entry| matches!(e, table::Entry::Rule(_) | table::Entry::Lower(_));
        let rules: BTreeSet<&str> = table.iter().filter(|(_, e)| has_rule(e)).map(|(op, _)| *op).collect();
        let tested: BTreeSet<&str> = rows.iter().filter(|r| r.domain == domain).map(|r| r.op).collect();
        assert_eq!(rules.difference(&tested).collect::<Vec<_>>(), Vec::<&&str>::new(), "rules without a row");
        assert_eq!(tested.difference(&rules).collect::<Vec<_>>(), Vec::<&&str>::new(), "rows without a rule");
    }
    let mut names = HashSet::new();
    assert!(rows.iter().all(|r| names.insert((r.domain, r.name()))), "two rows have the same name");
}
