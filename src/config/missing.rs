//! Notes about environment variables in supervisord's file that this process lacks.

use super::sources::Resolver;
use crate::daemon::conf::{DaemonConf, MissingVariable};

impl Resolver<'_> {
    /// Adds a note for each missing variable. `has_login` says whether the proxy has credentials of its own
    /// options to present to supervisord.
    pub(super) fn note_missing(&mut self, has_login: bool) {
        let Some(conf) = &self.conf else { return };
        self.notes.extend(notes(conf, has_login));
    }
}

/// A sentence for each missing variable and its consequence, with all keys that contain the variable. No
/// sentence contains a value.
fn notes(conf: &DaemonConf, has_login: bool) -> Vec<String> {
    let mut notes: Vec<(&MissingVariable, &str, Vec<String>)> = Vec::new();
    for missing in conf.all_missing() {
        let consequence = consequence(missing, has_login);
        let place = format!("[{}] {}", missing.section, missing.key);
        let same = notes.iter_mut().find(|(other, other_consequence, _)| {
            (&other.file, &other.variable, *other_consequence)
                == (&missing.file, &missing.variable, consequence)
        });
        match same {
            Some((.., places)) if places.contains(&place) => {}
            Some((.., places)) => places.push(place),
            None => notes.push((missing, consequence, vec![place])),
        }
    }
    let sentences = notes.into_iter().map(|(missing, consequence, places)| {
        format!(
            "{}: {}: the environment variable {} is not set, so {consequence}; start twiddler with the value that supervisord has",
            missing.file.display(),
            places.join(" and "),
            missing.variable,
        )
    });
    sentences.collect()
}

/// What the proxy does not know or cannot do without the variable.
fn consequence(missing: &MissingVariable, has_login: bool) -> &'static str {
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
