//! Writes segments, and removes the oldest ones.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};

use serde::Serialize;

use super::batch::Batch;
use super::frame::{self, Kind};
use super::{MAGIC, STEPS_VERSION, name_of, pack};
use crate::store::dir::Dir;
use crate::store::error::StoreError;

/// Steps are written in batches of so many: fewer pack worse, more are lost by a kill.
const BATCH_STEPS: usize = 100;
/// A batch of large steps ends before it.
const BATCH_BYTES: usize = 4 << 20;

/// Bounds of what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Size at which a segment is full.
    pub segment_bytes: u64,
    /// All segments of the run together; the oldest ones go. The present one always stays.
    pub total_bytes: u64,
}

/// The segment being written.
#[derive(Debug)]
struct Open {
    file: File,
    number: u64,
    frames: u32,
    bytes: u64,
    batch: Batch,
}

/// Writes the steps of a run.
#[derive(Debug)]
pub struct StepWriter {
    dir: Dir,
    limits: StepLimits,
    open: Option<Open>,
    /// Closed ones, oldest first, with their sizes.
    closed: VecDeque<(u64, u64)>,
    last: u64,
}

impl StepWriter {
    pub(in crate::store) fn within(dir: Dir, limits: StepLimits) -> Self {
        Self { dir, limits, open: None, closed: VecDeque::new(), last: 0 }
    }

    /// Number of the segment that [`Self::begin`] would begin.
    pub fn next_number(&self) -> u64 {
        self.last + 1
    }

    /// Closes the present segment and begins the next: who records (as JSON), and what the steps begin from.
    /// Errors: `StoreError`; then nothing more should be written, for what follows would not belong to this
    /// start.
    pub fn begin(&mut self, head: &impl Serialize, snapshot: &impl Serialize) -> Result<(), StoreError> {
        self.close()?;
        let number = self.next_number();
        let name = name_of(number);
        let encode = |detail: String| StoreError::Encode { path: self.dir.file(&name), detail };
        let head = serde_json::to_vec(head).map_err(|error| encode(error.to_string()))?;
        let snapshot = pack(snapshot).map_err(encode)?;
        let file = self.dir.create_new(&name)?;
        self.last = number;
        let open = self.open.insert(Open { file, number, frames: 0, bytes: 0, batch: Batch::default() });
        let start = [&MAGIC[..], &STEPS_VERSION.to_le_bytes()].concat();
        let written = open
            .append(&start)
            .and_then(|()| open.frame(Kind::Head, &head))
            .and_then(|()| open.frame(Kind::Snapshot, &snapshot));
        self.check(written)?;
        self.make_room()
    }

    /// Takes a step in; says whether the segment is full.
    /// Errors: `StoreError`; then nothing more should be written to this segment, which ends in a whole
    /// frame.
    pub fn step(&mut self, step: &impl Serialize) -> Result<bool, StoreError> {
        let Some(open) = &mut self.open else { return Ok(false) };
        let bytes = pack(step)
            .map_err(|detail| StoreError::Encode { path: self.dir.file(&name_of(open.number)), detail })?;
        open.batch.push(&bytes);
        let mut written = Ok(());
        if open.batch.steps() >= BATCH_STEPS || open.batch.bytes().len() >= BATCH_BYTES {
            written = open.flush();
        }
        let full = open.bytes >= self.limits.segment_bytes;
        self.check(written)?;
        Ok(full)
    }

    /// Closes the present segment in good order.
    /// Errors: `StoreError`; the segment then lacks its end.
    pub fn close(&mut self) -> Result<(), StoreError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let written =
            open.flush().and_then(|()| open.frame(Kind::End, &[])).and_then(|()| open.file.sync_data());
        self.check(written)?;
        if let Some(open) = self.open.take() {
            self.closed.push_back((open.number, open.bytes));
        }
        Ok(())
    }

    /// After a failure: the segment ends before the frame that failed, and is not written to any more.
    fn check(&mut self, written: io::Result<()>) -> Result<(), StoreError> {
        let Err(cause) = written else { return Ok(()) };
        let mut number = self.last;
        if let Some(open) = self.open.take() {
            number = open.number;
            // If even that fails, the reader finds a torn end.
            let _ = open.file.set_len(open.bytes);
            self.closed.push_back((open.number, open.bytes));
        }
        Err(StoreError::Io { operation: "write", path: self.dir.file(&name_of(number)), cause })
    }

    fn make_room(&mut self) -> Result<(), StoreError> {
        // The present one will grow to a segment's size.
        let mut total: u64 =
            self.limits.segment_bytes + self.closed.iter().map(|(_, bytes)| bytes).sum::<u64>();
        while total > self.limits.total_bytes {
            let Some((number, bytes)) = self.closed.pop_front() else { break };
            self.dir.remove(&name_of(number))?;
            total -= bytes;
        }
        Ok(())
    }
}

impl Open {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn frame(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let frame = frame::encode(kind, self.frames, payload)?;
        self.append(&frame)?;
        self.frames += 1;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.batch.steps() == 0 {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.frame(Kind::Batch, batch.bytes())?;
        // Its memory is used again.
        self.batch = batch;
        self.batch.clear();
        Ok(())
    }
}
