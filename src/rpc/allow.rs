//! The refusal of calls, entries of multicalls and web pages that the option `allow` denies.
//!
//! The daemon authorizes the caller first, so that an unauthorized caller does not learn what is denied.

use http::StatusCode;

use super::web::call_head;
use super::{Caller, Rpc, log_refusal, read_entry, refused_call};
use crate::access::method_policy::{self, Allow};
use crate::failure::Failure;
use crate::fault::{INCORRECT_PARAMETERS, NOT_IN_WHITELIST, fault};
use crate::xmlrpc::{Fault, MethodCall, Value};

/// The text of a refusal if the proxy cannot tell which methods a page request needs.
const UNCLEAR: &str = "NOT_IN_WHITELIST: only plain requests pass where methods are limited";

impl Rpc {
    /// Whether `allow` denies some methods.
    pub(super) fn is_restricted(&self) -> bool {
        self.policy.get().allow.is_some()
    }

    /// Refuses a call that `allow` denies. `body` are its original bytes: a call that the daemon could read
    /// differently than the proxy is denied too.
    ///
    /// # Errors
    /// The fault for a denied call, or the daemon's refusal of the caller.
    pub(super) async fn ensure_allowed(
        &self,
        caller: &Caller<'_>,
        call: &MethodCall,
        body: &[u8],
    ) -> Result<(), Failure> {
        let policy = self.policy.get();
        let allow = policy.allow.as_ref();
        let Some(fault) = allow.and_then(|allow| denial(allow, call, body)) else {
            return Ok(());
        };
        self.authorize(caller).await?;
        Err(log_refusal(caller, &refused_call(&call.method), fault))
    }

    /// The fault for an entry of a multicall that `allow` denies; none for an allowed entry.
    pub(super) fn entry_denied(&self, entry: &Value) -> Option<Fault> {
        let policy = self.policy.get();
        let allow = policy.allow.as_ref()?;
        match read_entry(entry) {
            Some(call) => method_denied(allow, &call.method),
            None => Some(fault(INCORRECT_PARAMETERS, "No methodName")),
        }
    }

    /// Refuses a page that `allow` denies. `body` is the form of the request.
    ///
    /// # Errors
    /// HTTP 403 for a denied page, or the daemon's refusal of the caller.
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
        // The caller is authorized by a call, because the request for the page itself may have effects.
        let head = call_head(caller.head);
        let caller = Caller {
            head: &head,
            update: caller.update,
        };
        match self.authorize(&caller).await {
            Ok(()) | Err(Failure::Fault(_)) => Err(Failure::Refused(StatusCode::FORBIDDEN, reason)),
            failure => failure,
        }
    }
}

fn denial(allow: &Allow, call: &MethodCall, body: &[u8]) -> Option<Fault> {
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
    (!allow.allows(method)).then(|| Fault::from_reply(NOT_IN_WHITELIST, denied_text(method)))
}
