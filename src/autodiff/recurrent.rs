//! Recurrent layers, unrolled over the sequence.
//!
//! One product for all steps takes the input through its weights, and its rows are split into steps; each step adds one product of
//! the state (two in a GRU that resets before the product). Gates that share an activation are computed together, and biases are
//! added to the rows of all steps at once, so that their gradient is one sum.

use super::{Call, Lowered, activation};
use crate::builder::{Builder, attrs};
use crate::error::{Error, Result};
use crate::ir::{Attr, DType, Tensor, Type, ValueId};

/// Hₜ = f(XₜWᵀ + Hₜ₋₁Rᵀ + b), b both biases, f cut off at ±`clip` before the activation; with `sequence_lens` the state stays after
/// a sequence's end, Y is 0 there, and the reverse direction starts there: written out step by step; X [T,N,I], W [D,H,I],
/// R [D,H,H], B [D,2H], Y [T,D,N,H], Y_h [D,N,H]; ONNX RNN-22.
pub fn rnn(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    layer(b, c, 1, &["Tanh"], |b, l| {
        let bias = l.whole_bias(b)?;
        let rows = l.input_product(b, bias)?;
        let r = l.r;
        Ok(Box::new(move |b, t, state| {
            let sum = product(b, state[0], r, rows[t]);
            Ok(vec![l.gate(b, 0, sum)?])
        }))
    })
}

/// z, r = f(XₜWᵀ + Hₜ₋₁Rᵀ + b), h = g(XₜWₕᵀ + (r ⊙ Hₜ₋₁)Rₕᵀ + bₕ), or, with `linear_before_reset`, g(XₜWₕᵀ + r ⊙ (Hₜ₋₁Rₕᵀ + Rbₕ) + Wbₕ),
/// Hₜ = (1 − z) ⊙ h + z ⊙ Hₜ₋₁; `clip` and `sequence_lens` as for RNN: written out step by step; X [T,N,I], W [D,3H,I] with the rows
/// of z, r, h, R [D,3H,H], B [D,6H], Y [T,D,N,H], Y_h [D,N,H]; ONNX GRU-22.
pub fn gru(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let linear_first = c.attrs.flag("linear_before_reset", false)?;
    layer(b, c, 3, &["Sigmoid", "Tanh"], |b, l| {
        let h = l.hidden;
        // Rows that go into the recurrent product, and those that are added to h after it.
        let (r_first, r_last, first, last);
        if linear_first {
            let rows = match l.bias {
                None => l.input_rows(b, None)?,
                Some([wb, rb]) => {
                    let of_gates = b.slice(rb, &[0], &[0], &[2 * h]);
                    let of_gates = b.pad(of_gates, &[0], &[h]);
                    let bias = b.add(wb, of_gates)?;
                    l.input_rows(b, Some(bias))?
                }
            };
            let columns = b.split(rows, 1, &[2 * h, h]);
            let shape = b.shape(columns[1]).to_vec();
            let beside = match l.bias {
                Some([_, rb]) => b.slice(rb, &[0], &[2 * h], &[3 * h]),
                None => b.scalar_like(0.0, rows),
            };
            let beside = b.expand(beside, &shape);
            let whole = b.concat(&[columns[0], beside], 1);
            (r_first, r_last) = (l.r, None);
            (first, last) = (l.by_step(b, whole), l.by_step(b, columns[1]));
        } else {
            let bias = l.whole_bias(b)?;
            let rows = l.input_rows(b, bias)?;
            let columns = b.split(rows, 1, &[2 * h, h]);
            let weights = b.split(l.r, 0, &[2 * h, h]);
            (r_first, r_last) = (weights[0], Some(weights[1]));
            (first, last) = (l.by_step(b, columns[0]), l.by_step(b, columns[1]));
        }
        Ok(Box::new(move |b, t, state| {
            let state = state[0];
            let sums = product(b, state, r_first, first[t]);
            let (gates, reset) = match r_last {
                None => {
                    let parts = b.split(sums, 1, &[2 * h, h]);
                    (parts[0], Some(parts[1]))
                }
                Some(_) => (sums, state),
            };
            let gates = l.gate(b, 0, gates)?;
            let [z, r] = two(&b.split(gates, 1, &[h, h]));
            let kept = reset.map(|v| b.mul(r, v)).transpose()?;
            let sum = match (r_last, kept) {
                (Some(weight), kept) => product(b, kept, weight, last[t]),
                (None, Some(kept)) => b.add(last[t], kept)?,
                (None, None) => last[t],
            };
            let new = l.gate(b, 1, sum)?;
            // h + z ⊙ (Hₜ₋₁ − h)
            let move_back = match state {
                Some(state) => b.sub(state, new)?,
                None => b.neg(new),
            };
            let share = b.mul(z, move_back)?;
            Ok(vec![b.add(new, share)?])
        }))
    })
}

/// i, f = φ(XₜWᵀ + Hₜ₋₁Rᵀ + P ⊙ Cₜ₋₁ + b), g = γ(XₜWᵀ + Hₜ₋₁Rᵀ + b), Cₜ = f ⊙ Cₜ₋₁ + i ⊙ g, o = φ(XₜWᵀ + Hₜ₋₁Rᵀ + P ⊙ Cₜ + b),
/// Hₜ = o ⊙ η(Cₜ); with `input_forget` f = 1 − i; `clip` and `sequence_lens` as for RNN: written out step by step; X [T,N,I], W [D,4H,I]
/// with the rows of i, o, f, g, R [D,4H,H], B [D,8H], P [D,3H] of i, o, f, Y [T,D,N,H], Y_h, Y_c [D,N,H]; ONNX LSTM-22.
pub fn lstm(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let coupled = c.attrs.flag("input_forget", false)?;
    layer(b, c, 4, &["Sigmoid", "Tanh", "Tanh"], |b, l| {
        let bias = l.whole_bias(b)?;
        let rows = l.input_product(b, bias)?;
        let h = l.hidden;
        let peepholes = match l.peepholes {
            Some(p) => {
                // Repeated for the batch once: the gradient is summed over the batch once too.
                let p = b.reshape(p, &[1, 3 * h]);
                let p = b.expand(p, &[l.batch, 3 * h]);
                Some(b.split(p, 1, &[h; 3]))
            }
            None => None,
        };
        let r = l.r;
        Ok(Box::new(move |b, t, state| {
            let sums = product(b, state[0], r, rows[t]);
            let (i, f, g);
            // The output gate, or, with peepholes, what is known of it before Cₜ is.
            let mut o;
            if let Some(peepholes) = &peepholes {
                let parts = b.split(sums, 1, &[h; 4]);
                let through = |b: &mut Builder<'_>, sum: ValueId, gate: usize| match state[1] {
                    Some(cell) => {
                        let seen = b.mul(peepholes[gate], cell)?;
                        let sum = b.add(sum, seen)?;
                        l.gate(b, 0, sum)
                    }
                    None => l.gate(b, 0, sum),
                };
                i = through(b, parts[0], 0)?;
                f = if coupled { b.one_minus(i)? } else { through(b, parts[2], 2)? };
                g = l.gate(b, 1, parts[3])?;
                o = parts[1];
            } else if l.activations[0] == l.activations[1] {
                let gates = l.gate(b, 0, sums)?;
                let gates = b.split(gates, 1, &[h; 4]);
                (i, o, g) = (gates[0], gates[1], gates[3]);
                f = if coupled { b.one_minus(i)? } else { gates[2] };
            } else {
                let [gates, last] = two(&b.split(sums, 1, &[3 * h, h]));
                let gates = l.gate(b, 0, gates)?;
                let gates = b.split(gates, 1, &[h; 3]);
                (i, o) = (gates[0], gates[1]);
                f = if coupled { b.one_minus(i)? } else { gates[2] };
                g = l.gate(b, 1, last)?;
            }
            let mut cell = b.mul(i, g)?;
            if let Some(before) = state[1] {
                let kept = b.mul(f, before)?;
                cell = b.add(kept, cell)?;
            }
            if let Some(peepholes) = &peepholes {
                let seen = b.mul(peepholes[1], cell)?;
                let sum = b.add(o, seen)?;
                o = l.gate(b, 0, sum)?;
            }
            let out = l.activations[2].apply(b, cell)?;
            Ok(vec![b.mul(o, out)?, cell])
        }))
    })
}

/// Computes the new state of step t from the last one; `None` is a state of zeros.
type Step<'a> = Box<dyn Fn(&mut Builder<'_>, usize, &[Option<ValueId>]) -> Result<Vec<ValueId>> + 'a>;

/// One direction of a layer.
struct Direction {
    /// X as [T·N,I].
    x: ValueId,
    w: ValueId,
    r: ValueId,
    /// Of the input's product and of the state's.
    bias: Option<[ValueId; 2]>,
    peepholes: Option<ValueId>,
    activations: Vec<Activation>,
    clip: Option<f64>,
    steps: usize,
    batch: usize,
    hidden: usize,
}

impl Direction {
    fn whole_bias(&self, b: &mut Builder<'_>) -> Result<Option<ValueId>> {
        self.bias.map(|[wb, rb]| b.add(wb, rb)).transpose()
    }

    /// XWᵀ + bias, [T·N, gates·H].
    fn input_rows(&self, b: &mut Builder<'_>, bias: Option<ValueId>) -> Result<ValueId> {
        let ty = Type::new(b.dtype(self.x), &[b.shape(self.x)[0], b.shape(self.w)[0]]);
        let list = attrs([("transB", Attr::Int(1))]);
        Ok(b.raw("", "Gemm", &[Some(self.x), Some(self.w), bias], list, &[ty])[0])
    }

    /// The rows of XWᵀ + bias by step.
    fn input_product(&self, b: &mut Builder<'_>, bias: Option<ValueId>) -> Result<Vec<ValueId>> {
        let rows = self.input_rows(b, bias)?;
        Ok(self.by_step(b, rows))
    }

    fn by_step(&self, b: &mut Builder<'_>, rows: ValueId) -> Vec<ValueId> {
        b.split(rows, 0, &vec![self.batch; self.steps])
    }

    /// Activation `which` of `sum`, cut off.
    fn gate(&self, b: &mut Builder<'_>, which: usize, sum: ValueId) -> Result<ValueId> {
        let sum = match self.clip {
            Some(bound) => {
                let (low, high) = (b.scalar_like(-bound, sum), b.scalar_like(bound, sum));
                let ty = b.ty(sum);
                b.op("Clip", &[sum, low, high], attrs([]), ty)
            }
            None => sum,
        };
        self.activations[which].apply(b, sum)
    }
}

/// SRᵀ + `row`; a state of zeros adds nothing.
fn product(b: &mut Builder<'_>, state: Option<ValueId>, weight: ValueId, row: ValueId) -> ValueId {
    let Some(state) = state else { return row };
    let ty = b.ty(row);
    b.op("Gemm", &[state, weight, row], attrs([("transB", Attr::Int(1))]), ty)
}

fn two(parts: &[ValueId]) -> [ValueId; 2] {
    [parts[0], parts[1]]
}

/// What the three layers have in common: `gates` blocks of rows in W, `defaults` the activations, and `cell`, which prepares a
/// direction and gives the function of its steps; the states are H and, where there are three activations, C.
fn layer<F>(b: &mut Builder<'_>, c: &Call<'_>, gates: usize, defaults: &[&str], cell: F) -> Lowered
where
    F: for<'d> Fn(&mut Builder<'_>, &'d Direction) -> Result<Step<'d>>,
{
    if c.attrs.int("layout", 0)? != 0 {
        crate::bail!("ONNX Runtime has no kernel for `layout` 1");
    }
    let (x, w, r) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let &[steps, batch, inputs] = b.shape(x) else { crate::bail!("its input is not of rank 3") };
    let &[directions, _, hidden] = b.shape(r) else { crate::bail!("its weights are not of rank 3") };
    c.attrs.ignore(&["hidden_size"]);
    let reverse = c.attrs.str("direction", "forward")? == "reverse";
    let clip = c.attrs.get("clip").is_some().then(|| c.attrs.float("clip", 0.0)).transpose()?.map(f64::from);
    let activations = Activation::list(c, defaults, directions)?;
    let lens = Lengths::new(b, c.opt(4), steps, batch)?;
    let rows = b.reshape(x, &[steps * batch, inputs]);
    let states = if defaults.len() == 3 { 2 } else { 1 };
    let (mut sequences, mut last) = (Vec::new(), vec![Vec::new(); states]);
    for d in 0..directions {
        let own = |b: &mut Builder<'_>, v: ValueId, shape: &[usize]| {
            let v = b.slice(v, &[0], &[d], &[d + 1]);
            b.reshape(v, shape)
        };
        let direction = Direction {
            x: rows,
            w: own(b, w, &[gates * hidden, inputs]),
            r: own(b, r, &[gates * hidden, hidden]),
            bias: c.opt(3).map(|v| {
                let v = own(b, v, &[2 * gates * hidden]);
                two(&b.split(v, 0, &[gates * hidden; 2]))
            }),
            peepholes: c.opt(7).map(|v| own(b, v, &[3 * hidden])),
            activations: activations[d * defaults.len()..][..defaults.len()].to_vec(),
            clip,
            steps,
            batch,
            hidden,
        };
        let mut state: Vec<Option<ValueId>> =
            (0..states).map(|i| given(b, c, 5 + i).map(|v| own(b, v, &[batch, hidden]))).collect();
        let step = cell(b, &direction)?;
        let mut sequence = vec![None; steps];
        for i in 0..steps {
            let t = if reverse || d == 1 { steps - 1 - i } else { i };
            let new = step(b, t, &state)?;
            for (old, new) in state.iter_mut().zip(new) {
                *old = Some(lens.hold(b, t, *old, new)?);
            }
            sequence[t] = state[0];
        }
        if c.node.output(0).is_some() {
            let sequence: Vec<ValueId> = sequence.into_iter().flatten().collect();
            let y = b.concat(&sequence, 0);
            let y = lens.clear(b, y)?;
            sequences.push(b.reshape(y, &[steps, 1, batch, hidden]));
        }
        for (i, v) in state.iter().enumerate() {
            if let Some(v) = v.filter(|_| c.node.output(1 + i).is_some()) {
                let v = lens.started(b, v)?;
                last[i].push(b.reshape(v, &[1, batch, hidden]));
            }
        }
    }
    let mut outputs = vec![(!sequences.is_empty()).then(|| b.concat(&sequences, 1))];
    outputs.extend(last.iter().map(|parts| (!parts.is_empty()).then(|| b.concat(parts, 0))));
    Ok(outputs)
}

/// The initial state of input `i`, unless it is known to be 0.
fn given(b: &Builder<'_>, c: &Call<'_>, i: usize) -> Option<ValueId> {
    c.opt(i).filter(|v| b.graph.constant(*v).is_none_or(|t| t.uniform() != Some(0.0)))
}

/// Lengths of the sequences, where they are not all the whole.
struct Lengths {
    /// Whether step t of each sequence is before its end, [T·N,1] and by step [N,1].
    alive: Option<(ValueId, Vec<ValueId>)>,
    /// Whether a sequence has any step, [N,1].
    any: Option<ValueId>,
}

impl Lengths {
    fn new(b: &mut Builder<'_>, lens: Option<ValueId>, steps: usize, batch: usize) -> Result<Self> {
        let known = lens.and_then(|v| b.graph.constant(v)).and_then(Tensor::to_i64);
        let Some(lens) = lens.filter(|_| known.is_none_or(|l| l.iter().any(|l| *l < steps as i64))) else {
            return Ok(Self { alive: None, any: None });
        };
        let lens = b.cast(lens, DType::I64);
        let times: Vec<i64> = (0..steps as i64).collect();
        let times = b.constant(Tensor::new(&[steps, 1], &times)?);
        let alive = b.binary("Less", times, lens)?;
        let alive = b.reshape(alive, &[steps * batch, 1]);
        let by_step = b.split(alive, 0, &vec![batch; steps]);
        Ok(Self { any: by_step.first().copied(), alive: Some((alive, by_step)) })
    }

    /// `new` before the sequence's end, else `old`.
    fn hold(&self, b: &mut Builder<'_>, t: usize, old: Option<ValueId>, new: ValueId) -> Result<ValueId> {
        let Some((_, alive)) = &self.alive else { return Ok(new) };
        let old = old.unwrap_or_else(|| b.scalar_like(0.0, new));
        b.select(alive[t], new, old)
    }

    /// `y` [T·N,H], 0 after the end of each sequence.
    fn clear(&self, b: &mut Builder<'_>, y: ValueId) -> Result<ValueId> {
        let Some((alive, _)) = &self.alive else { return Ok(y) };
        let zero = b.scalar_like(0.0, y);
        b.select(*alive, y, zero)
    }

    /// The last state; of a sequence without a step ONNX Runtime gives 0, not the initial one.
    fn started(&self, b: &mut Builder<'_>, state: ValueId) -> Result<ValueId> {
        let Some(any) = self.any else { return Ok(state) };
        let zero = b.scalar_like(0.0, state);
        b.select(any, state, zero)
    }
}

/// An activation function with its parameters.
#[derive(Clone, PartialEq)]
struct Activation {
    name: String,
    alpha: f32,
    beta: f32,
}

impl Activation {
    /// One for each of `defaults` and direction. The parameters go in order to the functions that have any; the defaults are ONNX
    /// Runtime's.
    fn list(c: &Call<'_>, defaults: &[&str], directions: usize) -> Result<Vec<Self>> {
        let names = c.attrs.strs("activations")?.unwrap_or_else(|| {
            let name = |i: usize| defaults[i % defaults.len()].to_owned();
            (0..defaults.len() * directions).map(name).collect()
        });
        let alphas = c.attrs.floats("activation_alpha")?.unwrap_or_default();
        let betas = c.attrs.floats("activation_beta")?.unwrap_or_default();
        if names.len() < defaults.len() * directions {
            return Err(Error::new(format!("`activations` names {} functions", names.len())));
        }
        let (mut next_alpha, mut next_beta) = (0, 0);
        let mut list = Vec::new();
        for name in &names {
            let name = name.to_lowercase();
            let (has_alpha, has_beta, alpha, beta) = match name.as_str() {
                "affine" | "scaledtanh" => (true, true, 0.0, 0.0),
                "hardsigmoid" => (true, true, 0.2, 0.5),
                "leakyrelu" => (true, false, 0.01, 0.0),
                "elu" => (true, false, 1.0, 0.0),
                "thresholdedrelu" => (true, false, 0.0, 0.0),
                _ => (false, false, 0.0, 0.0),
            };
            let take = |has: bool, given: &[f32], next: &mut usize, default: f32| {
                let value = if has { given.get(*next).copied().unwrap_or(default) } else { 0.0 };
                *next += usize::from(has);
                value
            };
            let alpha = take(has_alpha, &alphas, &mut next_alpha, alpha);
            let beta = take(has_beta, &betas, &mut next_beta, beta);
            list.push(Self { name, alpha, beta });
        }
        Ok(list)
    }

    fn apply(&self, b: &mut Builder<'_>, x: ValueId) -> Result<ValueId> {
        activation::named(b, &self.name, [self.alpha, self.beta, 0.0], x)
    }
}
