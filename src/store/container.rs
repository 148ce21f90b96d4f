//! The bytes of a model file: our own header around what bincode writes. The only file that names bincode.
//!
//! | offset | bytes | content |
//! | --- | --- | --- |
//! | 0 | 8 | `AGFTMODL` |
//! | 8 | 4 | format version |
//! | 12 | 8 | length of the payload |
//! | 20 | 32 | SHA-256 of bytes 0..20 and of the payload |
//! | 52 | | payload; in version 1: length of the identity (4 bytes), [`Identity`] as JSON, the model as bincode |
//!
//! Numbers are little-endian. The header is the same in every version, so that any agft can tell a damaged file from a
//! newer one; what a version is free to change is the payload. The identity is JSON because that describes itself:
//! it can be read without knowing the model's type, and by people.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::identity::{Identity, Mismatch};
use super::trust::Distrust;

/// The format that is written.
pub(super) const FORMAT_VERSION: u32 = 1;
/// No model file is larger, in bytes. A model of a few hundred clocks takes about 0.1 MiB.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 20;

const MAGIC: &[u8; 8] = b"AGFTMODL";
const CHECKSUM_AT: usize = 20;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 52;

/// Why a file is not used as the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RejectReason {
    #[error("not trusted: {0}")]
    Distrusted(Distrust),
    #[error("not for here: {0}")]
    Foreign(Mismatch),
    #[error("not a model file of agft")]
    NotAModel,
    #[error("larger than {} MiB, which no model is", MAX_FILE_BYTES >> 20)]
    TooLarge,
    #[error("damaged: {found} bytes long instead of {stated}")]
    Length { found: u64, stated: u64 },
    #[error("damaged: the checksum does not match the content")]
    Checksum,
    #[error(
        "format version {found}; this agft reads 1 to {FORMAT_VERSION}{}",
        if *found > FORMAT_VERSION { " (a newer agft wrote it)" } else { "" }
    )]
    Format { found: u32 },
    #[error("its content cannot be decoded: {detail}")]
    Content { detail: String },
}

/// A file that passed every check short of decoding the model.
#[derive(Debug)]
pub(super) struct Container<'a> {
    pub(super) identity: Identity,
    model: &'a [u8],
}

/// The bytes of a file for this model.
pub(super) fn encode<T: Serialize>(identity: &Identity, model: &T) -> Result<Vec<u8>, String> {
    let identity = serde_json::to_vec(identity).map_err(|e| e.to_string())?;
    let identity_bytes = u32::try_from(identity.len()).map_err(|e| e.to_string())?;
    let model = bincode::serde::encode_to_vec(model, bincode_config()).map_err(|e| e.to_string())?;
    Ok(seal(FORMAT_VERSION, &[&identity_bytes.to_le_bytes(), &identity, &model]))
}

/// Puts the header before a payload given in parts.
pub(super) fn seal(version: u32, payload: &[&[u8]]) -> Vec<u8> {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(length as u64).to_le_bytes());
    let checksum = payload.iter().fold(Sha256::new_with_prefix(&bytes), Digest::chain_update).finalize();
    bytes.extend_from_slice(&checksum);
    for part in payload {
        bytes.extend_from_slice(part);
    }
    bytes
}

/// Checks a file from the outside in, and reads whose model it holds.
pub(super) fn open(bytes: &[u8]) -> Result<Container<'_>, RejectReason> {
    let (version, payload) = verify(bytes)?;
    migrate(version, payload)
}

/// Magic, length, checksum; gives the format version and the payload.
fn verify(bytes: &[u8]) -> Result<(u32, &[u8]), RejectReason> {
    let found = bytes.len() as u64;
    if found > MAX_FILE_BYTES {
        return Err(RejectReason::TooLarge);
    }
    let rest = bytes.strip_prefix(MAGIC).ok_or(RejectReason::NotAModel)?;
    let header = || -> Option<_> {
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let (checksum, payload) = rest.split_first_chunk::<32>()?;
        Some((u32::from_le_bytes(*version), u64::from_le_bytes(*length), checksum, payload))
    };
    let (version, length, checksum, payload) =
        header().ok_or(RejectReason::Length { found, stated: HEADER_BYTES as u64 })?;
    if payload.len() as u64 != length {
        return Err(RejectReason::Length { found, stated: length.saturating_add(HEADER_BYTES as u64) });
    }
    let actual = Sha256::new_with_prefix(&bytes[..CHECKSUM_AT]).chain_update(payload).finalize();
    if actual[..] != checksum[..] {
        return Err(RejectReason::Checksum);
    }
    Ok((version, payload))
}

/// Reads a sound payload of any version up to [`FORMAT_VERSION`].
///
/// A new version adds an arm here that turns the older payload into today's, and a file of the older version to
/// `fixtures`.
fn migrate(version: u32, payload: &[u8]) -> Result<Container<'_>, RejectReason> {
    match version {
        1 => version_1(payload),
        found => Err(RejectReason::Format { found }),
    }
}

fn version_1(payload: &[u8]) -> Result<Container<'_>, RejectReason> {
    let cut = || RejectReason::Content { detail: "the identity is cut off".into() };
    let (length, rest) = payload.split_first_chunk::<4>().ok_or_else(cut)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| cut())?;
    let (identity, model) = rest.split_at_checked(length).ok_or_else(cut)?;
    let identity = serde_json::from_slice(identity)
        .map_err(|e| RejectReason::Content { detail: format!("the identity: {e}") })?;
    Ok(Container { identity, model })
}

/// What a model file can hold.
pub trait Stored: Sized {
    /// What a model of this version of the contents is today.
    /// Errors: what is wrong with its bytes, for people.
    fn read(version: u32, bytes: &[u8]) -> Result<Self, String>;
}

/// The model itself. All of its bytes have to be used.
pub(super) fn decode<T: Stored>(container: &Container<'_>) -> Result<T, RejectReason> {
    T::read(container.identity.model_version, container.model)
        .map_err(|detail| RejectReason::Content { detail })
}

/// What has one form in every version.
pub(super) fn decode_same<T: DeserializeOwned>(container: &Container<'_>) -> Result<T, RejectReason> {
    unpack(container.model).map_err(|detail| RejectReason::Content { detail })
}

/// Any value as bincode. Inside of a frame with a checksum of its own, see [`super::steps`].
pub(super) fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    bincode::serde::encode_to_vec(value, bincode_config()).map_err(|e| e.to_string())
}

/// The value that [`pack`] made these bytes of; all of them have to be used.
pub(super) fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, bincode_config()).map_err(|e| e.to_string())?;
    if used != bytes.len() {
        return Err(format!("{} of the bytes were left over", bytes.len() - used));
    }
    Ok(value)
}

/// A length read from the file never makes bincode allocate more than a file can hold.
fn bincode_config() -> impl bincode::config::Config {
    const LIMIT: usize = 64 << 20;
    bincode::config::standard().with_limit::<LIMIT>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::testing::identity;

    type Model = Vec<(u32, f64)>;

    fn read(bytes: &[u8]) -> Result<Model, RejectReason> {
        decode(&open(bytes)?)
    }

    fn small() -> Vec<u8> {
        encode(&identity(), &vec![(1980_u32, 0.5), (210, -1.0)]).unwrap()
    }

    #[test]
    fn every_single_bit_flip_is_detected() {
        let sound = small();
        assert!(read(&sound).is_ok());
        for bit in 0..sound.len() * 8 {
            let mut flipped = sound.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&flipped).is_err(), "bit {bit} of {}", sound.len() * 8);
        }
    }

    #[test]
    fn every_truncation_and_every_addition_is_detected() {
        let sound = small();
        for length in 0..sound.len() {
            assert!(read(&sound[..length]).is_err(), "{length} of {} bytes", sound.len());
        }
        let found = sound.len() as u64 + 1;
        let longer = [&sound[..], b"\0"].concat();
        assert_eq!(read(&longer), Err(RejectReason::Length { found, stated: found - 1 }));
    }

    #[test]
    fn a_sound_file_of_an_unknown_format_is_told_from_a_damaged_one() {
        for (version, says) in [(0, "reads 1 to 1"), (2, "a newer agft wrote it")] {
            let reason = read(&seal(version, &[b"whatever"])).unwrap_err();
            assert_eq!(reason, RejectReason::Format { found: version });
            assert!(reason.to_string().contains(says), "{reason}");
        }
    }

    #[test]
    fn a_length_that_lies_under_a_good_checksum_allocates_nothing_and_is_refused() {
        let identity = serde_json::to_vec(&identity()).unwrap();
        let identity_bytes = u32::try_from(identity.len()).unwrap().to_le_bytes();
        let lengths: [&[u8]; 3] = [&[0xfd; 9], &[0xfc, 255, 255, 255, 255], &[0xff; 17]];
        for lie in lengths {
            let file = seal(1, &[&identity_bytes, &identity, lie]);
            let container = open(&file).unwrap();
            assert!(matches!(decode::<Vec<f64>>(&container), Err(RejectReason::Content { .. })));
            assert!(matches!(decode::<String>(&container), Err(RejectReason::Content { .. })));
        }
        let file = seal(1, &[&u32::MAX.to_le_bytes(), &identity]);
        assert!(matches!(open(&file), Err(RejectReason::Content { .. })));
    }

    #[test]
    fn a_model_of_another_shape_leaves_bytes_over_and_is_refused() {
        let file = encode(&identity(), &(1_u8, 2_u8)).unwrap();
        let reason = decode::<u8>(&open(&file).unwrap()).unwrap_err();
        assert_eq!(reason.to_string(), "its content cannot be decoded: 1 of the bytes were left over");
    }

    #[test]
    fn the_file_written_by_format_version_1_is_still_read() {
        let file = include_bytes!("fixtures/model_v1.agft");
        let container = open(file).unwrap();
        assert_eq!(container.identity, identity());
        assert_eq!(decode::<Model>(&container).unwrap(), [(1980, 0.5), (210, -1.0)]);
    }

    #[test]
    fn what_is_written_today_is_format_version_1_to_the_byte() {
        assert_eq!(FORMAT_VERSION, 1, "a new version adds its own fixture and leaves the old ones");
        assert_eq!(small(), include_bytes!("fixtures/model_v1.agft"));
    }

    proptest! {
        #[test]
        fn any_model_comes_back_bit_for_bit(model in prop::collection::vec((any::<u32>(), any::<f64>()), 0..50)) {
            let back = read(&encode(&identity(), &model).unwrap()).unwrap();
            let bits = |model: &Model| model.iter().map(|(k, v)| (*k, v.to_bits())).collect::<Vec<_>>();
            prop_assert_eq!(bits(&back), bits(&model));
        }

        #[test]
        fn no_payload_under_a_good_checksum_can_do_harm(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let file = seal(1, &[&payload]);
            if let Ok(container) = open(&file) {
                let _ = decode::<Model>(&container);
            }
        }

        #[test]
        fn no_bytes_after_the_magic_are_taken_for_a_model(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open(&[&MAGIC[..], &bytes].concat()).is_err());
        }
    }
}
