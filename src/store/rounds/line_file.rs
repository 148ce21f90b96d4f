//! A file of whole lines: what does not fit is taken back.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::{MAX_LINE_BYTES, RoundRecord};

/// What a line file writes to.
pub(super) trait Sink: Write {
    /// Cuts the file to that many bytes.
    fn truncate(&mut self, bytes: u64) -> io::Result<()>;
}

impl Sink for File {
    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

/// An append-only file that ends in a whole line after every call.
#[derive(Debug)]
pub(super) struct LineFile<S> {
    pub(super) sink: S,
    length: u64,
    // A part of a line could not be taken back yet.
    torn: bool,
}

impl LineFile<File> {
    /// Takes over a file opened for appending; also says how many bytes of a torn last line were cut off.
    pub(super) fn adopt(mut file: File) -> io::Result<(Self, u64)> {
        let end = file.metadata()?.len();
        let whole = end_of_last_line(&file, end)?;
        if whole == end {
            return Ok((Self::new(file, end), 0));
        }
        let mut tail = Vec::new();
        file.seek(SeekFrom::Start(whole))?;
        (&file).take(MAX_LINE_BYTES).read_to_end(&mut tail)?;
        if serde_json::from_slice::<RoundRecord>(&tail).is_ok() {
            // Only its newline is missing.
            file.write_all(b"\n")?;
            return Ok((Self::new(file, end + 1), 0));
        }
        file.set_len(whole)?;
        Ok((Self::new(file, whole), end - whole))
    }
}

impl<S: Sink> LineFile<S> {
    pub(super) fn new(sink: S, length: u64) -> Self {
        Self { sink, length, torn: false }
    }

    /// Bytes of whole lines in it.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Appends lines, each with its newline. Returns how many bytes of whole lines went in, and what stopped the rest.
    pub(super) fn append(&mut self, lines: &[u8]) -> (usize, io::Result<()>) {
        if self.torn {
            if let Err(error) = self.sink.truncate(self.length) {
                return (0, Err(error));
            }
            self.torn = false;
        }
        let mut rest = lines;
        let outcome = loop {
            if rest.is_empty() {
                break Ok(());
            }
            match self.sink.write(rest) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        let written = lines.len() - rest.len();
        let whole = lines.iter().take(written).rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.length += whole as u64;
        self.torn = whole < written && self.sink.truncate(self.length).is_err();
        (whole, outcome)
    }
}

fn end_of_last_line(file: &File, end: u64) -> io::Result<u64> {
    const BLOCK: u64 = 8192;
    let mut block_end = end;
    while block_end > 0 {
        let start = block_end.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(block_end - start).unwrap_or(0)];
        file.read_exact_at(&mut block, start)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        block_end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes so many bytes, then none until there is room again.
    struct Small {
        content: Vec<u8>,
        capacity: usize,
        can_truncate: bool,
    }

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.capacity.saturating_sub(self.content.len());
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(room).min(7);
            self.content.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink for Small {
        fn truncate(&mut self, bytes: u64) -> io::Result<()> {
            if !self.can_truncate {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            self.content.truncate(usize::try_from(bytes).unwrap());
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn wherever_the_disk_fills_up_the_file_ends_in_a_whole_line_and_nothing_is_lost_or_doubled(
            lines in prop::collection::vec("[a-z]{0,12}\n", 1..20),
            capacity in 0_usize..150,
        ) {
            let all = lines.concat().into_bytes();
            let mut file = LineFile::new(Small { content: vec![], capacity, can_truncate: true }, 0);
            let (whole, outcome) = file.append(&all);
            prop_assert_eq!(outcome.is_ok(), all.len() <= capacity);
            prop_assert_eq!(&file.sink.content, &all[..whole]);
            prop_assert_eq!(file.length(), whole as u64);
            prop_assert!(whole == 0 || all[whole - 1] == b'\n');

            file.sink.capacity = usize::MAX;
            let (rest, outcome) = file.append(&all[whole..]);
            prop_assert!(outcome.is_ok());
            prop_assert_eq!(whole + rest, all.len());
            prop_assert_eq!(file.sink.content, all);
        }
    }

    #[test]
    fn half_a_line_that_cannot_be_taken_back_at_once_is_taken_back_before_the_next_line() {
        let mut file = LineFile::new(Small { content: vec![], capacity: 3, can_truncate: false }, 0);
        assert_eq!(file.append(b"one\n").0, 0);
        assert_eq!(file.sink.content, b"one");
        file.sink.capacity = 100;
        assert!(file.append(b"one\n").1.is_err(), "half a line still stands there");
        file.sink.can_truncate = true;
        assert_eq!(file.append(b"one\n").0, 4);
        assert_eq!(file.sink.content, b"one\n");
    }

    #[test]
    fn a_line_longer_than_a_block_is_found_to_its_beginning() {
        let file = tempfile::tempfile().unwrap();
        let lines = [&b"first\n"[..], &vec![b'x'; 20_000]].concat();
        file.write_all_at(&lines, 0).unwrap();
        assert_eq!(end_of_last_line(&file, lines.len() as u64).unwrap(), 6);
    }
}
