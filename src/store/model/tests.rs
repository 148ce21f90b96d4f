use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::store::identity::Mismatch;
use crate::store::testing::{Tmpfs, at, identity, is_root, names_in};
use crate::store::trust::Distrust;

type Model = Vec<f64>;

fn store_in(dir: &Path) -> ModelStore {
    ModelStore::open(dir).unwrap()
}

/// A directory that holds generation `[1.0]` before generation `[2.0]`.
fn two_generations() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = store_in(dir.path());
    assert_eq!(store.save(&identity(), &vec![1.0], at(1)).unwrap(), []);
    assert_eq!(store.save(&identity(), &vec![2.0], at(2)).unwrap(), []);
    dir
}

fn restored(store: &ModelStore, now: i64) -> Restored<Model> {
    match store.load(&identity(), at(now)).unwrap() {
        Load::Restored(restored) => *restored,
        Load::Fresh { reasons } => panic!("nothing loaded: {reasons:?}"),
    }
}

fn rejected(store: &ModelStore, here: &Identity, now: i64) -> Vec<Rejected> {
    match store.load::<Model>(here, at(now)).unwrap() {
        Load::Fresh { reasons } => reasons,
        Load::Restored(restored) => panic!("loaded {restored:?}"),
    }
}

#[test]
fn the_first_start_is_fresh_and_has_nothing_to_explain() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(rejected(&store_in(&dir.path().join("data/models")), &identity(), 1), []);
}

#[test]
fn the_last_model_saved_is_the_one_loaded_and_the_one_before_stays_beside_it() {
    let dir = two_generations();
    let loaded = restored(&store_in(dir.path()), 3);
    assert_eq!((loaded.model, loaded.generation), (vec![2.0], Generation::Current));
    assert_eq!((loaded.identity, loaded.rejected, loaded.differences), (identity(), vec![], vec![]));
    assert_eq!(names_in(dir.path()), ["model.agft", "model.previous.agft"]);
}

#[test]
fn a_save_that_dies_at_any_step_leaves_the_old_model_or_the_new_one() {
    let (mut old, mut new, mut from_previous) = (0, 0, 0);
    for steps in 0.. {
        let dir = two_generations();
        let store = store_in(dir.path());
        store.dir().fuse.allow(steps);
        let saved = store.save(&identity(), &vec![3.0], at(3));
        // The fuse stays blown: like a killed process, the store does not even clean up.
        drop(store);
        let store = store_in(dir.path());
        let loaded = restored(&store, 4);
        assert_eq!(loaded.rejected, [], "after {steps} steps");
        from_previous += u32::from(loaded.generation == Generation::Previous);
        match loaded.model[..] {
            [2.0] => old += 1,
            [3.0] => new += 1,
            _ => panic!("{:?} after {steps} steps", loaded.model),
        }
        // And life goes on from there.
        store.save(&identity(), &vec![4.0], at(5)).unwrap();
        assert_eq!(restored(&store, 6).model, [4.0]);
        assert_eq!(names_in(dir.path()), ["model.agft", "model.previous.agft"]);
        if saved.is_ok() {
            assert_eq!(loaded.model, [3.0]);
            break;
        }
    }
    assert!(old >= 8 && new >= 2, "{old} old, {new} new");
    assert_eq!(from_previous, 1, "exactly one step lies between the two renames");
}

#[test]
fn a_damaged_current_model_is_moved_aside_and_the_previous_one_loaded() {
    let dir = two_generations();
    let current = dir.path().join("model.agft");
    let mut bytes = fs::read(&current).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&current, &bytes).unwrap();
    let store = store_in(dir.path());
    let loaded = restored(&store, 7);
    assert_eq!((loaded.model, loaded.generation), (vec![1.0], Generation::Previous));
    let kept_as = dir.path().join("model.rejected-7-1.agft");
    assert_eq!(
        loaded.rejected,
        [Rejected { path: current, why: RejectReason::Checksum, kept_as: kept_as.clone() }]
    );
    assert_eq!(fs::read(&kept_as).unwrap(), bytes);
}

#[test]
fn damage_in_the_current_model_does_not_push_out_the_previous_one_on_save() {
    let dir = two_generations();
    let store = store_in(dir.path());
    fs::write(dir.path().join("model.agft"), b"AGFTMODL").unwrap();
    let moved = store.save(&identity(), &vec![3.0], at(8)).unwrap();
    assert_eq!(moved[0].why, RejectReason::Length { found: 8, stated: 52 });
    assert_eq!(restored(&store, 9).model, [3.0]);
    fs::remove_file(dir.path().join("model.agft")).unwrap();
    assert_eq!(restored(&store, 10).model, [1.0]);
}

#[test]
fn a_model_of_another_gpu_is_kept_aside_and_survives_what_is_saved_after_it() {
    let dir = two_generations();
    let store = store_in(dir.path());
    let here = Identity { gpu_name: "NVIDIA A100".into(), ..identity() };
    let foreign = fs::read(dir.path().join("model.agft")).unwrap();
    let reasons = rejected(&store, &here, 20);
    let why = Mismatch::Gpu { stored: "NVIDIA H200".into(), here: "NVIDIA A100".into() };
    assert_eq!(reasons.len(), 2);
    assert!(reasons.iter().all(|reason| reason.why == RejectReason::Foreign(why.clone())));
    let text = reasons[0].to_string();
    for part in ["model.agft was not loaded", "learned on NVIDIA H200", "kept as", "model.rejected-20-1.agft"]
    {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    for round in 0..3 {
        store.save(&here, &vec![9.0], at(21 + round)).unwrap();
    }
    assert_eq!(fs::read(dir.path().join("model.rejected-20-1.agft")).unwrap(), foreign);
}

#[test]
fn saving_without_loading_first_does_not_overwrite_another_gpus_model() {
    let dir = two_generations();
    let foreign = fs::read(dir.path().join("model.agft")).unwrap();
    let here = Identity { gpu_name: "NVIDIA A100".into(), ..identity() };
    let store = store_in(dir.path());
    store.save(&here, &vec![9.0], at(30)).unwrap();
    store.save(&here, &vec![9.5], at(31)).unwrap();
    assert_eq!(fs::read(dir.path().join("model.rejected-30-1.agft")).unwrap(), foreign);
    assert!(dir.path().join("model.rejected-31-1.agft").exists(), "the previous generation was foreign too");
}

#[test]
fn another_board_of_the_same_product_loads_and_says_so() {
    let dir = two_generations();
    let here = Identity { gpu_uuids: vec!["GPU-9".into()], ..identity() };
    match store_in(dir.path()).load::<Model>(&here, at(3)).unwrap() {
        Load::Restored(restored) => assert!(matches!(restored.differences[..], [Difference::Board { .. }])),
        Load::Fresh { reasons } => panic!("{reasons:?}"),
    }
}

#[test]
fn a_model_that_others_may_write_is_refused() {
    let dir = two_generations();
    for name in ["model.agft", "model.previous.agft"] {
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o666)).unwrap();
    }
    let reasons = rejected(&store_in(dir.path()), &identity(), 3);
    let why = RejectReason::Distrusted(Distrust::Writable { mode: 0o666 });
    assert_eq!(reasons.iter().map(|reason| &reason.why).collect::<Vec<_>>(), [&why, &why]);
}

#[test]
fn a_link_a_pipe_and_a_directory_in_the_models_place_are_moved_aside_unopened() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_in(dir.path());
    symlink("/etc/passwd", dir.path().join("model.agft")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(dir.path().join("model.previous.agft")).status();
    assert!(made.unwrap().success());
    let reasons = rejected(&store, &identity(), 5);
    assert_eq!(reasons[0].why, RejectReason::Distrusted(Distrust::Symlink));
    assert_eq!(reasons[1].why, RejectReason::Distrusted(Distrust::NotAFile));
    assert!(reasons[0].kept_as.is_symlink());

    fs::create_dir(dir.path().join("model.agft")).unwrap();
    store.save(&identity(), &vec![1.0], at(6)).unwrap();
    assert!(dir.path().join("model.rejected-6-1.agft").is_dir());
    assert_eq!(restored(&store, 7).model, [1.0]);
}

#[test]
fn five_rejected_files_stay_and_the_oldest_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_in(dir.path());
    let notes = dir.path().join("model.rejected-notes.agft");
    fs::write(&notes, b"mine").unwrap();
    let spoil = |now: i64| {
        fs::write(dir.path().join("model.agft"), now.to_string()).unwrap();
        rejected(&store, &identity(), now).remove(0).kept_as
    };
    for now in [10, 10, 9, 11, 12, 13] {
        spoil(now);
    }
    let kept = ["10-1", "10-2", "11-1", "12-1", "13-1"].map(|place| format!("model.rejected-{place}.agft"));
    assert_eq!(names_in(dir.path())[..5], kept);
    let after_a_clock_step = spoil(1);
    assert_eq!(fs::read(after_a_clock_step).unwrap(), b"1", "the file just moved is never the one to go");
    assert_eq!(names_in(dir.path()).len(), 5 + 1);
    assert_eq!(fs::read(notes).unwrap(), b"mine");
}

#[test]
fn a_reset_moves_both_generations_aside() {
    let dir = two_generations();
    let store = store_in(dir.path());
    let kept = store.reset(at(40)).unwrap();
    assert_eq!(kept, ["40-1", "40-2"].map(|n| dir.path().join(format!("model.before-reset-{n}.agft"))));
    assert_eq!(rejected(&store, &identity(), 41), []);
    assert_eq!(store.reset(at(42)).unwrap(), Vec::<PathBuf>::new());
    // Putting one back is all it takes to undo it.
    fs::rename(&kept[0], dir.path().join("model.agft")).unwrap();
    assert_eq!(restored(&store, 43).model, [2.0]);
}

#[test]
fn a_second_agft_is_kept_out_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let first = store_in(dir.path());
    let error = ModelStore::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(first);
    store_in(dir.path());
}

#[test]
fn threads_that_save_at_once_leave_two_sound_generations_at_every_moment() {
    let dir = two_generations();
    let store = store_in(dir.path());
    std::thread::scope(|scope| {
        let savers = [10.0, 20.0].map(|value| {
            let store = &store;
            scope.spawn(move || {
                for now in 0..25 {
                    assert_eq!(store.save(&identity(), &vec![value; 100], at(now)).unwrap(), []);
                }
            })
        });
        while !savers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            // Current first: while nothing bears that name, the previous one is the model.
            let sound = ["model.agft", "model.previous.agft"]
                .iter()
                .filter_map(|name| fs::read(dir.path().join(name)).ok())
                .any(|bytes| container::open(&bytes).is_ok());
            assert!(sound);
        }
    });
    assert!([10.0, 20.0].contains(&restored(&store, 50).model[0]));
    assert_eq!(names_in(dir.path()), ["model.agft", "model.previous.agft"]);
}

#[test]
fn a_file_larger_than_any_model_is_rejected_unread_and_one_is_never_written() {
    let dir = two_generations();
    let store = store_in(dir.path());
    let huge = fs::File::options().write(true).open(dir.path().join("model.agft")).unwrap();
    huge.set_len(MAX_FILE_BYTES + 1).unwrap();
    assert_eq!(restored(&store, 3).rejected[0].why, RejectReason::TooLarge);
    let error = store.save(&identity(), &"x".repeat((64 << 20) + 1), at(4)).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert_eq!(restored(&store, 5).model, [1.0]);
}

#[test]
fn on_a_read_only_disk_the_model_still_loads_and_saving_names_the_remedy() {
    let Some(disk) = Tmpfs::mount("size=1m") else { return };
    drop({
        let store = store_in(disk.path());
        store.save(&identity(), &vec![1.0], at(1)).unwrap();
        store
    });
    disk.remount("ro");
    let store = store_in(disk.path());
    assert_eq!(restored(&store, 2).model, [1.0]);
    let text = store.save(&identity(), &vec![2.0], at(3)).unwrap_err().to_string();
    for part in ["model.agft", "Read-only file system", "remount it writable"] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

#[test]
fn a_file_that_may_not_be_read_is_an_error_and_not_a_fresh_start() {
    if is_root() {
        eprintln!("skipped: root may read everything");
        return;
    }
    let dir = two_generations();
    fs::set_permissions(dir.path().join("model.agft"), fs::Permissions::from_mode(0o000)).unwrap();
    let error = store_in(dir.path()).load::<Model>(&identity(), at(3)).unwrap_err();
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::PermissionDenied));
    assert!(dir.path().join("model.agft").exists());
}
