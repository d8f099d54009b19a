//! Reads the reply of `reloadConfig` as soon as the lists that the proxy needs are complete.
//!
//! The reply lists the added groups, which only the files have, the changed groups, and the removed
//! groups, which only the daemon has. Among the removed groups is every group that was added at run
//! time. The daemon sends 4 KiB per iteration of its main loop (`supervisor/http.py`,
//! `deferring_http_channel`), so with many such groups that list takes much longer than the others.

use std::collections::HashSet;

use quick_xml::Reader;
use quick_xml::events::Event;

use crate::xmlrpc::Value;

/// The result of `reloadConfig`, without the removed groups.
#[derive(Clone, Debug, Default)]
pub struct ReloadResult {
    /// Groups that the files have and the daemon does not.
    pub added: HashSet<String>,
    /// Groups whose definition in the files differs from that in the daemon.
    pub changed: HashSet<String>,
}

impl ReloadResult {
    /// Reads `[[added, changed, removed]]`. Missing lists are empty.
    pub fn read(value: &Value) -> Self {
        let lists = value
            .as_array()
            .and_then(|outer| outer.first())
            .and_then(Value::as_array);
        let names = |at: usize| {
            lists
                .and_then(|lists| lists.get(at))
                .and_then(Value::as_array)
                .unwrap_or_default()
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect()
        };
        ReloadResult {
            added: names(0),
            changed: names(1),
        }
    }

    /// Returns the groups that the daemon has and the files do not, from a complete reply.
    pub fn removed_groups(value: &Value) -> impl Iterator<Item = &str> {
        let lists = value
            .as_array()
            .and_then(|outer| outer.first())
            .and_then(Value::as_array);
        let removed = lists
            .and_then(|lists| lists.get(2))
            .and_then(Value::as_array);
        removed.unwrap_or_default().iter().filter_map(Value::as_str)
    }
}

/// The depth of the results in the reply of a multicall: each is a `value` below `methodResponse`,
/// `params`, `param`, `value`, `array` and `data`.
const DEPTH_OF_RESULTS: usize = 7;
/// The depth of the three lists: `array`, `data` and `value` of the result and of its outer list.
const DEPTH_OF_LISTS: usize = DEPTH_OF_RESULTS + 6;
/// Closes the reply after the second list.
const REST: &[u8] = b"</data></array></value></data></array></value></data></array></value>\
                      </param></params></methodResponse>";

/// Finds the position in a reply after which only the list of removed groups follows.
pub(super) struct Head {
    /// The index of the result of `reloadConfig` in the multicall.
    index: usize,
    depth: usize,
    results: usize,
    lists: usize,
    /// The number of bytes that are already parsed.
    at: usize,
}

impl Head {
    /// Returns the parser for a multicall with `calls` calls before `reloadConfig`.
    pub(super) fn after(calls: usize) -> Self {
        Head {
            index: calls,
            depth: 0,
            results: 0,
            lists: 0,
            at: 0,
        }
    }

    /// Returns the reply without its last list if the two others are complete. `received` is the reply
    /// so far, which grows with each call.
    pub(super) fn complete(&mut self, received: &[u8]) -> Option<Vec<u8>> {
        let start = self.at;
        let mut reader = Reader::from_reader(&received[start..]);
        // This part begins in the middle of the document.
        reader.config_mut().check_end_names = false;
        reader.config_mut().allow_unmatched_ends = true;
        loop {
            // An incomplete tag at the end is an error.
            let event = reader.read_event().ok()?;
            let end = start + usize::try_from(reader.buffer_position()).ok()?;
            match event {
                Event::Eof => return None,
                // The text may continue in the next chunk.
                Event::Text(_) if end == received.len() => return None,
                Event::Start(_) => self.depth += 1,
                Event::End(_) => {
                    self.count_end();
                    self.depth = self.depth.saturating_sub(1);
                }
                _ => {}
            }
            self.at = end;
            if self.lists == 2 {
                return Some([&received[..end], REST].concat());
            }
        }
    }

    /// Counts the results and lists that end at the current depth.
    fn count_end(&mut self) {
        match self.depth {
            DEPTH_OF_RESULTS => self.results += 1,
            DEPTH_OF_LISTS if self.results == self.index => self.lists += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xmlrpc;

    fn names(names: &[&str]) -> Value {
        Value::Array(names.iter().map(|name| Value::from(*name)).collect())
    }

    /// Returns the daemon's reply to three calls and `reloadConfig`.
    fn reply() -> Vec<u8> {
        let fault = Value::Struct(vec![
            ("faultCode".to_owned(), Value::Int(10)),
            ("faultString".to_owned(), "BAD_NAME: a<b".into()),
        ]);
        let nested = Value::Array(vec![Value::Array(vec![names(&["x"]), names(&["y"])])]);
        let lists = vec![names(&["a", "b"]), names(&[]), names(&["gone", "too"])];
        let reload = Value::Array(vec![Value::Array(lists)]);
        xmlrpc::write::response(&Value::Array(vec![fault, names(&[]), nested, reload]))
    }

    #[test]
    fn the_reply_is_complete_before_its_last_list_in_chunks_of_any_size() {
        let reply = reply();
        let removed = "<string>gone";
        let last = String::from_utf8_lossy(&reply).find(removed).unwrap();
        for step in [1, 2, 3, 7, 64, 4096] {
            let mut head = Head::after(3);
            let mut cuts = (0..=reply.len()).step_by(step).chain([reply.len()]);
            let (cut, completed) = cuts
                .find_map(|cut| Some((cut, head.complete(&reply[..cut])?)))
                .unwrap();
            assert!(cut < last + step, "{cut} of {last}");
            let answer = xmlrpc::read::response(&completed).unwrap().unwrap();
            let answers = answer.as_array().unwrap();
            assert_eq!(answers.len(), 4);
            assert_eq!(
                answers[0].get("faultString"),
                Some(&Value::from("BAD_NAME: a<b"))
            );
            let reload = ReloadResult::read(&answers[3]);
            assert_eq!(reload.added, ["a", "b"].map(str::to_owned).into());
            assert!(reload.changed.is_empty());
        }
    }

    #[test]
    fn a_reply_without_the_lists_is_never_complete() {
        let fault = Value::Struct(vec![("faultCode".to_owned(), Value::Int(92))]);
        let fault = xmlrpc::write::response(&Value::Array(vec![fault]));
        assert_eq!(Head::after(0).complete(&fault), None);
        assert_eq!(Head::after(1).complete(&reply()), None);
        assert_eq!(Head::after(0).complete(b"no XML < at all"), None);
    }
}
