//! GPUs without a server: each is a group of its own ([`group`]), and what they share is here: who hears of connections,
//! the fans of the machine, the picture for operators.

pub(crate) mod activity;
mod aside;
pub(crate) mod group;
pub(crate) mod hooks;
pub(crate) mod keeper;
pub(crate) mod levels;
mod probe;
mod reload;
pub(crate) mod setup;
mod show;
mod yielded;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use self::activity::Ports;
pub(crate) use self::group::{ParkGroup, ParkParts};
use self::hooks::FanHooks;
pub(crate) use self::reload::Parkable;
pub(crate) use self::show::Show;
pub(crate) use self::yielded::{ParkOpener, Yielded};
use super::clock::Clock;
use super::notify::{Notifier, StatusLines, say_lines};
use crate::config::Config;
use crate::connections::Event;
use crate::export::{Instances, Working};
use crate::gpu::GpuInfo;
use crate::park::State;
use crate::park::fans::FanRule;
use crate::park::source::Connections;
use crate::seldom::Seldom;
use crate::units::{Seconds, Time};
use crate::view::ParkedGpu;

/// Without anything due it still looks after itself this often.
const LONGEST_SLEEP: Seconds = Seconds(1.0);
/// The service manager's line is renewed this often.
const STATUS_EVERY: Seconds = Seconds(10.0);
/// The name of the parked GPUs in that line.
const PARKED: &str = "parking";

/// What the groups tell each other and the [`Surroundings`].
pub(crate) struct Board {
    /// Over all sources; `None` where that is not known.
    connections: watch::Sender<Option<Connections>>,
    /// By index: what operators see of a GPU, and where it stands.
    gpus: RefCell<BTreeMap<u32, (ParkedGpu, State)>>,
    changed: Notify,
    paused: Cell<bool>,
    instances: Instances,
}

impl Board {
    /// Of GPUs with these instances.
    pub(crate) fn new(instances: Instances) -> Rc<Self> {
        Rc::new(Self {
            connections: watch::channel(None).0,
            gpus: RefCell::default(),
            changed: Notify::new(),
            paused: Cell::new(false),
            instances,
        })
    }

    fn connections(&self) -> watch::Receiver<Option<Connections>> {
        self.connections.subscribe()
    }

    /// Those that work on this GPU.
    fn working(&self, gpu: &GpuInfo) -> Working {
        self.instances.on(BTreeSet::from([gpu.uuid.clone()]))
    }

    fn put(&self, gpu: ParkedGpu, state: State) {
        let gist = |gpu: &ParkedGpu| (gpu.state, gpu.in_force, gpu.not_given_back);
        let now = gist(&gpu);
        let before = self.gpus.borrow_mut().insert(gpu.index, (gpu, state));
        if before.is_none_or(|(before, _)| gist(&before) != now) {
            self.changed.notify_one();
        }
    }

    fn remove(&self, index: u32) {
        self.gpus.borrow_mut().remove(&index);
    }

    /// An operator paused all GPUs, or lets them go on.
    pub(crate) fn pause(&self, paused: bool) {
        self.paused.set(paused);
        self.changed.notify_one();
    }

    fn parked(&self) -> usize {
        self.gpus.borrow().values().filter(|(_, state)| matches!(state, State::Parked { .. })).count()
    }

    fn down(&self) -> usize {
        self.gpus.borrow().values().filter(|(_, state)| state.is_down()).count()
    }

    fn len(&self) -> usize {
        self.gpus.borrow().len()
    }
}

pub(super) fn group_name(gpu: &GpuInfo) -> String {
    format!("GPU {}", gpu.index)
}

/// What is around the GPUs without a server.
pub struct Surroundings {
    /// Shared with their groups.
    pub(crate) board: Rc<Board>,
    /// The GPUs, as far as a change of the configuration has to know them.
    pub(crate) gpus: Vec<Parkable>,
    /// Those of them that have a server for now.
    pub(crate) yielded: Yielded,
    /// Opens the group of one that has none any more.
    pub(crate) opener: ParkOpener,
    /// The ports that are watched, if connections are a source of activity.
    pub(crate) ports: Option<Ports>,
    /// Period of looks at those, and at the fans.
    pub(crate) look_every: Seconds,
    /// Decides on the fans.
    pub(crate) fans: FanRule,
    /// Who switches them; nobody if there is nothing to run.
    pub(crate) hooks: Option<FanHooks>,
    /// The configuration in force.
    pub(crate) config: Config,
    /// What operators see.
    pub(crate) show: Show,
    /// The service manager, if one listens.
    pub(crate) notifier: Option<Notifier>,
    /// What it is told of each group.
    pub(crate) lines: StatusLines,
    /// The clock of the run.
    pub(crate) clock: Clock,
}

/// Waits for news of connections, if a parked GPU has to hear of them. Others are looked at often enough, and a server
/// with thousands of clients must not keep the loop busy.
async fn news(news: Option<&mut broadcast::Receiver<Event>>, wanted: bool) {
    match news {
        Some(news) if wanted => loop {
            match news.recv().await {
                Ok(_) | Err(RecvError::Lagged(_)) => return,
                // Its thread is gone, which a look will tell.
                Err(RecvError::Closed) => std::future::pending::<()>().await,
            }
        },
        _ => std::future::pending().await,
    }
}

pub(crate) struct Looks {
    /// What the source of connections tells by itself.
    news: Option<broadcast::Receiver<Event>>,
    parked: bool,
    /// The ports could not be looked at, and that was said.
    failed: bool,
    /// What fails again and again is not said each time.
    seldom: Seldom<Time, String>,
    ports_due: Time,
    status: Option<Time>,
}

const CONNECTIONS: &str = "connections";

fn not_known(error: &str, times: u64) {
    let times = (times > 0).then_some(times);
    tracing::error!(
        source = CONNECTIONS,
        error,
        not_said_before = times,
        "connections are not known: no GPU is parked"
    );
}

impl Surroundings {
    pub(super) fn looks(&self) -> Looks {
        Looks {
            news: self.heard(),
            parked: false,
            failed: false,
            seldom: Seldom::default(),
            ports_due: self.clock.now(),
            status: None,
        }
    }

    /// Waits for the next look that is due.
    pub(super) async fn due(&self, looks: &mut Looks) {
        let now = self.clock.now();
        let ports = if self.ports.is_some() { looks.ports_due.since(now) } else { LONGEST_SLEEP };
        // Fans are switched by the time that has passed.
        let fans = if self.hooks.is_some() { self.look_every } else { LONGEST_SLEEP };
        let pause = Duration::from_secs_f64(ports.0.min(fans.0).clamp(0.0, LONGEST_SLEEP.0));
        tokio::select! {
            () = news(looks.news.as_mut(), looks.parked) => looks.ports_due = now,
            () = self.board.changed.notified() => {}
            () = sleep(pause) => {}
        }
    }

    pub(super) fn look(&mut self, looks: &mut Looks) {
        let now = self.clock.now();
        self.look_at_ports(looks, now);
        let parked = self.board.parked() > 0;
        if parked != std::mem::replace(&mut looks.parked, parked) {
            // What was told before is known, and what comes from now on is heard.
            looks.news = self.heard();
            looks.ports_due = now;
        }
        let all = self.board.len() > 0 && self.board.parked() == self.board.len();
        if let (Some(command), Some(hooks)) = (self.fans.step(all, now), &self.hooks) {
            hooks.ask(command);
        }
        let open = self.board.connections.borrow().map(|seen| seen.open);
        self.show.turn(&self.board, self.ports.as_ref(), open, &self.config.park, now);
        if let Some(notifier) = &self.notifier
            && looks.status.is_none_or(|at| now.since(at) >= STATUS_EVERY)
        {
            looks.status = Some(now);
            let line = format!("{} of {} GPUs parked", self.board.down(), self.board.len());
            self.lines.borrow_mut().insert(PARKED.to_owned(), line);
            say_lines(notifier, &self.lines.borrow());
        }
    }

    /// The end of the run: fans on that were switched off.
    pub(super) fn end(mut self) {
        if let (Some(command), Some(hooks)) = (self.fans.end(), &self.hooks) {
            hooks.ask(command);
        }
    }

    fn heard(&self) -> Option<broadcast::Receiver<Event>> {
        self.ports.as_ref().map(Ports::news)
    }

    fn look_at_ports(&mut self, looks: &mut Looks, now: Time) {
        let Some(ports) = self.ports.as_ref().filter(|_| now >= looks.ports_due) else { return };
        let told = looks.parked && looks.news.is_some();
        looks.ports_due = now + if told { LONGEST_SLEEP } else { self.look_every };
        let seen = match ports.look() {
            Ok(seen) => {
                looks.seldom.over(CONNECTIONS);
                Some(seen)
            }
            Err(error) => {
                // While it lasts it is not said again; where it comes and goes, seldom.
                if !looks.failed
                    && let Some((error, times)) = looks.seldom.happened(CONNECTIONS, error, now)
                {
                    not_known(&error, times);
                }
                None
            }
        };
        while let Some((error, times)) = looks.seldom.due(now) {
            not_known(&error, times);
        }
        looks.failed = seen.is_none();
        self.board.connections.send_if_modified(|known| {
            let other = *known != seen;
            *known = seen;
            other
        });
    }
}
