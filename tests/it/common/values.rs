//! XML-RPC values: short ways to write them, and to read them with a clear failure.

use anyhow::{Context, Result, bail};
use supervisor_twiddler::xmlrpc::Value;

/// The parameters of a call: `params!["dynamic_procs", 999, true]`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        ::std::vec![$($crate::common::IntoValue::into_value($value)),*]
    };
}

/// Types that convert to an XML-RPC value.
pub trait IntoValue {
    /// The value.
    fn into_value(self) -> Value;
}

impl IntoValue for Value {
    fn into_value(self) -> Value {
        self
    }
}

impl IntoValue for &Value {
    fn into_value(self) -> Value {
        self.clone()
    }
}

impl IntoValue for &str {
    fn into_value(self) -> Value {
        Value::String(self.to_owned())
    }
}

impl IntoValue for String {
    fn into_value(self) -> Value {
        Value::String(self)
    }
}

impl IntoValue for &String {
    fn into_value(self) -> Value {
        Value::String(self.clone())
    }
}

impl IntoValue for bool {
    fn into_value(self) -> Value {
        Value::Bool(self)
    }
}

impl IntoValue for i32 {
    fn into_value(self) -> Value {
        Value::Int(self.into())
    }
}

impl IntoValue for i64 {
    fn into_value(self) -> Value {
        Value::Int(self)
    }
}

impl IntoValue for f64 {
    fn into_value(self) -> Value {
        Value::Double(self)
    }
}

impl IntoValue for () {
    fn into_value(self) -> Value {
        Value::Nil
    }
}

impl<V: IntoValue> IntoValue for Vec<V> {
    fn into_value(self) -> Value {
        Value::Array(self.into_iter().map(V::into_value).collect())
    }
}

/// Converts to a value, for structs and arrays of mixed types.
pub fn value(value: impl IntoValue) -> Value {
    value.into_value()
}

/// A struct: `options(&[("command", "/bin/cat")])`, or with [`value`] if the types differ:
/// `options(&[("command", value("/bin/cat")), ("numprocs", value(2))])`.
pub fn options<V: IntoValue + Clone>(members: &[(&str, V)]) -> Value {
    let member = |(name, value): &(&str, V)| ((*name).to_owned(), value.clone().into_value());
    Value::Struct(members.iter().map(member).collect())
}

/// Types that convert to the parameters of a call: `()`, a tuple, an array of values, [`params!`].
pub trait IntoParams {
    /// The parameters.
    fn into_params(self) -> Vec<Value>;
}

impl IntoParams for () {
    fn into_params(self) -> Vec<Value> {
        Vec::new()
    }
}

impl IntoParams for Vec<Value> {
    fn into_params(self) -> Vec<Value> {
        self
    }
}

impl IntoParams for &[Value] {
    fn into_params(self) -> Vec<Value> {
        self.to_vec()
    }
}

impl IntoParams for &Vec<Value> {
    fn into_params(self) -> Vec<Value> {
        self.clone()
    }
}

impl<const N: usize> IntoParams for [Value; N] {
    fn into_params(self) -> Vec<Value> {
        self.to_vec()
    }
}

impl<A: IntoValue> IntoParams for (A,) {
    fn into_params(self) -> Vec<Value> {
        vec![self.0.into_value()]
    }
}

impl<A: IntoValue, B: IntoValue> IntoParams for (A, B) {
    fn into_params(self) -> Vec<Value> {
        vec![self.0.into_value(), self.1.into_value()]
    }
}

impl<A: IntoValue, B: IntoValue, C: IntoValue> IntoParams for (A, B, C) {
    fn into_params(self) -> Vec<Value> {
        vec![
            self.0.into_value(),
            self.1.into_value(),
            self.2.into_value(),
        ]
    }
}

/// The string in a value.
pub fn text(value: &Value) -> Result<&str> {
    match value {
        Value::String(text) => Ok(text),
        other => bail!("not a string: {other:?}"),
    }
}

/// The integer in a value.
pub fn number(value: &Value) -> Result<i64> {
    match value {
        Value::Int(number) => Ok(*number),
        other => bail!("not an integer: {other:?}"),
    }
}

/// The items of an array.
pub fn items(value: &Value) -> Result<&[Value]> {
    match value {
        Value::Array(items) => Ok(items),
        other => bail!("not an array: {other:?}"),
    }
}

/// The member of a struct.
pub fn member<'a>(value: &'a Value, name: &str) -> Result<&'a Value> {
    let Value::Struct(members) = value else {
        bail!("not a struct: {value:?}")
    };
    let entry = members.iter().find(|(key, _)| key == name);
    Ok(&entry
        .with_context(|| format!("no member {name}: {value:?}"))?
        .1)
}

/// The items of an array of strings.
pub fn texts(value: &Value) -> Result<Vec<&str>> {
    items(value)?.iter().map(text).collect()
}

/// The string `member` of each struct in an array.
pub fn column<'a>(value: &'a Value, name: &str) -> Result<Vec<&'a str>> {
    items(value)?
        .iter()
        .map(|item| text(member(item, name)?))
        .collect()
}

/// The fault in an item of a multicall reply; `None` for a result.
pub fn fault_in(value: &Value) -> Option<(i64, &str)> {
    let code = number(member(value, "faultCode").ok()?).ok()?;
    Some((code, text(member(value, "faultString").ok()?).ok()?))
}

/// The methods of the `twiddler` namespace, in the order of their names.
pub const TWIDDLER_METHODS: [&str; 14] = [
    "addGroup",
    "addProcessToGroup",
    "addProgramToGroup",
    "diffConfig",
    "getAPIVersion",
    "getAllProgramInfo",
    "getGroupNames",
    "getProgramOptions",
    "log",
    "removeGroup",
    "removeProcessFromGroup",
    "scaleProgram",
    "updateConfig",
    "updateProgram",
];

/// The options of a program that sleeps for this long.
pub fn sleeping(seconds: &str) -> Value {
    let command = format!("/bin/sleep {seconds}");
    options(&[
        ("command", value(command.as_str())),
        ("startsecs", value("0")),
    ])
}
