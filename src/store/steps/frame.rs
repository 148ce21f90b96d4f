//! One frame: a header that vouches for its lengths, a packed payload, a checksum over both.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use sha2::{Digest, Sha256};

/// Bytes before the payload.
pub(super) const HEADER_BYTES: usize = 21;
/// Bytes behind it.
pub(super) const SUM_BYTES: usize = 32;
/// No payload is larger, packed or not.
const MAX_PAYLOAD_BYTES: u32 = 64 << 20;
/// Where the header's own checksum begins.
const HEAD_SUM_AT: usize = 13;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who recorded, and with which configuration.
    Head,
    /// What the steps began from.
    Snapshot,
    /// Steps.
    Batch,
    /// The segment was closed in good order.
    End,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Head => 1,
            Self::Snapshot => 2,
            Self::Batch => 3,
            Self::End => 4,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Self::Head, Self::Snapshot, Self::Batch, Self::End].into_iter().find(|kind| kind.code() == code)
    }
}

/// A frame's bytes.
pub(super) fn encode(kind: Kind, number: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::new(6));
    deflate.write_all(payload)?;
    let packed = deflate.finish()?;
    let length = |bytes: &[u8]| {
        u32::try_from(bytes.len()).ok().filter(|length| *length <= MAX_PAYLOAD_BYTES).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a frame of steps would be larger than 64 MiB")
        })
    };
    let mut bytes = vec![kind.code()];
    for field in [number, length(&packed)?, length(payload)?] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum[..HEADER_BYTES - HEAD_SUM_AT]);
    bytes.extend_from_slice(&packed);
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum);
    Ok(bytes)
}

/// What reading one frame came to.
#[derive(Debug)]
pub(super) enum Read1 {
    Frame(Kind, Vec<u8>),
    /// The file ends before it.
    Nothing,
    /// The file ends inside of it.
    Torn,
    /// It is there, and not what was written.
    Damaged(String),
}

pub(super) fn read(input: &mut impl Read, number: u32) -> io::Result<Read1> {
    let header = up_to(input, HEADER_BYTES)?;
    if header.is_empty() {
        return Ok(Read1::Nothing);
    }
    let Some(header) = header.first_chunk::<HEADER_BYTES>() else { return Ok(Read1::Torn) };
    // Space that a file system had given and not yet filled when the power went.
    if header.iter().all(|byte| *byte == 0) {
        return Ok(Read1::Torn);
    }
    let damaged = |detail: &str| Ok(Read1::Damaged(detail.to_owned()));
    let sum = Sha256::digest(&header[..HEAD_SUM_AT]);
    if sum[..HEADER_BYTES - HEAD_SUM_AT] != header[HEAD_SUM_AT..] {
        return damaged("the checksum of its header does not match");
    }
    let field = |at: usize| {
        let bytes = header.get(at..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes))
    };
    let (found, packed, unpacked) = (field(1), field(5), field(9));
    if found != number {
        return damaged(&format!("it says that it is frame {found}"));
    }
    if packed > MAX_PAYLOAD_BYTES || unpacked > MAX_PAYLOAD_BYTES {
        return damaged("it is larger than any frame");
    }
    let packed = packed as usize;
    let body = up_to(input, packed + SUM_BYTES)?;
    let Some((payload, sum)) = body.split_at_checked(packed).filter(|(_, sum)| sum.len() == SUM_BYTES) else {
        return Ok(Read1::Torn);
    };
    if Sha256::new_with_prefix(header).chain_update(payload).finalize()[..] != *sum {
        return damaged("its checksum does not match its content");
    }
    let Some(kind) = Kind::of(header[0]) else {
        return damaged(&format!("it is of the unknown kind {}", header[0]));
    };
    let mut content = Vec::new();
    let inflated = DeflateDecoder::new(payload).take(u64::from(unpacked) + 1).read_to_end(&mut content);
    if inflated.is_err() || content.len() != unpacked as usize {
        return damaged("its content cannot be unpacked");
    }
    Ok(Read1::Frame(kind, content))
}

/// The next bytes, fewer only at the end.
fn up_to(input: &mut impl Read, bytes: usize) -> io::Result<Vec<u8>> {
    let mut found = Vec::new();
    input.take(bytes as u64).read_to_end(&mut found)?;
    Ok(found)
}
