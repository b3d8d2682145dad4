//! Work that goes on apart from who needs it done.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::raw::lock;

/// What is being done elsewhere.
pub struct Apart<T>(Place<T>);

enum Place<T> {
    Thread(JoinHandle<T>),
    Done(T),
    WhenAsked(Box<dyn FnOnce() -> T + Send>),
}

impl<T: Send + 'static> Apart<T> {
    /// Done on a thread of its own, which is left behind where nobody waits for it.
    pub fn on_a_thread(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Self {
        let work = Arc::new(Mutex::new(Some(work)));
        let theirs = Arc::clone(&work);
        let take = |work: &Mutex<Option<_>>| lock(work).take().expect("work that is begun once");
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || take(&theirs)());
        // The system gives no more threads: then here.
        Self(thread.map_or_else(|_| Place::Done(take(&work)()), Place::Thread))
    }

    /// Done by who waits for it.
    pub fn when_asked(work: impl FnOnce() -> T + Send + 'static) -> Self {
        Self(Place::WhenAsked(Box::new(work)))
    }

    /// Whether nobody has to wait for it.
    pub fn is_done(&self) -> bool {
        match &self.0 {
            Place::Thread(thread) => thread.is_finished(),
            Place::Done(_) | Place::WhenAsked(_) => true,
        }
    }

    /// Waits for it; none where it has panicked.
    pub fn wait(self) -> Option<T> {
        match self.0 {
            Place::Thread(thread) => thread.join().ok(),
            Place::Done(done) => Some(done),
            Place::WhenAsked(work) => Some(work()),
        }
    }
}
