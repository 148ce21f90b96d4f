//! Work that the loop does not wait for, done in turn by a thread of its own.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The thread. Dropped, it finishes what was asked for.
pub(crate) struct Aside<T> {
    jobs: Option<Sender<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Aside<T> {
    pub(super) fn spawn(
        name: &str,
        serve: impl FnOnce(Receiver<T>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, received) = channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || serve(received))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(super) fn ask(&self, job: T) {
        if let Some(jobs) = &self.jobs {
            // Without the thread there is nobody to do it.
            let _ = jobs.send(job);
        }
    }
}

impl<T> Drop for Aside<T> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
