//! What plugins log, really taken: without a subscriber the host leaves their lines in the guest. Plugins run on the thread that
//! calls them, so a subscriber of that thread sees all of it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tracing::Dispatch;
use tracing_subscriber::fmt::MakeWriter;

/// What plugins log on this thread meanwhile, as the router's JSON.
pub(crate) fn logged(run: impl FnOnce()) -> Vec<Value> {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    tracing::dispatcher::with_default(&into(move || writer.clone()), run);
    let bytes = lines.0.lock().unwrap();
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let lines = lines.map(|line| serde_json::from_slice::<Value>(line).expect("a line of JSON"));
    lines.filter(|line| line["target"] == "millrace::guest").collect()
}

/// A log that is written as the router's is, and which nobody keeps.
pub(crate) struct Sink {
    log: Dispatch,
    bytes: Arc<AtomicUsize>,
}

impl Sink {
    pub(crate) fn new() -> Self {
        struct Counter(Arc<AtomicUsize>);
        impl Write for Counter {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.fetch_add(bytes.len(), Ordering::Relaxed);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let bytes = Arc::default();
        let counted = Arc::clone(&bytes);
        Self { log: into(move || Counter(Arc::clone(&counted))), bytes }
    }

    /// Takes what is logged on this thread meanwhile.
    pub(crate) fn take<T>(&self, run: impl FnOnce() -> T) -> T {
        tracing::dispatcher::with_default(&self.log, run)
    }

    /// How much was logged so far.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

fn into(writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static) -> Dispatch {
    Dispatch::new(tracing_subscriber::fmt().json().with_max_level(tracing::Level::DEBUG).with_writer(writer).finish())
}
