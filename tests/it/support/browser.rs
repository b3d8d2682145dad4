//! A real browser, headless, by the WebDriver protocol (https://www.w3.org/TR/webdriver2/).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use super::wait_until;

/// A page of Chromium. Closed with the value.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
}

impl Browser {
    /// Starts it with a window of this size.
    pub(crate) fn start(width: u32, height: u32) -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is there: scripts/setup test installs it");
        let mut lines = BufReader::new(driver.stdout.take().expect("a pipe")).lines();
        let port =
            lines.find_map(|line| line.ok()?.split_once("successfully on port ")?.1.trim_end_matches('.').parse().ok());
        let address = SocketAddr::from(([127, 0, 0, 1], port.expect("chromedriver says where it listens")));
        // (nobody reads on: what it says later must not block it)
        std::thread::spawn(move || lines.for_each(drop));
        let mut browser = Self { driver, address, session: String::new() };
        let options = json!({ "args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", format!("--window-size={width},{height}"),
        ] });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let made = browser.ask("POST", "/session", Some(&wanted));
        browser.session = made["sessionId"].as_str().unwrap_or_else(|| panic!("a session: {made}")).to_owned();
        browser
    }

    /// Goes to this page.
    pub(crate) fn open(&self, url: &str) {
        self.of_session("POST", "url", Some(&json!({ "url": url })));
    }

    /// What a script's `return` gives.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> Value {
        self.of_session("POST", "execute/sync", Some(&json!({ "script": script, "args": [] })))
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    pub(crate) fn await_true(&self, timeout: Duration, expression: &str) {
        wait_until(timeout, expression, || self.run(&format!("return Boolean({expression})")) == true);
    }

    /// Presses a key where the focus is.
    pub(crate) fn press(&self, key: &str) {
        let action = |kind: &str| json!({ "type": kind, "value": key });
        let keys = json!({ "type": "key", "id": "keyboard", "actions": [action("keyDown"), action("keyUp")] });
        self.of_session("POST", "actions", Some(&json!({ "actions": [keys] })));
    }

    /// Gives the window another size.
    pub(crate) fn resize(&self, width: u32, height: u32) {
        self.of_session("POST", "window/rect", Some(&json!({ "width": width, "height": height })));
    }

    /// Writes what is to be seen into a PNG.
    pub(crate) fn screenshot(&self, file: &Path) {
        let shot = self.of_session("GET", "screenshot", None);
        let text = shot.as_str().expect("a picture");
        let png = base64::prelude::BASE64_STANDARD.decode(text).expect("it is base64");
        std::fs::write(file, png).expect("the picture is written");
    }

    /// What the browser has complained about: scripts that failed, files that are missing or were refused.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let log = self.of_session("POST", "se/log", Some(&json!({ "type": "browser" })));
        let severe = log.as_array().expect("a list").iter().filter(|entry| entry["level"] == "SEVERE");
        severe.map(|entry| entry["message"].to_string()).collect()
    }

    fn of_session(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.ask(method, &format!("/session/{}/{path}", self.session), body)
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let answer =
            self.exchange(method, path, body).unwrap_or_else(|error| panic!("chromedriver: {method} {path}: {error}"));
        assert!(answer["value"]["error"].is_null(), "{method} {path}: {}", answer["value"]);
        answer["value"].clone()
    }

    fn exchange(&self, method: &str, path: &str, body: Option<&Value>) -> std::io::Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // (the browser is the driver's child, and outlives it where nobody ends the session)
        if !self.session.is_empty() {
            let _ = self.exchange("DELETE", &format!("/session/{}", self.session), None);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
