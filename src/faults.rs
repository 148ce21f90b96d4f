//! What can go wrong around agft, and the one thing that it does about each.
//!
//! [`Fault::reaction`] is the only place where that is decided. The parts that meet a fault ask it
//! ([`GpuError::fault`](crate::gpu::GpuError::fault) and what follows from it), or are held to it by the tests that
//! `docs/faults.md` names beside each fault.

/// Something that went wrong outside of agft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// `libnvidia-ml.so.1` cannot be loaded.
    LibraryMissing,
    /// The driver does not answer, or is not loaded any more.
    DriverGone,
    /// The library is of another version than the kernel module: an upgrade without a reboot.
    DriverMismatch,
    /// No such GPU.
    GpuNotFound,
    /// One GPU, or one of several, fell off the bus or was unplugged.
    GpuLost,
    /// The GPU wants a reset, or is being reset.
    GpuResetRequired,
    /// The GPU is suspended, or not ready.
    GpuSuspended,
    /// MIG is enabled.
    MigEnabled,
    /// Persistence mode is off.
    PersistenceOff,
    /// Not permitted.
    NotPermitted,
    /// The board cannot lock clocks.
    LocksNotSupported,
    /// The driver refuses this clock.
    ClockRefused,
    /// In use, timeout, unknown, out of memory: a clock call failed for a reason that often passes.
    CallFailed,
    /// A driver call does not return.
    CallHangs,
    /// Sensors fail, all or some.
    SensorsFail,
    /// A sensor answers what no board does, or what another sensor contradicts.
    SensorNotBelieved,
    /// No sensor tells whether the GPU works, and the page shows no work.
    GpuUnseen,
    /// The GPU is slowed down by temperature, a power brake or a hardware protection.
    Throttled,
    /// The power cap holds the clock down.
    PowerCapped,
    /// The card never ran at this clock, though nothing explains that.
    ClockNotHeld,
    /// A clock that held does not hold any more: somebody else changed it, or the driver was reset.
    ClocksChanged,
    /// The same again and again.
    ClocksContested,
    /// Under load the GPU stays at a low clock, whatever is asked, or at default clocks.
    ClockHeldLow,
    /// Awake and at work, the GPU still runs at the idle clock.
    StuckAtIdleClock,
    /// A single page did not come, or was none.
    PageMissing,
    /// No good page for `vllm.outage_after_s`.
    EndpointOut,
    /// Pages without a word about requests or tokens: other names, another service.
    PageUnknown,
    /// A signal is missing, refused or there twice.
    SignalMissing,
    /// Gauges stay high though nothing happens.
    StaleGauges,
    /// The engine restarted, was replaced or upgraded; counters ran backwards.
    EngineReplaced,
    /// The wall clock jumped.
    WallClockJumped,
    /// The model cannot be written.
    ModelNotSaved,
    /// A model file is damaged.
    ModelDamaged,
    /// Rounds cannot be written.
    RoundsNotWritten,
    /// The log cannot be written.
    LogNotWritten,
    /// The journal of held locks cannot be written.
    JournalNotWritten,
    /// A new configuration has an error.
    ConfigBroken,
    /// The guardian ended or does not answer.
    GuardianLost,
    /// The controller was killed, stopped or crashed.
    ControllerGone,
    /// Both were killed.
    BothGone,
}

/// What agft does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// Nothing: it has no effect.
    Nothing,
    /// Goes on, and says it once.
    Warn,
    /// Goes on; this window or signal is not learned from.
    NotLearned,
    /// Goes on; what is missing is tried again later, and it is said once.
    TryLater,
    /// Never parks, and wakes if parked.
    NeverIdle,
    /// Takes the clock out of the action space, and goes on.
    DropClock,
    /// Gives the clocks back for some seconds, then goes on.
    Pause,
    /// Does not start. Under a run: gives the clocks back as soon as the driver takes them, and goes on when it passes;
    /// where it takes none back for minutes, ends and leaves them to the guardian.
    WaitOut,
    /// Gives the clocks back and touches none for minutes.
    StandBack,
    /// Gives the clocks back by force, with an alarm.
    ResetAndAlarm,
    /// Gives the clocks back until the fault is over.
    GiveBack,
    /// Puts the file aside, and starts with the other generation or afresh.
    PutAside,
    /// The guardian gives the clocks back.
    GuardianReleases,
    /// The next start, `agft release` or the service manager gives the clocks back.
    JournalReleases,
    /// Does not start, or gives the clocks back and ends; the message names the remedy.
    End,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 40] = [
        Self::LibraryMissing,
        Self::DriverGone,
        Self::DriverMismatch,
        Self::GpuNotFound,
        Self::GpuLost,
        Self::GpuResetRequired,
        Self::GpuSuspended,
        Self::MigEnabled,
        Self::PersistenceOff,
        Self::NotPermitted,
        Self::LocksNotSupported,
        Self::ClockRefused,
        Self::CallFailed,
        Self::CallHangs,
        Self::SensorsFail,
        Self::SensorNotBelieved,
        Self::GpuUnseen,
        Self::Throttled,
        Self::PowerCapped,
        Self::ClockNotHeld,
        Self::ClocksChanged,
        Self::ClocksContested,
        Self::ClockHeldLow,
        Self::StuckAtIdleClock,
        Self::PageMissing,
        Self::EndpointOut,
        Self::PageUnknown,
        Self::SignalMissing,
        Self::StaleGauges,
        Self::EngineReplaced,
        Self::WallClockJumped,
        Self::ModelNotSaved,
        Self::ModelDamaged,
        Self::RoundsNotWritten,
        Self::LogNotWritten,
        Self::JournalNotWritten,
        Self::ConfigBroken,
        Self::GuardianLost,
        Self::ControllerGone,
        Self::BothGone,
    ];

    /// What agft does about it. Exhaustive: a new fault has to decide.
    #[must_use]
    pub const fn reaction(self) -> Reaction {
        match self {
            Self::LibraryMissing
            | Self::DriverMismatch
            | Self::GpuNotFound
            | Self::MigEnabled
            | Self::LocksNotSupported
            | Self::CallHangs => Reaction::End,
            Self::DriverGone | Self::GpuLost | Self::GpuResetRequired | Self::NotPermitted => {
                Reaction::WaitOut
            }
            Self::CallFailed | Self::GpuSuspended | Self::ClocksChanged | Self::JournalNotWritten => {
                Reaction::Pause
            }
            Self::ClockRefused | Self::ClockNotHeld => Reaction::DropClock,
            Self::ClocksContested => Reaction::StandBack,
            Self::StuckAtIdleClock => Reaction::ResetAndAlarm,
            Self::GpuUnseen => Reaction::NeverIdle,
            Self::EndpointOut | Self::PageUnknown | Self::GuardianLost => Reaction::GiveBack,
            Self::SensorsFail
            | Self::Throttled
            | Self::ClockHeldLow
            | Self::SignalMissing
            | Self::EngineReplaced => Reaction::NotLearned,
            // The board's ordinary limit: learned from, under the clock that is read back.
            Self::PowerCapped | Self::WallClockJumped => Reaction::Nothing,
            Self::PersistenceOff | Self::ConfigBroken | Self::SensorNotBelieved | Self::StaleGauges => {
                Reaction::Warn
            }
            Self::PageMissing | Self::ModelNotSaved | Self::RoundsNotWritten | Self::LogNotWritten => {
                Reaction::TryLater
            }
            Self::ModelDamaged => Reaction::PutAside,
            Self::ControllerGone => Reaction::GuardianReleases,
            Self::BothGone => Reaction::JournalReleases,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn sources(dir: &Path, text: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, text);
            } else if path.extension() == Some("rs".as_ref()) {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn nothing_that_decides_reads_the_wall_clock() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut code = String::new();
        for dir in ["control", "bandit", "features", "reward", "metrics", "gpu"] {
            sources(&root.join(dir), &mut code);
        }
        for file in ["clock", "feed", "actuator", "sampler", "watch"] {
            code.push_str(&std::fs::read_to_string(root.join(format!("daemon/{file}.rs"))).unwrap());
        }
        for file in ["process", "link"] {
            code.push_str(&std::fs::read_to_string(root.join(format!("guardian/{file}.rs"))).unwrap());
        }
        for wall in ["SystemTime", "Timestamp::now", "Zoned::now"] {
            assert!(!code.contains(wall), "{wall}: a jump of the wall clock would be felt");
        }
    }

    #[test]
    fn table_in_the_documentation_is_this_one_and_its_tests_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(root.join("docs/faults.md")).unwrap();
        let mut code = String::new();
        ["src", "tests", "crates"].iter().for_each(|dir| sources(&root.join(dir), &mut code));
        let mut seen = BTreeSet::new();
        for row in page.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [name, _, reaction, _, tests] = cells[..] else { panic!("five cells: {row}") };
            let fault = Fault::ALL.into_iter().find(|fault| format!("`{fault:?}`") == name);
            let fault = fault.unwrap_or_else(|| panic!("no such fault: {row}"));
            assert_eq!(reaction, format!("{:?}", fault.reaction()), "{row}");
            assert!(seen.insert(fault), "twice: {row}");
            let tests: Vec<&str> = tests.split(' ').filter(|name| !name.is_empty()).collect();
            assert!(!tests.is_empty(), "no test: {row}");
            for test in tests {
                let function = format!("fn {}(", test.trim_matches(['`', ',']));
                assert!(code.contains(&function), "no {function} for {row}");
            }
        }
        let all: BTreeSet<Fault> = Fault::ALL.into_iter().collect();
        assert_eq!(all.len(), Fault::ALL.len());
        assert_eq!(seen, all);
    }
}
