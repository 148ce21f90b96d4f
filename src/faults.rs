//! What can go wrong around agft that a part meets by this name, and the one thing that it does about each.
//!
//! [`Fault::reaction`] is the only place where that is decided
//! ([`GpuError::fault`](crate::gpu::GpuError::fault) and what follows from it). `docs/faults.md` has these and
//! all other faults, each with the tests that show what happens.

/// Something that went wrong outside of agft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// Not permitted.
    NotPermitted,
    /// The board cannot lock clocks.
    LocksNotSupported,
    /// The driver refuses this clock.
    ClockRefused,
    /// In use, timeout, unknown, out of memory: a clock call failed for a reason that often passes.
    CallFailed,
    /// A clock that held does not hold any more: somebody else changed it, or the driver was reset.
    ClocksChanged,
    /// The same again and again.
    ClocksContested,
    /// Awake and at work, the GPU still runs at the idle clock.
    StuckAtIdleClock,
}

/// What agft does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
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
    /// Does not start, or gives the clocks back and ends; the message names the remedy.
    End,
}

impl Fault {
    /// What agft does about it. Exhaustive: a new fault has to decide.
    #[must_use]
    pub const fn reaction(self) -> Reaction {
        match self {
            Self::LibraryMissing
            | Self::DriverMismatch
            | Self::GpuNotFound
            | Self::MigEnabled
            | Self::LocksNotSupported => Reaction::End,
            Self::DriverGone | Self::GpuLost | Self::GpuResetRequired | Self::NotPermitted => {
                Reaction::WaitOut
            }
            Self::CallFailed | Self::GpuSuspended | Self::ClocksChanged => Reaction::Pause,
            Self::ClockRefused => Reaction::DropClock,
            Self::ClocksContested => Reaction::StandBack,
            Self::StuckAtIdleClock => Reaction::ResetAndAlarm,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    const ALL: [Fault; 15] = [
        Fault::LibraryMissing,
        Fault::DriverGone,
        Fault::DriverMismatch,
        Fault::GpuNotFound,
        Fault::GpuLost,
        Fault::GpuResetRequired,
        Fault::GpuSuspended,
        Fault::MigEnabled,
        Fault::NotPermitted,
        Fault::LocksNotSupported,
        Fault::ClockRefused,
        Fault::CallFailed,
        Fault::ClocksChanged,
        Fault::ClocksContested,
        Fault::StuckAtIdleClock,
    ];

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
            if let Some(fault) = ALL.into_iter().find(|fault| format!("`{fault:?}`") == name) {
                assert_eq!(reaction, format!("{:?}", fault.reaction()), "{row}");
            }
            assert!(seen.insert(name), "twice: {row}");
            let tests: Vec<&str> = tests.split(' ').filter(|name| !name.is_empty()).collect();
            assert!(!tests.is_empty(), "no test: {row}");
            for test in tests {
                let function = format!("fn {}(", test.trim_matches(['`', ',']));
                assert!(code.contains(&function), "no {function} for {row}");
            }
        }
        for fault in ALL {
            assert!(seen.contains(&*format!("`{fault:?}`")), "{fault:?} is not in the table");
        }
    }
}
