//! Laws that every simulated run obeys, whatever the load, the card, the clocks and the seed.

use proptest::prelude::*;

use super::world::ClockCall;
use super::*;
use agft::gpu::ClockReasons;
use agft::metrics::page::Page;
use agft::units::{Clocks, Mhz, Seconds, Time, Watts};

/// Card and model that fit together.
fn machines() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop::sample::select(vec![
        ("a100", "8b"),
        ("h100", "14b"),
        ("h200", "3b"),
        ("a6000", "3b"),
        ("a40", "8b"),
        ("l40s", "14b"),
        ("rtx3090", "3b"),
        ("rtx4090", "8b"),
        ("rtx5090", "8b"),
        ("rtxpro6000", "14b"),
        ("rtx3090-measured", "3b"),
        ("rtx4090-measured", "8b"),
        ("rtx5090-measured", "8b"),
        ("rtxpro6000-measured", "14b"),
    ])
}

fn patterns() -> impl Strategy<Value = Pattern> {
    prop::sample::select(Pattern::ALL.to_vec())
}

fn world(machine: (&str, &str), pattern: Pattern, seed: u64) -> World {
    World::new(WorldSpec::named(machine.0, machine.1, pattern, None).unwrap(), seed).unwrap()
}

/// A clock at `share` of the way from the lowest to the highest.
fn clock_at(gpu: &GpuPreset, share: f64) -> Mhz {
    let clocks = gpu.core_clocks();
    let wanted = gpu.core_range.0.as_f64() * (1.0 - share) + gpu.core_range.1.as_f64() * share;
    clocks.into_iter().find(|clock| clock.as_f64() <= wanted).unwrap()
}

/// Type lines and series with the names of their labels, bounds left out, in order.
fn skeleton(page: &str) -> Vec<String> {
    let mut lines: Vec<String> = page
        .lines()
        .filter(|line| !line.starts_with("# HELP"))
        .map(|line| match line.split_once('{') {
            // The configuration's labels change with every release.
            Some((name @ "vllm:cache_config_info", _)) => name.to_owned(),
            Some((name, rest)) => {
                let labels = rest.split('=').filter_map(|part| part.rsplit(['"', ',']).next());
                let mut labels: Vec<_> = labels.filter(|label| !label.contains('}')).collect();
                labels.sort_unstable();
                format!("{name}{labels:?}")
            }
            None => line
                .split_once(' ')
                .map_or(line, |(name, value)| if name == "#" { value } else { name })
                .to_owned(),
        })
        .collect();
    lines.dedup();
    lines
}

#[test]
fn page_has_the_families_types_and_labels_of_a_captured_one() {
    let captured = include_str!("../../../../tests/data/metrics/vllm-0.32.0-idle-after-load.txt");
    let mut world = world(("a100", "8b"), Pattern::Steady, 1);
    world.advance(Time(30.0));
    assert_eq!(skeleton(&world.page()), skeleton(captured));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn page_parsed_equals_signals(machine in machines(), pattern in patterns(), seed: u64, until in 0.0..90.0) {
        let mut world = world(machine, pattern, seed);
        world.advance(Time(until));
        let page = world.page();
        let parsed = Page::parse(page.as_bytes(), Some("sim-8b").filter(|_| machine.1 == "8b")).unwrap();
        prop_assert_eq!(&parsed.refused, &[]);
        prop_assert_eq!(parsed.dialect, "V1 engine, current names (0.12 or later)");
        prop_assert_eq!(parsed.signals, world.signals());
        prop_assert!((40_000..60_000).contains(&page.len()), "{} bytes", page.len());
    }

    #[test]
    fn the_same_seed_gives_the_same_run_however_it_is_cut_into_pieces(
        machine in machines(), pattern in patterns(), seed: u64, cut in 0.1..60.0,
    ) {
        let (mut whole, mut pieces) = (world(machine, pattern, seed), world(machine, pattern, seed));
        whole.advance(Time(60.0));
        pieces.advance(Time(cut));
        let _ = (pieces.page(), pieces.reading());
        pieces.advance(Time(60.0));
        prop_assert_eq!(whole.signals(), pieces.signals());
        prop_assert_eq!(whole.finished(), pieces.finished());
        prop_assert!((whole.true_energy().0 / pieces.true_energy().0 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn no_request_and_no_token_is_lost(machine in machines(), pattern in patterns(), seed: u64, share in 0.2..1.0) {
        let spec = WorldSpec::named(machine.0, machine.1, pattern, None).unwrap();
        let Arrivals::Open(load) = &spec.arrivals else { unreachable!() };
        let asked = load.requests(60.0, seed);
        let mut world = World::new(WorldSpec { arrivals: Arrivals::Listed(asked.clone()), ..spec }, seed).unwrap();
        let clock = clock_at(world.gpu(), share);
        world.write_clocks(ClockCall::LockCore(clock, clock)).unwrap();
        world.advance(Time(60.0));
        let (running, waiting) = world.in_flight();
        let ended = world.finished().len() + world.rejected().len();
        let arrived_in_a_step = asked.len() - ended - running - waiting;
        prop_assert!(arrived_in_a_step <= asked.len() / 4, "{arrived_in_a_step} of {} in nobody's hands", asked.len());
        world.advance(Time(36_000.0));
        let (finished, rejected) = (world.finished(), world.rejected());
        prop_assert_eq!(finished.len() + rejected.len(), asked.len());
        prop_assert_eq!(world.in_flight(), (0, 0));
        let page = world.signals();
        let prompts: f64 = finished.iter().map(|done| f64::from(done.request.prompt_tokens)).sum();
        let outputs: f64 = finished.iter().map(|done| f64::from(done.request.output_tokens)).sum();
        prop_assert_eq!(page.prompt_tokens, Some(prompts));
        prop_assert_eq!(page.generation_tokens, Some(outputs));
        prop_assert_eq!(page.step_tokens.map(|steps| steps.sum), Some(prompts + outputs));
        prop_assert_eq!(page.ttft.map(|ttft| ttft.count), Some(finished.len() as f64));
        prop_assert_eq!(page.itl.map(|itl| itl.count), Some(outputs - finished.len() as f64));
        prop_assert_eq!(page.finished, Some(finished.len() as f64));
        prop_assert_eq!((page.running, page.waiting, page.kv_usage), (Some(0.0), Some(0.0), Some(0.0)));
        for done in finished {
            prop_assert!(done.request.arrival <= done.admitted);
            prop_assert!(done.admitted < done.first_token && done.first_token <= done.finished);
        }
    }

    #[test]
    fn power_stays_between_deep_idle_and_the_cap(
        // The lowest clock measured on the RTX 3090 draws 62 % of its cap.
        machine in machines(), pattern in patterns(), seed: u64, share in 0.0..1.0, cap in 0.63..1.0,
    ) {
        let mut world = world(machine, pattern, seed);
        let cap = Watts(world.power_cap().0 * cap);
        world.set_power_cap(cap);
        let clock = clock_at(world.gpu(), share);
        world.write_clocks(ClockCall::LockCore(clock, clock)).unwrap();
        let floor = world.gpu().bare_idle_watts();
        let mut before = world.true_energy().0;
        for tick in 1..200 {
            world.advance(Time(f64::from(tick) * 0.3));
            let watts = (world.true_energy().0 - before) / 0.3;
            before = world.true_energy().0;
            prop_assert!((floor - 1e-6..=cap.0 + 1e-6).contains(&watts), "{watts} W, cap {cap}");
        }
    }

    #[test]
    fn energy_counter_follows_the_true_energy(machine in machines(), pattern in patterns(), seed: u64) {
        let mut world = world(machine, pattern, seed);
        let sensors = world.gpu().sensors;
        let start = world.energy_counter();
        let (mut last, mut longest_still) = (start, 0.0_f64);
        let mut changed = 0.0;
        for step in 1..=5000 {
            let now = f64::from(step) * 0.01;
            world.advance(Time(now));
            let counter = world.energy_counter();
            prop_assert!(counter >= last);
            if counter > last {
                (last, changed) = (counter, now);
            }
            longest_still = longest_still.max(now - changed);
        }
        prop_assert!(longest_still <= sensors.energy_tick + 0.011, "stood still for {longest_still} s");
        let measured = last.since(start).unwrap().0;
        let most = 1.0 + 2.0 * sensors.gain_error + 0.02;
        prop_assert!((1.0 / most..most).contains(&(measured / world.true_energy().0)));
    }

    #[test]
    fn a_higher_clock_never_makes_a_step_longer_or_cheaper_in_watts(
        gpu in prop::sample::select(presets::GPUS.to_vec()),
        model in prop::sample::select(presets::MODELS.to_vec()),
        prefill in 0.0..4096.0, decodes in 0.0..256.0, context in 1.0..8000.0, host in 0.0..0.002,
    ) {
        let batch = Batch {
            prefill_tokens: prefill,
            prefill_pairs: prefill * context / 2.0,
            decode_seqs: decodes,
            context_tokens: decodes * context + prefill,
        };
        let work = Work::of(&batch, &model, host);
        for memory in gpu.memory {
            let costs: Vec<_> = gpu
                .core_clocks()
                .into_iter()
                .filter(|core| *core <= gpu.core_reached)
                .map(|core| gpu.step(&work, Clocks { core, memory: Some(*memory) }))
                .collect();
            for pair in costs.windows(2) {
                prop_assert!(pair[0].seconds < pair[1].seconds, "highest clock first: {pair:?}");
                prop_assert!(pair[0].watts > pair[1].watts, "highest clock first: {pair:?}");
            }
        }
    }
}

#[test]
fn a_lock_takes_effect_after_the_settle_time_and_the_reasons_name_it() {
    let mut world = world(("a100", "8b"), Pattern::Steady, 3);
    world.advance(Time(5.0));
    world.write_clocks(ClockCall::LockCore(Mhz(210), Mhz(905))).unwrap();
    let (shortest, longest) = world.gpu().settle.bounds;
    world.advance(Time(5.0 + shortest - 0.001));
    assert_eq!(world.reading().core_clock, Some(Mhz(1410)));
    world.advance(Time(5.0 + longest));
    assert_eq!(world.reading().core_clock, Some(Mhz(900)), "905 MHz snaps to the 15 MHz grid");
    assert!(world.reading().reasons().intersects(ClockReasons::CLOCKS_SETTING));
    assert!(!world.reading().reasons().is_capped());
}

#[test]
fn a_tight_cap_lowers_the_clock_and_the_reasons_name_it() {
    let mut world = world(("a100", "8b"), Pattern::HighConcurrency, 3);
    world.set_power_cap(Watts(250.0));
    world.advance(Time(20.0));
    let reading = world.reading();
    assert!(reading.core_clock < Some(Mhz(1410)), "{reading:?}");
    assert!(reading.reasons().is_capped());
}

#[test]
fn requests_beyond_the_top_clock_run_at_the_top_clock() {
    let mut world = world(("h200", "8b"), Pattern::Light, 3);
    world.write_clocks(ClockCall::LockCore(Mhz(1980), Mhz(1980))).unwrap();
    world.advance(Time(1.0));
    assert_eq!(world.reading().core_clock, Some(Mhz(1830)));
}

#[test]
fn a_board_that_parks_itself_sleeps_when_idle_and_wakes_for_work() {
    let request =
        |at: f64| Request { arrival: Time(at), prompt_tokens: 50, output_tokens: 2000, cached_tokens: 0 };
    let spec = WorldSpec::named("rtx3090", "3b", Pattern::Light, None).unwrap();
    let mut world =
        World::new(WorldSpec { arrivals: Arrivals::Listed(vec![request(20.0)]), ..spec }, 1).unwrap();
    world.advance(Time(7.9));
    assert_eq!(world.reading().core_clock, Some(Mhz(1935)));
    world.advance(Time(9.0));
    assert_eq!(world.reading().core_clock, Some(Mhz(210)));
    assert_eq!(world.reading().memory_clock, Some(Mhz(405)));
    world.advance(Time(21.0));
    assert!(world.reading().core_clock > Some(Mhz(1000)), "awake, though maybe at the power cap");
    assert_eq!(world.in_flight(), (1, 0));
}

#[test]
fn a_full_cache_preempts_and_still_finishes_everything() {
    let spec = WorldSpec::named("a100", "8b", Pattern::Steady, None).unwrap();
    let engine = EngineSettings { kv_blocks: Some(100), ..spec.engine };
    let requests = (0..20)
        .map(|i| Request {
            arrival: Time(f64::from(i) * 0.01),
            prompt_tokens: 200,
            output_tokens: 300,
            cached_tokens: 0,
        })
        .collect();
    let mut world =
        World::new(WorldSpec { engine, arrivals: Arrivals::Listed(requests), ..spec }, 1).unwrap();
    world.advance(Time(3.0));
    let page = world.signals();
    assert!(page.kv_usage > Some(0.85) && page.waiting > Some(0.0), "{page:?}");
    world.advance(Time(600.0));
    assert_eq!(world.finished().len(), 20);
    let preemptions: u32 = world.finished().iter().map(|done| done.preemptions).sum();
    assert!(preemptions > 0);
    assert_eq!(world.signals().preemptions, Some(f64::from(preemptions)));
}

#[test]
fn a_request_longer_than_the_cache_is_rejected_and_the_rest_goes_on() {
    let spec = WorldSpec::named("rtx3090", "3b", Pattern::Steady, None).unwrap();
    let request =
        |prompt| Request { arrival: Time(1.0), prompt_tokens: prompt, output_tokens: 10, cached_tokens: 0 };
    let requests = vec![request(5_000_000), request(100)];
    let mut world = World::new(WorldSpec { arrivals: Arrivals::Listed(requests), ..spec }, 1).unwrap();
    world.advance(Time(10.0));
    assert_eq!((world.finished().len(), world.rejected().len()), (1, 1));
}

#[test]
fn page_is_one_step_old_while_the_first_prompt_runs() {
    let spec = WorldSpec::named("a40", "8b", Pattern::Steady, None).unwrap();
    let requests =
        vec![Request { arrival: Time(1.0), prompt_tokens: 2000, output_tokens: 5, cached_tokens: 0 }];
    let mut world = World::new(WorldSpec { arrivals: Arrivals::Listed(requests), ..spec }, 1).unwrap();
    world.advance(Time(1.2));
    assert_eq!(world.in_flight(), (1, 0));
    assert_eq!(world.signals().running, Some(0.0));
    assert!(world.reading().utilization_percent > Some(0.0));
}

#[test]
fn closed_loop_clients_have_one_request_each() {
    let spec = WorldSpec::named("a100", "8b", Pattern::Steady, None).unwrap();
    let clients = ClosedLoop { clients: 7, think: Seconds(0.2), shape: Shape::CHAT };
    let mut world = World::new(WorldSpec { arrivals: Arrivals::Closed(clients), ..spec }, 1).unwrap();
    for tick in 1..200 {
        world.advance(Time(f64::from(tick) * 0.3));
        let (running, waiting) = world.in_flight();
        assert!(running + waiting <= 7);
    }
    assert!(world.finished().len() > 50);
}

#[test]
fn a_model_too_big_for_the_card_is_refused_by_name() {
    let error = WorldSpec::named("rtx3090", "14b", Pattern::Steady, None).unwrap_err();
    assert!(matches!(error, SimError::ModelDoesNotFit { model: "14b", .. }));
    assert!(
        WorldSpec::named("k80", "3b", Pattern::Steady, None).unwrap_err().to_string().contains("a100, h100")
    );
}

/// A lone request of these lengths at second one, on an A40.
fn lone(front: FrontEnd) -> World {
    let request = Request { arrival: Time(1.0), prompt_tokens: 3000, output_tokens: 5, cached_tokens: 0 };
    let spec = WorldSpec::named("a40", "8b", Pattern::Steady, None).unwrap();
    World::new(WorldSpec { arrivals: Arrivals::Listed(vec![request]), front, ..spec }, 1).unwrap()
}

#[test]
fn front_end_delays_a_lone_request_by_its_own_time() {
    let ttft = |delay: f64| {
        let mut world = lone(FrontEnd { delay: Seconds(delay), ..FrontEnd::default() });
        world.advance(Time(30.0));
        world.finished()[0].ttft().0
    };
    for delay in [0.003, 0.1, 2.0] {
        approx::assert_relative_eq!(ttft(delay), ttft(0.0) + delay, max_relative = 1e-9);
    }
}

#[test]
fn request_is_known_of_at_its_first_byte_and_its_connection_until_its_last_token() {
    let mut world = lone(FrontEnd { delay: Seconds(0.5), ..FrontEnd::default() });
    let mut counts = |at: f64| {
        world.advance(Time(at));
        let connections = world.connections();
        (connections.open, connections.opened_total, connections.requests_total, world.next_request())
    };
    assert_eq!(counts(0.999), (0, 0, 0, Some(Time(1.0))));
    assert_eq!(counts(1.0), (1, 1, 1, None));
    assert_eq!(counts(1.6), (1, 1, 1, None));
    assert_eq!(counts(30.0), (0, 1, 1, None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn connections_are_those_of_requests_that_have_come_and_not_ended(
        machine in machines(), pattern in patterns(), seed: u64, looks in prop::collection::vec(0.01_f64..20.0, 1..20),
    ) {
        let spec = WorldSpec::named(machine.0, machine.1, pattern, None).unwrap();
        let Arrivals::Open(load) = &spec.arrivals else { return Ok(()) };
        let requests = load.requests(20.0, seed);
        let front = FrontEnd { delay: Seconds(0.05), ..FrontEnd::default() };
        let mut world = World::new(WorldSpec { front, ..spec }, seed).unwrap();
        let mut looks = looks;
        looks.sort_by(f64::total_cmp);
        for at in looks {
            world.advance(Time(at));
            let come = requests.iter().filter(|request| request.arrival.0 <= at).count();
            let ended = world.finished().len() + world.rejected().len();
            let connections = world.connections();
            prop_assert_eq!(connections.requests_total, come as u64);
            prop_assert_eq!(connections.open as usize, come - ended);
            if let Some(next) = requests.get(come) {
                prop_assert_eq!(world.next_request(), Some(next.arrival));
            }
        }
    }
}
