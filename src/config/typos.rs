//! What is not a mistake and most likely not meant either: a section or a variable that nearly has
//! the name of one that counts.

use super::options::{self, CONFIG, variable};
use crate::daemon::conf::DaemonConf;
use crate::words::is_misspelt;

/// The one section of supervisord.conf that is ours.
const SECTION: &str = "twiddler";

/// Sections that count for nothing.
pub(super) fn sections(conf: &DaemonConf) -> impl Iterator<Item = String> {
    let misspelt = conf
        .sections
        .iter()
        .filter(|name| is_misspelt(name, SECTION));
    misspelt.map(|name| {
        let file = conf.file.display();
        format!("{file}: [{name}] counts for nothing; write [{SECTION}]")
    })
}

/// Variables that count for nothing.
pub(super) fn variables<'a>(set: impl Iterator<Item = &'a String>) -> impl Iterator<Item = String> {
    let keys = options::keys().into_iter().chain([CONFIG]);
    let known: Vec<String> = keys.map(variable).collect();
    set.filter_map(move |name| {
        // Case counts in variables, so another case is a misspelling too.
        let is_known = known.iter().any(|known| known == name);
        let meant = known
            .iter()
            .find(|known| !is_known && is_misspelt(name, known))?;
        Some(format!(
            "the variable {name} counts for nothing; write {meant}"
        ))
    })
}
