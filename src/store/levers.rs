//! `levers-<UUID>.json`: what parking was measured to save on a board, and how fast it wakes.
//!
//! Plain text, for people to read. A file that cannot be used costs no more than measuring anew.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::dir::{Dir, Found};
use super::error::StoreError;
use super::file;
use crate::gpu::GpuInfo;
use crate::park::levers::LeverBook;

const VERSION: u32 = 1;
/// Far more than three levers need.
const LARGEST: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    version: u32,
    gpu: String,
    uuid: String,
    #[serde(flatten)]
    book: LeverBook,
}

fn name(gpu: &GpuInfo, gpus: usize) -> String {
    // What a driver calls a board comes from outside.
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = gpu.uuid.chars().map(plain).collect();
    // The figures of a group are sums.
    if gpus > 1 { format!("levers-{name}-of-{gpus}.json") } else { format!("levers-{name}.json") }
}

/// What was measured of this board, or of the group of `gpus` boards that begins with it, under its present driver; nothing known where that cannot be read, which is said.
pub(crate) fn load_levers(dir: &Path, gpu: &GpuInfo, gpus: usize) -> LeverBook {
    let fresh = LeverBook { driver: gpu.driver_version.clone(), ..LeverBook::default() };
    let name = name(gpu, gpus);
    match read(dir, &name) {
        Ok(Some(contents)) if contents.uuid == gpu.uuid && contents.book.driver == fresh.driver => {
            contents.book
        }
        Ok(Some(_)) => {
            tracing::info!(%gpu, "the driver is another one: what parking saves is measured anew");
            fresh
        }
        Ok(None) => fresh,
        Err(why) => {
            tracing::warn!(path = %dir.join(name).display(), why, "what parking saves is measured anew: the file cannot be used");
            fresh
        }
    }
}

fn read(dir: &Path, name: &str) -> Result<Option<Contents>, String> {
    if !dir.is_dir() {
        return Ok(None);
    }
    let dir = Dir::open_or_create(dir).map_err(|error| error.to_string())?;
    let bytes = match dir.read_trusted(name, LARGEST).map_err(|error| error.to_string())? {
        Found::Absent => return Ok(None),
        Found::Refused(why) => return Err(why.to_string()),
        Found::Here(bytes) => bytes,
    };
    if bytes.len() as u64 > LARGEST {
        return Err(format!("larger than {LARGEST} bytes"));
    }
    let contents: Contents = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if contents.version != VERSION {
        return Err(format!("version {}, and this agft reads {VERSION}", contents.version));
    }
    if contents.book.is_sound() { Ok(Some(contents)) } else { Err("it holds numbers that cannot be".into()) }
}

/// Keeps what was measured for the next run.
/// Errors: [`StoreError`]; the old file is then as it was.
pub(crate) fn save_levers(
    dir: &Path,
    gpu: &GpuInfo,
    gpus: usize,
    book: &LeverBook,
) -> Result<(), StoreError> {
    let contents =
        Contents { version: VERSION, gpu: gpu.name.clone(), uuid: gpu.uuid.clone(), book: book.clone() };
    let name = name(gpu, gpus);
    let dir = Dir::open_or_create(dir)?.make_ours()?;
    file::remove_leftovers(&dir)?;
    file::replace(&dir, &name, &file::json(&dir.file(&name), &contents)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::info;
    use crate::park::levers::{Known, LeverKind};

    fn gpu() -> GpuInfo {
        GpuInfo { driver_version: Some("570.1".into()), ..info("GPU-0/../x") }
    }

    fn book() -> LeverBook {
        let known =
            Known { clocks: None, parked_w: Some(54.25), wake_s: Some(0.03), longest_wake_s: 0.2, wakes: 7 };
        let levers = [(LeverKind::Core, known)].into_iter().collect();
        LeverBook { driver: Some("570.1".into()), unparked_w: Some(80.5), levers }
    }

    #[test]
    fn what_was_measured_comes_back_for_this_board_and_driver_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load_levers(dir.path(), &gpu(), 1).levers.len(), 0);
        save_levers(dir.path(), &gpu(), 1, &book()).unwrap();
        assert_eq!(load_levers(dir.path(), &gpu(), 1), book());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "within the directory");
        assert!(load_levers(dir.path(), &gpu(), 2).levers.is_empty(), "of two, it is another sum");
        let newer = GpuInfo { driver_version: Some("580.2".into()), ..gpu() };
        assert_eq!(
            load_levers(dir.path(), &newer, 1),
            LeverBook { driver: Some("580.2".into()), ..LeverBook::default() }
        );
    }

    #[test]
    fn file_that_cannot_be_used_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        save_levers(dir.path(), &gpu(), 1, &book()).unwrap();
        let path = dir.path().join(name(&gpu(), 1));
        let sound = std::fs::read_to_string(&path).unwrap();
        let broken = [
            "{".to_owned(),
            sound.replace("54.25", "-1"),
            sound.replace("\"version\": 1", "\"version\": 9"),
            " ".repeat(70_000),
        ];
        for broken in broken {
            std::fs::write(&path, broken).unwrap();
            assert!(load_levers(dir.path(), &gpu(), 1).levers.is_empty());
        }
    }
}
