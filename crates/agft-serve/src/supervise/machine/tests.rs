use super::*;
use proptest::prelude::*;

fn restart(policy: RestartPolicy) -> Restart {
    Restart {
        policy,
        first: Duration::from_secs(1),
        longest: Duration::from_secs(60),
        crash_loop_after: 8,
        stable_after: Duration::from_secs(300),
    }
}

fn plan(policy: RestartPolicy) -> Plan {
    Plan { enabled: true, restart: restart(policy), ready_within: None, hung_after: None, idle_after: None }
}

#[derive(Debug, Clone)]
enum Op {
    Event(Event),
    Replace(Plan),
    Exit { success: bool },
    Gone,
    Wait(Duration),
    StartsFail(bool),
}

fn plans() -> impl Strategy<Value = Plan> {
    let seconds = |most: u64| (0..most).prop_map(Duration::from_secs);
    let policy =
        prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never),];
    let restart = (policy, seconds(5), seconds(100), 0..6_u32, seconds(30)).prop_map(
        |(policy, first, longest, crash_loop_after, stable_after)| Restart {
            policy,
            first,
            longest,
            crash_loop_after,
            stable_after,
        },
    );
    let sometimes = |most| proptest::option::of(seconds(most));
    (any::<bool>(), restart, sometimes(20), sometimes(30), sometimes(40)).prop_map(
        |(enabled, restart, ready_within, hung_after, idle_after)| Plan {
            enabled,
            restart,
            ready_within,
            hung_after,
            idle_after,
        },
    )
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let event = prop_oneof![
        Just(Event::Enable),
        Just(Event::Disable),
        Just(Event::Restart),
        Just(Event::Answered),
        Just(Event::Tick),
        Just(Event::Started),
        Just(Event::NotStarted),
        any::<bool>().prop_map(Event::Connected),
    ];
    let op = prop_oneof![
        6 => event.prop_map(Op::Event),
        1 => plans().prop_map(Op::Replace),
        3 => any::<bool>().prop_map(|success| Op::Exit { success }),
        4 => Just(Op::Gone),
        5 => (0..50_u64).prop_map(|seconds| Op::Wait(Duration::from_secs(seconds))),
        1 => any::<bool>().prop_map(Op::StartsFail),
    ];
    proptest::collection::vec(op, 0..80)
}

/// What a shell does, without processes: it holds the machine to what a shell relies on.
struct Shell {
    machine: Machine,
    now: Instant,
    starts_fail: bool,
    /// The process that runs, and whether it is being stopped.
    process: Option<bool>,
    connected: bool,
    enabled: bool,
    on_demand: bool,
    retired: bool,
    started: u32,
    stopped: u32,
}

impl Shell {
    fn new(plan: Plan) -> Self {
        let (machine, action) = Machine::new(plan);
        let mut shell = Self {
            machine,
            now: Instant::now(),
            starts_fail: false,
            process: None,
            connected: false,
            enabled: plan.enabled,
            on_demand: plan.idle_after.is_some(),
            retired: false,
            started: 0,
            stopped: 0,
        };
        shell.act(action);
        shell
    }

    fn act(&mut self, action: Option<Action>) {
        match action {
            None => {}
            Some(Action::Start) => {
                assert_eq!(self.process, None, "two processes at once");
                assert!(self.enabled && !self.retired, "started though it is not to run");
                assert!(!self.on_demand || self.connected, "started though nobody wants it");
                let event = if self.starts_fail {
                    Event::NotStarted
                } else {
                    self.process = Some(false);
                    self.started += 1;
                    Event::Started
                };
                self.step(event);
            }
            Some(Action::Stop(_)) => {
                assert_eq!(self.process, Some(false), "stopped twice, or nothing stopped");
                self.process = Some(true);
                self.stopped += 1;
            }
        }
        let phase = self.machine.phase();
        let stopping = matches!(phase, Phase::Stopping(_));
        let running = matches!(phase, Phase::Starting | Phase::Ready);
        assert_eq!(self.process, (stopping || running).then_some(stopping), "{phase:?}");
        assert!(self.enabled || !running, "runs though it is not to");
        assert_eq!(self.machine.enabled(), self.enabled);
    }

    fn step(&mut self, event: Event) {
        let action = self.machine.step(self.now, event);
        self.act(action);
    }

    fn apply(&mut self, op: Op) {
        match op {
            // Only a shell that was told to start tells the outcome.
            Op::Event(Event::Started | Event::NotStarted) => {}
            Op::Event(event) => {
                match event {
                    Event::Enable => self.enabled = true,
                    Event::Disable => self.enabled = false,
                    Event::Connected(connected) => self.connected = connected,
                    _ => {}
                }
                self.step(event);
            }
            Op::Replace(plan) => {
                (self.enabled, self.on_demand) = (plan.enabled, plan.idle_after.is_some());
                let action = self.machine.replace(plan);
                self.act(action);
            }
            Op::Exit { success } if self.process == Some(false) => {
                self.step(Event::Exited { success });
                assert_eq!(self.process, Some(true), "what is left of a process is to be stopped");
            }
            Op::Gone if self.process == Some(true) => {
                self.process = None;
                self.step(Event::Gone);
            }
            Op::Exit { .. } | Op::Gone => {}
            Op::Wait(time) => {
                self.now += time;
                if self.machine.deadline().is_some_and(|deadline| deadline <= self.now) {
                    let before = self.machine.phase();
                    self.step(Event::Tick);
                    assert_ne!(
                        self.machine.phase(),
                        before,
                        "a deadline that changes nothing comes again at once"
                    );
                }
            }
            Op::StartsFail(fail) => self.starts_fail = fail,
        }
    }
}

proptest! {
    /// Never two processes; none where it is disabled or nobody wants it; each stopped exactly once.
    #[test]
    fn whatever_happens_the_shell_can_carry_it_out(first in plans(), ops in ops()) {
        let mut shell = Shell::new(first);
        for op in ops {
            shell.apply(op);
        }
        shell.retired = true;
        shell.step(Event::Retire);
        for event in [Event::Restart, Event::Enable, Event::Connected(true)] {
            let action = shell.machine.step(shell.now, event);
            prop_assert_eq!(action, None);
        }
        prop_assert_eq!(shell.machine.replace(first), None);
        if shell.process.is_some() {
            prop_assert!(!shell.machine.finished());
            shell.process = None;
            let action = shell.machine.step(shell.now, Event::Gone);
            prop_assert_eq!(action, None);
        }
        prop_assert!(shell.machine.finished());
        prop_assert_eq!(shell.started, shell.stopped);
    }

    /// Whatever happened before, one that is to run does so once it was left alone for long enough.
    #[test]
    fn one_that_is_to_run_runs_in_the_end(first in plans(), ops in ops(), last in plans()) {
        let mut shell = Shell::new(first);
        ops.into_iter().for_each(|op| shell.apply(op));
        shell.apply(Op::StartsFail(false));
        let always = Restart { policy: RestartPolicy::Always, ..last.restart };
        let last = Plan { enabled: true, restart: always, ..last };
        shell.apply(Op::Replace(last));
        shell.apply(Op::Event(Event::Connected(true)));
        shell.apply(Op::Gone);
        shell.apply(Op::Event(Event::Answered));
        prop_assert_eq!(shell.machine.phase(), Phase::Ready);
        // And again after it failed.
        shell.apply(Op::Exit { success: false });
        shell.apply(Op::Gone);
        shell.apply(Op::Wait(last.restart.longest.max(SHORTEST_PAUSE)));
        shell.apply(Op::Event(Event::Answered));
        prop_assert_eq!(shell.machine.phase(), Phase::Ready);
    }
}

/// The pause after each of so many failures, of processes that ran so long each.
fn pauses(failures: usize, ran: Duration) -> Vec<(u64, bool)> {
    let mut shell = Shell::new(plan(RestartPolicy::Always));
    (0..failures)
        .map(|_| {
            shell.now += ran;
            shell.apply(Op::Exit { success: false });
            shell.apply(Op::Gone);
            let Phase::Paused { until, crash_loop } = shell.machine.phase() else { panic!("no pause") };
            let pause = until - shell.now;
            shell.apply(Op::Wait(pause));
            (pause.as_secs(), crash_loop)
        })
        .collect()
}

#[test]
fn the_pause_doubles_up_to_the_longest() {
    let short: Vec<_> = [1, 2, 4, 8, 16, 32, 60].map(|pause| (pause, false)).into();
    assert_eq!(pauses(9, Duration::from_secs(1)), [short, vec![(60, true), (60, true)]].concat());
    assert_eq!(pauses(3, Duration::from_secs(300)), [(1, false); 3], "a long run ends the row");
    assert!(pauses(100, Duration::ZERO).iter().skip(7).all(|pause| *pause == (60, true)));
}

#[test]
fn the_policy_and_the_status_tell_whether_it_starts_again() {
    let after = |policy, success| {
        let mut shell = Shell::new(plan(policy));
        shell.apply(Op::Exit { success });
        shell.apply(Op::Gone);
        shell.machine.phase() == Phase::Ended
    };
    use RestartPolicy::{Always, Never, OnFailure};
    let ended = [Always, OnFailure, Never].map(|policy| (after(policy, true), after(policy, false)));
    assert_eq!(ended, [(false, false), (true, false), (true, true)]);
}

#[test]
fn one_on_demand_runs_from_the_first_client_until_the_last_is_gone_for_long_enough() {
    let idle_after = Some(Duration::from_secs(10));
    let mut shell = Shell::new(Plan { idle_after, ..plan(RestartPolicy::Never) });
    let wait = |seconds| Op::Wait(Duration::from_secs(seconds));
    assert_eq!(shell.machine.phase(), Phase::Idle);
    shell.apply(Op::Event(Event::Connected(true)));
    shell.apply(wait(1000));
    shell.apply(Op::Event(Event::Connected(false)));
    shell.apply(wait(9));
    assert_eq!(shell.machine.phase(), Phase::Ready);
    shell.apply(wait(1));
    assert_eq!(shell.machine.phase(), Phase::Stopping(Then::Idle));
    // Somebody comes while it is being stopped.
    shell.apply(Op::Event(Event::Connected(true)));
    shell.apply(Op::Gone);
    assert_eq!(shell.machine.phase(), Phase::Ready);
    // A failure is made up for while somebody waits, and not where nobody does, whatever the policy.
    shell.apply(Op::Exit { success: false });
    shell.apply(Op::Gone);
    shell.apply(wait(1));
    assert_eq!((shell.machine.phase(), shell.machine.restarts()), (Phase::Ready, 1));
    shell.apply(Op::Event(Event::Connected(false)));
    shell.apply(Op::Exit { success: false });
    shell.apply(Op::Gone);
    shell.apply(wait(2));
    assert_eq!(shell.machine.phase(), Phase::Idle);
}

#[test]
fn a_ready_instance_that_leaves_its_probe_unanswered_fails() {
    let second = Duration::from_secs(1);
    let begin = Instant::now();
    let mut plan = plan(RestartPolicy::OnFailure);
    (plan.ready_within, plan.hung_after) = (Some(60 * second), Some(10 * second));
    let (mut machine, _) = Machine::new(plan);
    machine.step(begin, Event::Started);
    machine.step(begin, Event::Answered);
    machine.step(begin + 9 * second, Event::Answered);
    assert_eq!(machine.deadline(), Some(begin + 19 * second), "counted from the last answer");
    assert_eq!(machine.step(begin + 18 * second, Event::Tick), None);
    // Whoever is connected to it waits in vain.
    machine.step(begin + 18 * second, Event::Connected(true));
    assert_eq!(machine.step(begin + 19 * second, Event::Tick), Some(Action::Stop(Why::Hung)));
    machine.step(begin + 20 * second, Event::Gone);
    assert_eq!(machine.phase(), Phase::Paused { until: begin + 21 * second, crash_loop: false });
    assert_eq!(machine.failures(), 1);
}
