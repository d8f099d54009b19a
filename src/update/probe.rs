//! Probes: questions to the daemon about definitions. A probe is a generated file that the daemon reads
//! beside the user's files, and an interpretation of its reply.
//!
//! If a probe defines a group a second time, `reloadConfig` lists the group a second time in `changed`
//! exactly if the running group differs from the sections of the probe (`supervisor/options.py`,
//! `ProcessGroupConfig.__eq__`; `supervisord.py`, `diff_to_active`).
//! If a probe defines a program under a name of its own, `getAllConfigInfo` lists the values that the daemon
//! derives from its options. Pure: the file and the replies are values.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use super::values::Values;
use crate::daemon::conf::{Kind, variables};
use crate::fault::{INCORRECT_PARAMETERS, fault};
use crate::program::{Program, render_group, value_in_file};
use crate::xmlrpc::{Fault, Value};

/// The prefix of the names of all groups and programs in probes.
pub const PREFIX: &str = "twiddler~";
/// A group that lists the user's own programs while a probe redefines the groups of their names, because
/// the daemon makes a group of each program that no other group lists.
const CLAIMED: &str = "twiddler~probe";
/// A program whose command shows the expanded `[supervisord] environment`.
const ENVIRONMENT: &str = "twiddler~environment";

/// The number of a program in a probe, as [`Probe::value`] returns it.
pub type Id = usize;

/// Whether a group of the daemon is from a probe, which it read when it started at that moment.
pub fn is_probe(group: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    group == CLAIMED || group == ENVIRONMENT || group.strip_prefix(PREFIX).is_some_and(is_number)
}

/// Questions that the daemon answers with one reading.
#[derive(Debug, Default)]
pub struct Probe {
    sections: String,
    /// How many names were given out.
    next: usize,
    /// Two sections for each program, by its [`Id`]: one whose values `getAllConfigInfo` lists, and one whose
    /// command holds the options that the list lacks.
    values: Vec<(String, String)>,
    /// The user's programs in groups that the probe redefines.
    claimed: BTreeSet<(Kind, String)>,
    /// Sections that show an environment variable of the daemon, each with the variable's name.
    variables: Vec<(String, String)>,
    /// The groups that the probe defines a second time.
    confirmed: BTreeSet<String>,
    /// The `[supervisord] environment` that every program gets.
    environment: Option<String>,
    /// Whether the files have another `[supervisord] environment`.
    overrides: bool,
}

/// The daemon's reply to a probe.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Groups that the files define and the daemon does not have.
    pub added: BTreeSet<String>,
    /// Groups that differ from the sections that the daemon has read.
    pub changed: BTreeSet<String>,
    /// Those of `changed` that also differ from the sections of the probe.
    pub refuted: BTreeSet<String>,
    /// Groups that the daemon has and the files do not define.
    pub removed: BTreeSet<String>,
    /// The values of the daemon's environment variables, by name.
    pub variables: BTreeMap<String, String>,
    values: HashMap<Id, BTreeMap<String, Values>>,
}

impl Probe {
    /// A probe without questions. Every program gets this `[supervisord] environment`; `written` is the one
    /// in the files.
    pub fn new(environment: Option<&str>, written: Option<&str>) -> Self {
        Probe {
            environment: environment.map(str::to_owned),
            overrides: environment != written,
            ..Probe::default()
        }
    }

    /// The `[supervisord] environment` that every program gets.
    pub fn environment(&self) -> Option<&str> {
        self.environment.as_deref()
    }

    /// Whether the probe has no question.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// Asks for the values that the daemon derives from `programs`, whose processes have different names.
    pub fn value(&mut self, programs: &[Program]) -> Vec<Id> {
        let mut ids = Vec::new();
        for program in programs {
            let (shown, unshown) = (self.name(), self.name());
            self.sections += &program.render_probe(&shown);
            self.sections += &program.render_unlisted_probe(&unshown);
            self.values.push((shown, unshown));
            ids.push(self.values.len() - 1);
        }
        ids
    }

    /// Asks for the values of these environment variables of the daemon.
    pub fn variables(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            let section = self.name();
            let _infallible = writeln!(
                self.sections,
                "[program:{section}]\nautostart=false\ncommand={PREFIX} |%(ENV_{name})s|"
            );
            self.variables.push((section, name));
        }
    }

    /// Asks whether the running group `name` was made from `programs`, in this order.
    ///
    /// The daemon strips the names of groups. A section whose header has white space around the name
    /// therefore defines the group a second time, independent of the user's files. The probe has two such
    /// sections: the group differs from them if it is at least twice in `changed`, no matter if the user's
    /// own section differs too.
    pub fn confirm(&mut self, name: &str, priority: i64, programs: &[Program]) {
        let sections = self.render(programs);
        for header in [format!("\t{name}"), format!("{name}\t")] {
            self.sections += &render_group(&header, priority, &as_strs(&sections));
        }
        self.confirmed.insert(name.to_owned());
    }

    /// Defines the group `name` from `programs`, in this order, so that `addProcessGroup` adds it. `claimed`
    /// are the user's own programs in the group.
    pub fn group<'p>(
        &mut self,
        name: &str,
        priority: i64,
        programs: &[Program],
        claimed: impl IntoIterator<Item = (Kind, &'p str)>,
    ) {
        let sections = self.render(programs);
        self.sections += &render_group(name, priority, &as_strs(&sections));
        let claimed = claimed.into_iter();
        self.claimed
            .extend(claimed.map(|(kind, name)| (kind, name.to_owned())));
    }

    /// Adds the sections of programs, and returns the sections' names.
    fn render(&mut self, programs: &[Program]) -> Vec<String> {
        let render = |program: &Program| {
            let section = self.name();
            self.sections += &program.render(&section, crate::program::Scope::All);
            section
        };
        programs.iter().map(render).collect()
    }

    fn name(&mut self) -> String {
        self.next += 1;
        format!("{PREFIX}{}", self.next)
    }

    /// Rewrites the daemon's `complaint` about the program with this number, so that it names what the client
    /// sent. A fault about something else is returned unchanged.
    pub fn in_client_words(
        &self,
        complaint: Fault,
        program: &Program,
        id: Id,
        main_file: &str,
    ) -> Fault {
        let sections = self.values.get(id).map(|(shown, unshown)| [shown, unshown]);
        let sections = sections.into_iter().flatten();
        let section = sections
            .filter(|section| complaint.text.contains(&format!("program:{section}'")))
            .chain(self.values.get(id).map(|(shown, _)| shown))
            .next();
        let is_named = |section: &&String| complaint.text.contains(&format!("program:{section}"));
        let Some(section) = section.filter(is_named) else {
            return complaint;
        };
        let reason = complaint
            .text
            .strip_prefix("CANT_REREAD: ")
            .unwrap_or(&complaint.text);
        let reason = program.in_client_words(reason, section, main_file);
        fault(INCORRECT_PARAMETERS, reason)
    }

    /// Whether the reply needs `getAllConfigInfo`.
    pub fn asks_for_values(&self) -> bool {
        !self.values.is_empty() || !self.variables.is_empty()
    }

    /// The text of the generated file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let environment = value_in_file(self.environment.as_deref().unwrap_or_default());
        if self.overrides {
            let _infallible = writeln!(text, "[supervisord]\nenvironment={environment}");
        }
        text += &self.sections;
        if !self.values.is_empty() {
            let _infallible = writeln!(
                text,
                "[program:{ENVIRONMENT}]\nautostart=false\ncommand={PREFIX} {environment}"
            );
        }
        if !self.claimed.is_empty() {
            // A daemon that starts at this moment must not start the programs in this group too.
            for (kind, name) in &self.claimed {
                let section = kind.section();
                let _infallible = writeln!(text, "[{section}:{name}]\nautostart=false");
            }
            let claimed: Vec<String> = self.claimed.iter().map(|(_, name)| name.clone()).collect();
            text += &render_group(CLAIMED, 999, &as_strs(&claimed));
        }
        text
    }

    /// Interprets the replies of `reloadConfig` and, if it was called, `getAllConfigInfo`.
    pub fn interpret(&self, reloaded: &Value, configs: Option<&Value>) -> Reply {
        let lists = reloaded.as_array().and_then(|outer| outer.first());
        let lists = lists.and_then(Value::as_array).unwrap_or_default();
        let names = |at: usize| {
            let names = lists.get(at).and_then(Value::as_array).unwrap_or_default();
            let names = names.iter().filter_map(Value::as_str);
            names.filter(|name| !name.starts_with(PREFIX))
        };
        let configs = Configs::read(configs);
        let set = |at: usize| names(at).map(str::to_owned).collect();
        let is_refuted = |name: &&String| names(1).filter(|changed| changed == *name).count() > 1;
        Reply {
            added: set(0),
            refuted: self.confirmed.iter().filter(is_refuted).cloned().collect(),
            changed: set(1),
            removed: set(2),
            variables: self.read_variables(&configs),
            values: self.read_values(&configs),
        }
    }

    fn read_variables(&self, configs: &Configs<'_>) -> BTreeMap<String, String> {
        let read = |(section, variable): &(String, String)| {
            let text = command(configs.of(section).first()?)?;
            let value = text.split_once('|')?.1.strip_suffix('|')?;
            Some((variable.clone(), value.to_owned()))
        };
        self.variables.iter().filter_map(read).collect()
    }

    fn read_values(&self, configs: &Configs<'_>) -> HashMap<Id, BTreeMap<String, Values>> {
        let of = |group: &str| configs.of(group);
        let all = of(ENVIRONMENT).first().and_then(|config| command(config));
        let all = all.and_then(|text| variables(text.trim_start_matches(PREFIX)));
        let all = all.unwrap_or_default();
        let read = |(id, (shown, unshown)): (Id, &(String, String))| {
            let unshown: HashMap<&str, &str> = of(unshown)
                .iter()
                .filter_map(|config| Some((name(config)?, command(config)?)))
                .collect();
            let values = of(shown).iter().filter_map(|config| {
                let name = name(config)?;
                let values = Values::read(config, unshown.get(name)?, &all)?;
                Some((name.to_owned(), values))
            });
            (id, values.collect())
        };
        self.values.iter().enumerate().map(read).collect()
    }
}

/// The structs of `getAllConfigInfo` that are about probes, by group.
struct Configs<'a>(HashMap<&'a str, Vec<&'a Value>>);

impl<'a> Configs<'a> {
    fn read(configs: Option<&'a Value>) -> Self {
        let mut groups: HashMap<&str, Vec<&Value>> = HashMap::new();
        for config in configs.and_then(Value::as_array).unwrap_or_default() {
            let group = config.get("group").and_then(Value::as_str);
            if let Some(group) = group.filter(|group| group.starts_with(PREFIX)) {
                groups.entry(group).or_default().push(config);
            }
        }
        Configs(groups)
    }

    fn of(&self, group: &str) -> &[&'a Value] {
        self.0.get(group).map(Vec::as_slice).unwrap_or_default()
    }
}

impl Reply {
    /// The values of the programs with these numbers, by the names of processes.
    pub fn values(&self, ids: &[Id]) -> BTreeMap<String, Values> {
        let maps = ids.iter().filter_map(|id| self.values.get(id));
        maps.flat_map(|map| {
            map.iter()
                .map(|(name, values)| (name.clone(), values.clone()))
        })
        .collect()
    }
}

fn as_strs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

fn name(config: &Value) -> Option<&str> {
    config.get("name")?.as_str()
}

fn command(config: &Value) -> Option<&str> {
    config.get("command")?.as_str()
}
