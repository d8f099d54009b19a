//! Added groups and processes that the user's files define by now. Only the definition of the files counts
//! for them.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Event, Member, Registry};
use crate::daemon::conf::ConfiguredGroup;

/// Returns the registry without the groups and processes that the files define by now, and their names.
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
            events.extend(defined.into_iter().map(Member::removal));
        }
    }
    let mut defined_removed = Cow::Borrowed(registry);
    for event in events {
        defined_removed.to_mut().apply(event);
    }
    (defined_removed, names)
}

/// Returns whether the files define a process of this name by now. A member that was added after the
/// process of the files was removed does not count.
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
