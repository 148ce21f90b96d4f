//! Reads rounds back, whatever state a crash left the file in.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::{FILE_NAME, MAX_LINE_BYTES, RoundRecord, rotated_name};
use crate::store::error::StoreError;

/// A line that is not a round.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct BadLine {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub why: String,
    /// Is it the last line, cut short: what a crash, or a writer at work, leaves behind?
    pub torn: bool,
}

/// The rounds of one file, in order; bad lines come as errors and do not end it.
#[derive(Debug)]
pub struct RoundReader<R> {
    input: R,
    line: u64,
    ended: bool,
}

impl RoundReader<BufReader<File>> {
    /// Opens a file.
    /// Errors: `StoreError::Io` if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        match File::open(path) {
            Ok(file) => Ok(Self::new(BufReader::new(file))),
            Err(cause) => Err(StoreError::Io { operation: "open", path: path.to_owned(), cause }),
        }
    }
}

impl<R: BufRead> RoundReader<R> {
    /// Reads from anything.
    pub fn new(input: R) -> Self {
        Self { input, line: 0, ended: false }
    }

    /// The next line without its newline, and whether it had one; `None` at the end.
    fn next_line(&mut self) -> io::Result<Option<(Vec<u8>, bool)>> {
        let mut line = Vec::new();
        if (&mut self.input).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let mut ended = line.last() == Some(&b'\n');
        if ended {
            line.pop();
        } else if line.len() as u64 == MAX_LINE_BYTES {
            self.input.skip_until(b'\n')?;
            ended = true;
        }
        Ok(Some((line, ended)))
    }
}

impl<R: BufRead> Iterator for RoundReader<R> {
    type Item = Result<RoundRecord, BadLine>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            self.line += 1;
            let line = self.line;
            let bad = |why: String, torn| Some(Err(BadLine { line, why, torn }));
            match self.next_line() {
                Ok(None) => self.ended = true,
                Ok(Some((text, _))) if text.trim_ascii().is_empty() => {}
                Ok(Some((text, whole))) => {
                    return match serde_json::from_slice(&text) {
                        Ok(record) => Some(Ok(record)),
                        Err(error) => bad(error.to_string(), !whole),
                    };
                }
                Err(error) => {
                    self.ended = true;
                    return bad(error.to_string(), false);
                }
            }
        }
        None
    }
}

/// The files of a run's record that are there, oldest first.
/// Errors: `StoreError::Io` if the directory cannot be listed.
pub fn files_of(run_dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let fail = |cause| StoreError::Io { operation: "list", path: run_dir.to_owned(), cause };
    let mut found = Vec::new();
    for entry in run_dir.read_dir().map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        if let Some(index) = name.to_str().and_then(index_of) {
            found.push((index, run_dir.join(name)));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// 0 for the file being written, 1 for the one before it, ...
fn index_of(name: &str) -> Option<usize> {
    if name == FILE_NAME {
        return Some(0);
    }
    let index = name.strip_prefix("rounds_data.")?.strip_suffix(".jsonl")?.parse().ok()?;
    (rotated_name(index) == name && index > 0).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::at;

    fn line(round: u64) -> String {
        serde_json::to_string(&RoundRecord::new(round, at(7))).unwrap() + "\n"
    }

    fn read(text: &[u8]) -> (Vec<u64>, Vec<BadLine>) {
        let (mut rounds, mut bad) = (Vec::new(), Vec::new());
        for record in RoundReader::new(text) {
            match record {
                Ok(record) => rounds.push(record.round),
                Err(line) => bad.push(line),
            }
        }
        (rounds, bad)
    }

    #[test]
    fn bad_lines_are_reported_by_number_and_the_rest_is_read() {
        let text = [line(1), "{\"round\": 2".into(), "\n\n".into(), line(3), "[]\n".into(), line(4)].concat();
        let (rounds, bad) = read(text.as_bytes());
        assert_eq!(rounds, [1, 3, 4]);
        assert_eq!(bad.iter().map(|bad| (bad.line, bad.torn)).collect::<Vec<_>>(), [(2, false), (5, false)]);
        assert!(bad[0].to_string().starts_with("line 2: EOF while parsing"), "{}", bad[0]);
    }

    #[test]
    fn a_last_line_torn_anywhere_is_told_from_a_bad_one() {
        let (first, last) = (line(1), line(2));
        for cut in 1..last.len() - 1 {
            let (rounds, bad) = read([&first, &last[..cut]].concat().as_bytes());
            assert_eq!(rounds, [1]);
            assert_eq!(bad.iter().map(|bad| (bad.line, bad.torn)).collect::<Vec<_>>(), [(2, true)]);
        }
        assert_eq!(read([&first, last.trim_end()].concat().as_bytes()), (vec![1, 2], vec![]));
    }

    #[test]
    fn a_line_without_end_is_one_bad_line() {
        let endless = usize::try_from(MAX_LINE_BYTES).unwrap() * 2 + 5;
        let text = [&vec![b'x'; endless][..], b"\n", line(2).as_bytes()].concat();
        let (rounds, bad) = read(&text);
        assert_eq!((rounds, bad.len(), bad[0].line), (vec![2], 1, 1));
    }

    #[test]
    fn files_of_a_run_come_oldest_first_and_others_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["rounds_data.jsonl", "rounds_data.2.jsonl", "rounds_data.10.jsonl", "rounds_data.1.jsonl"]
        {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        for name in ["rounds_data.01.jsonl", "rounds_data.x.jsonl", "rounds_data.0.jsonl", "rounds.jsonl"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let want =
            ["rounds_data.10.jsonl", "rounds_data.2.jsonl", "rounds_data.1.jsonl", "rounds_data.jsonl"];
        assert_eq!(files_of(dir.path()).unwrap(), want.map(|name| dir.path().join(name)));
    }
}
