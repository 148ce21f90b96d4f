//! `savings.agft`: what the holdout experiment has shown, over all runs.
//!
//! The form is the model file's. It is not part of the model: who has a model put aside keeps the proof of what was saved.

use jiff::Timestamp;

use super::container;
use super::error::StoreError;
use super::file;
use super::identity::Identity;
use super::model::{ModelStore, Rejected};
use crate::holdout::Savings;
use crate::holdout::savings::Durable;

const FILE_NAME: &str = "savings.agft";

/// What there was to load.
#[derive(Debug, Default)]
pub struct LoadedSavings {
    /// The books, if there are any of this GPU and policy.
    pub savings: Option<Savings>,
    /// What stood in their place, and was moved aside.
    pub rejected: Option<Rejected>,
}

impl ModelStore {
    /// Replaces the books on the disk.
    /// Errors: `StoreError`; the old file is then as it was.
    pub fn save_savings(&self, identity: &Identity, savings: &Savings) -> Result<(), StoreError> {
        let path = self.dir().file(FILE_NAME);
        let bytes = container::encode(identity, savings.durable())
            .map_err(|detail| StoreError::Encode { path: path.clone(), detail })?;
        file::replace(self.dir(), FILE_NAME, &bytes)
    }

    /// The books of this GPU and policy. A file that is damaged, foreign or not trusted is moved aside (`now` is in its new
    /// name).
    /// Errors: `StoreError` if the directory cannot be read.
    pub fn load_savings(&self, here: &Identity, now: Timestamp) -> Result<LoadedSavings, StoreError> {
        let decode = |container: &container::Container<'_>| {
            let durable: Durable = container::decode_same(container)?;
            if durable.is_sound() {
                return Ok(Savings::from(durable));
            }
            Err(container::RejectReason::Content { detail: "it holds numbers that are none".into() })
        };
        Ok(match self.examine(FILE_NAME, here, decode)? {
            None => LoadedSavings::default(),
            Some(Ok(sound)) => LoadedSavings { savings: Some(sound.model), rejected: None },
            Some(Err(why)) => {
                let kept_as = self.set_aside(FILE_NAME, "savings.rejected-", now)?;
                let rejected = Rejected { path: self.dir().file(FILE_NAME), why, kept_as };
                LoadedSavings { savings: None, rejected: Some(rejected) }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::holdout::{InSlot, SlotWindow};
    use crate::store::testing::{at, identity};

    fn books() -> Savings {
        let mut savings = Savings::new(0.5);
        for cycle in 0..7_u64 {
            for slot in 0..2 {
                let held = slot == cycle % 2;
                let power = if held { 300.0 + cycle as f64 } else { 200.0 };
                let window = SlotWindow {
                    seconds: 10.0,
                    energy_j: Some(10.0 * power),
                    generated_tokens: 100.0,
                    ..SlotWindow::default()
                };
                savings.push(InSlot { cycle, slot, held }, &window, 1e9);
            }
        }
        savings
    }

    #[test]
    fn what_was_shown_comes_back_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = ModelStore::open(dir.path()).unwrap();
        assert!(store.load_savings(&identity(), at(1)).unwrap().savings.is_none());
        store.save_savings(&identity(), &books()).unwrap();
        let loaded = store.load_savings(&identity(), at(2)).unwrap();
        let savings = loaded.savings.unwrap().restored(0.5);
        assert_eq!(savings.state(), books().state());
        assert_eq!(savings.state().cycles, 6);
        assert!(savings.state().effect.power_w.unwrap().relative < -0.3);
        assert!(loaded.rejected.is_none());
    }

    #[test]
    fn damaged_books_are_put_aside_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = ModelStore::open(dir.path()).unwrap();
        store.save_savings(&identity(), &books()).unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let loaded = store.load_savings(&identity(), at(3)).unwrap();
        let rejected = loaded.rejected.unwrap();
        assert!(loaded.savings.is_none() && rejected.to_string().contains("checksum"), "{rejected}");
        assert!(rejected.kept_as.exists() && !path.exists());
    }
}
