//! Keeps what was measured of levers for the next run, on a thread of its own: a slow disk never holds up the loop.

use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::gpu::GpuInfo;
use crate::park::levers::LeverBook;
use crate::seldom::Seldom;
use crate::store::save_levers;

/// The thread that writes. Dropped, it writes what it was given to the end.
pub(crate) struct Keeper {
    books: Option<Sender<(GpuInfo, LeverBook)>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread, which writes into `dir`.
    pub(crate) fn spawn(dir: PathBuf) -> std::io::Result<Self> {
        let (books, received) = channel::<(GpuInfo, LeverBook)>();
        let thread = std::thread::Builder::new().name("agft-levers".into()).spawn(move || {
            let mut seldom = Seldom::default();
            for (gpu, book) in received {
                if let Err(error) = save_levers(&dir, &gpu, 1, &book)
                    && let Some(times) = seldom.may_say("save", Instant::now())
                {
                    tracing::warn!(
                        %gpu, %error, not_said_before = times,
                        "what parking saves is not stored (model.save_dir): the next run measures it anew"
                    );
                }
            }
        })?;
        Ok(Self { books: Some(books), thread: Some(thread) })
    }

    pub(crate) fn keep(&self, gpu: &GpuInfo, book: LeverBook) {
        if let Some(books) = &self.books {
            // Without the thread there is nobody to write.
            let _ = books.send((gpu.clone(), book));
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.books.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
