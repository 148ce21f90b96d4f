//! What is said over the control socket: one JSON object a line, each way. `docs/control-socket.md` has it in full.

use serde::{Deserialize, Serialize};

use crate::control::Order;
use crate::units::Seconds;
use crate::view::{History, ParkState, State};

/// The longest request, in bytes, with its line end.
pub const MAX_REQUEST: usize = 4096;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The state now.
    Status {},
    /// The state now, and again every so often until the client hangs up.
    Watch {
        /// Seconds from one to the next.
        #[serde(default = "second")]
        every_s: Seconds,
    },
    /// The last ten minutes, one point a second.
    History {},
    /// Driver-default clocks, and nothing learned, until `resume`.
    Pause {},
    /// Go on.
    Resume {},
}

fn second() -> Seconds {
    Seconds(1.0)
}

impl Request {
    /// The order to the loop, if it is one.
    #[must_use]
    pub fn order(self) -> Option<Order> {
        match self {
            Self::Status {} | Self::Watch { .. } | Self::History {} => None,
            Self::Pause {} => Some(Order::Pause),
            Self::Resume {} => Some(Order::Resume),
        }
    }
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// The state; after an order, the state in which it is carried out.
    State {
        /// Always true.
        ok: bool,
        /// The state.
        state: Box<State>,
    },
    /// The same of an `agft park`.
    Park {
        /// Always true.
        ok: bool,
        /// The state.
        park: Box<ParkState>,
    },
    /// The last minutes.
    History {
        /// Always true.
        ok: bool,
        /// The points, oldest first.
        history: History,
    },
    /// It was not done.
    Error {
        /// Always false.
        ok: bool,
        /// Why.
        error: String,
    },
}

impl Answer {
    /// It was not done.
    #[must_use]
    pub fn error(error: impl Into<String>) -> Self {
        Self::Error { ok: false, error: error.into() }
    }

    /// The state.
    #[must_use]
    pub fn state(state: &State) -> Self {
        Self::State { ok: true, state: Box::new(state.clone()) }
    }

    /// The state of an `agft park`.
    #[must_use]
    pub fn park(state: &ParkState) -> Self {
        Self::Park { ok: true, park: Box::new(state.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../docs/control-socket.md");

    #[test]
    fn every_documented_request_is_understood_and_every_request_is_documented() {
        let lines = DOCUMENT.lines().filter(|line| line.starts_with("{\"cmd\""));
        let requests: Vec<Request> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        let all = [
            Request::Status {},
            Request::Watch { every_s: Seconds(2.0) },
            Request::History {},
            Request::Pause {},
            Request::Resume {},
        ];
        assert_eq!(requests, all);
    }

    #[test]
    fn every_key_of_the_state_is_documented() {
        let state = serde_json::to_value(crate::view::testing::state()).unwrap();
        let park = serde_json::to_value(crate::view::testing::park_state()).unwrap();
        let (_, documented) = DOCUMENT.split_once("## The state of agft park").unwrap();
        for (state, document) in [
            (&state, DOCUMENT),
            (&park, documented),
            (&park["gpus"][0], documented),
            (&park["connections"], documented),
        ] {
            for key in state.as_object().unwrap().keys() {
                assert!(document.contains(&format!("`{key}`")), "{key}");
            }
        }
    }

    #[test]
    fn unknown_words_and_keys_are_refused() {
        for wrong in [r#"{"cmd":"reboot"}"#, r#"{"cmd":"pause","gpu":1}"#, "{}", "[]", r#""pause""#] {
            assert!(serde_json::from_str::<Request>(wrong).is_err(), "{wrong}");
        }
        let watch: Request = serde_json::from_str(r#"{"cmd":"watch"}"#).unwrap();
        assert_eq!(watch, Request::Watch { every_s: Seconds(1.0) });
    }
}
