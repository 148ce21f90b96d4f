//! Two servers on the same GPUs.

use super::*;
use crate::control::Sharer;

/// A scene whose own server shares the GPU with another.
struct Shared {
    scene: Scene,
    tokens: f64,
    itl_sum: f64,
    /// Time between tokens of the other.
    itl: f64,
}

fn limits(tpot: f64) -> Limits {
    Limits { ttft: Seconds(10.0), tpot: Seconds(tpot), statistic: Statistic::Mean, window: Seconds(30.0) }
}

impl Shared {
    /// With limits on TPOT of the one and the other.
    fn new(tpot: [f64; 2]) -> Self {
        let tightest = limits(tpot[0].min(tpot[1]));
        let mut scene = Scene::new(Settings { limits: Some(tightest), ..settings() });
        let sharers = [("chat", tpot[0]), ("code", tpot[1])];
        let sharers = sharers.map(|(name, tpot)| Sharer::new(name.into(), Some(limits(tpot))));
        scene.controller = scene.controller.with_sharers(sharers.into());
        Self { scene, tokens: 0.0, itl_sum: 0.0, itl: 0.02 }
    }

    fn tick(&mut self, one: Server, other: Server) -> Output {
        let scene = &mut self.scene;
        let works = if one == Server::Idle { other } else { one };
        let gpu = scene.gpu(works, TICK);
        scene.now += TICK;
        if one == Server::Busy {
            scene.tokens += 300.0;
            scene.itl_sum += 300.0 * scene.itl;
        }
        let first = scene.page(one == Server::Busy);
        let ours = (scene.tokens, scene.itl_sum);
        if other == Server::Busy {
            self.tokens += 300.0;
            self.itl_sum += 300.0 * self.itl;
        }
        (scene.tokens, scene.itl_sum) = (self.tokens, self.itl_sum);
        let second = scene.page(other == Server::Busy);
        (scene.tokens, scene.itl_sum) = ours;
        let scrape = match (one, other) {
            (Server::Down, _) | (_, Server::Down) => Scrape::Failed("code: connection refused".into()),
            _ => Scrape::Pages(vec![first, second]),
        };
        scene.step(gpu, scrape)
    }

    fn ticks(&mut self, one: Server, other: Server, count: usize) -> Vec<Output> {
        (0..count).map(|_| self.tick(one, other)).collect()
    }
}

#[test]
fn gpu_is_parked_only_while_neither_server_works() {
    for (one, other) in [(Server::Busy, Server::Idle), (Server::Idle, Server::Busy)] {
        let mut shared = Shared::new([1.0, 1.0]);
        shared.ticks(one, other, 60);
        assert!(!shared.scene.commands.contains(&Target::Lock(IDLE)));
        shared.ticks(Server::Idle, Server::Idle, 10);
        assert_eq!(shared.scene.asked, Target::Lock(IDLE));
        shared.tick(one, other);
        assert_ne!(shared.scene.asked, Target::Lock(IDLE));
        shared.ticks(one, other, 30);
        assert_ne!(shared.scene.asked, Target::Lock(IDLE));
    }
}

#[test]
fn broken_limit_of_either_server_puts_the_clocks_up() {
    for slow in 0..2 {
        // The mean over both would keep either limit.
        let mut shared = Shared::new([0.05, 0.05]);
        shared.ticks(Server::Busy, Server::Busy, 15);
        assert_ne!(shared.scene.asked, Target::Default);
        let (fast, tight) = (0.001, 0.06);
        (shared.scene.itl, shared.itl) = if slow == 0 { (tight, fast) } else { (fast, tight) };
        let outputs = shared.ticks(Server::Busy, Server::Busy, 80);
        let broken = events(&outputs).find_map(|event| match event {
            Event::LimitBroken { violation, .. } => Some(*violation),
            _ => None,
        });
        assert_eq!(broken.map(|violation| violation.allowed), Some(Seconds(0.05)), "server {slow}");
        assert!(shared.scene.controller.space().floor().is_some());
    }
}

#[test]
fn each_server_is_held_to_its_own_limit_and_to_no_other() {
    let mut shared = Shared::new([0.05, 0.5]);
    shared.itl = 0.4;
    let outputs = shared.ticks(Server::Busy, Server::Busy, 60);
    assert!(!events(&outputs).any(|event| matches!(event, Event::LimitBroken { .. })));
    let mut swapped = Shared::new([0.5, 0.05]);
    swapped.itl = 0.4;
    let outputs = swapped.ticks(Server::Busy, Server::Busy, 60);
    assert!(events(&outputs).any(|event| matches!(event, Event::LimitBroken { .. })));
    assert_eq!(swapped.scene.controller.mode(), Mode::SloGuard);
}

#[test]
fn page_that_fails_for_one_is_an_outage_of_both_and_a_restart_of_one_voids_the_window() {
    let mut shared = Shared::new([1.0, 1.0]);
    shared.ticks(Server::Busy, Server::Busy, 20);
    (shared.tokens, shared.itl_sum) = (0.0, 0.0);
    let output = shared.tick(Server::Busy, Server::Busy);
    let why = output.events.iter().find_map(|event| match event {
        Event::Discontinuity(why) => Some(why.as_str()),
        _ => None,
    });
    assert!(why.is_some_and(|why| why.starts_with("code: ")), "{why:?}");
    let rounds = shared.scene.controller.learned().rounds;
    shared.ticks(Server::Busy, Server::Busy, 10);
    assert_eq!(shared.scene.controller.learned().rounds, rounds + 10);
    shared.ticks(Server::Busy, Server::Down, 5);
    assert_eq!((shared.scene.controller.mode(), shared.scene.asked), (Mode::Outage, Target::Default));
}

#[test]
fn state_with_several_servers_comes_back_from_its_bytes() {
    use crate::store::steps::{pack, unpack};
    let mut shared = Shared::new([0.05, 0.5]);
    shared.ticks(Server::Busy, Server::Busy, 20);
    let bytes = pack(&shared.scene.controller).unwrap();
    let again: Controller = unpack(&bytes).unwrap();
    assert_eq!(pack(&again).unwrap(), bytes);
}
