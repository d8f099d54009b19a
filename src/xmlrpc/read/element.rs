//! The elements of XML-RPC, and what each leaves for the one around it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{ReadError, literal};
use crate::python;
use crate::xmlrpc::Value;

/// The elements that mean something.
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
    /// What the name means; nothing for one that XML-RPC does not have.
    pub(super) fn named(name: &str) -> Option<Self> {
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

    /// Whether the element leaves a value in place of its children.
    fn replaces_children(self) -> bool {
        !matches!(
            self,
            Self::MethodName | Self::Params | Self::Fault | Self::Other
        )
    }

    /// How many children's values matter.
    fn max_children(self) -> usize {
        match self {
            Self::Params | Self::Data => usize::MAX,
            Self::Fault | Self::Param | Self::Value | Self::Array => 1,
            _ => 0,
        }
    }
}

/// An element that has begun, and what is in it so far.
pub(super) struct Element<'a> {
    pub(super) tag: Tag,
    /// Where it begins.
    at: usize,
    /// The text before the first child; the daemon never looks at the rest.
    pub(super) text: Cow<'a, str>,
    has_child: bool,
    /// What the children left, as many of them as matter.
    pub(super) children: Vec<Value>,
    max_children: usize,
    /// The children of a struct, each by what its own two children left.
    members: Vec<(String, Value)>,
}

impl<'a> Element<'a> {
    /// Begins an element inside `parent`.
    pub(super) fn new(at: usize, tag: Tag, parent: Option<&mut Self>) -> Self {
        let mut max_children = tag.max_children();
        if let Some(parent) = parent {
            parent.has_child = true;
            if parent.tag == Tag::Struct {
                max_children = max_children.max(3); // a name, a value and whether there is more
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

    /// Adds text.
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

    /// Adds what an element inside leaves.
    pub(super) fn take(&mut self, child: Self) -> Result<(), ReadError> {
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

    /// What the element leaves for the one around it.
    pub(super) fn into_value(self) -> Result<Value, ReadError> {
        let Self { at, tag, text, .. } = self;
        let refused = |element, what| ReadError::Content { at, element, what };
        match tag {
            Tag::Int => python::int(&text)
                .value()
                .map(Value::Int)
                .ok_or_else(|| refused("int", "is not an integer of 64 bits")),
            Tag::Double => python::float(&text)
                .map(Value::Double)
                .ok_or_else(|| refused("double", "is not a number")),
            Tag::DateTime if literal::is_date_time(&text) => Ok(Value::DateTime(text.into())),
            Tag::DateTime => Err(refused(
                "dateTime.iso8601",
                "is not a time of the form 20240131T23:59:59",
            )),
            Tag::Base64 => literal::base64(&text)
                .map(Value::String)
                .ok_or_else(|| refused("base64", "is not UTF-8 text in base64")),
            Tag::Boolean => Ok(Value::Bool(text == "1")),
            Tag::String => Ok(Value::String(text.into())),
            Tag::Struct => Ok(Value::Struct(last_of_each_name(self.members))),
            Tag::Data => Ok(Value::Array(self.children)),
            Tag::Value => Ok(first(self.children).unwrap_or(Value::String(text.into()))),
            Tag::Array => first(self.children).ok_or_else(|| refused("array", "is empty")),
            Tag::Param => first(self.children).ok_or_else(|| refused("param", "is empty")),
            _ if text.is_empty() => Ok(Value::Nil),
            _ => Ok(Value::String(text.into())),
        }
    }

    /// What the element leaves for a struct around it: a name and a value.
    fn into_member(self) -> Result<(String, Value), ReadError> {
        let refused = |what| ReadError::Content {
            at: self.at,
            element: "member",
            what,
        };
        if self.tag.replaces_children() {
            return Err(refused("is a value without a name"));
        }
        let [name, value] = <[Value; 2]>::try_from(self.children)
            .map_err(|_| refused("is not one name and one value"))?;
        match name {
            Value::String(name) => Ok((name, value)),
            Value::Nil => Ok((String::new(), value)),
            _ => Err(refused("has a name that is not text")),
        }
    }
}

fn first(values: Vec<Value>) -> Option<Value> {
    values.into_iter().next()
}

/// Structs of no more members than this are searched from the front.
const FEW_MEMBERS: usize = 24;

/// Python's idea of duplicate members: the first one's place, the last one's value.
fn last_of_each_name(members: Vec<(String, Value)>) -> Vec<(String, Value)> {
    let few = members.len() <= FEW_MEMBERS;
    let mut names = members.iter().map(|(name, _)| name).enumerate();
    if few && names.all(|(at, name)| members[..at].iter().all(|(before, _)| before != name)) {
        return members;
    }
    let mut places: HashMap<String, usize> = HashMap::with_capacity(members.len());
    let mut kept: Vec<(String, Value)> = Vec::with_capacity(members.len());
    for (name, value) in members {
        match places.entry(name.clone()) {
            Entry::Occupied(place) => kept[*place.get()].1 = value,
            Entry::Vacant(place) => {
                place.insert(kept.len());
                kept.push((name, value));
            }
        }
    }
    kept
}
