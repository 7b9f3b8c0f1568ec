//! `bisam.Elementwise`: a loop over elements whose body is an attribute ([`Body`]).
//!
//! Each step of the body runs over a block of elements before the next one does, so that what lies between steps stays in the nearest
//! cache, and memory is read and written once.

use super::operators::to_ort;
use super::{Buffers, Pool, Raw, SCRATCH};
use crate::error::{Error, Result};
use crate::step::elementwise::{Body, Function, MOST, Operand};
use ort::operator::{BoxedKernel, ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::Float32;

/// Elements of a block, and of a part.
const BLOCK: usize = 256;
const PART: usize = 64 * BLOCK;

/// Numbers that a step reads.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    One(f32),
    Block(&'a [f32]),
}

/// What a step makes of a block, or of single numbers, which then is one.
fn apply(function: Function, a: Numbers<'_>, b: Numbers<'_>, out: &mut [f32]) -> Option<f32> {
    match function {
        Function::Add => each(a, b, out, |a, b| a + b),
        Function::Sub => each(a, b, out, |a, b| a - b),
        Function::Mul => each(a, b, out, |a, b| a * b),
        Function::Div => each(a, b, out, |a, b| a / b),
        Function::Min => each(a, b, out, |a, b| if a >= b { b } else { a }),
        Function::Neg => each(a, b, out, |a, _| -a),
        Function::Abs => each(a, b, out, |a, _| a.abs()),
        Function::Sqrt => each(a, b, out, |a, _| a.sqrt()),
    }
}

#[inline(always)]
fn each(a: Numbers<'_>, b: Numbers<'_>, out: &mut [f32], f: impl Fn(f32, f32) -> f32) -> Option<f32> {
    match (a, b) {
        (Numbers::One(a), Numbers::One(b)) => return Some(f(a, b)),
        (Numbers::One(a), Numbers::Block(b)) => out.iter_mut().zip(b).for_each(|(out, b)| *out = f(a, *b)),
        (Numbers::Block(a), Numbers::One(b)) => out.iter_mut().zip(a).for_each(|(out, a)| *out = f(*a, b)),
        (Numbers::Block(a), Numbers::Block(b)) => {
            out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = f(*a, *b));
        }
    }
    None
}

/// Runs the body for every element of the outputs, which are as long as the inputs or those have one element.
///
/// # Errors
/// Other lengths, or fewer inputs or outputs than the body has.
pub fn run(body: &Body, inputs: &[&[f32]], outputs: &mut [&mut [f32]], pool: &dyn Pool) -> Result<()> {
    let n = outputs.first().map_or(0, |y| y.len());
    let fits = |o: &Operand| match o {
        Operand::Element(k) => inputs.get(*k).is_some_and(|x| x.len() == n),
        Operand::Scalar(k) => inputs.get(*k).is_some_and(|x| x.len() == 1),
        Operand::Number(_) | Operand::Step(_) => true,
    };
    let operands = body.steps.iter().flat_map(|(_, o)| o).chain(&body.outputs);
    if outputs.len() != body.outputs.len() || outputs.iter().any(|y| y.len() != n) || !operands.clone().all(fits) {
        return Err(Error::new(format!("{} inputs do not fit a loop over {n} elements", inputs.len())));
    }
    let outputs: Vec<Raw<*mut f32>> = outputs.iter_mut().map(|y| Raw(y.as_mut_ptr())).collect();
    pool.run(n.div_ceil(PART), &|part| {
        SCRATCH.with_buffer(|made| {
            made.resize(body.steps.len() * BLOCK, 0.0);
            // Steps on single numbers make one.
            let mut ones: Vec<Option<f32>> = vec![None; body.steps.len()];
            let end = ((part + 1) * PART).min(n);
            for first in (part * PART..end).step_by(BLOCK) {
                let len = BLOCK.min(end - first);
                for (k, (function, operands)) in body.steps.iter().enumerate() {
                    let (before, out) = made.split_at_mut(k * BLOCK);
                    let read = |o: &Operand| resolve(*o, inputs, first, len, &ones, before);
                    let a = read(&operands[0]);
                    let b = operands.get(1).map_or(Numbers::One(0.0), read);
                    ones[k] = apply(*function, a, b, &mut out[..len]);
                }
                for (y, o) in outputs.iter().zip(&body.outputs) {
                    // SAFETY: the range is within the output, and no other part has it.
                    let y = unsafe { std::slice::from_raw_parts_mut(y.get().add(first), len) };
                    match resolve(*o, inputs, first, len, &ones, made) {
                        Numbers::One(one) => y.fill(one),
                        Numbers::Block(block) => y.copy_from_slice(block),
                    }
                }
            }
        });
    });
    Ok(())
}

/// What an operand is for the `len` elements from `first` on.
#[inline(always)]
fn resolve<'a>(
    operand: Operand,
    inputs: &[&'a [f32]],
    first: usize,
    len: usize,
    ones: &[Option<f32>],
    made: &'a [f32],
) -> Numbers<'a> {
    match operand {
        Operand::Element(k) => Numbers::Block(&inputs[k][first..first + len]),
        Operand::Scalar(k) => Numbers::One(inputs[k][0]),
        Operand::Number(n) => Numbers::One(n),
        Operand::Step(k) => match ones[k] {
            Some(one) => Numbers::One(one),
            None => Numbers::Block(&made[k * BLOCK..k * BLOCK + len]),
        },
    }
}

/// The operator.
pub struct Elementwise;

/// Inputs of the operator on any device.
pub fn inputs() -> impl Iterator<Item = OperatorInput> {
    (0..MOST.0).map(|i| if i == 0 { OperatorInput::required(Float32) } else { OperatorInput::optional(Float32) })
}

/// Outputs of the operator on any device.
pub fn outputs() -> impl Iterator<Item = OperatorOutput> {
    (0..MOST.1).map(|i| if i == 0 { OperatorOutput::required(Float32) } else { OperatorOutput::optional(Float32) })
}

/// The body of a node on any device.
pub fn body(node: &KernelContext<'_>) -> ort::Result<Body> {
    let text: String = node.get("body").ok_or_else(|| ort::Error::new("attribute `body` is missing"))?;
    text.parse().map_err(to_ort)
}

impl Operator for Elementwise {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &str {
        "Elementwise"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs()
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<BoxedKernel<'a>> {
        Ok(Box::new(Instance(body(node)?)))
    }
}

struct Instance(Body);

impl Kernel for Instance {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let mut values = Vec::with_capacity(MOST.0);
        for i in 0..context.num_inputs()? {
            values.extend(context.input(i)?);
        }
        let mut inputs: Vec<&[f32]> = Vec::with_capacity(values.len());
        for value in &values {
            inputs.push(value.try_extract_tensor::<f32>()?.1);
        }
        let n = inputs.iter().map(|x| x.len()).max().unwrap_or(0) as i64;
        let mut values = Vec::with_capacity(MOST.1);
        for i in 0..self.0.outputs.len() {
            values.extend(context.output(i, vec![n])?);
        }
        let mut outputs: Vec<&mut [f32]> = Vec::with_capacity(values.len());
        for value in &mut values {
            outputs.push(value.try_extract_tensor_mut::<f32>()?.1);
        }
        run(&self.0, &inputs, &mut outputs, context).map_err(to_ort)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Backwards, numbers};
    use super::*;

    #[test]
    fn a_body_does_the_same_for_every_element() {
        let body: Body =
            "Mul x0 x1\nSqrt s2\nDiv v1 2e0\nMul v0 v2\nMin v3 1e-1\nAbs x0\nSub x1 s2\nNeg v6\n= v4 v5 v7 v2"
                .parse()
                .unwrap();
        for n in [0, 1, BLOCK - 1, PART, 2 * PART + BLOCK + 7] {
            let (a, b, c) = (numbers(1, n), numbers(2, n), [0.25]);
            let mut y = [vec![0.0; n], vec![0.0; n], vec![0.0; n], vec![0.0; n]];
            let mut outputs: Vec<&mut [f32]> = y.iter_mut().map(Vec::as_mut_slice).collect();
            run(&body, &[&a, &b, &c], &mut outputs, &Backwards).unwrap();
            for i in 0..n {
                let want = [(a[i] * b[i] * 0.25).min(0.1), a[i].abs(), 0.25 - b[i], 0.25];
                assert_eq!([y[0][i], y[1][i], y[2][i], y[3][i]], want, "{i} of {n}");
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so_and_lengths_are_checked() {
        let body: Body = "Min x0 1e0\n= v0".parse().unwrap();
        let mut y = [0.0; 3];
        run(&body, &[&[f32::NAN, 2.0, 0.5]], &mut [&mut y], &Backwards).unwrap();
        assert!(y[0].is_nan() && y[1..] == [1.0, 0.5]);
        for inputs in [&[][..], &[&[0.0; 2][..]]] {
            assert!(run(&body, inputs, &mut [&mut y], &Backwards).is_err());
        }
        assert!(run(&body, &[&[0.0; 3]], &mut [], &Backwards).is_err());
    }
}
