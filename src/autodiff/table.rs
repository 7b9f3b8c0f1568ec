//! Operator → VJP rule, or no gradient by name. The documentation's operator table is generated from here.

use super::{
    DOMAIN, Lowering, Rule, activation, attention, conv, elementwise, fuse, index, layout, linalg, loss, microsoft,
    norm, pool, recurrent, reduce, resize, sample, spectral, state,
};
use crate::error::{Error, Result};
use crate::ir::Node;
use Entry::{Lower as L, NoGradient, Refused, Rule as R};

/// What the table says about an operator.
#[derive(Clone, Copy)]
pub enum Entry {
    /// Its VJP rule.
    Rule(Rule),
    /// It is written out as simpler operators.
    Lower(Lowering),
    /// It has no gradient (its outputs are piecewise constant, integers or booleans), with the reason.
    NoGradient(&'static str),
    /// It has a gradient, or is used as if it had, that nobody can compute; with the reason.
    Refused(&'static str),
}

/// Operators of ai.onnx, by family.
pub const TABLE: &[(&str, Entry)] = &[
    // Elementwise arithmetic and functions.
    ("Add", R(elementwise::add)),
    ("Sub", R(elementwise::sub)),
    ("Mul", R(elementwise::mul)),
    ("Div", R(elementwise::div)),
    ("Mod", R(elementwise::modulo)),
    ("Pow", R(elementwise::pow)),
    ("Max", R(elementwise::extremum)),
    ("Min", R(elementwise::extremum)),
    ("Sum", R(elementwise::sum)),
    ("Mean", R(elementwise::mean)),
    ("Where", R(elementwise::select)),
    ("Clip", R(elementwise::clip)),
    ("Cast", R(elementwise::cast)),
    ("CastLike", R(elementwise::cast)),
    ("DequantizeLinear", L(elementwise::dequantize)),
    ("Identity", R(elementwise::identity)),
    ("Dropout", R(elementwise::dropout)),
    ("Neg", R(elementwise::neg)),
    ("Abs", R(elementwise::abs)),
    ("Sqrt", R(elementwise::sqrt)),
    ("Exp", R(elementwise::exp)),
    ("Log", R(elementwise::log)),
    ("Reciprocal", R(elementwise::reciprocal)),
    ("Sin", R(elementwise::sin)),
    ("Cos", R(elementwise::cos)),
    ("Tan", R(elementwise::tan)),
    ("Asin", R(elementwise::asin)),
    ("Acos", R(elementwise::acos)),
    ("Atan", R(elementwise::atan)),
    ("Sinh", R(elementwise::sinh)),
    ("Cosh", R(elementwise::cosh)),
    ("Asinh", R(elementwise::asinh)),
    ("Acosh", R(elementwise::acosh)),
    ("Atanh", R(elementwise::atanh)),
    ("Erf", R(elementwise::erf)),
    // Activations.
    ("Relu", R(activation::relu)),
    ("Sigmoid", R(activation::sigmoid)),
    ("Tanh", R(activation::tanh)),
    ("LeakyRelu", R(activation::leaky_relu)),
    ("Elu", R(activation::elu)),
    ("Selu", R(activation::selu)),
    ("Celu", R(activation::celu)),
    ("Softplus", R(activation::softplus)),
    ("Softsign", R(activation::softsign)),
    ("HardSigmoid", R(activation::hard_sigmoid)),
    ("HardSwish", R(activation::hard_swish)),
    ("PRelu", R(activation::prelu)),
    ("ThresholdedRelu", R(activation::thresholded_relu)),
    ("Shrink", R(activation::shrink)),
    ("Gelu", R(activation::gelu)),
    ("Mish", R(activation::mish)),
    ("Swish", R(activation::swish)),
    ("Softmax", R(activation::softmax)),
    ("LogSoftmax", R(activation::log_softmax)),
    // Matrix products.
    ("MatMul", R(linalg::matmul)),
    ("Gemm", R(linalg::general_matmul)),
    ("Einsum", R(linalg::einsum)),
    ("Det", R(linalg::det)),
    // Convolutions.
    ("Conv", R(conv::conv)),
    ("ConvTranspose", R(conv::conv_transpose)),
    ("CausalConvWithState", L(state::causal_conv)),
    // Pooling.
    ("MaxPool", R(pool::max_pool)),
    ("AveragePool", R(pool::average_pool)),
    ("GlobalAveragePool", R(pool::global_average_pool)),
    ("GlobalMaxPool", R(pool::global_max_pool)),
    ("LpPool", L(pool::lp_pool)),
    ("GlobalLpPool", L(pool::global_lp_pool)),
    ("MaxUnpool", R(pool::max_unpool)),
    // Normalizations.
    ("BatchNormalization", R(norm::batch_normalization)),
    ("LayerNormalization", R(norm::layer_normalization)),
    ("RMSNormalization", R(norm::rms_normalization)),
    ("SimplifiedLayerNormalization", R(norm::simplified_layer_normalization)),
    ("InstanceNormalization", R(norm::instance_normalization)),
    ("GroupNormalization", R(norm::group_normalization)),
    ("LRN", L(norm::local_response_normalization)),
    ("LpNormalization", L(norm::lp_normalization)),
    ("MeanVarianceNormalization", L(norm::mean_variance_normalization)),
    // Attention.
    ("Attention", L(attention::attention)),
    ("RotaryEmbedding", L(attention::rotary_embedding)),
    ("LinearAttention", L(state::linear_attention)),
    ("TensorScatter", L(state::tensor_scatter)),
    // Recurrent layers.
    ("RNN", L(recurrent::rnn)),
    ("GRU", L(recurrent::gru)),
    ("LSTM", L(recurrent::lstm)),
    // Reductions.
    ("ReduceSum", R(reduce::sum)),
    ("ReduceMean", R(reduce::mean)),
    ("ReduceMax", R(reduce::extremum)),
    ("ReduceMin", R(reduce::extremum)),
    ("ReduceProd", R(reduce::prod)),
    ("ReduceL1", R(reduce::l1)),
    ("ReduceL2", R(reduce::l2)),
    ("ReduceLogSum", R(reduce::log_sum)),
    ("ReduceLogSumExp", R(reduce::log_sum_exp)),
    ("ReduceSumSquare", R(reduce::sum_square)),
    ("CumSum", R(reduce::cum_sum)),
    ("CumProd", L(layout::cum_prod)),
    // Layout.
    ("Reshape", R(layout::reshape)),
    ("Flatten", R(layout::reshape)),
    ("Squeeze", R(layout::reshape)),
    ("Unsqueeze", R(layout::reshape)),
    ("Transpose", R(layout::transpose)),
    ("Concat", R(layout::concat)),
    ("Split", R(layout::split)),
    ("Slice", R(layout::slice)),
    ("Expand", R(layout::expand)),
    ("Tile", R(layout::tile)),
    ("Pad", R(layout::pad)),
    ("DepthToSpace", R(layout::depth_to_space)),
    ("SpaceToDepth", R(layout::space_to_depth)),
    ("Trilu", R(layout::trilu)),
    ("ReverseSequence", R(layout::reverse_sequence)),
    ("CenterCropPad", L(layout::center_crop_pad)),
    ("Col2Im", R(layout::col2im)),
    // Indexing.
    ("Gather", R(index::gather)),
    ("GatherElements", R(index::gather_elements)),
    ("GatherND", R(index::gather_nd)),
    ("ScatterElements", R(index::scatter_elements)),
    ("ScatterND", R(index::scatter_nd)),
    ("OneHot", R(index::one_hot)),
    ("TopK", R(index::top_k)),
    ("Compress", R(index::compress)),
    // Images.
    ("Resize", R(resize::resize)),
    ("GridSample", L(sample::grid_sample)),
    ("AffineGrid", L(sample::affine_grid)),
    ("RoiAlign", L(sample::roi_align)),
    ("DeformConv", L(sample::deform_conv)),
    // Fourier transforms.
    ("DFT", R(spectral::dft)),
    ("STFT", L(spectral::stft)),
    // Losses.
    ("NegativeLogLikelihoodLoss", L(loss::negative_log_likelihood)),
    ("SoftmaxCrossEntropyLoss", L(loss::softmax_cross_entropy)),
    // No gradient.
    ("Sign", NoGradient("its output is piecewise constant")),
    ("Floor", NoGradient("its output is piecewise constant")),
    ("Ceil", NoGradient("its output is piecewise constant")),
    ("Round", NoGradient("its output is piecewise constant")),
    ("Hardmax", NoGradient("its output is piecewise constant")),
    ("IsNaN", NoGradient("its output is a boolean")),
    ("IsInf", NoGradient("its output is a boolean")),
    ("Equal", NoGradient("its output is a boolean")),
    ("Less", NoGradient("its output is a boolean")),
    ("LessOrEqual", NoGradient("its output is a boolean")),
    ("Greater", NoGradient("its output is a boolean")),
    ("GreaterOrEqual", NoGradient("its output is a boolean")),
    ("Not", NoGradient("its output is a boolean")),
    ("And", NoGradient("its output is a boolean")),
    ("Or", NoGradient("its output is a boolean")),
    ("Xor", NoGradient("its output is a boolean")),
    ("ArgMax", NoGradient("its output is an integer")),
    ("ArgMin", NoGradient("its output is an integer")),
    ("NonZero", NoGradient("its output is an integer")),
    ("Shape", NoGradient("its output is an integer")),
    ("Size", NoGradient("its output is an integer")),
    ("ConstantOfShape", NoGradient("its output depends on a shape alone")),
    ("EyeLike", NoGradient("its output depends on a shape alone")),
    ("RandomNormalLike", NoGradient("its output depends on a shape alone")),
    ("RandomUniformLike", NoGradient("its output depends on a shape alone")),
    ("BitCast", NoGradient("it reads a number's bits as another number")),
    ("Bernoulli", NoGradient("its output is random, and piecewise constant in its input")),
    ("Multinomial", NoGradient("its output is random, and piecewise constant in its input")),
    // Refused.
    ("Unique", Refused("the shape of its output depends on data")),
    ("If", Refused("its condition depends on data; a condition that depends on shapes alone is resolved")),
    ("Loop", Refused("the number of its rounds depends on data, or its body decides when to stop")),
    ("Scan", Refused("the number of its rounds is not known")),
    ("QuantizeLinear", Refused("it rounds to integers: this model is a quantized one")),
    ("DynamicQuantizeLinear", Refused("it rounds to integers: this model is a quantized one")),
    ("ConvInteger", Refused("it multiplies integers: this model is a quantized one")),
    ("MatMulInteger", Refused("it multiplies integers: this model is a quantized one")),
    ("QLinearConv", Refused("it multiplies integers: this model is a quantized one")),
    ("QLinearMatMul", Refused("it multiplies integers: this model is a quantized one")),
];

/// Operators of com.microsoft, by family.
pub const MICROSOFT: &[(&str, Entry)] = &[
    // Activations.
    ("Gelu", R(activation::gelu)),
    ("BiasGelu", R(microsoft::bias_gelu)),
    ("FastGelu", R(microsoft::fast_gelu)),
    ("QuickGelu", R(microsoft::quick_gelu)),
    // Matrix products and convolutions.
    ("FusedMatMul", L(microsoft::fused_matmul)),
    ("TransposeMatMul", L(microsoft::fused_matmul)),
    ("FusedGemm", L(microsoft::fused_gemm)),
    ("FusedConv", L(microsoft::fused_conv)),
    ("Inverse", R(microsoft::inverse)),
    // Normalizations.
    ("SkipLayerNormalization", L(microsoft::skip_layer_normalization)),
    ("SkipSimplifiedLayerNormalization", L(microsoft::skip_simplified_layer_normalization)),
    ("EmbedLayerNormalization", L(microsoft::embed_layer_normalization)),
    // Attention.
    ("Attention", L(microsoft::attention)),
    ("MultiHeadAttention", L(microsoft::multi_head_attention)),
    ("GroupQueryAttention", L(microsoft::group_query_attention)),
    ("RotaryEmbedding", L(microsoft::rotary_embedding)),
    // As in ai.onnx.
    ("DequantizeLinear", L(elementwise::dequantize)),
    ("Pad", R(layout::pad)),
    ("ExpandDims", R(layout::reshape)),
    ("Trilu", R(layout::trilu)),
    ("GatherND", R(index::gather_nd)),
    // Refused.
    ("QAttention", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QEmbedLayerNormalization", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QGemm", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QLinearAdd", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QLinearAveragePool", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QLinearConcat", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QLinearConv", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QLinearGlobalAveragePool", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QLinearLeakyRelu", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QLinearMul", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QLinearReduceMean", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QLinearSigmoid", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QLinearSoftmax", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QLinearWhere", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QMoE", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QOrderedAttention", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QOrderedGelu", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QOrderedLayerNormalization", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QOrderedLongformerAttention", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QOrderedMatMul", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("QuantizeLinear", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("DynamicQuantizeLSTM", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("DynamicQuantizeMatMul", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("MatMulIntegerToFloat", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("MatMulInteger16", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("MatMulNBits", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("MatMulBnb4", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("MatMulFpQ4", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("GatherBlockQuantized", Refused("it computes with rounded numbers: this model is a quantized one")),
    ("BiasAdd", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("BiasDropout", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("BiasSplitGelu", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("GemmFastGelu", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("GroupNorm", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("SkipGroupNorm", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("NhwcConv", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("NhwcFusedConv", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("PackedAttention", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("PackedMultiHeadAttention", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("DecoderAttention", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("LongformerAttention", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("RelativePositionBias", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("GatedRelativePositionBias", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("RemovePadding", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("RestorePadding", Refused("ONNX Runtime has no kernel for it on the CPU, where shapes are found")),
    ("DecoderMaskedMultiHeadAttention", Refused("it decodes one token at a time; export the model without a cache")),
    ("SparseAttention", Refused("it decodes one token at a time; export the model without a cache")),
    ("BeamSearch", Refused("it searches for a sequence, which is piecewise constant")),
    ("WhisperBeamSearch", Refused("it searches for a sequence, which is piecewise constant")),
    ("GreedySearch", Refused("it searches for a sequence, which is piecewise constant")),
    ("Sampling", Refused("it searches for a sequence, which is piecewise constant")),
];

/// Operators of ai.onnx.ml: what was learned before networks.
#[rustfmt::skip]
pub const CLASSICAL: &[(&str, Entry)] = &[
    ("ArrayFeatureExtractor", L(index::array_feature_extractor)),
    ("Binarizer", NoGradient("its output is piecewise constant")),
    ("CategoryMapper", NoGradient("it maps strings and integers")),
    ("LabelEncoder", NoGradient("it maps one value to another")),
    ("OneHotEncoder", NoGradient("its output is piecewise constant")),
    ("DictVectorizer", Refused("it reads a map of strings; train the tensors behind it")),
    ("FeatureVectorizer", Refused("it is not a part of networks; use Concat")),
    ("Imputer", Refused("it replaces values by rule; impute before the model")),
    ("LinearClassifier", Refused("its weights are attributes, which are not trained; use Gemm")),
    ("LinearRegressor", Refused("its weights are attributes, which are not trained; use Gemm")),
    ("Normalizer", Refused("it is not a part of networks; use LpNormalization")),
    ("SVMClassifier", Refused("a support vector machine is not trained by gradients")),
    ("SVMRegressor", Refused("a support vector machine is not trained by gradients")),
    ("Scaler", Refused("its scales are attributes, which are not trained; use Sub and Div")),
    ("TreeEnsemble", Refused("decision trees are piecewise constant: no gradient trains them")),
    ("TreeEnsembleClassifier", Refused("decision trees are piecewise constant: no gradient trains them")),
    ("TreeEnsembleRegressor", Refused("decision trees are piecewise constant: no gradient trains them")),
    ("ZipMap", Refused("its output is a list of maps; train the tensor that it reads")),
];

/// Operators of domain `bisam` that [`fuse()`](super::fuse()) writes into a forward graph.
#[rustfmt::skip]
pub const FUSED: &[(&str, Entry)] = &[
    ("Conv", R(fuse::conv)),
    ("BatchNorm", R(fuse::batch_norm)),
    ("LayerNorm", R(fuse::layer_norm)),
    ("MaxPool", R(fuse::max_pool)),
    ("Softmax", R(fuse::softmax)),
    ("Silu", R(fuse::silu)),
    ("Gelu", R(fuse::gelu)),
    ("Uniform", NoGradient("random numbers")),
];

/// Every table with the domain of its operators, as users write it.
pub fn tables() -> Vec<(&'static str, &'static [(&'static str, Entry)])> {
    vec![("ai.onnx", TABLE), ("com.microsoft", MICROSOFT), ("ai.onnx.ml", CLASSICAL), (DOMAIN, FUSED)]
}

/// The entry of a node's operator.
///
/// # Errors
/// When there is none: a missing entry is never a zero gradient.
pub fn find(node: &Node) -> Result<Entry> {
    let table = match node.domain.as_str() {
        "" => TABLE,
        DOMAIN => FUSED,
        "com.microsoft" => MICROSOFT,
        "ai.onnx.ml" => CLASSICAL,
        _ => &[],
    };
    let entry = table.iter().find(|(op, _)| node.op == *op).map(|(_, e)| *e);
    entry.ok_or_else(|| {
        Error::new("this operator has no gradient rule")
            .hint("`bisam inspect` lists every operator of the model and whether it has one")
    })
}
