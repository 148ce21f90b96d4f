//! TCP states, and what a change between two of them means for the count of open connections. Pure.

/// The kernel's socket states, by the kernel's numbers (`include/net/tcp_states.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum TcpState {
    /// Data may flow both ways.
    Established = 1,
    /// A client that waits for the server's answer.
    SynSent,
    /// A server that waits for the last part of the handshake.
    SynRecv,
    /// This side has ended first; not yet acknowledged.
    FinWait1,
    /// This side has ended first; acknowledged.
    FinWait2,
    /// Both sides have ended; late packets are waited for.
    TimeWait,
    Close,
    /// The other side has ended first.
    CloseWait,
    /// Both sides have ended, the other first; not yet acknowledged.
    LastAck,
    /// Waits for connections.
    Listen,
    /// Both sides have ended at once.
    Closing,
    /// A handshake kept as a request, without a socket of its own.
    NewSynRecv,
}

impl TcpState {
    /// All of them, in the kernel's order.
    pub(crate) const ALL: [Self; 12] = [
        Self::Established,
        Self::SynSent,
        Self::SynRecv,
        Self::FinWait1,
        Self::FinWait2,
        Self::TimeWait,
        Self::Close,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::Closing,
        Self::NewSynRecv,
    ];

    /// The state with the kernel's number.
    pub(crate) fn from_kernel(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Is a connection in this state counted as open at its server's side?
    ///
    /// [`Established`](Self::Established) alone. A handshake in progress brings no work (and a SYN flood many of them), and
    /// the kernel tells of it before the socket knows its addresses. A connection whose client has ended is closed even
    /// if the server keeps its half: a server that leaks such sockets would otherwise look busy for ever.
    #[must_use]
    pub(crate) fn is_open(self) -> bool {
        self == Self::Established
    }
}

/// What a change of state does to the number of open connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    Opened,
    Closed,
    Nothing,
}

/// What the change of a server-side socket from `old` to `new` means.
pub(crate) fn effect(old: TcpState, new: TcpState) -> Effect {
    match (old.is_open(), new.is_open()) {
        (false, true) => Effect::Opened,
        (true, false) => Effect::Closed,
        (false, false) | (true, true) => Effect::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: old state, columns: new state, both in the kernel's order.
    const TABLE: [&str; 12] = [
        ".-----------", // ESTABLISHED
        "+...........", // SYN_SENT
        "+...........", // SYN_RECV
        "+...........", // FIN_WAIT1
        "+...........", // FIN_WAIT2
        "+...........", // TIME_WAIT
        "+...........", // CLOSE
        "+...........", // CLOSE_WAIT
        "+...........", // LAST_ACK
        "+...........", // LISTEN
        "+...........", // CLOSING
        "+...........", // NEW_SYN_RECV
    ];

    #[test]
    fn every_transition_has_the_effect_of_the_table() {
        for (old, row) in TcpState::ALL.into_iter().zip(TABLE) {
            for (new, cell) in TcpState::ALL.into_iter().zip(row.chars()) {
                let expected = match cell {
                    '+' => Effect::Opened,
                    '-' => Effect::Closed,
                    _ => Effect::Nothing,
                };
                assert_eq!(effect(old, new), expected, "{old:?} -> {new:?}");
            }
        }
    }

    /// The rule of memscaler, which counts handshakes (of either side) as open.
    fn memscaler(old: TcpState, new: TcpState) -> i32 {
        use TcpState::{Established, Listen, NewSynRecv, SynRecv, SynSent};
        let open = |state| matches!(state, Established | SynSent | SynRecv | NewSynRecv);
        match (open(old), open(new)) {
            (false, true) => 1,
            (true, false) if new != Listen => -1,
            _ => 0,
        }
    }

    fn ours(old: TcpState, new: TcpState) -> i32 {
        match effect(old, new) {
            Effect::Opened => 1,
            Effect::Closed => -1,
            Effect::Nothing => 0,
        }
    }

    #[test]
    fn memscaler_counts_the_same_wherever_no_handshake_is_involved() {
        use TcpState::{Established, Listen, NewSynRecv, SynRecv, SynSent};
        let handshake = |state| matches!(state, SynSent | SynRecv | NewSynRecv);
        for old in TcpState::ALL {
            for new in TcpState::ALL {
                // An established socket does not become a listener without CLOSE in between.
                if !handshake(old) && !handshake(new) && (old, new) != (Established, Listen) {
                    assert_eq!(ours(old, new), memscaler(old, new), "{old:?} -> {new:?}");
                }
            }
        }
    }

    #[test]
    fn a_whole_connection_counts_once_up_and_once_down_by_either_rule() {
        use TcpState::{
            Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv, TimeWait,
        };
        let paths: [&[TcpState]; 5] = [
            &[Listen, SynRecv, Established, CloseWait, LastAck, Close],
            &[Listen, SynRecv, Established, FinWait1, FinWait2, TimeWait, Close],
            &[Listen, SynRecv, Established, FinWait1, Closing, TimeWait, Close],
            &[Listen, SynRecv, Established, Close],
            &[Listen, SynRecv, Close],
        ];
        for path in paths {
            for count in [ours, memscaler] {
                let steps: Vec<i32> = path.windows(2).map(|pair| count(pair[0], pair[1])).collect();
                assert_eq!(steps.iter().sum::<i32>(), 0, "{path:?}: {steps:?}");
                let opened = steps.iter().filter(|step| **step > 0).count();
                assert!(opened >= usize::from(path.contains(&Established)), "{path:?}");
            }
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        for state in TcpState::ALL {
            assert_eq!(TcpState::from_kernel(state as u8), Some(state));
        }
        for number in [0, 13, 255] {
            assert_eq!(TcpState::from_kernel(number), None);
        }
    }
}
