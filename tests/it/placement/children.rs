//! Placed processes that call supervisord.

use super::{ADD, USER, front, program, real_name};
use crate::common::ctl::python;
use crate::common::daemon::free_port;
use crate::common::{
    Client, Daemon, LIMIT, Row, Sidecar, SidecarOptions, Version, eventually, items, member, rows,
    text, venv,
};
use anyhow::{Result, ensure};

/// Says where it was told to call, and the group that it finds itself in there.
const ASKS_ABOUT_ITSELF: &str = "\
import os, time
from supervisor import childutils
told = os.environ
name = told['SUPERVISOR_GROUP_NAME'] + ':' + told['SUPERVISOR_PROCESS_NAME']
try:
    info = childutils.getRPCInterface(told).supervisor.getProcessInfo(name)
    found = info['group'] + ':' + info['name'] + ' ' + info['statename']
except Exception as error:
    found = repr(error)
print(told['SUPERVISOR_SERVER_URL'] + ' ' + found, flush=True)
time.sleep(600)
";

/// Runs [`ASKS_ABOUT_ITSELF`] as a placed process, and waits for what it says.
fn asked_by_child(
    daemon: &Daemon,
    client: &Client,
    name: &str,
    more: &[(&str, &str)],
) -> Result<String> {
    daemon.write("asks.py", ASKS_ABOUT_ITSELF)?;
    let command = format!("{} %(here)s/asks.py", python().display());
    let given = [&[("command", command.as_str())], more].concat();
    client.call(ADD, ("web", name, program(&given)))?;
    real_name(daemon, "web", name)?;
    let namespec = format!("web:{name}");
    client.call("supervisor.startProcess", (&namespec,))?;
    eventually(LIMIT, || {
        let said = client.call("supervisor.readProcessStdoutLog", (&namespec, 0, 1000))?;
        let said = text(&said)?;
        ensure!(said.ends_with('\n'), "it says {said:?} so far");
        Ok(said.trim_end().to_owned())
    })
}

fn serverurls(client: &Client) -> Result<Vec<(String, String)>> {
    let configs = client.call("supervisor.getAllConfigInfo", ())?;
    let row = |config| {
        let name = text(member(config, "name")?)?.to_owned();
        Ok((name, text(member(config, "serverurl")?)?.to_owned()))
    };
    items(&configs)?.iter().map(row).collect()
}

#[test]
fn a_placed_child_finds_itself_where_it_is_told_to_call() -> Result<()> {
    let daemon = Daemon::start("[program:web]\ncommand = /bin/cat\nstartsecs = 0\n")?;
    let both = Sidecar::start(&daemon)?;
    let client = both.client();
    let socket = format!("unix://{}", both.socket().display());
    for (name, serverurl) in [("a", None), ("b", Some(" auto "))] {
        let more: Vec<_> = serverurl
            .map(|text| ("serverurl", text))
            .into_iter()
            .collect();
        let said = asked_by_child(&daemon, &client, name, &more)?;
        ensure!(said == format!("{socket} web:{name} RUNNING"), "{said}");
    }
    both.stop()?;
    let options = SidecarOptions {
        arguments: &["--listen", "127.0.0.1:0"],
        own_listeners: Some(1),
        ..SidecarOptions::default()
    };
    let port = Sidecar::start_options(&daemon, options)?;
    let client = port.client();
    let said = asked_by_child(&daemon, &client, "c", &[])?;
    let url = format!("http://{}", port.tcp_addr());
    ensure!(said == format!("{url} web:c RUNNING"), "{said}");
    let shown = serverurls(&client)?;
    ensure!(
        shown.len() == 4 && shown.iter().all(|(_, url)| url == "none"),
        "{shown:?}"
    );
    Ok(())
}

#[test]
fn a_placed_child_calls_where_its_options_say() -> Result<()> {
    let (daemon, _sidecar, client) = front("[program:web]\ncommand = /bin/cat\n")?;
    let own = format!("unix://{}", daemon.socket().display());
    let said = asked_by_child(&daemon, &client, "option", &[("serverurl", &own)])?;
    ensure!(said.starts_with(&format!("{own} ")), "{said}");
    let variable = format!("SUPERVISOR_SERVER_URL=\"{own}\"");
    let said = asked_by_child(&daemon, &client, "variable", &[("environment", &variable)])?;
    ensure!(said.starts_with(&format!("{own} ")), "{said}");
    let shown = serverurls(&client)?;
    let expected = [
        ("option", own.as_str()),
        ("variable", "none"),
        ("web", "none"),
    ];
    let expected = expected.map(|(name, url)| (name.to_owned(), url.to_owned()));
    ensure!(shown == expected, "{shown:?}");
    Ok(())
}

/// A program that does not live in a real group of the proxy's, and looks for one that does.
#[test]
fn superlances_httpok_restarts_placed_processes() -> Result<()> {
    let (daemon, sidecar, client) = front(USER)?;
    let nobody = free_port()?;
    let python = venv(Version::Superlance).python();
    let urls = [
        format!("http://{}", sidecar.tcp_addr()),
        format!("unix://{}", sidecar.socket().display()),
    ];
    let watched = ["p0", "p1"];
    let mut listeners = String::new();
    for (name, url) in watched.into_iter().zip(urls) {
        client.call(ADD, ("web", name, program(&[("autostart", "true")])))?;
        real_name(&daemon, "web", name)?;
        listeners += &format!(
            "[eventlistener:httpok-{name}]\nevents = TICK_5\n\
             command = {} -m superlance.httpok -t 1 -p web:{name} http://{nobody}/\n\
             environment = SUPERVISOR_SERVER_URL=\"{url}\"\n",
            python.display()
        );
    }
    let before = rows(&client)?;
    daemon.write("conf.d/listeners.conf", &listeners)?;
    client.call("supervisor.reloadConfig", ())?;
    for name in watched {
        client.call("supervisor.addProcessGroup", (format!("httpok-{name}"),))?;
    }
    eventually(LIMIT, || {
        for old in &before {
            let info = client.call("supervisor.getProcessInfo", (old.namespec(),))?;
            let new = Row::read(&info)?;
            let is_watched = watched.contains(&old.name.as_str());
            ensure!(new.state == old.state, "{new:?}");
            ensure!((new.pid != old.pid) == is_watched, "{old:?}\n{new:?}");
        }
        Ok(())
    })
}
