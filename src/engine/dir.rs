//! The user's own profiles: one file, or a directory of them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::file::LARGEST_FILE;
use super::{Profile, ProfileError};
use crate::store::trusted_path;

/// How the name of a profile's file ends; other files of the directory are left alone.
const ENDING: &str = "toml";

/// Reads the profile in this file.
///
/// # Errors
/// [`ProfileError`] if it cannot be read, or with all that is wrong in it.
pub fn load_file(path: &Path) -> Result<Profile, ProfileError> {
    let file = path.display().to_string();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|cause| ProfileError::Unreadable { file: file.clone(), cause })?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(ProfileError::TooLarge { file });
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Profile::parse(text, &file),
        Err(_) => Err(ProfileError::NotUtf8 { file }),
    }
}

/// Reads every `*.toml` of this directory, in the order of the names. A process that `obeys` does what they say: root
/// refuses files that others could have written.
///
/// # Errors
/// All that is wrong with any of them.
pub fn load_dir(dir: &Path, obeys: bool) -> Result<Vec<Profile>, Vec<ProfileError>> {
    let unreadable =
        |cause: io::Error| vec![ProfileError::Unreadable { file: dir.display().to_string(), cause }];
    let entries =
        std::fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(unreadable)?;
    let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == ENDING));
    paths.sort();
    let (mut found, mut errors) = (Vec::<(Profile, String)>::new(), Vec::new());
    for path in paths {
        let file = path.display().to_string();
        // Before its first word is read: an error message repeats words of a file.
        if obeys
            && rustix::process::geteuid().is_root()
            && let Err(why) = trusted_path(&path)
        {
            errors.push(ProfileError::Distrusted { file, why: why.to_string() });
            continue;
        }
        match load_file(&path) {
            Ok(profile) => {
                let same =
                    |(other, _): &&(Profile, String)| other.name().eq_ignore_ascii_case(profile.name());
                if let Some((_, other)) = found.iter().find(same) {
                    let (name, other) = (profile.name().to_owned(), other.clone());
                    errors.push(ProfileError::Twice { file: file.clone(), name, other });
                }
                found.push((profile, file));
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(found.into_iter().map(|(profile, _)| profile).collect()) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(name: &str) -> String {
        format!(
            "name = \"{name}\"\nrecognise = {{ prefixes = [\"x_\"] }}\nsignals = {{ running = {{ names = [\"r\"] }} }}"
        )
    }

    #[test]
    fn directory_gives_its_profiles_or_everything_that_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        write("b.toml", &profile("B"));
        write("a.toml", &profile("A"));
        write("notes.txt", "no profile");
        let names = load_dir(dir.path(), false).unwrap();
        assert_eq!(names.iter().map(Profile::name).collect::<Vec<_>>(), ["A", "B"]);
        write("c.toml", &profile("b"));
        write("d.toml", "name = 1");
        write("e.toml", "name = ");
        let errors = load_dir(dir.path(), false).unwrap_err();
        let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for part in [
            "c.toml: b has a profile already, in ",
            "d.toml: name is 1, must be letters",
            "e.toml: is not TOML",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        let gone = load_dir(&dir.path().join("none"), false).unwrap_err();
        assert!(matches!(gone.as_slice(), [ProfileError::Unreadable { .. }]), "{gone:?}");
    }
}
