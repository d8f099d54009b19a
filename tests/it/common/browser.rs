//! A headless Chromium, controlled by the WebDriver protocol.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use super::client::Client;
use super::leftovers::WorkDir;
use super::process::Process;
use super::provision::scrub;
use super::wait::{LIMIT, eventually};

/// The driver prints this when it listens.
const LISTENING: &str = "was started successfully on port ";

/// How long a browser may take to start on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(90);

/// The key of an element's identifier (WebDriver, "Elements").
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with its own profile. It is ended on drop.
#[derive(Debug)]
pub struct Browser {
    client: Client,
    session: String,
    _driver: Process,
    _dir: WorkDir,
}

impl Browser {
    /// Starts a browser. [`tools::have`](super::tools::have) says whether the machine has
    /// [`CHROMIUM`](super::tools::CHROMIUM).
    pub fn start() -> Result<Browser> {
        Browser::start_with(&[])
    }

    /// Starts a browser that resolves these names to 127.0.0.1.
    pub fn start_with(names: &[&str]) -> Result<Browser> {
        let dir = WorkDir::new("twb-")?;
        let mut command = Command::new("chromedriver");
        scrub(&mut command);
        command.arg("--port=0").env("HOME", dir.path());
        dir.mark(&mut command);
        let driver = Process::spawn(&mut command)?;
        let client = Client::new(addr(&driver)?).with_limit(START_LIMIT);
        let capabilities = capabilities(dir.path(), names);
        let session =
            ask(&client, "POST", "/session", Some(&capabilities)).context("starting Chromium")?;
        let id = session["sessionId"].as_str().context("a session")?;
        Ok(Browser {
            session: format!("/session/{id}"),
            client,
            _driver: driver,
            _dir: dir,
        })
    }

    /// Opens a page in the current window, and does not wait until it is loaded.
    pub fn open(&self, url: &str) -> Result<()> {
        self.post("/url", &json!({ "url": url })).map(drop)
    }

    /// The URL of the current window.
    pub fn url(&self) -> Result<String> {
        string(&self.get("/url")?)
    }

    /// The title of the current window.
    pub fn title(&self) -> Result<String> {
        string(&self.get("/title")?)
    }

    /// The visible text of the current window.
    pub fn text(&self) -> Result<String> {
        self.text_of("//body")
    }

    /// The visible text of the first element at this XPath.
    pub fn text_of(&self, xpath: &str) -> Result<String> {
        let id = self.first(xpath)?;
        string(&self.get(&format!("/element/{id}/text"))?)
    }

    /// The visible text of each element at this XPath.
    pub fn texts_of(&self, xpath: &str) -> Result<Vec<String>> {
        let ids = self.find(xpath)?;
        ids.iter()
            .map(|id| string(&self.get(&format!("/element/{id}/text"))?))
            .collect()
    }

    /// Clicks on the first element at this XPath.
    pub fn click(&self, xpath: &str) -> Result<()> {
        let id = self.first(xpath)?;
        self.post(&format!("/element/{id}/click"), &json!({}))
            .map(drop)
    }

    /// Clicks on a link that opens a window, and makes that the current window.
    pub fn click_to_window(&self, xpath: &str) -> Result<()> {
        let before = self.get("/window/handles")?;
        self.click(xpath)?;
        let window = eventually(LIMIT, || {
            let handles = self.get("/window/handles")?;
            let handles = handles.as_array().context("windows")?;
            let is_new =
                |handle: &&Json| !before.as_array().is_some_and(|old| old.contains(handle));
            handles
                .iter()
                .find(is_new)
                .cloned()
                .context("no new window")
        })?;
        self.post("/window", &json!({ "handle": window })).map(drop)
    }

    /// The URL of the document in the frame at this XPath.
    pub fn url_in_frame(&self, xpath: &str) -> Result<String> {
        let frame = self.first(xpath)?;
        self.post("/frame", &json!({ "id": { ELEMENT: frame } }))?;
        let script = json!({ "script": "return document.URL", "args": [] });
        let url = self
            .post("/execute/sync", &script)
            .and_then(|url| string(&url));
        self.post("/frame", &json!({ "id": null }))?;
        url
    }

    /// Closes the current window, and makes the first one current.
    pub fn close_window(&self) -> Result<()> {
        let handles = ask(&self.client, "DELETE", &self.path("/window"), None)?;
        let first = handles.get(0).context("no window is left")?;
        self.post("/window", &json!({ "handle": first })).map(drop)
    }

    /// Writes a screenshot of the window to a file.
    pub fn screenshot(&self, path: &Path) -> Result<()> {
        let picture = STANDARD.decode(string(&self.get("/screenshot")?)?)?;
        std::fs::write(path, picture).with_context(|| format!("writing {}", path.display()))
    }

    fn first(&self, xpath: &str) -> Result<String> {
        let first = self.find(xpath)?.into_iter().next();
        first.with_context(|| format!("nothing at {xpath}"))
    }

    fn find(&self, xpath: &str) -> Result<Vec<String>> {
        let query = json!({ "using": "xpath", "value": xpath });
        let elements = self.post("/elements", &query)?;
        let elements = elements.as_array().context("elements")?;
        elements
            .iter()
            .map(|element| string(&element[ELEMENT]))
            .collect()
    }

    fn get(&self, path: &str) -> Result<Json> {
        ask(&self.client, "GET", &self.path(path), None)
    }

    fn post(&self, path: &str, body: &Json) -> Result<Json> {
        ask(&self.client, "POST", &self.path(path), Some(body))
    }

    fn path(&self, rest: &str) -> String {
        format!("{}{rest}", self.session)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = ask(&self.client, "DELETE", &self.session, None); // what is left is killed
    }
}

/// Commands do not wait until a page is loaded, because pages with logs never are. Chromium's sandbox does
/// not work for root, nor in most containers, and a container's `/dev/shm` is small.
fn capabilities(dir: &Path, names: &[&str]) -> Json {
    let rules: Vec<String> = names
        .iter()
        .map(|name| format!("MAP {name} 127.0.0.1"))
        .collect();
    let rules = format!("--host-resolver-rules={}", rules.join(","));
    let profile = format!("--user-data-dir={}", dir.join("profile").display());
    json!({ "capabilities": { "alwaysMatch": {
        "pageLoadStrategy": "none",
        "goog:chromeOptions": { "args": [
            "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
            "--no-first-run", "--disable-background-networking", "--no-proxy-server",
            "--window-size=1100,700", profile, rules,
        ] },
    } } })
}

fn addr(driver: &Process) -> Result<std::net::SocketAddr> {
    let printed = driver.wait_for_stdout(LISTENING)?;
    let port = eventually(LIMIT, || {
        let printed = driver.stdout_text();
        let (_, rest) = printed.split_once(LISTENING).context("a port")?;
        let (port, _) = rest.split_once('.').context("the end of the port")?;
        Ok(port.to_owned())
    });
    let port = port.with_context(|| printed)?.parse()?;
    Ok(std::net::SocketAddr::from(([127, 0, 0, 1], port)))
}

/// Sends a command to the driver and returns the value of the reply.
fn ask(client: &Client, method: &str, path: &str, body: Option<&Json>) -> Result<Json> {
    let body = body.map(Json::to_string);
    let headers = [("Content-Type", "application/json")];
    let reply = client.request(method, path, &headers, body.as_deref().map(str::as_bytes))?;
    let mut answer: Json = serde_json::from_slice(&reply.content())?;
    let value = answer["value"].take();
    ensure!(
        reply.status == 200,
        "{method} {path}: {}",
        value["message"].as_str().unwrap_or_default()
    );
    Ok(value)
}

fn string(value: &Json) -> Result<String> {
    match value {
        Json::String(text) => Ok(text.clone()),
        other => bail!("not a text: {other}"),
    }
}
