//! Texts as the token arrays that a model takes, by the Hugging Face tokenizer that belongs to it.

use super::Lengths;
use crate::adapt::MASK_NAMES;
use crate::error::{Error, Result};
use crate::ir::{DType, Declared, Dim, Element, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokenizers::tokenizer::{EncodeInput, PostProcessor};
use tokenizers::{Encoding, PaddingDirection, Tokenizer, TruncationParams};

/// Texts that are tokenized at a time; an encoding holds much more than its numbers.
const CHUNK: usize = 4096;

/// Rows are as long as a multiple of this many tokens.
const ROUND: usize = 8;

/// Names of padding tokens where the file has no `padding` section.
const PAD_TOKENS: [&str; 2] = ["[PAD]", "<pad>"];

/// What an input of a model is told about a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Its number in the vocabulary.
    Id,
    /// 1 for a token, 0 for padding.
    Mask,
    /// Which text of a pair it belongs to.
    Type,
}

/// The names that exporters give to these inputs.
const ROLES: [(Role, &[&str]); 3] = [
    (Role::Id, &["input_ids", "input_word_ids"]),
    (Role::Mask, &MASK_NAMES),
    (Role::Type, &["token_type_ids", "segment_ids", "input_type_ids"]),
];

/// A tokenizer set up for the inputs of a model.
pub(super) struct Encoder {
    tokenizer: Tokenizer,
    file: PathBuf,
    inputs: Vec<Input>,
    /// Texts of more tokens are cut.
    pub(super) longest: usize,
    /// Rows have that many tokens whatever the texts: the model says so, or nothing tells it what is padding.
    always: bool,
    pad: Pad,
}

struct Input {
    name: String,
    role: Role,
    dtype: DType,
}

struct Pad {
    id: u32,
    type_id: u32,
    left: bool,
}

/// The tokens of some texts, without padding.
pub(super) struct Encoded {
    /// What each input is told about them, one text after the other.
    columns: Vec<Vec<u32>>,
    /// Tokens of each text.
    lengths: Vec<usize>,
    /// Texts that were cut.
    pub(super) cut: usize,
}

impl Encoder {
    /// Reads `file` (a `tokenizer.json`), for rows of up to `max_length` tokens where the model does not fix their number.
    ///
    /// # Errors
    /// A file that is no tokenizer or has no padding token; inputs that do not take tokens; a length without room for text.
    pub(super) fn new(file: &Path, inputs: &[(String, Declared)], max_length: usize, texts: usize) -> Result<Self> {
        let hint = "give the tokenizer.json that belongs to the model, not vocab.txt or tokenizer_config.json";
        let bytes = std::fs::read(file).map_err(|e| Error::new(e.to_string()).in_file(file).hint(hint))?;
        let mut tokenizer = Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::new(format!("not a tokenizer: {e}")).in_file(file).hint(hint))?;
        let pad = pad(&tokenizer).map_err(|e| e.in_file(file))?;
        let fixed = fixed_length(inputs)?;
        let longest = fixed.unwrap_or(max_length);
        let special = tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(texts > 1));
        if longest <= special {
            let cause = format!("{longest} tokens leave no room for text beside {special} special tokens");
            return Err(Error::new(cause).hint("choose a larger --max-length"));
        }
        let direction = tokenizer.get_truncation().map(|t| t.direction).unwrap_or_default();
        let truncation = TruncationParams { max_length: longest, direction, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| Error::new(e.to_string()).in_file(file))?;
        // Rows are padded here: the tokenizer would make a string of every padding token.
        tokenizer.with_padding(None);
        let inputs = inputs.iter().map(|(name, declared)| input(name, declared, inputs)).collect::<Result<Vec<_>>>()?;
        for (role, names) in ROLES {
            let of_role: Vec<&str> = inputs.iter().filter(|i| i.role == role).map(|i| i.name.as_str()).collect();
            match (role, of_role.as_slice()) {
                (_, [_]) | (Role::Mask | Role::Type, []) => {}
                (_, []) => return Err(no_tokens(&format!("the model has no input `{}`", names[0]))),
                (_, several) => return Err(no_tokens(&format!("inputs {} mean the same", several.join(" and ")))),
            }
        }
        let always = fixed.is_some() || inputs.iter().all(|i| i.role != Role::Mask);
        Ok(Self { tokenizer, file: file.to_owned(), inputs, longest, always, pad })
    }

    /// The tokens of `texts`, each one text or a pair, with special tokens. Of a pair the longer text is cut first.
    ///
    /// # Errors
    /// A text that the tokenizer cannot take.
    pub(super) fn encode(&self, texts: &[&[String]]) -> Result<Encoded> {
        let mut columns = vec![Vec::new(); self.inputs.len()];
        let mut lengths = Vec::with_capacity(texts.len());
        let mut cut = 0;
        for chunk in texts.chunks(CHUNK) {
            let given: Vec<EncodeInput<'_>> = chunk
                .iter()
                .map(|texts| match texts {
                    [first, second, ..] => EncodeInput::from((first.as_str(), second.as_str())),
                    [only] => EncodeInput::from(only.as_str()),
                    [] => EncodeInput::from(""),
                })
                .collect();
            let encodings = self.tokenizer.encode_batch_fast(given, true);
            for encoding in encodings.map_err(|e| Error::new(e.to_string()).in_file(&self.file))? {
                cut += usize::from(!encoding.get_overflowing().is_empty());
                let length = encoding.len().min(self.longest);
                lengths.push(length);
                for (input, column) in self.inputs.iter().zip(&mut columns) {
                    column.extend(&of_role(&encoding, input.role)[..length]);
                }
            }
        }
        Ok(Encoded { columns, lengths, cut })
    }

    /// Tokens of a row, padding included, in which every text of `all` has room.
    pub(super) fn length<'a>(&self, all: impl IntoIterator<Item = &'a Encoded>) -> usize {
        let longest = all.into_iter().flat_map(|e| &e.lengths).max().copied().unwrap_or_default();
        if self.always { self.longest } else { longest.max(1).next_multiple_of(ROUND).min(self.longest) }
    }

    /// The lengths of texts in rows of `length`, where rows of any length mean the same.
    pub(super) fn lengths(&self, encoded: Encoded, length: usize) -> Option<Lengths> {
        (!self.always).then_some(Lengths { tokens: encoded.lengths, longest: length, left: self.pad.left })
    }

    /// The arrays [texts, length] by the name of the input, padded.
    ///
    /// # Errors
    /// A length in which a text has no room.
    pub(super) fn arrays(&self, encoded: &Encoded, length: usize) -> Result<BTreeMap<String, Tensor>> {
        let shape = [encoded.lengths.len(), length];
        let array = |(input, column): (&Input, &Vec<u32>)| {
            let padding = match input.role {
                Role::Id => self.pad.id,
                Role::Mask => 0,
                Role::Type => self.pad.type_id,
            };
            let mut padded = Vec::with_capacity(shape[0] * length);
            let mut rest = column.as_slice();
            for n in &encoded.lengths {
                let (values, others) = rest.split_at(*n);
                let padding = std::iter::repeat_n(padding, length.saturating_sub(*n));
                if self.pad.left {
                    padded.extend(padding);
                    padded.extend(values);
                } else {
                    padded.extend(values);
                    padded.extend(padding);
                }
                rest = others;
            }
            let tensor = match input.dtype {
                DType::I32 => integers::<i32>(&shape, &padded),
                _ => integers::<i64>(&shape, &padded),
            };
            Ok((input.name.clone(), tensor?))
        };
        self.inputs.iter().zip(&encoded.columns).map(array).collect()
    }
}

fn of_role(encoding: &Encoding, role: Role) -> &[u32] {
    match role {
        Role::Id => encoding.get_ids(),
        Role::Mask => encoding.get_attention_mask(),
        Role::Type => encoding.get_type_ids(),
    }
}

fn integers<T: Element + TryFrom<u32> + Default>(shape: &[usize], values: &[u32]) -> Result<Tensor> {
    // No vocabulary comes near the end of i32.
    let values: Vec<T> = values.iter().map(|v| T::try_from(*v).unwrap_or_default()).collect();
    Tensor::new(shape, &values)
}

/// The padding that the tokenizer's file says, or that of its padding token.
fn pad(tokenizer: &Tokenizer) -> Result<Pad> {
    if let Some(p) = tokenizer.get_padding() {
        let left = matches!(p.direction, PaddingDirection::Left);
        return Ok(Pad { id: p.pad_id, type_id: p.pad_type_id, left });
    }
    let id = PAD_TOKENS.iter().find_map(|token| tokenizer.token_to_id(token));
    let id = id.ok_or_else(|| {
        Error::new(format!("there is no `padding` section and no token {}", PAD_TOKENS.join(" or ")))
            .hint("texts of one batch are padded to one length: enable padding in the tokenizer and save it again")
    })?;
    Ok(Pad { id, type_id: 0, left: false })
}

fn no_tokens(cause: &str) -> Error {
    let names = ROLES.map(|(_, names)| names.join(" or "));
    Error::new(cause).hint(format!("texts feed inputs {}; bring others as npz:FILE", names.join(", ")))
}

/// What input `name` of all the model's `inputs` takes.
fn input(name: &str, declared: &Declared, inputs: &[(String, Declared)]) -> Result<Input> {
    // TensorFlow's exporters append the number of the output.
    let plain = name.strip_suffix(":0").unwrap_or(name);
    let known = ROLES.iter().find(|(_, names)| names.contains(&plain)).map(|(role, _)| *role);
    let role = known.or(if inputs.len() == 1 { Some(Role::Id) } else { None });
    let role = role.ok_or_else(|| no_tokens(&format!("input `{name}` of the model is not one that texts feed")))?;
    if !matches!(declared.dtype, DType::I32 | DType::I64) {
        return Err(no_tokens(&format!("input `{name}` is {}, but tokens are i64 or i32", declared.dtype)));
    }
    if declared.dims.as_ref().is_some_and(|d| d.len() != 2) {
        return Err(no_tokens(&format!("input `{name}` is not [batch, tokens]")));
    }
    Ok(Input { name: name.to_owned(), role, dtype: declared.dtype })
}

/// The number of tokens in a row, when the model fixes it.
fn fixed_length(inputs: &[(String, Declared)]) -> Result<Option<usize>> {
    let length = |declared: &Declared| match declared.dims.as_deref() {
        Some([_, Dim::Fixed(n)]) => Some(*n),
        _ => None,
    };
    let lengths: Vec<(&String, usize)> = inputs.iter().filter_map(|(n, d)| Some((n, length(d)?))).collect();
    let Some((first, n)) = lengths.first() else { return Ok(None) };
    match lengths.iter().find(|(_, other)| other != n) {
        Some((name, other)) => Err(no_tokens(&format!("input `{first}` takes {n} tokens, but `{name}` takes {other}"))),
        None => Ok(Some(*n)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then the words of tests/text/words.
    const TOKENIZER: &str = include_str!("../../tests/text/tokenizer.json");

    fn inputs(names: &[&str], dtype: DType, length: Dim) -> Vec<(String, Declared)> {
        let dims = Some(vec![Dim::Symbol("batch".into()), length]);
        names.iter().map(|n| ((*n).to_owned(), Declared { dtype, dims: dims.clone() })).collect()
    }

    fn file(json: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        file
    }

    fn encoder(json: &str, names: &[&str], length: usize, texts: usize) -> Result<Encoder> {
        Encoder::new(file(json).path(), &inputs(names, DType::I64, Dim::Unknown), length, texts)
    }

    const BERT: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

    /// The arrays of one sample, and how many were cut.
    struct Arrays {
        arrays: BTreeMap<String, Tensor>,
        cut: usize,
    }

    fn encoded(encoder: &Encoder, texts: &[&str]) -> Arrays {
        let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
        let encoded = encoder.encode(&[&texts]).unwrap();
        Arrays { arrays: encoder.arrays(&encoded, encoder.length([&encoded])).unwrap(), cut: encoded.cut }
    }

    fn ints(encoded: &Arrays, name: &str) -> Vec<i64> {
        encoded.arrays[name].to_i64().unwrap()
    }

    #[test]
    fn rows_are_as_long_as_the_longest_text_needs() {
        let length = |names: &[&str], max: usize, words: &[usize]| {
            let encoder = encoder(TOKENIZER, names, max, 1).unwrap();
            let all: Vec<Encoded> = words.iter().map(|n| encoder.encode(&[&["good ".repeat(*n)]]).unwrap()).collect();
            encoder.length(&all)
        };
        assert_eq!(length(&BERT, 128, &[1, 6, 3]), 8, "two special tokens");
        assert_eq!(length(&BERT, 128, &[1, 7]), 16);
        assert_eq!(length(&BERT, 12, &[1, 7]), 12);
        assert_eq!(length(&BERT, 12, &[40, 1]), 12);
        assert_eq!(length(&["input_ids"], 128, &[1]), 128, "nothing tells what is padding");
    }

    #[test]
    fn pairs_get_special_tokens_types_and_padding() {
        let e = encoded(&encoder(TOKENIZER, &BERT, 10, 2).unwrap(), &["a good film", "Bad!!"]);
        let id = |word: &str| i64::from(Tokenizer::from_bytes(TOKENIZER).unwrap().token_to_id(word).unwrap());
        let [a, good, film, bad] = ["a", "good", "film", "bad"].map(id);
        assert_eq!(ints(&e, "input_ids"), [2, a, good, film, 3, bad, id("!"), id("!"), 3, 0]);
        assert_eq!(ints(&e, "attention_mask"), [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(ints(&e, "token_type_ids"), [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]);
        assert_eq!((e.cut, e.arrays["input_ids"].shape()), (0, &[1, 10][..]));
    }

    #[test]
    fn long_texts_are_cut_and_unknown_words_are_known_as_such() {
        let e = encoded(&encoder(TOKENIZER, &["input_ids"], 5, 1).unwrap(), &["good xyzzy good bad bad bad"]);
        let ids = ints(&e, "input_ids");
        assert_eq!((ids[0], ids[2], ids[4], e.cut), (2, 1, 3, 1));
        assert_eq!(e.arrays.len(), 1, "only what the model has");
    }

    #[test]
    fn the_models_length_type_and_names_win() {
        let of = |names: &[&str], length| inputs(names, DType::I32, length);
        let file = file(TOKENIZER);
        let tensorflow = ["input_ids:0", "input_mask:0", "segment_ids:0"];
        let encoder = Encoder::new(file.path(), &of(&tensorflow, Dim::Fixed(7)), 128, 1).unwrap();
        let e = encoded(&encoder, &["good"]);
        assert_eq!(e.arrays["input_mask:0"], Tensor::new(&[1, 7], &[1i32, 1, 1, 0, 0, 0, 0]).unwrap());
        assert!(Encoder::new(file.path(), &of(&["tokens"], Dim::Unknown), 8, 1).is_ok(), "the only input");
    }

    #[test]
    fn padding_is_as_the_file_says() {
        let padding = r#""padding": {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 5, "pad_type_id": 1, "pad_token": "x"}"#;
        let json = TOKENIZER.replace("\"padding\": null", padding);
        let e = encoded(&encoder(&json, &BERT, 4, 1).unwrap(), &["good"]);
        assert_eq!(ints(&e, "input_ids")[..2], [5, 2]);
        assert_eq!(ints(&e, "attention_mask"), [0, 1, 1, 1]);
        assert_eq!(ints(&e, "token_type_ids"), [1, 0, 0, 0]);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let cause = |r: Result<Encoder>| {
            let e = r.err().unwrap();
            assert!(e.hint_text().is_some(), "{e}");
            e.to_string()
        };
        assert!(cause(encoder("{}", &BERT, 8, 1)).contains("not a tokenizer"));
        assert!(cause(encoder(TOKENIZER, &BERT, 2, 1)).contains("no room for text beside 2 special"));
        assert!(cause(encoder(TOKENIZER, &BERT, 3, 2)).contains("beside 3 special"));
        assert!(
            cause(encoder(TOKENIZER, &["attention_mask", "token_type_ids"], 8, 1)).contains("no input `input_ids`")
        );
        assert!(cause(encoder(TOKENIZER, &["input_ids", "x"], 8, 1)).contains("input `x`"));
        assert!(cause(encoder(TOKENIZER, &["input_ids", "input_word_ids"], 8, 1)).contains("mean the same"));
        let no_pad = TOKENIZER.replace("[PAD]", "[NONE]");
        assert!(cause(encoder(&no_pad, &BERT, 8, 1)).contains("no token [PAD] or <pad>"));
        let file = file(TOKENIZER);
        let of = |dtype, length| Encoder::new(file.path(), &inputs(&BERT, dtype, length), 8, 1);
        assert!(cause(of(DType::F32, Dim::Unknown)).contains("f32"));
        let mut two = inputs(&["input_ids"], DType::I64, Dim::Fixed(8));
        two.extend(inputs(&["attention_mask"], DType::I64, Dim::Fixed(9)));
        assert!(cause(Encoder::new(file.path(), &two, 8, 1)).contains("takes 8 tokens, but `attention_mask` takes 9"));
        let nowhere = file.path().with_file_name("nowhere.json");
        let missing = Encoder::new(&nowhere, &inputs(&BERT, DType::I64, Dim::Unknown), 8, 1);
        assert!(cause(missing).contains("nowhere.json"));
    }
}
