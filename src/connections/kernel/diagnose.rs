//! Why the kernel gives no events, in plain words and with what would help.

use std::fs;
use std::path::Path;

/// Bits in the kernel's capability masks.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: (u32, &str) = (38, "CAP_PERFMON");
const CAP_BPF: (u32, &str) = (39, "CAP_BPF");

/// What there is to be known of this process and its kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// The kernel's own description of its types, if it cannot be found.
    types_missing: Option<String>,
    /// Effective capabilities; `None` if the kernel does not say.
    capabilities: Option<u64>,
    /// `/sys/kernel/security/lockdown`; empty where there is none.
    lockdown: String,
}

impl Facts {
    pub(super) fn gather(types: &Path) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        Self {
            types_missing: fs::metadata(types).is_err().then(|| types.display().to_string()),
            capabilities: mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()),
            lockdown: fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default(),
        }
    }

    fn lacks(&self, needed: &[(u32, &'static str)]) -> Vec<&'static str> {
        match self.capabilities {
            Some(mask) if mask >> CAP_SYS_ADMIN & 1 == 0 => {
                needed.iter().filter(|(bit, _)| mask >> bit & 1 == 0).map(|(_, name)| *name).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What keeps BPF programs out, if it is known; otherwise, what the kernel said.
    pub(super) fn without_bpf(&self, said: &str) -> String {
        if let Some(types) = &self.types_missing {
            return format!(
                "this kernel has no type information ({types}); use one built with CONFIG_DEBUG_INFO_BTF, as those of \
                 distributions since 2021 are"
            );
        }
        let missing = self.lacks(&[CAP_BPF, CAP_PERFMON]);
        if !missing.is_empty() {
            return format!(
                "not permitted ({} missing); run as root, or grant CAP_BPF and CAP_PERFMON",
                missing.join(" and ")
            );
        }
        if let Some(why) = self.locked_down() {
            return why;
        }
        if refused(said) {
            return forbidden("bpf");
        }
        format!("{said}; needed is Linux 5.8 or newer with BPF")
    }

    /// What keeps perf events away, if it is known; otherwise, what the kernel said.
    pub(super) fn without_perf(&self, said: &str) -> String {
        if !self.lacks(&[CAP_PERFMON]).is_empty() {
            return "not permitted (CAP_PERFMON missing)".to_owned();
        }
        if let Some(why) = self.locked_down() {
            return why;
        }
        if refused(said) {
            return forbidden("perf_event_open");
        }
        format!("{said}; needed is a kernel with perf events")
    }

    fn locked_down(&self) -> Option<String> {
        self.lockdown.contains("[confidentiality]").then(|| {
            "the kernel is locked down (mode confidentiality) and lets no program read its memory; boot with \
             lockdown=integrity or none"
                .to_owned()
        })
    }
}

/// Is this `EPERM` or `EACCES`?
fn refused(said: &str) -> bool {
    said.contains("(os error 1)") || said.contains("(os error 13)")
}

fn forbidden(call: &str) -> String {
    format!(
        "{call}(2) is forbidden here in spite of the rights to it; let the sandbox permit it (systemd: \
         SystemCallFilter={call})"
    )
}

/// The error with its causes, on one line: the verifier's log may have hundreds.
pub(super) fn causes(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let line = text.split('\n').next().unwrap_or_default();
    line.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    fn bit((bit, _): (u32, &str)) -> u64 {
        1 << bit
    }

    #[test]
    fn each_reason_is_named_with_what_would_help() {
        let facts = Facts { capabilities: Some(ALL), ..Facts::default() };
        let not_root = |capabilities| Facts { capabilities: Some(capabilities), ..Facts::default() };
        let locked = |mode: &str| Facts { lockdown: mode.to_owned(), ..facts.clone() };
        let no_types = Facts { types_missing: Some("/there".to_owned()), ..not_root(0) };
        let cases = [
            (no_types, "no type information (/there); use one built with CONFIG_DEBUG_INFO_BTF"),
            (not_root(0), "CAP_BPF and CAP_PERFMON missing"),
            (not_root(bit(CAP_BPF)), "not permitted (CAP_PERFMON missing)"),
            (not_root(bit(CAP_PERFMON)), "not permitted (CAP_BPF missing); run as root, or grant"),
            (not_root(1 << CAP_SYS_ADMIN), "it said; needed is Linux 5.8"),
            (locked("none integrity [confidentiality]\n"), "locked down (mode confidentiality)"),
            (locked("none [integrity] confidentiality\n"), "it said; needed is Linux 5.8"),
            (Facts::default(), "it said; needed is Linux 5.8"),
        ];
        let refused = "no map: Operation not permitted (os error 1)";
        assert!(facts.without_bpf(refused).starts_with("bpf(2) is forbidden here"));
        assert!(facts.without_perf(refused).contains("SystemCallFilter=perf_event_open)"));
        assert!(
            not_root(0).without_bpf(refused).contains("CAP_BPF and CAP_PERFMON missing"),
            "the rights come first"
        );
        for (facts, expected) in cases {
            let said = facts.without_bpf("it said");
            assert!(said.contains(expected), "{facts:?}: {said}");
        }
        assert_eq!(not_root(bit(CAP_BPF)).without_perf("it said"), "not permitted (CAP_PERFMON missing)");
        let said = not_root(bit(CAP_PERFMON)).without_perf("it said");
        assert_eq!(said, "it said; needed is a kernel with perf events");
        assert!(locked("[confidentiality]").without_perf("it said").contains("locked down"));
    }
}
