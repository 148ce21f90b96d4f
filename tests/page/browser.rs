//! A headless Chromium, driven over the WebDriver protocol by its own driver.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Flags with which Chromium runs as root, without a screen, and asks nothing of the network.
const FLAGS: [&str; 12] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
];

/// A browser with one window; both it and its driver end when this is dropped.
pub(crate) struct Browser {
    _driver: Driver,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    /// `http://127.0.0.1:PORT/session/ID`.
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts one; `None` where there is none.
    pub(crate) fn start() -> Option<Self> {
        let driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A group of its own: the browser, which the driver starts, ends with it whatever happens.
            .process_group(0)
            .spawn()
            .ok()?;
        let mut driver = Driver(driver);
        let out = driver.0.stdout.take().expect("a pipe");
        let mut lines = BufReader::new(out).lines();
        let port = loop {
            let line = lines.next().expect("the driver says its port").expect("text");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').parse::<u16>().expect("a port");
            }
        };
        // Its later words are of no use; an unread pipe would hold it up.
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().expect("a temporary directory");
        let mut arguments: Vec<String> = FLAGS.iter().map(|flag| (*flag).to_owned()).collect();
        arguments.push(format!("--user-data-dir={}", profile.path().display()));
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        // The driver of this machine is not to be asked for by way of a proxy.
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build();
        let mut browser = Self {
            _driver: driver,
            runtime,
            client: client.expect("a client"),
            session: format!("http://127.0.0.1:{port}/session"),
            _profile: profile,
        };
        let made = browser.post("", &wanted);
        let id = made["sessionId"].as_str().expect("a session").to_owned();
        browser.session = format!("{}/{id}", browser.session);
        Some(browser)
    }

    fn send(&self, request: reqwest::RequestBuilder) -> Value {
        let answer = self.runtime.block_on(async { request.send().await?.text().await });
        let answer: Value = serde_json::from_str(&answer.expect("an answer")).expect("JSON");
        let value = answer["value"].clone();
        assert!(value.get("error").is_none(), "{value}");
        value
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let request = self.client.post(format!("{}{path}", self.session));
        self.send(request.header("content-type", "application/json").body(body.to_string()))
    }

    /// Opens a page and waits until it has loaded.
    pub(crate) fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// The value of an expression in the page.
    pub(crate) fn eval(&self, expression: &str) -> Value {
        self.post("/execute/sync", &json!({"script": format!("return ({expression});"), "args": []}))
    }

    /// Presses keys, one after the other; special ones as WebDriver codes.
    pub(crate) fn press(&self, keys: &[&str]) {
        let strokes: Vec<Value> = keys
            .iter()
            .flat_map(|key| ["keyDown", "keyUp"].map(|stroke| json!({"type": stroke, "value": key})))
            .collect();
        self.post("/actions", &json!({"actions": [{"type": "key", "id": "keys", "actions": strokes}]}));
    }

    /// What the page wrote to its console, and what the browser had to complain about, since the last call.
    pub(crate) fn console(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({"type": "browser"}));
        entries.as_array().expect("a list").iter().map(ToString::to_string).collect()
    }

    /// A command of the browser's own protocol.
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// The size of the window, in CSS pixels.
    pub(crate) fn resize(&self, width: u32, height: u32, mobile: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    /// What the system prefers: `light` or `dark`.
    pub(crate) fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &features);
    }

    /// Writes a picture of the window's contents.
    pub(crate) fn picture(&self, path: &Path) {
        let shot = self.devtools("Page.captureScreenshot", &json!({"format": "png"}));
        let bytes = decode(shot["data"].as_str().expect("a picture"));
        std::fs::write(path, bytes).expect("a file for the picture");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // In good order first; what is left then ends with the driver's group.
        let end = self.client.delete(&self.session).timeout(Duration::from_secs(10));
        let _ = self.runtime.block_on(async { end.send().await });
    }
}

/// The driver, and all that it has started.
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Base64, as the protocol sends pictures.
fn decode(text: &str) -> Vec<u8> {
    let digits = text.bytes().filter_map(|byte| {
        Some(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        })
    });
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in digits {
        bits = bits << 6 | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).expect("eight bits"));
        }
        bits &= (1 << held) - 1;
    }
    bytes
}
