//! The web interface as somebody sees and uses it who opens it in a browser.

mod common;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use common::pages::wait_for_state;
use common::{Browser, Daemon, LIMIT, Sidecar, eventually, options};

const NAMES: &str = "//tbody/tr/td[3]/a";

/// What stands in a row of the table: `td[1]`, or a link by its text.
fn in_row(name: &str, what: &str) -> String {
    format!("//tr[td[3]/a[text()='{name}']]{what}")
}

fn action(name: &str, label: &str) -> String {
    in_row(name, &format!("//a[text()='{label}']"))
}

fn wait_for_text(browser: &Browser, xpath: &str, wanted: &str) -> Result<()> {
    eventually(LIMIT, || {
        let text = browser.text_of(xpath)?;
        ensure!(text.contains(wanted), "no {wanted:?} in {text:?}");
        Ok(())
    })
}

fn wait_for_names(browser: &Browser, wanted: &[&str]) -> Result<()> {
    eventually(LIMIT, || {
        let names = browser.texts_of(NAMES)?;
        ensure!(names == wanted, "{names:?}, not {wanted:?}");
        Ok(())
    })
}

/// Clicks on an action of a process, and waits for what the page says then.
fn act(browser: &Browser, name: &str, label: &str, message: &str, state: &str) -> Result<()> {
    browser.click(&action(name, label))?;
    wait_for_text(browser, "//div[@class='status_msg']", message)?;
    wait_for_text(browser, &in_row(name, "/td[1]"), state)
}

/// A browser shows no plain text before it has seen so much of it that it believes it is one.
fn first_lines() -> String {
    "first line\n".repeat(200)
}

#[test]
fn a_process_that_joined_a_running_group_is_stopped_and_started_by_clicks() -> Result<()> {
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
    let gone = daemon.state("web:gone").context("what the daemon holds")?;
    ensure!(gone == "STOPPED", "a removed process is {gone}");
    Ok(())
}
