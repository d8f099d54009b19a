//! The names of real groups: `web~000001` holds processes that clients see in `web`.

/// No number of a real group is larger: more are never used, and larger ones are not ours.
pub const MAX_NUMBER: u64 = 1_000_000_000_000;

/// Digits in the number of a real group: padded, because the daemon sorts its groups by name more
/// cheaply when they are in order already.
const NUMBER_WIDTH: usize = 6;

/// The name of a real group that holds processes of `group`.
pub fn real_name(group: &str, number: u64) -> String {
    format!("{group}~{number:0width$}", width = NUMBER_WIDTH)
}

/// The group that a real group's name speaks of.
pub fn group_of_real_name(real: &str) -> Option<&str> {
    split_real_name(real).map(|(group, _)| group)
}

/// The number in a real group's name.
pub fn number_of_real_name(real: &str) -> Option<u64> {
    let number = split_real_name(real)?.1.parse().ok()?;
    (number < MAX_NUMBER).then_some(number)
}

fn split_real_name(real: &str) -> Option<(&str, &str)> {
    let (group, number) = real.rsplit_once('~')?;
    let numbered = number.len() >= NUMBER_WIDTH && number.bytes().all(|byte| byte.is_ascii_digit());
    (numbered && !group.is_empty()).then_some((group, number))
}

/// Whether a group bears a name that marks an epoch.
pub fn is_marker(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
    let rest = name.strip_prefix("twiddler~").unwrap_or_default();
    rest.split_once('-')
        .is_some_and(|(pid, time)| number(pid) && number(time))
}

/// Whether a group bears a name that only we give.
pub fn is_generated(real: &str) -> bool {
    number_of_real_name(real).is_some() || real.starts_with("twiddler~")
}
