//! The chaos run: the real program beside a misbehaving server, driver, disk and operator; invariants seen from outside.
//!
//! Short by default. `scripts/chaos.sh --minutes N` runs it for long; `CHAOS_SEED` and `CHAOS_SECONDS` are what it sets.
//! The same seed asks for the same faults in the same order; what they meet depends on the machine's timing. A failure
//! prints the seed, the invariant that broke, and what was done last.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod faults;
mod invariants;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::time::Duration;

use world::World;

/// The run in CI.
const SHORT: Duration = Duration::from_secs(45);
/// Its seed.
const SEED: u64 = 20_260_921;
/// Faults from one quiet moment to the next.
const FAULTS_PER_SPELL: u32 = 12;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn nothing_breaks_an_invariant() {
    let seed = number("CHAOS_SEED").unwrap_or(SEED);
    let length = number("CHAOS_SECONDS").map_or(SHORT, Duration::from_secs);
    let mut world = World::new(seed);
    let outcome = run(&mut world, length);
    println!("{}", world.report());
    if let Err(broken) = outcome {
        panic!("invariant broken: {broken}\nCHAOS_SEED={seed}\n{}", world.story());
    }
}

fn run(world: &mut World, length: Duration) -> Result<(), String> {
    world.start()?;
    while world.elapsed() < length {
        faults::calm(world);
        for _ in 0..FAULTS_PER_SPELL {
            faults::inflict(world)?;
            world.look()?;
        }
        world.heal()?;
    }
    world.finish()
}
