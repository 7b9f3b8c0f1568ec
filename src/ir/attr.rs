//! Node attributes, and the reader that knows which of them were looked at.

use super::{Declared, Dim, Graph, Source, Tensor};
use crate::error::Result;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The value of one attribute.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attr {
    Int(i64),
    Float(f32),
    Str(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strs(Vec<String>),
    Tensor(Tensor),
    Graph(Arc<Body>),
}

/// The body of a control-flow node (`If`, `Loop`, `Scan`, `SequenceMap`), closed: what it reads of the graph around it are its last
/// inputs, which the node has as its last inputs too.
#[derive(Debug)]
pub struct Body {
    /// The body. Of its inputs only names and order count; their types are those of what is passed.
    pub graph: Graph,
    /// How many of its inputs come from the graph around it.
    pub captured: usize,
}

impl Body {
    /// Rank of a loop's counter (input 0) or condition (1): a scalar, or what the file declares instead; PyTorch's `tensor_split` counts
    /// by vectors of one element.
    pub fn counter_rank(&self, input: usize) -> usize {
        match self.graph.inputs.get(input).map(|v| &self.graph[*v].source) {
            Some(Source::Input(Declared { dims: Some(dims), .. })) if dims.as_slice() == [Dim::Fixed(1)] => 1,
            _ => 0,
        }
    }
}

/// Bodies are equal when they are the same.
impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

/// The attributes of a node, ordered by name.
pub type Attrs = BTreeMap<String, Attr>;

/// Reads attributes and remembers which: an attribute that nobody read is a silently wrong gradient.
pub struct AttrReader<'a> {
    attrs: &'a Attrs,
    read: RefCell<BTreeSet<&'static str>>,
}

impl<'a> AttrReader<'a> {
    /// A reader that has read nothing yet.
    pub fn new(attrs: &'a Attrs) -> Self {
        Self { attrs, read: RefCell::default() }
    }

    /// The attribute itself, marked as read.
    pub fn get(&self, name: &'static str) -> Option<&'a Attr> {
        self.read.borrow_mut().insert(name);
        self.attrs.get(name)
    }

    /// Marks attributes as read which do not change the gradient; say why where this is called.
    pub fn ignore(&self, names: &[&'static str]) {
        self.read.borrow_mut().extend(names);
    }

    /// Marks every attribute as read: for rules that hand the whole set on to the node they emit.
    pub fn all(&self) -> &'a Attrs {
        self.read.borrow_mut().insert("*");
        self.attrs
    }

    /// An integer.
    ///
    /// # Errors
    /// When it is there with another type.
    pub fn int(&self, name: &'static str, default: i64) -> Result<i64> {
        match self.get(name) {
            None => Ok(default),
            Some(Attr::Int(v)) => Ok(*v),
            Some(other) => wrong(name, "an integer", other),
        }
    }

    /// A flag: an integer that is not zero.
    ///
    /// # Errors
    /// When it is there with another type.
    pub fn flag(&self, name: &'static str, default: bool) -> Result<bool> {
        Ok(self.int(name, i64::from(default))? != 0)
    }

    /// A float.
    ///
    /// # Errors
    /// When it is there with another type.
    pub fn float(&self, name: &'static str, default: f32) -> Result<f32> {
        match self.get(name) {
            None => Ok(default),
            Some(Attr::Float(v)) => Ok(*v),
            Some(other) => wrong(name, "a float", other),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// When it is there with another type.
    pub fn str(&self, name: &'static str, default: &'a str) -> Result<&'a str> {
        match self.get(name) {
            None => Ok(default),
            Some(Attr::Str(v)) => Ok(v),
            Some(other) => wrong(name, "a string", other),
        }
    }

    /// A list of integers, `None` when absent.
    ///
    /// # Errors
    /// When it is there with another type.
    pub fn ints(&self, name: &'static str) -> Result<Option<Vec<i64>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Ints(v)) => Ok(Some(v.clone())),
            Some(other) => wrong(name, "a list of integers", other),
        }
    }

    /// A list of floats, `None` when absent.
    ///
    /// # Errors
    /// When it is there with another type.
    pub fn floats(&self, name: &'static str) -> Result<Option<Vec<f32>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Floats(v)) => Ok(Some(v.clone())),
            Some(other) => wrong(name, "a list of floats", other),
        }
    }

    /// A list of strings, `None` when absent.
    ///
    /// # Errors
    /// When it is there with another type.
    pub fn strs(&self, name: &'static str) -> Result<Option<Vec<String>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Strs(v)) => Ok(Some(v.clone())),
            Some(other) => wrong(name, "a list of strings", other),
        }
    }

    /// Names of attributes that were there and never read.
    pub fn unread(&self) -> Vec<&'a str> {
        let read = self.read.borrow();
        if read.contains("*") {
            return Vec::new();
        }
        self.attrs.keys().map(String::as_str).filter(|n| !read.contains(n)).collect()
    }
}

fn wrong<T>(name: &str, want: &str, got: &Attr) -> Result<T> {
    crate::bail!("attribute `{name}` should be {want}, but is {got:?}")
}
