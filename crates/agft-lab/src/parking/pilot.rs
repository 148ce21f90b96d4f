//! `agft park` in virtual time: its parker, with the sensors that it asks for read from the simulated board.

use crate::sim::run::{Autopilot, Look, WRITE_DELAY};
use agft::compose;
use agft::config::{Park, Source, WaitKind};
use agft::park::gap::{GapSettings, Wait};
use agft::park::levers::{Lever, LeverBook, Levers};
use agft::park::parker::Command;
use agft::park::sample::{Activity, Sensor, Sensors};
use agft::park::settings::Periods;
use agft::park::wake::Running;
use agft::park::{Parker, Sample, Settings, State};
use agft::reward::energy::EnergyPoint;
use agft::units::{Clocks, Millijoules, Seconds, Target, Time};

/// A parker may want to know more at once, so often in a row at most.
const ROUNDS: usize = 6;

/// The parker at work on the simulated GPU.
#[derive(Debug, Clone)]
pub struct Pilot {
    parker: Parker,
    periods: Periods,
    /// Parked for good only after this much of a gap; at these clocks before.
    stage: Option<(Seconds, Clocks)>,
    /// The next look at the connections, if nothing is due before.
    due: Time,
    utilization_percent: Option<f64>,
    asked: Option<Target>,
}

impl Pilot {
    /// Parks a fixed time after the last connection was closed.
    #[must_use]
    pub fn fixed(wait: Seconds, parked: Lever, top: Running, park: &Park) -> Self {
        let rule = ski_rental(park);
        let quiet = if wait < rule.gap.quiet { wait } else { rule.gap.quiet };
        let gap = GapSettings { wait: Wait::Timeout(wait), quiet, ..rule.gap };
        let settings = Settings { gap, utilization_threshold_percent: None, ..rule };
        Self::new(settings, parked, top, park)
    }

    /// Parks as the configuration's section `park` has it, as `ski-rental`, by utilisation and connections.
    #[must_use]
    pub fn rule(parked: Lever, top: Running, park: &Park) -> Self {
        Self::new(ski_rental(park), parked, top, park)
    }

    /// The same, but at `shallow` clocks until `deep` after the last connection was closed.
    #[must_use]
    pub fn staged(self, shallow: Clocks, deep: Seconds) -> Self {
        Self { stage: Some((deep, shallow)), ..self }
    }

    fn new(settings: Settings, parked: Lever, top: Running, park: &Park) -> Self {
        let levers = Levers::new(vec![parked], LeverBook::default(), top);
        Self {
            parker: Parker::new(Some(settings), levers, Time(0.0)),
            periods: compose::park::periods(park),
            stage: None,
            due: Time(0.0),
            utilization_percent: None,
            asked: None,
        }
    }

    fn sample(&mut self, wanted: Sensors, look: &Look) -> Sample {
        if wanted.has(Sensor::Utilization) {
            self.utilization_percent = look.utilization_percent;
        }
        let energy = look.energy.since(Millijoules(0));
        Sample {
            activity: Activity { power: Some(look.power), utilization_percent: self.utilization_percent },
            running: Running { core: look.core, memory: look.memory },
            energy: energy.map(|total| EnergyPoint { at: look.now, total }),
            connections: Some(look.connections),
            read: wanted,
            ..Sample::at(look.now)
        }
    }

    /// The clocks of the gap's present stage.
    fn stage(&self, target: Target, now: Time) -> Target {
        match (self.stage, self.parker.state()) {
            (Some((deep, shallow)), State::Parked { idle_since }) if now.since(idle_since) < deep => {
                Target::Lock(shallow)
            }
            _ => target,
        }
    }
}

impl Autopilot for Pilot {
    fn due(&self) -> Time {
        Time(self.due.0.min(self.parker.due().0))
    }

    fn act(&mut self, look: &Look) -> Option<Target> {
        let now = look.now;
        let mut woken = false;
        let mut wanted = self.parker.wants(now);
        for _ in 0..ROUNDS {
            let sample = self.sample(wanted, look);
            woken |= self.parker.observe(&sample).command == Some(Command::Wake);
            wanted = self.parker.wants(now);
            if wanted == Sensors::NONE {
                break;
            }
        }
        let down = self.parker.state().is_down();
        self.due = now + if down { self.periods.parked } else { self.periods.active };
        if let (Some((deep, _)), State::Parked { idle_since }) = (self.stage, self.parker.state())
            && now < idle_since + deep
        {
            // In time for the next stage.
            self.due = Time(self.due.0.min((idle_since + deep).0));
        }
        let target = if down { self.stage(self.parker.target(), now) } else { Target::Default };
        let changed = self.asked.replace(target) != Some(target);
        (changed && (down || woken)).then_some(target)
    }

    fn wants_requests(&self) -> bool {
        self.parker.is_parked()
    }

    fn write_delay(&self) -> Seconds {
        Seconds(WRITE_DELAY)
    }
}

/// The parker's constants by the configuration, but for what is compared here. Heat is left aside: the simulated boards have
/// no limit.
fn ski_rental(park: &Park) -> Settings {
    let mut park = park.clone();
    park.rule = WaitKind::SkiRental;
    park.sources = vec![Source::Utilization, Source::Connections];
    park.temperature_high_c = None;
    compose::park::of_others(&park)
}
