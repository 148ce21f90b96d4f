//! Events and rounds as log lines: numbers are fields, units are in their names.

use std::collections::BTreeSet;

use tracing::{debug, error, info, warn};

use super::tick::{Observer, StepFacts};
use crate::config::Config;
use crate::control::stale::STALE_AFTER;
use crate::control::{Controller, Event, Mode, Round, Settings};
use crate::holdout::Savings;
use crate::metrics::health;
use crate::park::source::WakeSource;
use crate::reward::floor::Cause;
use crate::reward::judge::NotJudged;
use crate::seldom::Seldom;
use crate::units::Time;

/// Logs every event, every command, and, if asked for, every round.
#[derive(Default)]
pub struct LogObserver {
    detailed: bool,
    dry_run: bool,
    mode: Option<Mode>,
    /// Metrics whose values were refused: said once, not with every page.
    refused: BTreeSet<String>,
    not_judged: NotJudged,
    /// Reasons why a limit cannot be judged: each is said once.
    said_not_judged: BTreeSet<String>,
    /// What comes and goes is not said each time.
    seldom: Seldom<Time, Event>,
    modes: Seldom<Time>,
}

impl LogObserver {
    /// With `detailed` each round is a debug line; in a dry run commands are worded as what would be done.
    pub fn new(detailed: bool, dry_run: bool) -> Self {
        Self { detailed, dry_run, ..Self::default() }
    }
}

impl LogObserver {
    fn event(&mut self, event: &Event, now: Time) {
        match kind(event) {
            Kind::Always => self.say(event, 0),
            Kind::Trouble(kind) => {
                if let Some((event, times)) = self.seldom.happened(kind, event.clone(), now) {
                    self.say(&event, times);
                }
            }
            Kind::Over(kind) => {
                if self.seldom.over(kind) {
                    self.say(event, 0);
                }
            }
        }
    }

    /// Says it, and how often the same was not said before.
    fn say(&mut self, event: &Event, times: u64) {
        if times > 0 {
            info!(times, "events of the next line's kind, not logged each time");
        }
        log_event(event, &mut self.refused);
    }
}

/// How often an event may be said.
enum Kind {
    /// Each time: it cannot come often, or an operator asked for it.
    Always,
    /// Seldom, with all of this kind.
    Trouble(&'static str),
    /// Where the trouble of this kind was said.
    Over(&'static str),
}

fn kind(event: &Event) -> Kind {
    match event {
        Event::Health(health::Event::Degraded { .. }) => Kind::Trouble("degraded"),
        Event::Health(health::Event::Outage { .. }) => Kind::Trouble("outage"),
        Event::Health(health::Event::Recovered { .. }) => Kind::Over("outage"),
        Event::Discontinuity(_) => Kind::Trouble("discontinuity"),
        Event::StaleGauges { .. } => Kind::Trouble("stale gauges"),
        Event::LimitBroken { .. } | Event::LimitOutOfReach { .. } => Kind::Trouble("limit"),
        Event::LimitKept => Kind::Over("limit"),
        Event::ClockNotHeld { .. } => Kind::Trouble("not held"),
        Event::StuckAtIdleClock { .. } => Kind::Trouble("stuck"),
        Event::ClockRefused { .. } => Kind::Trouble("refused"),
        Event::ArmOut { .. } => Kind::Trouble("out of the action space"),
        Event::Woken { by: WakeSource::Unseen, .. } => Kind::Trouble("unseen"),
        _ => Kind::Always,
    }
}

impl Observer for LogObserver {
    fn step(&mut self, facts: &StepFacts<'_>) {
        for event in &facts.output.events {
            self.event(event, facts.seen.now);
        }
        let limits = facts.controller.settings().limits;
        for why in self.not_judged.look(&facts.seen.scrape.engines(), limits).into_iter().flatten() {
            if !self.said_not_judged.contains(&why) {
                warn!(why, "a latency limit of the defaults is not judged");
                self.said_not_judged.insert(why);
            }
        }
        while let Some((event, times)) = self.seldom.due(facts.seen.now) {
            self.say(&event, times);
        }
        let mode = facts.controller.mode();
        if self.mode != Some(mode) {
            // What comes and goes with trouble is not said each time either.
            let shown = match (self.mode, mode) {
                (_, Mode::Outage | Mode::Fault) => {
                    self.modes.happened(mode.name(), (), facts.seen.now).is_some()
                }
                (Some(was @ (Mode::Outage | Mode::Fault)), _) => self.modes.over(was.name()),
                _ => true,
            };
            if shown {
                info!(mode = mode.name(), "mode");
            }
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

    fn end(&mut self, controller: &Controller, _: &Savings) {
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
        Event::Health(event) => log_health(event),
        Event::Discontinuity(why) => warn!(
            %why,
            "engine restarted or counters reset: window void (if this goes on: several servers behind one \
             address? vllm.prometheus_url has to reach one)"
        ),
        Event::Refused(values) => log_refused(values, refused),
        Event::StaleGauges { running, waiting } => warn!(
            running,
            waiting,
            for_s = STALE_AFTER.0,
            "the page says that requests run, but no counter moves and the GPU does nothing: the gauges look stale (were \
             requests aborted?) and are not taken for work until something moves"
        ),
        Event::BaselineDone { windows } => info!(windows, "baseline measured"),
        Event::LimitBroken { violation, running, floor, cause } => warn!(
            limit = %violation.limit,
            measured_s = violation.measured.0,
            allowed_s = violation.allowed.0,
            %running,
            floor_mhz = floor.map(|floor| floor.0),
            "latency limit broken: {}",
            match cause {
                Cause::Clock => "clocks up",
                Cause::Load => "by load alone, the clocks are the driver's already",
            }
        ),
        Event::LimitOutOfReach { violation } => warn!(
            limit = %violation.limit,
            measured_s = violation.measured.0,
            allowed_s = violation.allowed.0,
            "driver-default clocks break the latency limit as well: the load is the cause, not the clock"
        ),
        Event::LimitKept => info!("latency limits kept again"),
        Event::Paused => info!("paused by an operator: driver-default clocks"),
        Event::Resumed => info!("resumed by an operator"),
        Event::LeversMeasured(book) => info!("idle: {book}"),
        Event::Parked { clocks } => info!(core_mhz = clocks.core.0, "idle: parked"),
        Event::TooHot { clocks, temperature_c } => {
            warn!(core_mhz = clocks.core.0, temperature_c, "too hot: parked, work or not");
        }
        Event::Cooled => info!("cool again: parked, since there is no work"),
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
        Event::Unsettled { rounds } => info!(rounds, "no longer converged"),
    }
}

fn log_refused(values: &[String], known: &mut BTreeSet<String>) {
    let metric = |value: &String| value.split(": ").next().unwrap_or_default().to_owned();
    let new: Vec<&String> = values.iter().filter(|value| known.insert(metric(value))).collect();
    if !new.is_empty() {
        warn!(values = ?new, "values on the page refused; said once for each metric");
    }
}

fn log_health(event: &health::Event) {
    match event {
        health::Event::Degraded { essential, useful } => {
            warn!(?essential, ?useful, "signals missing on the metrics page");
        }
        health::Event::Outage { since, why } => {
            warn!(since_s = since.0, %why, "metrics endpoint out: clocks given back until it is there again");
        }
        health::Event::Recovered { after } => {
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
        WakeSource::Instances { working } => info!(parked_s, working, "an instance works: woken"),
        WakeSource::Utilization { percent } => info!(parked_s, percent, "utilisation rose: woken"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Seconds;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn endpoint_that_flaps_every_second_costs_a_line_a_minute_with_a_count() {
        let lines = Lines::default();
        let to = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone()).finish();
        tracing::subscriber::with_default(log, || {
            let mut observer = LogObserver::new(false, false);
            for second in 0..130 {
                let now = Time(f64::from(second));
                let out = health::Event::Outage { since: now, why: "refused".into() };
                observer.event(&Event::Health(out), now);
                let back = health::Event::Recovered { after: Seconds(0.5) };
                observer.event(&Event::Health(back), Time(now.0 + 0.5));
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("metrics endpoint out").count(), 3, "{text}");
        assert_eq!(text.matches("metrics endpoint is back").count(), 3, "{text}");
        assert_eq!(text.matches("times=59").count(), 2, "{text}");
    }
}
