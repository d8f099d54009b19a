//! Reads supervisord's configuration file and the files that it includes, by the daemon's rules.
//!
//! The result has everything that the proxy must know before it calls the daemon: the addresses on
//! which the daemon listens, the files that it includes, its log, the configured groups, and the keys of
//! `[twiddler]`, which `config` interprets. The daemon judges the options of programs. The rules are
//! those of `ServerOptions.read_config` in `supervisor/options.py`.
//!
//! `reader` has the sections and their values. Each of the other modules reads one subject from it.

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
pub use self::include::{IncludePattern, UnresolvedPattern};
pub use self::log::{LogFile, LogLevel};
pub use self::pattern::{has_wildcard, name_matches};
pub use self::servers::{HttpServer, Supervisorctl, UnresolvedServer};

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

/// The parts of a configuration file that the proxy needs.
#[derive(Clone, Debug)]
pub struct DaemonConf {
    /// The absolute path of the main file.
    pub file: PathBuf,
    /// The directory of the main file: `%(here)s`.
    pub here: PathBuf,
    /// The servers of the daemon in the order in which the proxy prefers them: unix sockets first.
    pub servers: Vec<HttpServer>,
    /// The servers whose address has a variable that is not set in this process.
    pub unresolved_servers: Vec<UnresolvedServer>,
    /// The patterns of `[include] files`.
    pub include: Vec<IncludePattern>,
    /// The patterns that have a variable that is not set in this process.
    pub unresolved_include: Vec<UnresolvedPattern>,
    /// The included files that could be read, in the order of reading.
    pub included: Vec<PathBuf>,
    /// The file of the daemon's main log.
    pub logfile: LogFile,
    /// The level of the daemon's main log.
    pub loglevel: LogLevel,
    /// The limit on open files to which the daemon raises its own at its start.
    pub minfds: usize,
    /// The groups that the files define, in the order of the files.
    pub groups: Vec<ConfiguredGroup>,
    /// The `[supervisorctl]` section.
    pub supervisorctl: Supervisorctl,
    /// The keys of `[twiddler]`.
    pub twiddler: Vec<TwiddlerKey>,
    /// The names of all sections.
    pub sections: Vec<String>,
    /// The names of the program sections that run `twiddler serve`.
    pub proxies: Vec<String>,
    /// Missing variables in options other than addresses, patterns and the log file.
    pub missing: Vec<MissingVariable>,
}

impl DaemonConf {
    /// Returns all variables that are not set in this process.
    pub fn all_missing(&self) -> impl Iterator<Item = &MissingVariable> {
        let log = match &self.logfile {
            LogFile::Unknown(missing) => Some(missing),
            _ => None,
        };
        let servers = self.unresolved_servers.iter();
        let servers = servers.map(|server| &server.missing);
        let patterns = self.unresolved_include.iter();
        let patterns = patterns.map(|pattern| &pattern.missing);
        patterns.chain(servers).chain(log).chain(&self.missing)
    }

    /// Returns the daemon's limit on open files and the number of the configured processes.
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
    /// The expanded value.
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

/// A configuration file and all mistakes in the parts that the proxy needs.
#[derive(Debug)]
pub struct Inspection {
    /// The configuration. An invalid option is missing or has the daemon's default.
    pub conf: DaemonConf,
    /// The mistakes. Invalid lines come first.
    pub mistakes: Vec<ConfError>,
}

/// Returns the paths at which supervisorctl looks for a configuration file without `-c`, in its order
/// (`supervisor/options.py`, `Options.__init__`).
///
/// Two of them depend on the path of supervisorctl, which is searched in `PATH`. If it is not found, the
/// path of this program is used instead.
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

/// Reads a configuration file and the files that it includes, with the environment of this process.
///
/// # Errors
/// The first mistake in a part that the proxy needs.
pub fn read(file: &Path) -> Result<DaemonConf, ConfError> {
    read_with_env(file, &process_environment)
}

/// Reads a configuration file and the files that it includes, with the environment `env`.
///
/// # Errors
/// The first mistake in a part that the proxy needs.
pub fn read_with_env(file: &Path, env: &Environment<'_>) -> Result<DaemonConf, ConfError> {
    let Inspection { conf, mistakes } = inspect(file, env)?;
    mistakes.into_iter().next().map_or(Ok(conf), Err)
}

/// Returns the groups that the files define now, or none if the main file cannot be read.
pub fn configured_groups(file: &Path) -> Vec<ConfiguredGroup> {
    inspect(file, &process_environment)
        .map(|inspection| inspection.conf.groups)
        .unwrap_or_default()
}

/// Reads a configuration file and the files that it includes. Returns all mistakes with the result.
///
/// # Errors
/// If the main file is missing or cannot be read.
pub fn inspect(file: &Path, env: &Environment<'_>) -> Result<Inspection, ConfError> {
    let mut reader = Reader::open(file, env)?;
    let include = reader.include();
    reader.check_lines();
    reader.check_supervisord();
    let logfile = reader.logfile();
    let loglevel = reader.loglevel();
    let minfds = reader.minfds();
    reader.load_environment();
    let (servers, unresolved_servers) = reader.servers();
    let conf = DaemonConf {
        servers,
        unresolved_servers,
        groups: reader.groups(),
        supervisorctl: reader.supervisorctl(),
        twiddler: twiddler_keys(&mut reader),
        sections: section_names(&reader),
        proxies: reader.proxies(),
        here: reader.names.here.clone().into(),
        include: include.patterns,
        unresolved_include: include.unresolved,
        included: include.files,
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

fn section_names(reader: &Reader<'_>) -> Vec<String> {
    let sections = reader.sections.iter();
    sections.map(|section| section.name.clone()).collect()
}

fn twiddler_keys(reader: &mut Reader<'_>) -> Vec<TwiddlerKey> {
    let section = reader.sections.get("twiddler");
    let settings = section.map(|section| section.own.clone());
    let keys = settings.into_iter().flatten().filter_map(|setting| {
        let value = reader.expand("twiddler", &setting);
        let (value, file) = reader.collect_mistake(value)?;
        let key = setting.key;
        Some(TwiddlerKey { key, value, file })
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_paths_are_searched_last() {
        let paths = search();
        let fixed = [
            "supervisord.conf",
            "etc/supervisord.conf",
            "/etc/supervisord.conf",
            "/etc/supervisor/supervisord.conf",
        ];
        assert_eq!(paths[paths.len() - 4..], fixed.map(PathBuf::from));
        assert!(
            paths.len() == 6 && paths[0].ends_with("etc/supervisord.conf"),
            "{paths:?}"
        );
    }

    #[test]
    fn a_value_is_not_in_debug_output() {
        let key = TwiddlerKey {
            key: "k".into(),
            value: "hush".into(),
            file: "/f".into(),
        };
        let debug = format!("{key:?}");
        assert!(debug.contains('k') && !debug.contains("hush"), "{debug}");
    }
}
