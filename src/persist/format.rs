//! The text of the persist file: rendering it, and reading it back.
//!
//! Pure: it takes and returns text. Each placed process has a section of its own, so that the other
//! sections stay unchanged when it is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use crate::daemon::conf::ConfiguredGroup;
use crate::fault::complaint::names_section;
use crate::program::{self, Scope};
use crate::registry::{
    DEFAULT_PRIORITY, Event, Member, Registry, group_of_real_name, is_defined, without_defined,
};

/// The beginning of each persist file.
pub const HEADER: &str = "\
; Groups and programs that were added while supervisord ran, written by twiddler --persist.
; twiddler writes it with every change: edits are lost. Remove what is not wanted through
; twiddler.removeProcessFromGroup and twiddler.removeGroup.
";

/// The program sections of a group: the member, the section's name and its text.
type Sections<'r> = Vec<(&'r Member, String, Arc<str>)>;

/// Returns the added groups and the real groups, by their names in the daemon.
pub fn real_groups(registry: &Registry) -> BTreeSet<String> {
    let added = registry.added_groups().map(str::to_owned);
    added
        .chain(
            by_real_group(registry.members())
                .into_keys()
                .map(str::to_owned),
        )
        .collect()
}

/// Renders the persist file: each added group, and each member in its group of the daemon. Placed processes
/// call `proxy`, as in [`Program::render_with_proxy_url`](crate::program::Program::render_with_proxy_url).
pub fn render(registry: &Registry, configured: &[ConfiguredGroup], proxy: Option<&str>) -> String {
    let mut text = HEADER.to_owned();
    // Without groups and processes that the user's files define by now: the daemon must not start both.
    let (registry, _) = &without_defined(registry, configured);
    for name in registry.added_groups() {
        let own = own_programs(registry, name);
        let sections = names(&own);
        text.push('\n');
        text += &program::render_group(name, registry.priority(configured, name), &sections);
        text.extend(own.iter().map(|(_, _, program)| &**program));
    }
    for (real, mut members) in by_real_group(registry.members()) {
        members.retain(|member| !member.is_in_files());
        let group = members.first().map_or(real, |member| &member.group);
        let priority = registry.priority(configured, group);
        text += &render_real_group(real, &members, priority, proxy);
    }
    text
}

/// Renders what `events` append to the persist file of `registry`. Returns `None` unless they only add
/// processes in new real groups.
pub fn render_placed(
    registry: &Registry,
    events: &[Event],
    configured: &[ConfiguredGroup],
    proxy: Option<&str>,
) -> Option<String> {
    let members: Option<Vec<&Member>> = events
        .iter()
        .map(|event| match event {
            Event::Joined(member) if is_new(registry, member) => Some(&**member),
            _ => None,
        })
        .collect();
    let members = members?;
    // The priority of such a group is the files', which those who are in the persist file do not have yet.
    let is_in_files_too = |member: &&Member| {
        registry.added_group(&member.group).is_some()
            && configured.iter().any(|group| group.name == member.group)
    };
    if members.iter().any(is_in_files_too) {
        return None;
    }
    let mut text = String::new();
    for (real, mut members) in by_real_group(members.into_iter()) {
        members.retain(|member| !member.is_in_files() && !is_defined(registry, configured, member));
        let group = members.first().map_or(real, |member| &member.group);
        let priority = registry.priority(configured, group);
        text += &render_real_group(real, &members, priority, proxy);
    }
    Some(text)
}

/// Returns whether a member that is added lives in a new real group and does not replace a member.
fn is_new(registry: &Registry, member: &Member) -> bool {
    member.is_placed()
        && registry.members_in(&member.real).next().is_none()
        && registry.member(&member.group, &member.process).is_none()
}

/// Renders an added or real group whose processes do not start when it is added. Returns `None` if there is
/// nothing to render.
pub fn stopped_group(
    registry: &Registry,
    configured: &[ConfiguredGroup],
    real: &str,
    proxy: Option<&str>,
) -> Option<String> {
    let (group, programs) = match registry.owner(real) {
        Some(group) => {
            let members: Vec<&Member> = registry.members_in(real).collect();
            (group, placed_programs(real, &members, proxy))
        }
        None => {
            registry.added_group(real)?;
            (real, own_programs(registry, real))
        }
    };
    if programs.is_empty() && group != real {
        return None;
    }
    let priority = registry.priority(configured, group);
    let mut text = program::render_group(real, priority, &names(&programs));
    for (_, _, program) in &programs {
        // The daemon takes the last value of a repeated option.
        text += program;
        text += "autostart=false\n";
    }
    Some(text)
}

/// Returns the event that removes the member whose section the daemon's `complaint` names.
pub fn refused_member(registry: &Registry, complaint: &str) -> Option<Event> {
    let placed = by_real_group(registry.members());
    let placed = placed.iter();
    let mut sections = placed.flat_map(|(real, members)| {
        let sections = members.iter().copied();
        sections.map(|member| (section_name(real, members, member), member))
    });
    let own = registry.added_groups().flat_map(|name| {
        let own = registry.members_in(name);
        (0..).map(move |number| own_section(name, number)).zip(own)
    });
    let is_named = |(section, _): &(String, &Member)| names_section(complaint, section);
    let (_, member) = sections
        .find(is_named)
        .or_else(|| own.into_iter().find(is_named))?;
    Some(member.removal())
}

/// Placed members by real group, in the order of their index.
fn by_real_group<'r>(
    members: impl Iterator<Item = &'r Member>,
) -> BTreeMap<&'r str, Vec<&'r Member>> {
    let mut groups: BTreeMap<&str, Vec<&Member>> = BTreeMap::new();
    for member in members.filter(|member| member.is_placed()) {
        groups.entry(&member.real).or_default().push(member);
    }
    for members in groups.values_mut() {
        members.sort_by_key(|member| member.index);
    }
    groups
}

fn render_real_group(
    real: &str,
    members: &[&Member],
    priority: i64,
    proxy: Option<&str>,
) -> String {
    // For people, and for reading the file without a journal. The names cannot contain a line break.
    let comment = |member: &Member| format!("; {}:{}\n", member.group, member.process);
    let mut text = String::new();
    if let [member] = members
        && let Some(program) = &member.program
        && program.numprocs() == 1
    {
        let scope = Scope::One(member.index);
        let section = member.rendered.text(real, scope, proxy, || {
            program.render_with_proxy_url(real, scope, proxy)
        });
        let _ = write!(text, "\n{}", comment(member));
        if !program.is_whole_group(priority) {
            text += &program::render_group(real, priority, &[real]);
        }
        text += &section;
        return text;
    }
    let programs = placed_programs(real, members, proxy);
    if programs.is_empty() {
        return text;
    }
    text.push('\n');
    text += &program::render_group(real, priority, &names(&programs));
    for (member, _, program) in programs {
        text += &comment(member);
        text += &program;
    }
    text
}

/// The sections of the members of a real group. Members without a known definition are left out: the daemon
/// would refuse a group with a missing program.
fn placed_programs<'r>(real: &str, members: &[&'r Member], proxy: Option<&str>) -> Sections<'r> {
    let sections = members.iter().filter_map(|member| {
        let section = section_name(real, members, member);
        let text = member_program(member, &section, proxy)?;
        Some((*member, section, text))
    });
    sections.collect()
}

/// The section name of a member of a real group: the group's name if it is the only member.
fn section_name(real: &str, members: &[&Member], member: &Member) -> String {
    match members {
        [_] => real.to_owned(),
        _ => format!("{real}~{}", member.index),
    }
}

/// The sections of the members that live in their own group, which belong to one program. While all of them
/// are present they share one section, as when they were added, because the daemon compares sections.
fn own_programs<'r>(registry: &'r Registry, group: &str) -> Sections<'r> {
    let own: Vec<&Member> = registry.members_in(group).collect();
    if let Some(first) = own.first()
        && let Some(program) = &first.program
        && program.numprocs() as usize == own.len()
    {
        let section = own_section(group, 0);
        let render = || program.render(&section, Scope::All);
        let text = first.rendered.text(&section, Scope::All, None, render);
        return vec![(*first, section, text)];
    }
    let numbered = own.iter().enumerate().filter_map(|(number, member)| {
        let section = own_section(group, number);
        let text = member_program(member, &section, None)?;
        Some((*member, section, text))
    });
    numbered.collect()
}

fn own_section(group: &str, number: usize) -> String {
    format!("twiddler~{group}~{number}")
}

/// The section of one process. `None` if its definition is unknown.
fn member_program(member: &Member, section: &str, proxy: Option<&str>) -> Option<Arc<str>> {
    let Some(program) = &member.program else {
        let body = member.section.as_ref()?;
        return Some(format!("[program:{section}]\n{body}").into());
    };
    let scope = Scope::One(member.index);
    let render = || program.render_with_proxy_url(section, scope, proxy);
    Some(member.rendered.text(section, scope, proxy, render))
}

fn names<'s>(sections: &'s Sections<'_>) -> Vec<&'s str> {
    let names = sections.iter().map(|(_, section, _)| section.as_str());
    names.collect()
}

/// Returns whether two texts have the same groups, in any order.
pub fn is_same(one: &str, other: &str) -> bool {
    one == other || groups(one, |_| true) == groups(other, |_| true)
}

/// Returns whether two texts have the same groups apart from the proxy's URL: the proxy may listen
/// elsewhere than when one of them was written.
pub fn is_same_but_for_address(one: &str, other: &str) -> bool {
    let counts = |line: &str| !line.starts_with("serverurl=");
    groups(one, counts) == groups(other, counts)
}

/// The lines of each group for which `counts` returns true. An empty line separates groups. The header is
/// no group: other versions have other words there.
fn groups(text: &str, counts: impl Fn(&str) -> bool) -> Vec<Vec<&str>> {
    let lines: Vec<&str> = text.lines().filter(|line| counts(line)).collect();
    let groups = lines.split(|line| line.is_empty()).map(<[&str]>::to_vec);
    let is_header = |group: &[&str]| group.iter().all(|line| line.starts_with(';'));
    let mut groups: Vec<Vec<&str>> = groups.filter(|group| !is_header(group)).collect();
    groups.sort();
    groups
}

/// The contents of an earlier proxy's persist file, for use if its journal is lost.
#[derive(Debug, Default)]
pub struct Contents {
    /// The added groups, with their priorities.
    pub groups: BTreeMap<String, i64>,
    /// The bodies of programs' sections, by section name.
    sections: BTreeMap<String, String>,
    /// The names of the sections of placed processes, by group and process.
    placed: BTreeMap<(String, String), String>,
}

impl Contents {
    /// Parses the text of [`render`], or of version 0.1.0, which used one real group for each process.
    pub fn read(text: &str) -> Self {
        let mut contents = Contents::default();
        let mut section: Option<&str> = None;
        let mut group: Option<&str> = None;
        let mut process: Option<(&str, &str)> = None;
        for line in text.lines() {
            if line.starts_with('[') {
                section = header(line, "program");
                group = header(line, "group").filter(|name| group_of_real_name(name).is_none());
                if let Some(name) = group {
                    let priority = DEFAULT_PRIORITY;
                    contents.groups.entry(name.to_owned()).or_insert(priority);
                }
                if let Some(section) = section {
                    contents.sections.entry(section.to_owned()).or_default();
                    if let Some((group, process)) = process.take() {
                        let process = (group.to_owned(), process.to_owned());
                        contents.placed.insert(process, section.to_owned());
                    }
                }
            } else if let Some(comment) = line.strip_prefix("; ") {
                process = comment.split_once(':');
            } else if let Some(section) = section
                && let Some(body) = contents.sections.get_mut(section)
                && !line.is_empty()
            {
                body.push_str(line);
                body.push('\n');
            } else if let Some(priority) = line.strip_prefix("priority=")
                && let Some(value) = group.and_then(|group| contents.groups.get_mut(group))
            {
                *value = priority.parse().unwrap_or(*value);
            }
        }
        contents
    }

    /// The number of programs.
    pub fn programs(&self) -> usize {
        self.sections.len()
    }

    /// The body of `[program:SECTION]`. `None` if there is no such section.
    pub fn section(&self, section: &str) -> Option<String> {
        self.sections.get(section).cloned()
    }

    /// The body of the section of a process in a real group. `None` if there is none.
    pub fn placed_section(&self, real: &str, process: &str) -> Option<String> {
        let group = group_of_real_name(real)?;
        let section = self.placed.get(&(group.to_owned(), process.to_owned()))?;
        belongs(section, real).then(|| self.section(section))?
    }

    /// Whether the file has this real group.
    pub fn has_real_group(&self, real: &str) -> bool {
        self.placed.values().any(|section| belongs(section, real))
    }

    /// The body of the section of the process with this number in an added group.
    pub fn own_section(&self, group: &str, number: usize) -> Option<String> {
        self.section(&own_section(group, number))
    }
}

/// Returns whether the section belongs to a process in this real group.
fn belongs(section: &str, real: &str) -> bool {
    let rest = section.strip_prefix(real);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('~'))
}

/// The name in `[KIND:NAME]`.
fn header<'l>(line: &'l str, kind: &str) -> Option<&'l str> {
    line.strip_prefix('[')?
        .strip_prefix(kind)?
        .strip_prefix(':')?
        .strip_suffix(']')
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::program::{Name, Program};
    use crate::registry::Rendered;
    use crate::registry::tests::{added, hidden, left, registry};
    use crate::xmlrpc::Value;

    fn program(group: &str, name: &str, numprocs: i64) -> Program {
        let options = [
            ("command", Value::from("/bin/cat")),
            ("numprocs", Value::Int(numprocs)),
            ("process_name", "%(program_name)s_%(process_num)d".into()),
        ];
        let options = options.map(|(name, value)| (name.to_owned(), value));
        let group = Name::parse(group).unwrap();
        Program::parse(&group, name, &Value::Struct(options.into()), "").unwrap()
    }

    pub(in crate::persist) fn members(
        group: &str,
        name: &str,
        numprocs: u32,
        real: &str,
    ) -> Vec<Event> {
        let program = program(group, name, numprocs.into());
        let member = |index| {
            Event::Joined(Arc::new(Member {
                group: group.to_owned(),
                process: format!("{name}_{index}"),
                real: real.to_owned(),
                index,
                program: Some(program.clone()),
                section: None,
                rendered: Rendered::default(),
            }))
        };
        (0..numprocs).map(member).collect()
    }

    fn sections(text: &str) -> Vec<&str> {
        let contents = |line: &&str| line.starts_with('[') || line.starts_with("programs=");
        text.lines().filter(contents).collect()
    }

    #[test]
    fn each_visible_process_has_a_section_of_its_own() {
        let mut known = registry(&members("web", "w", 3, "web~000007"));
        let text = render(&known, &[], None);
        assert_eq!(
            sections(&text),
            [
                "[group:web~000007]",
                "programs=web~000007~0,web~000007~1,web~000007~2",
                "[program:web~000007~0]",
                "[program:web~000007~1]",
                "[program:web~000007~2]",
            ]
        );
        known.apply(hidden("web~000007", "w_1"));
        let less = render(&known, &[], None);
        assert_eq!(sections(&less)[1], "programs=web~000007~0,web~000007~2");
        assert!(less.contains("numprocs_start=2") && !less.contains("numprocs_start=1\n"));
        known.apply(hidden("web~000007", "w_0"));
        let one = render(&known, &[], None);
        assert_eq!(
            sections(&one),
            [
                "[group:web~000007]",
                "programs=web~000007",
                "[program:web~000007]"
            ]
        );
        known.apply(left("web", "w_2"));
        assert_eq!(render(&known, &[], None), HEADER);
    }

    #[test]
    fn processes_in_new_real_groups_are_appended() {
        let known = registry(&members("web", "w", 2, "web~000007"));
        let both = [
            members("web", "one", 1, "web~000008"),
            members("app", "two", 3, "app~000009"),
        ];
        let group = Event::Group {
            name: "own".to_owned(),
            priority: 5,
        };
        let table: [(&str, Vec<Event>, bool); 8] = [
            ("nothing", Vec::new(), true),
            ("one", both[0].clone(), true),
            ("two programs", both.concat(), true),
            ("a group", vec![group], false),
            (
                "in a group's own name",
                members("own", "one", 1, "own"),
                false,
            ),
            (
                "in a real group that is there",
                members("web", "v", 1, "web~000007"),
                false,
            ),
            (
                "in another's place",
                members("web", "w", 2, "web~000010"),
                false,
            ),
            ("one leaves", vec![left("web", "w_0")], false),
        ];
        for (case, events, is_at_end) in table {
            let mut after = known.clone();
            events.iter().for_each(|event| after.apply(event.clone()));
            let added = render_placed(&known, &events, &[], Some("http://there"));
            assert_eq!(added.is_some(), is_at_end, "{case}");
            if let Some(added) = added {
                let grown = render(&known, &[], Some("http://there")) + &added;
                let text = render(&after, &[], Some("http://there"));
                assert!(is_same(&grown, &text), "{case}: {grown}\n{text}");
            }
        }
    }

    #[test]
    fn processes_that_the_files_define_are_not_appended() {
        let configured = [ConfiguredGroup {
            name: "web".to_owned(),
            priority: 3,
            empty: false,
            processes: vec!["one_0".to_owned()],
        }];
        let events = members("web", "one", 2, "web~000008");
        let mut known = Registry::default();
        let written = |known: &Registry| render_placed(known, &events, &configured, None).unwrap();
        assert!(!written(&known).contains("; web:one_0"));
        assert!(written(&known).contains("; web:one_1") && written(&known).contains("priority=3"));
        // The process of the files was removed before.
        known.apply(hidden("web", "one_0"));
        assert!(written(&known).contains("; web:one_0"));
        // The group was added, and has another priority in the file.
        known.apply(added("web"));
        assert_eq!(render_placed(&known, &events, &configured, None), None);
    }

    #[test]
    fn the_order_of_groups_does_not_matter() {
        let table = [
            ("a\n\nb\nc\n", "a\n\nb\nc\n", true, true),
            ("a\n\nb\nc\n", "b\nc\n\n\n\na\n", true, true),
            ("a\n\nb\nc\n", "a\n\nc\nb\n", false, false),
            ("a\n\nb\n", "a\n", false, false),
            ("a\n\nb\n\nb\n", "a\n\nb\n", false, false),
            ("a\nserverurl=x\n", "a\nserverurl=y\n", false, true),
            ("; old\n\n; web:a\na\n", "; new\n\n; web:a\na\n", true, true),
            (
                "; old\n\n; web:a\na\n",
                "; old\n\n; web:b\na\n",
                false,
                false,
            ),
        ];
        for (one, other, same, but_for_address) in table {
            assert_eq!(is_same(one, other), same, "{one} {other}");
            assert_eq!(
                is_same_but_for_address(one, other),
                but_for_address,
                "{one} {other}"
            );
        }
    }

    #[test]
    fn sections_are_found_without_a_journal() {
        let mut known = registry(&members("web", "w", 3, "web~000007"));
        for event in members("web", "one", 1, "web~000008") {
            known.apply(event);
        }
        known.apply(hidden("web~000007", "w_1"));
        let contents = Contents::read(&render(&known, &[], None));
        let table = [
            ("web~000007", "w_0", Some("numprocs_start=0")),
            ("web~000007", "w_1", None),
            ("web~000007", "w_2", Some("numprocs_start=2")),
            ("web~000008", "one_0", Some("process_name=one_")),
            ("web~000008", "w_0", None),
            ("web~000009", "one_0", None),
        ];
        for (real, process, expected) in table {
            let section = contents.placed_section(real, process);
            match expected {
                Some(line) => assert!(section.unwrap().contains(line), "{real}:{process}"),
                None => assert_eq!(section, None, "{real}:{process}"),
            }
        }
        assert!(contents.has_real_group("web~000008") && !contents.has_real_group("web~000009"));
    }

    #[test]
    fn a_persist_file_of_version_0_1_0_is_read() {
        let contents = Contents::read(include_str!("../../tests/it/fixtures/0.1.0/persist.conf"));
        let groups: Vec<(&str, i64)> = contents
            .groups
            .iter()
            .map(|(name, priority)| (name.as_str(), *priority))
            .collect();
        assert_eq!(groups, [("nothing", 6), ("own", 5)]);
        assert!(
            contents
                .section("twiddler~own~0")
                .unwrap()
                .contains("first")
        );
        let table = [
            ("dynamic_procs~000008", "ls_2", true),
            ("own~000004", "more_2", true),
            ("own~000003", "more_1", false),
            ("web~000005", "joined", true),
        ];
        for (real, process, expected) in table {
            let section = contents.placed_section(real, process);
            assert_eq!(section.is_some(), expected, "{real}:{process}");
        }
    }

    #[test]
    fn a_complaint_about_a_section_names_its_member() {
        let events = [
            members("web", "w", 2, "web~000007"),
            members("web", "one", 1, "web~000070"),
        ];
        let known = registry(&events.concat());
        let table = [
            ("program:web~000007~1", Some("w_1")),
            ("program:web~000007~0", Some("w_0")),
            ("program:web~000070", Some("one_0")),
            ("program:web", None),
        ];
        for (section, process) in table {
            let complaint = format!("bad user in section '{section}' (file: 'x')");
            let refused = refused_member(&known, &complaint);
            assert_eq!(refused, process.map(|name| left("web", name)), "{section}");
        }
    }

    #[test]
    fn a_stopped_group_has_only_its_members() {
        let mut known = registry(&members("web", "w", 3, "web~000007"));
        known.apply(hidden("web~000007", "w_1"));
        let text = stopped_group(&known, &[], "web~000007", None).unwrap();
        assert_eq!(text.matches("autostart=false").count(), 2);
        let uncovered = Event::Shown {
            group: "web~000007".to_owned(),
            process: "w_1".to_owned(),
        };
        assert_eq!(known.losses_if_recreated("web~000007"), [uncovered]);
        assert_eq!(stopped_group(&known, &[], "web~000009", None), None);
    }
}
