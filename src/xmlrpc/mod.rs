//! The wire format: XML-RPC values, calls and faults, and their parser and writer.
//!
//! Both follow the daemon. [`read`] gives a document the meaning that the daemon gives it
//! (`supervisor/xmlrpc.py`, `loads`). [`mod@write`] produces the bytes that the daemon's Python produces
//! (`xmlrpc.client.dumps`), so that a client gets the same reply from the proxy as from the daemon. This
//! module knows neither HTTP nor methods nor fault numbers.

pub mod read;
pub mod write;

/// One XML-RPC value.
///
/// Comparison is structural: two structs with the same members in another order differ, and a
/// double that is not a number differs from itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value. The daemon reads an empty unknown element as `None`.
    Nil,
    /// `<boolean>`.
    Bool(bool),
    /// `<int>` or `<i4>`. XML-RPC integers have 32 bits, but the daemon reads larger ones.
    Int(i64),
    /// `<double>`.
    Double(f64),
    /// `<string>`, text without a type element, or the decoded text of `<base64>`.
    String(String),
    /// The text of `<dateTime.iso8601>`.
    DateTime(String),
    /// `<array>`.
    Array(Vec<Value>),
    /// `<struct>`, in the order of its members. The parser returns no struct with duplicate names.
    Struct(Vec<(String, Value)>),
}

impl Value {
    /// Returns the text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the items of an array.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// Returns the number of an integer. Doubles and booleans are not integers.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// Returns the value of a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// Returns a member of a struct by its name.
    pub fn get(&self, member: &str) -> Option<&Value> {
        match self {
            Self::Struct(members) => members
                .iter()
                .find_map(|(name, value)| (name == member).then_some(value)),
            _ => None,
        }
    }

    /// Returns a mutable reference to a member of a struct.
    pub fn get_mut(&mut self, member: &str) -> Option<&mut Value> {
        match self {
            Self::Struct(members) => members
                .iter_mut()
                .find_map(|(name, value)| (name == member).then_some(value)),
            _ => None,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Int(number.into())
    }
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Self {
        Self::Array(items)
    }
}

/// A method call.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodCall {
    /// The name of the method, which is not empty. The daemon may have no such method.
    pub method: String,
    /// The parameters. They are empty if the call has no `<params>`.
    pub params: Vec<Value>,
}

/// The result of a failed call.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    /// The number, by which clients distinguish faults.
    pub code: i32,
    /// The text for users.
    pub text: String,
    /// The text without option values for the log, if the proxy has made the fault. It is not sent.
    pub without_values: Option<String>,
}

impl Fault {
    /// Returns a fault from a reply, in whose text the values are not marked.
    pub fn from_reply(code: i32, text: String) -> Self {
        Fault {
            code,
            text,
            without_values: None,
        }
    }
}

/// Limits on a document.
///
/// There is no limit on its size: the caller of the parser has limited that already, and parsing takes
/// memory in proportion to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest depth of nested elements.
    pub depth: usize,
    /// The largest number of elements and attributes.
    pub elements: usize,
}

impl Limits {
    /// The limits for calls.
    ///
    /// Each array or struct inside another adds three elements to the depth. The deepest usual call is a
    /// `system.multicall` with a struct of options, which has a depth below 25. With 64, recursion over a
    /// value cannot overflow the stack.
    ///
    /// A `system.multicall` that adds a thousand programs with twenty options each has about 130,000
    /// elements. The daemon needs up to nine microseconds and a kilobyte for each, and answers no other
    /// call meanwhile.
    pub const DEFAULT: Self = Self {
        depth: 64,
        elements: 500_000,
    };

    /// The limits for replies of the daemon, which may have any number of elements.
    pub const REPLIES: Self = Self {
        elements: usize::MAX,
        ..Self::DEFAULT
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accessors_return_none_for_other_kinds() {
        let number = Value::from(7);
        assert_eq!(number.as_int(), Some(7));
        assert_eq!(number.as_str(), None);
        assert_eq!(number.as_bool(), None);
        assert_eq!(number.as_array(), None);
        assert_eq!(number.get("x"), None);

        assert_eq!(Value::from("x").as_str(), Some("x"));
        assert_eq!(Value::from(true).as_bool(), Some(true));
        assert_eq!(Value::from(true).as_int(), None);
        let items = vec![Value::Nil, Value::from("x".to_owned())];
        assert_eq!(Value::from(items.clone()).as_array(), Some(&items[..]));
    }

    #[test]
    fn members_are_found_and_changed_by_name() {
        let mut value = Value::Struct(vec![
            ("a".to_owned(), Value::from(1)),
            ("b".to_owned(), Value::from(2_i64)),
        ]);
        *value.get_mut("b").unwrap() = Value::from("new");

        assert_eq!(value.get("a"), Some(&Value::Int(1)));
        assert_eq!(value.get("b").and_then(Value::as_str), Some("new"));
        assert_eq!(value.get("c"), None);
        assert_eq!(value.get_mut("c"), None);
    }

    #[test]
    fn a_fault_displays_as_its_text() {
        let fault = Fault::from_reply(10, "BAD_NAME: x".to_owned());
        assert_eq!(fault.to_string(), "BAD_NAME: x");
    }
}
