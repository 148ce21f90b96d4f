//! The token: whoever has it may change instances, which is to run programs as the supervisor's user.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;

/// Fewer characters can be guessed.
const SHORTEST: usize = 16;
const LONGEST: u64 = 4096;

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Not the token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The system said so.
    #[error("token file {file}: {source}", file = file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others know it, or it is easily guessed.
    #[error("token file {file}: {why}", file = file.display())]
    Bad {
        /// The file.
        file: PathBuf,
        /// Rule and remedy.
        why: String,
    },
}

impl Token {
    /// The token in a file: its first line. `secret`: of a file that others can read none is taken.
    ///
    /// # Errors
    /// [`TokenError`]
    pub fn read(file: &Path, secret: bool) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Io { file: file.to_owned(), source };
        let bad = |why: &str| TokenError::Bad { file: file.to_owned(), why: why.to_owned() };
        let open = OpenOptions::new().read(true).open(file).map_err(failed)?;
        let metadata = open.metadata().map_err(failed)?;
        let me = rustix::process::geteuid().as_raw();
        if secret && (metadata.mode() & 0o077 != 0 || (metadata.uid() != me && metadata.uid() != 0)) {
            return Err(bad("others can read or change it; make it yours alone (chmod 600)"));
        }
        let mut text = String::new();
        open.take(LONGEST).read_to_string(&mut text).map_err(failed)?;
        let token = text.lines().next().unwrap_or_default().trim();
        if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad(
                "its first line must be at least 16 characters without blanks (openssl rand -hex 32)",
            ));
        }
        Ok(Self(token.to_owned()))
    }

    /// The token in a file of the runtime directory, which is made at the first start.
    ///
    /// # Errors
    /// [`TokenError`]
    pub fn read_or_make(file: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Io { file: file.to_owned(), source };
        if let Some(dir) = file.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed)?;
        }
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
            Ok(mut open) => {
                let token = Self::random().map_err(failed)?;
                open.write_all(format!("{}\n", token.0).as_bytes()).map_err(failed)?;
                Ok(token)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::read(file, true),
            Err(error) => Err(failed(error)),
        }
    }

    fn random() -> io::Result<Self> {
        let mut bytes = [0; 32];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Is this `Authorization` header that of somebody who has the token? Takes the same time for all wrong
    /// ones.
    #[must_use]
    pub fn allows(&self, header: Option<&[u8]>) -> bool {
        let Some((scheme, given)) = header.and_then(|header| header.split_at_checked("Bearer ".len())) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(self.0.as_bytes()))
    }

    /// The header that shows it.
    #[must_use]
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run/token");
        let token = Token::read_or_make(&file).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(Token::read_or_make(&file).unwrap(), token);
        assert!(token.0.len() == 64 && !format!("{token:?}").contains(&token.0));
        let other = Token::read_or_make(&dir.path().join("run/other")).unwrap();
        assert_ne!(other, token);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Token::read_or_make(&file).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, "short\n").unwrap();
        assert!(Token::read(&file, true).unwrap_err().to_string().contains("at least 16"));
    }

    #[test]
    fn only_the_whole_token_is_let_in() {
        let token = Token("0123456789abcdef".into());
        assert!(token.allows(Some(token.header().as_bytes())));
        assert!(token.allows(Some(b"bearer 0123456789abcdef")));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdefg",
            "Basic 0123456789abcdef",
        ] {
            assert!(!token.allows(Some(wrong.as_bytes())), "{wrong}");
        }
        assert!(!token.allows(None));
    }
}
