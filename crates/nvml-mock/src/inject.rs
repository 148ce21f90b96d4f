//! Errors and delays that a test arms for a function of the library.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::MockError;
use crate::calls::Call;
use crate::layout::InjectionSlot;
use crate::state::MockState;

/// Without end.
const FOREVER: u64 = u64::MAX;
/// Any GPU.
const ANY: u32 = u32::MAX;

/// What a function of the library does instead of its work, or before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// NVML's name of the function.
    pub call: String,
    /// GPU index; `None`: any GPU, and calls that are about none.
    pub gpu: Option<u32>,
    /// Code to return; `None`: do the work after the delay.
    pub code: Option<u32>,
    /// Time to wait before it returns or works.
    pub delay: Duration,
    /// Calls to let through first.
    pub after: u64,
    /// How often it happens; `None`: until cleared.
    pub times: Option<u64>,
}

impl Injection {
    /// `call` fails with an NVML code on any GPU until cleared.
    #[must_use]
    pub fn error(call: &str, code: u32) -> Self {
        Self {
            call: call.to_owned(),
            gpu: None,
            code: Some(code),
            delay: Duration::ZERO,
            after: 0,
            times: None,
        }
    }

    /// `call` takes that much longer on any GPU until cleared.
    #[must_use]
    pub fn delay(call: &str, delay: Duration) -> Self {
        Self { code: None, delay, ..Self::error(call, 0) }
    }

    /// Only that often.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Only after so many calls that go through.
    #[must_use]
    pub fn after(self, calls: u64) -> Self {
        Self { after: calls, ..self }
    }

    /// Only on that GPU.
    #[must_use]
    pub fn on(self, gpu: u32) -> Self {
        Self { gpu: Some(gpu), ..self }
    }
}

pub(crate) fn arm(state: &MockState, injection: &Injection) -> Result<(), MockError> {
    let call =
        Call::from_name(&injection.call).ok_or_else(|| MockError::UnknownCall(injection.call.clone()))?;
    let _locked = state.lock();
    let slots = &state.shared().injections;
    let slot =
        slots.iter().find(|slot| slot.remaining.load(Relaxed) == 0).ok_or(MockError::TooManyInjections)?;
    slot.call.store(call as u32, Relaxed);
    slot.gpu.store(injection.gpu.unwrap_or(ANY), Relaxed);
    slot.code.store(injection.code.unwrap_or(0), Relaxed);
    slot.after.store(injection.after, Relaxed);
    slot.delay_ns.store(u64::try_from(injection.delay.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    // Last: only now the slot counts.
    slot.remaining.store(injection.times.unwrap_or(FOREVER), Relaxed);
    Ok(())
}

pub(crate) fn disarm_all(state: &MockState) {
    let _locked = state.lock();
    state.shared().injections.iter().for_each(|slot| slot.remaining.store(0, Relaxed));
}

/// What is to happen to this call: the delay to wait and the code to return, if any.
pub(crate) fn due(state: &MockState, call: Call, gpu: Option<u32>) -> (Duration, Option<u32>) {
    let slots = &state.shared().injections;
    let fits = |slot: &&InjectionSlot| {
        let on = slot.gpu.load(Relaxed);
        slot.remaining.load(Relaxed) > 0
            && slot.call.load(Relaxed) == call as u32
            && (on == ANY || Some(on) == gpu)
    };
    // Nearly always there is none: then the lock is not worth taking.
    if !slots.iter().any(|slot| fits(&slot)) {
        return (Duration::ZERO, None);
    }
    let _locked = state.lock();
    let Some(slot) = slots.iter().find(fits) else { return (Duration::ZERO, None) };
    let after = slot.after.load(Relaxed);
    if after > 0 {
        slot.after.store(after - 1, Relaxed);
        return (Duration::ZERO, None);
    }
    let delay = Duration::from_nanos(slot.delay_ns.load(Relaxed));
    let code = slot.code.load(Relaxed);
    let remaining = slot.remaining.load(Relaxed);
    if remaining != FOREVER {
        slot.remaining.store(remaining - 1, Relaxed);
    }
    (delay, (code != 0).then_some(code))
}
