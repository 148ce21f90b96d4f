//! Which GPU is whose, and which of its clocks are locked: two small files for each GPU, in a directory of all agfts of
//! the machine.
//!
//! ```text
//! <runtime dir>/GPU-....lock       held (flock) by the agft that runs on the GPU; says which one, for people
//!               GPU-....guard      the same for its guardian, which may outlive it by a moment
//!               GPU-....journal    there while clocks of the GPU are locked, or may be
//! ```
//!
//! The kernel drops a flock with its process, however that ends: a lock file that is not held belongs to the dead, and
//! is never removed (removing one races with those who just opened it). A journal is one line of JSON and its SHA-256.
//! It is there before the first lock, so one without a living holder means clocks to give back. It names the boot: no
//! lock survives a restart of the machine, so a journal of another boot is dropped. A damaged one is put aside for a
//! human, and counts as "anything may be locked".
//!
//! The directory is configurable, and two configurations may name two. So whoever takes a GPU also takes its lock file in
//! a place that no configuration decides (`claim::machine_places`): one machine's agfts meet there, whatever they are told.

mod claim;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::dir::{Dir, Found};
use super::error::StoreError;
use super::{file, rfc3339, time};
use crate::gpu::pstate::MayBeForced;
use crate::units::Mhz;

pub use claim::Busy;
pub(crate) use claim::{Claim, ClaimError, Role, free_on_machine};
use claim::{machine_places, meet, take};

/// The format that is written.
const VERSION: u32 = 1;
/// No file of this directory is larger, in bytes.
const MAX_BYTES: u64 = 16 << 10;
const JOURNAL: &str = ".journal";
/// How many damaged journals of one GPU stay.
const KEPT_ASIDE: usize = 5;

/// A process, told apart from later ones of the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot; 0 if the kernel does not say.
    pub pid_start: u64,
    /// Its configuration file.
    pub config: PathBuf,
}

impl Holder {
    /// This process.
    pub fn current(config: &Path) -> Self {
        Self {
            pid: std::process::id(),
            pid_start: start_of(std::process::id()).unwrap_or(0),
            config: std::path::absolute(config).unwrap_or_else(|_| config.to_owned()),
        }
    }
}

impl Holder {
    /// Is it this very process that has this id now? `false`, too, where the kernel does not say.
    pub(crate) fn is_alive(&self) -> bool {
        self.pid_start != 0 && start_of(self.pid) == Some(self.pid_start)
    }
}

/// When a process started, in the kernel's ticks since boot.
fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name, in parentheses, and may have blanks; start time is the 22nd.
    stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok())
}

/// A locked range of one clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedRange {
    /// Lower bound.
    pub min_mhz: Mhz,
    /// Upper bound.
    pub max_mhz: Mhz,
}

/// What is, or may be, locked on one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    version: u32,
    boot_id: String,
    /// Who locked.
    pub holder: Holder,
    /// UUID of the GPU.
    pub gpu: String,
    /// The first lock of the core clock. Later ones replace it without a word here: to undo them the place is enough.
    pub core: Option<LockedRange>,
    /// The same for the memory clock.
    pub memory: Option<LockedRange>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) state_forced: bool,
    /// When this was written, RFC 3339.
    written_at: String,
}

impl Journal {
    /// A journal of this boot with nothing locked yet.
    pub fn new(holder: Holder, gpu: &str, now: Timestamp) -> Self {
        Self {
            version: VERSION,
            boot_id: boot_id(),
            holder,
            gpu: gpu.to_owned(),
            core: None,
            memory: None,
            state_forced: false,
            written_at: rfc3339(now),
        }
    }

    fn encode(&self, path: &Path) -> Result<Vec<u8>, StoreError> {
        let line = serde_json::to_string(self)
            .map_err(|error| StoreError::Encode { path: path.to_owned(), detail: error.to_string() })?;
        Ok(summed(&line))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let mut lines = text.lines();
        let (Some(line), Some(sum), None) = (lines.next(), lines.next(), lines.next()) else {
            return Err("it is not one line and its checksum".into());
        };
        if sum != checksum(line) {
            return Err("the checksum does not match".into());
        }
        let journal: Self = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if journal.version != VERSION {
            return Err(format!("format version {}; this agft reads {VERSION}", journal.version));
        }
        Ok(journal)
    }
}

pub(super) fn summed(line: &str) -> Vec<u8> {
    format!("{line}\n{}\n", checksum(line)).into_bytes()
}

fn checksum(line: &str) -> String {
    Sha256::digest(line.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The kernel's name for this boot; empty, and then equal to itself only, where there is none.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// What a journal file turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// Clocks of this GPU were locked and not given back.
    Locked(Box<Journal>),
    /// It was of another boot, whose locks are gone, and has been dropped.
    OtherBoot {
        /// UUID of the GPU.
        gpu: String,
    },
    /// It could not be read and was put aside: anything may be locked.
    Damaged {
        /// UUID of the GPU, from the file's name.
        gpu: String,
        kept_as: PathBuf,
        why: String,
    },
}

/// The directory of locks and journals.
#[derive(Debug)]
pub(crate) struct HeldDir {
    dir: Dir,
    /// Where the agfts of the machine meet.
    places: Vec<PathBuf>,
}

impl HeldDir {
    /// Opens it, making it if need be.
    /// Errors: [`StoreError`]; for root also if others could remove a journal from it, or hold a lock file in
    /// it.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        Self::meeting_in(path, machine_places())
    }

    fn meeting_in(path: &Path, places: Vec<PathBuf>) -> Result<Self, StoreError> {
        Ok(Self { dir: Dir::open_or_create(path)?.only_ours()?, places })
    }

    /// Takes the GPU for this process.
    /// Errors: [`ClaimError::Busy`] if a living process has it, with its name.
    pub(crate) fn claim(&self, gpu: &str, role: Role, holder: &Holder) -> Result<Claim, ClaimError> {
        let claim = self.claim_unnamed(gpu, role)?;
        let text = serde_json::to_string(holder).unwrap_or_default();
        for mut file in &claim.files {
            self.dir.attempt("write", &format!("{}{}", plain(gpu), role.suffix()), || {
                file.set_len(0)?;
                std::io::Write::write_all(&mut file, text.as_bytes())
            })?;
        }
        Ok(claim)
    }

    /// The same without a name: for one that only resets, or waits.
    pub(crate) fn claim_unnamed(&self, gpu: &str, role: Role) -> Result<Claim, ClaimError> {
        let mut files = vec![take(&self.dir, gpu, role)?];
        match meet(&self.places, Some(&self.dir), gpu, role) {
            Ok(file) => files.extend(file),
            Err(ClaimError::Store(error)) => tracing::warn!(
                places = ?self.places, %error,
                "no place that all agfts of this machine share: one with another gpu.runtime_dir would not be noticed"
            ),
            Err(busy) => return Err(busy),
        }
        Ok(Claim { files })
    }

    /// Does a successor of the GPU's guardian wait for it, with this directory or (`anywhere`) with another
    /// one?
    pub(crate) fn is_asked_for(&self, gpu: &str, anywhere: bool) -> bool {
        let here = take(&self.dir, gpu, Role::Successor);
        let busy = |taken: &ClaimError| matches!(taken, ClaimError::Busy(_));
        // What is locked to see whether it can be is unlocked again with the end of this.
        here.is_err_and(|error| busy(&error))
            || anywhere
                && meet(&self.places, Some(&self.dir), gpu, Role::Successor).is_err_and(|error| busy(&error))
    }

    /// Writes down what is about to be locked.
    /// Errors: [`StoreError`]; then nothing may be locked.
    pub(crate) fn write(&self, journal: &Journal) -> Result<(), StoreError> {
        let name = journal_name(&journal.gpu);
        let bytes = journal.encode(&self.dir.file(&name))?;
        file::replace(&self.dir, &name, &bytes)
    }

    /// Is there a journal of this GPU, whoever wrote it? If that cannot be told, there is.
    pub(crate) fn has_journal(&self, gpu: &str) -> bool {
        self.dir.exists(&journal_name(gpu)).unwrap_or(true)
    }

    /// The journal of this GPU; `Err` if there is one that cannot be read.
    fn journal(&self, gpu: &str) -> Result<Option<Journal>, ()> {
        match self.dir.read_trusted(&journal_name(gpu), MAX_BYTES) {
            Ok(Found::Absent) => Ok(None),
            Ok(Found::Here(bytes)) => Journal::decode(&bytes).map(Some).map_err(drop),
            Ok(Found::Refused(_)) | Err(_) => Err(()),
        }
    }

    /// Does a journal say that a performance state of this GPU is forced?
    pub(crate) fn state_may_be_forced(&self, gpu: &str) -> MayBeForced {
        match self.journal(gpu) {
            Ok(Some(journal)) if journal.state_forced => MayBeForced::Yes,
            Ok(_) => MayBeForced::No,
            Err(()) => MayBeForced::Unknown,
        }
    }

    /// Does a journal say that the memory clock of this GPU is locked?
    pub(crate) fn memory_is_locked(&self, gpu: &str) -> bool {
        matches!(self.journal(gpu), Ok(Some(journal)) if journal.memory.is_some())
    }

    /// Nothing of this GPU is locked any more.
    pub(crate) fn clear(&self, gpu: &str) -> Result<(), StoreError> {
        self.dir.remove(&journal_name(gpu))
    }

    /// Is there no journal at all, damaged or not?
    pub(crate) fn is_clean(&self) -> bool {
        self.dir.names().is_ok_and(|names| !names.iter().any(|name| name.ends_with(JOURNAL)))
    }

    /// Every journal that is there, whoever wrote it. Those of another boot are dropped, damaged ones put aside.
    ///
    /// The caller clears what it has undone. Whether the writer of a journal lives is told by [`claim`](Self::claim).
    /// Errors: [`StoreError`] if the directory cannot be read.
    pub(crate) fn leftovers(&self, now: Timestamp) -> Result<Vec<Leftover>, StoreError> {
        file::remove_leftovers(&self.dir)?;
        let mut found = Vec::new();
        for name in self.dir.names()? {
            if let Some(gpu) = name.strip_suffix(JOURNAL)
                && let Some(leftover) = self.leftover(&name, gpu, now)?
            {
                found.push(leftover);
            }
        }
        Ok(found)
    }

    fn leftover(&self, name: &str, gpu: &str, now: Timestamp) -> Result<Option<Leftover>, StoreError> {
        let journal = match self.dir.read_trusted(name, MAX_BYTES)? {
            Found::Absent => return Ok(None),
            Found::Refused(why) => Err(why.to_string()),
            Found::Here(bytes) => Journal::decode(&bytes),
        };
        let journal = match journal {
            Ok(journal) if journal_name(&journal.gpu) == name => journal,
            Ok(journal) => return self.put_aside(name, gpu, format!("it names {}", journal.gpu), now),
            Err(why) => return self.put_aside(name, gpu, why, now),
        };
        if journal.boot_id == boot_id() {
            return Ok(Some(Leftover::Locked(Box::new(journal))));
        }
        self.dir.remove(name)?;
        Ok(Some(Leftover::OtherBoot { gpu: journal.gpu }))
    }

    fn put_aside(
        &self,
        name: &str,
        gpu: &str,
        why: String,
        now: Timestamp,
    ) -> Result<Option<Leftover>, StoreError> {
        let stamp = time::file_stamp(now);
        for number in 0..100 {
            let aside = format!("{name}-damaged-{stamp}-{number}");
            if self.dir.rename_to_new(name, &aside)? {
                self.remove_oldest_aside(name, &aside);
                let kept_as = self.dir.file(&aside);
                return Ok(Some(Leftover::Damaged { gpu: gpu.to_owned(), kept_as, why }));
            }
        }
        // A hundred in one second: nobody reads them all.
        self.dir.remove(name)?;
        Ok(Some(Leftover::Damaged { gpu: gpu.to_owned(), kept_as: self.dir.file(name), why }))
    }
}

impl HeldDir {
    /// Of one GPU's damaged journals the newest stay. Names of one length sort by time.
    fn remove_oldest_aside(&self, name: &str, newest: &str) {
        let prefix = format!("{name}-damaged-");
        let mut older = self.dir.names().unwrap_or_default();
        older.retain(|other| other.starts_with(&prefix) && other != newest);
        older.sort_unstable_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        let surplus = (older.len() + 1).saturating_sub(KEPT_ASIDE);
        for oldest in older.iter().take(surplus) {
            if let Err(error) = self.dir.remove(oldest) {
                tracing::warn!(%error, "an old damaged journal stays");
            }
        }
    }
}

fn journal_name(gpu: &str) -> String {
    format!("{}{JOURNAL}", plain(gpu))
}

/// A UUID as part of a file name. It comes from the driver, and has no strange letters; a file name must not either.
fn plain(gpu: &str) -> String {
    gpu.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(100).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GPU: &str = "GPU-0f1e2d3c";

    fn now() -> Timestamp {
        Timestamp::from_second(1_790_000_000).unwrap()
    }

    fn journal() -> Journal {
        let range = LockedRange { min_mhz: Mhz(210), max_mhz: Mhz(1410) };
        let holder = Holder::current(Path::new("c.yaml"));
        Journal { core: Some(range), ..Journal::new(holder, GPU, now()) }
    }

    fn held() -> (tempfile::TempDir, HeldDir) {
        let tmp = tempfile::tempdir().unwrap();
        let held = HeldDir::open(tmp.path()).unwrap();
        (tmp, held)
    }

    #[test]
    fn what_was_written_is_found_until_cleared() {
        let (_tmp, held) = held();
        assert_eq!(held.leftovers(now()).unwrap(), []);
        held.write(&journal()).unwrap();
        assert_eq!(held.leftovers(now()).unwrap(), [Leftover::Locked(Box::new(journal()))]);
        held.clear(GPU).unwrap();
        held.clear(GPU).unwrap();
        assert_eq!(held.leftovers(now()).unwrap(), []);
    }

    #[test]
    fn journal_of_another_boot_is_dropped() {
        let (_tmp, held) = held();
        held.write(&Journal { boot_id: "an earlier one".into(), ..journal() }).unwrap();
        assert_eq!(held.leftovers(now()).unwrap(), [Leftover::OtherBoot { gpu: GPU.into() }]);
        assert_eq!(held.leftovers(now()).unwrap(), []);
    }

    #[test]
    fn every_bit_flip_and_every_truncation_is_damage_and_is_put_aside() {
        let (tmp, held) = held();
        let sound = journal().encode(Path::new("j")).unwrap();
        let path = tmp.path().join(format!("{GPU}{JOURNAL}"));
        for bit in 0..sound.len() * 8 {
            let mut flipped = sound.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // The last byte ends the line: without it, or with another blank, the same is said.
            assert!(Journal::decode(&flipped).is_err() || bit / 8 == sound.len() - 1, "bit {bit}");
        }
        for length in [0, 1, sound.len() / 2, sound.len() - 2] {
            std::fs::write(&path, &sound[..length]).unwrap();
            let found = held.leftovers(now()).unwrap();
            let [Leftover::Damaged { gpu, kept_as, .. }] = &found[..] else { panic!("{found:?}") };
            assert_eq!(gpu, GPU);
            assert_eq!(std::fs::read(kept_as).unwrap(), &sound[..length]);
            assert_eq!(held.leftovers(now()).unwrap(), []);
        }
    }

    #[test]
    fn five_damaged_journals_of_a_gpu_stay_and_the_oldest_go_first() {
        let (tmp, held) = held();
        for (number, second) in (0..8).flat_map(|second| [(0, second), (1, second)]) {
            std::fs::write(tmp.path().join(format!("{GPU}{JOURNAL}")), format!("{second} {number}")).unwrap();
            held.leftovers(Timestamp::from_second(1_790_000_000 + second).unwrap()).unwrap();
        }
        let mut kept: Vec<String> = tmp
            .path()
            .read_dir()
            .unwrap()
            .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        kept.sort();
        assert_eq!(kept, ["5 1", "6 0", "6 1", "7 0", "7 1"]);
    }

    proptest! {
        #[test]
        fn nothing_but_a_journal_is_a_journal(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Journal::decode(&bytes).is_err());
        }

        #[test]
        fn any_line_with_its_checksum_is_read_without_a_panic(line in "[ -~]{0,200}") {
            let sealed = format!("{line}\n{}\n", checksum(&line));
            prop_assert!(Journal::decode(sealed.as_bytes()).is_err());
        }
    }

    #[test]
    fn journal_under_the_name_of_another_gpu_is_damage() {
        let (tmp, held) = held();
        held.write(&journal()).unwrap();
        let [from, to] = [GPU, "GPU-other"].map(|gpu| tmp.path().join(format!("{gpu}{JOURNAL}")));
        std::fs::rename(from, to).unwrap();
        assert!(matches!(&held.leftovers(now()).unwrap()[..], [Leftover::Damaged { .. }]));
    }

    #[test]
    fn gpu_belongs_to_one_at_a_time_and_the_other_is_named() {
        let (_tmp, held) = held();
        let me = Holder::current(Path::new("/etc/agft.yaml"));
        let claim = held.claim(GPU, Role::Controller, &me).unwrap();
        let guardian = held.claim(GPU, Role::Guardian, &me).unwrap();
        let error = held.claim(GPU, Role::Controller, &me).unwrap_err();
        for part in [GPU, &format!("pid {}", me.pid), "/etc/agft.yaml"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        drop(held.claim("GPU-other", Role::Controller, &me).unwrap());
        drop((claim, guardian));
        drop(held.claim(GPU, Role::Controller, &me).unwrap());
    }

    #[test]
    fn start_time_of_this_process_is_known() {
        assert!(Holder::current(Path::new("x")).pid_start > 0);
    }
}
