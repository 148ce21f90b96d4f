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
    /// What a sensor says in place of what it read: milliwatts, millijoules, percent, degrees Celsius.
    pub value: Option<u64>,
    /// Time to wait before it returns or works.
    pub delay: Duration,
    /// Calls to let through first.
    pub after: u64,
    /// How often it happens; `None`: until cleared.
    pub times: Option<u64>,
}

impl Injection {
    /// `call` fails with an NVML code on any GPU until cleared.
    pub fn error(call: &str, code: u32) -> Self {
        Self {
            call: call.to_owned(),
            gpu: None,
            code: Some(code),
            value: None,
            delay: Duration::ZERO,
            after: 0,
            times: None,
        }
    }

    /// `call` takes that much longer on any GPU until cleared.
    pub fn delay(call: &str, delay: Duration) -> Self {
        Self { code: None, delay, ..Self::error(call, 0) }
    }

    /// `call`, of a sensor, says `value` on any GPU until cleared: milliwatts (`nvmlDeviceGetPowerUsage`, and
    /// `nvmlDeviceGetFieldValues` for the instantaneous power), millijoules, percent, degrees Celsius.
    pub fn value(call: &str, value: u64) -> Self {
        Self { code: None, value: Some(value), ..Self::error(call, 0) }
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
    slot.says.store(u32::from(injection.value.is_some()), Relaxed);
    slot.value.store(injection.value.unwrap_or(0), Relaxed);
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
    take(state, call, gpu, false).map_or((Duration::ZERO, None), |slot| {
        let code = slot.code.load(Relaxed);
        (Duration::from_nanos(slot.delay_ns.load(Relaxed)), (code != 0).then_some(code))
    })
}

/// What a test has this sensor say.
pub(crate) fn said(state: &MockState, call: Call, gpu: u32) -> Option<u64> {
    take(state, call, Some(gpu), true).map(|slot| slot.value.load(Relaxed))
}

/// Counts the call against the first slot for it, and gives that if it is its turn.
fn take(state: &MockState, call: Call, gpu: Option<u32>, says: bool) -> Option<&InjectionSlot> {
    let slots = &state.shared().injections;
    let fits = |slot: &&InjectionSlot| {
        let on = slot.gpu.load(Relaxed);
        slot.remaining.load(Relaxed) > 0
            && slot.call.load(Relaxed) == call as u32
            && (slot.says.load(Relaxed) == 1) == says
            && (on == ANY || Some(on) == gpu)
    };
    // Nearly always there is none: then the lock is not worth taking.
    if !slots.iter().any(|slot| fits(&slot)) {
        return None;
    }
    let _locked = state.lock();
    let slot = slots.iter().find(fits)?;
    let after = slot.after.load(Relaxed);
    if after > 0 {
        slot.after.store(after - 1, Relaxed);
        return None;
    }
    let remaining = slot.remaining.load(Relaxed);
    if remaining != FOREVER {
        slot.remaining.store(remaining - 1, Relaxed);
    }
    Some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MockConfig;
    use crate::layout::MAX_INJECTIONS;

    const CALL: Call = Call::nvmlDeviceGetPowerUsage;

    fn machine() -> MockState {
        MockState::private(&MockConfig::default()).expect("a private machine")
    }

    fn codes(state: &MockState, calls: usize) -> Vec<Option<u32>> {
        (0..calls).map(|_| due(state, CALL, Some(0)).1).collect()
    }

    #[test]
    fn error_comes_after_the_calls_let_through_and_as_often_as_armed() {
        let state = machine();
        state.inject(&Injection::error(CALL.name(), 999).after(2).times(2)).expect("a free slot");
        assert_eq!(codes(&state, 6), [None, None, Some(999), Some(999), None, None]);
    }

    #[test]
    fn error_without_end_ends_when_cleared() {
        let state = machine();
        state.inject(&Injection::error(CALL.name(), 10)).expect("a free slot");
        assert_eq!(codes(&state, 3), [Some(10); 3]);
        state.clear_injections();
        assert_eq!(codes(&state, 1), [None]);
    }

    #[test]
    fn error_on_one_gpu_and_call_leaves_the_others_alone() {
        let state = machine();
        state.inject(&Injection::error(CALL.name(), 15).on(1)).expect("a free slot");
        assert_eq!(due(&state, CALL, Some(0)).1, None);
        assert_eq!(due(&state, Call::nvmlDeviceGetName, Some(1)).1, None);
        assert_eq!(due(&state, CALL, Some(1)).1, Some(15));
    }

    #[test]
    fn delay_alone_returns_no_code() {
        let state = machine();
        let delay = Duration::from_secs(3600);
        state.inject(&Injection::delay(CALL.name(), delay)).expect("a free slot");
        assert_eq!(due(&state, CALL, None), (delay, None));
    }

    #[test]
    fn unknown_function_is_refused_by_name() {
        let error = machine().inject(&Injection::error("nvmlFoo", 1)).expect_err("no such function");
        assert_eq!(error.to_string(), "nvmlFoo is no function of this library; see `nvml-mock-ctl calls`");
    }

    #[test]
    fn slot_that_ran_out_is_free_again() {
        let state = machine();
        for _ in 0..MAX_INJECTIONS {
            state.inject(&Injection::error(CALL.name(), 1).times(1)).expect("a free slot");
        }
        let one_more = Injection::error(CALL.name(), 1);
        assert!(matches!(state.inject(&one_more), Err(MockError::TooManyInjections)));
        assert_eq!(codes(&state, 1), [Some(1)]);
        state.inject(&one_more).expect("the slot that ran out");
    }
}
