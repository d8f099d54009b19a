//! Placed processes that call supervisord.

use super::{ADD, USER, front, program, real_name};
use crate::common::ctl::python;
use crate::common::daemon::free_port;
use crate::common::{
    Client, Daemon, LIMIT, Row, Sidecar, SidecarOptions, Version, eventually, items, member, rows,
    text, venv,
};
use anyhow::{Result, ensure};

/// A script that prints its server URL, and its own group and state according to that server.
const QUERIES_ITSELF: &str = "\
import os, time
from supervisor import childutils
env = os.environ
name = env['SUPERVISOR_GROUP_NAME'] + ':' + env['SUPERVISOR_PROCESS_NAME']
try:
    info = childutils.getRPCInterface(env).supervisor.getProcessInfo(name)
    result = info['group'] + ':' + info['name'] + ' ' + info['statename']
except Exception as error:
    result = repr(error)
print(env['SUPERVISOR_SERVER_URL'] + ' ' + result, flush=True)
time.sleep(600)
";

/// Runs [`QUERIES_ITSELF`] as a placed process, and waits for its output.
fn output_of_child(
    daemon: &Daemon,
    client: &Client,
    name: &str,
    more: &[(&str, &str)],
) -> Result<String> {
    daemon.write("asks.py", QUERIES_ITSELF)?;
    let command = format!("{} %(here)s/asks.py", python().display());
    let given = [&[("command", command.as_str())], more].concat();
    client.call(ADD, ("web", name, program(&given)))?;
    real_name(daemon, "web", name)?;
    let namespec = format!("web:{name}");
    client.call("supervisor.startProcess", (&namespec,))?;
    eventually(LIMIT, || {
        let output = client.call("supervisor.readProcessStdoutLog", (&namespec, 0, 1000))?;
        let output = text(&output)?;
        ensure!(output.ends_with('\n'), "{output:?} so far");
        Ok(output.trim_end().to_owned())
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
fn a_placed_child_finds_itself_through_its_server_url() -> Result<()> {
    let daemon = Daemon::start("[program:web]\ncommand = /bin/cat\nstartsecs = 0\n")?;
    let both = Sidecar::start(&daemon)?;
    let client = both.client();
    let socket = format!("unix://{}", both.socket().display());
    for (name, serverurl) in [("a", None), ("b", Some(" auto "))] {
        let more: Vec<_> = serverurl
            .map(|text| ("serverurl", text))
            .into_iter()
            .collect();
        let output = output_of_child(&daemon, &client, name, &more)?;
        ensure!(output == format!("{socket} web:{name} RUNNING"), "{output}");
    }
    both.stop()?;
    let options = SidecarOptions {
        arguments: &["--listen", "127.0.0.1:0"],
        own_listeners: Some(1),
        ..SidecarOptions::default()
    };
    let port = Sidecar::start_options(&daemon, options)?;
    let client = port.client();
    let output = output_of_child(&daemon, &client, "c", &[])?;
    let url = format!("http://{}", port.tcp_addr());
    ensure!(output == format!("{url} web:c RUNNING"), "{output}");
    let urls_of_processes = serverurls(&client)?;
    ensure!(
        urls_of_processes.len() == 4 && urls_of_processes.iter().all(|(_, url)| url == "none"),
        "{urls_of_processes:?}"
    );
    Ok(())
}

#[test]
fn a_placed_child_calls_the_server_of_its_options() -> Result<()> {
    let (daemon, _sidecar, client) = front("[program:web]\ncommand = /bin/cat\n")?;
    let own = format!("unix://{}", daemon.socket().display());
    let output = output_of_child(&daemon, &client, "option", &[("serverurl", &own)])?;
    ensure!(output.starts_with(&format!("{own} ")), "{output}");
    let variable = format!("SUPERVISOR_SERVER_URL=\"{own}\"");
    let output = output_of_child(&daemon, &client, "variable", &[("environment", &variable)])?;
    ensure!(output.starts_with(&format!("{own} ")), "{output}");
    let urls_of_processes = serverurls(&client)?;
    let expected = [
        ("option", own.as_str()),
        ("variable", "none"),
        ("web", "none"),
    ];
    let expected = expected.map(|(name, url)| (name.to_owned(), url.to_owned()));
    ensure!(urls_of_processes == expected, "{urls_of_processes:?}");
    Ok(())
}

/// superlance's `httpok`, which the daemon's file defines, watches a placed process.
#[test]
fn superlances_httpok_restarts_placed_processes() -> Result<()> {
    let (daemon, sidecar, client) = front(USER)?;
    let unused_port = free_port()?;
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
             command = {} -m superlance.httpok -t 1 -p web:{name} http://{unused_port}/\n\
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
