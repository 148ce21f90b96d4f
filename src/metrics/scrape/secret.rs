//! The bearer token: read once, shown never.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use reqwest::header::HeaderValue;

use super::ScrapeError;

/// The longest token taken; web tokens of several kilobytes exist.
const LONGEST_TOKEN: usize = 16 * 1024;

/// An `Authorization` header whose content no `Debug` or error text shows.
#[derive(Clone)]
pub struct BearerToken(HeaderValue);

impl BearerToken {
    /// Reads a token from a file that holds nothing else; a line end after it is left out. That others can read the
    /// file is said in the log.
    ///
    /// # Errors
    /// [`ScrapeError::BadToken`] if the file cannot be read, is empty or too long, or holds more than a token.
    pub fn read(path: &Path) -> Result<Self, ScrapeError> {
        let bad = |reason: String| ScrapeError::BadToken { path: path.to_owned(), reason };
        let limit = LONGEST_TOKEN + 2;
        let bytes = read_file(path, limit).map_err(|error| bad(error.to_string()))?;
        if let Some(warning) = exposed(path) {
            tracing::warn!("bearer_token_file {warning}");
        }
        let token = bytes.trim_ascii_end();
        if token.is_empty() {
            return Err(bad("it is empty".to_owned()));
        }
        if bytes.len() == limit || token.len() > LONGEST_TOKEN {
            return Err(bad(format!("it is longer than {LONGEST_TOKEN} bytes")));
        }
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err(bad(
                "it must hold the token alone, in one line and without the word Bearer".to_owned()
            ));
        }
        let mut header = HeaderValue::from_bytes(&[b"Bearer ", token].concat())
            .map_err(|_| bad("the token cannot stand in an HTTP header".to_owned()))?;
        header.set_sensitive(true);
        Ok(Self(header))
    }

    /// The value of the `Authorization` header, marked sensitive.
    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// The first `limit` bytes of a regular file. A pipe or a device in its place is refused, and not waited for:
/// the loop reads these files too.
pub(super) fn read_file(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What is said of a token file that others can read or write; nothing of one they cannot, or that is not there.
#[must_use]
pub fn exposed(path: &Path) -> Option<String> {
    let mode = path.metadata().ok()?.mode() & 0o7777;
    let warning = format!(
        "{}: its mode {mode:04o} lets every user of the machine read the token (`chmod o-rwx`)",
        path.display()
    );
    (mode & 0o006 != 0).then_some(warning)
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tempfile::NamedTempFile;

    use super::*;

    fn read(content: &[u8]) -> Result<BearerToken, ScrapeError> {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        BearerToken::read(file.path())
    }

    #[test]
    fn pipe_in_the_place_of_the_token_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        assert!(BearerToken::read(&path).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn line_end_after_the_token_is_left_out() {
        for content in ["s3cret", "s3cret\n", "s3cret\r\n"] {
            assert_eq!(read(content.as_bytes()).unwrap().header(), "Bearer s3cret");
        }
    }

    #[test]
    fn debug_text_hides_the_token() {
        assert_eq!(format!("{:?}", read(b"s3cret").unwrap()), "BearerToken(hidden)");
    }

    #[test]
    fn file_that_holds_no_single_token_is_refused_without_quoting_it() {
        let long = "s3cret".repeat(LONGEST_TOKEN);
        for (content, says) in [
            ("", "empty"),
            ("\n\n", "empty"),
            ("Bearer s3cret", "without the word Bearer"),
            ("s3cret\ns3cret", "in one line"),
            ("s3crét", "the token alone"),
            (long.as_str(), "longer than 16384 bytes"),
        ] {
            let error = read(content.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("s3cr"), "{error}");
        }
    }

    #[test]
    fn longest_token_is_still_taken_with_its_line_end() {
        let token = "x".repeat(LONGEST_TOKEN);
        assert!(read(format!("{token}\n").as_bytes()).is_ok());
        assert!(read(format!("{token}x").as_bytes()).is_err());
    }

    #[test]
    fn missing_file_is_named() {
        let error = BearerToken::read(Path::new("/nonexistent/token")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/token"), "{error}");
    }
}
