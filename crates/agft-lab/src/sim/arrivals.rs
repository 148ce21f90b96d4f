//! Where requests come from: a list, an endless stream, or clients that wait for their answers.

use std::collections::VecDeque;

use super::dice::Dice;
use super::workload::{Request, Shape, Stream, Workload};
use agft::units::{Seconds, Time};

/// The source of requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// Exactly these, such as a trace.
    Listed(Vec<Request>),
    /// An endless stream that does not wait for answers.
    Open(Workload),
    /// A fixed number of clients, each with one request at a time.
    Closed(ClosedLoop),
}

/// Clients that send the next request some time after the previous answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClosedLoop {
    /// How many.
    pub clients: u32,
    /// Mean pause between an answer and the next request, exponential.
    pub think: Seconds,
    /// What they ask for.
    pub shape: Shape,
}

/// The source at work.
#[derive(Debug)]
pub(super) enum Source {
    Listed(std::vec::IntoIter<Request>, Option<Request>),
    Open(Box<Stream>, Option<Request>),
    Closed { clients: ClosedLoop, due: VecDeque<Time>, dice: Dice },
}

impl Source {
    pub(super) fn new(arrivals: Arrivals, seed: u64) -> Self {
        match arrivals {
            Arrivals::Listed(mut requests) => {
                requests.sort_by(|a, b| a.arrival.0.total_cmp(&b.arrival.0));
                let mut rest = requests.into_iter();
                let first = rest.next();
                Self::Listed(rest, first)
            }
            Arrivals::Open(workload) => {
                let mut stream = Stream::new(workload, seed);
                let first = stream.next_request();
                Self::Open(Box::new(stream), first)
            }
            Arrivals::Closed(clients) => {
                let mut dice = Dice::new(seed, "clients");
                let mut due: Vec<_> =
                    (0..clients.clients).map(|_| Time(dice.exponential(clients.think.0.max(0.1)))).collect();
                due.sort_by(|a, b| a.0.total_cmp(&b.0));
                Self::Closed { clients, due: due.into(), dice }
            }
        }
    }

    /// Do requests depend on the answers to earlier ones?
    pub(super) fn waits_for_answers(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    /// When the next request arrives, as far as is known now.
    pub(super) fn next_arrival(&self) -> Option<Time> {
        match self {
            Self::Listed(_, next) | Self::Open(_, next) => next.map(|request| request.arrival),
            Self::Closed { due, .. } => due.front().copied(),
        }
    }

    /// Takes the next request.
    pub(super) fn take(&mut self) -> Option<Request> {
        match self {
            Self::Listed(rest, next) => std::mem::replace(next, rest.next()),
            Self::Open(stream, next) => std::mem::replace(next, stream.next_request()),
            Self::Closed { clients, due, dice } => {
                due.pop_front().map(|arrival| clients.shape.draw(arrival, dice))
            }
        }
    }

    /// Tells the clients that `answers` requests ended at `now`.
    pub(super) fn answered(&mut self, now: Time, answers: usize) {
        if let Self::Closed { clients, due, dice } = self {
            for _ in 0..answers {
                // Not zero: a client whose requests are all refused would ask for ever at one moment.
                let next = now + Seconds(dice.exponential(clients.think.0.max(1e-3)));
                let place = due.partition_point(|other| *other <= next);
                due.insert(place, next);
            }
        }
    }
}
