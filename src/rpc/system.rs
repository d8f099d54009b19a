//! `system.*` introspection: the daemon's answers, completed by the `twiddler` namespace.

use super::methods::{self, METHODS, Method};
use super::{Answer, Caller, Rpc};
use crate::xmlrpc::{MethodCall, Value};

/// Whether the answer to `system.<name>` with these parameters includes `twiddler.*` methods.
pub(super) fn concerns(name: &str, params: &[Value]) -> bool {
    match name {
        "listMethods" => params.is_empty(),
        "methodHelp" | "methodSignature" => twiddler_method(params).is_some(),
        _ => false,
    }
}

fn twiddler_method(params: &[Value]) -> Option<&'static Method> {
    match params {
        [Value::String(name)] => methods::method(name.strip_prefix("twiddler.")?),
        _ => None,
    }
}

impl Rpc {
    /// Answers a call for which [`concerns`] is true.
    pub(super) async fn system_call(
        &self,
        caller: &Caller<'_>,
        name: &str,
        call: &MethodCall,
    ) -> Answer {
        if let Some(method) = twiddler_method(&call.params) {
            self.authorize(caller).await?;
            return Ok(if name == "methodHelp" {
                method.help.into()
            } else {
                Value::Array(method.signature.iter().map(|&kind| kind.into()).collect())
            });
        }
        let methods = self.query(caller, &call.method, &call.params).await?;
        Ok(with_twiddler_methods(methods))
    }
}

/// Adds the `twiddler.*` methods to a list of methods. The daemon sorts its list (`supervisor/xmlrpc.py`,
/// `listMethods`).
fn with_twiddler_methods(methods: Value) -> Value {
    let mut names: Vec<String> = methods
        .as_array()
        .unwrap_or_default()
        .iter()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .chain(
            METHODS
                .iter()
                .map(|method| format!("twiddler.{}", method.name)),
        )
        .collect();
    names.sort();
    names.dedup();
    Value::Array(names.into_iter().map(Value::from).collect())
}
