//! Keys that bound each other, and combinations that are allowed but odd.

use super::choices::{Lever, Source};
use super::error::{Problem, Warning};
use super::reader::Reader;
use super::{Config, Parking};

/// Reports a pair of keys that contradict each other, unless it `holds`.
fn require(reader: &mut Reader<'_>, holds: bool, [key, than]: [&str; 2], value: String, must_be: String) {
    if !holds {
        let remedy = Some("change one of the two".into());
        reader.relation(&[key, than], Problem::Value { key: key.into(), value, must_be, remedy });
    }
}

/// Reports every pair of keys that contradict each other.
pub(super) fn relations(config: &Config, reader: &mut Reader<'_>) {
    relations_of_server(config, reader);
    let park = &config.park;
    relations_of_parking(reader, "park", park);
    require(
        reader,
        park.ports.is_empty() != park.sources.contains(&Source::Connections),
        ["park.ports", "park.sources"],
        if park.ports.is_empty() { "empty".into() } else { "given".into() },
        "given if, and only if, park.sources has connections".into(),
    );
    if park.sources.contains(&Source::Metrics) {
        refuse(
            reader,
            "park.sources",
            "metrics",
            "without metrics: these GPUs have no server",
            "leave it out",
        );
    }
}

/// The same of the keys of parking.
fn relations_of_parking(reader: &mut Reader<'_>, section: &str, parking: &Parking) {
    if let Some(high) = parking.temperature_high_c {
        require(
            reader,
            parking.temperature_low_c <= high,
            [&format!("{section}.temperature_low_c"), &format!("{section}.temperature_high_c")],
            parking.temperature_low_c.to_string(),
            format!("at most {section}.temperature_high_c, which is {high}"),
        );
    }
}

fn refuse(reader: &mut Reader<'_>, key: &str, value: &str, must_be: &str, remedy: &str) {
    let [key_text, value, must_be, remedy] = [key, value, must_be, remedy].map(str::to_owned);
    reader.relation(&[key], Problem::Value { key: key_text, value, must_be, remedy: Some(remedy) });
}

/// Keys of parking that work for GPUs with a server alone, or for those without, and why.
pub(super) fn elsewhere(reader: &mut Reader<'_>) {
    reader.refuse(
        "idle",
        "pstate",
        "performance states are forced on GPUs without a server alone (park.pstate)",
    );
    reader.refuse("idle", "wake_core_mhz", "the server's policy chooses the clock after a wake");
    reader.refuse("park", "max_ttft_rise_percent", "GPUs without a server have no time to first token");
}

/// The same of the keys that each server may have of its own.
pub(super) fn relations_of_server(config: &Config, reader: &mut Reader<'_>) {
    let Config { vllm, control, linucb, holdout, idle, .. } = config;
    let mut require = |holds: bool, key: &str, value: String, than: &str, must_be: String| {
        require(reader, holds, [key, than], value, must_be);
    };
    require(
        vllm.outage_after_s >= control.decision_interval_s,
        "vllm.outage_after_s",
        vllm.outage_after_s.0.to_string(),
        "control.decision_interval_s",
        format!("at least control.decision_interval_s, which is {}", control.decision_interval_s.0),
    );
    require(
        linucb.min_alpha <= linucb.initial_alpha,
        "linucb.min_alpha",
        linucb.min_alpha.to_string(),
        "linucb.initial_alpha",
        format!("at most linucb.initial_alpha, which is {}", linucb.initial_alpha),
    );
    require(
        holdout.settle_s.0 <= 0.75 * holdout.block_s.0,
        "holdout.settle_s",
        holdout.settle_s.0.to_string(),
        "holdout.block_s",
        format!("at most three quarters of holdout.block_s, which is {}", holdout.block_s.0),
    );
    require(
        control.convergence_top_k <= control.convergence_window,
        "control.convergence_top_k",
        control.convergence_top_k.to_string(),
        "control.convergence_window",
        format!("at most control.convergence_window, which is {}", control.convergence_window),
    );
    relations_of_parking(reader, "idle", idle);
    if !idle.sources.contains(&Source::Metrics) || idle.sources.len() < 2 {
        let value = idle.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let must_be = "metrics, which is asked anyway, and at least one of utilization and connections: the page \
                       alone shows work when a step of it is over";
        refuse(reader, "idle.sources", &value, must_be, "write [metrics, utilization, connections]");
    }
    if idle.lever == Lever::Pstate {
        let must_be =
            "core, memory, both or auto: performance states are forced on GPUs without a server alone";
        refuse(reader, "idle.lever", "pstate", must_be, "write auto");
    }
}

/// Warns of what is allowed and probably not meant.
pub(super) fn advice(config: &Config, reader: &mut Reader<'_>) {
    let Config { vllm, gpu, control, .. } = config;
    if let Ok(page) = url::Url::parse(&vllm.prometheus_url) {
        let here = match page.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        if page.path() == "/" {
            let mut usual = page.clone();
            usual.set_path("/metrics");
            reader.warn(Warning::NoPath { usual: usual.into() });
        }
        if page.scheme() == "http" && vllm.tls_ca_file.is_some() {
            let because = "vllm.prometheus_url is an http:// URL";
            reader.warn(Warning::NoEffect { key: "vllm.tls_ca_file", because });
        }
        if page.scheme() == "http" && vllm.bearer_token_file.is_some() && !here {
            reader.warn(Warning::TokenInClear);
        }
    }
    let bound = control.max_slowdown_percent;
    if control.ignore_slo && bound.is_some() && bound != Config::default().control.max_slowdown_percent {
        let because = "control.ignore_slo is true";
        reader.warn(Warning::NoEffect { key: "control.max_slowdown_percent", because });
    }
    if !gpu.enable_memory_frequency_control && !gpu.memory_frequencies.is_empty() {
        let because = "gpu.enable_memory_frequency_control is false";
        reader.warn(Warning::NoEffect { key: "gpu.memory_frequencies", because });
    }
}
