//! Console and file logs, each with its own level; the file bounded in size.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::LogFormat;
use crate::config::{LogLevel, Logging};
use crate::store::{Distrust, judge_open};
use crate::text::LogLines;

/// Starts logging to the console, and to `file` if there is one.
///
/// The guard writes out what is buffered when it is dropped.
pub fn start(
    console: LevelFilter,
    format: LogFormat,
    file: Option<(LogFile, LevelFilter)>,
) -> Option<WorkerGuard> {
    let (file_layer, guard) = match file {
        Some((file, level)) => {
            let (writer, guard): (NonBlocking, WorkerGuard) =
                tracing_appender::non_blocking(LogLines::new(file, false));
            let layer = tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(writer)
                .log_internal_errors(false)
                .with_filter(ours(level));
            (Some(layer), Some(guard))
        }
        None => (None, None),
    };
    // An error of the console is not reported on the console: that would panic where nobody reads it (`| tee` killed).
    let (text, json) = match format {
        LogFormat::Text => {
            let ansi = io::IsTerminal::is_terminal(&io::stderr());
            let layer = tracing_subscriber::fmt::layer()
                .with_writer(move || LogLines::new(io::stderr(), ansi))
                .with_ansi(ansi);
            let layer = layer.log_internal_errors(false);
            (Some(layer.with_filter(ours(console))), None)
        }
        LogFormat::Json => {
            let layer =
                tracing_subscriber::fmt::layer().json().with_writer(|| LogLines::new(io::stderr(), false));
            let layer = layer.log_internal_errors(false);
            (None, Some(layer.with_filter(ours(console))))
        }
    };
    // A second start in one process (tests) keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(text).with(json).with(file_layer).try_init();
    guard
}

/// The level for agft; of the libraries only what needs attention: the HTTP client alone has two lines for each tick.
fn ours(level: LevelFilter) -> Targets {
    Targets::new().with_target(env!("CARGO_CRATE_NAME"), level).with_default(level.min(LevelFilter::WARN))
}

/// The console's level: the flag if given, else the configuration.
pub fn console_level(flag: Option<LogLevel>, config: &Logging) -> LevelFilter {
    filter(flag.unwrap_or(config.console_level))
}

/// A configured level as a filter.
pub(crate) fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    }
}

/// Folder name for a GPU: its product name without maker and line, without blanks and dashes, cut before the variant.
pub(crate) fn gpu_folder(name: &str) -> String {
    let short = name.replace("NVIDIA ", "").replace("GeForce ", "").replace([' ', '-', '/'], "_");
    let cut = ["_SXM2", "_32GB", "_16GB", "_8GB", "_PCIE", "_SMX2"]
        .iter()
        .filter_map(|variant| short.find(variant))
        .min()
        .unwrap_or(short.len());
    let folder: String =
        short[..cut].chars().filter(|c| c.is_ascii_alphanumeric() || "_.+".contains(*c)).take(20).collect();
    if folder.contains(|c: char| c.is_ascii_alphanumeric()) { folder } else { "Unknown_GPU".into() }
}

/// A log file that starts anew when it is full, keeping a few predecessors (`name.1`, `name.2`, ...).
pub struct LogFile {
    path: PathBuf,
    file: File,
    written: u64,
    max_bytes: u64,
    keep: u32,
}

impl LogFile {
    /// Opens `dir/name`; the directory is there.
    /// Errors: [`io::Error`] if the file cannot be made, or is not one that root may write in.
    pub(crate) fn open(dir: &Path, name: &str, max_bytes: u64, keep: u32) -> io::Result<Self> {
        let path = dir.join(name);
        let file = open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { path, file, written, max_bytes, keep })
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.keep).rev() {
            let _ = std::fs::rename(self.numbered(number), self.numbered(number + 1));
        }
        if self.keep > 0 {
            std::fs::rename(&self.path, self.numbered(1))?;
        } else {
            std::fs::remove_file(&self.path)?;
        }
        self.file = open(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

/// A pipe or a device in its place is refused, and not waited for; by root also what a stranger put there, who could
/// read the log through it.
fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().create(true).append(true).mode(0o640).custom_flags(flags).open(path)?;
    match judge_open(&file)? {
        Err(Distrust::NotAFile) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        Err(why) if rustix::process::geteuid().is_root() => Err(io::Error::other(why)),
        Ok(()) | Err(_) => Ok(file),
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.written > 0 && self.written + line.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        // A full disk loses log lines; it must not stop the loop.
        self.file.write_all(line)?;
        self.written += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpu_folders_are_agfts() {
        assert_eq!(gpu_folder("NVIDIA A100-SXM4-80GB"), "A100_SXM4_80GB");
        assert_eq!(gpu_folder("NVIDIA GeForce RTX 3090"), "RTX_3090");
        assert_eq!(gpu_folder("Tesla V100-SXM2-32GB"), "Tesla_V100");
        assert_eq!(gpu_folder("NVIDIA H100 80GB HBM3 with a very long name"), "H100_80GB_HBM3_with_");
        assert_eq!(gpu_folder("../.."), "Unknown_GPU");
    }

    #[test]
    fn full_file_is_rotated_and_old_ones_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(dir.path(), "agft.log", 100, 2).unwrap();
        for k in 0..20 {
            writeln!(log, "line {k:02} {}", "x".repeat(40)).unwrap();
        }
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["agft.log", "agft.log.1", "agft.log.2"]);
        let newest = std::fs::read_to_string(dir.path().join("agft.log")).unwrap();
        assert!(newest.contains("line 19") && newest.len() <= 100);
    }
}
