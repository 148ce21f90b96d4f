//! `agft park` in virtual time: its rule, with the looks, powers and wake checks that the daemon feeds it.

use crate::sim::run::{Autopilot, Look, WRITE_DELAY};
use agft::compose;
use agft::config::{Park, ParkSource, WaitKind};
use agft::park::books::Books;
use agft::park::gap::{GapSettings, Prices, Wait};
use agft::park::price::WakePrice;
use agft::park::rule::{Decision, Observation, ParkRule, Settings, State};
use agft::units::{Clocks, Mhz, Millijoules, Seconds, Target, Time};

/// Between two looks at the power of a quiet GPU, and from the last work to the first of them.
const SLOW: Seconds = Seconds(1.0);

/// The rule at work on the simulated GPU.
#[derive(Debug, Clone)]
pub struct Pilot {
    rule: ParkRule,
    parked: Clocks,
    /// Parked for good only after this much of a gap; at these clocks before.
    stage: Option<(Seconds, Clocks)>,
    active: Seconds,
    down: Seconds,
    books: Books,
    price: WakePrice,
    utilization: Option<f64>,
    due: Time,
    power_due: Time,
    requests: u64,
    last_connection: Option<Time>,
    parked_at: Option<(Time, Millijoules)>,
    woken_at: Option<Time>,
    down_at: Option<Clocks>,
}

impl Pilot {
    /// Parks a fixed time after the last connection was closed.
    #[must_use]
    pub fn fixed(wait: Seconds, parked: Clocks, park: &Park) -> Self {
        let quiet = if wait < park.quiet_s { wait } else { park.quiet_s };
        let rule = ski_rental(park);
        let gap = GapSettings { wait: Wait::Timeout(wait), quiet, ..rule.gap };
        let settings = Settings { gap, utilization_threshold_percent: None, ..rule };
        Self::new(settings, parked, park)
    }

    /// Parks as the configuration's section `park` has it, as `ski-rental`, by utilisation and connections.
    #[must_use]
    pub fn rule(parked: Clocks, park: &Park) -> Self {
        Self::new(ski_rental(park), parked, park)
    }

    /// As [`fixed`](Self::fixed), but at `shallow` clocks until `deep` after the last connection was closed.
    #[must_use]
    pub fn staged(wait: Seconds, shallow: Clocks, deep: Seconds, parked: Clocks, park: &Park) -> Self {
        Self { stage: Some((deep, shallow)), ..Self::fixed(wait, parked, park) }
    }

    fn new(settings: Settings, parked: Clocks, park: &Park) -> Self {
        Self {
            rule: ParkRule::new(settings),
            parked,
            stage: None,
            active: millis(park.active_poll_ms),
            down: millis(park.parked_poll_ms),
            books: Books::default(),
            price: WakePrice::default(),
            utilization: None,
            due: Time(0.0),
            power_due: Time(0.0),
            requests: 0,
            last_connection: None,
            parked_at: None,
            woken_at: None,
            down_at: None,
        }
    }

    fn carry_out(&mut self, decision: Decision, look: &Look) -> Option<Target> {
        match decision {
            Decision::Stay | Decision::Cool { .. } => self.clocks_now(look.now),
            Decision::Park(_) => {
                self.woken_at = None;
                self.books.parked();
                self.parked_at = Some((look.now, look.energy));
                self.due = look.now + self.down;
                self.clocks_now(look.now)
            }
            Decision::Wake(source) => {
                if let Some((since, before)) = self.parked_at.take() {
                    self.books.parked_span(look.now.since(since), look.energy.since(before));
                }
                self.books.woken(source.name(), false);
                self.woken_at = Some(look.now);
                self.due = look.now + self.active;
                self.down_at = None;
                Some(Target::Default)
            }
        }
    }

    /// The clocks of the gap's present stage, if they are to be asked for.
    fn clocks_now(&mut self, now: Time) -> Option<Target> {
        let State::Parked { idle_since } = self.rule.state() else { return None };
        let wanted = match self.stage {
            Some((deep, shallow)) if now.since(idle_since) < deep => {
                // A look in time for the next stage.
                let next = idle_since + deep;
                self.due = if next < self.due { next } else { self.due };
                shallow
            }
            _ => self.parked,
        };
        (self.down_at.replace(wanted) != Some(wanted)).then_some(Target::Lock(wanted))
    }

    /// Are the clocks back from a wake?
    fn check_wake(&mut self, core: Option<Mhz>, now: Time) {
        if let Some(woken) = self.woken_at
            && core.is_some_and(|core| core > self.parked.core)
        {
            self.rule.woke(now.since(woken));
            self.price.woke(now.since(woken));
            self.woken_at = None;
        }
    }

    fn sample_quiet_power(&mut self, look: &Look) {
        let State::Quiet { since } = self.rule.state() else {
            if self.parked_at.is_none() {
                self.books.end_spell();
            }
            return;
        };
        if look.now.since(since) >= SLOW && look.now >= self.power_due {
            self.power_due = look.now + SLOW;
            self.books.quiet_power(look.power);
        }
    }
}

impl Autopilot for Pilot {
    fn due(&self) -> Time {
        self.due
    }

    fn act(&mut self, look: &Look) -> Option<Target> {
        let now = look.now;
        let polls = now >= self.due;
        if polls {
            self.utilization = look.utilization_percent;
            if self.rule.state() == State::Serving && self.utilization.is_some_and(|percent| percent > 50.0) {
                self.price.worked(look.power);
            }
            let parked = self.rule.state().is_down();
            self.due = now + if parked { self.down } else { self.active };
        }
        if look.connections.requests_total > self.requests {
            self.requests = look.connections.requests_total;
            self.last_connection = Some(now);
        }
        let seen = Observation {
            now,
            utilization_percent: self.utilization,
            temperature_c: None,
            open_connections: Some(look.connections.open),
            last_connection: self.last_connection,
        };
        let decision =
            self.rule.step(&seen, Prices { saving: self.books.saving(), wake: self.price.joules() });
        let target = self.carry_out(decision, look);
        if polls && target.is_none() {
            self.check_wake(look.core, now);
            self.sample_quiet_power(look);
        }
        target
    }

    fn wants_requests(&self) -> bool {
        self.rule.state().is_down()
    }

    fn write_delay(&self) -> Seconds {
        Seconds(WRITE_DELAY)
    }
}

/// The rule's constants by the configuration, but for what is compared here. Heat is left aside: the simulated boards have no
/// limit.
fn ski_rental(park: &Park) -> Settings {
    let park = Park {
        rule: WaitKind::SkiRental,
        sources: vec![ParkSource::Utilization, ParkSource::Connections],
        temperature_high_c: None,
        ..park.clone()
    };
    compose::park::settings(&park)
}

#[expect(clippy::cast_precision_loss, reason = "at most 10 000")]
fn millis(millis: u64) -> Seconds {
    Seconds(millis as f64 / 1e3)
}
