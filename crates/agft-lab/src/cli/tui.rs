//! The view of `agft top` beside a loop in the same process: `agft demo --tui`.

use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use agft::cli::screen::{News, ScreenError, show};
use agft::control::Order;
use agft::export::Published;
use agft::export::protocol::Directed;
use agft::top::Model;

/// The view is told this often.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Orders that may wait for the loop.
const QUEUE: usize = 8;

/// A view in a thread of its own; it ends, and the terminal is given back, when this is dropped.
pub(super) struct Tui {
    news: Sender<News>,
    thread: Option<JoinHandle<Result<(), ScreenError>>>,
    quit: oneshot::Receiver<()>,
}

impl Tui {
    /// Starts the view of what a loop publishes; the receiver has the user's orders to it. Has to be called within the
    /// loop's runtime.
    ///
    /// # Errors
    /// [`std::io::Error`] if there is no thread to be had.
    pub(super) fn start(published: Published) -> std::io::Result<(Self, mpsc::Receiver<Directed>)> {
        let (news, heard) = channel();
        let (orders, received) = mpsc::channel(QUEUE);
        let (ended, quit) = oneshot::channel();
        let told = news.clone();
        let thread = Builder::new().name("agft-tui".into()).spawn(move || {
            let shown = show(&mut Model::default(), &heard, |directed, _| {
                let order = directed.order;
                let words = match (orders.try_send(directed), order) {
                    (Ok(()), Order::Pause) => "paused: default clocks, nothing learned; p resumes",
                    (Ok(()), Order::Resume) => "resumed",
                    (Err(_), _) => "not done: too many orders wait",
                };
                let _ = told.send(News::Tell(words.into()));
            });
            let _ = ended.send(());
            shown
        })?;
        tokio::spawn(tell(published, news.clone()));
        Ok((Self { news, thread: Some(thread), quit }, received))
    }

    /// Resolves when the user has ended the view, or it has failed.
    pub(super) async fn quit(&mut self) {
        // An end without a word is a panic of the view: an end too.
        let _ = (&mut self.quit).await;
    }

    /// Ends the view and says how it went.
    ///
    /// # Errors
    /// [`ScreenError`] if the terminal failed.
    pub(super) fn end(mut self) -> Result<(), ScreenError> {
        self.join()
    }

    fn join(&mut self) -> Result<(), ScreenError> {
        let _ = self.news.send(News::End);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the view ended in a panic").into()))
    }
}

impl Drop for Tui {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::error!(%error, "no view");
        }
    }
}

/// Passes on the latest state until the view or the loop is gone.
async fn tell(published: Published, news: Sender<News>) {
    let mut ticks = tokio::time::interval(TELL_EVERY);
    while news.send(News::Host(Box::new(published.host()))).is_ok() {
        ticks.tick().await;
    }
}
