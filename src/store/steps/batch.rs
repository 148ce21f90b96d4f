//! Steps of one frame. A page repeats nearly all of the one before it, so each step is stored as the difference from an
//! earlier one of like size (exclusive or, aligned at the ends, where the page stands): what did not change is zeros.

/// Steps being put together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    reference: Vec<u8>,
    steps: usize,
}

impl Batch {
    pub(super) fn push(&mut self, step: &[u8]) {
        let length = u32::try_from(step.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        let at = self.bytes.len();
        self.bytes.extend_from_slice(step);
        fold(self.bytes.get_mut(at..).unwrap_or_default(), &self.reference);
        if is_reference(step.len(), self.reference.len()) {
            self.reference.clear();
            self.reference.extend_from_slice(step);
        }
        self.steps += 1;
    }

    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// Its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.reference.clear();
        self.steps = 0;
    }
}

/// A step without a page is no reference for one with a page.
fn is_reference(step: usize, reference: usize) -> bool {
    2 * step >= reference
}

fn fold(step: &mut [u8], reference: &[u8]) {
    for (byte, other) in step.iter_mut().rev().zip(reference.iter().rev()) {
        *byte ^= other;
    }
}

/// The steps in the bytes of a batch; what is wrong with them otherwise.
pub(super) fn steps(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut steps = Vec::new();
    let mut reference: Vec<u8> = Vec::new();
    while !bytes.is_empty() {
        let cut = || "a step is cut off".to_owned();
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| cut())?;
        let (step, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        let mut step = step.to_vec();
        fold(&mut step, &reference);
        if is_reference(step.len(), reference.len()) {
            reference.clone_from(&step);
        }
        steps.push(step);
        bytes = rest;
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn steps_of_any_sizes_come_back_in_order(all in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20)) {
            let mut batch = Batch::default();
            all.iter().for_each(|step| batch.push(step));
            prop_assert_eq!(batch.steps(), all.len());
            prop_assert_eq!(steps(batch.bytes()), Ok(all));
        }

        #[test]
        fn no_bytes_can_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = steps(&bytes);
        }
    }
}
