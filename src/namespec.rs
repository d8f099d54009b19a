//! Names of processes as supervisord and its clients write them: `group:process`.

/// Splits a name into group and process. No process means the whole group (`supervisor/options.py`,
/// `split_namespec`).
pub fn split_namespec(namespec: &str) -> (&str, Option<&str>) {
    match namespec.split_once(':') {
        Some((group, "" | "*")) => (group, None),
        Some((group, process)) => (group, Some(process)),
        None => (namespec, Some(namespec)),
    }
}

/// The name of a process: `process` where the group has the same name, `group:process` otherwise
/// (`supervisor/options.py`, `make_namespec`).
pub fn namespec(group: &str, process: &str) -> String {
    if group == process {
        process.to_owned()
    } else {
        format!("{group}:{process}")
    }
}
