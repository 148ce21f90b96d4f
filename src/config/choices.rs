//! Values that are one of a few words, and the names of GPUs, as the file writes them.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::gpu::GpuSelector;
use crate::reward::slo::Statistic;
use crate::reward::{Objective, RewardForm};

/// A type whose values have names in the file.
pub(super) trait Choice: Copy + 'static {
    /// Every accepted name with its value; the first name of a value is the one that is written.
    const NAMES: &'static [(&'static str, Self)];
}

/// The names of each choice: variant and its name in the file (then others it answers to). The types belong to the
/// modules that act on them.
macro_rules! names {
    ($( $name:ty { $( $variant:ident = $text:literal $(| $alias:literal)*, )+ } )+) => {$(
        impl Choice for $name {
            const NAMES: &'static [(&'static str, Self)] =
                &[$( ($text, Self::$variant), $( ($alias, Self::$variant), )* )+];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $( Self::$variant => $text, )+ })
            }
        }
    )+};
}

names! {
    Source { Metrics = "metrics", Utilization = "utilization", Connections = "connections", }
    ConnectionCount { Connections = "connections", Recent = "recent", }
    WaitKind { Timeout = "timeout", SkiRental = "ski-rental", }
    Lever { Core = "core", Memory = "memory", Both = "both", Auto = "auto", Pstate = "pstate", }
    PolicyKind { LinUcb = "linucb", Structured = "structured", }
    RewardForm { LogRatio = "log_ratio", Clipped = "clipped", }
    Statistic { Mean = "mean", P95 = "p95", P99 = "p99", }
    Objective { Edp = "edp", Ed2p = "ed2p", Energy = "energy", }
    LogLevel {
        Trace = "TRACE",
        Debug = "DEBUG",
        Info = "INFO",
        Warning = "WARNING" | "WARN",
        Error = "ERROR",
    }
}

/// What a server runs (`engine` of an entry of `servers`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineKind {
    /// What its page looks like.
    Auto,
    /// The engine whose profile has this name, in upper or lower case.
    Named(String),
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Named(name) => name,
        })
    }
}

impl Serialize for EngineKind {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Who chooses the clocks (`control.policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PolicyKind {
    /// One ridge regression per clock, as AGFT has it.
    #[serde(rename = "linucb")]
    LinUcb,
    /// Linear models of step time and power, shared by all clocks.
    #[serde(rename = "structured")]
    Structured,
}

/// Who tells of work (`idle.sources`, `park.sources`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The engine's page.
    Metrics,
    /// The GPUs' sensors: utilisation and power.
    Utilization,
    /// TCP connections.
    Connections,
}

/// Which connections are work (`idle.count`, `park.count`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionCount {
    /// Each that is open.
    Connections,
    /// Each that was just opened or used.
    Recent,
}

/// How long an idle gap is waited out (`idle.rule`, `park.rule`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitKind {
    /// A fixed time.
    Timeout,
    /// As long as pays, by the gaps of late.
    SkiRental,
}

/// What parking lowers (`idle.lever`, `park.lever`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lever {
    /// The core clock.
    Core,
    /// The memory clock.
    Memory,
    /// Both; a board that cannot is refused.
    Both,
    /// Whichever was measured to pay most on this board; for a GPU without a server the performance state where it
    /// locks no clocks.
    Auto,
    /// The performance state, through NVAPI, of a GPU without a server.
    Pstate,
}

/// Least severity that is logged (`logging.console_level`, `logging.file_level`, `--log-level`: this is its
/// help).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// Each round.
    Debug,
    /// Each change.
    Info,
    /// What needs attention.
    #[value(name = "warn", alias = "warning")]
    Warning,
    /// What failed.
    Error,
}

/// Where a page is served (`observe.metrics_listen`): an address with a port, or nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl Listen {
    /// This machine only, on agft's port.
    pub(crate) const LOCAL: Self = Self(Some(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9477))));
    /// The same for `agft park`, which may run beside a learning agft.
    pub(crate) const PARK: Self = Self(Some(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9478))));
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("off") {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(address) => Ok(Self(Some(address))),
            Err(_) => Err("must be off or ADDRESS:PORT with a numeric address, like 127.0.0.1:9477".into()),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("off"),
            Some(address) => address.fmt(f),
        }
    }
}

impl Serialize for Listen {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Reads a UUID as `nvidia-smi -L` prints it; `None` if it cannot be one. Whether there is such a GPU is the driver's to
/// say.
pub(super) fn gpu_uuid(text: &str) -> Option<GpuSelector> {
    let rest = text.strip_prefix("GPU-")?;
    let plausible = (1..=64).contains(&rest.len())
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    plausible.then(|| GpuSelector::Uuid(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_is_taken_whole() {
        let uuid = "GPU-0f1e2d3c-0000-1111-2222-0123456789ab";
        assert_eq!(gpu_uuid(uuid), Some(GpuSelector::Uuid(uuid.into())));
        for wrong in ["GPU-", "gpu-0f1e2d3c", &uuid[4..], "GPU-0f1e 2d3c", "GPU-\u{e9}"] {
            assert_eq!(gpu_uuid(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn written_name_of_a_choice_is_the_one_serde_writes() {
        for (name, level) in LogLevel::NAMES {
            assert_eq!(serde_json::to_value(level).unwrap(), level.to_string());
            assert!(*name == level.to_string() || *name == "WARN");
        }
    }
}
