//! What the store's files hold, as bytes in memory: for fuzzers and tests, which judge a format without a disk.

use super::container::{self, RejectReason};
use super::held::{self, Journal};
use super::identity::Identity;

pub use super::container::{HEADER_BYTES, Stored};

/// What loading a model file makes of its bytes.
pub fn open_model<T: Stored>(bytes: &[u8]) -> Result<(Identity, T), RejectReason> {
    let container = container::open(bytes)?;
    let model = container::decode(&container)?;
    Ok((container.identity, model))
}

/// The bytes of a model file.
/// Errors: What the encoder says of a model that it cannot encode.
pub fn model_file<T: serde::Serialize>(identity: &Identity, model: &T) -> Result<Vec<u8>, String> {
    container::encode(identity, model)
}

/// A file whose checksum holds, whatever its payload.
pub fn sealed(version: u32, payload: &[u8]) -> Vec<u8> {
    container::seal(version, &[payload])
}

/// What reading a journal of held clocks makes of its bytes.
/// Errors: What is wrong with it, for people.
pub fn open_journal(bytes: &[u8]) -> Result<Journal, String> {
    Journal::decode(bytes)
}

/// A journal whose checksum holds, whatever its line.
pub fn summed_journal(line: &str) -> Vec<u8> {
    held::summed(line)
}
