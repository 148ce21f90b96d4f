//! One group of GPUs that is parked together: from what was sampled to what its clocks shall be.
//!
//! A [`Sample`] goes in, with a server's page or without, and an [`Output`] comes out. Where sensors have to be asked, it
//! says which and when ([`Parker::wants`], [`Parker::due`]): whoever asks them goes on until nothing is wanted, as a
//! decision may want to know more at once (the energy up to a wake). In here are the rule, the clock knobs (levers) with
//! their trial, the sums of parked, hot and quiet spells, the check that a wake did bring the clocks back, and what a
//! wake costs.

mod accounting;
mod output;
mod sensors;
pub(crate) mod v3;

use serde::{Deserialize, Serialize};

use self::accounting::{Accounting, Closing};
pub use self::output::{Command, Event, Output, Refused};
use self::sensors::Due;
use super::books::Books;
use super::first_tokens::FirstTokens;
use super::gap::Prices;
use super::levers::{Lever, LeverBook, Levers, Order, Stretch};
use super::price::WakePrice;
use super::rule::{Decision, Rule, State};
use super::sample::{PageSight, Sample, Sensor, Sensors};
use super::settings::Settings;
use super::source::WakeSource;
use super::wake::{Running, Verdict, WakeCheck};
use crate::metrics::Histogram;
use crate::units::{Clocks, Joules, Mhz, Seconds, Target, Time};

/// Beside a page, idle power counts from so long after the first empty window began: the second one, whose energy is that
/// of no work.
const SINK: Seconds = Seconds(0.02);
/// A limit that is broken so soon after a wake is broken by it.
const BLAMED: Seconds = Seconds(5.0);
/// Work that comes so soon after a connection was that client's.
const CONNECTED: Seconds = Seconds(1.0);

/// The last wake.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Woken {
    at: Time,
    /// By then the work has waited for so long.
    unnoticed: Seconds,
    /// It was found to break a limit.
    blamed: bool,
}

/// Parks one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parker {
    /// Without one nothing is ever parked.
    rule: Option<Rule>,
    accounting: Accounting,
    levers: Levers,
    /// What parks, or parked last.
    lever: Option<Lever>,
    /// Parked, and yet at the driver's clocks: a trial needs to see them.
    released: bool,
    /// A wake whose effect has not been seen yet.
    waking: Option<WakeCheck>,
    woken: Option<Woken>,
    price: WakePrice,
    first_tokens: FirstTokens,
    /// When work was last seen on the page.
    worked_at: Option<Time>,
    /// Without work on the page since.
    empty_since: Option<Time>,
    /// The sensors that are a source saw work at the last sample.
    works: bool,
    due: Due,
    /// Neither energy nor power can be read: nothing can be compared.
    blind: bool,
    /// A trial is over: what it found has to be kept.
    news: bool,
}

impl Parker {
    /// Of a group at its driver's clocks, with nothing seen yet; without settings nothing is ever parked.
    pub fn new(settings: Option<Settings>, levers: Levers, now: Time) -> Self {
        Self {
            rule: settings.map(Rule::new),
            accounting: Accounting::default(),
            lever: levers.best(None),
            levers,
            released: false,
            waking: None,
            woken: None,
            price: WakePrice::default(),
            first_tokens: FirstTokens::default(),
            worked_at: None,
            empty_since: None,
            works: false,
            due: Due::at(now),
            blind: false,
            news: false,
        }
    }

    /// Something was sampled.
    pub fn observe(&mut self, sample: &Sample) -> Output {
        let mut out = Output::default();
        let was_blind = self.blind;
        let used = self.account(sample);
        self.check_wake(sample, &mut out);
        if let Some(page) = sample.page {
            self.account_page(page, sample);
        }
        let (was, began) = (self.state(), self.parked_since());
        self.decide(sample, &mut out);
        if self.blind && !was_blind {
            out.events.push(Event::NotMeasurable);
            if let Some(lever) = self.lever.filter(|_| self.levers.is_trying()) {
                self.change_clocks(Order::Lock(lever.clocks), sample.now, &mut out);
            }
        } else if self.parked_since().is_some() && self.parked_since() == began {
            self.go_on_trying(used, sample, &mut out);
        }
        self.sample_power(sample);
        self.schedule(was, sample);
        out
    }

    /// Takes in the energy that was read, and decides nothing. Says what was used, if that is known.
    pub(crate) fn account(&mut self, sample: &Sample) -> Option<Stretch> {
        if self.is_asking() {
            let calls = u64::from(sample.read.count());
            self.accounting.sums.calls += calls;
            if matches!(self.state(), State::Parked { .. }) {
                self.accounting.sums.calls_parked += calls;
            }
        }
        let reads_energy = sample.read.has(Sensor::Energy);
        let by_power = std::mem::take(&mut self.due.power);
        self.due.energy &= !reads_energy;
        if self.is_asking() && reads_energy && sample.energy.is_none() {
            // Without a counter the power of this moment stands for the time before.
            self.due.power = self.accounting.wants_energy();
        }
        if self.due.power {
            return None;
        }
        let used = if (reads_energy || by_power) && !self.is_dry() {
            self.accounting.measure(sample, by_power, self.released)
        } else {
            None
        };
        self.blind |= by_power && sample.activity.power.is_none() && self.trial_due().is_some();
        self.accounting.close(false, sample.now);
        used
    }

    /// What has been parked is to be in the sums: wants the energy at once.
    pub fn settle(&mut self) {
        self.due.energy |= self.measures() && self.accounting.wants_energy() && !self.released;
    }

    fn account_page(&mut self, page: PageSight, sample: &Sample) {
        if page.work {
            self.worked_at = Some(sample.now);
        }
        let parked = self.is_parked();
        if page.work || parked {
            self.empty_since = None;
            if let Some(power) = sample.window_power.filter(|_| !parked) {
                self.price.worked(power);
            }
            return;
        }
        let since = *self.empty_since.get_or_insert(page.start);
        if let Some(power) = sample.window_power.filter(|_| page.start.since(since) >= SINK) {
            self.accounting.sums.quiet_power(power);
        }
    }

    fn decide(&mut self, sample: &Sample, out: &mut Output) {
        let (prices, now) = (self.prices(), sample.now);
        let may_park = sample.may_park && self.levers.usable().next().is_some();
        let (was, began) = (self.state(), self.parked_since());
        let Some(rule) = &mut self.rule else { return };
        match rule.step(sample, prices, may_park) {
            Decision::Stay => {}
            Decision::Park(idle) => {
                let clocks = self.park(false, now, out);
                out.events.extend(clocks.map(|clocks| Event::Parked(clocks, idle)));
            }
            Decision::Cool(temperature_c) => {
                self.accounting.sums.hot_spells += 1;
                if began.is_some() {
                    self.end_spell(Closing::Hot, began, now);
                }
                let clocks = self.park(true, now, out);
                out.events.extend(clocks.map(|clocks| Event::TooHot(clocks, temperature_c)));
            }
            Decision::Cooled => {
                self.accounting.cooled(now);
                self.settle();
                out.events.push(Event::Cooled);
            }
            Decision::Wake(by, parked) => {
                // In a trial the clocks may be the driver's already: nothing was parked, and nothing is to come back.
                let lowered = self.lever.map(|lever| lever.lowered()).filter(|_| !self.released);
                let missed = lowered.is_some() && was != State::Hot && self.is_missed(&by, now);
                self.end_spell(Closing::Woken(by, missed), began, now);
                self.first_tokens.woke();
                self.woken = Some(Woken { at: now, unnoticed: self.unnoticed(&by), blamed: false });
                let lowered = lowered.filter(|_| !self.is_dry());
                self.waking = lowered.map(|lowered| WakeCheck::new(lowered, self.levers.top(), now));
                out.command = Some(Command::Wake);
                out.events.push(Event::Woken(by, parked));
            }
        }
    }

    /// The clocks go down; says to which.
    fn park(&mut self, hot: bool, now: Time, out: &mut Output) -> Option<Clocks> {
        (self.waking, self.released) = (None, false);
        self.lever = self.levers.best(self.price.busy()).or(self.lever);
        // Else what was open goes on for the other reason.
        if !self.accounting.is_open() {
            self.accounting.open(hot, now);
        }
        self.settle();
        out.command = Some(Command::Park(self.target()));
        self.lever.map(|lever| lever.clocks)
    }

    /// A spell that began then, if it was parked, is over. Ends a trial.
    fn end_spell(&mut self, closing: Closing, began: Option<Time>, now: Time) {
        self.news |= self.levers.is_trying();
        if let Some(began) = began {
            self.levers.spell_over(now.since(began));
        }
        self.accounting.end(closing, self.measures(), self.released, now);
        self.due.energy |= self.accounting.is_closing();
        (self.released, self.empty_since) = (false, None);
    }

    /// Should connections have told of this work before? They come before the work that they bring.
    fn is_missed(&self, by: &WakeSource, now: Time) -> bool {
        let told = matches!(by, WakeSource::Connections { .. } | WakeSource::Instances { .. });
        let is_work = !told && *by != WakeSource::Unseen;
        is_work && self.rule.as_ref().is_some_and(|rule| rule.nobody_asked(CONNECTED, now))
    }

    fn unnoticed(&self, by: &WakeSource) -> Seconds {
        let times = self.settings().map(|settings| settings.unnoticed);
        times.map_or(Seconds(0.0), |times| match by {
            WakeSource::Connections { .. } | WakeSource::Instances { .. } => Seconds(0.0),
            WakeSource::Power { .. } | WakeSource::Utilization { .. } => times.by_sensors,
            WakeSource::Page | WakeSource::Unseen => times.by_others,
        })
    }

    /// Is the wake seen in the running clocks?
    fn check_wake(&mut self, sample: &Sample, out: &mut Output) {
        let (Some(mut check), Some(settings)) = (self.waking, self.settings().copied()) else { return };
        let now = sample.now;
        // Where that cannot be seen, clocks that stay down are no reason for an alarm.
        let busy = sample.activity.utilization_percent.is_some_and(|percent| percent > settings.busy_percent);
        if check.waits_for_work() && !busy {
            check.still_idle(now);
            (self.waking, self.due.clocks) = (Some(check), false);
            return;
        }
        if !sample.read.has_any(Sensors::CLOCKS) {
            self.due.clocks |= sample.read.has(Sensor::Utilization);
            return;
        }
        self.due.clocks = false;
        let verdict = check.look(sample.running, busy, now);
        self.waking = Some(check);
        match verdict {
            Verdict::Wait | Verdict::Idle => {}
            Verdict::NotSeen => self.waking = None,
            Verdict::Back(took) => {
                self.waking = None;
                self.accounting.sums.clocks_back(took, settings.gap.wake_limit);
                self.learn_wake(took);
                if let Some(lever) = self.lever {
                    self.levers.woke(lever.clocks, took);
                }
                let unnoticed = self.woken.map_or(0.0, |woken| woken.unnoticed.0);
                self.price.woke(Seconds(took.0 + unnoticed));
                out.events.push(Event::ClocksBack(took, sample.running));
            }
            Verdict::ResetAgain => {
                self.accounting.sums.reset_again();
                out.reset_again = true;
                out.events.push(Event::ClocksStuck(sample.running));
            }
            Verdict::GiveUp => {
                self.waking = None;
                self.learn_wake(Seconds(f64::INFINITY));
                out.events.push(Event::GivenUp);
            }
        }
    }

    fn learn_wake(&mut self, took: Seconds) {
        if let Some(rule) = &mut self.rule {
            rule.woke(took);
        }
    }

    /// The GPUs are parked on: begins or goes on with the trial of the clock knobs.
    fn go_on_trying(&mut self, used: Option<Stretch>, sample: &Sample, out: &mut Output) {
        let (now, timing) = (sample.now, self.levers.is_timing());
        let sees_clocks = sample.read.has_any(Sensors::CLOCKS);
        let stretch = match used {
            _ if self.is_dry() || self.blind || (timing && !sees_clocks) => return,
            Some(used) => used,
            // A window of the page is judged once its energy was read; until then clocks are timed between pages.
            None if timing && sample.page.is_none() => {
                Stretch { start: now, end: now, now, energy: Joules(0.0) }
            }
            None => return,
        };
        let Some(began) = self.parked_since() else { return };
        let was_trying = self.levers.is_trying();
        let order = self.levers.on_parked(began, &stretch, sample.running, self.price.busy());
        if let Some(order) = order {
            self.change_clocks(order, now, out);
        }
        if was_trying && !self.levers.is_trying() {
            self.news = true;
            out.events.push(Event::Measured);
        }
    }

    /// The clocks of the parked GPUs change as a trial wants them.
    fn change_clocks(&mut self, order: Order, now: Time, out: &mut Output) {
        self.accounting.cut(now, self.released);
        match order {
            Order::Release => self.released = true,
            Order::Lock(clocks) => {
                self.released = false;
                let chosen = self.levers.usable().find(|lever| lever.clocks == clocks);
                self.lever = chosen.copied().or(self.lever);
            }
        }
        if let Some(rule) = &mut self.rule {
            // Whatever power does now, it is our doing.
            rule.disturbed(now);
        }
        self.settle();
        out.command = Some(Command::Park(self.target()));
        out.events.push(Event::Trial(order));
    }

    /// Something else took the clocks over: not parked, nothing counted.
    pub(crate) fn interrupt(&mut self, now: Time) {
        self.stop(now, Rule::interrupt);
    }

    /// The same, and free to park after the quiet time, as at the start.
    pub(crate) fn begin_anew(&mut self, now: Time) {
        self.stop(now, Rule::begin_anew);
        self.due.begin_anew(now);
    }

    /// The clocks did not go down, or came back without our doing: not parked, and not again for a while.
    pub(crate) fn hold_off(&mut self, now: Time) {
        self.stop(now, Rule::hold_off);
    }

    fn stop(&mut self, now: Time, rule_stops: fn(&mut Rule, Time)) {
        let began = self.parked_since();
        self.end_spell(Closing::Interrupted, began, now);
        if let Some(rule) = &mut self.rule {
            rule_stops(rule, now);
        }
        (self.waking, self.due.clocks) = (None, false);
    }

    /// The driver does not take this lock. Was it one for parking, and is there another?
    pub fn refuse(&mut self, clocks: Clocks, now: Time) -> Refused {
        let mut left = self.levers.clone();
        if !left.refuse(clocks) {
            return Refused::NotOurs;
        }
        let none_left = left.usable().next().is_none();
        if none_left && self.settings().is_some_and(|settings| settings.retries_last) {
            return Refused::NoneLeft;
        }
        self.news |= self.levers.is_trying();
        self.levers = left;
        if none_left {
            self.interrupt(now);
            return Refused::NoneLeft;
        }
        self.accounting.cut(now, self.released);
        self.lever = self.levers.best(self.price.busy()).or(self.lever);
        self.released = false;
        self.settle();
        Refused::OthersLeft
    }

    /// A limit on the time to first token is broken: by a wake?
    pub(crate) fn limit_broken(&mut self, now: Time) {
        if let Some(woken) = &mut self.woken
            && now.since(woken.at) < BLAMED
            && !std::mem::replace(&mut woken.blamed, true)
        {
            self.learn_wake(Seconds(f64::INFINITY));
        }
    }

    /// Requests that got their first token.
    pub(crate) fn took_first_tokens(&mut self, times: &Histogram) {
        self.first_tokens.push(times);
    }

    /// Other ways to park from now on.
    pub(crate) fn set_levers(&mut self, levers: Levers) {
        self.lever = levers.best(self.price.busy());
        self.levers = levers;
    }

    /// Other constants and ways to park from now on, for GPUs that are not parked. What was measured stays.
    pub fn configure(&mut self, settings: Settings, list: &[Lever], top: Running) {
        match &mut self.rule {
            Some(rule) => rule.configure(settings),
            None => self.rule = Some(Rule::new(settings)),
        }
        if self.levers.list() != list {
            self.set_levers(self.levers.clone().with_list(list.to_vec(), top));
        }
    }

    /// Goes on with the sums of `before`, and with what it has measured.
    pub(crate) fn take_over(&mut self, before: &Self) {
        self.accounting.sums = before.accounting.sums.clone();
        self.accounting.sums.end_spell();
        self.levers.set_book(before.levers.book().clone());
        self.price = before.price;
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.rule.as_ref().map_or(State::Serving, Rule::state)
    }

    /// Are the clocks down, for whatever reason?
    pub fn is_parked(&self) -> bool {
        self.state().is_down()
    }

    fn parked_since(&self) -> Option<Time> {
        self.rule.as_ref()?.parked_since()
    }

    /// The clocks of parked GPUs.
    pub fn target(&self) -> Target {
        let clocks = self.lever.map(|lever| lever.clocks).filter(|_| !self.released);
        clocks.map_or(Target::Default, Target::Lock)
    }

    /// What would park now; while parked what does, or in a trial is tried.
    pub fn lever(&self) -> Option<Lever> {
        if self.is_parked() { self.lever } else { self.levers.best(self.price.busy()) }
    }

    /// The core clock to which parking lowers, or did last, if it does.
    pub(crate) fn parked_core(&self) -> Option<Mhz> {
        self.lever?.lowered().core
    }

    /// What can be lowered, and what is known of it.
    pub fn levers(&self) -> &Levers {
        &self.levers
    }

    /// What a trial found, once: to be kept.
    pub(crate) fn take_news(&mut self) -> Option<LeverBook> {
        std::mem::take(&mut self.news).then(|| self.levers.book().clone())
    }

    /// Its sums.
    pub(crate) fn books(&self) -> &Books {
        &self.accounting.sums
    }

    /// Its sums with the time that is not in them yet, as its energy was not read.
    pub(crate) fn books_at(&self, now: Time) -> Books {
        self.accounting.sums_at(now, self.released)
    }

    /// What the rule reckons with.
    pub(crate) fn prices(&self) -> Prices {
        let rise = self.settings().map_or(1.0, |settings| settings.max_ttft_rise);
        let dearer = self.first_tokens.price(self.wake_delay(), rise);
        let wake = self.price.joules().map(|price| Joules(price.0 * dearer));
        Prices { saving: self.levers.saving(self.price.busy()).or_else(|| self.books().saving()), wake }
    }

    /// After the start of the gap under way, or of the next: parked this late.
    pub(crate) fn park_after(&self) -> Option<Seconds> {
        Some(self.rule.as_ref()?.park_after(self.prices()))
    }

    /// Time that work waits for its clocks after a parked spell.
    pub(crate) fn wake_delay(&self) -> Seconds {
        self.price.delay()
    }

    /// Is a wake under way, so that the clocks are worth a closer look?
    pub(crate) fn is_waking(&self) -> bool {
        self.waking.is_some_and(|check| !check.waits_for_work())
    }

    /// When work was last seen on the page.
    pub(crate) fn worked_at(&self) -> Option<Time> {
        self.worked_at
    }

    /// Its constants; without any nothing is parked.
    pub fn settings(&self) -> Option<&Settings> {
        self.rule.as_ref().map(Rule::settings)
    }

    fn is_dry(&self) -> bool {
        self.settings().is_some_and(|settings| settings.dry_run)
    }

    fn is_asking(&self) -> bool {
        self.settings().is_some_and(|settings| settings.periods.is_some())
    }

    /// Is the energy counter asked for when it is needed?
    fn measures(&self) -> bool {
        self.is_asking() && !self.is_dry()
    }
}

#[cfg(test)]
mod tests;
