use super::*;
use crate::gpu::MemoryLevel;

fn clocks(memory: &[u32]) -> SupportedClocks {
    let level = |memory: &u32| MemoryLevel { memory: Mhz(*memory), core: vec![Mhz(2100), Mhz(210)] };
    SupportedClocks::new(memory.iter().map(level).collect()).unwrap()
}

const TOP: Running = Running { core: Some(Mhz(2100)), memory: Some(Mhz(8001)) };

fn gddr(book: LeverBook) -> Levers {
    Levers::new(Lever::of(&clocks(&[8001, 405]), Mhz(210), Some(Mhz(405))), book, TOP)
}

/// A board: power under each lock, and how fast its clocks come back.
struct Board {
    locked: Option<Clocks>,
    changed: f64,
    back: f64,
    watts: fn(Option<Clocks>) -> f64,
}

impl Board {
    fn running(&self, now: f64) -> Running {
        match self.locked {
            None if now - self.changed >= self.back => TOP,
            None => Running { core: Some(Mhz(210)), memory: Some(Mhz(405)) },
            Some(clocks) => Running { core: Some(clocks.core), memory: clocks.memory },
        }
    }

    /// Parked from 0 on, looked at ten times a second; says when the trial was over.
    fn park(&mut self, levers: &mut Levers, until: f64) -> Option<f64> {
        self.locked = levers.best(None).map(|lever| lever.clocks);
        let mut tried = false;
        let mut now = 0.0;
        while now < until {
            let start = now;
            now += 0.1;
            let energy = Joules(0.1 * (self.watts)(self.locked));
            let stretch = Stretch { start: Time(start), end: Time(now), now: Time(now), energy };
            match levers.on_parked(Time(0.0), &stretch, self.running(now), Some(Watts(300.0))) {
                Some(Order::Lock(clocks)) => (self.locked, self.changed) = (Some(clocks), now),
                Some(Order::Release) => (self.locked, self.changed) = (None, now),
                None => {}
            }
            if tried && !levers.is_trying() {
                return Some(now);
            }
            tried |= levers.is_trying();
        }
        None
    }
}

fn watts(locked: Option<Clocks>) -> f64 {
    match locked {
        None => 100.0,
        Some(Clocks { core: Mhz(210), memory: None }) => 70.0,
        Some(Clocks { core: Mhz(210), memory: Some(_) }) => 40.0,
        Some(_) => 60.0,
    }
}

#[test]
fn one_long_gap_measures_every_lever_and_takes_the_best() {
    let mut levers = gddr(LeverBook::default());
    let mut board = Board { locked: None, changed: 0.0, back: 0.05, watts };
    let over = board.park(&mut levers, 120.0).expect("an end");
    // Four levels of 6 s, and three ways back.
    assert!(over > TRIAL_AFTER.0 + 24.0 && over < TRIAL_AFTER.0 + 30.0, "{over}");
    let saving = |kind| levers.book().saving(kind).unwrap().0;
    for (kind, saved) in [(LeverKind::Core, 30.0), (LeverKind::Memory, 40.0), (LeverKind::Both, 60.0)] {
        approx::assert_relative_eq!(saving(kind), saved, max_relative = 1e-9);
        let wake = levers.book().levers[&kind].wake_s.unwrap();
        assert!((wake - 0.1).abs() < 1e-6, "seen at the first look: {wake}");
    }
    assert_eq!(board.locked, Some(Clocks { core: Mhz(210), memory: Some(Mhz(405)) }));
    assert!(levers.book().is_sound());
}

#[test]
fn what_a_spell_leaves_unmeasured_the_next_one_measures() {
    let mut levers = gddr(LeverBook::default());
    let mut board = Board { locked: None, changed: 0.0, back: 0.05, watts };
    let mut spells = 0;
    while levers.wanted().is_some() {
        board.park(&mut levers, TRIAL_AFTER.0 + 3.5);
        levers.spell_over(Seconds(5.0));
        spells += 1;
        assert!(spells <= 12);
    }
    // Each shows 2.5 s of the 5 s that a level takes.
    assert!(spells >= 8, "{spells}");
    approx::assert_relative_eq!(levers.book().saving(LeverKind::Both).unwrap().0, 60.0, max_relative = 1e-9);
}

#[test]
fn short_gaps_and_boards_with_one_lever_are_left_alone() {
    let mut levers = gddr(LeverBook::default());
    let mut board = Board { locked: None, changed: 0.0, back: 0.05, watts };
    board.park(&mut levers, TRIAL_AFTER.0 - 0.2);
    assert!(!levers.is_trying());
    let mut hopper =
        Levers::new(Lever::of(&clocks(&[2619]), Mhz(345), Some(Mhz(2619))), LeverBook::default(), TOP);
    board.park(&mut hopper, 60.0);
    assert_eq!(hopper.book(), &LeverBook::default());
    assert_eq!(hopper.best(None).unwrap().kind, LeverKind::Core);
}

#[test]
fn lever_that_wakes_slowly_has_to_save_more_the_shorter_the_gaps() {
    let mut levers = gddr(LeverBook::default());
    Board { locked: None, changed: 0.0, back: 0.05, watts }.park(&mut levers, 120.0);
    let both = Clocks { core: Mhz(210), memory: Some(Mhz(405)) };
    (0..50).for_each(|_| levers.woke(both, Seconds(2.0)));
    (0..50).for_each(|_| levers.spell_over(Seconds(600.0)));
    assert_eq!(levers.best(Some(Watts(300.0))).unwrap().kind, LeverKind::Both);
    // 300 W for 2 s over 8 s are 75 W, more than it saves over the next best.
    (0..50).for_each(|_| levers.spell_over(Seconds(8.0)));
    assert_eq!(levers.best(Some(Watts(300.0))).unwrap().kind, LeverKind::Memory);
}

#[test]
fn lock_that_is_refused_is_out_and_takes_its_company_along() {
    let mut levers = gddr(LeverBook::default());
    assert!(levers.refuse(Clocks { core: Mhz(2100), memory: Some(Mhz(405)) }));
    assert_eq!(levers.usable().map(|lever| lever.kind).collect::<Vec<_>>(), [LeverKind::Core]);
    assert!(!levers.refuse(Clocks::core_only(Mhz(900))));
    assert!(levers.refuse(Clocks::core_only(Mhz(210))));
    assert_eq!(levers.best(None), None);
}

#[test]
fn board_that_keeps_its_clocks_down_when_idle_gives_no_wake() {
    let mut levers = gddr(LeverBook::default());
    Board { locked: None, changed: 0.0, back: f64::INFINITY, watts }.park(&mut levers, 120.0);
    assert!(levers.book().levers.values().all(|known| known.wake_s.is_none() && known.parked_w.is_some()));
}
