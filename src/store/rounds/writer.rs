//! Appends rounds: buffered, bounded, and never in the way of the loop.

use std::fs::File;
use std::path::Path;

use super::line_file::LineFile;
use super::{FILE_NAME, RoundRecord, rotated_name};
use crate::seldom::Seldom;
use crate::store::dir::Dir;
use crate::store::error::StoreError;
use crate::units::{Seconds, Time};

/// Rounds that wait for a disk are held up to so many bytes (a quarter of an hour's worth); then the oldest go.
const MAX_PENDING_BYTES: usize = 4 << 20;

/// How large the record of a run may become, and how often it goes to the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundLimits {
    /// A file that would grow beyond this is rotated.
    pub max_file_bytes: u64,
    /// Files kept, the one being written included; at least 1.
    pub max_files: usize,
    /// Lines wait no longer than this for their way to the file.
    pub flush_interval: Seconds,
    /// Nor are there ever more of them than this, while the disk takes them.
    pub flush_lines: u64,
}

impl Default for RoundLimits {
    /// Half a GiB: at 1.5 KB a round and a round every 0.3 s that is more than a day.
    fn default() -> Self {
        Self { max_file_bytes: 64 << 20, max_files: 8, flush_interval: Seconds(1.0), flush_lines: 64 }
    }
}

/// What became of the rounds so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundStats {
    /// In the file.
    pub written: u64,
    /// In memory.
    pub pending: u64,
    /// Given up, because the disk took nothing for too long.
    pub lost: u64,
    /// Attempts to write that failed.
    pub errors: u64,
    /// Did the last attempt fail?
    pub failing: bool,
}

/// Writes `rounds_data.jsonl` of one run.
///
/// A disk that is full or gone is logged once, tried again after each interval and counted; it never stops the caller,
/// and never leaves half a line in the file.
#[derive(Debug)]
pub struct RoundWriter {
    dir: Dir,
    file: LineFile<File>,
    limits: RoundLimits,
    pending: Vec<u8>,
    due: Time,
    stats: RoundStats,
    seldom: Seldom<Time>,
}

impl RoundWriter {
    /// Opens the record in the directory of a run; a last line that a crash tore is cut off.
    /// Errors: `StoreError` if the file cannot be opened or repaired.
    pub fn open(dir: &Path, limits: RoundLimits, now: Time) -> Result<Self, StoreError> {
        Self::within(Dir::open_or_create(dir)?, limits, now)
    }

    pub(in crate::store) fn within(dir: Dir, limits: RoundLimits, now: Time) -> Result<Self, StoreError> {
        let file = open_file(&dir)?;
        let due = now + limits.flush_interval;
        Ok(Self {
            dir,
            file,
            limits,
            pending: Vec::new(),
            due,
            stats: RoundStats::default(),
            seldom: Seldom::default(),
        })
    }

    /// Takes a round, and writes what is due.
    pub fn append(&mut self, record: &RoundRecord, now: Time) {
        let before = self.pending.len();
        // Writing to memory, and a record has no keys that are not text: this does not fail.
        if serde_json::to_writer(&mut self.pending, record).is_err() {
            self.pending.truncate(before);
            self.stats.lost += 1;
            return;
        }
        self.pending.push(b'\n');
        self.stats.pending += 1;
        while self.pending.len() > MAX_PENDING_BYTES {
            let oldest = first_line(&self.pending);
            self.pending.drain(..oldest);
            self.stats.pending -= 1;
            self.stats.lost += 1;
        }
        self.flush_if_due(now);
    }

    /// Writes if the interval is over or enough lines are waiting: for the rounds in which there is nothing to append.
    pub(crate) fn flush_if_due(&mut self, now: Time) {
        // While the disk refuses, only the interval counts: it is not to be tried at every round.
        let enough = self.stats.pending >= self.limits.flush_lines && !self.stats.failing;
        if enough || now >= self.due {
            self.flush(now);
        }
    }

    /// Writes everything now.
    pub fn flush(&mut self, now: Time) {
        self.due = now + self.limits.flush_interval;
        let outcome = self.drain();
        let failed_before = std::mem::replace(&mut self.stats.failing, outcome.is_err());
        match outcome {
            Err(error) => {
                self.stats.errors += 1;
                if !failed_before && let Some(times) = self.seldom.may_say("rounds", now) {
                    tracing::warn!(
                        %error, not_said_before = times,
                        "rounds are not written; they are kept in memory and tried again"
                    );
                }
            }
            Ok(()) if failed_before && self.seldom.over("rounds") => {
                tracing::info!(lost = self.stats.lost, "rounds are written again");
            }
            Ok(()) => {}
        }
    }

    /// What became of the rounds so far.
    #[cfg(test)]
    pub(super) fn stats(&self) -> RoundStats {
        self.stats
    }

    /// Writes the rest and flushes the file to the disk. Dropping the writer writes the rest too, and asks no more.
    /// Errors: `StoreError` if some of it is lost.
    pub fn close(mut self) -> Result<RoundStats, StoreError> {
        self.drain()?;
        self.dir.attempt("flush to disk", FILE_NAME, || self.file.sink.sync_all())?;
        Ok(self.stats)
    }

    fn drain(&mut self) -> Result<(), StoreError> {
        while !self.pending.is_empty() {
            let room = self.limits.max_file_bytes.saturating_sub(self.file.length());
            let mut batch = whole_lines_within(&self.pending, room);
            if batch == 0 && self.file.length() > 0 {
                self.rotate()?;
                continue;
            }
            if batch == 0 {
                // Longer than a whole file may be: it gets one for itself.
                batch = first_line(&self.pending);
            }
            let (written, outcome) = self.file.append(&self.pending[..batch]);
            let rounds = count_lines(&self.pending[..written]);
            self.pending.drain(..written);
            self.stats.pending -= rounds;
            self.stats.written += rounds;
            self.dir.attempt("append to", FILE_NAME, || outcome)?;
        }
        Ok(())
    }

    /// Moves every file one place back, the oldest out, and begins a new one.
    fn rotate(&mut self) -> Result<(), StoreError> {
        // Not there: an earlier rotation got this far and could not begin the new file.
        if self.dir.exists(FILE_NAME)? {
            let last = self.limits.max_files.saturating_sub(1);
            // A gap is where an earlier rotation stopped: what lies behind it has moved already.
            let mut free = 1;
            while free < last && self.dir.exists(&rotated_name(free))? {
                free += 1;
            }
            for index in (1..free).rev() {
                self.dir.rename(&rotated_name(index), &rotated_name(index + 1))?;
            }
            if last == 0 {
                self.dir.remove(FILE_NAME)?;
            } else {
                self.dir.rename(FILE_NAME, &rotated_name(1))?;
            }
        }
        self.file = LineFile::new(self.dir.open_append(FILE_NAME)?, 0);
        Ok(())
    }
}

impl Drop for RoundWriter {
    fn drop(&mut self) {
        let _ = self.drain();
    }
}

fn open_file(dir: &Dir) -> Result<LineFile<File>, StoreError> {
    let file = dir.open_append(FILE_NAME)?;
    let (file, cut_off) = dir.attempt("repair", FILE_NAME, || LineFile::adopt(file))?;
    if cut_off > 0 {
        tracing::warn!(path = %dir.file(FILE_NAME).display(), bytes = cut_off, "an unfinished last line was cut off");
    }
    Ok(file)
}

/// Bytes of the whole lines at the beginning that fit into `room` bytes.
fn whole_lines_within(lines: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX).min(lines.len());
    lines.iter().take(room).rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

fn first_line(lines: &[u8]) -> usize {
    lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |at| at + 1)
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests;
