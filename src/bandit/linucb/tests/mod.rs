//! The policy as a whole.

mod choice;
mod phases;
mod pruning;
mod refinement;
mod regret;

use super::*;
use crate::bandit::ActionSpace;
use crate::bandit::space::SpaceSettings;
use crate::gpu::{MemoryLevel, SupportedClocks};
use crate::units::{Mhz, Seconds};

const CONTEXT: [f64; 7] = [0.0; 7];
/// Step of the spaces of these tests, and of the first sweep over them.
const STEP: u32 = 100;

fn core(mhz: u32) -> Clocks {
    Clocks::core_only(Mhz(mhz))
}

fn pair(core: u32, memory: u32) -> Clocks {
    Clocks { core: Mhz(core), memory: Some(Mhz(memory)) }
}

fn space_of(cores: impl Iterator<Item = u32>, memory: &[u32]) -> ActionSpace {
    let cores: Vec<Mhz> = cores.map(Mhz).collect();
    let level = |memory: u32| MemoryLevel { memory: Mhz(memory), core: cores.clone() };
    let levels =
        if memory.is_empty() { vec![level(1593)] } else { memory.iter().map(|m| level(*m)).collect() };
    let settings = SpaceSettings {
        min_core: Mhz(0),
        step: Mhz(15),
        memory: memory.iter().copied().map(Mhz).collect(),
        retry_after: Seconds(600.0),
    };
    ActionSpace::new(&SupportedClocks::new(levels).unwrap(), &settings)
}

/// 1400, 1300 ... 200 MHz.
fn space() -> ActionSpace {
    space_of((2..=14).map(|k| STEP * k), &[])
}

fn settings() -> LinUcbSettings {
    LinUcbSettings {
        initial_alpha: 1.0,
        dwell: Seconds(0.0),
        coarse_step_mhz: Mhz(STEP),
        ..LinUcbSettings::default()
    }
}

fn unpruned() -> LinUcbSettings {
    LinUcbSettings { enable_action_pruning: false, enable_extreme_pruning: false, ..settings() }
}

fn choose(policy: &mut LinUcb, space: &ActionSpace, now: f64) -> Choice {
    policy.choose(View { now: Time(now), context: &CONTEXT, space })
}

/// Lets the policy play `rounds` rounds against a reward per clock; returns what it chose.
fn play(
    policy: &mut LinUcb,
    space: &ActionSpace,
    rounds: usize,
    mut reward: impl FnMut(Clocks) -> f64,
) -> Vec<Choice> {
    let mut choices = Vec::new();
    for _ in 0..rounds {
        let choice = choose(policy, space, 0.0);
        let clocks = choice.target.clocks().unwrap();
        policy.learn(clocks, &CONTEXT, reward(clocks)).unwrap();
        choices.push(choice);
    }
    choices
}

/// Teaches `lessons` lessons at every clock.
fn teach(policy: &mut LinUcb, space: &ActionSpace, lessons: usize, reward: impl Fn(Clocks) -> f64) {
    for _ in 0..lessons {
        for clocks in space.arms() {
            policy.learn(*clocks, &CONTEXT, reward(*clocks)).unwrap();
        }
    }
}

/// A bowl of log EDP with its bottom at `best`; 0 there, -0.36 at 300 MHz away.
fn bowl(best: u32) -> impl Fn(Clocks) -> f64 {
    move |clocks| -4.0 * ((clocks.core.as_f64() - f64::from(best)) / 1000.0).powi(2)
}

/// Seeded random numbers (splitmix64): equal seeds repeat a test.
struct Dice(u64);

impl Dice {
    /// Uniform in [0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal (Box-Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

fn bytes(policy: &LinUcb) -> Vec<u8> {
    bincode::serde::encode_to_vec(policy.durable(), bincode::config::standard()).unwrap()
}

/// The policy as the next run finds it.
fn restarted(policy: &LinUcb) -> LinUcb {
    let (back, _): (Durable, usize) =
        bincode::serde::decode_from_slice(&bytes(policy), bincode::config::standard()).unwrap();
    assert!(back.is_sound());
    let back = LinUcb::from(back);
    assert_eq!(bytes(&back), bytes(policy));
    back
}
