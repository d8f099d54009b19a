//! supervisord's configuration file and what it includes, read by the daemon's own rules.
//!
//! Owns what the proxy must know before it talks to the daemon: where it listens, which files it
//! includes, where it logs, which groups are configured, and the keys of `[twiddler]`, whose meaning
//! is `config`'s. What is wrong with a program is left to the daemon to judge. The rules, odd ones
//! too, are those of supervisor/options.py, `ServerOptions.read_config`.
//!
//! `reader` has the files and their values; what it makes of them, subject by subject, is in the
//! modules beside it, without a look at another file.

use std::fmt;
use std::path::{Path, PathBuf};

use self::reader::Reader;
use super::descriptors::Descriptors;

pub use self::address::DaemonAddress;
pub use self::credentials::Credentials;
pub use self::definitions::{
    Definitions, GroupDefinition, Kind, ProgramDefinition, definitions, variables,
};
pub use self::error::{ConfError, MissingVariable};
pub use self::expand::{Environment, process_environment};
pub use self::groups::ConfiguredGroup;
pub use self::include::{IncludePattern, UnplacedPattern};
pub use self::log::{LogFile, LogLevel};
pub use self::pattern::{has_wildcard, name_matches};
pub use self::servers::{HttpServer, Supervisorctl, UnplacedServer};

mod address;
mod credentials;
mod definitions;
mod error;
mod expand;
mod groups;
mod include;
mod ini;
mod log;
mod paths;
mod pattern;
mod reader;
mod servers;

/// What a configuration file says, as far as the proxy needs it.
#[derive(Clone, Debug)]
pub struct DaemonConf {
    /// The file, as it was named, made absolute.
    pub file: PathBuf,
    /// Its directory: `%(here)s`.
    pub here: PathBuf,
    /// Where the daemon listens, unix sockets first: the order in which the proxy prefers them.
    pub servers: Vec<HttpServer>,
    /// Servers whose address holds a variable that is not set here.
    pub unplaced: Vec<UnplacedServer>,
    /// The patterns of `[include] files`; empty where there are none.
    pub include: Vec<IncludePattern>,
    /// Patterns of it that hold a variable that is not set here.
    pub unplaced_include: Vec<UnplacedPattern>,
    /// The files that the patterns matched and that could be read, in the order of reading.
    pub included: Vec<PathBuf>,
    /// The daemon's own log.
    pub logfile: LogFile,
    /// How much it logs there.
    pub loglevel: LogLevel,
    /// How many descriptors the daemon sees to it that it may have.
    pub minfds: usize,
    /// Every group that the files define, in their order.
    pub groups: Vec<ConfiguredGroup>,
    /// What `[supervisorctl]` tells its clients.
    pub supervisorctl: Supervisorctl,
    /// The keys of `[twiddler]`.
    pub twiddler: Vec<TwiddlerKey>,
    /// The names of all sections.
    pub sections: Vec<String>,
    /// The sections of programs that run `twiddler serve`.
    pub proxies: Vec<String>,
    /// Variables that are not set here, in what is neither an address, a pattern nor the log.
    pub missing: Vec<MissingVariable>,
}

impl DaemonConf {
    /// All variables that are not set here.
    pub fn all_missing(&self) -> impl Iterator<Item = &MissingVariable> {
        let log = match &self.logfile {
            LogFile::Unknown(missing) => Some(missing),
            _ => None,
        };
        let servers = self.unplaced.iter().map(|server| &server.missing);
        let patterns = self.unplaced_include.iter().map(|one| &one.missing);
        let placed = patterns.chain(servers).chain(log);
        placed.chain(&self.missing)
    }

    /// What the daemon may have, and what it needs for these programs.
    pub fn descriptors(&self) -> Descriptors {
        Descriptors {
            limit: self.minfds,
            processes: self.groups.iter().map(|group| group.processes.len()).sum(),
            open: 0,
        }
    }
}

/// A key of `[twiddler]`. Debug output hides the value, which may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct TwiddlerKey {
    /// The key, in lower case.
    pub key: String,
    /// Its value, expanded.
    pub value: String,
    /// The file that sets it.
    pub file: PathBuf,
}

impl fmt::Debug for TwiddlerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TwiddlerKey")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// A configuration file and all mistakes in the parts of it that the proxy needs.
#[derive(Debug)]
pub struct Inspection {
    /// What could be read. What a mistake hides is left out or has the daemon's default.
    pub conf: DaemonConf,
    /// The mistakes; what is wrong with the text itself comes first.
    pub mistakes: Vec<ConfError>,
}

/// Where supervisorctl looks for a file that nobody named, best first (supervisor/options.py,
/// `Options.__init__`).
///
/// Two places depend on where supervisorctl itself is. It is looked for in `PATH`; where there is
/// none, this program stands in for it.
pub fn search() -> Vec<PathBuf> {
    let program = find_program("supervisorctl").or_else(|| std::env::current_exe().ok());
    let prefix = program
        .as_deref()
        .and_then(|program| program.parent()?.parent());
    let beside = ["etc/supervisord.conf", "supervisord.conf"];
    let beside = prefix.map(|prefix| beside.map(|name| prefix.join(name)));
    let fixed = [
        "supervisord.conf",
        "etc/supervisord.conf",
        "/etc/supervisord.conf",
        "/etc/supervisor/supervisord.conf",
    ];
    let fixed = fixed.map(PathBuf::from);
    beside.into_iter().flatten().chain(fixed).collect()
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

/// Reads a configuration file and what it includes.
///
/// # Errors
/// The first mistake in a part that the proxy needs.
pub fn read(file: &Path) -> Result<DaemonConf, ConfError> {
    read_with_env(file, &process_environment)
}

/// Like [`read`], with this environment.
///
/// # Errors
/// The first mistake in a part that the proxy needs.
pub fn read_with_env(file: &Path, env: &Environment<'_>) -> Result<DaemonConf, ConfError> {
    let Inspection { conf, mistakes } = inspect(file, env)?;
    mistakes.into_iter().next().map_or(Ok(conf), Err)
}

/// The groups that the files define now. Files that cannot be read define nothing.
pub fn configured_groups(file: &Path) -> Vec<ConfiguredGroup> {
    inspect(file, &process_environment)
        .map(|found| found.conf.groups)
        .unwrap_or_default()
}

/// Like [`read_with_env`], with all mistakes at once.
///
/// # Errors
/// When the file is missing or cannot be read.
pub fn inspect(file: &Path, env: &Environment<'_>) -> Result<Inspection, ConfError> {
    let mut reader = Reader::open(file, env)?;
    let include = reader.include();
    reader.check_lines();
    reader.check_supervisord();
    let logfile = reader.logfile();
    let loglevel = reader.loglevel();
    let minfds = reader.minfds();
    reader.load_environment();
    let (servers, unplaced) = reader.servers();
    let conf = DaemonConf {
        servers,
        unplaced,
        groups: reader.groups(),
        supervisorctl: reader.supervisorctl(),
        twiddler: twiddler_keys(&mut reader),
        sections: reader.sections.iter().map(|one| one.name.clone()).collect(),
        proxies: reader.proxies(),
        here: reader.names.here.clone().into(),
        include: include.patterns,
        unplaced_include: include.unplaced,
        included: include.included,
        logfile,
        loglevel,
        minfds,
        file: reader.file,
        missing: reader.missing,
    };
    Ok(Inspection {
        conf,
        mistakes: reader.mistakes,
    })
}

fn twiddler_keys(reader: &mut Reader<'_>) -> Vec<TwiddlerKey> {
    let section = reader.sections.get("twiddler");
    let settings = section.map(|section| section.own.clone());
    let keys = settings.into_iter().flatten().filter_map(|setting| {
        let value = reader.expanded("twiddler", &setting);
        let (value, file) = reader.keep(value)?;
        let key = setting.key;
        Some(TwiddlerKey { key, value, file })
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_places_are_searched_last() {
        let found = search();
        let usual = [
            "supervisord.conf",
            "etc/supervisord.conf",
            "/etc/supervisord.conf",
            "/etc/supervisor/supervisord.conf",
        ];
        assert_eq!(found[found.len() - 4..], usual.map(PathBuf::from));
        assert!(
            found.len() == 6 && found[0].ends_with("etc/supervisord.conf"),
            "{found:?}"
        );
    }

    #[test]
    fn a_value_is_not_in_debug_output() {
        let key = TwiddlerKey {
            key: "k".into(),
            value: "hush".into(),
            file: "/f".into(),
        };
        let shown = format!("{key:?}");
        assert!(shown.contains('k') && !shown.contains("hush"), "{shown}");
    }
}
