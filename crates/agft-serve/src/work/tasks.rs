//! The tasks of one process, counted from the lines of its log.
//!
//! A slot has one task at a time, so it is the slots that are counted: a line that was lost costs at most
//! until the next one of the same slot, and with the process all of them are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::lines::{self, Child, Said, Slot};

/// Most slots and models that are remembered: a log that makes them up fills no memory.
const MOST: usize = 4096;

/// What the lines so far come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Busy {
    /// No line spoke of tasks: nothing is known.
    #[default]
    Unknown,
    /// So many tasks; 0 is idle.
    Tasks(usize),
    /// The model is not loaded, and is with the next request.
    Asleep,
}

/// The state that lines change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tasks {
    seen: bool,
    asleep: bool,
    busy: BTreeSet<Slot>,
    /// Models of a router, with the ports of their servers.
    ports: BTreeMap<String, u16>,
}

impl Tasks {
    /// Takes a line.
    pub(crate) fn take(&mut self, said: Said<'_>) {
        match said {
            Said::Begin(slot) => {
                self.seen = true;
                self.asleep = false;
                if self.busy.len() < MOST {
                    self.busy.insert(slot);
                }
            }
            Said::End(slot) => {
                self.seen = true;
                self.busy.remove(&slot);
            }
            Said::AllIdle(child) => {
                self.seen = true;
                self.clear(child);
            }
            Said::Sleeps(child) => {
                self.clear(child);
                // Others of the router may be awake.
                self.asleep |= child.is_none();
                self.seen = true;
            }
            Said::Wakes(child) => self.asleep &= child.is_some(),
            Said::Spawned { name, port } => {
                self.clear(Some(port));
                if self.ports.len() < MOST {
                    self.ports.insert(name.to_owned(), port);
                }
            }
            Said::Exited { name } => {
                if let Some(port) = self.ports.remove(name) {
                    self.clear(Some(port));
                }
            }
        }
    }

    fn clear(&mut self, child: Child) {
        self.busy.retain(|slot| slot.child != child);
    }

    /// What it comes to.
    pub(crate) fn busy(&self) -> Busy {
        match self.busy.len() {
            _ if !self.seen => Busy::Unknown,
            0 if self.asleep => Busy::Asleep,
            tasks => Busy::Tasks(tasks),
        }
    }
}

/// The tasks of a process, for those who read its log and those who want to know.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    tasks: Mutex<Tasks>,
    busy: watch::Sender<Busy>,
}

impl Watched {
    /// Takes a line of its log.
    pub(crate) fn line(&self, line: &str) {
        let Some(said) = lines::read(line) else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.take(said);
        // Under the lock, so that what is told last is what is so.
        let busy = tasks.busy();
        self.busy.send_if_modified(|told| std::mem::replace(told, busy) != busy);
    }

    /// What it does, and each change.
    pub(crate) fn busy(&self) -> watch::Receiver<Busy> {
        self.busy.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The first 60 lines of the log of llama-server 0.3.36 (`llama-server -m tiny.gguf --parallel 4`).
    const LOG: &str = include_str!("../../tests/data/llama.cpp-0.3.36-server.log");

    fn of(lines: &[&str]) -> Busy {
        let watched = Watched::default();
        lines.iter().for_each(|line| watched.line(line));
        *watched.busy().borrow()
    }

    #[test]
    fn a_captured_log_is_counted() {
        let watched = Watched::default();
        let (mut most, mut begun, mut ended) = (0, 0, 0);
        assert_eq!(*watched.busy().borrow(), Busy::Unknown);
        for line in LOG.lines() {
            watched.line(line);
            begun += usize::from(line.contains("| processing task"));
            ended += usize::from(line.contains("| stop processing"));
            if begun > 0 {
                assert_eq!(*watched.busy().borrow(), Busy::Tasks(begun - ended), "{line}");
                most = most.max(begun - ended);
            }
        }
        assert_eq!((begun > 8, most), (true, 4));
    }

    #[test]
    fn a_lost_line_costs_until_the_next_of_its_slot() {
        let begin = "slot launch_slot_: id  0 | task 1 | processing task";
        let end = "slot      release: id  0 | task 2 | stop processing: n_tokens = 1";
        assert_eq!(of(&[begin]), Busy::Tasks(1));
        // The end of task 1 and the begin of task 2 were lost.
        assert_eq!(of(&[begin, end]), Busy::Tasks(0));
        assert_eq!(of(&[begin, begin, end]), Busy::Tasks(0));
        assert_eq!(of(&[end]), Busy::Tasks(0));
        assert_eq!(of(&[begin, "srv  update_slots: all slots are idle"]), Busy::Tasks(0));
    }

    #[test]
    fn servers_of_a_router_are_counted_apart_and_their_tasks_end_with_them() {
        let begin = |port: u16| format!("[{port}] slot launch_slot_: id  0 | task 1 | processing task");
        let (a, b) = (begin(40001), begin(40002));
        let spawned = "srv  load: spawning server instance with name=a on port 40001";
        let exited = "srv  operator(): instance name=a exited with status 9";
        assert_eq!(of(&[spawned, &a, &b]), Busy::Tasks(2));
        assert_eq!(of(&[spawned, &a, &b, exited]), Busy::Tasks(1));
        assert_eq!(of(&[spawned, &a, spawned]), Busy::Tasks(0));
        assert_eq!(of(&[&a, &b, "[40002] srv  update_slots: all slots are idle"]), Busy::Tasks(1));
    }

    #[test]
    fn a_server_that_sleeps_has_no_task_until_it_has_one() {
        let sleeps = "srv  handle_sleep: server is entering sleeping state";
        let wakes = "srv  handle_sleep: server is exiting sleeping state";
        let begin = "slot launch_slot_: id  0 | task 1 | processing task";
        assert_eq!(of(&[sleeps]), Busy::Asleep);
        assert_eq!(of(&[sleeps, wakes]), Busy::Tasks(0));
        assert_eq!(of(&[sleeps, begin]), Busy::Tasks(1));
        assert_eq!(of(&[begin, sleeps]), Busy::Asleep);
    }

    fn said() -> impl Strategy<Value = Said<'static>> {
        let slot = || {
            let child = prop_oneof![Just(None), Just(Some(1_u16)), Just(Some(2))];
            (child, 0_u32..3).prop_map(|(child, id)| Slot { child, id })
        };
        let name = prop_oneof![Just("a"), Just("b")];
        prop_oneof![
            4 => slot().prop_map(Said::Begin),
            4 => slot().prop_map(Said::End),
            1 => slot().prop_map(|slot| Said::AllIdle(slot.child)),
            1 => slot().prop_map(|slot| Said::Sleeps(slot.child)),
            1 => slot().prop_map(|slot| Said::Wakes(slot.child)),
            1 => (name.clone(), 1_u16..3).prop_map(|(name, port)| Said::Spawned { name, port }),
            1 => name.prop_map(|name| Said::Exited { name }),
        ]
    }

    proptest! {
        /// Whatever came before, and whatever was lost: the end of every slot, or one word that all are idle,
        /// leaves none.
        #[test]
        fn no_order_of_begins_ends_and_lost_lines_leaves_a_task_behind(
            lines in prop::collection::vec((said(), any::<bool>()), 0..60),
        ) {
            let mut tasks = Tasks::default();
            for (said, is_lost) in lines {
                if !is_lost {
                    tasks.take(said);
                }
                prop_assert!(tasks.busy.len() <= 9);
            }
            let mut by_ends = tasks.clone();
            let children = [None, Some(1), Some(2)];
            for child in children {
                tasks.take(Said::AllIdle(child));
                (0..3).for_each(|id| by_ends.take(Said::End(Slot { child, id })));
            }
            prop_assert!(tasks.busy.is_empty() && by_ends.busy.is_empty());
            prop_assert!(!matches!(tasks.busy(), Busy::Tasks(1..)));
        }
    }
}
