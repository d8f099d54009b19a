//! `system.*` introspection: the daemon's own answers, with the `twiddler` namespace beside them.

use super::methods::{self, METHODS, Method};
use super::{Answer, Caller, Rpc};
use crate::xmlrpc::{MethodCall, Value};

/// Whether `system.<name>` with these parameters speaks of our methods.
pub(super) fn concerns(name: &str, params: &[Value]) -> bool {
    match name {
        "listMethods" => params.is_empty(),
        "methodHelp" | "methodSignature" => named(params).is_some(),
        _ => false,
    }
}

fn named(params: &[Value]) -> Option<&'static Method> {
    match params {
        [Value::String(name)] => methods::method(name.strip_prefix("twiddler.")?),
        _ => None,
    }
}

impl Rpc {
    /// Answers a call that [`concerns`] us.
    pub(super) async fn system_call(
        &self,
        caller: &Caller<'_>,
        name: &str,
        call: &MethodCall,
    ) -> Answer {
        if let Some(method) = named(&call.params) {
            self.gate(caller).await?;
            return Ok(if name == "methodHelp" {
                method.help.into()
            } else {
                Value::Array(method.signature.iter().map(|&kind| kind.into()).collect())
            });
        }
        let listed = self.ask(caller, &call.method, &call.params).await?;
        Ok(with_ours(listed))
    }
}

/// The daemon sorts its list (`supervisor/xmlrpc.py`, `listMethods`).
fn with_ours(listed: Value) -> Value {
    let mut names: Vec<String> = listed
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
