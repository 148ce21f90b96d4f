//! Events and rounds as log lines: numbers are fields, units are in their names.

use std::collections::BTreeSet;

use tracing::{debug, error, info, warn};

use super::tick::{Observer, StepFacts};
use crate::config::Config;
use crate::control::{Controller, Event, Mode, Round, Settings};
use crate::metrics::health;
use crate::park::source::WakeSource;

/// Logs every event, every command, and, if asked for, every round.
pub struct LogObserver {
    detailed: bool,
    dry_run: bool,
    mode: Option<Mode>,
    /// Metrics whose values were refused: said once, not with every page.
    refused: BTreeSet<String>,
}

impl LogObserver {
    /// With `detailed` each round is a debug line; in a dry run commands are worded as what would be done.
    #[must_use]
    pub fn new(detailed: bool, dry_run: bool) -> Self {
        Self { detailed, dry_run, mode: None, refused: BTreeSet::new() }
    }
}

impl Observer for LogObserver {
    fn step(&mut self, facts: &StepFacts<'_>) {
        for event in &facts.output.events {
            log_event(event, &mut self.refused);
        }
        let mode = facts.controller.mode();
        if self.mode != Some(mode) {
            info!(mode = mode.name(), "mode");
            self.mode = Some(mode);
        }
        if let Some(target) = facts.output.command {
            let message = if self.dry_run { "clocks would change (dry run)" } else { "clocks change" };
            let choice = facts.output.round.as_ref().and_then(|round| round.choice);
            let (reason, score) = choice.map_or((None, None), |c| (Some(c.reason), c.score));
            match target.clocks() {
                Some(clocks) => info!(
                    core_mhz = clocks.core.0,
                    memory_mhz = clocks.memory.map(|memory| memory.0),
                    reason = reason.map(tracing::field::debug),
                    score,
                    "{message}"
                ),
                None => info!(reason = reason.map(tracing::field::debug), "{message}: driver default"),
            }
        }
        if self.detailed
            && let Some(round) = &facts.output.round
        {
            log_round(round);
        }
    }

    fn reconfigured(&mut self, config: &Config, _settings: &Settings) {
        self.detailed = config.logging.detailed_round_logging;
    }

    fn end(&mut self, controller: &Controller, _unix_time: f64) {
        let learned = controller.learned();
        info!(rounds = learned.rounds, "clocks given back, run over");
    }
}

fn log_round(round: &Round) {
    debug!(
        round = round.number,
        mode = round.mode.name(),
        window_s = round.window.elapsed.0,
        power_w = round.power.map(|power| power.0),
        delay_ms = round.cost.map(|cost| 1e3 * cost.delay.0),
        reward = round.reward,
        learned = round.learned,
        features = ?round.context.to_array(),
        command = %round.command,
        "round"
    );
}

fn log_event(event: &Event, refused: &mut BTreeSet<String>) {
    match event {
        Event::Health(event) => log_health(event, refused),
        Event::Discontinuity(why) => warn!(%why, "engine restarted or counters reset: window void"),
        Event::Refused(values) => log_refused(values, refused),
        Event::BaselineDone { windows } => info!(windows, "baseline measured"),
        Event::LimitBroken { violation, running, floor } => warn!(
            limit = %violation.limit,
            measured_s = violation.measured.0,
            allowed_s = violation.allowed.0,
            %running,
            floor_mhz = floor.map(|floor| floor.0),
            "latency limit broken: clocks up"
        ),
        Event::LimitKept => info!("latency limits kept again"),
        Event::Paused => info!("paused by an operator: driver-default clocks"),
        Event::Resumed => info!("resumed by an operator"),
        Event::LeversMeasured(book) => info!("idle: {book}"),
        Event::Parked { clocks } => info!(core_mhz = clocks.core.0, "idle: parked"),
        Event::Woken { by, parked } => log_woken(by, parked.0),
        Event::ClockNotHeld { asked, running, member } => warn!(
            gpu = member,
            asked_mhz = asked.core.0,
            running_mhz = running.0,
            "the card does not follow this clock"
        ),
        Event::ClocksChanged { asked, running, member, times, hands_off } => warn!(
            gpu = member,
            asked_mhz = asked.core.0,
            running_mhz = running.0,
            times,
            hands_off_s = hands_off.0,
            "somebody else changed the clocks, or the driver was reset: given back, and left alone for a while"
        ),
        Event::StuckAtIdleClock { running, member } => error!(
            gpu = member,
            running_mhz = running.0,
            "work runs at the idle clock though the clocks were given back: reset again"
        ),
        Event::ClockHeldLow { running, expected, reasons, member } => error!(
            gpu = member,
            running_mhz = running.0,
            expected_mhz = expected.0,
            %reasons,
            "the GPU stays at a low clock under load, whatever is asked: nothing is learned; look at its power supply, \
             power brake, cooling and `nvidia-smi -q -d PERFORMANCE`, or reset it"
        ),
        Event::ClockRefused { target, why } => warn!(%target, %why, "clock refused"),
        Event::ArmOut { clocks, retry_in } => {
            info!(core_mhz = clocks.core.0, retry_in_s = retry_in.0, "clock out of the action space");
        }
        Event::Converged { best, rounds } => {
            info!(best_core_mhz = best.map(|best| best.core.0), rounds, "converged");
        }
    }
}

fn log_refused(values: &[String], known: &mut BTreeSet<String>) {
    let metric = |value: &String| value.split(": ").next().unwrap_or_default().to_owned();
    let new: Vec<&String> = values.iter().filter(|value| known.insert(metric(value))).collect();
    if !new.is_empty() {
        warn!(values = ?new, "values on the page refused; said once for each metric");
    }
}

fn log_health(event: &health::Event, refused: &mut BTreeSet<String>) {
    match event {
        health::Event::Degraded { essential, useful } => {
            warn!(?essential, ?useful, "signals missing on the metrics page");
        }
        health::Event::Outage { since, why } => {
            warn!(since_s = since.0, %why, "metrics endpoint out: clocks given back until it is there again");
        }
        health::Event::Recovered { after } => {
            refused.clear();
            info!(after_s = after.0, "metrics endpoint is back");
        }
    }
}

fn log_woken(by: &WakeSource, parked_s: f64) {
    match by {
        WakeSource::Unseen => warn!(parked_s, "no sensor of the parked GPUs answers: woken"),
        WakeSource::Page => info!(parked_s, "work on the page: woken"),
        WakeSource::Power { power, parked } => {
            info!(parked_s, power_w = power.0, parked_power_w = parked.0, "power rose: woken");
        }
        WakeSource::Connections { open } => info!(parked_s, open, "a client asks: woken"),
        WakeSource::Utilization { percent } => info!(parked_s, percent, "utilisation rose: woken"),
    }
}
