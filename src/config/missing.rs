//! What the proxy does without where supervisord's file holds a variable of the environment that only
//! supervisord has.

use super::sources::Resolver;
use crate::daemon::conf::{DaemonConf, MissingVariable};

impl Resolver<'_> {
    /// Notes what is not known. `has_login`: whether an option says what is presented to supervisord.
    pub(super) fn note_missing(&mut self, has_login: bool) {
        let Some(conf) = &self.conf else { return };
        self.notes.extend(notes(conf, has_login));
    }
}

/// A sentence for what is lost with each variable, and where that stands. None holds a value.
fn notes(conf: &DaemonConf, has_login: bool) -> Vec<String> {
    let mut lost: Vec<(&MissingVariable, &str, Vec<String>)> = Vec::new();
    for missing in conf.all_missing() {
        let without = without(missing, has_login);
        let place = format!("[{}] {}", missing.section, missing.key);
        let known = lost.iter_mut().find(|(one, so, _)| {
            (&one.file, &one.variable, *so) == (&missing.file, &missing.variable, without)
        });
        match known {
            Some((.., places)) if places.contains(&place) => {}
            Some((.., places)) => places.push(place),
            None => lost.push((missing, without, vec![place])),
        }
    }
    let sentences = lost.into_iter().map(|(missing, without, places)| {
        format!(
            "{}: {}: the environment variable {} is not set, so {without}; start twiddler with the value that supervisord has",
            missing.file.display(),
            places.join(" and "),
            missing.variable,
        )
    });
    sentences.collect()
}

fn without(missing: &MissingVariable, has_login: bool) -> &'static str {
    match (&*missing.section, &*missing.key) {
        ("include", _) => "twiddler knows nothing of the files that this pattern includes",
        ("supervisord", "logfile") => "twiddler.log answers a fault",
        ("supervisord", _) => "twiddler.log writes from info on",
        (_, "file" | "port") => "twiddler reaches supervisord where --supervisord says",
        _ if has_login => {
            "twiddler presents the username and password of its own options to supervisord"
        }
        _ => {
            "twiddler has nothing to present there: supervisord judges each caller, and twiddler does nothing of its own before one has come"
        }
    }
}
