//! The web interface in a browser.

use std::path::Path;

use crate::common::pages::wait_for_state;
use crate::common::site::Site;
use crate::common::tools::{self, CHROMIUM};
use crate::common::{Browser, Daemon, LIMIT, Sidecar, eventually, options};
use anyhow::{Context, Result, ensure};

const NAMES: &str = "//tbody/tr/td[3]/a";

/// The XPath of a cell (`td[1]`) or a link in the row of a process.
fn in_row(name: &str, what: &str) -> String {
    format!("//tr[td[3]/a[text()='{name}']]{what}")
}

fn action(name: &str, label: &str) -> String {
    in_row(name, &format!("//a[text()='{label}']"))
}

fn wait_for_text(browser: &Browser, xpath: &str, expected: &str) -> Result<()> {
    eventually(LIMIT, || {
        let text = browser.text_of(xpath)?;
        ensure!(text.contains(expected), "no {expected:?} in {text:?}");
        Ok(())
    })
}

fn wait_for_names(browser: &Browser, expected: &[&str]) -> Result<()> {
    eventually(LIMIT, || {
        let names = browser.texts_of(NAMES)?;
        ensure!(names == expected, "{names:?}, not {expected:?}");
        Ok(())
    })
}

/// Clicks on an action of a process, and waits for the message and the state on the page.
fn act(browser: &Browser, name: &str, label: &str, message: &str, state: &str) -> Result<()> {
    browser.click(&action(name, label))?;
    wait_for_text(browser, "//div[@class='status_msg']", message)?;
    wait_for_text(browser, &in_row(name, "/td[1]"), state)
}

/// Lines that fill the buffer of a browser, which shows plain text only when it has enough to detect the type.
fn first_lines() -> String {
    "first line\n".repeat(200)
}

#[test]
fn a_process_that_joined_a_running_group_is_stopped_and_started_by_clicks() -> Result<()> {
    if !tools::have(&[CHROMIUM])? {
        return Ok(());
    }
    let daemon = Daemon::start(
        "[group:web]\nprograms = able,gone\n[program:able]\ncommand = /bin/cat\n\
         [program:gone]\ncommand = /bin/cat\nautostart = false\n",
    )?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    daemon.wait_for_state("web:able", "RUNNING")?;
    let program = options(&[("command", "/bin/cat")]);
    client.call("twiddler.addProgramToGroup", ("web", "cat", program))?;
    client.call("twiddler.removeProcessFromGroup", ("web", "gone"))?;
    wait_for_state(&client, "web:cat", "RUNNING")?;
    client.call(
        "supervisor.sendProcessStdin",
        ("web:cat", first_lines().as_str()),
    )?;

    let browser = Browser::start()?;
    browser.open(&format!("http://{}/", sidecar.tcp_addr()))?;
    wait_for_names(&browser, &["web:able", "web:cat"])?;
    ensure!(browser.title()? == "Supervisor Status");
    act(
        &browser,
        "web:cat",
        "Stop",
        "Process web:cat stopped",
        "stopped",
    )?;
    ensure!(
        browser
            .url()?
            .ends_with("/?message=Process%20web%3Acat%20stopped")
    );
    wait_for_state(&client, "web:cat", "STOPPED")?;
    act(
        &browser,
        "web:cat",
        "Start",
        "Process web:cat started",
        "running",
    )?;
    wait_for_state(&client, "web:cat", "RUNNING")?;
    wait_for_names(&browser, &["web:able", "web:cat"])?;
    ensure!(!browser.text()?.contains('~'), "a real name");
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR"));
    browser.screenshot(&pictures.join("status-page.png"))?;

    browser.click_to_window(&in_row("web:cat", "/td[3]/a"))?;
    wait_for_text(&browser, "//pre", "first line")?;
    ensure!(browser.title()? == "Supervisor tail of process web:cat");
    client.call("supervisor.sendProcessStdin", ("web:cat", "second line\n"))?;
    eventually(LIMIT, || {
        browser.click("//a[contains(@href, 'tail.html')]")?;
        let text = browser.text_of("//pre")?;
        ensure!(text.contains("second line"), "{text}");
        Ok(())
    })?;
    browser.close_window()?;

    browser.click_to_window(&action("web:cat", "Tail -f Stdout"))?;
    wait_for_text(&browser, "//body", "second line")?;
    client.call("supervisor.sendProcessStdin", ("web:cat", "third line\n"))?;
    wait_for_text(&browser, "//body", "third line")?;
    browser.screenshot(&pictures.join("log-page.png"))?;
    browser.close_window()?;

    browser.click("//a[text()='Restart All']")?;
    wait_for_text(&browser, "//div[@class='status_msg']", "All restarted at ")?;
    wait_for_names(&browser, &["web:able", "web:cat"])?;
    let removed_state = daemon.state("web:gone").context("what the daemon holds")?;
    ensure!(
        removed_state == "STOPPED",
        "a removed process is {removed_state}"
    );
    Ok(())
}

// --- Other sites ---

const OWN_NAME: &str = "proxy.example";
const EVIL_NAMES: [&str; 2] = ["evil.example", "evil"];
const RUNNING: &str = "[program:cat]\ncommand = /bin/cat\n";

/// A daemon with a running process, a proxy with a host name, and a browser that resolves the name.
struct Scene {
    daemon: Daemon,
    sidecar: Sidecar,
    browser: Browser,
}

impl Scene {
    fn start() -> Result<Scene> {
        let daemon = Daemon::start(RUNNING)?;
        daemon.wait_for_state("cat", "RUNNING")?;
        let sidecar = Sidecar::start_with(&daemon, &["--hosts", OWN_NAME, "--log-level", "debug"])?;
        let browser = Browser::start_with(&[OWN_NAME, EVIL_NAMES[0], EVIL_NAMES[1]])?;
        Ok(Scene {
            daemon,
            sidecar,
            browser,
        })
    }

    /// The URL of the proxy with this host name.
    fn proxy(&self, name: &str) -> String {
        format!("http://{name}:{}", self.sidecar.tcp_addr().port())
    }

    fn refusals(&self) -> usize {
        self.sidecar.stderr_text().matches("status=403").count()
    }

    /// Opens this page on a site of `host`, and waits until the proxy has refused its request.
    fn attack(&self, host: &str, page: &str) -> Result<()> {
        let before = self.refusals();
        let site = Site::serve(page)?;
        self.browser
            .open(&format!("http://{host}:{}/", site.port()))?;
        eventually(LIMIT, || {
            ensure!(self.daemon.state("cat")? == "RUNNING", "stopped: {page}");
            ensure!(self.refusals() > before, "nothing was refused: {page}");
            Ok(())
        })
    }
}

#[test]
fn pages_of_other_sites_and_ports_do_not_act() -> Result<()> {
    if !tools::have(&[CHROMIUM])? {
        return Ok(());
    }
    let scene = Scene::start()?;
    let call = "<methodCall><methodName>supervisor.stopAllProcesses</methodName></methodCall>";
    for name in [OWN_NAME, "127.0.0.1", "localhost"] {
        let proxy = scene.proxy(name);
        let action = format!("{proxy}/index.html?action=stopall");
        let pages = [
            format!("<img src='{action}'>"),
            format!("<meta name=referrer content=no-referrer><img src='{action}'>"),
            format!("<script>location = '{action}'</script>"),
            format!("<a rel=noreferrer id=a href='{action}'></a><script>a.click()</script>"),
            format!("<form id=f method=post action='{action}'></form><script>f.submit()</script>"),
            format!("<iframe src='{action}'></iframe>"),
            format!(
                "<script>fetch('{proxy}/RPC2', {{method: 'POST', mode: 'no-cors', body: '{call}'}})</script>"
            ),
        ];
        for page in &pages {
            scene.attack("evil.example", page)?;
            // The same host with another port.
            scene.attack(name, page)?;
        }
    }
    Ok(())
}

/// DNS rebinding: the attacker's name resolves to the proxy after the page is loaded.
#[test]
fn pages_are_refused_under_unknown_host_names() -> Result<()> {
    if !tools::have(&[CHROMIUM])? {
        return Ok(());
    }
    let scene = Scene::start()?;
    for name in EVIL_NAMES {
        scene.browser.open(&scene.proxy(name))?;
        let advice = format!("write hosts = {name} in [twiddler]");
        wait_for_text(&scene.browser, "//body", &advice)?;
    }
    Ok(())
}

/// Over plain HTTP to a host name, a browser sends only `Referer` with a click on a link.
#[test]
fn links_of_the_page_itself_act_and_typed_addresses_only_on_loopback() -> Result<()> {
    if !tools::have(&[CHROMIUM])? {
        return Ok(());
    }
    let scene = Scene::start()?;
    let browser = &scene.browser;
    let stop = "/index.html?processname=cat&action=stop";
    browser.open(&format!("{}{stop}", scene.proxy(OWN_NAME)))?;
    wait_for_text(browser, "//body", "open the page itself and click there")?;
    ensure!(scene.daemon.state("cat")? == "RUNNING", "stopped");

    browser.open(&scene.proxy(OWN_NAME))?;
    wait_for_names(browser, &["cat"])?;
    act(browser, "cat", "Stop", "Process cat stopped", "stopped")?;
    act(browser, "cat", "Start", "Process cat started", "running")?;
    for name in ["127.0.0.1", "localhost"] {
        browser.open(&format!("{}{stop}", scene.proxy(name)))?;
        wait_for_text(browser, "//div[@class='status_msg']", "Process cat stopped")?;
        browser.open(&scene.proxy(name))?;
        wait_for_names(browser, &["cat"])?;
        act(browser, "cat", "Start", "Process cat started", "running")?;
    }
    Ok(())
}

#[test]
fn other_sites_cannot_frame_the_pages() -> Result<()> {
    if !tools::have(&[CHROMIUM])? {
        return Ok(());
    }
    let scene = Scene::start()?;
    let log = first_lines();
    scene
        .daemon
        .call("supervisor.sendProcessStdin", ("cat", log.as_str()))?;
    for path in ["/", "/tail.html?processname=cat", "/logtail/cat"] {
        let framed = format!("{}{path}", scene.proxy("127.0.0.1"));
        let site = Site::serve(&format!("<iframe src='{framed}'></iframe>"))?;
        let browser = &scene.browser;
        browser.open(&format!("http://evil.example:{}/", site.port()))?;
        eventually(LIMIT, || {
            let frame_url = browser.url_in_frame("//iframe")?;
            ensure!(
                frame_url.starts_with("chrome-error:"),
                "{path}: {frame_url}"
            );
            Ok(())
        })?;
    }
    Ok(())
}
