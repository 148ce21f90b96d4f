//! The keys of parking: the same for GPUs of servers (section `idle`) and of none (`park`), with two sets of defaults.

use super::choices::{ConnectionCount, Lever, Source, WaitKind};
use super::reader::Section;
use super::rule::{flag, mhz, millis, one_of, optional, ports, real, seconds, some_of};
use crate::units::{Mhz, Seconds};

/// Each key: doc comment, `name: type = default in idle, default in park, rule;`.
macro_rules! parking {
    ($( $(#[$doc:meta])+ $key:ident: $type:ty = $idle:expr, $park:expr, $rule:expr; )+) => {
        /// When and how GPUs are parked: what the sections `idle` and `park` have in common.
        #[derive(Debug, Clone, PartialEq, serde::Serialize)]
        pub struct Parking {
            $( $(#[$doc])+ pub $key: $type, )+
        }

        impl Parking {
            /// The defaults of GPUs that have a server.
            pub(crate) fn of_servers() -> Self {
                Self { $( $key: $idle, )+ }
            }

            /// The defaults of GPUs that have none.
            pub fn of_others() -> Self {
                Self { $( $key: $park, )+ }
            }

            /// What a section says; what it does not say is as in `default`.
            pub(super) fn read(section: &mut Section<'_, '_>, default: Self) -> Self {
                Self { $( $key: section.key(stringify!($key), default.$key, &$rule), )+ }
            }
        }
    };
}

parking! {
    /// Who tells of work; parked only if all of these are quiet.
    sources: Vec<Source> =
        vec![Source::Metrics, Source::Utilization, Source::Connections], vec![Source::Utilization], some_of();
    /// TCP ports of this machine whose connections are work, for the source `connections`. A server's as it has them
    /// itself; that of `vllm.prometheus_url` without.
    ports: Vec<u16> = vec![], vec![], ports(64);
    /// What of these connections is work.
    count: ConnectionCount = ConnectionCount::Recent, ConnectionCount::Connections, one_of();
    /// How long an idle gap is waited out.
    rule: WaitKind = WaitKind::SkiRental, WaitKind::Timeout, one_of();
    /// The fixed time of `timeout`, from the last work on.
    timeout_s: Seconds = Seconds(60.0), Seconds(60.0), seconds(0.0..=86_400.0);
    /// All sources are quiet at least this long before a GPU is parked, whatever the rule; for two looks in a row
    /// (decisions, where there is a server) without.
    quiet_s: Option<Seconds> = None, Some(Seconds(3.2)), optional(seconds(0.01..=10_000.0));
    /// Park a GPU that has not worked since the start after `quiet_s` alone.
    at_start: bool = true, true, flag();
    /// What a wake costs, for `ski-rental`; measured without.
    wake_cost_j: Option<f64> = None, None, optional(real(0.1..=1e6));
    /// A wake that took longer raises the bar of `ski-rental`.
    wake_limit_s: Seconds = Seconds(1.0), Seconds(1.0), seconds(0.1..=60.0);
    /// Utilisation above this is work.
    utilization_threshold_percent: f64 = 10.0, 0.0, real(0.0..=100.0);
    /// Rise of power over its parked level that is work, where utilisation is a source; power says nothing without.
    wake_power_ratio: Option<f64> = Some(1.12), None, optional(real(1.01..=3.0));
    /// Temperature above which a GPU is parked whatever it does.
    temperature_high_c: Option<f64> = None, None, optional(real(30.0..=120.0));
    /// Temperature down to which it stays so.
    temperature_low_c: f64 = 75.0, 75.0, real(0.0..=120.0);
    /// Period of looks at a GPU that is not parked, and at connections that the kernel does not tell of.
    active_poll_ms: u64 = 100, 100, millis(10..=1000);
    /// Period of looks at a parked GPU.
    parked_poll_ms: u64 = 100, 1000, millis(10..=10_000);
    /// Which clocks are lowered.
    lever: Lever = Lever::Auto, Lever::Auto, one_of();
    /// Core clock while parked; the lowest without.
    core_mhz: Option<Mhz> = Some(Mhz(210)), None, optional(mhz(1..=10_000));
    /// Memory clock while parked; the lowest without.
    memory_mhz: Option<Mhz> = None, None, optional(mhz(1..=50_000));
}
