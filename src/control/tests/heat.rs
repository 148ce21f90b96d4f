//! Protection against heat beside a server.

use super::*;
use crate::park::settings::HotAt;

#[test]
fn hot_gpu_is_parked_under_load_until_it_is_cool() {
    let park = ParkSettings { hot: Some(HotAt { high_c: 85.0, low_c: 75.0 }), ..BESIDE_A_SERVER };
    let mut scene = Scene::new(Settings { idle: Some(park), ..settings() });
    scene.ticks(Server::Busy, 20);
    let served = scene.asked;
    scene.temperature_c = 86.0;
    let outputs = scene.ticks(Server::Busy, 10);
    assert_eq!(scene.asked, Target::Lock(IDLE));
    assert_eq!(events(&outputs).filter(|event| matches!(event, Event::TooHot { .. })).count(), 1);
    scene.temperature_c = 75.0;
    let outputs = scene.ticks(Server::Busy, 3);
    assert!(events(&outputs).any(|event| matches!(event, Event::Woken { .. })));
    assert!(served != Target::Lock(IDLE) && scene.asked != Target::Lock(IDLE));
    // Cool again without work it stays down.
    scene.temperature_c = 86.0;
    scene.ticks(Server::Idle, 2);
    scene.temperature_c = 60.0;
    let outputs = scene.ticks(Server::Idle, 20);
    assert!(events(&outputs).any(|event| matches!(event, Event::Cooled)));
    assert_eq!(scene.asked, Target::Lock(IDLE));
}
