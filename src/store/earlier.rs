//! Model files of earlier versions of the contents.

use super::container::{Stored, unpack};
use crate::control::Model;
use crate::control::learned::{MODEL_VERSION, v1};

impl Stored for Model {
    fn read(version: u32, bytes: &[u8]) -> Result<Self, String> {
        match version {
            1 => unpack::<v1::Model>(bytes).map(Into::into),
            MODEL_VERSION => unpack(bytes),
            other => Err(format!("contents of version {other}, and this agft reads 1 to {MODEL_VERSION}")),
        }
    }
}

#[cfg(test)]
mod tests {
    /// What tests store.
    macro_rules! stored {
        ($($name:ty),*) => { $(impl super::Stored for $name {
            fn read(_: u32, bytes: &[u8]) -> Result<Self, String> {
                super::unpack(bytes)
            }
        })* };
    }
    stored!(u8, String, Vec<f64>, Vec<(u32, f64)>);
}
