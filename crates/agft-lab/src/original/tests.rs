use super::*;
use agft::control::Connections;
use agft::gpu::MemoryLevel;
use agft::units::{Millijoules, Watts};

fn pilot() -> OriginalAgft {
    let core = (0..=80).map(|k| Mhz(1410 - 15 * k)).collect();
    let supported = SupportedClocks::new(vec![MemoryLevel { memory: Mhz(1593), core }]).unwrap();
    OriginalAgft::new(&supported, &Config::default())
}

/// Lets it run beside a server that generates 100 tokens per second; gives the moments and clocks of its locks.
fn fly(pilot: &mut OriginalAgft, until: f64, running: f64) -> Vec<(f64, Target)> {
    let mut locks = Vec::new();
    while pilot.due().0 < until {
        let now = pilot.due();
        let itl = agft::metrics::Histogram { sum: now.0, count: 100.0 * now.0, buckets: Vec::new() };
        let signals = Signals {
            running: Some(running),
            waiting: Some(0.0),
            generation_tokens: Some(100.0 * now.0),
            itl: Some(itl),
            ..Signals::default()
        };
        let look = Look {
            now,
            signals,
            power: Watts(200.0),
            core: None,
            memory: None,
            utilization_percent: None,
            energy: Millijoules(0),
            connections: Connections::default(),
        };
        locks.extend(pilot.act(&look).map(|target| (now.0, target)));
    }
    locks
}

#[test]
fn sweeps_from_the_top_in_steps_of_90_after_ten_baseline_windows_one_clock_per_round() {
    let mut pilot = pilot();
    let locks = fly(&mut pilot, 120.0, 4.0);
    let clocks: Vec<u32> =
        locks.iter().filter_map(|(_, target)| target.clocks()).map(|clocks| clocks.core.0).collect();
    assert_eq!(clocks[..5], [1410, 1320, 1230, 1140, 1050]);
    assert_eq!(*pilot.clocks.first().unwrap(), Mhz(210), "the lowest clock is in the list");
    // Ten passes of 0.8 + 0.3 + 0.8 + 2.8 s, then the first state window.
    assert!((47.0..49.0).contains(&locks[0].0), "{:?}", locks[0]);
    let round = locks[1].0 - locks[0].0;
    assert!((4.4..4.6).contains(&round), "{round} s per round");
}

#[test]
fn raw_mean_of_the_baseline_earns_a_little_less_than_nothing() {
    let mut pilot = pilot();
    pilot.baseline = vec![10.0; 10];
    pilot.running = Some(Mhz(1410));
    pilot.take_reward(Some(10.0), false);
    approx::assert_relative_eq!(pilot.arms[&Mhz(1410)].rewards[0], 2.0 * (1.0 - 1.0 / 0.9));
    pilot.take_reward(Some(100.0), false);
    approx::assert_relative_eq!(pilot.arms[&Mhz(1410)].rewards[1], -2.0);
}

#[test]
fn three_bad_rounds_prune_a_clock_and_in_the_lower_half_everything_below() {
    let mut pilot = pilot();
    pilot.baseline = vec![10.0; 10];
    pilot.running = Some(Mhz(600));
    (0..3).for_each(|_| pilot.take_reward(Some(100.0), false));
    assert!(!pilot.is_allowed(Mhz(600)) && !pilot.is_allowed(Mhz(210)) && pilot.is_allowed(Mhz(1410)));
}

#[test]
fn idle_server_is_parked_once_after_three_empty_windows() {
    let mut pilot = pilot();
    pilot.baseline = vec![10.0; 10];
    let locks = fly(&mut pilot, 60.0, 0.0);
    let parked = locks.iter().filter(|(_, target)| target.clocks() == Some(Clocks::core_only(Mhz(210))));
    assert_eq!(parked.count(), 1, "{locks:?}");
}
