//! XML-RPC on the wire: values, calls and faults, how they are read and how they are written.
//!
//! Both directions follow the daemon. [`read`] takes a document to mean what the daemon takes it
//! to mean (`supervisor/xmlrpc.py`, `loads`), and [`mod@write`] produces the bytes that the
//! daemon's Python produces (`xmlrpc.client.dumps`), so that a client cannot tell who answered.
//! Knows nothing of HTTP, of methods or of fault numbers.

pub mod read;
pub mod write;

/// One XML-RPC value.
///
/// Comparison is structural: two structs with the same members in another order differ, and a
/// double that is not a number differs from itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value at all; what the daemon makes of an empty element it does not know.
    Nil,
    /// `<boolean>`.
    Bool(bool),
    /// `<int>` or `<i4>`, with room for more than XML-RPC's 32 bits because the daemon reads more.
    Int(i64),
    /// `<double>`.
    Double(f64),
    /// `<string>`, bare text, or the decoded text of `<base64>`.
    String(String),
    /// `<dateTime.iso8601>`, as it was written.
    DateTime(String),
    /// `<array>`.
    Array(Vec<Value>),
    /// `<struct>`, in the order of its members; no name occurs twice in one that was read.
    Struct(Vec<(String, Value)>),
}

impl Value {
    /// The text of a string; nothing for any other kind.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The items of an array; nothing for any other kind.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The number of an integer; nothing for any other kind, doubles and booleans included.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The truth of a boolean; nothing for any other kind.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// The named member of a struct; nothing if it lacks one or the value is of another kind.
    pub fn get(&self, member: &str) -> Option<&Value> {
        match self {
            Self::Struct(members) => members
                .iter()
                .find_map(|(name, value)| (name == member).then_some(value)),
            _ => None,
        }
    }

    /// As [`Value::get`], to change the member in place.
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

/// A call: which method, with what.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodCall {
    /// The name as it was sent, never empty; it need not be the name of any method.
    pub method: String,
    /// The parameters in order; none if the call had no `<params>`.
    pub params: Vec<Value>,
}

/// The answer of a method that failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    /// The number clients branch on.
    pub code: i32,
    /// The text people read.
    pub text: String,
    /// The same without values, where the proxy itself has made the fault. It is not sent.
    pub without_values: Option<String>,
}

impl Fault {
    /// One that came as an answer: nobody knows what in its text is a value.
    pub fn received(code: i32, text: String) -> Self {
        Fault {
            code,
            text,
            without_values: None,
        }
    }
}

/// How much a document may ask of its reader.
///
/// Size is not among them: whoever holds the bytes has already decided to accept that many, and
/// reading takes memory in proportion to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many elements may be open at once.
    pub depth: usize,
    /// How many elements and attributes there may be in all.
    pub elements: usize,
}

impl Limits {
    /// What [`read`] applies.
    ///
    /// An array or struct inside another costs three elements. The deepest calls in use, with
    /// options in a struct in an array among the parameters of one call of a `system.multicall`,
    /// open fewer than 25. Sixty-four is ample, and little enough that code which walks a value
    /// by recursion cannot run out of stack.
    ///
    /// A thousand programs with twenty options each, added by one `system.multicall`, take some
    /// 130,000 elements. The daemon, which serves nobody meanwhile, needs up to nine microseconds
    /// and a kilobyte for each.
    pub const DEFAULT: Self = Self {
        depth: 64,
        elements: 500_000,
    };

    /// The same for what the daemon says, which is as long as it is.
    pub const OF_REPLIES: Self = Self {
        elements: usize::MAX,
        ..Self::DEFAULT
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accessors_answer_only_for_their_kind() {
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
    fn a_fault_reads_as_its_text() {
        let fault = Fault::received(10, "BAD_NAME: x".to_owned());
        assert_eq!(fault.to_string(), "BAD_NAME: x");
    }
}
