//! What is shown, and what keys do to it.

use super::panes;
use crate::control::{Mode, Order};
use crate::view::{History, State};

/// What a key asks for. Which keys these are is the terminal's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// End the view at once, whatever was asked.
    Interrupt,
    /// End the view.
    Quit,
    /// The other pane.
    Switch,
    /// One line up.
    Up,
    /// One line down.
    Down,
    /// One page up.
    PageUp,
    /// One page down.
    PageDown,
    /// Back to where the view places itself.
    Home,
    /// Pause, or resume; asks back.
    Order,
    /// Yes to what was asked.
    Yes,
    /// What the keys do.
    Help,
    /// Any other key: no to what was asked.
    Other,
}

/// What the terminal has to do after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing but draw.
    None,
    /// End the view.
    Quit,
    /// Send this order to the daemon.
    Order(Order),
}

/// The two lower panes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pane {
    /// Every clock, and whether it may be chosen.
    #[default]
    Arms,
    /// What happened lately.
    News,
}

/// Does the daemon talk to us?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Not yet.
    Waiting,
    /// It does.
    Live,
    /// No more, and why.
    Lost(String),
}

/// The view: the latest state, the last minutes, and where the user is in it.
#[derive(Debug, Clone)]
pub struct Model {
    pub(super) state: Option<Box<State>>,
    pub(super) history: History,
    pub(super) link: Link,
    pub(super) pane: Pane,
    /// First arm shown; `None` keeps the one in force in sight.
    pub(super) arms_top: Option<usize>,
    /// First line of news shown.
    pub(super) news_top: usize,
    /// As drawn last: first arm, and lines of a page.
    pub(super) drawn: Drawn,
    pub(super) asking: Option<Order>,
    pub(super) message: Option<String>,
    pub(super) help: bool,
}

/// What the size of the terminal made of the wishes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Drawn {
    pub(super) arms_top: usize,
    pub(super) page: usize,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            state: None,
            history: History::default(),
            link: Link::Waiting,
            pane: Pane::default(),
            arms_top: None,
            news_top: 0,
            drawn: Drawn::default(),
            asking: None,
            message: None,
            help: false,
        }
    }
}

impl Model {
    /// The daemon said how things are.
    pub fn state(&mut self, state: State) {
        if let Some(before) = &self.state
            && (before.pid, before.started_unix_s.to_bits()) != (state.pid, state.started_unix_s.to_bits())
        {
            self.message = Some(format!("another run: agft {} (pid {})", state.version, state.pid));
            self.history = History::default();
            self.asking = None;
        }
        self.history.push(&state);
        self.state = Some(Box::new(state));
        self.link = Link::Live;
    }

    /// The daemon said how the last minutes were.
    pub fn history(&mut self, history: History) {
        self.history = history;
    }

    /// The daemon says no more.
    pub fn lost(&mut self, why: String) {
        self.link = Link::Lost(why);
        self.asking = None;
    }

    /// Something to tell the user until the next key.
    pub fn tell(&mut self, message: String) {
        self.message = Some(message);
    }

    /// Process id of the daemon that is shown.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.state.as_ref().map(|state| state.pid)
    }

    /// A key was pressed.
    pub fn key(&mut self, key: Key) -> Action {
        if key == Key::Interrupt {
            return Action::Quit;
        }
        self.message = None;
        if let Some(order) = self.asking.take() {
            if key == Key::Yes {
                self.message = Some("asked; the answer comes when it is done".into());
                return Action::Order(order);
            }
            self.message = Some("nothing was asked of agft".into());
            return Action::None;
        }
        match key {
            Key::Quit => return Action::Quit,
            Key::Switch => {
                self.pane = match self.pane {
                    Pane::Arms => Pane::News,
                    Pane::News => Pane::Arms,
                }
            }
            Key::Up => self.scroll(|top| top.saturating_sub(1)),
            Key::Down => self.scroll(|top| top.saturating_add(1)),
            Key::PageUp => {
                let page = self.drawn.page;
                self.scroll(|top| top.saturating_sub(page));
            }
            Key::PageDown => {
                let page = self.drawn.page;
                self.scroll(|top| top.saturating_add(page));
            }
            Key::Home => match self.pane {
                Pane::Arms => self.arms_top = None,
                Pane::News => self.news_top = 0,
            },
            Key::Order => self.ask(),
            Key::Help => self.help = !self.help,
            Key::Interrupt | Key::Yes | Key::Other => {}
        }
        Action::None
    }

    fn scroll(&mut self, to: impl Fn(usize) -> usize) {
        match self.pane {
            Pane::Arms => self.arms_top = Some(to(self.arms_top.unwrap_or(self.drawn.arms_top))),
            Pane::News => self.news_top = to(self.news_top),
        }
    }

    fn ask(&mut self) {
        match (&self.link, &self.state) {
            (Link::Live, Some(state)) => {
                self.asking = Some(if state.mode == Mode::Paused { Order::Resume } else { Order::Pause });
            }
            _ => self.message = Some("no agft answers that could be paused or resumed".into()),
        }
    }

    /// Keeps the wishes within what there is: a drawing of `lines` lines of the pane begins at the result.
    pub(super) fn place_news(&mut self, all: usize, lines: usize) -> usize {
        self.news_top = self.news_top.min(all.saturating_sub(lines));
        if self.pane == Pane::News {
            self.drawn.page = lines;
        }
        self.news_top
    }

    /// The same for the arms; the one in force is `of_interest`.
    pub(super) fn place_arms(&mut self, all: usize, lines: usize, of_interest: Option<usize>) -> usize {
        let last = all.saturating_sub(lines);
        if let Some(top) = &mut self.arms_top {
            *top = (*top).min(last);
        }
        let top = self.arms_top.unwrap_or_else(|| panes::around(of_interest.unwrap_or(0), lines)).min(last);
        self.drawn.arms_top = top;
        if self.pane == Pane::Arms {
            self.drawn.page = lines;
        }
        top
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing;

    fn live() -> Model {
        let mut model = Model::default();
        model.state(testing::state());
        model
    }

    #[test]
    fn an_order_takes_two_keys_and_any_other_second_key_calls_it_off() {
        let mut model = live();
        assert_eq!((model.key(Key::Order), model.key(Key::Yes)), (Action::None, Action::Order(Order::Pause)));
        assert_eq!(model.key(Key::Yes), Action::None, "a second yes answers nothing");
        for key in [Key::Other, Key::Quit, Key::Order, Key::Help, Key::Down] {
            assert_eq!((model.key(Key::Order), model.key(key)), (Action::None, Action::None), "{key:?}");
            assert_eq!(model.key(Key::Yes), Action::None, "{key:?} has called it off");
        }
        model.state(State { mode: Mode::Paused, ..testing::state() });
        assert_eq!(
            (model.key(Key::Order), model.key(Key::Yes)),
            (Action::None, Action::Order(Order::Resume))
        );
    }

    #[test]
    fn interrupt_ends_the_view_even_while_it_asks() {
        let mut model = live();
        model.key(Key::Order);
        assert_eq!(model.key(Key::Interrupt), Action::Quit);
        assert_eq!(live().key(Key::Quit), Action::Quit);
    }

    #[test]
    fn nothing_can_be_ordered_from_nobody() {
        let mut model = Model::default();
        model.key(Key::Order);
        assert_eq!(model.key(Key::Yes), Action::None);
        let mut model = live();
        model.key(Key::Order);
        model.lost("it ended".into());
        assert_eq!(model.key(Key::Yes), Action::None, "the question went with the daemon");
    }

    #[test]
    fn another_run_begins_with_curves_of_its_own() {
        let mut model = live();
        model.state(State { at_unix_s: 1.7e9 + 61.0, ..testing::state() });
        assert_eq!(model.history.points().len(), 2);
        model.state(State { pid: 1, at_unix_s: 1.7e9 + 62.0, ..testing::state() });
        assert_eq!((model.history.points().len(), model.pid()), (1, Some(1)));
    }

    #[test]
    fn scrolling_stays_within_what_there_is() {
        let mut model = live();
        assert_eq!(model.place_arms(100, 10, Some(50)), 45, "the arm in force is in the middle");
        model.key(Key::Down);
        assert_eq!(model.place_arms(100, 10, Some(0)), 46, "once scrolled, it stays");
        for _ in 0..50 {
            model.key(Key::PageDown);
        }
        assert_eq!(model.place_arms(100, 10, Some(0)), 90);
        model.key(Key::Up);
        assert_eq!(model.place_arms(100, 10, Some(0)), 89, "presses past the end are not counted");
        model.key(Key::Home);
        assert_eq!(model.place_arms(100, 10, Some(99)), 90);
    }
}
