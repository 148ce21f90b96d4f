//! A published state for tests of the servers.

use std::sync::Arc;

use tokio::sync::watch;

use super::Latest;
use crate::view::{History, State, testing};

/// A state in which everything is known, with one point of history, and where to publish another state.
pub(super) fn latest() -> (watch::Sender<Arc<State>>, Latest) {
    let (publish, state) = watch::channel(Arc::new(testing::state()));
    let mut points = History::default();
    points.push(&testing::state());
    let (_, history) = watch::channel(Arc::new(points));
    (publish, Latest { state, history })
}
