//! What instances there are to be: instance files, and over them what `apply` gave.
//!
//! An applied entry stands in the place of a file's entry with its name. It is kept in a file of its own, so
//! it survives a reload and a new start; taking it back brings the file's entry back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::files::{self, Entries, Problems, Surroundings, check_together};

/// The instance files of one supervisor.
#[derive(Debug, Clone)]
pub struct Catalog {
    paths: Vec<PathBuf>,
    applied_file: PathBuf,
    around: Surroundings,
    applied: Entries,
    /// All that counts.
    entries: Entries,
}

/// Why a change of the entries did not come about. Nothing is changed then.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The entries are wrong.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// They cannot be kept.
    #[error("{file}: cannot be written: {source}; check --state-dir, its permissions and its space")]
    Write {
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing was applied under this name.
    #[error("{name}: nothing was applied under this name{}", elsewhere(.file.as_deref()))]
    NotApplied {
        /// The name.
        name: String,
        /// The file that has an entry of the name.
        file: Option<PathBuf>,
    },
}

fn elsewhere(file: Option<&Path>) -> String {
    file.map(|file| format!("; its entry is in {}: take it out there and reload", file.display()))
        .unwrap_or_default()
}

impl Catalog {
    /// Reads all files.
    ///
    /// # Errors
    /// [`Problems`]: all that is wrong with them.
    pub fn open(paths: Vec<PathBuf>, applied_file: PathBuf, around: Surroundings) -> Result<Self, Problems> {
        let mut catalog =
            Self { paths, applied_file, around, applied: Entries::default(), entries: Entries::default() };
        catalog.reload()?;
        Ok(catalog)
    }

    /// All entries that count, and notes about them.
    #[must_use]
    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Reads all files again; where anything is wrong, everything stays as it was.
    ///
    /// # Errors
    /// [`Problems`]: all that is wrong with them.
    pub fn reload(&mut self) -> Result<(), Problems> {
        let read = files::read(&self.paths, &self.around);
        let applied = match self.applied_file.try_exists() {
            Ok(false) => Ok(Entries::default()),
            _ => files::read(std::slice::from_ref(&self.applied_file), &self.around),
        };
        let (entries, applied) = match (read, applied) {
            (Ok(entries), Ok(applied)) => (entries, applied),
            (read, applied) => {
                let of = |result: Result<Entries, Problems>| {
                    result.err().map_or_else(Vec::new, |problems| problems.0)
                };
                let mut problems = of(read);
                problems.extend(of(applied));
                return Err(Problems(problems));
            }
        };
        self.entries = together(entries, &applied)?;
        self.applied = applied;
        Ok(())
    }

    /// Adds `given`, in the place of what has the same names, and keeps it.
    ///
    /// # Errors
    /// [`CatalogError`]; nothing is changed then.
    pub fn apply(&mut self, given: Entries) -> Result<(), CatalogError> {
        let mut applied = self.applied.clone();
        applied.replace(given);
        applied.notes.clear();
        self.change(applied)
    }

    /// Takes back what was applied under this name.
    ///
    /// # Errors
    /// [`CatalogError`]; nothing is changed then.
    pub fn remove(&mut self, name: &str) -> Result<(), CatalogError> {
        let mut applied = self.applied.clone();
        if !applied.remove(name) {
            let file = self.entries.find(name).map(|entry| entry.place.file.clone());
            return Err(CatalogError::NotApplied { name: name.to_owned(), file });
        }
        self.change(applied)
    }

    /// Whether an entry of this name was applied.
    #[must_use]
    pub fn is_applied(&self, name: &str) -> bool {
        self.applied.find(name).is_some()
    }

    /// What the entries are read with.
    #[must_use]
    pub fn surroundings(&self) -> &Surroundings {
        &self.around
    }

    fn change(&mut self, applied: Entries) -> Result<(), CatalogError> {
        let read = files::read(&self.paths, &self.around)?;
        // First as they were given: problems so have the places of the request.
        together(read.clone(), &applied)?;
        let text = format!(
            "# Written by agft-serve: what `agft instances apply` gave. `agft instances rm NAME` takes it back.\n{}\n",
            applied.to_yaml()
        );
        // What could not be read back is not written.
        let kept = files::parse(&self.applied_file, &text, &self.around)?;
        if text.len() as u64 > files::MAX_BYTES {
            let place = files::Place { file: self.applied_file.clone(), ..files::Place::default() };
            let rule = format!("would be larger than {} KiB", files::MAX_BYTES >> 10);
            let remedy = Some("put entries into instance files instead".to_owned());
            return Err(Problems(vec![files::Problem { place, key: String::new(), rule, remedy }]).into());
        }
        let entries = together(read, &kept)?;
        write(&self.applied_file, &text).map_err(|source| CatalogError::Write {
            file: self.applied_file.display().to_string(),
            source,
        })?;
        self.entries = entries;
        self.applied = kept;
        Ok(())
    }
}

fn together(mut entries: Entries, applied: &Entries) -> Result<Entries, Problems> {
    entries.replace(applied.clone());
    check_together(&entries.list)?;
    Ok(entries)
}

/// Puts a new file in the place of the old one at once: a reader, also after a crash, finds one of the two.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    let new = file.with_extension("yaml.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Its env may have secrets.
    let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    open.write_all(text.as_bytes())?;
    open.sync_all()?;
    fs::rename(&new, file)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new(text: &str) -> Self {
            let place = Self { dir: tempfile::tempdir().unwrap() };
            fs::write(place.dir.path().join("a.yaml"), text).unwrap();
            place
        }

        fn open(&self) -> Result<Catalog, Problems> {
            let path = self.dir.path();
            Catalog::open(vec![path.join("a.yaml")], path.join("state/applied.yaml"), Surroundings::default())
        }
    }

    fn given(text: &str) -> Entries {
        files::parse(Path::new("request"), text, &Surroundings::default()).unwrap()
    }

    fn commands(catalog: &Catalog) -> Vec<String> {
        let list = catalog.entries().instances();
        list.iter().map(|instance| format!("{}={}", instance.name, instance.command.join(" "))).collect()
    }

    #[test]
    fn applied_entries_win_survive_and_give_way_when_they_are_removed() {
        let place = Place::new("- {name: a, command: x}\n- {name: b, command: y}\n");
        let mut catalog = place.open().unwrap();
        catalog.apply(given("- {name: b, command: z, env: {V: 1.10}}\n- {name: c, command: w}")).unwrap();
        assert_eq!(commands(&catalog), ["a=x", "b=z", "c=w"]);
        catalog.apply(given("- {name: c, command: v}")).unwrap();
        catalog.reload().unwrap();
        assert_eq!(commands(&catalog), ["a=x", "b=z", "c=v"]);
        let mut again = place.open().unwrap();
        assert_eq!(commands(&again), ["a=x", "b=z", "c=v"]);
        assert_eq!(again.entries().find("b").unwrap().instance.env["V"], "1.10");
        assert!(again.is_applied("b") && !again.is_applied("a"));
        again.remove("b").unwrap();
        assert_eq!(commands(&again), ["a=x", "b=y", "c=v"]);
        let message = again.remove("a").unwrap_err().to_string();
        assert!(message.contains("a.yaml: take it out there"), "{message}");
        assert_eq!(commands(&place.open().unwrap()), ["a=x", "b=y", "c=v"]);
    }

    #[test]
    fn what_is_wrong_changes_nothing() {
        let place = Place::new("- {name: a, command: 'x {port}', on_demand: {listen: '127.0.0.1:81'}}\n");
        let mut catalog = place.open().unwrap();
        let clash = given("- {name: b, command: 'x {port}', on_demand: {listen: '127.0.0.1:81'}}");
        assert!(matches!(catalog.apply(clash), Err(CatalogError::Problems(_))));
        // Deeper than a file may be, and larger.
        let mut hook = serde_json::json!({"command": "x"});
        for _ in 0..20 {
            hook = serde_json::json!({"command": "x", "hooks": [hook]});
        }
        let deep = serde_json::json!([{"name": "b", "command": "x", "hooks": [hook]}]);
        let deep = files::from_json(Path::new("request"), &deep, &Surroundings::default()).unwrap();
        assert!(catalog.apply(deep).unwrap_err().to_string().contains("nested deeper"));
        catalog.apply(given(&format!("- {{name: b, command: {}}}", "x".repeat(900 << 10)))).unwrap();
        let more = given(&format!("- {{name: c, command: {}}}", "x".repeat(900 << 10)));
        assert!(catalog.apply(more).unwrap_err().to_string().contains("would be larger than 1024 KiB"));
        catalog.remove("b").unwrap();
        assert_eq!(commands(&catalog), ["a=x {port}"]);
        fs::write(place.dir.path().join("a.yaml"), "- {name: a}").unwrap();
        assert!(catalog.reload().unwrap_err().to_string().contains("command is missing"));
        assert_eq!(commands(&catalog), ["a=x {port}"]);
        fs::create_dir_all(place.dir.path().join("state")).unwrap();
        fs::write(place.dir.path().join("state/applied.yaml"), "nonsense").unwrap();
        let message = place.open().unwrap_err().to_string();
        assert!(message.contains("command is missing") && message.contains("applied.yaml:1"), "{message}");
    }
}
