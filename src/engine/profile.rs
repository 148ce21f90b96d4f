//! What agft knows of one inference engine: the content of its file.

use std::sync::LazyLock;

use reqwest::Url;

use super::asleep::Question;
use super::recognise::Recognise;
use super::table::{self, Family, Row};
use crate::metrics::Signal;
use crate::metrics::signals::Kind;

/// The path of the metrics page where a profile names none.
pub(crate) const USUAL_PATH: &str = "/metrics";
/// The label that holds the model's name where a profile names none.
pub(super) const USUAL_MODEL_LABEL: &str = "model_name";

/// One inference engine: its metrics page, and where it answers. Read from a file and checked as a whole; it lives as
/// long as the process, so that whoever has seen a page can hold on to what it was read by.
#[derive(Debug)]
pub struct Profile {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) path: String,
    pub(super) remedy: String,
    pub(super) recognise: Recognise,
    pub(super) model_label: String,
    pub(super) rank_labels: Vec<String>,
    /// In the order of [`Signal`], each at most once.
    pub(super) table: Vec<Row>,
    /// What it cannot tell, each with the reason, in that order too.
    pub(super) cannot: Vec<(Signal, String)>,
    pub(super) dialects: Vec<Dialect>,
    pub(super) scrape_is_work: bool,
    pub(super) asleep: Vec<Question>,
}

/// A generation of an engine's metric names.
#[derive(Debug)]
pub(super) struct Dialect {
    /// For people.
    pub(super) text: String,
    /// Do its series have an `engine` label? `None`: either way.
    pub(super) engine_label: Option<bool>,
    /// Names that a page of it does not have.
    pub(super) none_of: Vec<String>,
}

impl Profile {
    /// Its name, as in the configuration and in the metadata of a run.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is, in a sentence.
    #[must_use]
    pub fn about(&self) -> &str {
        &self.about
    }

    /// The path of its metrics page.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What may be set wrong if a server of this engine has no such page, as a question; empty if nothing.
    #[must_use]
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// What stands before its metric names, the usual one first.
    pub fn prefixes(&self) -> impl Iterator<Item = &str> {
        self.recognise.prefixes.iter().map(String::as_str)
    }

    /// What its page tells, in the order of [`Signal`].
    #[must_use]
    pub fn table(&self) -> &[Row] {
        &self.table
    }

    /// How it tells this signal; `None` if it does not.
    #[must_use]
    pub fn row(&self, signal: Signal) -> Option<&Row> {
        self.table.iter().find(|row| row.signal == signal)
    }

    /// What tells the time per output token: of requests, else of tokens.
    pub(crate) fn time_per_token(&self) -> Option<&Row> {
        self.row(Signal::RequestTpot).or_else(|| self.row(Signal::Itl))
    }

    /// Whether its page tells how long a token takes: without a latency Little's law gives it.
    pub(crate) fn tells_delay(&self) -> bool {
        let tells = |signal| self.row(signal).is_some();
        self.time_per_token().is_some() || (tells(Signal::Running) && tells(Signal::GenerationTokens))
    }

    /// Why it does not tell this signal; empty where its file gives no reason, `None` if it tells it.
    #[must_use]
    pub fn cannot(&self, signal: Signal) -> Option<&str> {
        let why = self.cannot.iter().find(|(other, _)| *other == signal).map_or("", |(_, why)| why);
        self.row(signal).is_none().then_some(why)
    }

    /// The label that holds the model's name.
    pub(crate) fn model_label(&self) -> &str {
        &self.model_label
    }

    /// The labels that series of this kind may differ in and yet be one, the largest of which counts: each rank of an
    /// engine shows the whole batch, and each process of a server (`pid`) the level that it last heard of.
    pub(crate) fn same_series(&self, kind: Kind) -> Vec<&str> {
        let pid = matches!(kind, Kind::Level | Kind::Share).then_some("pid");
        self.rank_labels.iter().map(String::as_str).chain(pid).collect()
    }

    /// Whether asking for its page is work to it: that wakes it, or keeps it awake.
    #[must_use]
    pub fn scrape_is_work(&self) -> bool {
        self.scrape_is_work
    }

    /// The question to ask, in place of that for the page at this URL, whether it sleeps; `None` if it never does.
    pub(crate) fn sleep_question(&self, page: &Url) -> Option<&Question> {
        self.asleep.iter().find(|question| question.is_for(page))
    }

    /// Which generation of its names a page speaks, for people: from the names read, and whether the series have an
    /// `engine` label. Empty if there is but one.
    pub(crate) fn dialect(&self, seen: &[Family], engine_label: bool) -> &str {
        let applies = |dialect: &&Dialect| {
            dialect.engine_label.is_none_or(|wanted| wanted == engine_label)
                && !seen.iter().any(|family| dialect.none_of.iter().any(|name| name == family.name))
        };
        self.dialects.iter().find(applies).map_or("", |dialect| &dialect.text)
    }

    /// The signal's usual metric name, for messages; without one, what it is.
    #[must_use]
    pub fn metric(&self, signal: Signal) -> String {
        let prefix = table::prefix_of(signal, self.prefixes().next().unwrap_or_default());
        let name = self.row(signal).and_then(Row::usual_name);
        name.map_or_else(|| signal.to_string(), |name| format!("{prefix}{name}"))
    }

    /// An engine of which nothing is known.
    pub(super) fn none() -> &'static Self {
        static NONE: LazyLock<Profile> = LazyLock::new(|| Profile {
            name: "unknown".to_owned(),
            about: String::new(),
            path: USUAL_PATH.to_owned(),
            remedy: String::new(),
            recognise: Recognise::default(),
            model_label: USUAL_MODEL_LABEL.to_owned(),
            rank_labels: Vec::new(),
            table: Vec::new(),
            cannot: Vec::new(),
            dialects: Vec::new(),
            scrape_is_work: false,
            asleep: Vec::new(),
        });
        &NONE
    }
}

/// A user's profile takes the place of the built-in one of the same name, so a name is one engine.
impl PartialEq for Profile {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Profile {}
