//! What parks one GPU: the lever in use, and the trial of the others while the GPU is parked anyway.

use crate::park::levers::{Lever, LeverBook, Levers, Order, Stretch};
use crate::park::wake::Running;
use crate::units::{Clocks, Joules, Millijoules, Seconds, Target, Time, Watts};

/// Clocks on their way back are looked at so often at least.
const CLOSE: Seconds = Seconds(0.1);

/// The last look of a trial.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looked {
    pub(super) at: Time,
    /// The energy counter then, where there is one.
    pub(super) counter: Option<Millijoules>,
}

/// What parks one GPU.
#[derive(Debug, Clone)]
pub(super) struct Lowering {
    levers: Levers,
    /// What parks, or parked last.
    lever: Lever,
    /// Parked, and yet at the driver's clocks: a trial needs to see them.
    released: bool,
    /// Parked since then; `None` while it is not, or is down for heat: nothing is tried then.
    since: Option<Time>,
    looked: Option<Looked>,
    due: Time,
    /// A trial is over: what it found has to be kept.
    news: bool,
    /// Neither energy nor power can be read: nothing can be compared.
    blind: bool,
}

impl Lowering {
    pub(super) fn new(levers: Levers, simplest: Lever) -> Self {
        Self {
            levers,
            lever: simplest,
            released: false,
            since: None,
            looked: None,
            due: Time(0.0),
            news: false,
            blind: false,
        }
    }

    pub(super) fn levers(&self) -> &Levers {
        &self.levers
    }

    /// Other levers; what was measured stays.
    pub(super) fn set_list(&mut self, list: &[Lever], simplest: Lever, top: Running) {
        if self.levers.list() != list {
            self.levers = self.levers.clone().with_list(list.to_vec(), top);
            self.lever = simplest;
        }
    }

    /// What parks now, or parked last.
    pub(super) fn lever(&self) -> Lever {
        self.lever
    }

    /// What would park a GPU that uses `busy` at work; in a trial what is tried.
    pub(super) fn shown(&self, down: bool, busy: Option<Watts>) -> Lever {
        if down { self.lever } else { self.levers.best(busy).unwrap_or(self.lever) }
    }

    /// Are the clocks of the parked GPU the driver's for a moment?
    pub(super) fn is_released(&self) -> bool {
        self.released
    }

    /// The clocks of the parked GPU.
    pub(super) fn target(&self) -> Target {
        if self.released { Target::Default } else { Target::Lock(self.lever.clocks) }
    }

    /// Parked from now on, for heat or since nobody uses it.
    pub(super) fn park(&mut self, hot: bool, busy: Option<Watts>, now: Time) -> Target {
        self.end(now);
        self.lever = self.levers.best(busy).unwrap_or(self.lever);
        self.since = (!hot).then_some(now);
        self.target()
    }

    /// Parked for heat up to now; still parked, since nobody uses it.
    pub(super) fn cooled(&mut self, now: Time) {
        self.since = Some(now);
    }

    /// Parked no more.
    pub(super) fn end(&mut self, now: Time) {
        self.news |= self.levers.is_trying();
        if let Some(since) = self.since.take() {
            self.levers.spell_over(now.since(since));
        }
        (self.released, self.looked) = (false, None);
    }

    /// The driver does not take this lock. Is there another way to park? Where there is none it is not struck off, and may
    /// be tried again later.
    pub(super) fn refuse(&mut self, clocks: Clocks, busy: Option<Watts>) -> bool {
        let mut left = self.levers.clone();
        if !left.refuse(clocks) || left.usable().next().is_none() {
            return false;
        }
        self.news |= self.levers.is_trying();
        self.levers = left;
        self.lever = self.levers.best(busy).unwrap_or(self.lever);
        (self.released, self.looked) = (false, None);
        true
    }

    /// When the parked GPU has to be looked at for a trial.
    pub(super) fn due(&self) -> Option<Time> {
        let due = self.levers.trial_due(self.since.filter(|_| !self.blind)?)?;
        Some(if due < self.due { self.due } else { due })
    }

    pub(super) fn looked(&self) -> Option<Looked> {
        self.looked
    }

    /// Nothing can be measured on this board.
    pub(super) fn give_up(&mut self) {
        self.blind = true;
    }

    /// A look: the energy since the last one, or the running clocks while they come back. Says what to do with the clocks, if
    /// that changes; [`apply`](Self::apply) does it.
    pub(super) fn on_look(
        &mut self,
        energy: Joules,
        running: Running,
        counter: Option<Millijoules>,
        busy: Option<Watts>,
        now: Time,
    ) -> Option<Order> {
        let since = self.since?;
        let start = self.looked.map_or(now, |looked| looked.at);
        let was_trying = self.levers.is_trying();
        let order = self.levers.on_parked(since, &Stretch { start, end: now, now, energy }, running, busy);
        let is_trying = self.levers.is_trying();
        self.news |= was_trying && !is_trying;
        self.looked = is_trying.then_some(Looked { at: now, counter });
        let period = self.levers.trial_period();
        self.due = now + if self.levers.is_timing() { Seconds(period.0.min(CLOSE.0)) } else { period };
        order
    }

    /// The clocks change as a trial wants them.
    pub(super) fn apply(&mut self, order: Order) -> Target {
        match order {
            Order::Release => self.released = true,
            Order::Lock(clocks) => {
                self.released = false;
                let chosen = self.levers.usable().find(|lever| lever.clocks == clocks);
                self.lever = chosen.copied().unwrap_or(self.lever);
            }
        }
        self.target()
    }

    /// After a wake the clocks were back after so long.
    pub(super) fn woke(&mut self, took: Seconds) {
        self.levers.woke(self.lever.clocks, took);
    }

    /// What a trial found, once: to be kept.
    pub(super) fn take_news(&mut self) -> Option<LeverBook> {
        std::mem::take(&mut self.news).then(|| self.levers.book().clone())
    }
}
