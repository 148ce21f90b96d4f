//! Publishes the picture of the run for everyone who looks at it: at each change, and once a second.

use std::sync::Arc;

use tokio::sync::watch;

use super::Board;
use super::activity::Ports;
use crate::config::Park;
use crate::daemon::tick::unix_seconds;
use crate::units::{Clocks, Seconds, Time};
use crate::view::{ConnectionsState, ParkMode, ParkStanding, ParkState, ParkedGpu};

/// Without a change the picture is renewed this often.
const EVERY: Seconds = Seconds(1.0);

/// What a change is seen by.
type Gist = (ParkMode, Vec<(ParkStanding, Option<Clocks>)>);

/// Keeps and publishes a [`ParkState`]. Whoever reads it never holds up the loop.
pub(crate) struct Show {
    publish: watch::Sender<Arc<ParkState>>,
    shown: Option<(Gist, Time)>,
}

fn state(
    mode: ParkMode,
    park: &Park,
    connections: Option<ConnectionsState>,
    gpus: Vec<ParkedGpu>,
) -> ParkState {
    ParkState {
        at_unix_s: unix_seconds(),
        mode,
        rule: park.rule.to_string(),
        lever: park.lever.to_string(),
        sources: park.sources.iter().map(ToString::to_string).collect(),
        connections,
        gpus,
    }
}

impl Show {
    /// Of a run that begins now, and where to read it.
    pub(crate) fn new(park: &Park) -> (Self, watch::Receiver<Arc<ParkState>>) {
        let mode = ParkMode::Parking;
        let (publish, shown) = watch::channel(Arc::new(state(mode, park, None, Vec::new())));
        (Self { publish, shown: None }, shown)
    }

    /// Publishes what is on the board, if it is time to; `open` are the connections.
    pub(super) fn turn(
        &mut self,
        board: &Board,
        ports: Option<&Ports>,
        open: Option<u32>,
        park: &Park,
        now: Time,
    ) {
        let mode = if board.paused.get() { ParkMode::Paused } else { ParkMode::Parking };
        let gpus = board.gpus.borrow();
        let gist = (mode, gpus.values().map(|(gpu, _)| (gpu.state, gpu.in_force)).collect());
        if self.shown.as_ref().is_some_and(|(was, at)| *was == gist && now.since(*at) < EVERY) {
            return;
        }
        self.shown = Some((gist, now));
        let connections = ports.map(|ports| ConnectionsState { open, ..ports.shown() });
        let gpus = gpus.values().map(|(gpu, _)| gpu.clone()).collect();
        self.publish.send_replace(Arc::new(state(mode, park, connections, gpus)));
    }
}
