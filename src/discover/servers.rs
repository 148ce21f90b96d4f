//! From candidates and the pages that were found to servers: which GPUs each has, and what it is called.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::candidates::{Address, Candidate};
use super::facts::Facts;
use super::page::Recognised;
use super::tree::lineage;

/// A name is at most this long.
const LONGEST_NAME: usize = 40;

/// A page that an engine serves, by the inode of the socket it was read from.
pub(crate) type Pages = BTreeMap<u64, Page>;

/// A page that an engine serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    /// Where it was read.
    pub url: String,
    /// The port of that.
    pub port: u16,
    /// What it says.
    pub engine: Recognised,
}

/// An inference server that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its name: the model's, or engine and port. Letters, digits, `.`, `_` and `-`; no two servers have the
    /// same.
    pub name: String,
    /// The name of the engine.
    pub engine: String,
    /// The model, as far as the engine tells.
    pub model: Option<String>,
    /// Where its metrics are.
    pub metrics_url: String,
    /// UUIDs of its GPUs, sorted.
    pub gpus: Vec<String>,
    /// Those of them that processes of others compute on too.
    pub shared: Vec<String>,
    /// The processes that compute, sorted.
    pub pids: Vec<u32>,
    /// The process that holds the page, and when it started (kernel ticks since boot).
    pub process: (u32, u64),
}

/// The process that a page belongs to: the highest of those that hold its socket.
fn holder(facts: &Facts, address: &Address) -> u32 {
    let depth = |owner: &&u32| (lineage(&facts.processes, **owner).len(), **owner);
    address.owners.iter().min_by_key(depth).copied().unwrap_or_default()
}

/// Is nothing left to ask this candidate for: has every process that computes a server above it?
pub(crate) fn is_settled(facts: &Facts, candidate: &Candidate, pages: &Pages) -> bool {
    candidate.pids.iter().all(|pid| server_of(facts, candidate, pages, *pid, false).is_some())
}

/// The page that a process that computes works for: that of its nearest ancestor with one; else the only one
/// beside it; else, once all were `asked`, the only one of the candidate.
fn server_of<'a>(
    facts: &Facts,
    candidate: &'a Candidate,
    pages: &Pages,
    pid: u32,
    asked: bool,
) -> Option<&'a Address> {
    let mut with_page = candidate.addresses.iter().filter(|address| pages.contains_key(&address.socket));
    let above = lineage(&facts.processes, pid).into_iter().find_map(|one| {
        candidate
            .addresses
            .iter()
            .find(|address| pages.contains_key(&address.socket) && address.owners.contains(&one))
    });
    let first = with_page.next();
    let only = first.filter(|first| with_page.all(|next| holder(facts, next) == holder(facts, first)));
    above.or(only.filter(|address| asked || address.beside))
}

/// The servers of these candidates, with unique names, in the order of their URLs.
pub(crate) fn servers(facts: &Facts, candidates: &[Candidate], pages: &Pages) -> Vec<Found> {
    let mut pids_of = BTreeMap::<u32, (u64, BTreeSet<u32>)>::new();
    for candidate in candidates {
        for pid in &candidate.pids {
            if let Some(address) = server_of(facts, candidate, pages, *pid, true) {
                let entry = pids_of.entry(holder(facts, address));
                entry.or_insert_with(|| (address.socket, BTreeSet::new())).1.insert(*pid);
            }
        }
    }
    let computing = facts.computing();
    let mut found: Vec<(u16, &Recognised, Found)> = pids_of
        .into_iter()
        .filter_map(|(holder, (socket, pids))| {
            let page = pages.get(&socket)?;
            let gpus: BTreeSet<&str> =
                pids.iter().filter_map(|pid| computing.get(pid)).flatten().copied().collect();
            let others = computing.iter().filter(|(pid, _)| !pids.contains(pid));
            let taken: BTreeSet<&str> = others.flat_map(|(_, gpus)| gpus).copied().collect();
            let start = facts.processes.get(&holder).map_or(0, |process| process.start);
            let found = Found {
                name: String::new(),
                engine: page.engine.engine.name().to_owned(),
                model: page.engine.models.first().cloned(),
                metrics_url: page.url.clone(),
                shared: gpus.intersection(&taken).map(|uuid| (*uuid).to_owned()).collect(),
                gpus: gpus.into_iter().map(str::to_owned).collect(),
                pids: pids.into_iter().collect(),
                process: (holder, start),
            };
            Some((page.port, &page.engine, found))
        })
        .collect();
    found.sort_by(|(a_port, _, a), (b_port, _, b)| (a_port, &a.metrics_url).cmp(&(b_port, &b.metrics_url)));
    let mut taken = BTreeSet::new();
    for (port, engine, found) in &mut found {
        found.name = name(engine, *port, &taken);
        taken.insert(found.name.clone());
    }
    found.into_iter().map(|(_, _, found)| found).collect()
}

/// A name that nobody has: the model's without its owner, with the port where another server has it.
fn name(engine: &Recognised, port: u16, taken: &BTreeSet<String>) -> String {
    let plain = |text: &str| {
        let kept = text.chars().map(|c| match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') => c,
            _ => '-',
        });
        let kept: String = kept.take(LONGEST_NAME).collect();
        kept.trim_matches(['.', '_', '-']).to_owned()
    };
    let model = engine.models.first().and_then(|model| model.rsplit('/').find(|part| !part.is_empty()));
    let model = model.map(plain).filter(|model| !model.is_empty());
    let numbered = |name: &str| format!("{name}-{port}");
    let wanted = model.clone().unwrap_or_else(|| numbered(&plain(engine.engine.name())));
    let others = model.map(|model| numbered(&model)).into_iter();
    let more = (2..).map(|number| format!("{wanted}-{port}-{number}"));
    let mut names = [wanted.clone()].into_iter().chain(others).chain(more);
    names.find(|name| !taken.contains(name)).unwrap_or(wanted)
}
