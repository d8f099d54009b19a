//! Questions to the daemon about definitions: a file that it reads beside the user's, and what its
//! answer says.
//!
//! A group that is defined once more, from sections of ours, is once more in `changed` of `reloadConfig`
//! exactly if what the group runs is not what those sections say (`supervisor/options.py`,
//! `ProcessGroupConfig.__eq__`; `supervisord.py`, `diff_to_active`).
//! A program under the name of a probe shows in `getAllConfigInfo` what the daemon makes of its options.
//! Pure: the text goes out and the answer comes in as values.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use super::values::Values;
use crate::daemon::conf::{Kind, variables};
use crate::fault::{INCORRECT_PARAMETERS, fault};
use crate::program::{Program, carried, render_group};
use crate::xmlrpc::{Fault, Value};

/// What the names of all probes begin with.
pub const PREFIX: &str = "twiddler~";
/// Takes the user's own programs out of groups of their names while those are redefined.
const CLAIMED: &str = "twiddler~probe";
/// Shows what `[supervisord] environment` comes to.
const ENVIRONMENT: &str = "twiddler~environment";

/// Which of the programs that were asked about: a number that [`Probe::value`] has given.
pub type Id = usize;

/// Whether a group of the daemon's is that of a probe, which it met when it started.
pub fn is_probe(group: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    group == CLAIMED || group == ENVIRONMENT || group.strip_prefix(PREFIX).is_some_and(is_number)
}

/// Questions that go out together.
#[derive(Debug, Default)]
pub struct Probe {
    sections: String,
    next: usize,
    values: Vec<(String, String)>,
    claimed: BTreeSet<(Kind, String)>,
    /// Sections that show what a variable of the daemon's environment holds, by its name.
    variables: Vec<(String, String)>,
    /// The groups that are defined once more.
    confirmed: BTreeSet<String>,
    /// What every program gets for `[supervisord] environment`.
    environment: Option<String>,
    /// The files have another one.
    overrides: bool,
}

/// What the daemon said.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Groups that are in the files and not in the daemon.
    pub added: BTreeSet<String>,
    /// Groups that are not as the daemon has read them.
    pub changed: BTreeSet<String>,
    /// Of these, those that do not run what was believed.
    pub refuted: BTreeSet<String>,
    /// Groups that only the daemon has.
    pub removed: BTreeSet<String>,
    /// What the daemon's variables hold.
    pub variables: BTreeMap<String, String>,
    values: HashMap<Id, BTreeMap<String, Values>>,
}

impl Probe {
    /// Asks nothing yet. Every program gets this `[supervisord] environment`, where the files have
    /// `written`.
    pub fn new(environment: Option<&str>, written: Option<&str>) -> Self {
        Probe {
            environment: environment.map(str::to_owned),
            overrides: environment != written,
            ..Probe::default()
        }
    }

    /// What every program gets for `[supervisord] environment`.
    pub fn environment(&self) -> Option<&str> {
        self.environment.as_deref()
    }

    /// Whether nothing is asked but what the files say.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// Asks what the daemon makes of `programs`, which have processes of different names.
    pub fn value(&mut self, programs: &[Program]) -> Vec<Id> {
        let mut ids = Vec::new();
        for program in programs {
            let (shown, unshown) = (self.name(), self.name());
            self.sections += &program.render_shown(&shown);
            self.sections += &program.render_unshown(&unshown);
            self.values.push((shown, unshown));
            ids.push(self.values.len() - 1);
        }
        ids
    }

    /// Asks what these variables of the daemon's environment hold.
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

    /// Asks whether the group `name` runs what `programs` say, in this order.
    ///
    /// The daemon strips the names of groups, so sections whose headers are spelt in another way define
    /// the group once more, whatever the user's files say before and after them. There are two of them:
    /// what is in `changed` at least twice does not run what they say, whether the user's own section
    /// is in it or not.
    pub fn confirm(&mut self, name: &str, priority: i64, programs: &[Program]) {
        let sections = self.render(programs);
        for spelt in [format!("\t{name}"), format!("{name}\t")] {
            self.sections += &render_group(&spelt, priority, &as_strs(&sections));
        }
        self.confirmed.insert(name.to_owned());
    }

    /// Defines the group `name` by `programs`, in this order, for the daemon to make it. The user's own
    /// programs in it are `claimed`.
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

    /// Puts programs in, and tells the names of their sections.
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

    /// The daemon's complaint about the program with this number, in words about what a client sent.
    pub fn in_client_words(
        &self,
        told: Fault,
        program: &Program,
        id: Id,
        main_file: &str,
    ) -> Fault {
        let blamed = self.values.get(id).map(|(shown, unshown)| [shown, unshown]);
        let blamed = blamed.into_iter().flatten();
        let section = blamed
            .filter(|section| told.text.contains(&format!("program:{section}'")))
            .chain(self.values.get(id).map(|(shown, _)| shown))
            .next();
        let is_about_it = |section: &&String| told.text.contains(&format!("program:{section}"));
        let Some(section) = section.filter(is_about_it) else {
            return told;
        };
        let reason = told
            .text
            .strip_prefix("CANT_REREAD: ")
            .unwrap_or(&told.text);
        let reason = program.in_client_words(reason, section, main_file);
        fault(INCORRECT_PARAMETERS, reason)
    }

    /// Whether definitions are asked for.
    pub fn asks_for_values(&self) -> bool {
        !self.values.is_empty() || !self.variables.is_empty()
    }

    /// The file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let environment = carried(self.environment.as_deref().unwrap_or_default());
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
            // A daemon that starts at this moment must not start them here too.
            for (kind, name) in &self.claimed {
                let section = kind.section();
                let _infallible = writeln!(text, "[{section}:{name}]\nautostart=false");
            }
            let claimed: Vec<String> = self.claimed.iter().map(|(_, name)| name.clone()).collect();
            text += &render_group(CLAIMED, 999, &as_strs(&claimed));
        }
        text
    }

    /// Reads what `reloadConfig` and `getAllConfigInfo` said.
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
            let held = text.split_once('|')?.1.strip_suffix('|')?;
            Some((variable.clone(), held.to_owned()))
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

/// The structs of `getAllConfigInfo` about probes, by their groups.
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
    /// What the daemon made of the programs with these numbers, by the names of processes.
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
