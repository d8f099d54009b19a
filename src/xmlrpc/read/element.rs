//! The elements of XML-RPC, and the value that each returns to the element around it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{ReadError, literal};
use crate::python;
use crate::xmlrpc::Value;

/// The known elements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    MethodName,
    Params,
    Fault,
    Param,
    Value,
    Int,
    Boolean,
    String,
    Double,
    DateTime,
    Base64,
    Array,
    Data,
    Struct,
    Other,
}

impl Tag {
    /// Returns the element with this name, or `None` if XML-RPC has no such element.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "methodName" => Self::MethodName,
            "params" => Self::Params,
            "fault" => Self::Fault,
            "param" => Self::Param,
            "value" => Self::Value,
            "int" | "i4" => Self::Int,
            "boolean" => Self::Boolean,
            "string" => Self::String,
            "double" => Self::Double,
            "dateTime.iso8601" => Self::DateTime,
            "base64" => Self::Base64,
            "array" => Self::Array,
            "data" => Self::Data,
            "struct" => Self::Struct,
            "member" | "name" | "methodCall" | "methodResponse" => Self::Other,
            _ => return None,
        })
    }

    /// Returns whether the element returns one value in place of its children.
    fn replaces_children(self) -> bool {
        !matches!(
            self,
            Self::MethodName | Self::Params | Self::Fault | Self::Other
        )
    }

    /// Returns how many values of children the element uses.
    fn max_children(self) -> usize {
        match self {
            Self::Params | Self::Data => usize::MAX,
            Self::Fault | Self::Param | Self::Value | Self::Array => 1,
            _ => 0,
        }
    }
}

/// An open element with its content so far.
pub(super) struct Element<'a> {
    pub(super) tag: Tag,
    /// The position of the element in the document.
    at: usize,
    /// The text before the first child. The daemon ignores all other text.
    pub(super) text: Cow<'a, str>,
    has_child: bool,
    /// The values of the children, up to `max_children`.
    pub(super) children: Vec<Value>,
    max_children: usize,
    /// The members of a struct. A member's name and value are the values of its two children.
    members: Vec<(String, Value)>,
}

impl<'a> Element<'a> {
    /// Opens an element inside `parent`.
    pub(super) fn new(at: usize, tag: Tag, parent: Option<&mut Self>) -> Self {
        let mut max_children = tag.max_children();
        if let Some(parent) = parent {
            parent.has_child = true;
            if parent.tag == Tag::Struct {
                max_children = max_children.max(3); // name, value, and a third child to refuse
            }
        }
        Self {
            tag,
            at,
            text: Cow::Borrowed(""),
            has_child: false,
            children: Vec::new(),
            max_children,
            members: Vec::new(),
        }
    }

    /// Appends text.
    pub(super) fn push(&mut self, text: Cow<'a, str>) {
        if self.has_child {
            return;
        }
        if self.text.is_empty() {
            self.text = text;
        } else {
            self.text.to_mut().push_str(&text);
        }
    }

    /// Adds the value of a child that has ended.
    pub(super) fn add_child(&mut self, child: Self) -> Result<(), ReadError> {
        if self.tag == Tag::Struct {
            self.members.push(child.into_member()?);
            return Ok(());
        }
        let value = child.into_value()?;
        if self.children.len() < self.max_children {
            self.children.push(value);
        }
        Ok(())
    }

    /// Returns the value of the element.
    pub(super) fn into_value(self) -> Result<Value, ReadError> {
        let Self { at, tag, text, .. } = self;
        let invalid = |element, what| ReadError::Content { at, element, what };
        match tag {
            Tag::Int => python::int(&text)
                .value()
                .map(Value::Int)
                .ok_or_else(|| invalid("int", "is not an integer of 64 bits")),
            Tag::Double => python::float(&text)
                .map(Value::Double)
                .ok_or_else(|| invalid("double", "is not a number")),
            Tag::DateTime if literal::is_date_time(&text) => Ok(Value::DateTime(text.into())),
            Tag::DateTime => Err(invalid(
                "dateTime.iso8601",
                "is not a time of the form 20240131T23:59:59",
            )),
            Tag::Base64 => literal::base64(&text)
                .map(Value::String)
                .ok_or_else(|| invalid("base64", "is not UTF-8 text in base64")),
            Tag::Boolean => Ok(Value::Bool(text == "1")),
            Tag::String => Ok(Value::String(text.into())),
            Tag::Struct => Ok(Value::Struct(merge_duplicates(self.members))),
            Tag::Data => Ok(Value::Array(self.children)),
            Tag::Value => Ok(first(self.children).unwrap_or(Value::String(text.into()))),
            Tag::Array => first(self.children).ok_or_else(|| invalid("array", "is empty")),
            Tag::Param => first(self.children).ok_or_else(|| invalid("param", "is empty")),
            _ if text.is_empty() => Ok(Value::Nil),
            _ => Ok(Value::String(text.into())),
        }
    }

    /// Returns the name and value of a child of a struct.
    fn into_member(self) -> Result<(String, Value), ReadError> {
        let invalid = |what| ReadError::Content {
            at: self.at,
            element: "member",
            what,
        };
        if self.tag.replaces_children() {
            return Err(invalid("is a value without a name"));
        }
        let [name, value] = <[Value; 2]>::try_from(self.children)
            .map_err(|_| invalid("is not one name and one value"))?;
        match name {
            Value::String(name) => Ok((name, value)),
            Value::Nil => Ok((String::new(), value)),
            _ => Err(invalid("has a name that is not text")),
        }
    }
}

fn first(values: Vec<Value>) -> Option<Value> {
    values.into_iter().next()
}

/// The largest number of members for which a linear search for duplicates is fast.
const FEW_MEMBERS: usize = 24;

/// Merges duplicate members as a Python dict does: at the place of the first, with the value of the last.
fn merge_duplicates(members: Vec<(String, Value)>) -> Vec<(String, Value)> {
    let are_few = members.len() <= FEW_MEMBERS;
    let mut names = members.iter().map(|(name, _)| name).enumerate();
    if are_few && names.all(|(at, name)| members[..at].iter().all(|(before, _)| before != name)) {
        return members;
    }
    let mut indexes: HashMap<String, usize> = HashMap::with_capacity(members.len());
    let mut merged: Vec<(String, Value)> = Vec::with_capacity(members.len());
    for (name, value) in members {
        match indexes.entry(name.clone()) {
            Entry::Occupied(index) => merged[*index.get()].1 = value,
            Entry::Vacant(index) => {
                index.insert(merged.len());
                merged.push((name, value));
            }
        }
    }
    merged
}
