//! What is shown, and what keys do to it.

use std::collections::BTreeMap;

use super::panes;
use crate::control::{Mode, Order};
use crate::export::protocol::Directed;
use crate::view::{History, HostState, ParkMode, State};

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
    /// The next server.
    NextServer,
    /// The server of this number, from 0.
    Server(usize),
    /// What the keys do.
    Help,
    /// Any other key: no to what was asked.
    Other,
}

/// What the terminal has to do after a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing but draw.
    None,
    /// End the view.
    Quit,
    /// Send this order to the daemon.
    Order(Directed),
}

/// The two lower panes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Pane {
    /// Every clock, and whether it may be chosen.
    #[default]
    Arms,
    /// What happened lately.
    News,
}

/// Does the daemon talk to us?
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Link {
    #[default]
    Waiting,
    Live,
    /// No more, and why.
    Lost(String),
}

/// The view: the latest state, the last minutes, and where the user is in it.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub(super) host: Option<Box<HostState>>,
    /// The server that the user wants to see; the first where it is not there.
    chosen: Option<String>,
    /// The last minutes of each server.
    histories: BTreeMap<String, History>,
    pub(super) link: Link,
    pub(super) pane: Pane,
    /// First arm shown; `None` keeps the one in force in sight.
    pub(super) arms_top: Option<usize>,
    /// First line of news shown.
    pub(super) news_top: usize,
    /// As drawn last: first arm, and lines of a page.
    pub(super) drawn: Drawn,
    pub(super) asking: Option<Directed>,
    pub(super) message: Option<String>,
    pub(super) help: bool,
}

/// What the size of the terminal made of the wishes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Drawn {
    pub(super) arms_top: usize,
    pub(super) page: usize,
}

impl Model {
    /// The daemon said how things are.
    pub fn host(&mut self, host: HostState) {
        if let Some(before) = &self.host
            && (before.pid, before.started_unix_s.to_bits()) != (host.pid, host.started_unix_s.to_bits())
        {
            self.message = Some(format!("another run: agft {} (pid {})", host.version, host.pid));
            self.histories.clear();
            self.asking = None;
        }
        self.histories.retain(|name, _| host.server(name).is_some());
        for state in &host.servers {
            self.histories.entry(state.name.clone()).or_default().push(state);
        }
        self.host = Some(Box::new(host));
        self.link = Link::Live;
    }

    /// The daemon said how the last minutes of this server were.
    pub fn history(&mut self, server: String, history: History) {
        self.histories.insert(server, history);
    }

    /// Shows this server, if there is one of this name.
    pub fn choose(&mut self, server: Option<String>) {
        self.chosen = server;
    }

    /// The server of `host` that is shown.
    pub(super) fn shown<'h>(&self, host: &'h HostState) -> Option<&'h State> {
        let chosen = self.chosen.as_ref().and_then(|name| host.server(name));
        chosen.or(host.servers.first())
    }

    pub(super) fn last_minutes(&self, server: &str) -> History {
        self.histories.get(server).cloned().unwrap_or_default()
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
    pub fn pid(&self) -> Option<u32> {
        self.host.as_ref().map(|host| host.pid)
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
            Key::NextServer => self.choose_by(|at| at + 1),
            Key::Server(number) => self.choose_by(|_| number),
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

    /// Shows the server at the place that follows from the place of the one shown; after the last comes the first.
    fn choose_by(&mut self, to: impl Fn(usize) -> usize) {
        let Some(host) = &self.host else { return };
        let at = |state: &State| host.servers.iter().position(|one| one.name == state.name);
        let to = to(self.shown(host).and_then(at).unwrap_or(0));
        let place = if to == host.servers.len() { 0 } else { to };
        match host.servers.get(place) {
            Some(state) => {
                self.chosen = Some(state.name.clone());
                (self.arms_top, self.news_top) = (None, 0);
            }
            None => self.message = Some(format!("there is no server {}", to + 1)),
        }
    }

    fn ask(&mut self) {
        let (Link::Live, Some(host)) = (&self.link, &self.host) else {
            self.message = Some("no agft answers that could be paused or resumed".into());
            return;
        };
        let (server, paused) = match self.shown(host) {
            Some(state) => (Some(state.name.clone()), state.mode == Mode::Paused),
            None => (None, host.park.as_ref().is_some_and(|park| park.mode == ParkMode::Paused)),
        };
        let order = if paused { Order::Resume } else { Order::Pause };
        self.asking = Some(Directed { server, order });
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
        model.host(host(testing::state()));
        model
    }

    fn host(state: State) -> HostState {
        testing::of(vec![state], None)
    }

    fn order(order: Order, server: &str) -> Action {
        Action::Order(Directed { server: Some(server.into()), order })
    }

    #[test]
    fn an_order_takes_two_keys_and_any_other_second_key_calls_it_off() {
        let mut model = live();
        assert_eq!((model.key(Key::Order), model.key(Key::Yes)), (Action::None, order(Order::Pause, "chat")));
        assert_eq!(model.key(Key::Yes), Action::None, "a second yes answers nothing");
        for key in [Key::Other, Key::Quit, Key::Order, Key::Help, Key::Down, Key::NextServer] {
            assert_eq!((model.key(Key::Order), model.key(key)), (Action::None, Action::None), "{key:?}");
            assert_eq!(model.key(Key::Yes), Action::None, "{key:?} has called it off");
        }
        model.host(host(State { mode: Mode::Paused, ..testing::state() }));
        assert_eq!(
            (model.key(Key::Order), model.key(Key::Yes)),
            (Action::None, order(Order::Resume, "chat"))
        );
    }

    #[test]
    fn keys_choose_the_server_that_is_shown_and_ordered() {
        let mut model = Model::default();
        model.host(testing::host());
        let shown = |model: &Model| model.shown(model.host.as_ref().unwrap()).unwrap().name.clone();
        assert_eq!(shown(&model), "chat");
        model.key(Key::NextServer);
        assert_eq!(shown(&model), "code");
        // It is paused.
        assert_eq!(
            (model.key(Key::Order), model.key(Key::Yes)),
            (Action::None, order(Order::Resume, "code"))
        );
        model.key(Key::NextServer);
        assert_eq!(shown(&model), "chat", "after the last the first");
        model.key(Key::Server(1));
        model.key(Key::Server(7));
        assert_eq!((shown(&model), model.message.as_deref()), ("code".into(), Some("there is no server 8")));
        // It goes, and comes back.
        model.host(host(testing::state()));
        assert_eq!((shown(&model), model.histories.len()), ("chat".into(), 1));
        model.host(testing::host());
        assert_eq!(shown(&model), "code");
        model.choose(Some("chat".into()));
        assert_eq!(shown(&model), "chat");
    }

    #[test]
    fn gpus_without_a_server_are_ordered_as_one() {
        let mut model = Model::default();
        model.host(testing::of(Vec::new(), Some(testing::park_state())));
        let all = |order| Action::Order(Directed { server: None, order });
        assert_eq!((model.key(Key::Order), model.key(Key::Yes)), (Action::None, all(Order::Pause)));
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
        model.host(host(State { at_unix_s: 1.7e9 + 61.0, ..testing::state() }));
        assert_eq!(model.histories["chat"].points().len(), 2);
        let next = host(State { at_unix_s: 1.7e9 + 62.0, ..testing::state() });
        model.host(HostState { pid: 1, ..next });
        assert_eq!((model.histories["chat"].points().len(), model.pid()), (1, Some(1)));
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
