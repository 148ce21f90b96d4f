//! What supervisors of inference servers tell of their instances: the GPUs of each, and whether it works.
//!
//! What a client says replaces what it said before, and all of it goes with the client. So nothing has to be
//! given back, and no order of lost words, restarts and crashes leaves a GPU held.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use agft_common::instances::InstanceState;
use agft_common::instances::{MAX_GPUS, MAX_INSTANCES, MAX_SELECTOR};
use serde::{Deserialize, Serialize};

use crate::gpu::GpuInfo;

/// Length of a name in bytes.
pub const MAX_NAME: usize = 80;
/// Clients at once that tell of instances.
pub const MAX_CLIENTS: usize = 8;

/// How a client names GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Selector {
    /// `all`: every GPU of the machine.
    All,
    /// `0`: by index in NVML's order, that of `nvidia-smi`.
    Index(u32),
    /// `cuda:0`: by index in CUDA's own order.
    CudaIndex(u32),
    /// `GPU-...`: by UUID, or a beginning of one that no other GPU has. `MIG-...` is nobody's: a GPU with MIG
    /// on is never parked.
    Uuid(String),
}

impl TryFrom<String> for Selector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse());
        let is_uuid = text.len() <= MAX_SELECTOR
            && text
                .get(..4)
                .is_some_and(|kind| ["GPU-", "MIG-"].iter().any(|it| it.eq_ignore_ascii_case(kind)));
        match text.as_str() {
            "all" => return Ok(Self::All),
            _ if is_uuid => return Ok(Self::Uuid(text)),
            _ => {}
        }
        if let Some(Ok(index)) = number(&text) {
            return Ok(Self::Index(index));
        }
        if let Some(Some(Ok(index))) = text.strip_prefix("cuda:").map(number) {
            return Ok(Self::CudaIndex(index));
        }
        Err(format!("{text:?} names no GPU: write all, an index as 0, cuda:INDEX, or a UUID (GPU-...)"))
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Index(index) => write!(f, "{index}"),
            Self::CudaIndex(index) => write!(f, "cuda:{index}"),
            Self::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

/// An instance as a client tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Its name, for people.
    pub name: String,
    /// Its GPUs.
    pub gpus: Vec<Selector>,
    /// What it does.
    pub state: InstanceState,
}

/// A GPU of this machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GpuName {
    /// Index in NVML's order.
    pub index: u32,
    /// UUID.
    pub uuid: String,
}

/// An instance on the GPUs that it was found to mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldInstance {
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: InstanceState,
    /// Its GPUs, by index.
    pub gpus: Vec<GpuName>,
}

impl ToldInstance {
    /// Is it on one of these GPUs?
    pub(crate) fn is_on(&self, is_ours: impl Fn(&str) -> bool) -> bool {
        self.gpus.iter().any(|gpu| is_ours(&gpu.uuid))
    }
}

/// What a client said, with the GPUs found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Its instances.
    pub instances: Vec<ToldInstance>,
    /// Names that no GPU of this machine has.
    pub unknown: BTreeSet<String>,
}

impl Found {
    /// The GPUs that were meant, by index.
    #[must_use]
    pub fn known(&self) -> BTreeSet<GpuName> {
        self.instances.iter().flat_map(|instance| instance.gpus.iter().cloned()).collect()
    }
}

/// The GPUs of this machine, for whoever names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roster {
    gpus: Vec<GpuName>,
    /// They are of one product: then CUDA's order is NVML's.
    alike: bool,
}

impl Roster {
    /// Of these GPUs.
    #[must_use]
    pub fn new(gpus: &[GpuInfo]) -> Self {
        let name = |gpu: &GpuInfo| GpuName { index: gpu.index, uuid: gpu.uuid.clone() };
        Self {
            gpus: gpus.iter().map(name).collect(),
            alike: gpus.windows(2).all(|pair| matches!(pair, [one, other] if one.name == other.name)),
        }
    }

    /// The GPUs that it means; none where no GPU of this machine has that name.
    fn find(&self, selector: &Selector) -> Vec<&GpuName> {
        let by_index = |index: u32| self.gpus.iter().filter(|gpu| gpu.index == index).collect();
        match selector {
            Selector::All => self.gpus.iter().collect(),
            Selector::Index(index) => by_index(*index),
            Selector::CudaIndex(index) if self.alike => by_index(*index),
            // Which one it is CUDA alone knows: any of them may be at work.
            Selector::CudaIndex(_) => self.gpus.iter().collect(),
            Selector::Uuid(uuid) => {
                let begins = |gpu: &&GpuName| {
                    gpu.uuid.get(..uuid.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(uuid))
                };
                let found: Vec<&GpuName> = self.gpus.iter().filter(begins).collect();
                if found.len() == 1 { found } else { Vec::new() }
            }
        }
    }

    /// Finds the GPUs of these instances.
    /// Errors: all that is beyond the limits, in words.
    pub fn place(&self, instances: Vec<Instance>) -> Result<Found, String> {
        let mut wrong = Vec::new();
        if instances.len() > MAX_INSTANCES {
            wrong.push(format!("{} instances: at most {MAX_INSTANCES} can be told of", instances.len()));
        }
        let mut found = Found::default();
        for Instance { name, gpus, state } in instances {
            if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
                wrong
                    .push(format!("name {name:?}: must be 1 to {MAX_NAME} bytes without control characters"));
            }
            if gpus.len() > MAX_GPUS {
                wrong.push(format!("{name:?} names {} GPUs: at most {MAX_GPUS}", gpus.len()));
                continue;
            }
            let mut of_it = BTreeSet::new();
            for selector in &gpus {
                let meant = self.find(selector);
                if meant.is_empty() {
                    found.unknown.insert(selector.to_string());
                }
                of_it.extend(meant.into_iter().cloned());
            }
            found.instances.push(ToldInstance { name, state, gpus: of_it.into_iter().collect() });
        }
        if wrong.is_empty() { Ok(found) } else { Err(wrong.join("; ")) }
    }
}

/// What all clients say now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told(BTreeMap<u64, Vec<ToldInstance>>);

impl Told {
    /// A client says this, in the place of what it said before. Not taken from one client too many.
    pub fn say(&mut self, client: u64, instances: Vec<ToldInstance>) -> bool {
        if !self.0.contains_key(&client) && self.0.len() >= MAX_CLIENTS {
            return false;
        }
        self.0.insert(client, instances);
        true
    }

    /// A client is gone, and with it all that it said.
    pub fn gone(&mut self, client: u64) {
        self.0.remove(&client);
    }

    /// All instances, client by client.
    pub fn instances(&self) -> impl Iterator<Item = &ToldInstance> {
        self.0.values().flatten()
    }

    /// How many instances work on these GPUs.
    #[must_use]
    pub fn working(&self, is_ours: impl Fn(&str) -> bool) -> u32 {
        let working = self
            .instances()
            .filter(|instance| instance.state == InstanceState::Working && instance.is_on(&is_ours));
        working.fold(0, |count, _| count + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gpu(index: u32, uuid: &str, name: &str) -> GpuInfo {
        GpuInfo {
            index,
            uuid: uuid.into(),
            name: name.into(),
            driver_version: None,
            power_limit: None,
            power_limit_max: None,
        }
    }

    fn roster(second: &str) -> Roster {
        Roster::new(&[gpu(0, "GPU-aa11", "A100"), gpu(1, "GPU-aa22", "A100"), gpu(2, "GPU-bb", second)])
    }

    fn instance(name: &str, gpus: &[&str], state: InstanceState) -> Instance {
        let gpus = gpus.iter().map(|gpu| Selector::try_from((*gpu).to_owned()).unwrap()).collect();
        Instance { name: name.into(), gpus, state }
    }

    #[test]
    fn gpus_are_found_by_index_uuid_its_beginning_and_all() {
        let found = |second: &str, selector: &str| -> Vec<u32> {
            let placed = roster(second).place(vec![instance("a", &[selector], InstanceState::Idle)]).unwrap();
            assert_eq!(placed.unknown.is_empty(), !placed.known().is_empty(), "{selector}");
            placed.instances[0].gpus.iter().map(|gpu| gpu.index).collect()
        };
        for (selector, gpus) in [
            ("0", &[0][..]),
            ("2", &[2]),
            ("7", &[]),
            ("all", &[0, 1, 2]),
            ("GPU-aa22", &[1]),
            ("gpu-AA22", &[1]),
            ("GPU-b", &[2]),
            ("GPU-aa", &[]),
            ("GPU-bb3", &[]),
            ("MIG-GPU-aa11/0/0", &[]),
            ("cuda:1", &[1]),
            ("cuda:9", &[]),
        ] {
            assert_eq!(found("A100", selector), gpus, "{selector}");
        }
        // Unlike products: any of them may be CUDA's first.
        assert_eq!(found("H100", "cuda:0"), [0, 1, 2]);
    }

    #[test]
    fn what_is_beyond_the_limits_is_told_all_at_once() {
        let none: &[&str] = &[];
        let wrong = vec![
            instance("", none, InstanceState::Idle),
            instance("x\n", none, InstanceState::Idle),
            instance(&"n".repeat(81), none, InstanceState::Idle),
            instance("many", &["0"; 65], InstanceState::Idle),
        ];
        let error = roster("A100").place(wrong).unwrap_err();
        assert_eq!(error.matches("must be 1 to 80 bytes").count(), 3, "{error}");
        assert!(error.contains("\"many\" names 65 GPUs: at most 64"), "{error}");
        let crowd = vec![instance("a", none, InstanceState::Idle); 257];
        assert!(roster("A100").place(crowd).unwrap_err().contains("257 instances: at most 256"));
        for text in ["", "-1", "99999999999", "cuda:", "cuda:-1", "GPU", &format!("GPU-{}", "a".repeat(61))] {
            assert!(Selector::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn one_client_too_many_is_not_taken_and_those_that_are_there_go_on() {
        let mut told = Told::default();
        assert!((0..8).all(|client| told.say(client, Vec::new())));
        assert!(!told.say(8, Vec::new()) && told.say(7, Vec::new()));
        told.gone(3);
        assert!(told.say(8, Vec::new()));
    }

    proptest! {
        /// Clients say what they like, and go in any order: held is what those who are there said last.
        #[test]
        fn work_is_that_of_the_last_word_of_each_client_and_nothing_is_left_of_those_that_went(
            words in prop::collection::vec((0_u64..4, prop::option::of((0_u32..3, any::<bool>()))), 0..40),
        ) {
            let roster = roster("A100");
            let mut told = Told::default();
            let mut last = BTreeMap::new();
            for (client, word) in words {
                match word {
                    Some((gpu, works)) => {
                        let state = if works { InstanceState::Working } else { InstanceState::Idle };
                        let said = vec![instance("a", &[&gpu.to_string()], state)];
                        prop_assert!(told.say(client, roster.place(said).unwrap().instances));
                        last.insert(client, (gpu, works));
                    }
                    None => {
                        told.gone(client);
                        last.remove(&client);
                    }
                }
                for (index, uuid) in [(0, "GPU-aa11"), (1, "GPU-aa22"), (2, "GPU-bb")] {
                    let held = last.values().filter(|said| **said == (index, true)).count();
                    prop_assert_eq!(told.working(|ours| ours == uuid) as usize, held);
                }
            }
            for client in 0..4 {
                told.gone(client);
            }
            prop_assert_eq!(told, Told::default());
        }

        #[test]
        fn any_text_is_a_selector_or_an_error_and_what_is_written_is_read_again(
            text in "\\PC{0,70}|(cuda:)?[0-9]{1,12}|GPU-.{0,40}",
        ) {
            if let Ok(selector) = Selector::try_from(text) {
                let _ = roster("A100").find(&selector);
                prop_assert_eq!(Selector::try_from(selector.to_string()), Ok(selector));
            }
        }
    }
}
