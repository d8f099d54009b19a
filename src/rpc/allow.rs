//! What is left out by `allow`: calls, entries of multicalls, and pages of the web interface.
//!
//! A caller whom the daemon refuses learns nothing of it: the daemon is asked first.

use http::StatusCode;

use super::web::asking_head;
use super::{Caller, Rpc, read_entry, refused_call, turned_down};
use crate::access::method_policy::{self, Allow};
use crate::failure::Failure;
use crate::fault::{INCORRECT_PARAMETERS, NOT_IN_WHITELIST, fault};
use crate::xmlrpc::{Fault, MethodCall, Value};

/// What the refusal of a page says whose needs cannot be told.
const UNCLEAR: &str = "NOT_IN_WHITELIST: only plain requests pass where methods are limited";

impl Rpc {
    /// Whether only some methods may be called.
    pub(super) fn is_restricted(&self) -> bool {
        self.policy.get().allow.is_some()
    }

    /// Refuses a call that may not be made; `body` are its original bytes. What could be understood
    /// in another way than it was understood here may not be made either.
    pub(super) async fn ensure_allowed(
        &self,
        caller: &Caller<'_>,
        call: &MethodCall,
        body: &[u8],
    ) -> Result<(), Failure> {
        let policy = self.policy.get();
        let denied = policy.allow.as_ref();
        let Some(fault) = denied.and_then(|allow| judge(allow, call, body)) else {
            return Ok(());
        };
        self.gate(caller).await?;
        Err(turned_down(caller, &refused_call(&call.method), fault))
    }

    /// The result of an entry of a multicall that may not be carried out.
    pub(super) fn entry_denied(&self, entry: &Value) -> Option<Fault> {
        let policy = self.policy.get();
        let allow = policy.allow.as_ref()?;
        match read_entry(entry) {
            Some(call) => method_denied(allow, &call.method),
            None => Some(fault(INCORRECT_PARAMETERS, "No methodName")),
        }
    }

    /// Refuses a page that may not be seen, or that does what may not be done.
    ///
    /// # Errors
    /// That it may not, or what the daemon says to a caller whom it does not let in.
    pub async fn ensure_page_allowed(
        &self,
        caller: &Caller<'_>,
        body: &[u8],
    ) -> Result<(), Failure> {
        let policy = self.policy.get();
        let Some(allow) = &policy.allow else {
            return Ok(());
        };
        let uri = &caller.head.uri;
        let reason =
            match method_policy::page_needs(&caller.head.method, uri.path(), uri.query(), body) {
                Some(needs) => match allow.missing(&needs) {
                    Some(method) => denied_text(method),
                    None => return Ok(()),
                },
                None => UNCLEAR.to_owned(),
            };
        // The question is a call, whatever was asked for: the page itself must not be asked for.
        let head = asking_head(caller.head);
        let asking = Caller {
            head: &head,
            update: caller.update,
        };
        match self.gate(&asking).await {
            Ok(()) | Err(Failure::Fault(_)) => Err(Failure::Refused(StatusCode::FORBIDDEN, reason)),
            failure => failure,
        }
    }
}

fn judge(allow: &Allow, call: &MethodCall, body: &[u8]) -> Option<Fault> {
    if let Some(fault) = method_denied(allow, &call.method) {
        return Some(fault);
    }
    if !method_policy::is_plain(body, &call.method) {
        return Some(fault(
            INCORRECT_PARAMETERS,
            "only plain calls pass where methods are limited",
        ));
    }
    let is_list = matches!(call.params.as_slice(), [Value::Array(_)]);
    (call.method == "system.multicall" && !is_list).then(|| fault(INCORRECT_PARAMETERS, ""))
}

fn denied_text(method: &str) -> String {
    format!("NOT_IN_WHITELIST: {method}")
}

fn method_denied(allow: &Allow, method: &str) -> Option<Fault> {
    (!allow.allows(method)).then(|| Fault::received(NOT_IN_WHITELIST, denied_text(method)))
}
