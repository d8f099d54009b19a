//! What was added, and the files define by now: of that there is one, and it is theirs.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Event, Member, Registry};
use crate::daemon::conf::ConfiguredGroup;

/// What was added, without what the files define by now. With the names of what is left out.
pub fn without_defined<'r>(
    registry: &'r Registry,
    configured: &[ConfiguredGroup],
) -> (Cow<'r, Registry>, Vec<String>) {
    let mut events = Vec::new();
    let mut names = Vec::new();
    for group in configured {
        let name = &group.name;
        let is_added = registry.added_group(name).is_some();
        let (defined, others): (Vec<&Member>, Vec<&Member>) = registry
            .members_of(name)
            .partition(|member| is_defined_in(group, registry, member));
        let namespecs = defined.iter().map(|member| &member.process);
        names.extend(namespecs.map(|process| format!("{name}:{process}")));
        if is_added {
            names.push(name.clone());
            events.push(Event::GroupGone { name: name.clone() });
            let others = others.into_iter().filter(|member| member.is_placed());
            events.extend(others.map(|member| Event::Joined(Arc::new(member.clone()))));
        } else {
            events.extend(defined.into_iter().map(Member::leaving));
        }
    }
    let mut without = Cow::Borrowed(registry);
    for event in events {
        without.to_mut().apply(event);
    }
    (without, names)
}

/// Whether the files define a process of this name by now. One that was added in place of the files' own,
/// which was taken out, is not theirs.
pub fn is_defined(registry: &Registry, configured: &[ConfiguredGroup], member: &Member) -> bool {
    let mut groups = configured.iter();
    groups.any(|group| group.name == member.group && is_defined_in(group, registry, member))
}

fn is_defined_in(group: &ConfiguredGroup, registry: &Registry, member: &Member) -> bool {
    group.processes.contains(&member.process)
        && registry
            .hidden_start(&group.name, &member.process)
            .is_none()
}
