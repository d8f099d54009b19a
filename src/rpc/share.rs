//! Which calls and pages wait for processes. They use a share of the connections of their own, so that quick
//! calls do not queue behind them.
//!
//! A quick call that is mistaken for a waiting one is only slower while many calls wait.

use http::Uri;
use percent_encoding::percent_decode_str;

use super::bulk::is_true;
use super::{namespace, read_entry};
use crate::daemon::Share;
use crate::forward;
use crate::namespec::split_namespec;
use crate::translate::{BulkAction, MethodKind, method_kind};
use crate::xmlrpc::Value;

/// The share of a call. In `supervisor/rpcinterface.py`, a method that returns a callback is answered in a
/// later turn of the daemon's loop.
pub(super) fn of_call(method: &str, params: &[Value]) -> Share {
    match namespace(method) {
        ("supervisor", name) => of_supervisor(name, params),
        ("system", "multicall") => of_multicall(params),
        ("system" | "twiddler", _) => Share::Quick,
        // The methods of other interfaces are unknown.
        _ => Share::Waiting,
    }
}

fn of_supervisor(name: &str, params: &[Value]) -> Share {
    let waits = match method_kind(name) {
        MethodKind::ProcessOrGroup(action) => {
            let is_group = params
                .first()
                .and_then(Value::as_str)
                .is_none_or(|name| split_namespec(name).1.is_none());
            is_group || action != BulkAction::Signal && params.get(1).is_none_or(is_true)
        }
        // The daemon acts on one process in each turn of its loop.
        MethodKind::Group(_) | MethodKind::All(_) => true,
        _ => false,
    };
    if waits { Share::Waiting } else { Share::Quick }
}

/// The share of a multicall. Its calls run one after another, so it waits if one of them does.
fn of_multicall(params: &[Value]) -> Share {
    let entries = params.first().and_then(Value::as_array).unwrap_or_default();
    let waits = entries.iter().filter_map(read_entry).any(|call| {
        let is_nested = call.method == "system.multicall"; // The daemon refuses it.
        !is_nested && of_call(&call.method, &call.params) == Share::Waiting
    });
    if waits { Share::Waiting } else { Share::Quick }
}

/// The share of a request for a page; `form` is its body. Actions wait for the process (`supervisor/web.py`,
/// `make_callback`). The target is also searched twice decoded, because the daemon can decode it twice.
pub(super) fn of_page(uri: &Uri, form: &[u8]) -> Share {
    if forward::is_followed(uri) {
        return Share::Tail;
    }
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    let once = percent_decode_str(target).decode_utf8_lossy();
    let twice = percent_decode_str(&once).decode_utf8_lossy();
    let form = percent_encoding::percent_decode(form).decode_utf8_lossy();
    let acts = [&once, &twice, &form]
        .iter()
        .any(|text| text.contains("action"));
    if acts { Share::Waiting } else { Share::Quick }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(method: &str, params: Vec<Value>) -> Value {
        Value::Struct(vec![
            ("methodName".to_owned(), method.into()),
            ("params".to_owned(), Value::Array(params)),
        ])
    }

    #[test]
    fn calls_that_wait_for_processes_have_their_own_share() {
        let text = |text: &str| vec![Value::from(text)];
        let two = |text: &str, wait: Value| vec![text.into(), wait];
        let calls: &[(&str, Vec<Value>, Share)] = &[
            ("supervisor.getState", vec![], Share::Quick),
            ("supervisor.getAllProcessInfo", vec![], Share::Quick),
            ("supervisor.reloadConfig", vec![], Share::Quick),
            ("supervisor.clearProcessLogs", text("a"), Share::Quick),
            ("supervisor.startProcess", text("a"), Share::Waiting),
            ("supervisor.startProcess", vec![], Share::Waiting),
            (
                "supervisor.startProcess",
                two("a", false.into()),
                Share::Quick,
            ),
            ("supervisor.stopProcess", two("a", 0.into()), Share::Quick),
            ("supervisor.stopProcess", two("a", 1.into()), Share::Waiting),
            (
                "supervisor.stopProcess",
                two("a:*", false.into()),
                Share::Waiting,
            ),
            (
                "supervisor.signalProcess",
                two("a", "HUP".into()),
                Share::Quick,
            ),
            (
                "supervisor.signalProcess",
                two("a:*", "HUP".into()),
                Share::Waiting,
            ),
            ("supervisor.stopProcessGroup", text("a"), Share::Waiting),
            ("supervisor.startAllProcesses", vec![], Share::Waiting),
            ("supervisor.clearAllProcessLogs", vec![], Share::Waiting),
            ("system.listMethods", vec![], Share::Quick),
            ("other.method", vec![], Share::Waiting),
            ("supervisor.a.b", vec![], Share::Waiting),
            ("system.multicall", vec![], Share::Quick),
            (
                "system.multicall",
                vec![Value::Array(vec![
                    entry("supervisor.getState", vec![]),
                    entry("system.multicall", vec![]),
                    Value::Nil,
                ])],
                Share::Quick,
            ),
            (
                "system.multicall",
                vec![Value::Array(vec![
                    entry("supervisor.getState", vec![]),
                    entry("supervisor.startProcess", text("a")),
                ])],
                Share::Waiting,
            ),
        ];
        for (method, params, expected) in calls {
            assert_eq!(of_call(method, params), *expected, "{method}{params:?}");
        }
    }

    #[test]
    fn pages_with_actions_have_the_share_of_waiting_calls() {
        for (target, form, expected) in [
            ("/", "", Share::Quick),
            ("/index.html?message=done", "", Share::Quick),
            ("/tail.html?processname=a", "", Share::Quick),
            ("/stylesheets/supervisor.css", "", Share::Quick),
            ("/index.html?processname=a&action=stop", "", Share::Waiting),
            ("/?%61ction=stopall", "", Share::Waiting),
            ("/%3F%2561ction=stopall", "", Share::Waiting),
            ("/", "action=stopall", Share::Waiting),
            ("/", "%61ction=stopall", Share::Waiting),
            ("/logtail/a", "", Share::Tail),
            ("/%6Cogtail/a/stderr", "", Share::Tail),
            ("/mainlogtail", "", Share::Tail),
        ] {
            let share = of_page(&target.parse().unwrap(), form.as_bytes());
            assert_eq!(share, expected, "{target} {form}");
        }
    }
}
