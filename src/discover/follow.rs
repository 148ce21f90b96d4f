//! Servers that come, move and go from one look to the next. Pure.

use std::collections::BTreeSet;

use super::servers::Found;

/// A change is one when it was seen in so many looks in a row: a driver call that fails once, and a server of
/// several GPUs that is just starting on them, change nothing.
pub(crate) const LOOKS: u32 = 2;

/// What happened to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// One is there that was not.
    Came(Found),
    /// One has other GPUs or another address.
    Moved {
        /// As it was.
        before: Found,
        /// As it is, under the same name.
        now: Found,
    },
    /// One is not there any more.
    Went(Found),
}

impl Change {
    /// Is it the same change, whichever processes it was seen by?
    fn is_same(&self, other: &Self) -> bool {
        let place = |found: &Found| (found.name.clone(), found.metrics_url.clone(), found.gpus.clone());
        match (self, other) {
            (Self::Came(one), Self::Came(another)) | (Self::Went(one), Self::Went(another)) => {
                place(one) == place(another)
            }
            (Self::Moved { before, now }, Self::Moved { before: other, now: next }) => {
                before.name == other.name && place(now) == place(next)
            }
            _ => false,
        }
    }
}

/// Each server of `now` with the one of `before` that it is, if it was there.
///
/// A server is the same if its process is; else if its address is, or, where neither is, if it alone has gone
/// and it alone has come with this model.
fn paired<'a>(before: &'a [Found], now: &'a [Found]) -> Vec<(&'a Found, Option<&'a Found>)> {
    let mut pairs: Vec<(&Found, Option<&Found>)> = now.iter().map(|found| (found, None)).collect();
    let mut left: Vec<&Found> = before.iter().collect();
    let same: [fn(&Found, &Found) -> bool; 3] = [
        |a, b| a.process == b.process,
        |a, b| a.metrics_url == b.metrics_url,
        |a, b| a.model.is_some() && a.model == b.model && a.engine == b.engine,
    ];
    for (rule, is_same) in same.into_iter().enumerate() {
        for at in 0..pairs.len() {
            let Some((found, None)) = pairs.get(at).copied() else { continue };
            let alone = pairs.iter().filter(|(other, old)| old.is_none() && is_same(other, found)).count()
                == 1
                && left.iter().filter(|old| is_same(old, found)).count() == 1;
            let old = left.iter().position(|old| is_same(old, found)).filter(|_| rule < 2 || alone);
            if let Some(pair) = pairs.get_mut(at) {
                pair.1 = old.map(|old| left.remove(old));
            }
        }
    }
    pairs
}

/// What has changed between two looks. A server keeps its name; one that comes gets a name that nobody has.
pub(crate) fn changes(before: &[Found], now: &[Found]) -> Vec<Change> {
    let pairs = paired(before, now);
    let stays = |old: &Found| pairs.iter().any(|(_, its)| its.is_some_and(|its| its.name == old.name));
    let went = before.iter().filter(|old| !stays(old)).map(|old| Change::Went(old.clone()));
    let mut taken: BTreeSet<String> = before.iter().map(|old| old.name.clone()).collect();
    let others = pairs.iter().filter_map(|(found, old)| match old {
        None => {
            let number = |number: u32| format!("{}-{number}", found.name);
            let name = [found.name.clone()]
                .into_iter()
                .chain((2..).map(number))
                .find(|name| !taken.contains(name))?;
            taken.insert(name.clone());
            Some(Change::Came(Found { name, ..(*found).clone() }))
        }
        Some(old) if old.gpus == found.gpus && old.metrics_url == found.metrics_url => None,
        Some(old) => {
            let now = Found { name: old.name.clone(), ..(*found).clone() };
            Some(Change::Moved { before: (*old).clone(), now })
        }
    });
    let others: Vec<Change> = others.collect();
    went.chain(others).collect()
}

/// Follows the servers over many looks.
#[derive(Debug, Default)]
pub struct Follower {
    known: Vec<Found>,
    pending: Vec<(Change, u32)>,
}

impl Follower {
    /// These are there: a first look has found them.
    pub(crate) fn starting_with(known: Vec<Found>) -> Self {
        Self { known, pending: Vec::new() }
    }

    /// Takes the servers of a look that succeeded; the changes that have been seen often enough. A look that
    /// failed says nothing and is not given here.
    pub fn look(&mut self, now: &[Found]) -> Vec<Change> {
        let seen = changes(&self.known, now).into_iter().map(|change| {
            let before = self.pending.iter().find(|(pending, _)| pending.is_same(&change));
            let looks = before.map_or(0, |(_, looks)| *looks) + 1;
            (change, looks)
        });
        let (sure, pending): (Vec<_>, Vec<_>) = seen.partition(|(_, looks)| *looks >= LOOKS);
        self.pending = pending;
        let sure: Vec<Change> = sure.into_iter().map(|(change, _)| change).collect();
        let renewed = |known: &Found| {
            let pair = paired(std::slice::from_ref(known), now).into_iter().find(|(_, old)| old.is_some());
            match pair {
                Some((found, _)) if found.gpus == known.gpus && found.metrics_url == known.metrics_url => {
                    Found { name: known.name.clone(), ..found.clone() }
                }
                _ => known.clone(),
            }
        };
        self.known = self.known.iter().map(renewed).collect();
        for change in &sure {
            match change {
                Change::Came(found) => self.known.push(found.clone()),
                Change::Went(found) => self.known.retain(|known| known.name != found.name),
                Change::Moved { before, now } => {
                    let places = self.known.iter_mut().filter(|known| known.name == before.name);
                    places.for_each(|known| known.clone_from(now));
                }
            }
        }
        sure
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(name: &str, port: u16, gpus: &[&str], pid: u32) -> Found {
        Found {
            name: name.to_owned(),
            engine: "vLLM".to_owned(),
            model: Some(name.to_owned()),
            metrics_url: format!("http://127.0.0.1:{port}/metrics"),
            gpus: gpus.iter().map(|gpu| (*gpu).to_owned()).collect(),
            shared: Vec::new(),
            pids: vec![pid],
            process: (pid, 1),
        }
    }

    fn told(changes: &[Change]) -> Vec<String> {
        let one = |change: &Change| match change {
            Change::Came(found) => format!("{} came", found.name),
            Change::Moved { before, now } => format!("{} {:?} -> {:?}", before.name, before.gpus, now.gpus),
            Change::Went(found) => format!("{} went", found.name),
        };
        changes.iter().map(one).collect()
    }

    #[test]
    fn one_failed_look_is_no_change() {
        let both = [found("a", 1, &["G0"], 10), found("b", 2, &["G1"], 20)];
        let mut follower = Follower::default();
        assert_eq!(told(&follower.look(&both)), Vec::<String>::new());
        assert_eq!(told(&follower.look(&both)), ["a came", "b came"]);
        assert_eq!(told(&follower.look(&both[..1])), Vec::<String>::new());
        assert_eq!(told(&follower.look(&both)), Vec::<String>::new());
        assert_eq!(told(&follower.look(&both[..1])), Vec::<String>::new());
        assert_eq!(told(&follower.look(&both[..1])), ["b went"]);
        assert_eq!(follower.known, &both[..1]);
    }

    #[test]
    fn a_server_that_restarts_stays_and_one_on_other_gpus_has_moved() {
        let mut follower = Follower::default();
        let start = [found("a", 1, &["G0"], 10)];
        (0..2).for_each(|_| drop(follower.look(&start)));
        // Another process at the same place: nothing to do, but the process is known.
        let restarted = [found("a", 1, &["G0"], 11)];
        (0..2).for_each(|_| assert_eq!(follower.look(&restarted), []));
        assert_eq!(follower.known, &restarted);
        let moved = [found("a", 1, &["G1"], 12)];
        assert_eq!(follower.look(&moved), []);
        assert_eq!(told(&follower.look(&moved)), ["a [\"G0\"] -> [\"G1\"]"]);
        // Another port and process, the same model: it has moved too.
        let port = [found("a", 7, &["G1"], 13)];
        (0..2).for_each(|_| drop(follower.look(&port)));
        assert_eq!(follower.known, &port);
    }

    #[test]
    fn a_name_stays_with_its_server() {
        let before = [found("a", 2, &["G0"], 10)];
        // A second server of the model at a lower port takes the plain name in a look of its own.
        let now = [found("a", 1, &["G1"], 20), Found { name: "a-2".to_owned(), ..before[0].clone() }];
        let came: Vec<Change> = changes(&before, &now);
        let [Change::Came(new)] = &came[..] else { panic!("{came:?}") };
        assert_eq!((new.name.as_str(), new.process), ("a-2", (20, 1)));
    }

    /// Servers of one look: no two have a process, an address or a name in common.
    fn any_found() -> impl Strategy<Value = Vec<Found>> {
        let place = (1_u16..5, 1_u32..5, "[ab]", 0_u32..4);
        prop::collection::vec(place, 0..4).prop_map(|list| {
            let mut taken = BTreeSet::new();
            let mut free = |name: String| taken.insert(name);
            let mut made = Vec::new();
            for (port, pid, model, gpu) in list {
                if free(format!("port {port}")) && free(format!("pid {pid}")) {
                    let mut one = found(&model, port, &[&format!("G{gpu}")], pid);
                    one.name = if free(model.clone()) { model } else { format!("{model}-{port}") };
                    made.push(one);
                }
            }
            made
        })
    }

    proptest! {
        #[test]
        fn what_is_seen_long_enough_is_known(looks in prop::collection::vec(any_found(), 1..8)) {
            let mut follower = Follower::default();
            for look in &looks {
                follower.look(look);
                let names: BTreeSet<_> = follower.known.iter().map(|found| &found.name).collect();
                prop_assert_eq!(names.len(), follower.known.len());
            }
            let last = looks.last().unwrap();
            (0..=LOOKS).for_each(|_| drop(follower.look(last)));
            prop_assert_eq!(follower.look(last), vec![]);
            let places = |found: &[Found]| {
                let all = found.iter().map(|one| (one.metrics_url.clone(), one.gpus.clone()));
                let mut all: Vec<_> = all.collect();
                all.sort();
                all
            };
            prop_assert_eq!(places(&follower.known), places(last));
        }
    }
}
