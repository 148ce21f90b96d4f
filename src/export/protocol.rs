//! What is said over the control socket: one JSON object a line, each way. `docs/control-socket.md` has it in full.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub(crate) use agft_common::instances::MAX_REQUEST;

use crate::control::Order;
use crate::park::instances::{GpuName, Instance};
use crate::units::Seconds;
use crate::view::{History, HostState};

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The state now.
    Status {
        /// Of this server alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
    },
    /// The state now, and again every so often until the client hangs up.
    Watch {
        /// Seconds from one to the next.
        #[serde(default = "second")]
        every_s: Seconds,
        /// Of this server alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
    },
    /// The last ten minutes of a server, one point a second.
    History {
        /// Of this one; it may be left out where there is one only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
    },
    /// Driver-default clocks, and nothing learned, until `resume`.
    Pause {
        /// For this server alone; else for every GPU.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
    },
    /// Go on.
    Resume {
        /// For this server alone; else for every GPU.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
    },
    /// What instances do on the GPUs of this machine, in the place of what this connection said before. It holds until the
    /// connection ends.
    Instances {
        /// All of them.
        instances: Vec<Instance>,
    },
}

/// An order, and whom it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directed {
    /// The server; `None` is every group of GPUs, those without a server too.
    pub server: Option<String>,
    /// What is to be done.
    pub order: Order,
}

fn second() -> Seconds {
    Seconds(1.0)
}

impl Request {
    /// The request for an order.
    pub fn order(Directed { server, order }: Directed) -> Self {
        match order {
            Order::Pause => Self::Pause { server },
            Order::Resume => Self::Resume { server },
        }
    }
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    /// The state; after an order, the state in which it is carried out.
    State {
        /// Always true.
        ok: bool,
        state: Box<HostState>,
    },
    /// The last minutes.
    History {
        /// Always true.
        ok: bool,
        /// The points, oldest first.
        history: History,
    },
    /// What was told of instances is taken.
    Instances {
        /// Always true.
        ok: bool,
        /// The GPUs that were meant.
        known: BTreeSet<GpuName>,
        /// Names that no GPU of this machine has.
        unknown: BTreeSet<String>,
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
    pub(crate) fn error(error: impl Into<String>) -> Self {
        Self::Error { ok: false, error: error.into() }
    }

    pub(crate) fn state(state: HostState) -> Self {
        Self::State { ok: true, state: Box::new(state) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::park::instances::{InstanceState, Selector};

    const DOCUMENT: &str = include_str!("../../docs/control-socket.md");

    #[test]
    fn every_documented_request_is_understood_and_every_request_is_documented() {
        let lines = DOCUMENT.lines().filter(|line| line.starts_with("{\"cmd\""));
        let requests: Vec<Request> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        let all = |server: Option<&str>| {
            let server = || server.map(str::to_owned);
            [
                Request::Status { server: server() },
                Request::Watch { every_s: Seconds(2.0), server: server() },
                Request::History { server: server() },
                Request::Pause { server: server() },
                Request::Resume { server: server() },
            ]
        };
        // Each, and each once more for a server.
        let wanted = all(None).into_iter().zip(all(Some("chat"))).flat_map(<[Request; 2]>::from);
        let (gpus, state) = (vec![Selector::Index(0)], InstanceState::Working);
        let instances = vec![Instance { name: "codestral".into(), gpus, state }];
        let wanted = wanted.chain([Request::Instances { instances }]);
        assert_eq!(requests, wanted.collect::<Vec<_>>());
    }

    #[test]
    fn every_key_of_the_state_is_documented() {
        let host = serde_json::to_value(crate::view::testing::host()).unwrap();
        let (document, documented) = DOCUMENT.split_once("## GPUs without a server").unwrap();
        let (document, of_server) = document.split_once("## A server").unwrap();
        let park = &host["park"];
        for (state, document) in [
            (&host, document),
            (&host["servers"][0], of_server),
            (park, documented),
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
        assert_eq!(watch, Request::Watch { every_s: Seconds(1.0), server: None });
    }
}
