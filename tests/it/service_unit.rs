//! The systemd unit: its steps lead from Debian's supervisor to a proxy that a group may call, and systemd
//! accepts its lines.
//!
//! The test runs the steps of the file unchanged, in a separate file system. Without systemd as the first
//! process, it leaves out `systemctl` and starts the proxy as the unit's account.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::common::provision::{Version, venv};
use crate::common::{run, stderr_text, stdout_text};
use anyhow::{Context, Result, ensure};

/// Prepares a machine with Debian's supervisor and an account that is to call the proxy. `$1` is the directory
/// for it, `$2` the fixture's Python.
const MACHINE: &str = r#"
set -eux
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/etc"
cp -a /etc/. "$1/etc"
mount --bind "$1/etc" /etc
for dir in /run /var/log /usr/local/bin /mnt; do mount -t tmpfs -o mode=755 tmpfs "$dir"; done
mount --bind "$2" /mnt
mkdir -p /etc/supervisor/conf.d /var/log/supervisor /etc/systemd/system
cat > /etc/supervisor/supervisord.conf <<CONF
[unix_http_server]
file=/run/supervisor.sock
chmod=0700
[supervisord]
logfile=/var/log/supervisor/supervisord.log
pidfile=/run/supervisord.pid
childlogdir=/var/log/supervisor
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix:///run/supervisor.sock
[include]
files=/etc/supervisor/conf.d/*.conf
[program:web]
command=/bin/sleep 600
startsecs=0
CONF
printf '#!/bin/sh\nexec /mnt/bin/python -m supervisor.supervisorctl "$@"\n' > /usr/local/bin/supervisorctl
chmod 755 /usr/local/bin/supervisorctl
useradd --no-create-home joe
# The fixture's Python may stand where joe has no business: he may read it, but open no socket more.
joe() {
    setpriv --reuid joe --regid joe --init-groups --inh-caps=+dac_read_search \
        --ambient-caps=+dac_read_search "$@"
}
within() {
    for try in $(seq 200); do "$@" > /dev/null 2>&1 && return; sleep 0.1; done
    echo "not within 20 s: $*"
    cat /run/*.log
    exit 1
}
supervisor() {
    /mnt/bin/python -m supervisor.supervisord -n -c /etc/supervisor/supervisord.conf > /run/supervisord.log 2>&1 &
    within supervisorctl -s unix:///run/supervisor.sock pid
}
supervisor
before=$(supervisorctl pid web)
"#;

/// Runs before the last line of step 7, and does the work of systemd.
const START: &str = r#"
if ! command -v systemd-analyze; then
    echo "left out: whether systemd understands the unit needs systemd-analyze"
elif systemd-analyze verify /etc/systemd/system/twiddler.service 2>&1 | grep twiddler.service; then
    exit 1
fi
setpriv --reuid twiddler --regid twiddler --init-groups --bounding-set=-all --inh-caps=-all \
    --no-new-privs $start > /run/twiddler.log 2>&1 &
MAINPID=$!
within grep "in front of supervisord" /run/twiddler.log
"#;

const AFTERWARDS: &str = r#"
[ "$(supervisorctl pid web)" = "$before" ]
printf 'log_level = debug\n' >> /etc/supervisor/supervisord.conf
export MAINPID
sh -c "$reload"
within grep "log_level" /run/twiddler.log
as_joe="joe twiddler -s unix:///run/twiddler/twiddler.sock"
$as_joe add dyn:a --create-group -- sleep 600
$as_joe call twiddler.log '"said through the proxy"'
within grep "said through the proxy" /var/log/supervisor/supervisord.log
kill "$(cat /run/supervisord.pid)"
while [ -e /run/supervisord.pid ]; do sleep 0.1; done
supervisor
within joe supervisorctl -s unix:///run/twiddler/twiddler.sock pid
$as_joe add dyn:a --create-group -- sleep 600
kill "$MAINPID"
wait "$MAINPID"
echo "all of it works"
"#;

fn unit() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/twiddler.service");
    Ok(fs::read_to_string(path)?)
}

fn setting<'a>(unit: &'a str, key: &str) -> Result<&'a str> {
    let beginning = format!("{key}=");
    let mut values = unit
        .lines()
        .filter_map(|line| line.strip_prefix(&beginning));
    values.next().with_context(|| format!("no {key}"))
}

/// The steps in the comment of the unit, as lines of a shell.
fn steps(unit: &str) -> Result<String> {
    let (header, _) = unit.split_once("\n[Unit]").context("no [Unit]")?;
    let mut script = String::new();
    let mut count = 0;
    for line in header.lines().filter_map(|line| line.strip_prefix("#   ")) {
        let is_prose = ["and ", "with ", " "]
            .iter()
            .any(|word| line.starts_with(word));
        let is_setting = |line: &str| {
            line.split_once('=')
                .is_some_and(|(key, _)| !key.trim_end().contains([' ', '/']))
        };
        if is_prose || line.starts_with("cargo build") {
            continue;
        }
        script += &match line {
            // The last line of a key in a section counts.
            _ if line.starts_with('[') || is_setting(line) => {
                format!("echo '{line}' >> /etc/supervisor/supervisord.conf\n")
            }
            _ if line.starts_with("systemctl ") => START.to_owned(),
            _ if line.starts_with("supervisorctl ") => {
                format!("joe {line} | grep 'web .*RUNNING'\n")
            }
            _ => {
                let binary = env!("CARGO_BIN_EXE_twiddler");
                format!("{}\n", line.replace("target/release/twiddler", binary))
            }
        };
        count += 1;
    }
    ensure!(count >= 16, "only {count} lines of the steps were found");
    Ok(script)
}

#[test]
fn its_steps_lead_to_a_proxy_that_its_group_may_call() -> Result<()> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        ensure!(std::env::var_os("TEST_ALL").is_none(), "needs root");
        eprintln!("left out: only root can make accounts and mount");
        return Ok(());
    }
    let unit = unit()?;
    let script = format!("{MACHINE}{}{AFTERWARDS}", steps(&unit)?);
    let scratch = tempfile::tempdir()?;
    let python = venv(Version::V4_3_0).python();
    let environment = python.ancestors().nth(2).context("no environment")?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["bash", "-c", &script, "bash"])
        .arg(scratch.path())
        .arg(environment)
        .env("start", setting(&unit, "ExecStart")?)
        .env("reload", setting(&unit, "ExecReload")?)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let ended = run(&mut command)?;
    let text = format!("{}{}", stdout_text(&ended), stderr_text(&ended));
    let works = ended.status.success() && text.contains("all of it works");
    ensure!(works, "{}: {text}", ended.status);
    Ok(())
}
