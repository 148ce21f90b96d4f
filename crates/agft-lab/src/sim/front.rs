//! What lies before the engine: connections, the server's work between a request's first byte and its engine,
//! and whether the metrics page answers.

use std::collections::VecDeque;

use super::dice::Dice;
use super::outages;
use super::workload::Request;
use agft::control::Connections;
use agft::units::{Seconds, Time};

/// How requests come in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrontEnd {
    /// From the first byte of a request until the engine has it: HTTP and tokenisation.
    pub delay: Seconds,
    /// Share of the requests that open a connection of their own and close it at their end; the others use one that is
    /// kept open, of which there are as many as were ever in use at once.
    pub fresh_connections: f64,
    /// So much of every 600 s the metrics page is not available, in stretches of 5-60 s; requests are served
    /// all the same.
    pub page_out: Seconds,
}

impl Default for FrontEnd {
    /// The engine has each request at once; each comes over a connection of its own. The page is always
    /// there.
    fn default() -> Self {
        Self { delay: Seconds(0.0), fresh_connections: 1.0, page_out: Seconds(0.0) }
    }
}

/// The front end at work.
#[derive(Debug)]
pub(super) struct Front {
    spec: FrontEnd,
    seed: u64,
    /// Received, not yet with the engine.
    on_way: VecDeque<Request>,
    /// Connections of requests that brought their own.
    fresh_open: u32,
    /// Connections kept open, and how many of them are in use.
    kept_open: u32,
    kept_in_use: u32,
    opened: u64,
    requests: u64,
}

impl Front {
    pub(super) fn new(spec: FrontEnd, seed: u64) -> Self {
        let on_way = VecDeque::new();
        Self { spec, seed, on_way, fresh_open: 0, kept_open: 0, kept_in_use: 0, opened: 0, requests: 0 }
    }

    /// From a request's first byte until the engine has it.
    pub(super) fn delay(&self) -> Seconds {
        self.spec.delay
    }

    /// The first byte of a request is there.
    pub(super) fn receive(&mut self, request: Request) {
        self.requests += 1;
        if self.is_fresh(&request) {
            self.fresh_open += 1;
            self.opened += 1;
        } else {
            self.kept_in_use += 1;
            if self.kept_in_use > self.kept_open {
                self.kept_open += 1;
                self.opened += 1;
            }
        }
        self.on_way.push_back(request);
    }

    /// When the engine has the next of those received.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.on_way.front().map(|request| request.arrival + self.spec.delay)
    }

    /// Hands over the next request that the engine has by now.
    pub(super) fn take_due(&mut self, now: Time) -> Option<Request> {
        self.next_due().filter(|due| *due <= now)?;
        self.on_way.pop_front()
    }

    /// A request was answered or refused.
    pub(super) fn ended(&mut self, request: &Request) {
        let connections = if self.is_fresh(request) { &mut self.fresh_open } else { &mut self.kept_in_use };
        *connections = connections.saturating_sub(1);
    }

    /// Does the metrics page answer?
    pub(super) fn page_answers(&self, now: Time) -> bool {
        !outages::is_out(self.seed, self.spec.page_out, now)
    }

    /// As a watcher of the server's port counts them.
    pub(super) fn connections(&self) -> Connections {
        Connections {
            open: self.fresh_open + self.kept_open,
            opened_total: self.opened,
            requests_total: self.requests,
        }
    }

    /// Decided by the seed and the request, so that it need not be kept with the request.
    fn is_fresh(&self, request: &Request) -> bool {
        let share = self.spec.fresh_connections;
        let seed = self.seed ^ request.arrival.0.to_bits();
        share >= 1.0 || (share > 0.0 && Dice::new(seed, "connection").uniform() < share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(arrival: f64) -> Request {
        Request { arrival: Time(arrival), prompt_tokens: 10, output_tokens: 2, cached_tokens: 0 }
    }

    fn front(fresh_connections: f64) -> Front {
        Front::new(FrontEnd { delay: Seconds(0.5), fresh_connections, ..FrontEnd::default() }, 3)
    }

    fn counts(front: &Front) -> (u32, u64, u64) {
        let Connections { open, opened_total, requests_total } = front.connections();
        (open, opened_total, requests_total)
    }

    #[test]
    fn own_connection_lasts_as_long_as_its_request() {
        let mut front = front(1.0);
        front.receive(request(1.0));
        front.receive(request(2.0));
        assert_eq!(counts(&front), (2, 2, 2));
        front.ended(&request(1.0));
        front.ended(&request(2.0));
        assert_eq!(counts(&front), (0, 2, 2));
    }

    #[test]
    fn kept_connections_are_as_many_as_were_in_use_at_once_and_stay() {
        let mut front = front(0.0);
        for (arrival, ended) in [(1.0, None), (2.0, None), (3.0, Some(1.0)), (4.0, Some(2.0))] {
            if let Some(ended) = ended {
                front.ended(&request(ended));
            }
            front.receive(request(arrival));
        }
        assert_eq!(counts(&front), (2, 2, 4));
        front.ended(&request(3.0));
        front.ended(&request(4.0));
        assert_eq!(counts(&front), (2, 2, 4));
    }

    #[test]
    fn share_of_own_connections_is_the_one_asked_for() {
        let mut front = front(0.3);
        let requests: Vec<Request> = (0..4000).map(|k| request(0.37 * f64::from(k))).collect();
        requests.iter().for_each(|request| front.receive(*request));
        let share = f64::from(front.fresh_open) / 4000.0;
        // Four standard deviations of a share of 4000.
        assert!((share - 0.3).abs() < 4.0 * (0.3 * 0.7 / 4000.0_f64).sqrt(), "{share}");
        requests.iter().for_each(|request| front.ended(request));
        assert_eq!((front.fresh_open, front.kept_in_use), (0, 0));
    }

    #[test]
    fn engine_has_a_request_after_the_delay_and_not_before() {
        let mut front = front(1.0);
        front.receive(request(1.0));
        assert_eq!((front.next_due(), front.take_due(Time(1.4))), (Some(Time(1.5)), None));
        assert_eq!(front.take_due(Time(1.5)), Some(request(1.0)));
        assert_eq!(front.next_due(), None);
    }
}
