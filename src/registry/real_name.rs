//! The names of real groups: `web~000001` holds processes that clients see in `web`.

/// The limit for the numbers of real groups. The proxy does not generate larger ones.
pub const MAX_NUMBER: u64 = 1_000_000_000_000;

/// The minimum number of digits in a real group's name. Padded, because the daemon sorts its groups by
/// name, which is cheaper if they are in order already.
const NUMBER_WIDTH: usize = 6;

/// Returns the name of the real group of `group` with this number.
pub fn real_name(group: &str, number: u64) -> String {
    format!("{group}~{number:0width$}", width = NUMBER_WIDTH)
}

/// Returns the group, as clients know it, from a real group's name. `None` for any other name.
pub fn group_of_real_name(real: &str) -> Option<&str> {
    split_real_name(real).map(|(group, _)| group)
}

/// Returns the number from a real group's name. `None` for any other name.
pub fn number_of_real_name(real: &str) -> Option<u64> {
    let number = split_real_name(real)?.1.parse().ok()?;
    (number < MAX_NUMBER).then_some(number)
}

fn split_real_name(real: &str) -> Option<(&str, &str)> {
    let (group, number) = real.rsplit_once('~')?;
    let is_number =
        number.len() >= NUMBER_WIDTH && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !group.is_empty()).then_some((group, number))
}

/// Returns whether `name` is the name of an epoch marker, of any proxy.
pub fn is_marker(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
    let rest = name.strip_prefix("twiddler~").unwrap_or_default();
    rest.split_once('-')
        .is_some_and(|(pid, time)| number(pid) && number(time))
}

/// Returns whether `real` is a name that only twiddler generates: that of a real group, or one with the
/// prefix `twiddler~`.
pub fn is_generated(real: &str) -> bool {
    number_of_real_name(real).is_some() || real.starts_with("twiddler~")
}
