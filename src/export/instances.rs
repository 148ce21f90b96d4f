//! What supervisors tell of their instances over the control socket, for the loops that park the GPUs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::park::instances::{Found, Roster, Told, ToldInstance};

/// All that is told; a clone is of the same.
#[derive(Debug, Clone, Default)]
pub struct Instances {
    roster: Arc<Roster>,
    told: Arc<watch::Sender<Told>>,
    clients: Arc<AtomicU64>,
}

impl Instances {
    /// Of instances on these GPUs.
    pub(crate) fn on_machine(roster: Roster) -> Self {
        Self { roster: Arc::new(roster), ..Self::default() }
    }

    /// A client that will tell.
    pub(super) fn teller(&self) -> Teller {
        Teller { number: self.clients.fetch_add(1, Ordering::Relaxed), instances: self.clone() }
    }

    pub(super) fn roster(&self) -> &Roster {
        &self.roster
    }

    /// What is told now.
    pub(super) fn told(&self) -> Vec<ToldInstance> {
        self.told.borrow().instances().cloned().collect()
    }

    /// The work on the GPUs with these UUIDs.
    pub fn on(&self, gpus: BTreeSet<String>) -> Working {
        Working { told: self.told.subscribe(), gpus, counted: 0 }
    }
}

/// One client. Dropped, all that it said is gone: whatever way its talk ends.
#[derive(Debug)]
pub(super) struct Teller {
    instances: Instances,
    number: u64,
}

impl Teller {
    /// In the place of what it said before. Says whether that was taken.
    pub(super) fn say(&self, found: Found) -> bool {
        let mut taken = true;
        self.instances.told.send_if_modified(|told| {
            let before = told.clone();
            taken = told.say(self.number, found.instances);
            *told != before
        });
        taken
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.instances.told.send_modify(|told| told.gone(self.number));
    }
}

/// The instances that work on some GPUs.
#[derive(Debug)]
pub struct Working {
    told: watch::Receiver<Told>,
    gpus: BTreeSet<String>,
    counted: u32,
}

impl Working {
    fn now(&mut self) -> u32 {
        self.told.borrow_and_update().working(|uuid| self.gpus.contains(uuid))
    }

    /// How many there are.
    pub(crate) fn count(&mut self) -> u32 {
        self.counted = self.now();
        self.counted
    }

    /// Waits until there are more or fewer than were [counted](Self::count).
    pub(crate) async fn changed(&mut self) {
        while self.now() == self.counted {
            if self.told.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
