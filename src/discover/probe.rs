//! Asks the addresses of candidates for a metrics page. Bounded in number, bytes and time, and remembered: an
//! address that has given its answer is not asked again soon.
//!
//! `/health` comes first. An engine whose page may be work to it (llama.cpp wakes up for it, and never sleeps
//! while it is scraped) is recognised by `/props`, and its page is left alone.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use reqwest::{Client, redirect};

use super::candidates::{Address, Candidate};
use super::facts::Facts;
use super::page::{Recognised, may_sleep, models, recognise, recognise_props};
use super::servers::{Page, Pages, is_settled};
use crate::engine::{self, USUAL_PATH};
use crate::metrics::page::{LARGEST_PAGE, PageError};

/// For connecting; all addresses are on this machine.
const CONNECT: Duration = Duration::from_millis(300);
/// For one answer, connecting included. A page under load takes half a second.
const ANSWER: Duration = Duration::from_secs(2);
/// For everything that is asked in one look.
const LOOK: Duration = Duration::from_secs(15);
/// Answers other than the page are small.
const SMALL: usize = 64 * 1024;
/// Candidates that are asked at once; the addresses of one are asked one after the other.
const AT_ONCE: usize = 8;
/// Sockets that are asked for one candidate, and in one look.
const MOST_OF_ONE: usize = 16;
const MOST: usize = 64;
/// An address that has no page is asked again after this time, then after twice as long, and so on up to the
/// longest.
const AGAIN: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(900);

/// What asking a socket came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Page(Page),
    /// A server that may have a page later: it starts, or is too busy.
    NotYet(String),
    /// Something else.
    Other(String),
    NotAsked(String),
}

/// A socket's answer, and when it is worth asking again.
#[derive(Debug, Clone)]
struct Known {
    answer: Answer,
    tries: u32,
    again: Option<Instant>,
}

/// A socket: its inode alone may be given anew.
type Key = (u64, SocketAddr);

/// Asks, and remembers the answers.
#[derive(Debug)]
pub(crate) struct Prober {
    client: Client,
    known: HashMap<Key, Known>,
}

/// The answers of the sockets of one look, by inode.
pub(crate) type Answers = std::collections::BTreeMap<u64, Answer>;

impl Prober {
    /// Prepares the client; nothing is sent yet.
    pub(crate) fn new() -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .user_agent(concat!("agft/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .pool_max_idle_per_host(0)
            .tls_certs_only([])
            .build()?;
        Ok(Self { client, known: HashMap::new() })
    }

    /// Asks what has to be asked of these candidates at `now`; the answers of all their sockets, remembered
    /// ones too.
    pub(crate) async fn ask(&mut self, facts: &Facts, candidates: &[Candidate], now: Instant) -> Answers {
        let open: Vec<Key> = candidates.iter().flat_map(|candidate| &candidate.addresses).map(key).collect();
        self.known.retain(|key, _| open.contains(key));
        let (budget, end) = (Cell::new(MOST), tokio::time::Instant::now() + LOOK);
        let asker = Asker { prober: self, facts, now, budget: &budget, end };
        let each =
            stream::iter(candidates).map(|candidate| asker.ask_one(candidate)).buffer_unordered(AT_ONCE);
        let answers: Vec<(Key, Answer)> = each.flat_map(stream::iter).collect().await;
        for (key, answer) in &answers {
            self.remember(*key, answer, now);
        }
        answers.into_iter().map(|((socket, _), answer)| (socket, answer)).collect()
    }

    fn remember(&mut self, key: Key, answer: &Answer, now: Instant) {
        if matches!(answer, Answer::NotAsked(_)) || self.due(key, now).is_some() {
            return;
        }
        let tries = self.known.get(&key).map_or(0, |known| known.tries).saturating_add(1);
        let again = match answer {
            Answer::Page(_) => None,
            Answer::NotYet(_) | Answer::NotAsked(_) => Some(now),
            Answer::Other(_) => Some(now + AGAIN.saturating_mul(1 << (tries - 1).min(8)).min(LONGEST)),
        };
        self.known.insert(key, Known { answer: answer.clone(), tries, again });
    }

    /// The remembered answer, if it is not time to ask again.
    fn due(&self, key: Key, now: Instant) -> Option<&Answer> {
        let known = self.known.get(&key)?;
        known.again.is_none_or(|again| now < again).then_some(&known.answer)
    }

    async fn get(&self, at: SocketAddr, path: &str, most: usize) -> Result<(u16, Vec<u8>), Failed> {
        let mut response = self.client.get(format!("http://{at}{path}")).send().await?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > most {
                return Err(Failed::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status().as_u16(), body))
    }

    /// The first address that takes a connection decides.
    async fn ask_socket(&self, address: &Address) -> Answer {
        let reach = match &address.reach {
            Ok(reach) => reach,
            Err(why) => return Answer::NotAsked((*why).to_owned()),
        };
        let mut last = Answer::Other("no address".to_owned());
        for at in reach {
            match self.ask_address(*at).await {
                Err(Failed::Connection) => last = Answer::Other(Failed::Connection.to_string()),
                Ok(answer) => return answer,
                Err(failed @ Failed::Slow) => return Answer::NotYet(failed.to_string()),
                Err(failed) => return Answer::Other(failed.to_string()),
            }
        }
        last
    }

    async fn ask_address(&self, at: SocketAddr) -> Result<Answer, Failed> {
        let page =
            |path, engine| Answer::Page(Page { url: format!("http://{at}{path}"), port: at.port(), engine });
        let (status, health) = self.get(at, "/health", SMALL).await?;
        match status {
            // No such path: not an engine that could be asleep, but some have their metrics on a port of
            // their own.
            200..=299 | 404 | 405 => {}
            500..=599 => return Ok(Answer::NotYet(format!("/health says HTTP {status}"))),
            _ => return Ok(Answer::Other(format!("/health says HTTP {status}"))),
        }
        if may_sleep(&health) {
            let (status, props) = self.get(at, "/props", SMALL).await?;
            if let Some(engine) = recognise_props(&props).filter(|_| status == 200) {
                return Ok(page(engine.engine.path(), self.with_models(at, engine).await));
            }
            if status != 404 {
                let why = format!("its page may wake it, as /props says HTTP {status}; not asked for");
                return Ok(Answer::Other(why));
            }
        }
        let (status, body) = self.get(at, USUAL_PATH, LARGEST_PAGE).await?;
        if status != 200 {
            let why = format!("{USUAL_PATH} says HTTP {status}");
            return Ok(if status >= 500 { Answer::NotYet(why) } else { Answer::Other(why) });
        }
        match recognise(&body) {
            Ok(engine) => Ok(page(USUAL_PATH, self.with_models(at, engine).await)),
            Err(why) => {
                // Some have JSON there, and their page elsewhere.
                let paths =
                    engine::other_paths().into_iter().filter(|_| matches!(why, PageError::Json { .. }));
                for (_, path) in paths {
                    let (status, body) = self.get(at, path, LARGEST_PAGE).await?;
                    if let Some(engine) = recognise(&body).ok().filter(|_| status == 200) {
                        return Ok(page(path, self.with_models(at, engine).await));
                    }
                }
                Ok(Answer::Other(format!("{USUAL_PATH}: {why}")))
            }
        }
    }

    /// Where the page names no model, the engine's list does.
    async fn with_models(&self, at: SocketAddr, mut engine: Recognised) -> Recognised {
        if engine.models.is_empty()
            && let Ok((200, body)) = self.get(at, "/v1/models", SMALL).await
        {
            engine.models = models(&body);
        }
        engine
    }
}

/// One look's questions.
struct Asker<'a> {
    prober: &'a Prober,
    facts: &'a Facts,
    now: Instant,
    budget: &'a Cell<usize>,
    end: tokio::time::Instant,
}

impl Asker<'_> {
    /// Asks one socket after the other until every process of the candidate has its server.
    async fn ask_one(&self, candidate: &Candidate) -> Vec<(Key, Answer)> {
        let mut pages = Pages::new();
        let mut answers = Vec::new();
        for address in &candidate.addresses {
            let answer = self.answer(candidate, address, &pages, answers.len()).await;
            if let Answer::Page(page) = &answer {
                pages.insert(address.socket, page.clone());
            }
            answers.push((key(address), answer));
        }
        answers
    }

    async fn answer(&self, candidate: &Candidate, address: &Address, pages: &Pages, asked: usize) -> Answer {
        if let Some(known) = self.prober.due(key(address), self.now) {
            return known.clone();
        }
        let not_asked = |why: &str| Answer::NotAsked(why.to_owned());
        if is_settled(self.facts, candidate, pages) {
            return not_asked("the server is found already");
        }
        if asked >= MOST_OF_ONE || self.budget.get() == 0 {
            return not_asked("too many addresses");
        }
        self.budget.set(self.budget.get() - 1);
        match tokio::time::timeout_at(self.end, self.prober.ask_socket(address)).await {
            Ok(answer) => answer,
            Err(_) => not_asked("the time of this look was over"),
        }
    }
}

fn key(address: &Address) -> Key {
    (address.socket, address.listens)
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Failed {
    #[error("takes no connection")]
    Connection,
    #[error("no answer within 2 s")]
    Slow,
    #[error("the answer is longer than any engine's")]
    TooLong,
    #[error("does not speak HTTP")]
    NotHttp,
}

impl From<reqwest::Error> for Failed {
    fn from(error: reqwest::Error) -> Self {
        if error.is_connect() {
            Self::Connection
        } else if error.is_timeout() {
            Self::Slow
        } else {
            Self::NotHttp
        }
    }
}
