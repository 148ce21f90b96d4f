//! What must hold for any bytes from outside: one function per format, used by the fuzz targets and, with proptest for
//! the bytes, by `crates/agft-lab/tests/any_bytes.rs`. "Must hold" beyond not panicking stands in each.
#![allow(dead_code, reason = "each user takes some of them")]

use agft::bandit::{ActionSpace, Policy};
use agft::compose;
use agft::config::{Config, PolicyKind};
use agft::control::learned::MODEL_VERSION;
use agft::control::{Controller, GpuTick, Learned, Model, Observation, Scrape};
use agft::features::Context;
use agft::gpu::{MemoryLevel, SupportedClocks};
use agft::guardian::{FromGuardian, ToGuardian};
use agft::metrics::page::Page;
use agft::metrics::window::Window;
use agft::metrics::{Histogram, Signals, Snapshot};
use agft::replay::{Recorded, Segment};
use agft::store::held::Holder;
use agft::store::steps::{self, SegmentReader, StepsError};
use agft::store::{Identity, RoundReader, RoundRecord, raw};
use agft::units::{Joules, Mhz, Seconds, Time};
use agft_lab::sim::parse_trace;

/// Two pages, one after the other (a zero byte between them): every number that is let in is finite and not negative,
/// and what the window between them says is finite too.
pub(crate) fn metrics_page(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let mut pages = parts.by_ref().filter_map(|body| Page::parse(body, None).ok());
    let Some(first) = pages.next() else { return };
    usable(&first.signals);
    let earlier = first.into_snapshot(Time(1.0), Seconds(0.01));
    let Some(second) = pages.next() else { return };
    usable(&second.signals);
    let later = second.into_snapshot(Time(1.3), Seconds(0.01));
    if let Ok(window) = Window::between(&earlier, &later) {
        let features = Context::from_window(&window, 1.0).to_array();
        assert!(features.iter().all(|feature| feature.is_finite()), "{features:?} of {window:?}");
    }
    let _ = Page::parse(data, Some("m"));
}

fn usable(signals: &Signals) {
    let numbers = [
        signals.running,
        signals.waiting,
        signals.kv_usage,
        signals.prompt_tokens,
        signals.generation_tokens,
        signals.prefix_queries,
        signals.prefix_hits,
    ];
    for number in numbers.into_iter().flatten() {
        assert!(number.is_finite() && number >= 0.0, "{signals:?}");
    }
    for histogram in [&signals.ttft, &signals.itl, &signals.step_tokens, &signals.e2e].into_iter().flatten() {
        let sound = histogram.count.is_finite() && histogram.count >= 0.0 && histogram.sum.is_finite();
        assert!(sound, "{histogram:?}");
    }
}

/// A configuration that is accepted comes back equal from its own YAML; one that is not says why.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, "fuzz.yaml") {
        Ok(loaded) => {
            let again = Config::parse(&loaded.config.to_yaml(), "again");
            assert_eq!(again.map(|again| again.config).ok(), Some(loaded.config));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A model file as it lies on the disk: without the right checksum nothing is a model.
pub(crate) fn model_file(data: &[u8]) {
    let Ok((identity, model)) = raw::open_model::<Model>(data) else { return };
    let today = Identity { model_version: MODEL_VERSION, ..identity.clone() };
    let written = raw::model_file(&today, &model).expect("a model file");
    if identity == today {
        assert!(written == data, "two files for one model");
    }
    let (_, again) = raw::open_model::<Model>(&written).expect("what was written");
    assert!(
        raw::model_file(&today, &again).is_ok_and(|again| again == written),
        "a model that is not stable"
    );
}

/// What a right checksum covers. A model that calls itself sound can be run, and saved again.
pub(crate) fn model_payload(data: &[u8]) {
    let Ok((identity, model)) = raw::open_model::<Model>(&raw::sealed(1, data)) else { return };
    let mut learned = Learned::from(model);
    let _ = identity.fits(&some_identity());
    if !learned.is_sound() {
        return;
    }
    let config = Config::default();
    compose::configure(&mut learned.policy, &config);
    let _ = learned.policy.summary();
    let mut controller = controller(learned, &config);
    for tick in 1..=8 {
        let output = controller.step(&busy(0.3 * f64::from(tick)));
        if let Some(clocks) = output.command.and_then(agft::units::Target::clocks) {
            assert!(supported().core().contains(&clocks.core), "{clocks:?} is no clock of the board");
        }
    }
    assert!(raw::model_file(&some_identity(), &controller.learned().model()).is_ok());
}

fn supported() -> SupportedClocks {
    let level = MemoryLevel { memory: Mhz(1593), core: (2..=14).map(|k| Mhz(100 * k)).collect() };
    SupportedClocks::new(vec![level]).expect("a list of clocks")
}

fn controller(learned: Learned, config: &Config) -> Controller {
    let clocks = supported();
    let space = ActionSpace::new(&clocks, &compose::space_settings(config, Vec::new()));
    Controller::new(compose::control_settings(config, false), learned, space, 1, Time(0.0))
}

fn busy(now: f64) -> Observation {
    let tokens = 1000.0 * now;
    let histogram = |sum: f64| Some(Histogram { sum, count: tokens, buckets: Vec::new() });
    let signals = Signals {
        running: Some(8.0),
        waiting: Some(0.0),
        kv_usage: Some(0.1),
        prompt_tokens: Some(tokens),
        generation_tokens: Some(tokens),
        step_tokens: Some(Histogram { sum: 2.0 * tokens, count: tokens / 8.0, buckets: Vec::new() }),
        itl: histogram(0.02 * tokens),
        ..Signals::default()
    };
    let snapshot =
        Snapshot { at: Time(now), latency: Seconds(0.005), signals, refused: Vec::new(), engine: None };
    let energy = (0..3)
        .map(|k| now - 0.3 + 0.1 * f64::from(k))
        .map(|at| agft::reward::energy::EnergyPoint { at: Time(at), total: Joules(200.0 * at) });
    let gpu = GpuTick { reading: None, read_at: None, energy: energy.collect() };
    let scrape = Scrape::Page(Box::new(snapshot));
    Observation {
        now: Time(now),
        scrape,
        gpus: vec![gpu],
        outcomes: Vec::new(),
        orders: Vec::new(),
        connections: None,
        working: 0,
    }
}

/// The identity under which the corpus is stored.
pub(crate) fn some_identity() -> Identity {
    Identity {
        gpu_name: "G".into(),
        gpu_uuids: Vec::new(),
        feature_names: vec!["f".into()],
        policy: PolicyKind::Structured.to_string(),
        model_version: 1,
        engine_model: None,
    }
}

/// Rounds: what is read can be written, on one line, and reads the same.
pub(crate) fn rounds_file(data: &[u8]) {
    for record in RoundReader::new(data).flatten() {
        let line = serde_json::to_string(&record).expect("a round has a form in JSON");
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<RoundRecord>(&line).ok().as_ref(), Some(&record), "{line}");
    }
}

/// A journal of held clocks, as it is and with its checksum made right.
pub(crate) fn journal(data: &[u8]) {
    let _ = raw::open_journal(data);
    let Ok(line) = std::str::from_utf8(data) else { return };
    if let Ok(journal) = raw::open_journal(&raw::summed_journal(line)) {
        let again = serde_json::to_string(&journal).expect("a journal has a form in JSON");
        assert_eq!(raw::open_journal(&raw::summed_journal(&again)), Ok(journal));
    }
    let _ = serde_json::from_slice::<Holder>(data);
}

/// Steps of a run: a reader that ends, and a segment that is opened can be gone through to its end or to an error with the
/// file's name.
pub(crate) fn steps_file(data: &[u8]) {
    let path = std::path::Path::new("run/steps/000001.agft-steps");
    let named = |error: &StepsError| assert!(error.to_string().contains("000001.agft-steps"), "{error}");
    let segment = SegmentReader::new(data, path).and_then(Segment::read);
    let mut segment = match segment {
        Ok(Some(segment)) => segment,
        Ok(None) => return,
        Err(error) => return named(&error),
    };
    loop {
        match segment.next_step() {
            Ok(Some(step)) => {
                let bytes = steps::pack(&step).expect("a step that was read can be written");
                assert!(steps::unpack::<Recorded>(&bytes).is_ok());
            }
            Ok(None) => return assert!(segment.end().is_some()),
            Err(error) => return named(&error),
        }
    }
}

/// What the checksums of a file of steps cover: a state and a step made of any bytes are refused, or can be written.
pub(crate) fn steps_payload(data: &[u8]) {
    if let Ok(controller) = steps::unpack::<Controller>(data) {
        let _ = controller.is_sound();
        assert!(steps::pack(&controller).is_ok());
    }
    if let Ok(step) = steps::unpack::<Recorded>(data) {
        assert!(steps::pack(&step).is_ok());
    }
}

/// Lines between a controller and its guardian, either way.
pub(crate) fn guardian_link(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(message) = serde_json::from_slice::<ToGuardian>(line) {
            let again = serde_json::to_vec(&message).expect("a message has a form in JSON");
            assert!(!again.contains(&b'\n'), "one message, one line");
            assert_eq!(serde_json::from_slice::<ToGuardian>(&again).ok(), Some(message));
        }
        if let Ok(message) = serde_json::from_slice::<FromGuardian>(line) {
            let again = serde_json::to_vec(&message).expect("a message has a form in JSON");
            assert!(!again.contains(&b'\n'), "one message, one line");
            assert_eq!(serde_json::from_slice::<FromGuardian>(&again).ok(), Some(message));
        }
    }
}

/// A trace that is read begins at zero, goes forward, and every request has something to do.
pub(crate) fn trace(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(requests) = parse_trace(text, 2.0) else { return };
    assert!(requests.first().is_some_and(|first| first.arrival.0.abs() < f64::EPSILON));
    for pair in requests.windows(2) {
        assert!(pair[0].arrival.0 <= pair[1].arrival.0, "{pair:?}");
    }
    for request in &requests {
        let sound = request.arrival.0.is_finite() && request.prompt_tokens > 0 && request.output_tokens > 0;
        assert!(sound, "{request:?}");
    }
}
