//! What earlier versions wrote is read, and of `linucb` leads to the same decisions: `tests/data/releases`.
#![expect(clippy::expect_used, reason = "a file that cannot be read fails the test")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use agft::bandit::ActionSpace;
use agft::compose;
use agft::config::Config;
use agft::control::learned::MODEL_VERSION;
use agft::control::{Controller, Learned, Model, Settings};
use agft::holdout::HoldoutSettings;
use agft::park::levers::LeverBook;
use agft::replay::same::same;
use agft::replay::{Head, Made, Segment};
use agft::store::{Identity, Load, ModelStore, raw};
use agft::units::Mhz;
use jiff::Timestamp;

/// The files of each policy, by every version that is kept.
fn kept() -> Vec<PathBuf> {
    let releases = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/releases");
    let versions = fs::read_dir(releases).expect("releases").map(|entry| entry.expect("a release").path());
    let kept: Vec<PathBuf> = versions
        .filter(|path| path.is_dir())
        .flat_map(|version| ["structured", "linucb"].map(|policy| version.join(policy)))
        .collect();
    assert!(!kept.is_empty());
    kept
}

/// The identity that a kept model is stored under.
fn identity(policy: &Path) -> Identity {
    let bytes = fs::read(policy.join("model/model.agft")).expect("a model");
    raw::open_model::<Model>(&bytes).expect("a model of today's form").0
}

/// A copy of a model directory that agft would trust.
fn store(policy: &Path) -> (tempfile::TempDir, ModelStore) {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["model.agft", "savings.agft"] {
        let copy = dir.path().join(name);
        fs::copy(policy.join("model").join(name), &copy).expect("a copy");
        fs::set_permissions(copy, Permissions::from_mode(0o600)).expect("its mode");
    }
    let store = ModelStore::open(dir.path()).expect("the copy");
    (dir, store)
}

fn load(policy: &Path) -> Model {
    let (_dir, store) = store(policy);
    let loaded = store.load(&identity(policy), Timestamp::UNIX_EPOCH).expect("readable files");
    let restored = match loaded {
        Load::Restored(restored) => Ok(restored),
        Load::Fresh { reasons } => Err(reasons),
    };
    let restored = restored.expect("a model that belongs here");
    assert_eq!((restored.rejected.len(), restored.differences.len()), (0, 0));
    restored.model
}

/// The controller that a start with this model and the recorded configuration makes.
fn started(model: Model, head: &Head, holdout: Option<HoldoutSettings>) -> Controller {
    let config = Config::parse(&head.config, "the recorded configuration").expect("a configuration").config;
    let memory = compose::memory_clocks(&config, &head.clocks);
    let space = ActionSpace::new(&head.clocks, &compose::space_settings(&config, memory));
    // Its experiment began with the run, and had one share: a configuration of today would give it another.
    let settings = Settings { holdout, ..compose::control_settings(&config, head.dry_run) };
    let mut learned = Learned::from(model);
    compose::configure(&mut learned.policy, &config);
    let levers = compose::levers(&config, &head.clocks, LeverBook::default());
    Controller::new(settings, learned, space, head.gpus, head.at).with_levers(levers)
}

#[test]
fn a_kept_model_is_read_and_stays_what_it_is() {
    for policy in kept() {
        let model = load(&policy);
        assert!(Learned::from(model.clone()).is_sound());
        assert!(model.rounds > 300 && model.floor.is_some(), "{} rounds, {:?}", model.rounds, model.floor);
        let today = Identity { model_version: MODEL_VERSION, ..identity(&policy) };
        let again = raw::model_file(&today, &model).expect("a model file");
        assert_eq!(
            raw::open_model::<Model>(&again).expect("what was written").1,
            model,
            "{}",
            policy.display()
        );
        // What the shared models say is of the samples that were kept, fitted as today.
        let learned: Learned = model.into();
        if let Some(known) = learned.policy.as_structured() {
            assert!(!known.best_by_load(&[Mhz(600), Mhz(900), Mhz(1200)]).is_empty());
        }
    }
}

/// Of `structured` the decisions are others by now; of `linucb` they are not.
fn is_decided_as_then(policy: &Path) -> bool {
    policy.ends_with("linucb")
}

#[test]
fn steps_of_then_are_decided_as_then() {
    for policy in kept() {
        let mut segment = Segment::open(&policy.join("run/steps/000001.agft-steps"))
            .expect("a segment")
            .expect("one with steps");
        let holdout = segment.controller.settings().holdout;
        let mut begun = started(load(&policy), &segment.head, holdout);
        let mut controller = segment.controller.clone();
        let mut decisions = 0;
        while let Some(step) = segment.next_step().expect("a step") {
            let output = controller.step(&step.seen);
            let made = Made::of(&output, &controller);
            if is_decided_as_then(&policy) {
                let choice =
                    |made: &Made| made.round.and_then(|round| round.choice).map(|choice| choice.target);
                let decided = |made: &Made| (made.mode, made.command, made.asked, choice(made));
                assert_eq!(decided(&made), decided(&step.made), "{}", policy.display());
            }
            decisions += usize::from(made.round.is_some_and(|round| round.choice.is_some()));
            begun.step(&step.seen);
        }
        assert!(decisions > 10, "{decisions}");
        assert!(begun.learned().is_sound() && begun.learned().rounds > 300);
    }
}

#[test]
fn a_kept_run_is_repeated_to_where_it_is_decided_otherwise() {
    for policy in kept() {
        let same = same(&policy.join("run")).expect("a run");
        assert!(same.notes.is_empty(), "{same:?}");
        if is_decided_as_then(&policy) {
            // To where a limit was broken: that is judged otherwise by now.
            let difference = same.first_difference.as_ref().expect("a limit was broken then");
            assert_eq!((difference.segment, difference.recorded.as_str()), (2, "SloGuard"));
            assert!(same.steps > 80 && same.commands > 3, "{same:?}");
        } else {
            assert!(same.first_difference.is_some(), "{same:?}");
        }
    }
}

#[test]
fn kept_savings_come_to_the_same() {
    for policy in kept() {
        let (dir, store) = store(&policy);
        let identity = identity(&policy);
        let loaded = store.load_savings(&identity, Timestamp::UNIX_EPOCH).expect("readable files");
        let savings = loaded.savings.expect("savings").restored(0.1);
        let state = serde_json::to_string_pretty(savings.state()).expect("a state") + "\n";
        assert_eq!(state, fs::read_to_string(policy.join("savings.json")).expect("what they came to then"));
        store.save_savings(&identity, &savings).expect("saved savings");
        let read = |dir: &Path| fs::read(dir.join("savings.agft")).expect("savings");
        assert!(read(dir.path()) == read(&policy.join("model")), "{}", policy.display());
    }
}

#[test]
fn what_ends_with_the_run_is_in_a_snapshot_and_not_in_a_model() {
    for policy in kept() {
        let segment = Segment::open(&policy.join("run/steps/000002.agft-steps"))
            .expect("a segment")
            .expect("one with steps");
        let learned = segment.controller.learned();
        let restarted = Learned::from(learned.model());
        assert_ne!(*learned, restarted, "in the middle of a run a clock is held");
        assert_eq!(learned.model(), restarted.model());
    }
}
