use super::*;
use crate::park::levers::LeverKind;
use crate::park::rule::tests::SETTINGS;
use crate::park::settings::Periods;
use crate::reward::energy::EnergyPoint;
use crate::units::Mhz;

const PARKED: Clocks = Clocks { core: Mhz(210), memory: None };

fn levers() -> Levers {
    let top = Running { core: Some(Mhz(2100)), memory: None };
    Levers::new(vec![Lever { kind: LeverKind::Core, clocks: PARKED }], LeverBook::default(), top)
}

#[test]
fn without_settings_nothing_is_ever_parked() {
    let mut parker = Parker::new(None, levers(), Time(0.0));
    for k in 0..20 {
        let now = Time(f64::from(k));
        let page = PageSight { start: Time(now.0 - 0.3), work: false, step_time: None };
        assert_eq!(parker.observe(&Sample { page: Some(page), ..Sample::at(now) }), Output::default());
    }
}

/// A parker that asks, and a GPU.
struct Bench {
    parker: Parker,
    utilization: f64,
    celsius: f64,
    core: u32,
    counter: bool,
    joules: f64,
    events: Vec<Event>,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let periods = Some(Periods { active: Seconds(0.1), parked: Seconds(1.0) });
        let settings = Settings { periods, ..settings };
        let parker = Parker::new(Some(settings), levers(), Time(0.0));
        Self {
            parker,
            utilization: 50.0,
            celsius: 40.0,
            core: 2000,
            counter: true,
            joules: 0.0,
            events: Vec::new(),
        }
    }

    /// Asks until nothing is wanted; says what is to be done with the clocks.
    fn turn(&mut self, now: f64) -> Option<Command> {
        let (mut command, now) = (None, Time(now));
        let mut wanted = self.parker.wants(now);
        for round in 0.. {
            assert!(round < 6, "never content: {wanted:?}");
            let power = wanted.has(Sensor::Power).then_some(crate::units::Watts(60.0));
            let energy = EnergyPoint { at: now, total: Joules(self.joules) };
            let mut sample = Sample {
                energy: Some(energy).filter(|_| wanted.has(Sensor::Energy) && self.counter),
                running: Running { core: Some(Mhz(self.core)), memory: None },
                temperature_c: Some(self.celsius),
                read: wanted,
                ..Sample::at(now)
            };
            sample.activity.utilization_percent = Some(self.utilization);
            sample.activity.power = power;
            let out = self.parker.observe(&sample);
            command = out.command.or(command);
            self.events.extend(out.events);
            wanted = self.parker.wants(now);
            if wanted == Sensors::NONE {
                break;
            }
        }
        command
    }

    /// Goes on until this time, at the moments that the parker asks for.
    fn until(&mut self, from: f64, to: f64) -> Option<(f64, Command)> {
        let mut now = from;
        while now < to {
            if let Some(command) = self.turn(now) {
                return Some((now, command));
            }
            now = self.parker.due().0.max(now + 0.001);
        }
        None
    }
}

#[test]
fn energy_up_to_a_wake_is_read_after_the_clocks_were_given_back() {
    for (counter, joules) in [(true, 5000.0), (false, 6000.0)] {
        let mut bench = Bench::new(Settings { hot: None, ..SETTINGS });
        bench.counter = counter;
        bench.turn(0.0);
        bench.utilization = 0.0;
        let (at, command) = bench.until(0.1, 100.0).unwrap();
        assert_eq!(command, Command::Park(Target::Lock(PARKED)));
        bench.core = 210;
        assert_eq!(bench.until(at + 1.0, at + 99.0), None);
        bench.joules = 5000.0;
        bench.utilization = 80.0;
        let (woken, command) = bench.until(at + 100.0, at + 101.0).unwrap();
        assert_eq!(command, Command::Wake);
        let books = bench.parker.books();
        assert!((books.parked_s - (woken - at)).abs() < 1e-9);
        assert_eq!(books.parked_energy(), Some(Joules(joules)));
        assert_eq!((books.wakes.get("utilization"), bench.parker.is_waking()), (Some(&1), true));
        bench.core = 1900;
        bench.until(woken + 0.1, woken + 0.3);
        assert!(matches!(bench.events.last(), Some(Event::ClocksBack(took, _)) if took.0 < 0.11));
    }
}

#[test]
fn heat_in_a_parked_spell_ends_what_was_saved_in_it_and_leaves_the_clocks_down() {
    let mut bench = Bench::new(SETTINGS);
    bench.turn(0.0);
    bench.utilization = 0.0;
    let (at, _) = bench.until(0.1, 100.0).unwrap();
    (bench.celsius, bench.joules) = (90.0, 700.0);
    let (hot, command) = bench.until(at + 10.0, at + 20.0).unwrap();
    assert_eq!((command, bench.parker.state()), (Command::Park(Target::Lock(PARKED)), State::Hot));
    assert_eq!(bench.parker.books().parked_energy(), Some(Joules(700.0)));
    bench.celsius = 50.0;
    assert_eq!(bench.until(hot + 5.0, hot + 7.0), None);
    let books = bench.parker.books_at(Time(hot + 7.0));
    assert!((books.hot_s - 5.0).abs() < 1e-9, "{books:?}");
    assert!((books.parked_s - (hot - at + 2.0)).abs() < 1e-9, "{books:?}");
    assert_eq!((books.spells, books.hot_spells, bench.events.last()), (1, 1, Some(&Event::Cooled)));
}

#[test]
fn last_way_to_park_is_kept_where_it_is_tried_again_and_struck_off_where_not() {
    for retries_last in [true, false] {
        let mut bench = Bench::new(Settings { retries_last, ..SETTINGS });
        bench.turn(0.0);
        bench.utilization = 0.0;
        let (at, _) = bench.until(0.1, 100.0).unwrap();
        assert_eq!(bench.parker.refuse(PARKED, Time(at)), Refused::NoneLeft);
        if retries_last {
            bench.parker.hold_off(Time(at));
        }
        assert!(!bench.parker.is_parked());
        assert_eq!(bench.until(at + 0.1, at + 300.0).is_some(), retries_last);
    }
}

#[test]
fn lock_that_is_refused_leaves_the_gpu_parked_by_another() {
    let memory = Clocks { core: Mhz(2100), memory: Some(Mhz(405)) };
    let mut bench = Bench::new(SETTINGS);
    let list = vec![Lever { kind: LeverKind::Memory, clocks: memory }, levers().list()[0]];
    bench.parker.set_levers(Levers::new(list, LeverBook::default(), levers().top()));
    bench.turn(0.0);
    bench.utilization = 0.0;
    let (at, command) = bench.until(0.1, 100.0).unwrap();
    assert_eq!(command, Command::Park(Target::Lock(memory)));
    assert_eq!(bench.parker.refuse(memory, Time(at)), Refused::OthersLeft);
    assert_eq!((bench.parker.is_parked(), bench.parker.target()), (true, Target::Lock(PARKED)));
}
