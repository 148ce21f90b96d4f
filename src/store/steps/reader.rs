//! Reads a segment frame by frame, whatever state a crash left it in.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::frame::{self, Kind, Read1};
use super::{MAGIC, OLDEST_STEPS_VERSION, STEPS_VERSION, StepsError, batch};
use crate::store::error::StoreError;

/// How a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was closed.
    Closed,
    /// After a whole frame, without having been closed: its writer is at work, or was killed.
    Open,
    /// Inside of a frame: its writer was killed, or the disk was full.
    Torn,
}

/// The frames of one segment, in order.
#[derive(Debug)]
pub struct SegmentReader<R> {
    input: R,
    path: PathBuf,
    version: u32,
    next: u32,
    end: Option<End>,
}

impl SegmentReader<BufReader<File>> {
    /// Opens a file.
    /// Errors: [`StepsError`] if it cannot be opened, or does not begin as a segment does.
    pub fn open(path: &Path) -> Result<Self, StepsError> {
        match File::open(path) {
            Ok(file) => Self::new(BufReader::new(file), path),
            Err(cause) => Err(StoreError::Io { operation: "open", path: path.to_owned(), cause }.into()),
        }
    }
}

impl<R: Read> SegmentReader<R> {
    /// Reads from anything; `path` is for messages.
    /// Errors: [`StepsError`] if it does not begin as a segment does.
    pub fn new(mut input: R, path: &Path) -> Result<Self, StepsError> {
        let mut start = Vec::new();
        let read = (&mut input).take(12).read_to_end(&mut start);
        let path = path.to_owned();
        read.map_err(|cause| StoreError::Io { operation: "read", path: path.clone(), cause })?;
        let Some(version) = start.strip_prefix(MAGIC).and_then(|rest| rest.first_chunk::<4>()) else {
            // What a writer leaves that died at once.
            if MAGIC.starts_with(&start) || start.starts_with(MAGIC) {
                return Ok(Self { input, path, version: STEPS_VERSION, next: 0, end: Some(End::Torn) });
            }
            return Err(StepsError::Foreign { path });
        };
        match u32::from_le_bytes(*version) {
            version @ OLDEST_STEPS_VERSION..=STEPS_VERSION => {
                Ok(Self { input, path, version, next: 0, end: None })
            }
            found => Err(StepsError::Version { path, found }),
        }
    }

    /// The next frame's content; `None` at the end, see [`Self::end`].
    /// Errors: [`StepsError::Damaged`], or [`StepsError::Store`] if it cannot be read.
    pub(crate) fn next_frame(&mut self) -> Result<Option<(Kind, Vec<u8>)>, StepsError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let read = frame::read(&mut self.input, self.next).map_err(|cause| StoreError::Io {
            operation: "read",
            path: self.path.clone(),
            cause,
        })?;
        match read {
            Read1::Frame(Kind::End, _) => {
                let mut more = Vec::new();
                if matches!((&mut self.input).take(1).read_to_end(&mut more), Ok(1)) {
                    return Err(self.damaged("something follows the end"));
                }
                self.end = Some(End::Closed);
            }
            Read1::Frame(kind, content) => {
                self.next += 1;
                return Ok(Some((kind, content)));
            }
            Read1::Nothing => self.end = Some(End::Open),
            Read1::Torn => self.end = Some(End::Torn),
            Read1::Damaged(detail) => return Err(self.damaged(detail)),
        }
        Ok(None)
    }

    /// The next batch of steps, each as its bytes; `None` at the end.
    pub(crate) fn next_batch(&mut self) -> Result<Option<Vec<Vec<u8>>>, StepsError> {
        match self.next_frame()? {
            Some((Kind::Batch, content)) => batch::steps(&content).map(Some).map_err(|why| self.damaged(why)),
            Some((kind, _)) => Err(self.damaged(format!("a {kind:?} stands where steps belong"))),
            None => Ok(None),
        }
    }

    /// How it ends, once the end is reached.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Its format version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn damaged(&self, detail: impl Into<String>) -> StepsError {
        StepsError::Damaged { path: self.path.clone(), frame: self.next, detail: detail.into() }
    }
}
