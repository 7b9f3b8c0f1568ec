//! Activation functions.

use super::Domain::{Between, Off};
use super::{Row, check_all, refused, row};

pub fn rows() -> Vec<Row> {
    vec![
        row("Relu", "any").x(&[2, 5]),
        row("Sigmoid", "any").x(&[2, 5]),
        row("Tanh", "any").x(&[2, 5]),
        row("LeakyRelu", "default").x(&[2, 5]),
        row("LeakyRelu", "0.3").x(&[2, 5]).float("alpha", 0.3),
        row("LeakyRelu", "negative slope below 0").x(&[2, 5]).float("alpha", -0.5),
        row("Elu", "default").x(&[2, 5]),
        row("Elu", "0.7").x(&[2, 5]).float("alpha", 0.7),
        row("Selu", "default").x(&[2, 5]),
        row("Selu", "other factors").x(&[2, 5]).float("alpha", 0.5).float("gamma", 1.5),
        row("Celu", "default").x(&[2, 5]),
        row("Celu", "1.7").x(&[2, 5]).float("alpha", 1.7),
        row("Softplus", "any").x(&[2, 5]),
        row("Softsign", "any").x(&[2, 5]),
        row("HardSigmoid", "default").x_in(&[3, 5], Between(-2.3, 2.3)),
        row("HardSigmoid", "steep").x_in(&[3, 5], Off(&[-0.3, 0.7])).float("alpha", 1.).float("beta", 0.3),
        row("HardSwish", "between the kinks").x_in(&[2, 5], Between(-2.8, 2.8)),
        row("HardSwish", "above").x_in(&[2, 5], Between(3.2, 5.)),
        row("HardSwish", "below").x_in(&[2, 5], Between(-5., -3.2)),
        row("PRelu", "slope per channel").x(&[2, 3, 4]).x(&[3, 1]),
        row("PRelu", "one slope").x(&[2, 3]).x(&[1]),
        row("PRelu", "slope per element").x(&[2, 3]).x(&[2, 3]),
        row("ThresholdedRelu", "default").x_in(&[3, 5], Off(&[1.])),
        row("ThresholdedRelu", "negative threshold").x_in(&[3, 5], Off(&[-0.5])).float("alpha", -0.5),
        row("Shrink", "default").single().x_in(&[3, 5], Off(&[-0.5, 0.5])),
        row("Shrink", "with bias").single().x_in(&[3, 5], Off(&[-1., 1.])).float("lambd", 1.).float("bias", 0.4),
        row("Gelu", "exact").x(&[2, 5]),
        row("Gelu", "tanh").x(&[2, 5]).str("approximate", "tanh"),
        row("Mish", "any").x(&[2, 5]),
        row("Swish", "default").x(&[2, 5]).opset(24),
        row("Swish", "alpha 1.702").x(&[2, 5]).float("alpha", 1.702).opset(24),
        row("Softmax", "last axis").x(&[2, 3, 4]),
        row("Softmax", "axis 1").x(&[2, 3, 4]).int("axis", 1),
        row("Softmax", "axis -3").x(&[2, 3, 4]).int("axis", -3),
        row("Softmax", "rank 1").x(&[5]).int("axis", 0),
        row("LogSoftmax", "last axis").x(&[2, 3, 4]),
        row("LogSoftmax", "axis 0").x(&[2, 3, 4]).int("axis", 0),
        row("LogSoftmax", "axis -2").x(&[2, 3, 4]).int("axis", -2),
    ]
}

#[test]
fn activations() {
    check_all(&rows());
}

#[test]
fn activations_refuse() {
    refused(&row("Elu", "negative factor").x(&[3]).float("alpha", -1.), "negative factors");
}
