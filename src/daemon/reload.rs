//! What `reloadConfig` says, as soon as it has said what matters.
//!
//! It lists the groups that the files have and the daemon has not, those that differ, and last those
//! that only the daemon has: all that was added at run time, each time. The daemon sends 4 KiB in
//! each turn of its loop (`supervisor/http.py`, `deferring_http_channel`), so where much was added
//! that list takes many times as long as everything before it.

use std::collections::HashSet;

use quick_xml::Reader;
use quick_xml::events::Event;

use crate::xmlrpc::Value;

/// The answer of `reloadConfig`.
#[derive(Clone, Debug, Default)]
pub struct Reloaded {
    /// Groups that the files have and the daemon has not.
    pub added: HashSet<String>,
    /// Groups that are not in the daemon as they are in the files.
    pub changed: HashSet<String>,
}

impl Reloaded {
    /// Reads `[[added, changed, removed]]`, also without its end.
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
        Reloaded {
            added: names(0),
            changed: names(1),
        }
    }

    /// The groups that the daemon has and the files have not, in a reply that is whole.
    pub fn gone(value: &Value) -> impl Iterator<Item = &str> {
        let lists = value
            .as_array()
            .and_then(|outer| outer.first())
            .and_then(Value::as_array);
        let gone = lists
            .and_then(|lists| lists.get(2))
            .and_then(Value::as_array);
        gone.unwrap_or_default().iter().filter_map(Value::as_str)
    }
}

/// How deep the three lists are in the reply of a multicall: below `methodResponse`, `params`,
/// `param`, and `value`, `array`, `data` of the results, of what one call returned, and of the outer
/// list.
const DEPTH_OF_RESULTS: usize = 7;
const DEPTH_OF_LISTS: usize = DEPTH_OF_RESULTS + 6;
/// What ends a reply after the second of the lists.
const REST: &[u8] = b"</data></array></value></data></array></value></data></array></value>\
                      </param></params></methodResponse>";

/// Finds the place in a reply from which only the list of gone groups follows.
pub(super) struct Head {
    /// Which of the multicall's results is `reloadConfig`'s.
    number: usize,
    depth: usize,
    results: usize,
    lists: usize,
    /// All before this was looked at.
    at: usize,
}

impl Head {
    /// For a multicall in which `number` calls come before `reloadConfig`.
    pub(super) fn after(number: usize) -> Self {
        Head {
            number,
            depth: 0,
            results: 0,
            lists: 0,
            at: 0,
        }
    }

    /// The reply without its last list, once the two others are there. `received` is all that came
    /// so far, more each time.
    pub(super) fn complete(&mut self, received: &[u8]) -> Option<Vec<u8>> {
        let start = self.at;
        let mut reader = Reader::from_reader(&received[start..]);
        // It begins wherever the last look ended.
        reader.config_mut().check_end_names = false;
        reader.config_mut().allow_unmatched_ends = true;
        loop {
            // Half a tag at the end is no event yet.
            let event = reader.read_event().ok()?;
            let end = start + usize::try_from(reader.buffer_position()).ok()?;
            match event {
                Event::Eof => return None,
                // There may be more of it to come.
                Event::Text(_) if end == received.len() => return None,
                Event::Start(_) => self.depth += 1,
                Event::End(_) => {
                    self.close();
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

    /// Takes note of the element that ends here.
    fn close(&mut self) {
        match self.depth {
            DEPTH_OF_RESULTS => self.results += 1,
            DEPTH_OF_LISTS if self.results == self.number => self.lists += 1,
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

    /// What the daemon answers to a few questions and `reloadConfig`.
    fn reply() -> Vec<u8> {
        let told = Value::Struct(vec![
            ("faultCode".to_owned(), Value::Int(10)),
            ("faultString".to_owned(), "BAD_NAME: a<b".into()),
        ]);
        let nested = Value::Array(vec![Value::Array(vec![names(&["x"]), names(&["y"])])]);
        let lists = vec![names(&["a", "b"]), names(&[]), names(&["gone", "too"])];
        let reloaded = Value::Array(vec![Value::Array(lists)]);
        xmlrpc::write::response(&Value::Array(vec![told, names(&[]), nested, reloaded]))
    }

    #[test]
    fn the_reply_is_whole_before_its_last_list_wherever_it_is_cut() {
        let reply = reply();
        let gone = "<string>gone";
        let last = String::from_utf8_lossy(&reply).find(gone).unwrap();
        for step in [1, 2, 3, 7, 64, 4096] {
            let mut head = Head::after(3);
            let mut cuts = (0..=reply.len()).step_by(step).chain([reply.len()]);
            let (cut, whole) = cuts
                .find_map(|cut| Some((cut, head.complete(&reply[..cut])?)))
                .unwrap();
            assert!(cut < last + step, "{cut} of {last}");
            let answer = xmlrpc::read::response(&whole).unwrap().unwrap();
            let answers = answer.as_array().unwrap();
            assert_eq!(answers.len(), 4);
            assert_eq!(
                answers[0].get("faultString"),
                Some(&Value::from("BAD_NAME: a<b"))
            );
            let reloaded = Reloaded::read(&answers[3]);
            assert_eq!(reloaded.added, ["a", "b"].map(str::to_owned).into());
            assert!(reloaded.changed.is_empty());
        }
    }

    #[test]
    fn a_reply_without_the_lists_is_never_complete() {
        let told = Value::Struct(vec![("faultCode".to_owned(), Value::Int(92))]);
        let fault = xmlrpc::write::response(&Value::Array(vec![told]));
        assert_eq!(Head::after(0).complete(&fault), None);
        assert_eq!(Head::after(1).complete(&reply()), None);
        assert_eq!(Head::after(0).complete(b"no XML < at all"), None);
    }
}
