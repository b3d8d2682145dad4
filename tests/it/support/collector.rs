//! An OpenTelemetry collector that keeps what it is sent: OTLP over HTTP, as JSON. Knows nothing of what spans should say.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use native_tls::{Identity, TlsAcceptor};
use serde_json::Value;

/// A span that has come, with the attributes of its process.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Span {
    pub(crate) resource: Value,
    pub(crate) json: Value,
}

impl Span {
    /// A text of it, by its key.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.json[key].as_str().unwrap_or_default()
    }

    /// An attribute of it, as text.
    pub(crate) fn attribute(&self, key: &str) -> Option<&str> {
        attribute(&self.json, key)
    }

    /// An attribute of its process, as text.
    pub(crate) fn of_process(&self, key: &str) -> Option<&str> {
        attribute(&self.resource, key)
    }
}

fn attribute<'a>(of: &'a Value, key: &str) -> Option<&'a str> {
    let found = of["attributes"].as_array()?.iter().find(|one| one["key"] == key)?;
    found["value"].as_object()?.values().next()?.as_str()
}

/// Listens until the process ends.
pub(crate) struct Collector {
    url: String,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    spans: Vec<Span>,
    requests: usize,
    /// Requests that are still to be answered with 503.
    busy: usize,
}

impl Collector {
    /// Starts one that is too busy for the first `busy` requests.
    pub(crate) fn start(busy: usize) -> Self {
        let seen = Seen { busy, ..Seen::default() };
        Self::listen("http", seen, serve)
    }

    /// Starts one that speaks TLS with this certificate and its key, both in files of PEM.
    pub(crate) fn start_secure(certificate: &Path, key: &Path) -> Self {
        let read = |path: &Path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let identity = Identity::from_pkcs8(&read(certificate), &read(key)).expect("a certificate and its key");
        let acceptor = TlsAcceptor::new(identity).expect("TLS");
        Self::listen("https", Seen::default(), move |stream, seen| {
            // (who does not trust it goes away in the middle of the handshake)
            if let Ok(stream) = acceptor.accept(stream) {
                serve(stream, seen);
            }
        })
    }

    fn listen(scheme: &str, seen: Seen, serve: impl Fn(TcpStream, &Mutex<Seen>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("{scheme}://{}", listener.local_addr().expect("an address"));
        let (seen, serve) = (Arc::new(Mutex::new(seen)), Arc::new(serve));
        let keep = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (keep, serve) = (Arc::clone(&keep), Arc::clone(&serve));
                std::thread::spawn(move || serve(stream, &keep));
            }
        });
        Self { url, seen }
    }

    /// What to configure.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.seen.lock().expect("no test panics with it").spans.clone()
    }

    /// How many requests have come.
    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().expect("no test panics with it").requests
    }
}

/// Answers one request after the other, as long as the connection lasts.
fn serve(stream: impl Read + Write, seen: &Mutex<Seen>) {
    let mut reader = BufReader::new(stream);
    while let Some((head, body)) = request(&mut reader) {
        let is_for_us = head.starts_with("POST /v1/traces HTTP/1.1\r\n")
            && head.to_ascii_lowercase().contains("\r\ncontent-type: application/json\r\n");
        let mut seen = seen.lock().expect("no test panics with it");
        seen.requests += 1;
        let status = match serde_json::from_slice::<Value>(&body) {
            _ if !is_for_us => "404 Not Found",
            _ if seen.busy > 0 => {
                seen.busy -= 1;
                "503 Service Unavailable"
            }
            Ok(request) => {
                seen.spans.extend(spans(&request));
                "200 OK"
            }
            Err(_) => "400 Bad Request",
        };
        drop(seen);
        let answer = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}");
        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn request(reader: &mut BufReader<impl Read>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.to_ascii_lowercase();
    let length = length.split("content-length:").nth(1)?.split("\r\n").next()?.trim().parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn spans(request: &Value) -> Vec<Span> {
    let list = |of: &Value, key: &str| of[key].as_array().cloned().unwrap_or_default();
    let mut spans = Vec::new();
    for of_process in list(request, "resourceSpans") {
        for of_scope in list(&of_process, "scopeSpans") {
            let resource = &of_process["resource"];
            spans.extend(list(&of_scope, "spans").into_iter().map(|json| Span { resource: resource.clone(), json }));
        }
    }
    spans
}
