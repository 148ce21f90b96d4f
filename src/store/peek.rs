//! Looks at a stored model without holding its directory and without changing anything in it.

use std::path::Path;

use super::container::{self, MAX_FILE_BYTES, RejectReason, Stored};
use super::dir::{Dir, Found};
use super::error::StoreError;
use super::identity::Identity;
use super::model::Generation;

/// Why there is nothing to look at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeekError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the stored model is not usable: {0}")]
    Rejected(RejectReason),
}

/// The current generation in `dir`, else the previous one, with whose model it is; `None` if there is none.
pub(crate) fn peek<T: Stored>(dir: &Path) -> Result<Option<(Identity, T)>, PeekError> {
    if !dir.is_dir() {
        return Ok(None);
    }
    let dir = Dir::open_or_create(dir)?;
    let mut rejected = None;
    for generation in [Generation::Current, Generation::Previous] {
        let bytes = match dir.read_trusted(generation.file_name(), MAX_FILE_BYTES)? {
            Found::Here(bytes) => bytes,
            Found::Absent => continue,
            Found::Refused(why) => {
                rejected = Some(RejectReason::Distrusted(why));
                continue;
            }
        };
        let model = container::open(&bytes)
            .and_then(|container| Ok((container::decode(&container)?, container.identity)));
        match model {
            Ok((model, identity)) => return Ok(Some((identity, model))),
            Err(why) => rejected = Some(why),
        }
    }
    rejected.map_or(Ok(None), |why| Err(PeekError::Rejected(why)))
}
