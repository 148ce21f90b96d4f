//! Fields that a model file leaves out and a full snapshot holds.
//!
//! What a policy holds for the moment (the window in the making, the clock being tried) must not outlive its run in the
//! model, and has to be in a snapshot from which a run is replayed. Such a field is marked
//! `#[serde(default, with = "crate::transient", skip_serializing_if = "crate::transient::left_out")]`: it is written and
//! read inside of [`whole`], and elsewhere left out and read as its default. The switch is the thread's: a serializer
//! has no other way to tell a field why it is written.

use std::cell::Cell;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

thread_local! {
    static WHOLE: Cell<bool> = const { Cell::new(false) };
}

/// Puts the switch back, whatever happens in between.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        WHOLE.set(self.0);
    }
}

/// What `act` writes or reads on this thread includes what is only for the moment.
pub fn whole<T>(act: impl FnOnce() -> T) -> T {
    let _restore = Restore(WHOLE.replace(true));
    act()
}

/// Is such a field left out here?
#[must_use]
pub fn left_out<T>(_field: &T) -> bool {
    !WHOLE.get()
}

/// Writes the field.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<T: Serialize, S: Serializer>(field: &T, serializer: S) -> Result<S::Ok, S::Error> {
    field.serialize(serializer)
}

/// Reads the field inside of [`whole`]; elsewhere reads nothing.
///
/// # Errors
/// Those of the deserializer.
pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    if WHOLE.get() { T::deserialize(deserializer) } else { Ok(T::default()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Part {
        kept: u32,
        #[serde(default, with = "crate::transient", skip_serializing_if = "crate::transient::left_out")]
        held: Option<u32>,
        last: u32,
    }

    const PART: Part = Part { kept: 1, held: Some(2), last: 3 };

    #[test]
    fn held_field_is_in_a_whole_snapshot_and_nowhere_else() {
        let encode = |part: &Part| bincode::serde::encode_to_vec(part, bincode::config::standard()).unwrap();
        let decode = |bytes: &[u8]| {
            bincode::serde::decode_from_slice::<Part, _>(bytes, bincode::config::standard()).unwrap().0
        };
        assert_eq!(encode(&PART), [1, 3]);
        assert_eq!(decode(&[1, 3]), Part { held: None, ..PART });
        let all = whole(|| encode(&PART));
        assert_eq!(whole(|| decode(&all)), PART);
        assert_eq!(serde_json::to_string(&PART).unwrap(), r#"{"kept":1,"last":3}"#);
    }
}
