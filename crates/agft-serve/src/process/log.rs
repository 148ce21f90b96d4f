//! The output of an instance: the last lines in memory, all lines in a file that is rotated.
//!
//! Whoever writes never waits for the disk. A thread writes the file; where it lags, or the disk takes
//! nothing, lines are dropped and counted, and the count is written once the disk takes lines again.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{broadcast, oneshot};

use crate::work::tasks::Watched;

/// Longer lines are cut into lines of this length.
const LONGEST_LINE_BYTES: usize = 16 * 1024;
/// So many pieces may wait for the writer. Each is what one read of a pipe gave, [`LONGEST_LINE_BYTES`] at most: 8 MiB
/// in all where the disk hangs.
const QUEUE_PIECES: usize = 512;
/// So long no write is tried after one failed.
const RETRY: Duration = Duration::from_secs(1);

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The instance, to its standard output.
    Stdout,
    /// The instance, to its standard error.
    Stderr,
    /// One of its hooks.
    Hook,
}

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was read.
    pub at: SystemTime,
    /// Who wrote it.
    pub source: Source,
    /// The line, without its end. What was no UTF-8 is replaced.
    pub text: Arc<str>,
}

/// The last lines of an instance, over all its processes.
#[derive(Debug)]
pub(crate) struct Tail {
    lines: Mutex<VecDeque<LogLine>>,
    keep: usize,
    follow: broadcast::Sender<LogLine>,
}

impl Tail {
    pub(crate) fn new(keep: usize) -> Self {
        Self { lines: Mutex::default(), keep: keep.max(1), follow: broadcast::channel(1024).0 }
    }

    fn push(&self, line: LogLine) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that a follower misses no line between the last ones and the coming ones.
        let _ = self.follow.send(line.clone());
        lines.push_back(line);
        while lines.len() > self.keep {
            lines.pop_front();
        }
    }

    /// The last lines, `count` at most, and those that come.
    pub(crate) fn read(&self, count: usize) -> (Vec<LogLine>, broadcast::Receiver<LogLine>) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = lines.len().saturating_sub(count);
        (lines.iter().skip(skip).cloned().collect(), self.follow.subscribe())
    }
}

/// Where a log goes and how it is rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    pub(crate) max_bytes: u64,
    pub(crate) keep: u32,
}

/// The log of an instance. Clones write to the same; the file is closed when the last is gone.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    tail: Arc<Tail>,
    queue: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    /// Who takes what the lines of the instance say of tasks.
    watched: Option<Arc<Watched>>,
}

impl Log {
    /// A file that cannot be opened is tried again with each line.
    pub(crate) fn open(tail: Arc<Tail>, place: Place) -> (Self, Written) {
        let (queue, lines) = sync_channel(QUEUE_PIECES);
        let dropped = Arc::new(AtomicU64::new(0));
        let file = place.file.clone();
        let writer = Writer { dropped: Arc::clone(&dropped), ..Writer::new(place) };
        let (done, written) = oneshot::channel();
        let write = move || {
            writer.run(&lines);
            // An error means that nobody waits.
            let _ = done.send(());
        };
        if let Err(error) = std::thread::Builder::new().name("log".to_owned()).spawn(write) {
            // The last lines are in memory all the same.
            tracing::warn!(file = %file.display(), %error, "no thread for the log: its file gets no lines");
        }
        (Self { tail, queue, dropped, watched: None }, Written(written))
    }

    /// The same for a process whose tasks are watched.
    pub(crate) fn of_process(&self, watched: Arc<Watched>) -> Self {
        Self { watched: Some(watched), ..self.clone() }
    }

    /// Takes whole lines, each with its end.
    fn write(&self, source: Source, lines: &[u8]) {
        let at = SystemTime::now();
        for line in lines.split_inclusive(|&byte| byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let text: Arc<str> = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into();
            if let Some(watched) = self.watched.as_ref().filter(|_| source != Source::Hook) {
                watched.line(&text);
            }
            self.tail.push(LogLine { at, source, text });
        }
        if self.queue.try_send(lines.to_vec()).is_err() {
            self.dropped.fetch_add(count(lines), Ordering::Relaxed);
        }
    }

    /// Takes lines until the other side closes, so that nobody who writes ever waits.
    pub(crate) async fn drain(self, source: Source, mut pipe: impl AsyncRead + Unpin) {
        let mut buffer = Vec::with_capacity(LONGEST_LINE_BYTES);
        loop {
            // A pipe that cannot be read has nothing more to tell.
            let read = pipe.read_buf(&mut buffer).await.unwrap_or(0);
            let line_end =
                |buffer: &[u8]| buffer.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            let mut whole = line_end(&buffer);
            if (read == 0 || (whole == 0 && buffer.len() >= LONGEST_LINE_BYTES)) && whole < buffer.len() {
                buffer.push(b'\n');
                whole = buffer.len();
            }
            if whole > 0 {
                self.write(source, buffer.get(..whole).unwrap_or_default());
                buffer.drain(..whole);
            }
            if read == 0 {
                return;
            }
        }
    }
}

/// The lines in this, each with its end.
fn count(lines: &[u8]) -> u64 {
    lines.iter().map(|&byte| u64::from(byte == b'\n')).sum()
}

/// Tells when all lines of a log are in its file.
#[derive(Debug)]
pub(crate) struct Written(oneshot::Receiver<()>);

impl Written {
    /// Waits until the last [`Log`] is gone and all its lines are written, for so long at most: the disk may
    /// hang.
    pub(crate) async fn wait(self, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.0).await;
    }
}

struct Writer {
    place: Place,
    file: Option<(File, u64)>,
    dropped: Arc<AtomicU64>,
    failed: Option<Instant>,
}

impl Writer {
    fn new(place: Place) -> Self {
        Self { place, file: None, dropped: Arc::default(), failed: None }
    }

    fn run(mut self, pieces: &Receiver<Vec<u8>>) {
        while let Ok(lines) = pieces.recv() {
            self.take(&lines, Instant::now());
        }
    }

    fn take(&mut self, lines: &[u8], now: Instant) {
        if self.failed.is_some_and(|failed| now < failed + RETRY) {
            self.dropped.fetch_add(count(lines), Ordering::Relaxed);
            return;
        }
        let lost = self.dropped.swap(0, Ordering::Relaxed);
        let note = match lost {
            0 => Vec::new(),
            lost => format!("agft-serve: {lost} lines are missing here, the log could not be written\n")
                .into_bytes(),
        };
        match self.append(&[&note, lines].concat()) {
            Ok(()) => self.failed = None,
            Err(error) => {
                self.dropped.fetch_add(lost + count(lines), Ordering::Relaxed);
                if self.failed.is_none() {
                    let file = self.place.file.display();
                    tracing::warn!(%file, %error, "the log cannot be written: lines are dropped and counted");
                }
                self.failed = Some(now);
                // Opened anew with the next try: the disk may have been mounted again, the directory made.
                self.file = None;
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let added = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if let Some((_, size)) = &self.file
            && *size > 0
            && size.saturating_add(added) > self.place.max_bytes
        {
            self.file = None;
            rotate(&self.place)?;
        }
        let (file, size) = match &mut self.file {
            Some(open) => open,
            none => {
                let file = OpenOptions::new().create(true).append(true).open(&self.place.file)?;
                let size = file.metadata()?.len();
                if size > 0 && size.saturating_add(added) > self.place.max_bytes {
                    rotate(&self.place)?;
                    let file = OpenOptions::new().create(true).append(true).open(&self.place.file)?;
                    none.insert((file, 0))
                } else {
                    none.insert((file, size))
                }
            }
        };
        file.write_all(bytes)?;
        *size += added;
        Ok(())
    }
}

fn numbered(file: &Path, number: u32) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// `FILE` becomes `FILE.1`, `FILE.1` becomes `FILE.2`, and so on; the oldest is lost.
fn rotate(place: &Place) -> io::Result<()> {
    if place.keep == 0 {
        return std::fs::remove_file(&place.file);
    }
    for number in (1..place.keep).rev() {
        match std::fs::rename(numbered(&place.file, number), numbered(&place.file, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(&place.file, numbered(&place.file, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: &tempfile::TempDir, max_bytes: u64, keep: u32) -> Place {
        Place { file: dir.path().join("x.log"), max_bytes, keep }
    }

    fn files(dir: &tempfile::TempDir) -> Vec<(String, String)> {
        let mut all: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), std::fs::read_to_string(e.path()).unwrap()))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn a_full_file_is_rotated_and_the_oldest_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(place(&dir, 10, 2));
        for line in ["one 1\n", "two 2\n", "three\n", "four4\n"] {
            writer.take(line.as_bytes(), Instant::now());
        }
        let named = |n: &str, t: &str| (n.to_owned(), t.to_owned());
        assert_eq!(
            files(&dir),
            [named("x.log", "four4\n"), named("x.log.1", "three\n"), named("x.log.2", "two 2\n")]
        );
        // A writer that finds the file full rotates it too.
        Writer::new(place(&dir, 10, 0)).take(b"five5\n", Instant::now());
        assert_eq!(files(&dir)[0], named("x.log", "five5\n"));
    }

    #[test]
    fn lines_that_the_disk_does_not_take_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = Instant::now();
        let mut writer =
            Writer::new(Place { file: dir.path().join("later/x.log"), max_bytes: 1000, keep: 1 });
        for _ in 0..3 {
            writer.take(b"lost\n", at);
        }
        std::fs::create_dir(dir.path().join("later")).unwrap();
        writer.take(b"still within the pause\n", at);
        at += RETRY;
        writer.take(b"kept\n", at);
        let text = std::fs::read_to_string(dir.path().join("later/x.log")).unwrap();
        assert_eq!(text, "agft-serve: 4 lines are missing here, the log could not be written\nkept\n");
    }

    #[tokio::test]
    async fn lines_come_whole_and_long_ones_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let tail = Arc::new(Tail::new(3));
        let (log, written) = Log::open(Arc::clone(&tail), place(&dir, 1 << 20, 1));
        let long = "y".repeat(LONGEST_LINE_BYTES + 5);
        let text = format!("first\r\n\nsecond\n{long}\nno end");
        log.drain(Source::Stderr, text.as_bytes()).await;
        written.wait(Duration::from_secs(60)).await;
        let (_, file) = files(&dir).remove(0);
        let lengths: Vec<_> = file.lines().map(str::len).collect();
        assert_eq!(lengths, [5, 0, 6, LONGEST_LINE_BYTES, 5, 6]);
        let (lines, _) = tail.read(10);
        let texts: Vec<_> = lines.iter().map(|line| line.text.len()).collect();
        assert_eq!(texts, [LONGEST_LINE_BYTES, 5, 6]);
        assert_eq!(&*tail.read(1).0[0].text, "no end");
        assert_eq!(tail.read(1).0[0].source, Source::Stderr);
    }
}
